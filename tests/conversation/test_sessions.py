from __future__ import annotations

from typing import Any

import anthropic
import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock import ContextOverflow, Conversation, InvalidStream, StreamInterrupted
from penstock.messages.blocks import CONTINUE
from penstock.simulator import Simulator
from penstock.testing import ScriptedTransport, VirtualLoop

MODEL = "claude-sonnet-5-5"
TOOL = {"name": "search", "input_schema": {"type": "object"}}
THOUGHT = {"type": "thinking", "thinking": ""}
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
WORDS = "The water of the upper lake drives the turbine below. " * 5

Message = tuple[str, tuple[str, ...]]


def shape(messages: Any) -> list[Message]:
    """Who said what: texts as they are, other blocks by their kind; thinking apart, because trimming takes it."""
    return [
        (
            turn["role"],
            tuple(block.get("text", block["type"]) for block in turn["content"] if block["type"] != "thinking"),
        )
        for turn in messages
    ]


def by_model(main: Simulator, summaries: Simulator) -> ScriptedTransport:
    """Sends summaries elsewhere, so that they take no reply and no fault that is meant for the conversation."""
    one, other = main.transport(), summaries.transport()
    return ScriptedTransport(
        lambda request: (other if b'"claude-haiku-5-5"' in request.content else one).handle_async_request(request)
    )


class Sessions(RuleBasedStateMachine):
    """Conversations against a list of what was said, which knows nothing of requests, windows or tokens."""

    chats = Bundle("chats")

    def __init__(self) -> None:
        super().__init__()
        self.runner = VirtualLoop()
        self.simulator = Simulator(thinking=True, tokens_per_s=100, output_tokens=60)
        self.summaries = Simulator(output_tokens=60)
        transport = by_model(self.simulator, self.summaries)
        client = anthropic.DefaultAsyncHttpxClient(transport=transport)
        self.sdk = self.simulator.client(max_retries=0, http_client=client)
        self.said: dict[str, list[Message]] = {}
        self.number = 0

    def run(self, main: Any) -> Any:
        return self.runner.run_until_complete(main)

    def teardown(self) -> None:
        self.run(self.sdk.close())
        self.runner.close()

    @initialize(
        target=chats, window=st.sampled_from([1_500, 3_000, None]), overflow=st.sampled_from(["window", "summary"])
    )
    def begin(self, window: int | None, overflow: Any) -> Conversation:
        chat = Conversation(
            self.sdk, model=MODEL, system="You are terse.", tools=[TOOL], window_tokens=window, max_tokens=100,
            overflow=overflow, summary_max_tokens=100, trim_at=0.6, trim_to=0.3,
        )  # fmt: skip
        self.said[chat.id] = []
        return chat

    def question(self, chat: Conversation, words: int) -> tuple[Any, Message]:
        """What may be asked now, and what of it enters the history."""
        self.number += 1
        if calls := chat.pending_tool_calls:
            results = [{"type": "tool_result", "tool_use_id": call, "content": WORDS[:words]} for call in calls]
            return results, ("user", ("tool_result",) * len(results))
        text = f"Q{self.number} {WORDS[:words]}"
        return text, ("user", (text,))

    async def ask(self, chat: Conversation, content: Any, *, how: str) -> str | None:
        """Ask by one of the ways there are, and return why it ended; `None` where it came to nothing."""
        try:
            if how == "send":
                return (await chat.send(content)).stop_reason
            asked = chat.stream(content)
            async with asked as stream:
                if how == "leave":
                    await anext(stream.text_stream, "")
                    return None
                if how == "text":
                    _ = [text async for text in stream.text_stream]
                else:
                    await stream.get_final_message()
        except (anthropic.APIError, ContextOverflow, InvalidStream, StreamInterrupted):
            return None
        assert asked.reply is not None
        return asked.reply.stop_reason

    def check(self, chat: Conversation, expected: list[Message]) -> None:
        """The history is what was said, less what a note stands for."""
        found = shape(chat.messages)
        note = next((at for at, (_, texts) in enumerate(found) if any("left out here" in text for text in texts)), None)
        if note is None:
            assert found == expected
        else:
            left_out = int(found[note][1][0].split()[0][1:])
            assert len(found) - 1 + left_out == len(expected)
            assert found[0] == expected[0]
            rest = found[note + 1 :]
            assert rest == expected[len(expected) - len(rest) :]
        self.said[chat.id] = expected

    def answered(self, chat: Conversation, asked: Message, answer: tuple[str, ...]) -> None:
        self.check(chat, [*self.said[chat.id], asked, ("assistant", answer)])

    def unchanged(self, chat: Conversation, before: str) -> None:
        again = Conversation.from_json(before, self.sdk)
        assert chat.messages == again.messages
        assert chat.spent_tokens >= again.spent_tokens

    @rule(chat=chats, how=st.sampled_from(["send", "text", "message"]), words=st.integers(0, 270), thinks=st.booleans())
    def is_answered(self, chat: Conversation, how: str, words: int, thinks: bool) -> None:
        content, asked = self.question(chat, words)
        before = chat.to_json()
        self.simulator.reply([*([THOUGHT] if thinks else []), {"type": "text", "text": f"A{self.number} {WORDS}"}])
        if self.run(self.ask(chat, content, how=how)) is None:
            self.simulator._api.script._waiting.clear()
            return self.unchanged(chat, before)
        return self.answered(chat, asked, (f"A{self.number} {WORDS}",))

    @rule(chat=chats, how=st.sampled_from(["send", "message"]), calls=st.integers(1, 3))
    def calls_tools(self, chat: Conversation, how: str, calls: int) -> None:
        content, asked = self.question(chat, 20)
        before = chat.to_json()
        self.simulator.reply([THOUGHT, *({"type": "tool_use", "name": "search"} for _ in range(calls))])
        if self.run(self.ask(chat, content, how=how)) is None:
            self.simulator._api.script._waiting.clear()
            return self.unchanged(chat, before)
        assert len(chat.pending_tool_calls) == calls
        return self.answered(chat, asked, ("tool_use",) * calls)

    @rule(chat=chats, how=st.sampled_from(["send", "text"]))
    def is_refused(self, chat: Conversation, how: str) -> None:
        content, _ = self.question(chat, 20)
        before = chat.to_json()
        self.simulator.reply("No.", stop_reason="refusal")
        self.run(self.ask(chat, content, how=how))
        self.simulator._api.script._waiting.clear()
        self.unchanged(chat, before)

    @rule(
        chat=chats,
        how=st.sampled_from(["send", "text", "message"]),
        fault=st.sampled_from(
            ["overloaded", "reset", "stream_drop_after_content", "truncated", "bad_json", "not_found"]
        ),
    )
    def fails(self, chat: Conversation, how: str, fault: str) -> None:
        content, _ = self.question(chat, 20)
        before = chat.to_json()
        self.simulator.inject(fault, times=4)
        assert self.run(self.ask(chat, content, how=how)) is None
        self.simulator._api.faults._injected.clear()
        self.unchanged(chat, before)

    @rule(chat=chats)
    def is_left(self, chat: Conversation) -> None:
        content, _ = self.question(chat, 20)
        before = chat.to_json()
        self.run(self.ask(chat, content, how="leave"))
        self.unchanged(chat, before)

    @rule(chat=chats, how=st.sampled_from(["send", "text"]), after_s=st.floats(0.01, 0.5))
    def is_cancelled(self, chat: Conversation, how: str, after_s: float) -> None:
        content, _ = self.question(chat, 20)
        before = chat.to_json()

        async def main() -> None:
            with anyio.move_on_after(after_s):
                await self.ask(chat, content, how=how)

        self.run(main())
        self.unchanged(chat, before)

    @rule(chat=chats)
    def pauses(self, chat: Conversation) -> None:
        content, asked = self.question(chat, 20)
        before = chat.to_json()
        self.simulator.reply([THOUGHT, SEARCH], stop_reason="pause_turn")
        self.simulator.reply([THOUGHT, {"type": "text", "text": "Found."}])
        if self.run(self.ask(chat, content, how="send")) is None:
            self.simulator._api.script._waiting.clear()
            return self.unchanged(chat, before)
        return self.answered(chat, asked, ("server_tool_use", "Found."))

    @rule(chat=chats, mode=st.sampled_from(["return", "continue", "retry"]))
    def is_cut_off(self, chat: Conversation, mode: Any) -> None:
        content, asked = self.question(chat, 20)
        before = chat.to_json()
        self.simulator.reply([THOUGHT, {"type": "text", "text": "Half"}], stop_reason="max_tokens")
        if mode != "return":
            self.simulator.reply([{"type": "text", "text": "Whole"}])
        try:
            reply = self.run(chat.send(content, on_truncation=mode))
        except ContextOverflow:
            self.simulator._api.script._waiting.clear()
            return self.unchanged(chat, before)
        if mode == "retry":
            return self.answered(chat, asked, ("Whole",))
        if mode == "return":
            return self.answered(chat, asked, ("Half",))
        assert reply.text == "HalfWhole"
        parts = [("assistant", ("Half",)), ("user", (CONTINUE.content[0]["text"],)), ("assistant", ("Whole",))]
        return self.check(chat, [*self.said[chat.id], asked, *parts])

    @precondition(lambda self: len(self.said) < 4)
    @rule(target=chats, chat=chats)
    def forks(self, chat: Conversation) -> Conversation:
        fork = chat.fork()
        self.said[fork.id] = list(self.said[chat.id])
        return fork

    @rule(target=chats, chat=chats)
    def is_saved_and_loaded(self, chat: Conversation) -> Conversation:
        text = chat.to_json()
        again = Conversation.from_json(text, self.sdk, system="You are terse.")
        assert again.to_json() == text
        fork = again.fork()
        self.said[fork.id] = list(self.said[chat.id])
        return fork

    @invariant()
    def nothing_was_invalid(self) -> None:
        for simulator in (self.simulator, self.summaries):
            assert all(entry.status != 400 for entry in simulator.journal)
            assert simulator.in_flight == 0


Sessions.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestSessions = pytest.mark.slow(Sessions.TestCase)
