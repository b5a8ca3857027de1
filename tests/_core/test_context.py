from __future__ import annotations

import contextvars
import math
from typing import TYPE_CHECKING, cast

import anyio
import pytest

from penstock._core.context import (
    Patience,
    Pin,
    current_call_end,
    current_deadline,
    current_labels,
    current_patience,
    current_pin,
    deadline,
    labels,
    on_call_end,
    patience,
    pinned,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.testing.plugin import VirtualTime


def test_without_a_block_nothing_is_said() -> None:
    """By default there are no labels, no deadline and no patience."""
    assert dict(current_labels()) == {}
    assert current_deadline() == math.inf
    assert current_patience() is None


def test_labels_nest_and_the_inner_one_wins() -> None:
    """Labels of nested blocks are merged, and leaving a block brings the outer ones back."""
    with labels(user="u1", feature="search"):
        with labels(user="u2", priority="batch"):
            assert dict(current_labels()) == {"user": "u2", "feature": "search", "priority": "batch"}
        assert dict(current_labels()) == {"user": "u1", "feature": "search"}
    assert dict(current_labels()) == {}


def test_labels_end_with_an_exception() -> None:
    """An exception leaves the block as it is, and the labels end with it."""
    with pytest.raises(KeyError), labels(user="u1"):
        raise KeyError
    assert dict(current_labels()) == {}


def test_labels_in_force_are_read_only() -> None:
    """Nobody who reads the labels can change them for others."""
    with labels(user="u1"), pytest.raises(TypeError):
        cast("dict[str, str]", current_labels())["user"] = "u2"


@pytest.mark.parametrize("priority", ["urgent", "", 1])
def test_an_unknown_priority_is_refused(priority: str) -> None:
    """The error names what is allowed."""
    with pytest.raises(ValueError, match="interactive, default, batch"):
        labels(priority=priority)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1, None, b"u1", ["u1"]])
def test_a_label_must_be_text(value: str) -> None:
    """The error names the label, not its value."""
    with pytest.raises(TypeError, match="label 'user' must be a str"):
        labels(user=value)


async def test_tasks_inherit_labels_and_others_dont_see_them() -> None:
    """A task started inside a block has its labels to the end; one started outside never does."""
    seen: dict[str, dict[str, str]] = {}
    go = anyio.Event()

    async def note(name: str) -> None:
        await go.wait()
        seen[name] = dict(current_labels())

    async with anyio.create_task_group() as group:
        group.start_soon(note, "outside")
        with labels(user="u1"):
            group.start_soon(note, "inside")
        go.set()
    assert seen == {"outside": {}, "inside": {"user": "u1"}}


async def test_one_block_object_may_be_entered_by_many_tasks() -> None:
    """Tasks that share a block object leave it in any order, each in its own context."""
    shared = labels(feature="search")
    first_is_out = anyio.Event()
    after: list[dict[str, str]] = []

    async def first(second_is_in: anyio.Event) -> None:
        with shared:
            await second_is_in.wait()
        after.append(dict(current_labels()))
        first_is_out.set()

    async def second(second_is_in: anyio.Event) -> None:
        with shared:
            second_is_in.set()
            await first_is_out.wait()
            assert dict(current_labels()) == {"feature": "search"}
        after.append(dict(current_labels()))

    async with anyio.create_task_group() as group:
        second_is_in = anyio.Event()
        group.start_soon(first, second_is_in)
        group.start_soon(second, second_is_in)
    assert after == [{}, {}]


def test_a_block_may_be_entered_twice() -> None:
    """The same object nests in itself."""
    block = labels(user="u1")
    with block:
        with block:
            pass
        assert dict(current_labels()) == {"user": "u1"}
    assert dict(current_labels()) == {}


def test_left_in_another_context_a_block_does_nothing() -> None:
    """A generator that is closed elsewhere than it ran doesn't raise, and changes no labels there."""

    def generator() -> Iterator[None]:
        with labels(user="u1"):
            yield

    running = generator()
    contextvars.copy_context().run(next, running)
    with labels(user="u2"):
        running.close()  # type: ignore[attr-defined]
        assert dict(current_labels()) == {"user": "u2"}


@pytest.mark.parametrize("seconds", [0, -1, math.nan, -math.inf])
def test_a_deadline_must_lie_ahead(seconds: float) -> None:
    """Zero, negative and not-a-number are refused."""
    with pytest.raises(ValueError, match="more than 0 seconds"):
        deadline(seconds)


async def test_the_earliest_of_nested_deadlines_holds(virtual_time: VirtualTime) -> None:
    """An inner deadline can only shorten, counted from the entry of its block."""
    with deadline(30):
        outer = current_deadline()
        assert outer == pytest.approx(virtual_time.now() + 30, abs=0.01)
        await anyio.sleep(10)
        with deadline(60):
            assert current_deadline() == outer
        with deadline(5):
            assert current_deadline() == pytest.approx(virtual_time.now() + 5, abs=0.01)
        assert current_deadline() == outer
    assert current_deadline() == math.inf


async def test_a_deadline_counts_from_entry(virtual_time: VirtualTime) -> None:
    """Not from when the object was made, so that one may be kept and used again."""
    block = deadline(5)
    await anyio.sleep(100)
    with block:
        assert current_deadline() == pytest.approx(virtual_time.now() + 5, abs=0.01)


def test_a_pin_holds_inside_its_block() -> None:
    """Requests inside belong where it says, requests outside anywhere."""
    pin = Pin(key="key-1")
    with pinned(pin):
        assert current_pin() is pin
    assert current_pin() is None


def test_the_end_of_a_call_is_told_inside_its_block() -> None:
    """Outside, nobody is told."""
    told: list[object] = []
    with on_call_end(told.append):
        assert current_call_end() == told.append
    assert current_call_end() is None


def test_patience_holds_inside_its_block() -> None:
    """Calls inside are items of a batch, calls outside aren't."""
    options = Patience(max_attempts=3, deadline_s=7.0)
    with patience(options):
        assert current_patience() is options
    assert current_patience() is None
