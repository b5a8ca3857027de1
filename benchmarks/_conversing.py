"""Conversations made up at random: text, images, tools, thinking, pauses, refusals, cuts, faults and cancellations.

The rule here: everything follows from a seed, in virtual time; the simulator's validator is the judge.
"""

from __future__ import annotations

import base64
import random
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anthropic
import anyio

from penstock import Client, Conversation, InvalidHistory, PenstockError, RetryOptions
from penstock.simulator import MIXED_FAULTS, Simulator
from penstock.testing import VirtualLoop

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

__all__ = ["Told", "converse"]

MODELS = ("claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-5-5", "claude-fable-5-2", "claude-haiku-4-5")
SYSTEM_TURNS = MODELS[:2]
BROKEN = ("stream_error_after_content", "stream_drop_after_content", "no_message_stop", "truncated")
TOOLS = [
    {"name": name, "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    for name in ("get_weather", "get_time")
]
WORDS = ("river", "weather", "answer", "Paris", "kilometre", "why", "the", "of", "turbine", "water")


@dataclass(kw_only=True)
class Told:
    """What came of generated conversations.

    Attributes:
        sends: Messages sent, streams included.
        requests: Requests that arrived.
        rejected: Those that the API refused as invalid.
        reasons: What it said of them.
        failed: Sends that failed or were cancelled.
        trimmed: Conversations whose history was trimmed.
        resumed: Saves that were loaded again.
        changed: Sends that failed and yet changed the history.
    """

    sends: int = 0
    requests: int = 0
    rejected: int = 0
    reasons: list[str] = field(default_factory=list)
    failed: int = 0
    trimmed: int = 0
    resumed: int = 0
    changed: int = 0


def converse(seed: int, told: Told) -> None:
    """Hold one conversation."""
    anyio.run(_Talk(seed, told).run, backend_options={"loop_factory": VirtualLoop})


def _png(size: int) -> dict[str, Any]:
    """A grey square as an image block."""
    rows = zlib.compress(b"".join(b"\0" + bytes(size) for _ in range(size)))
    parts = ((b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}


async def get_weather(city: str) -> str:
    """Get the weather of a city."""
    await anyio.sleep(0.5)
    return f"sunny in {city}"


async def get_time(city: str) -> str:
    """Get the time of a city."""
    raise LookupError(city)


class _Talk:
    def __init__(self, seed: int, told: Told) -> None:
        self.rng = random.Random(seed)
        self.functions = False
        self.told = told
        self.model = self.rng.choice(MODELS)
        share = self.rng.choice((0, 0.05, 0.2))
        faults = {**MIXED_FAULTS(share), **dict.fromkeys(BROKEN, share / 4)}
        self.simulator = Simulator(
            seed=seed, faults=faults, thinking=self.rng.choice((True, None)), latency_s=0.5, tokens_per_s=200
        )

    async def run(self) -> None:
        sdk = self.simulator.client(max_retries=1)
        async with sdk:
            if self.rng.random() < 0.5:
                await self._talk(sdk)
            else:
                async with Client(sdk=sdk, log=False, retry=RetryOptions(base_s=0.01)) as claude:
                    await self._talk(claude)
        self.told.requests += len(self.simulator.journal)
        self.told.rejected += sum(entry.status == 400 for entry in self.simulator.journal)

    async def _talk(self, client: Client | AsyncAnthropic) -> None:
        rng = self.rng
        options: dict[str, Any] = {}
        tools: list[Any] = TOOLS if rng.random() < 0.7 else []
        if rng.random() < 0.2:
            tools, options["max_iterations"], self.functions = [get_weather, get_time], 3, True
        if self.model != MODELS[-1] and rng.random() < 0.5:
            options["thinking"] = {"type": "adaptive"}
        chat = Conversation(
            client,
            model=self.model,
            max_tokens=rng.choice((400, 1000)),
            system=rng.choice((None, "You are terse. " * 40)),
            tools=tools,
            overflow=rng.choice(("window", "summary")),
            on_truncation=rng.choice(("return", "continue", "retry")),
            window_tokens=rng.choice((2000, 4000, 8000, None)),
            trim_at=rng.choice((0.5, 0.75)),
            summary_max_tokens=200,
            cache_ttl=rng.choice(("5m", "1h", None)),
            **options,
        )
        trimmed = False
        for _ in range(rng.randint(4, 25)):
            chat = await self._step(chat, client)
            trimmed = trimmed or any("left out here" in str(message) for message in chat.messages)
        self.told.trimmed += trimmed

    async def _step(self, chat: Conversation, client: Client | AsyncAnthropic) -> Conversation:
        rng = self.rng
        kind = rng.random()
        if kind < 0.1:
            self.told.resumed += 1
            functions = [get_weather, get_time] if self.functions else None
            return Conversation.from_json(chat.to_json(), client, system=chat.system, tools=functions)
        if kind < 0.15:
            return chat.fork()
        if kind < 0.2 and self.model in SYSTEM_TURNS:
            try:
                chat.add_system_turn("From here on, answer in French.")
            except InvalidHistory:
                last: Any = chat.messages[-1] if chat.messages else {"role": "user"}
                assert chat.pending_tool_calls or last["role"] == "user" or "server_tool_use" in str(last)
        await self._ask(chat)
        return chat

    async def _ask(self, chat: Conversation) -> None:
        self._script(chat)
        before = chat.to_json(), chat.messages
        self.told.sends += 1
        with anyio.move_on_after(self.rng.choice((1e6, 1e6, self.rng.uniform(0, 6)))) as scope:
            try:
                if self.functions or self.rng.random() < 0.6:
                    await chat.send(**self._question(chat))
                else:
                    await self._stream(chat)
            except (PenstockError, anthropic.APIError) as error:
                self.told.reasons += [str(error)] * isinstance(error, anthropic.BadRequestError)
                self.told.failed += 1
                self.told.changed += chat.messages != before[1]
        if scope.cancelled_caught:
            self.told.failed += 1

    async def _stream(self, chat: Conversation) -> None:
        async with chat.stream(**self._question(chat)) as stream:
            if self.rng.random() < 0.3:
                async for _ in stream.text_stream:
                    if self.rng.random() < 0.3:
                        return
            elif self.rng.random() < 0.5:
                _ = [event async for event in stream]
            else:
                await stream.get_final_message()

    def _question(self, chat: Conversation) -> dict[str, Any]:
        """What may be asked now."""
        rng = self.rng
        if calls := chat.pending_tool_calls:
            results = [{"type": "tool_result", "tool_use_id": call, "content": self._text(40)} for call in calls]
            rng.shuffle(results)
            more = [{"type": "text", "text": "Go on."}] if rng.random() < 0.2 else []
            return {"content": results + more}
        last: Any = chat.messages[-1] if chat.messages else None
        if last is not None and last["role"] == "assistant" and "srvtoolu" in str(last["content"][-1]):
            return {}
        images = [_png(rng.choice((20, 200)))] if rng.random() < 0.15 else []
        return {"content": self._text(rng.choice((5, 50, 400))), "images": images, "pin": rng.random() < 0.05}

    def _text(self, words: int) -> str:
        return " ".join(self.rng.choice(WORDS) for _ in range(words))

    def _script(self, chat: Conversation) -> None:
        """Sometimes the model does something special."""
        rng, reply = self.rng, self.simulator.reply
        thought = [{"type": "thinking", "thinking": ""}] if rng.random() < 0.5 and self.model != MODELS[-1] else []
        text = {"type": "text", "text": self._text(rng.choice((1, 30)))}
        calls = [
            {"type": "tool_use", "name": "get_weather", "input": {"city": "Rome"}} for _ in range(rng.randint(1, 3))
        ]
        search = {"type": "server_tool_use", "name": "web_search", "input": {"query": "rivers"}}
        match rng.choice(("plain", "plain", "tools", "tools", "pause", "refusal", "cut", "cut call", "empty", "blank")):
            case "tools" if "get_weather" in str(chat.to_json()):
                reply([*thought, *([text] if rng.random() < 0.5 else []), *calls])
            case "pause":
                reply([*thought, text, search], stop_reason="pause_turn", times=rng.choice((1, 2)))
            case "refusal":
                reply([text], stop_reason="refusal")
            case "cut":
                reply([*thought, text], stop_reason="max_tokens", times=rng.choice((1, 2, 5)))
            case "cut call":
                reply([*thought, text, *calls], stop_reason="max_tokens", times=rng.choice((1, 3)))
            case "empty":
                reply([])
            case "blank":
                reply([*thought, {"type": "text", "text": ""}])
            case _:
                pass
