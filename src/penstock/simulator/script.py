"""Replies that a test wrote, in the order in which requests shall get them: content as the API would return it.

What only the API could know is filled in where it is missing: ids of calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from penstock.simulator.wire import Json, identifier, is_object

__all__ = ["Content", "Script", "ScriptedReply", "completed"]

Content: TypeAlias = str | Json | Sequence[Json]

_CALLS = {"tool_use": "toolu", "server_tool_use": "srvtoolu"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptedReply:
    """A reply that a test wrote.

    Attributes:
        content: content blocks as the API would return them; ids of calls are optional.
        stop_reason: None: `tool_use` where there is a tool call, else `end_turn`.
        stop_details: `stop_details` of the message.
        usage: fields of `usage` that differ from the computed ones.
    """

    content: tuple[Json, ...] = field(repr=False)
    stop_reason: str | None = None
    stop_details: Json | None = None
    usage: Json = field(default_factory=dict[str, object])


class Script:
    """Replies in the order in which successful requests shall get them."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[ScriptedReply] = deque()

    def __repr__(self) -> str:
        return f"Script({len(self._waiting)} waiting)"

    def add(
        self,
        content: Content,
        *,
        stop_reason: str | None = None,
        stop_details: Json | None = None,
        times: int = 1,
        usage: Json | None = None,
    ) -> None:
        """Append a reply, `times` times."""
        if times < 1:
            raise ValueError(f"times must be at least 1, not {times}")
        reply = ScriptedReply(
            content=_blocks(content), stop_reason=stop_reason, stop_details=stop_details, usage=dict(usage or {})
        )
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


def completed(scripted: ScriptedReply, salt: str) -> list[Json]:
    """Its blocks with what the API would add; `salt` makes the ids of calls unique."""
    return [_complete(block, f"{salt}-{index}") for index, block in enumerate(scripted.content)]


def _complete(block: Json, salt: str) -> Json:
    kind = block["type"]
    if kind == "text":
        return {"citations": None, **block}
    if kind in _CALLS:
        return {"type": kind, "id": identifier(_CALLS[kind], salt), "input": {}, **block}
    return {"thinking": "", **block} if kind == "thinking" else dict(block)
