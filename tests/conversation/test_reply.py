from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from anthropic.types import Message

from penstock import Reply
from penstock._core.usage import Usage
from penstock.conversation.reply import Draft
from penstock.messages.blocks import CONTINUE, Turn

ASKED = (Turn(role="user", content=({"type": "text", "text": "Q"},)),)
TEXT = {"type": "text", "text": "A"}
MORE = {"type": "text", "text": "B"}
THOUGHT = {"type": "thinking", "thinking": "", "signature": "s"}
CALL = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
SEARCH = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}


def message(*content: dict[str, Any], stop: str = "end_turn", **fields: Any) -> Message:
    """An answer."""
    given = {"id": "m", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5", "stop_details": None}
    made = Message.model_validate(
        {**given, "content": content, "usage": {"input_tokens": 1, "output_tokens": 1}, **fields}
    )
    return made.model_copy(update={"stop_reason": stop})


def draft(mode: Any = "return", **options: Any) -> Draft:
    """A reply that is asked for."""
    return Draft(ASKED, **{"on_truncation": mode, "max_tokens": 100, "most_tokens": 1000, "pinned": False, **options})


def answered(*blocks: dict[str, Any], paused: bool = False) -> tuple[Turn, ...]:
    """The history with that answer."""
    return (*ASKED, Turn(role="assistant", content=blocks, paused=paused))


def kinds(found: Draft) -> list[str]:
    """The types of the reply's blocks."""
    assert found.message is not None
    return [block.type for block in found.message.content]


@pytest.mark.parametrize("stop", ["end_turn", "stop_sequence", "tool_use", "something_new"])
def test_a_whole_answer_ends_it(stop: str) -> None:
    """It is sent back as it came, thinking included."""
    found = draft("continue")
    assert not found.take(message(THOUGHT, TEXT, CALL, stop=stop))
    assert found.outcome == answered(THOUGHT, TEXT, CALL)


def test_an_empty_answer_leaves_the_question_asked() -> None:
    """The API takes no empty turns; the results of tools, though, have been told."""
    for content in ((), (THOUGHT,), ({"type": "text", "text": " "},)):
        found = draft()
        assert not found.take(message(*content))
        assert found.outcome == ASKED


def test_a_refusal_leaves_everything_as_it_was() -> None:
    """Whatever came of it."""
    found = draft("retry")
    assert not found.take(message(TEXT, stop="refusal"))
    assert found.outcome is None
    assert found.message is not None


def test_a_pause_is_sent_back_as_it_is_and_joined() -> None:
    """One turn and one reply, however often it was paused."""
    found = draft()
    assert found.take(message(THOUGHT, SEARCH, stop="pause_turn"))
    assert found.turns == found.outcome == answered(THOUGHT, SEARCH, paused=True)
    assert found.take(message(FOUND, SEARCH, stop="pause_turn"))
    assert not found.take(message(TEXT))
    assert found.outcome == answered(THOUGHT, SEARCH, FOUND, SEARCH, TEXT)
    assert kinds(found) == ["thinking", "server_tool_use", "web_search_tool_result", "server_tool_use", "text"]


def test_pauses_are_bounded() -> None:
    """The eleventh is left to the caller, who can let it go on."""
    found = draft()
    times = 1
    while found.take(message(SEARCH, stop="pause_turn")):
        times += 1
    assert times == 11
    assert found.outcome is not None
    assert found.outcome[-1].paused


def test_an_empty_pause_is_an_empty_answer() -> None:
    """There is nothing to send back; one that goes on with nothing ends what was said before."""
    found = draft()
    assert not found.take(message(stop="pause_turn"))
    assert found.outcome == ASKED
    found = draft()
    found.take(message(SEARCH, stop="pause_turn"))
    assert not found.take(message())
    assert found.outcome == answered(SEARCH)


@pytest.mark.parametrize("mode", ["return", "continue", "retry"])
@pytest.mark.parametrize("stop", ["max_tokens", "model_context_window_exceeded"])
def test_what_is_cut_off_is_kept_without_open_calls(mode: str, stop: str) -> None:
    """A call that may be cut off can't be answered; a search that has its results stays."""
    found = draft(mode, max_tokens=1000)
    assert not found.take(message(THOUGHT, SEARCH, FOUND, TEXT, SEARCH | {"id": "s2"}, CALL, stop=stop))
    assert found.outcome == answered(THOUGHT, SEARCH, FOUND, TEXT)
    assert kinds(found)[-1] == "tool_use"


def test_a_cut_answer_with_nothing_to_keep_leaves_everything_as_it_was() -> None:
    """Thinking alone is no answer."""
    for content in ((THOUGHT,), (CALL,), ()):
        found = draft()
        assert not found.take(message(*content, stop="max_tokens"))
        assert found.outcome is None


def test_a_retry_asks_the_same_with_twice_as_much() -> None:
    """Up to three times, and never more than the model can; a budget must pay for more than before."""
    found = draft("retry", most_tokens=700)
    seen: list[int] = []
    while found.take(message(TEXT, stop="max_tokens")):
        assert found.turns == ASKED
        assert found.at_least == seen[-1] + 1 if seen else found.at_least == 101
        seen.append(found.max_tokens)
    assert seen == [200, 400, 700]
    assert found.outcome == answered(TEXT)
    assert kinds(found) == ["text"]
    assert not draft("retry", max_tokens=1000).take(message(TEXT, stop="max_tokens"))
    endless = draft("retry", most_tokens=10**9)
    assert sum(endless.take(message(TEXT, stop="max_tokens")) for _ in range(4)) == 3


def test_to_continue_asks_for_the_rest() -> None:
    """The history tells what was asked; the reply joins the parts."""
    found = draft("continue", pinned=True)
    assert found.take(message(THOUGHT, TEXT, stop="max_tokens"))
    assert found.turns[-1].content == CONTINUE.content
    assert found.turns[-1].pinned
    assert found.turns[-2].pinned
    assert not found.take(message(MORE))
    assert found.outcome is not None
    assert [turn.role for turn in found.outcome] == ["user", "assistant", "user", "assistant"]
    reply = Reply(message=found.message, usage=Usage(), _cost=Decimal)  # type: ignore[arg-type]
    assert reply.text == "AB"


def test_parts_are_bounded() -> None:
    """After the eighth request for more, it is what it is."""
    found = draft("continue")
    assert sum(found.take(message(TEXT, stop="max_tokens")) for _ in range(9)) == 8
    assert found.outcome is not None
    assert len(found.outcome) == 18


@pytest.mark.parametrize("content", [(TEXT, CALL), (THOUGHT,), ()])
def test_what_cannot_be_continued_is_retried(content: tuple[dict[str, Any], ...]) -> None:
    """A call that was cut off, and thinking that came to nothing."""
    found = draft("continue")
    assert found.take(message(*content, stop="max_tokens"))
    assert found.turns == ASKED
    assert found.max_tokens == 200


def test_a_retry_within_a_pause_goes_on_from_the_pause() -> None:
    """What was paused stays; the part that was cut off is asked for again."""
    found = draft("retry")
    found.take(message(SEARCH, stop="pause_turn"))
    assert found.take(message(FOUND, TEXT, stop="max_tokens"))
    assert not found.take(message(FOUND, MORE))
    assert found.outcome == answered(SEARCH, FOUND, MORE)
    assert repr(found).startswith("<Draft of 2 turns")


def test_a_reply_tells_of_itself() -> None:
    """Text, calls, why it ended, what it cost; its `repr` shows none of the text."""
    reply = Reply(
        message=message(TEXT, CALL, MORE, stop="tool_use"), usage=Usage(output_tokens=5), requests=2,
        _cost=lambda: Decimal(3),
    )  # fmt: skip
    assert (reply.text, reply.stop_reason, reply.truncated) == ("AB", "tool_use", False)
    assert reply.cost_usd == 3
    assert [call.id for call in reply.tool_calls] == ["t"]
    assert reply.refusal is None
    assert repr(reply) == "<Reply tool_use, 5 output tokens, 2 requests>"


@pytest.mark.parametrize(
    ("stop", "calls"),
    [("tool_use", 1), ("end_turn", 1), ("something_new", 1), ("max_tokens", 0), ("refusal", 0), ("pause_turn", 0),
     ("model_context_window_exceeded", 0)],
)  # fmt: skip
def test_calls_are_told_as_the_history_has_them(stop: str, calls: int) -> None:
    """Whatever the stop reason is called; not where they were cut off, refused, or are not over."""
    found = draft()
    found.take(message(CALL, stop=stop))
    reply = Reply(message=found.whole, usage=Usage(), _cost=Decimal)
    assert (len(reply.tool_calls), len(found.calls)) == (calls, calls)
    assert reply.truncated == (stop in {"max_tokens", "model_context_window_exceeded"})


def test_a_refusal_has_its_details() -> None:
    """Its category and explanation, where the API tells them."""
    details = {"type": "refusal", "category": "cyber", "explanation": "No."}
    told = Reply(message=message(stop="refusal", stop_details=details), usage=Usage(), _cost=Decimal).refusal
    assert told is not None
    assert (told.category, told.explanation) == ("cyber", "No.")
    untold = Reply(message=message(stop="refusal"), usage=Usage(), _cost=Decimal).refusal
    assert untold is not None
    assert untold.category is None
    of_another_kind = message(stop="refusal", stop_details=details)
    assert of_another_kind.stop_details is not None
    of_another_kind.stop_details.__dict__["type"] = "something_else"
    other = Reply(message=of_another_kind, usage=Usage(), _cost=Decimal).refusal
    assert other is not None
    assert other.category is None
