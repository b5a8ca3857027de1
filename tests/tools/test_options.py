from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from penstock.tools import ToolOptions


def test_the_defaults_bound_what_a_model_can_do_by_mistake() -> None:
    """Replies, time of a tool, tools at once, size and repetition; money, tokens and time are the caller's to bound."""
    assert ToolOptions() == ToolOptions(
        max_iterations=5,
        max_tool_calls=None,
        max_total_tokens=None,
        max_cost_usd=None,
        max_seconds=None,
        max_identical_turns=3,
        max_parallel_tools=8,
        tool_timeout_s=60.0,
        max_result_chars=100_000,
        on_unknown_tool="answer",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_iterations", 0),
        ("max_iterations", True),
        ("max_iterations", 1.0),
        ("max_iterations", None),
        ("max_tool_calls", -1),
        ("max_total_tokens", 0),
        ("max_cost_usd", 0),
        ("max_cost_usd", float("nan")),
        ("max_seconds", 0),
        ("max_seconds", float("inf")),
        ("max_identical_turns", 1),
        ("max_parallel_tools", 0),
        ("tool_timeout_s", 0),
        ("max_result_chars", 0),
        ("on_unknown_tool", "ignore"),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: Any) -> None:
    """The error says which option it is."""
    with pytest.raises(ValidationError, match=name):
        ToolOptions(**{name: value})


def test_a_cost_may_be_a_float() -> None:
    """It is taken as it is written."""
    assert ToolOptions(max_cost_usd=0.1).max_cost_usd == Decimal("0.1")  # type: ignore[arg-type]
