from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message, TextBlock, ToolUseBlock

from penstock import InvalidHistory
from penstock.tools.call import Result
from penstock.tools.transcript import Transcript, message_params

ASKED = {"role": "user", "content": "Hello"}
CALLS: list[dict[str, Any]] = [
    {"type": "text", "text": "Let me see."},
    {"type": "tool_use", "id": "toolu_1", "name": "one", "input": {"a": [1]}},
    {"type": "tool_use", "id": "toolu_2", "name": "two", "input": {}, "toolset_name": "browser"},
]
INTERRUPTED = "Not run: the conversation was interrupted."
BEGUN = "Interrupted: the tool had begun, and whether it has done its work is not known."


def answers(transcript: Transcript) -> Any:
    """The last message of what can be sent."""
    return transcript.valid[-1]["content"]


class TestPrompt:
    def test_a_text_is_a_question(self) -> None:
        """The most usual prompt."""
        assert message_params("Hello") == [ASKED]

    def test_blocks_are_one_message(self) -> None:
        """Images and text together."""
        image = {"type": "image", "source": {"type": "url", "url": "https://a.example/a.png"}}
        blocks = [image, TextBlock(type="text", text="What is it?")]
        assert message_params(blocks) == [
            {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]},
        ]

    def test_messages_are_taken_as_they_are(self) -> None:
        """Dicts, messages of the SDK, and blocks of the SDK in them."""
        content: Any = [TextBlock(type="text", text="Hi"), ToolUseBlock(type="tool_use", id="1", name="f", input={})]
        message = Message.construct(role="assistant", content=content, model="m", stop_reason="tool_use")
        said = {
            "role": "assistant",
            "content": [{"type": "text", "text": "Hi"}, {"type": "tool_use", "id": "1", "name": "f", "input": {}}],
        }
        assert message_params([ASKED, message]) == [ASKED, said]
        assert message_params([ASKED, {"role": "assistant", "content": content}]) == [ASKED, said]
        assert message_params([ASKED, {"role": "assistant", "content": iter(content)}]) == [ASKED, said]

    @pytest.mark.parametrize(
        ("prompt", "place"),
        [
            ("", "prompt"),
            (" \n", "prompt"),
            ([], "prompt"),
            (b"Hello", "prompt"),
            (ASKED, "prompt"),
            (3, "prompt"),
            (None, "prompt"),
            (TextBlock(type="text", text="Hello"), "prompt"),
            (["Hello"], "prompt.0"),
            ([{"type": "text", "text": "a"}, 3], "prompt.1"),
            ([{"type": 3}], "prompt.0"),
            ([ASKED, {"role": "tool", "content": "x"}], "messages.1.role"),
            ([ASKED, "Hello"], "messages.1.role"),
            ([ASKED, {"role": "user"}], "messages.1.content"),
            ([ASKED, {"role": "user", "content": 3}], "messages.1.content"),
            ([ASKED, {"role": "user", "content": b"x"}], "messages.1.content"),
            ([ASKED, {"role": "user", "content": {"type": "text"}}], "messages.1.content"),
            ([ASKED, {"role": "user", "content": [CALLS[0], {"text": "x"}]}], "messages.1.content.1"),
            ([{"role": "user", "content": ["x"]}], "messages.0.content.0"),
        ],
    )
    def test_what_is_none_is_refused_with_its_place(self, prompt: Any, place: str) -> None:
        """Nothing is sent of a history that the API would refuse."""
        with pytest.raises(InvalidHistory) as caught:
            message_params(prompt)
        assert caught.value.place == place


class TestCalls:
    def test_every_call_is_answered_whatever_has_happened(self) -> None:
        """In one message, in order: with its result, with that it had begun, or with why it was not run."""
        transcript = Transcript("Hello")
        transcript.add_reply([*CALLS, {**CALLS[1], "id": "toolu_3"}])
        first, second, third = transcript.unanswered
        assert (first.name, first.input, second.toolset_name) == ("one", {"a": [1]}, "browser")
        transcript.begin(first)
        transcript.begin(second)
        transcript.answer(second, Result(content="done"))
        assert [call.id for call in transcript.unanswered] == ["toolu_1", "toolu_3"]
        assert third.id == "toolu_3"
        assert answers(transcript) == [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": BEGUN, "is_error": True},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "done", "toolset_name": "browser"},
            {"type": "tool_result", "tool_use_id": "toolu_3", "content": INTERRUPTED, "is_error": True},
        ]
        assert len(transcript.to_send) == 2
        assert repr(transcript) == "<Transcript of 2 messages, 2 calls unanswered>"

    def test_a_turn_that_is_closed_stays_as_it_is(self) -> None:
        """What was answered is a message; the next reply follows it."""
        transcript = Transcript("Hello")
        transcript.add_reply(CALLS[:2])
        transcript.answer(transcript.unanswered[0], Result(content=""))
        transcript.close_turn()
        transcript.close_turn()
        assert transcript.to_send[-1] == {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_1"}],
        }
        assert transcript.valid == transcript.to_send
        assert transcript.unanswered == []
        assert transcript.turn == []

    def test_calls_may_change_what_they_were_given(self) -> None:
        """What the model said stays as it was, or its thoughts would no longer fit to it."""
        transcript = Transcript("Hello")
        transcript.add_reply(CALLS[:2])
        transcript.unanswered[0].input["a"].append(2)
        assert transcript.to_send[-1]["content"][1]["input"] == {"a": [1]}
        assert transcript.turn == [("one", {"a": [1]}, None)]

    def test_calls_at_the_end_of_a_prompt_are_unanswered(self) -> None:
        """A history of another SDK may end with them."""
        transcript = Transcript([ASKED, {"role": "assistant", "content": CALLS}])
        assert [call.name for call in transcript.unanswered] == ["one", "two"]

    def test_a_paused_turn_and_its_rest_are_one_turn(self) -> None:
        """Their calls are answered together, because the API joins the messages."""
        paused = {"role": "assistant", "content": CALLS[:2]}
        transcript = Transcript([ASKED, paused])
        transcript.add_reply(CALLS[2:])
        assert [call.id for call in transcript.unanswered] == ["toolu_1", "toolu_2"]
        again = Transcript([ASKED, paused, {"role": "assistant", "content": CALLS[2:]}])
        assert [call.id for call in again.unanswered] == ["toolu_1", "toolu_2"]

    def test_calls_that_are_answered_are_no_business_of_the_end(self) -> None:
        """A question after the results asks for a reply."""
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}
        messages = [ASKED, {"role": "assistant", "content": CALLS[:2]}, {"role": "user", "content": [result]}]
        assert Transcript(messages).unanswered == []
        assert Transcript(messages).valid == messages
        assert Transcript([ASKED, {"role": "assistant", "content": "Hi"}]).unanswered == []
        assert Transcript([{"role": "assistant", "content": "Hi"}]).unanswered == []

    def test_nothing_said_is_not_added(self) -> None:
        """The API takes no empty message."""
        transcript = Transcript("Hello")
        transcript.add_reply([])
        assert transcript.valid == [ASKED]

    def test_an_input_that_is_no_object_is_none(self) -> None:
        """A server that is not the API's own may send one."""
        transcript = Transcript([ASKED, {"role": "assistant", "content": [{**CALLS[1], "input": "{"}]}])
        assert transcript.unanswered[0].input == {}

    def test_what_is_given_out_may_be_changed(self) -> None:
        """The caller's own lists are no part of it."""
        given = [ASKED]
        transcript = Transcript(given)
        given.clear()
        transcript.valid.clear()
        transcript.to_send.clear()
        assert transcript.valid == [ASKED]
