"""A reply as server-sent events, in the API's order: message_start, blocks in turn, message_delta, message_stop.

Each step is what is sent in one piece, how long the model takes before it, and how many tokens it generated for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.simulator.tokens import CHARACTERS, count_text
from penstock.simulator.wire import Json, dump

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.simulator.reply import Reply

__all__ = ["PING", "Step", "event", "stream_steps"]

_TOKENS_A_DELTA = 4
_LATER = ("iterations", "output_tokens_details", "server_tool_use")


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of a response body.

    Attributes:
        data: bytes to send.
        name: the event's type; empty for a plain body.
        content: whether it carries content that a reader would see: text, tool input, thinking with words in it.
        tokens: output tokens generated for it.
        delay_s: time before it is sent.
    """

    data: bytes
    name: str = ""
    content: bool = False
    tokens: int = 0
    delay_s: float = 0.0


def event(body: Json) -> bytes:
    """One server-sent event, named by its `type`."""
    return b"event: " + str(body["type"]).encode() + b"\ndata: " + dump(body) + b"\n\n"


PING = Step(event({"type": "ping"}), "ping")


def _step(body: Json, *, content: bool = False, tokens: int = 0) -> Step:
    return Step(event(body), str(body["type"]), content, tokens)


def stream_steps(reply: Reply, whole: Json) -> Iterator[Step]:
    """All events of `reply`, ping included; `whole` is the message that a plain request would get."""
    start = {key: value for key, value in reply.usage.items() if key not in _LATER}
    message: Json = {
        **whole,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**start, "output_tokens": min(1, reply.output_tokens)},
    }
    yield _step({"type": "message_start", "message": message})
    if not reply.content:
        yield PING
    cut = len(reply.content) - 1 if reply.stop_reason == "max_tokens" else -1
    for index, block in enumerate(reply.content):
        yield _step({"type": "content_block_start", "index": index, "content_block": _opening(block)})
        if index == 0:
            yield PING
        for delta, tokens in _deltas(block, reply, cut=index == cut):
            content = delta["type"] != "signature_delta" and any(delta[key] for key in delta if key != "type")
            body = {"type": "content_block_delta", "index": index, "delta": delta}
            yield _step(body, content=content, tokens=tokens)
        yield _step({"type": "content_block_stop", "index": index})
    end: Json = {"stop_reason": reply.stop_reason, "stop_sequence": reply.stop_sequence}
    if reply.stop_details is not None:
        end["stop_details"] = reply.stop_details
    yield _step({"type": "message_delta", "delta": end, "usage": _final_usage(reply.usage)})
    yield _step({"type": "message_stop"})


def _opening(block: Json) -> Json:
    match block["type"]:
        case "text":
            return {"type": "text", "text": ""}
        case "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "tool_use" | "server_tool_use":
            return {**block, "input": {}}
        case "compaction":
            return {"type": "compaction", "content": None}
        case _:
            return block


def _deltas(block: Json, reply: Reply, *, cut: bool) -> Iterator[tuple[Json, int]]:
    match block["type"]:
        case "text":
            for piece in _pieces(str(block.get("text", ""))):
                yield {"type": "text_delta", "text": piece}, count_text(piece)
        case "thinking":
            yield from _thinking_deltas(block, reply)
        case "tool_use" | "server_tool_use":
            yield {"type": "input_json_delta", "partial_json": ""}, 0
            whole = json.dumps(block["input"])
            # A call that `max_tokens` cut off ends within its JSON.
            for piece in _pieces(whole[:-1] if cut else whole):
                yield {"type": "input_json_delta", "partial_json": piece}, count_text(piece)
        case "compaction":
            delta = {"type": "compaction_delta", "content": block["content"]}
            yield delta, count_text(block["content"] or "")
        case _:
            return


def _thinking_deltas(block: Json, reply: Reply) -> Iterator[tuple[Json, int]]:
    text = str(block.get("thinking", ""))
    for piece in _pieces(text):
        yield {"type": "thinking_delta", "thinking": piece}, count_text(piece)
    details: Json = reply.usage.get("output_tokens_details") or {}
    hidden = int(details.get("thinking_tokens", 0)) if not text else 0
    yield {"type": "signature_delta", "signature": block.get("signature", "")}, hidden


def _pieces(text: str) -> Iterator[str]:
    size = _TOKENS_A_DELTA * CHARACTERS
    return (text[at : at + size] for at in range(0, len(text), size))


def _final_usage(usage: Json) -> Json:
    names = (
        "input_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "output_tokens",
        "output_tokens_details",
        "server_tool_use",
        "fallback_credit",
        "iterations",
    )
    return {name: usage[name] for name in names if name in usage}
