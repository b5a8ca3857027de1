"""Settings under a wrong name, and keys in a wrong place: what is meant is said, and no key is shown."""

from __future__ import annotations

import inspect
import pickle
import traceback
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from penstock import Client, Settings
from penstock.guards.admit.limits import Limits
from penstock.guards.breaker import BreakerOptions
from penstock.guards.retry import RetryOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = "sk-ant-api03-very-secret-key-of-somebody"
MADE: Any = Client


def refusal(**fields: Any) -> str:
    """What a client says to settings that it doesn't take."""
    with pytest.raises(ValueError, match="validation error") as refused:
        MADE(**fields)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("api_key", "did you mean api_keys?"),
        ("timeout", "did you mean timeout_s?"),
        ("max_retries", "did you mean retry=RetryOptions(max_attempts=…)?"),
        ("max_attempts", "did you mean retry={'max_attempts': …}?"),
        ("requests_per_minute", "did you mean limits={'requests_per_minute': …}?"),
    ],
)
def test_settings_that_are_called_otherwise_elsewhere_are_known(name: str, meant: str) -> None:
    """By the SDK, or as parts of a setting."""
    assert f"{name}\n  is no setting; {meant}" in refusal(**{name: 3})


def test_whatever_the_sdk_s_client_takes_has_its_way_here() -> None:
    """As a setting, by another name, or through a client of the SDK's own."""
    for name in inspect.signature(anthropic.AsyncAnthropic).parameters:
        if name not in Settings.model_fields and not name.startswith("_"):
            said = refusal(**{name: None})
            assert "did you mean" in said or f"Client(sdk=AsyncAnthropic({name}=…))" in said


@pytest.mark.lengthy
@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_found_when_it_is_misspelt(name: str) -> None:
    """Its end is missing, or two of its letters changed places."""
    for wrong in (name[:-1], f"{name[0]}{name[2]}{name[1]}{name[3:]}"):
        if wrong != name:
            assert f"{wrong}\n  is no setting; did you mean {name}?" in refusal(**{wrong: 3})


@pytest.mark.parametrize(
    ("group", "options"), [("retry", RetryOptions), ("breaker", BreakerOptions), ("limits", Limits)]
)
def test_parts_of_settings_are_found_when_they_are_misspelt(group: str, options: Any) -> None:
    """Among those of their own."""
    for name in options.model_fields:
        assert f"is no setting; did you mean {name}?" in refusal(**{group: {name[:-1]: 3}})


def test_what_nobody_could_mean_is_told_without_a_guess() -> None:
    """And several at once are all told."""
    said = refusal(zzz=1, api_key=2, retry={"qqq": 1})
    assert "zzz\n  is no setting [" in said
    assert "retry.qqq\n  is no setting [" in said
    assert "did you mean api_keys?" in said


def test_a_key_alone_is_no_settings() -> None:
    """It is what a newcomer tries first."""
    with pytest.raises(TypeError, match=r"settings must be Settings, not str; .* Client\(api_keys=\[…\]\)"):
        MADE(KEY)


MISPLACED: dict[str, Callable[[], object]] = {
    "alone": lambda: MADE(KEY),
    "as the SDK has it": lambda: MADE(api_key=KEY),
    "as the name of a setting": lambda: MADE(**{KEY: 1}),
    "twice": lambda: MADE(api_keys=[KEY, KEY]),
    "no key": lambda: MADE(api_keys=[f"{KEY}\n{KEY}"]),
    "in a dictionary": lambda: MADE(api_keys={KEY: 1}),
    "with another that is wrong": lambda: MADE(api_keys=[KEY], max_tokens="many"),
    "with settings and another that is wrong": lambda: MADE(Settings(api_keys=[KEY]), max_tokens="many"),
    "with a cloud's client": lambda: MADE(sdk=anthropic.AsyncAnthropicBedrock(aws_region="x"), api_keys=[KEY]),
    "base_url": lambda: MADE(base_url=KEY),
    "user of base_url": lambda: MADE(base_url=f"https://me:{KEY}@api.example"),
    "host of base_url": lambda: MADE(base_url=f"http://{KEY}.example"),
    "a number": lambda: MADE(max_tokens=KEY),
    "a choice": lambda: MADE(transport=KEY),
    "a group": lambda: MADE(retry=KEY),
    "in a group": lambda: MADE(retry={"max_attempts": KEY}),
    "name in a group": lambda: MADE(limits={KEY: 3}),
    "limits": lambda: MADE(limits=KEY),
    "sanitize": lambda: MADE(sanitize=KEY),
    "weights": lambda: MADE(key_weights=KEY),
    "a weight's name": lambda: MADE(key_weights={KEY: -1.0}),
    "a weight's name, and no weight": lambda: MADE(key_weights={KEY: "x"}),
    "set later": lambda: setattr(Settings(), "api_keys", [KEY]),
}


def check(error: BaseException) -> None:
    """No key in the text, the pickle, or the local variables of whatever frame but the test's own."""
    shown = f"{error!r} {error} {error.args}"
    waiting: list[traceback.TracebackException | None] = [
        traceback.TracebackException.from_exception(error, capture_locals=True)
    ]
    while waiting:
        if (each := waiting.pop()) is not None:
            frames = [frame for frame in each.stack if frame.filename != __file__]
            shown += "".join(f"{frame.filename} {frame.locals}" for frame in frames)
            waiting += [each.__cause__, each.__context__]
    assert KEY not in shown
    if not isinstance(error, ValueError):
        assert KEY.encode() not in pickle.dumps(error)


@pytest.mark.lengthy
@pytest.mark.parametrize("where", MISPLACED)
def test_a_key_in_a_wrong_place_is_not_shown(where: str) -> None:
    """Tools that report errors show the local variables of every frame."""
    with pytest.raises((ValueError, TypeError)) as refused:
        MISPLACED[where]()
    check(refused.value)


@pytest.mark.parametrize(
    "variable", ["PENSTOCK_MAX_TOKENS", "PENSTOCK_RETRY", "PENSTOCK_BASE_URL", "ANTHROPIC_BASE_URL"]
)
def test_a_key_in_a_wrong_variable_is_not_shown(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is read by others, who would show it."""
    monkeypatch.setenv(variable, KEY)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - each says something else
        MADE()
    check(refused.value)


def test_a_key_in_a_file_of_settings_is_not_shown(tmp_path: Path) -> None:
    """Under a wrong name, and as a wrong value."""
    path = tmp_path / "penstock.toml"
    path.write_text(f'api_key = "{KEY}"\nmax_tokens = "{KEY}"\n')
    with pytest.raises(ValueError, match="did you mean api_keys") as refused:
        Settings.from_file(path)
    check(refused.value)
