from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from penstock import Client, Conversation, InvalidHistory
from penstock.conversation.summary import _pieces
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
MARK = {"type": "ephemeral"}
WORDS = "The water of the upper lake drives the turbine below. " * 20


def marked(body: dict[str, Any]) -> list[tuple[int, int]]:
    """Where a request marks its messages for the cache: message and block."""
    return [
        (at, index)
        for at, message in enumerate(body["messages"])
        for index, block in enumerate(message["content"])
        if "cache_control" in block
    ]


async def test_the_users_last_two_turns_are_marked(simulator: Simulator) -> None:
    """At their last blocks; the history itself has no marks, not even those that came in."""
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        for _ in range(3):
            await chat.send([{"type": "text", "text": "a", "cache_control": MARK}, {"type": "text", "text": "b"}])
        assert [marked(entry.body or {}) for entry in simulator.journal] == [
            [(0, 1)],
            [(0, 1), (2, 1)],
            [(2, 1), (4, 1)],
        ]
        assert "cache_control" not in str(chat.messages) + chat.to_json()


@pytest.mark.parametrize(("ttl", "mark"), [("5m", MARK), ("1h", {**MARK, "ttl": "1h"}), (None, None)])
async def test_the_cache_keeps_it_as_long_as_wanted(simulator: Simulator, ttl: Any, mark: Any) -> None:
    """Five minutes, an hour, or not at all; everywhere the same."""
    async with simulator.client() as sdk:
        await Conversation(sdk, model=MODEL, system="You are terse.", cache_ttl=ttl).send("Hello")
    body: Any = simulator.journal[0].body
    assert body["system"][0].get("cache_control") == body["messages"][0]["content"][0].get("cache_control") == mark


@pytest.mark.parametrize(("ttl", "marked"), [("1h", False), (None, True)])
async def test_tools_have_no_marks_beside_those_of_the_conversation(
    simulator: Simulator, ttl: Any, *, marked: bool
) -> None:
    """More than four marks, or a short one before a long one, would be refused; whoever marks all himself may."""
    tools = [{"name": f"f{number}", "input_schema": {"type": "object"}, "cache_control": MARK} for number in range(4)]
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, system=WORDS, tools=tools, cache_ttl=ttl)
        await chat.send("Hello")
        await Conversation.from_json(chat.to_json(), sdk).send("Hello")
    assert all(("cache_control" in str((entry.body or {})["tools"])) is marked for entry in simulator.journal)
    assert {entry.status for entry in simulator.journal} == {200}


async def test_half_a_character_is_told_unless_a_guard_takes_it_out(simulator: Simulator) -> None:
    """In a question; one in an answer can't spoil the conversation."""
    sdk = simulator.client()
    async with Client(sdk=sdk, log=False, sanitize=True) as claude:
        assert (await Conversation(claude, model=MODEL).send("a\ud83db")).stop_reason == "end_turn"
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        with pytest.raises(InvalidHistory, match="half of a surrogate pair"):
            await chat.send("a\ud83db")
        with pytest.raises(InvalidHistory, match="half of a surrogate pair"):
            async with chat.stream("a\ud83db"):
                pass
        simulator.reply([{"type": "text", "text": "half \ud83d é"}])
        assert (await chat.send("Hello")).text == "half \ufffd é"
        assert "half \ufffd é" in str(chat.messages)
        await chat.send("Hello")


@pytest.mark.lengthy
async def test_most_of_a_session_is_read_from_the_cache(virtual_time: VirtualTime) -> None:
    """Even where an answer has more blocks than the cache looks back over."""
    simulator = Simulator(output_tokens=100)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, system=WORDS)
        for number in range(30):
            if number % 2:
                simulator.reply([{"type": "text", "text": f"{index} {WORDS[:80]}"} for index in range(40)])
            await chat.send(f"Question {number}: {WORDS[:200]}")
    usage = chat.usage
    assert usage.cache_read_input_tokens / usage.total_input_tokens > 0.8


def test_long_texts_are_summarized_in_pieces() -> None:
    """None longer than allowed, nothing lost; a text that is too long by itself is cut."""
    assert list(_pieces(["aa", "bb", "cc"], 6)) == ["aa\n\nbb", "cc"]
    assert list(_pieces(["a" * 13], 5)) == ["aaaaa", "aaaaa", "aaa"]
    assert list(_pieces(["aa", "b" * 5], 5)) == ["aa", "bbbbb"]
    assert list(_pieces(["a" * 10], 5)) == ["aaaaa", "aaaaa"]
    assert list(_pieces([], 5)) == []
