from __future__ import annotations

from typing import TYPE_CHECKING

from penstock import Conversation
from penstock.conversation import summary
from penstock.conversation.options import ConversationOptions
from penstock.conversation.summary import summarize
from penstock.conversation.trim import note
from penstock.messages.blocks import Turn

if TYPE_CHECKING:
    import pytest

    from penstock.simulator import Simulator

MODEL = "claude-sonnet-5-5"


async def test_everything_is_told_as_text(simulator: Simulator) -> None:
    """Calls and results in words, media by their kind, an older note as it was."""
    image = {"type": "image", "source": {}}
    turns = (
        note(4, "Rivers."),
        Turn(role="user", content=({"type": "text", "text": "Q"}, image)),
        Turn(role="assistant", content=({"type": "tool_use", "id": "t", "name": "f", "input": {"city": "Köln"}},)),
        Turn(
            role="user",
            content=(
                {"type": "tool_result", "tool_use_id": "t", "content": "sunny"},
                {"type": "tool_result", "tool_use_id": "u", "content": [{"type": "text", "text": "wet"}, image]},
                {"type": "tool_result", "tool_use_id": "v"},
            ),
        ),
        Turn(role="system", content=({"type": "text", "text": "Be kind."},)),
    )
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        assert (await summarize(chat._session.requests, chat.options, turns)).startswith("Summary: ")
    assert (simulator.journal[0].body or {})["messages"][0]["content"] == (
        "[4 earlier messages are left out here. What they said, in short:]\nRivers.\n\n"
        "User: Q\nUser: [image]\n\n"
        'Assistant: [calls f with {"city": "Köln"}]\n\n'
        "User: [result: sunny]\nUser: [result: wet [image]]\nUser: [result: ]\n\n"
        "Operator: Be kind."
    )


async def test_what_is_too_long_is_summarized_piece_by_piece(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece with the summary so far; one that brings nothing leaves that as it is."""
    monkeypatch.setattr(summary, "_SHARE", 0.0001)
    options = ConversationOptions(model=MODEL, summary_model="claude-haiku-4-5")
    turns = [Turn(role="user", content=({"type": "text", "text": letter * 40},)) for letter in "abc"]
    for reply in ("First.", "", "Third."):
        simulator.reply(reply or [])
    async with simulator.client() as sdk:
        requests = Conversation(sdk, model=MODEL)._session.requests
        assert await summarize(requests, options, turns) == "Third."
    asked = [(entry.body or {})["messages"][0]["content"] for entry in simulator.journal]
    assert asked[0] == f"User: {'a' * 40}"
    assert asked[1] == f"<summary_so_far>\nFirst.\n</summary_so_far>\n\nUser: {'b' * 40}"
    assert asked[2] == f"<summary_so_far>\nFirst.\n</summary_so_far>\n\nUser: {'c' * 40}"
