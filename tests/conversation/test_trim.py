from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.conversation.trim import note, trim
from penstock.messages.blocks import CONTINUE, Turn

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}


def text(words: str) -> dict[str, Any]:
    """A text block."""
    return {"type": "text", "text": words}


def user(*content: Any, **fields: Any) -> Turn:
    """A turn of the user."""
    return Turn(role="user", content=tuple(text(each) if isinstance(each, str) else each for each in content), **fields)


def answer(*content: Any, **fields: Any) -> Turn:
    """A turn of the model."""
    blocks = tuple(text(each) if isinstance(each, str) else each for each in content)
    return Turn(role="assistant", content=blocks, **fields)


def exchange(name: str, **fields: Any) -> tuple[Turn, Turn]:
    """A question and its answer."""
    return user(f"Q{name}", **fields), answer(f"A{name}", **fields)


def count(turns: Sequence[Turn]) -> float:
    """Each turn costs one."""
    return len(turns)


def words(turns: Sequence[Turn]) -> list[str]:
    """The first words of each turn."""
    return [next((block["text"] for block in turn.content if block["type"] == "text"), "") for turn in turns]


THOUGHT = {"type": "thinking", "thinking": "", "signature": "s"}
CALL = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [IMAGE, text("x")]}
LONG = (*exchange("1"), *exchange("2"), *exchange("3"), user("Q4"))


def test_the_oldest_go_and_the_first_question_stays() -> None:
    """Whole exchanges go until the rest is small enough; a note says how many messages are missing."""
    found = trim(LONG, cost=count, target=4)
    assert words(found.left_out) == ["A1", "Q2", "A2"]
    assert words(found.turns()) == ["Q1", "[3 earlier messages are left out here.]", "Q3", "A3", "Q4"]
    assert trim(LONG, cost=count, target=7).turns() == LONG


def test_notes_add_up() -> None:
    """Trimmed again, the note of before is taken in by the new one."""
    first = trim(LONG, cost=count, target=4).turns("They talked.")
    assert first[1].left_out == 3
    assert first[1].content[0]["text"].endswith("What they said, in short:]\nThey talked.")
    again = trim((*first, answer("A4"), user("Q5")), cost=count, target=4)
    assert [turn.left_out for turn in again.left_out] == [3, 0, 0]
    assert again.count == 5
    assert words(again.turns()) == ["Q1", "[5 earlier messages are left out here.]", "Q4", "A4", "Q5"]


def test_pinned_and_system_turns_stay() -> None:
    """Whatever the target is; so does an exchange of which one turn is pinned."""
    rule = Turn(role="system", content=(text("Rule"),))
    turns = (*exchange("1", pinned=True), *exchange("2"), rule, user("Q3", pinned=True), answer("A3"), user("Q4"))
    found = trim(turns, cost=count, target=0)
    assert words(found.turns()) == ["Q1", "A1", note(2).content[0]["text"], "Rule", "Q3", "A3", "Q4"]


def test_a_call_is_never_parted_from_its_result() -> None:
    """The turns of a tool loop, and of an answer that was continued, go together."""
    loop = (user("Q2"), answer(THOUGHT, CALL), user(RESULT), answer("A2"), CONTINUE, answer("A2b"))
    found = trim((*exchange("1"), *loop, *exchange("3"), user("Q4")), cost=count, target=5)
    assert len(found.left_out) == 7
    assert words(found.turns())[2:] == ["Q3", "A3", "Q4"]
    kept = trim((*exchange("1"), *loop, user("Q3")), cost=count, target=8)
    assert kept.left_out == (answer("A1"),)
    assert len(kept.tail) == 7


def test_a_tool_loop_that_comes_first_leaves_its_question() -> None:
    """What the user wanted first stays, the calls go."""
    turns = (user("Q1"), answer(CALL), user(RESULT), answer("A1"), user("Q2"))
    assert words(trim(turns, cost=count, target=0).turns()) == ["Q1", note(3).content[0]["text"], "Q2"]


def test_thinking_goes_from_all_turns() -> None:
    """The API refuses thinking whose beginning has changed; a turn of thinking alone goes altogether."""
    turns = (user("Q1"), answer(THOUGHT, "A1", pinned=True), user("Q2"), answer(THOUGHT), user("Q3"))
    found = trim(turns, cost=count, target=9).turns()
    assert found == (user("Q1"), answer("A1", pinned=True), user("Q2"), user("Q3"))


def test_an_exchange_of_nothing_but_thinking_goes_altogether() -> None:
    """As one that was brought along may be, after a system turn."""
    rule = Turn(role="system", content=(text("Rule"),))
    turns = (*exchange("1"), rule, answer(THOUGHT), user("Q2"))
    assert words(trim(turns, cost=count, target=99).turns()) == ["Q1", "A1", "Rule", "Q2"]


def test_older_images_become_words() -> None:
    """Those of the last exchange and of pinned ones stay; those in results of tools go too."""
    turns = (
        user("Q1", IMAGE), answer("A1"), user(IMAGE, "Q2", pinned=True), answer("A2"), user("Q3"), answer(CALL),
        user(RESULT), answer("A3"), user("Q4", IMAGE), answer("A4"), user("Q5", IMAGE),
    )  # fmt: skip
    found = trim(turns, cost=count, target=99).turns()
    gone = text("[An image was shown here.]")
    assert found[0].content == (text("Q1"), gone)
    assert found[2].content[0] == IMAGE
    assert found[6].content[0]["content"] == [gone, text("x")]
    assert found[8].content[1] == found[10].content[1] == IMAGE
    assert turns[0].content[1] == IMAGE


def test_a_single_question_stays_as_it_is() -> None:
    """There is nothing to leave out."""
    assert trim((user("Q1", IMAGE),), cost=count, target=0).turns() == (user("Q1", IMAGE),)
