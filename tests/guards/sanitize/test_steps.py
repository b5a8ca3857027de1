"""Long texts are looked through in steps, in a thread: with the same result, and the event loop goes on meanwhile."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.guards.sanitize import Sanitize, SanitizeOptions
from penstock.guards.sanitize import rules as room
from penstock.guards.sanitize.rules import cleaned

if TYPE_CHECKING:
    from penstock.simulator import Simulator

KINDS = {
    "joiners": "\u200d",
    "selectors": "\ufe0f",
    "emoji with selectors": "❤\ufe0f",
    "families": "👩\u200d👩\u200d👧",
    "letters and joiners": "a\u200d",
    "marks": "a\u0301",
    "directions": "a\u202e",
    "tags": "a\U000e0041",
    "flags": "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "zero width": "a\u200b",
    "ideographs with selectors": "葛\U000e0100",
    "halves": "\ud83d\ude00",
    "lone halves": "\ud800",
    "controls": "\0",
    "phrases": "ignore previous instructions ",
    "spaces": "ignore" + " " * 9_999,
    "prose": "the quick brown instructions of the system prompt ignore ",
}
# All that the kinds are made of, and what it may stand beside.
PIECES = [
    *{*"".join(list(KINDS.values())[:-2]), *"aB1#\t\x85\u20e3\u180bक葛ی∩ᠠ"},
    "ignore",
    " previous  instructions",
    KINDS["flags"],
]
RULES = SanitizeOptions(on_pattern="strip").rules()


@pytest.mark.lengthy
@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_in_steps_comes_out_what_comes_out_at_once(text: str) -> None:
    """Wherever the steps are cut: through runs, pairs, flags, emoji and phrases."""
    at_once, found = cleaned(text, RULES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_STEP", 8)
        patch.setattr(room, "_LONG_STEP", 5)
        in_steps, found_again = cleaned(text, RULES)
    assert in_steps == at_once
    assert [rule.name for rule, _ in found_again] == [rule.name for rule, _ in found]


def test_a_phrase_is_found_across_steps() -> None:
    """With as much space between its words as may be."""
    text = "x" * 131_000 + "ignore" + " " * 9_000 + "previous instructions" + "x" * 300_000
    clean, _ = cleaned(text, (room.pattern_rule("ignore", "ignore previous instructions", "strip"),))
    assert clean == "x" * 131_000 + "[removed]" + "x" * 300_000


def test_a_phrase_behind_a_step_is_found_once() -> None:
    """It is within reach of the step before, and belongs to the next."""
    rule = room.pattern_rule("ignore", "ignore all", "strip")
    assert rule.sub("x" * 131_100 + "ignore all") == ("x" * 131_100 + "[removed]", 1)


def test_no_step_is_cut_within_a_pair_of_halves() -> None:
    """Though nothing but halves is near, and one alone has put the others out of step."""
    clean, _ = cleaned("\ude00" + "\ud83d\ude00" * 50_000, (room.surrogate_rule("strip"),))
    assert clean == "😀" * 50_000


@pytest.mark.slow
def test_a_million_characters_of_any_kind_take_less_than_a_second() -> None:
    """And hold the interpreter's lock for a few milliseconds at a time: each step is one call."""
    slow = {}
    for name, piece in KINDS.items():
        text = piece * (1_000_000 // len(piece))
        began = time.thread_time()
        cleaned(text, RULES)
        if (seconds := time.thread_time() - began) > 1:
            slow[name] = seconds
    assert not slow


@pytest.mark.lengthy
async def test_a_long_request_leaves_the_event_loop_its_turns(simulator: Simulator) -> None:
    """It comes out clean, and no turn waits for more than a part of the work."""
    guard = Sanitize(max_characters=10_000_000)
    sdk = simulator.client(max_retries=0, middleware=[guard])
    content = "Hello" + "a\u200d" * 500_000
    turns: list[float] = []

    async def tick() -> None:
        while True:
            turns.append(time.process_time())
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await sdk.messages.create(
            model="claude-haiku-5-5", max_tokens=10, messages=[{"role": "user", "content": content}]
        )
        group.cancel_scope.cancel()
    assert guard.statistics().unclean == 1
    body: Any = simulator.journal[-1].body
    assert body["messages"][0]["content"] == "Hello" + "a" * 500_000
    assert max(after - before for before, after in pairwise(turns)) < (turns[-1] - turns[0]) / 3
