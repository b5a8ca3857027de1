"""The models that tests, benchmarks and examples ask are ones that the API still has.

The installed SDK says which models are retired or deprecated. A new release of it may add some any day: that is a
warning in pytest's summary, and no failure.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from anthropic.resources.messages import DEPRECATED_MODELS

ROOT = Path(__file__).parent.parent
READ = ["README.md", "docs/**/*.md", "docs/**/*.py", "benchmarks/**/*.py", "src/**/*.py", "tests/**/*.py"]
NAME = re.compile(
    rf"(?<![\w.@-])(?:{'|'.join(map(re.escape, sorted(DEPRECATED_MODELS, key=len, reverse=True)))})(?![\w.@:-])"
)
# These are about models of any age: what they cost, what they take, which share their limits.
ABOUT_MODELS = {
    "src/penstock/simulator/models.py",
    "tests/_core/test_models.py",
    "tests/costs/test_prices.py",
    "tests/simulator/test_cache.py",
    "tests/simulator/test_models.py",
    "tests/simulator/test_validate.py",
    "tests/test_model_names.py",
}
# Of all models that can be asked, the one that has no price, which the test is about.
UNPRICED = ("tests/conversation/test_conversation.py", "claude-mythos-preview")


def asked_in(text: str) -> set[str]:
    """The outdated models that a text names."""
    return set(NAME.findall(text))


def test_a_name_is_found_whole() -> None:
    """And not in a longer one, which may be current."""
    name = next(iter(DEPRECATED_MODELS))
    assert asked_in(f'model="{name}"') == {name}
    assert not asked_in(f'model="{name}-and-more"')
    assert not asked_in(f'model="eu.anthropic.{name}"')


@pytest.mark.lengthy
@pytest.mark.filterwarnings("default::UserWarning")
def test_no_model_that_is_asked_is_outdated() -> None:
    """Where one is, ask another model; where the file is about models, name it above."""
    for path in sorted(path for pattern in READ for path in ROOT.glob(pattern)):
        place = path.relative_to(ROOT).as_posix()
        for name in sorted(asked_in(path.read_text(encoding="utf-8"))):
            if place not in ABOUT_MODELS and (place, name) != UNPRICED:
                warnings.warn(f"{place} names {name}, which ends on {DEPRECATED_MODELS[name]}", stacklevel=1)
