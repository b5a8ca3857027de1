"""What a stream's last usage adds to cache writes has the time to live that its request asked for.

`message_start` tells how many tokens were written for five minutes and how many for an hour; `message_delta` tells
only a total, which server tools may have made larger. What an hour costs is nearly twice what five minutes cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from penstock.events import CallEnded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.events import Event

OURS = ["text", "events", "final"]
HOUR = {"type": "ephemeral", "ttl": "1h"}
MINUTES = {"type": "ephemeral", "ttl": "5m"}
UNSAID = {"type": "ephemeral"}


def text(cache: dict[str, str] | None) -> dict[str, Any]:
    """A block of text, cached or not."""
    return {"type": "text", "text": "long"} | ({} if cache is None else {"cache_control": cache})


def asked_by(place: str, cache: dict[str, str]) -> dict[str, Any]:
    """A request that asks for caching in one place."""
    tool = {"name": "look", "description": "Look.", "input_schema": {"type": "object"}}
    asked: dict[str, dict[str, Any]] = {
        "at the top": {"cache_control": cache},
        "in the system prompt": {"system": [text(cache)]},
        "at a tool": {"tools": [{**tool, "cache_control": cache}]},
        "in a message": {"messages": [{"role": "user", "content": [text(cache)]}]},
        "in an earlier message": {
            "messages": [
                {"role": "user", "content": [text(cache)]},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "Go on"},
            ]
        },
        "in a tool's result": {
            "messages": [
                {"role": "user", "content": "Look"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {}}]},
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x", "cache_control": cache}],
                },
            ],
            "tools": [tool],
        },
    }
    return asked[place]


PLACES = [
    "at the top",
    "in the system prompt",
    "at a tool",
    "in a message",
    "in an earlier message",
    "in a tool's result",
]


def answer(wire: Any, *, started: tuple[int, int], total: int | None, **more: Any) -> list[dict[str, Any]]:
    """A stream whose start tells writes for five minutes and an hour, and whose end a total."""
    minutes, hour = started
    start = wire.start(
        cache_creation_input_tokens=minutes + hour,
        cache_creation={"ephemeral_5m_input_tokens": minutes, "ephemeral_1h_input_tokens": hour},
    )
    end = {} if total is None else {"cache_creation_input_tokens": total}
    return [start, *wire.words(0, "Hello"), *wire.end(**end, **more)]


async def usages(wire: Any, events: Sequence[dict[str, Any]], how: str, ask: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The usage that the reader, the observers and the statistics see."""
    seen: list[Event] = []
    async with wire.governed(observers=[seen.append]) as claude:
        wire.answer(wire.sse(*events))
        outcome = await wire.read(claude, how, **ask)
        total = claude.statistics().attempts.total
    assert outcome.error is None
    (ended,) = [event for event in seen if isinstance(event, CallEnded)]
    return outcome.usage, ended.usage, total


CACHES = {"1h": (HOUR, 3_000), "5m": (MINUTES, 1_000), "unsaid": (UNSAID, 1_000)}


@pytest.mark.lengthy
@pytest.mark.in_turn(place=PLACES, how=[*OURS, "sdk events"])
async def test_what_the_end_adds_has_the_ttl_of_the_request(wire: Any, place: str, how: str) -> None:
    """Wherever the request asks for it: 1,000 were told at the start, and 2,000 more at the end."""
    events = answer(wire, started=(0, 1_000), total=3_000)
    for name, (cache, for_an_hour) in CACHES.items():
        read, told, total = await usages(wire, events, how, asked_by(place, cache))
        for usage in [told] if read is None else [read, told]:
            assert usage.cache_creation_input_tokens == 3_000, name
            assert usage.cache_creation_1h_input_tokens == for_an_hour, name
        assert total.cache_write_tokens == 3_000


SHARES: dict[str, tuple[dict[str, Any], tuple[int, int], int | None, int]] = {
    "nothing is added": (asked_by("at the top", HOUR), (400, 600), 1_000, 600),
    "no total at the end": (asked_by("at the top", HOUR), (400, 600), None, 600),
    "all comes at the end": (asked_by("at the top", HOUR), (0, 0), 3_000, 3_000),
    "all comes at the end, five minutes": (asked_by("at the top", MINUTES), (0, 0), 3_000, 0),
    "five minutes at the start, an hour asked for": (asked_by("at the top", HOUR), (1_000, 0), 3_000, 2_000),
    "a smaller total": (asked_by("at the top", HOUR), (0, 1_000), 500, 500),
    "no caching asked for": ({}, (0, 0), 3_000, 0),
}


@pytest.mark.parametrize(("ask", "started", "total", "for_an_hour"), SHARES.values(), ids=SHARES.keys())
async def test_only_what_is_added_takes_the_ttl_of_the_request(
    wire: Any, ask: dict[str, Any], started: tuple[int, int], total: int | None, for_an_hour: int
) -> None:
    """What the start told stays as it was told; what is missing at the end changes nothing."""
    read, told, _ = await usages(wire, answer(wire, started=started, total=total), "text", ask)
    assert (read.cache_creation_1h_input_tokens, told.cache_creation_1h_input_tokens) == (for_an_hour, for_an_hour)


async def test_a_breakdown_at_the_end_is_believed(wire: Any) -> None:
    """Should the API tell it one day, nothing is guessed."""
    told_at_end = {"ephemeral_5m_input_tokens": 2_900, "ephemeral_1h_input_tokens": 100}
    events = answer(wire, started=(0, 0), total=3_000, cache_creation=told_at_end)
    read, told, _ = await usages(wire, events, "text", asked_by("at the top", HOUR))
    assert (read.cache_creation_1h_input_tokens, told.cache_creation_1h_input_tokens) == (100, 100)


async def test_the_message_costs_what_was_written(wire: Any) -> None:
    """`claude.cost` of the final message is that of a message whose usage tells all of it as written for an hour."""
    whole = {
        "cache_creation_input_tokens": 3_000_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 3_000_000},
    }
    ask = asked_by("at the top", HOUR)
    async with wire.governed() as claude:
        wire.answer(wire.sse(wire.start(**whole), *wire.words(0, "Hello"), *wire.end()))
        exact = claude.cost((await wire.read(claude, **ask)).message)
        wire.answer(wire.sse(*answer(wire, started=(0, 1_000_000), total=3_000_000)))
        for how in OURS:
            assert claude.cost((await wire.read(claude, how, **ask)).message) == exact, how
