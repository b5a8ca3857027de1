"""Conversations with tools in which whatever can go wrong does, driven by chance; nothing in them may be refused.

The rule here: every choice is drawn from the generator that is given, so that a run can be had again. What is checked
is the protocol: the transcript at every exit, by a check of our own, and every request, by the simulator's validator.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anthropic
import anyio

from penstock import Allow, Answer, Deny, PenstockError, ToolCall, ToolError, tool
from penstock.simulator import Simulator
from penstock.tools import ToolLoop, run_tools

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from anthropic import AsyncAnthropic

__all__ = ["ToolRuns", "check_transcript"]

MODELS = ("claude-sonnet-5-5", "claude-haiku-5-5", "claude-haiku-4-5")
FAULTS = ("overloaded", "reset", "stream_error_after_content", "stream_drop_after_content", "no_message_stop", "stall")
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
VALUES: tuple[Any, ...] = (
    "fine",
    "",
    " \n",
    None,
    b"\x00\xff",
    "long " * 300,
    "\ud800 lone \udfff",
    {"deep": [1, 2, {"x": None}]},
    [],
    object(),
    float("nan"),
    [{"type": "text", "text": "one"}, {"type": "text", "text": " "}],
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
    {"type": "text", "text": "somebody's", "author": "data"},
    [{"type": "document", "source": "wiki/1", "title": "somebody's, too"}],
    {"deep": ["\ud800"], "title": float("inf")},
    {"type": "search_result", "source": "a", "title": "\ud800", "content": [{"type": "text", "text": "found"}]},
)
LEGS = 4
# Faults and replies that are left over from before must come to an end in these.
CALM_LEGS = 20


class ToolRuns:
    """A conversation that is run, interrupted and gone on with, a few times.

    Args:
        rng: Draws everything.
    """

    def __init__(self, rng: random.Random) -> None:
        self.simulator = Simulator(seed=rng.randrange(1000))
        self._rng = rng
        self._model = rng.choice(MODELS)
        self._tools = [self._give, self._fail, self._hang, tool(self._wait, safe_to_retry=rng.random() < 0.5)]
        self.exits: list[str] = []

    async def run(self) -> None:
        """Run it to its end.

        Raises:
            AssertionError: A transcript is not valid, or can't be gone on from.
        """
        messages: Any = "Do what you can."
        async with self.simulator.client(max_retries=0) as claude:
            for _ in range(self._rng.randint(1, LEGS)):
                messages = self._gone_on(await self._leg(claude, messages))
            for _ in range(CALM_LEGS):
                ends = self.exits.count("end")
                messages = self._gone_on(await self._leg(claude, messages, calmly=True))
                if self.exits.count("end") > ends:
                    break
            else:
                raise AssertionError(f"the conversation can't be brought to an end: {self.exits}")
        assert self.simulator.in_flight == 0

    @property
    def refused(self) -> int:
        """Requests that the protocol refused."""
        return sum(entry.status == 400 and entry.fault is None for entry in self.simulator.journal)

    # One run of the loop

    async def _leg(self, claude: AsyncAnthropic, messages: Any, *, calmly: bool = False) -> Any:
        rng = self._rng
        if not calmly:
            for _ in range(rng.randint(0, 4)):
                self._script()
            if rng.random() < 0.3:
                self.simulator.inject(rng.choice(FAULTS), after=rng.randint(0, 2))
        options: dict[str, Any] = {
            "tools": self._tools,
            "model": self._model,
            "max_tokens": 1000,
            "tool_timeout_s": 2.0,
            "max_parallel_tools": rng.randint(1, 4),
            "max_result_chars": 200,
            **({} if calmly else self._caps()),
        }
        if rng.random() < 0.5:
            options["approve"] = self._approve
        loop = ToolLoop(claude, messages, **options)
        given = loop.transcript
        check_transcript(given)
        try:
            if rng.random() < 0.2:
                run = await run_tools(claude, messages, **options)
                self.exits.append("end")
                return run.transcript
            await self._look_on(loop, leaving=not calmly)
        except (anthropic.APIError, PenstockError, _Hook) as error:
            self.exits.append(type(error).__name__)
            transcript = getattr(error, "transcript", None)
            if transcript is not None:
                check_transcript(transcript)
                return transcript
        check_transcript(loop.transcript)
        assert loop.transcript[: len(given) - 1] == given[:-1]
        return loop.transcript

    async def _look_on(self, loop: ToolLoop, *, leaving: bool) -> None:
        """Take its events; leave after some, or be cancelled, if chance wants it."""
        rng = self._rng
        leave_after = rng.randint(1, 12) if leaving and rng.random() < 0.3 else None
        cancel_after_s = rng.uniform(0, 3) if leaving and rng.random() < 0.3 else None
        with anyio.move_on_after(cancel_after_s):
            async with loop as events:
                taken = 0
                async for _ in events:
                    check_transcript(loop.transcript)
                    taken += 1
                    if taken == leave_after:
                        self.exits.append("left")
                        return
                self.exits.append("end")
                return
        self.exits.append("cancelled")

    def _gone_on(self, transcript: Any) -> Any:
        """Go on from a transcript: with a question, as it stands, or as others leave one, with calls unanswered."""
        rng = self._rng
        content = transcript[-1]["content"]
        if transcript[-1]["role"] == "assistant":
            kinds = {block["type"] for block in content}
            paused = "server_tool_use" in kinds and not any(kind.endswith("_result") for kind in kinds)
            return transcript if paused else [*transcript, {"role": "user", "content": "And now?"}]
        answers = isinstance(content, list) and all(block["type"] == "tool_result" for block in content)
        if answers and rng.random() < 0.3:
            some = [result for result in content if rng.random() < 0.4]
            return [*transcript[:-1], {"role": "user", "content": some}] if some else transcript[:-1]
        return [*transcript, {"role": "user", "content": "Go on."}] if rng.random() < 0.5 else transcript

    def _caps(self) -> dict[str, Any]:
        rng = self._rng
        caps: dict[str, Any] = {
            "max_tool_calls": rng.randint(0, 6),
            "max_total_tokens": rng.randint(1, 5000),
            "max_seconds": rng.uniform(0.01, 4),
            "on_unknown_tool": "raise",
        }
        kept = {name: value for name, value in caps.items() if rng.random() < 0.2}
        return {"max_iterations": rng.randint(1, 5), **kept}

    # What the model says

    def _script(self) -> None:
        rng = self._rng
        blocks: list[dict[str, Any]] = []
        if rng.random() < 0.3 and self._model != "claude-haiku-4-5":
            blocks.append({"type": "thinking"})
        if rng.random() < 0.5:
            blocks.append({"type": "text", "text": "Let me see."})
        blocks += [self._call() for _ in range(rng.randint(0, 4))]
        if rng.random() < 0.1:
            self.simulator.reply([*blocks, {"type": "server_tool_use", "name": "web_search"}], stop_reason="pause_turn")
        elif rng.random() < 0.15:
            self.simulator.reply(blocks, stop_reason=rng.choice(["max_tokens", "refusal", "stop_sequence"]))
        else:
            self.simulator.reply(blocks)

    def _call(self) -> dict[str, Any]:
        name = self._rng.choice(["_give", "_fail", "_hang", "_wait", "_give", "_wait", "unheard_of"])
        given: dict[str, Any] = {"which": self._rng.randrange(len(VALUES))}
        if self._rng.random() < 0.1:
            given = {"wrong": "arguments"}
        return {"type": "tool_use", "name": name, "input": given}

    # What tools do

    async def _give(self, which: int) -> object:
        """Return something."""
        return VALUES[which]

    async def _fail(self, which: int) -> str:
        """Fail somehow."""
        await anyio.sleep(0.1)
        if which % 3 == 0:
            raise asyncio.CancelledError
        raise ToolError(VALUES[11]) if which % 3 == 1 else OSError("")

    async def _hang(self, which: int) -> None:
        """Never end."""
        await anyio.sleep(1e9 + which)

    async def _wait(self, which: int) -> str:
        """Take a while."""
        await anyio.sleep(which / 5)
        if which % 4 == 0:
            raise RuntimeError("not now")
        return "done"

    async def _approve(self, call: ToolCall) -> Any:
        await anyio.sleep(self._rng.choice([0, 0.5]))
        if self._rng.random() < 0.05:
            raise _Hook(call.id)
        edited: list[Any] = [Allow({"which": 1}), Allow({"which": None})]
        return self._rng.choice(
            [True, True, True, False, Deny(""), Answer("by hand"), Answer(b"", is_error=True), *edited]
        )


class _Hook(Exception):
    """What the hook raises."""


def check_transcript(messages: Iterable[Any]) -> None:
    """Check that every call is answered once, in the next message, in order, before anything else.

    Raises:
        AssertionError: One is not.
    """
    turns: list[tuple[str, list[dict[str, Any]]]] = []
    for message in messages:
        content = message["content"]
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        assert blocks
        if turns and turns[-1][0] == message["role"]:
            turns[-1][1].extend(blocks)
        else:
            turns.append((message["role"], list(blocks)))
    calls: list[str] = []
    for role, blocks in turns:
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        assert results == calls
        assert all(block["type"] == "tool_result" for block in blocks[: len(results)])
        assert all(_speaks(block) for block in blocks if block["type"] == "tool_result" and block.get("is_error"))
        calls = [block["id"] for block in blocks if block["type"] == "tool_use"] if role == "assistant" else []
    assert not calls


def _speaks(result: dict[str, Any]) -> bool:
    """Whether a result that failed says why, in nothing but text, as the API wants it."""
    content = result.get("content")
    return isinstance(content, str) and bool(content.strip())
