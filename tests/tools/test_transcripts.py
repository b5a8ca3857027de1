"""Whatever goes wrong, what is sent is what the protocol allows: the runs of the benchmark, but shrinkable."""

from __future__ import annotations

import importlib.util
import random  # noqa: TC003 - Hypothesis reads it
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.testing import VirtualLoop

PATH = Path(__file__).parents[2] / "benchmarks" / "_tool_runs.py"


def load() -> Any:
    """The benchmark's module, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("_tool_runs", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUNS = load()


@pytest.mark.slow
@settings(max_examples=60)
@given(st.randoms(use_true_random=False))
def test_no_request_of_a_tool_loop_is_refused_by_the_protocol(rng: random.Random) -> None:
    """Under failing, hanging, unknown and denied tools, bounds, faults, cancellation, leaving early and resume."""
    runs = RUNS.ToolRuns(rng)
    anyio.run(runs.run, backend_options={"loop_factory": VirtualLoop})
    assert runs.refused == 0


def ask(*blocks: dict[str, Any], role: str = "assistant") -> Any:
    """A transcript that ends with one message."""
    return [{"role": "user", "content": "Hello"}, {"role": role, "content": list(blocks)}]


@pytest.mark.parametrize(
    "transcript",
    [
        ask({"type": "tool_use", "id": "1"}),
        [*ask({"type": "tool_use", "id": "1"}), {"role": "user", "content": "x"}],
        [
            *ask({"type": "tool_use", "id": "1"}),
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "2"}]},
        ],
        ask({"type": "tool_result", "tool_use_id": "1"}, role="user"),
        ask(role="user"),
    ],
)
def test_the_check_itself_finds_what_is_wrong(transcript: Any) -> None:
    """Calls without results, results without calls, and empty messages."""
    with pytest.raises(AssertionError):
        RUNS.check_transcript(transcript)
