"""What the simulated model answers: derived from the prompt alone, or taken from a script; never from chance.

The words of the prompt come back in the answer, so that a test can tell whose answer it holds.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, TypeAlias, cast

from penstock.simulator.sample import sample
from penstock.simulator.tokens import CHARACTERS, count_input, count_text, plain_text
from penstock.simulator.wire import Json, dump, is_list, is_object

if TYPE_CHECKING:
    from penstock.simulator.models import Model

__all__ = ["Content", "OutputTokens", "Reply", "Script", "ScriptedReply", "compose", "identifier"]

OutputTokens: TypeAlias = int | Callable[[Json], int] | None
Content: TypeAlias = str | Json | Sequence[Json]

_SUMMARY_WORDS = 24
_THINKING = "Let me look at what is asked, and answer it."


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptedReply:
    """A reply that a test wrote: content blocks as the API would return them, ids of tool calls optional."""

    content: tuple[Json, ...] = field(repr=False)
    stop_reason: str | None = None
    usage: Json = field(default_factory=dict[str, object])


class Script:
    """Replies in the order in which successful requests shall get them."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[ScriptedReply] = deque()

    def __repr__(self) -> str:
        return f"Script({len(self._waiting)} waiting)"

    def add(self, content: Content, *, stop_reason: str | None, times: int, usage: Json | None) -> None:
        """Append a reply, `times` times."""
        if times < 1:
            raise ValueError(f"times must be at least 1, not {times}")
        reply = ScriptedReply(content=_blocks(content), stop_reason=stop_reason, usage=dict(usage or {}))
        self._waiting.extend([reply] * times)

    def next(self) -> ScriptedReply | None:
        """The next reply, if one is left."""
        return self._waiting.popleft() if self._waiting else None


def _blocks(content: Content) -> tuple[Json, ...]:
    if isinstance(content, str):
        return ({"type": "text", "text": content},)
    blocks = [content] if is_object(content) else list(cast("Sequence[Json]", content))
    for block in blocks:
        if "type" not in block:
            raise ValueError(
                "a scripted content block must be a dict with a 'type', such as {'type': 'text', 'text': 'Hi'}"
            )
    return tuple(blocks)


@dataclass(kw_only=True, slots=True)
class Reply:
    """A complete answer: content blocks, why it stopped, and what it used."""

    content: list[Json] = field(repr=False)
    stop_reason: str
    stop_sequence: str | None = None
    usage: Json

    @property
    def output_tokens(self) -> int:
        """Tokens generated."""
        return int(self.usage["output_tokens"])

    def message(self, identity: str, model: str) -> Json:
        """The `Message` object that a plain request gets."""
        return {
            "id": identity,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self.content,
            "stop_reason": self.stop_reason,
            "stop_sequence": self.stop_sequence,
            "stop_details": None,
            "container": None,
            "usage": self.usage,
        }


def compose(
    body: Json, model: Model, scripted: ScriptedReply | None, *, output_tokens: OutputTokens, thinking: bool, salt: str
) -> Reply:
    """The answer to a valid request; `salt` makes the ids of its tool calls unique."""
    given = count_input(body, model)
    if scripted is not None:
        return _from_script(scripted, given, salt)
    limit = min(int(body["max_tokens"]), max(0, model.window - given))
    thoughts = _thinking(body, model, limit) if thinking else []
    spent = count_text(_THINKING[: limit * 2]) if thoughts else 0
    content, stop_reason, stop_sequence = _answer(body, limit - spent, output_tokens, salt)
    if stop_reason == "max_tokens" and limit < int(body["max_tokens"]):
        stop_reason = "model_context_window_exceeded"
    made = spent + sum(_block_tokens(block) for block in content)
    return Reply(
        content=thoughts + content,
        stop_reason=stop_reason,
        stop_sequence=stop_sequence,
        usage=_usage(given, made, spent),
    )


def _from_script(scripted: ScriptedReply, given: int, salt: str) -> Reply:
    content = [_complete(block, f"{salt}-{index}") for index, block in enumerate(scripted.content)]
    calls = any(block["type"] == "tool_use" for block in content)
    made = sum(_block_tokens(block) for block in content)
    return Reply(
        content=content,
        stop_reason=scripted.stop_reason or ("tool_use" if calls else "end_turn"),
        usage={**_usage(given, made, 0), **scripted.usage},
    )


def _complete(block: Json, salt: str) -> Json:
    if block["type"] == "text":
        return {"citations": None, **block}
    if block["type"] == "tool_use":
        return {"type": "tool_use", "id": identifier("toolu", salt), "input": {}, **block}
    return dict(block)


def _usage(given: int, made: int, thinking: int) -> Json:
    return {
        "input_tokens": given,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"thinking_tokens": thinking},
        "server_tool_use": None,
        "service_tier": "standard",
    }


def _block_tokens(block: Json) -> int:
    if block["type"] == "text":
        return count_text(str(block.get("text", "")))
    return count_text(dump(block.get("input", block.get("thinking", ""))).decode())


def _thinking(body: Json, model: Model, limit: int) -> list[Json]:
    asked = body.get("thinking")
    display = asked.get("display") if is_object(asked) else None
    shown = model.shows_thinking if display is None else display == "summarized"
    text = _THINKING[: limit * 2]
    if not text:
        return []
    return [{"type": "thinking", "thinking": text if shown else "", "signature": _digest("signature", text) * 2}]


def _answer(body: Json, limit: int, output_tokens: OutputTokens, salt: str) -> tuple[list[Json], str, str | None]:
    """(content, stop_reason, stop_sequence) within `limit` tokens."""
    if limit <= 0:
        return [], "max_tokens", None
    call = _forced_call(body, salt)
    if call is not None:
        return [call], "tool_use", None
    text, sequence = _until_stop_sequence(_text(body, output_tokens), body.get("stop_sequences"))
    if count_text(text) > limit:
        return [_text_block(text[: limit * CHARACTERS])], "max_tokens", None
    content = [_text_block(text)] if text else []
    return content, "end_turn" if sequence is None else "stop_sequence", sequence


def _text_block(text: str) -> Json:
    return {"type": "text", "text": text, "citations": None}


def _forced_call(body: Json, salt: str) -> Json | None:
    choice = body.get("tool_choice")
    if not is_object(choice) or choice.get("type") not in ("any", "tool"):
        return None
    tools: list[Json] = [tool for tool in body["tools"] if is_object(tool.get("input_schema"))]
    wanted = choice.get("name", tools[0]["name"] if tools else None)
    schemas: dict[str, Json] = {tool["name"]: tool["input_schema"] for tool in tools}
    if wanted not in schemas:
        return None
    call = identifier("toolu", salt)
    return {"type": "tool_use", "id": call, "name": wanted, "input": sample(schemas[wanted])}


def _text(body: Json, output_tokens: OutputTokens) -> str:
    schema = _output_schema(body)
    if schema is not None:
        return dump(sample(schema)).decode()
    prompt = _prompt(body)
    wanted = output_tokens(body) if callable(output_tokens) else output_tokens
    if wanted is None:
        return "Summary: " + " ".join(prompt.split()[:_SUMMARY_WORDS])
    size = max(0, wanted) * CHARACTERS
    words = prompt.split() or ["nothing"]
    return " ".join(islice(cycle(words), size // 2 + 1))[:size]


def _output_schema(body: Json) -> Json | None:
    config = body.get("output_config")
    chosen = config.get("format") if is_object(config) else None
    schema = chosen.get("schema") if is_object(chosen) else None
    return schema if is_object(schema) else None


def _prompt(body: Json) -> str:
    messages = body.get("messages")
    if not is_list(messages):
        return ""
    turns = (plain_text(message["content"]) for message in reversed(messages) if message["role"] == "user")
    return next((turn for turn in turns if turn.strip()), "")


def _until_stop_sequence(text: str, sequences: object) -> tuple[str, str | None]:
    found = [(text.find(each), each) for each in sequences if each in text] if is_list(sequences) else []
    if not found:
        return text, None
    at, sequence = min(found)
    return text[:at], sequence


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=11).hexdigest()


def identifier(prefix: str, salt: str) -> str:
    """An id in the API's form, the same for the same `salt`."""
    return f"{prefix}_01{_digest(prefix, salt)}"
