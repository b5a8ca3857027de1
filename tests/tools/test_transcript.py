from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message, TextBlock, ToolUseBlock

from penstock import InvalidHistory
from penstock.tools.content import Result
from penstock.tools.transcript import Transcript

ASKED = {"role": "user", "content": "Hello"}
CALLS: list[dict[str, Any]] = [
    {"type": "text", "text": "Let me see."},
    {"type": "tool_use", "id": "toolu_1", "name": "one", "input": {"a": [1]}},
    {"type": "tool_use", "id": "toolu_2", "name": "two", "input": {}, "toolset_name": "browser"},
]
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}
INTERRUPTED = "Not run: the conversation was interrupted."
BEGUN = "Interrupted: the tool had begun, and whether it has done its work is not known."


def message_params(prompt: Any) -> Any:
    """The messages that a prompt stands for."""
    return Transcript(prompt).to_send


def said(transcript: Transcript) -> Any:
    """The first block of the last message."""
    messages: Any = transcript.to_send
    return messages[-1]["content"][0]


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
        assert message_params([ASKED, message.model_dump(exclude_unset=True)]) == [ASKED, said]
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
            ([ASKED, {"role": "tool", "content": "x"}], "messages.1"),
            ([ASKED, "Hello"], "messages.1"),
            ([{"role": "assistant", "content": "Hi"}], "messages.0"),
            ([{"role": "system", "content": "Be kind."}], "messages.0"),
            ([ASKED, {"role": "user"}], "messages.1.content"),
            ([ASKED, {"role": "user", "content": 3}], "messages.1.content"),
            ([ASKED, {"role": "user", "content": b"x"}], "messages.1.content"),
            ([ASKED, {"role": "user", "content": {"type": "text"}}], "messages.1.content.0.text"),
            ([ASKED, {"role": "user", "content": [CALLS[0], {"text": "x"}]}], "messages.1.content.1"),
            ([{"role": "user", "content": ["x"]}], "messages.0.content.0"),
            ([{"role": "user", "content": ""}], "messages.0.content"),
            ([ASKED, {"role": "assistant", "content": []}], "messages.1.content"),
            ([ASKED, {"role": "assistant", "content": "Hi", "tool_calls": []}], "messages.1"),
            ([{"role": "user", "content": "Hi", "name": "me"}], "messages.0"),
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
        messages: Any = transcript.to_send
        assert messages[-1]["content"][1]["input"] == {"a": [1]}
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

    @pytest.mark.parametrize("place", [0, 1])
    def test_a_turn_that_is_answered_in_part_is_taken_up(self, place: int) -> None:
        """Only the other calls are run; all are answered in one message, in order."""
        said = {"role": "assistant", "content": CALLS}
        result = {"type": "tool_result", "tool_use_id": f"toolu_{place + 1}", "content": "x", "is_error": True}
        transcript = Transcript([ASKED, said, {"role": "user", "content": [result]}])
        (call,) = transcript.unanswered
        assert call.id == f"toolu_{2 - place}"
        transcript.answer(call, Result(content="y"))
        transcript.close_turn()
        assert [message["role"] for message in transcript.to_send] == ["user", "assistant", "user"]
        answered = message_params(transcript.to_send)[-1]["content"]
        assert [block["tool_use_id"] for block in answered] == ["toolu_1", "toolu_2"]
        assert [block.get("is_error", False) for block in answered] == [place == 0, place == 1]

    def test_results_may_stand_in_several_messages(self) -> None:
        """The API joins them."""
        results = [{"type": "tool_result", "tool_use_id": f"toolu_{number}"} for number in (1, 2)]
        users = [{"role": "user", "content": [result]} for result in results]
        messages = [ASKED, {"role": "assistant", "content": CALLS}, *users]
        assert Transcript(messages).valid == messages

    @pytest.mark.parametrize(
        ("then", "says"),
        [
            ([ASKED], "tool calls toolu_1, toolu_2 are not answered"),
            ([{"role": "user", "content": [RESULT, CALLS[0]]}], "tool calls toolu_2 are not answered"),
            (
                [{"role": "user", "content": [RESULT]}, {"role": "assistant", "content": "Hi"}],
                "tool calls toolu_2 are not answered",
            ),
            ([{"role": "system", "content": "Be brief."}], "tool calls toolu_1, toolu_2 are not answered"),
            (
                [{"role": "user", "content": [{**RESULT, "tool_use_id": "toolu_3"}]}],
                "a tool_result for toolu_3, which is no",
            ),
        ],
    )
    def test_calls_that_can_no_longer_be_answered_are_refused_with_their_place(self, then: Any, says: str) -> None:
        """As are answers to no call; nothing is run twice for want of a name."""
        with pytest.raises(InvalidHistory, match=says) as caught:
            Transcript([ASKED, {"role": "assistant", "content": CALLS}, *then])
        assert caught.value.place == "messages.2"

    def test_nothing_said_is_not_added(self) -> None:
        """The API takes no empty message."""
        transcript = Transcript("Hello")
        transcript.add_reply([])
        assert transcript.valid == [ASKED]

    @pytest.mark.parametrize(
        ("given", "taken"), [("{", {"INVALID_JSON": '"{"'}), ([1], {"INVALID_JSON": "[1]"}), (None, {})]
    )
    def test_an_input_that_is_no_object_is_made_one(self, given: object, taken: object) -> None:
        """The API takes no other back; no tool takes it for its own arguments."""
        transcript = Transcript("Hello")
        transcript.add_reply([{**CALLS[1], "input": given}])
        assert transcript.unanswered[0].input == taken
        assert said(transcript)["input"] == taken

    def test_what_is_given_out_may_be_changed(self) -> None:
        """The caller's own lists are no part of it."""
        given = [ASKED]
        transcript = Transcript(given)
        given.clear()
        transcript.valid.clear()
        transcript.to_send.clear()
        assert transcript.valid == [ASKED]
