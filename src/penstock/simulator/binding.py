"""Thinking blocks belong to the conversation that they were made in; their signatures say which, so nothing is kept.

A signature holds digests of the tools, of the system prompt, of the messages since the last compaction, of the thinking
block before it, and of its own text. Thinking blocks are no part of what later ones are bound to: they may be left out
from either end of a conversation, but not from between others. Signatures of other makers and models are let pass.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from penstock.simulator.prefix import THOUGHTS, Block, blocks_of, canonical, is_compaction, message_blocks
from penstock.simulator.wire import Json, dump, invalid, is_list

if TYPE_CHECKING:
    from penstock.simulator.models import Model

__all__ = ["check_thoughts", "sign"]

_MARK = "c2ltdWxhdG9y"
_PART = 16
_SIGNATURE = re.compile(_MARK + f"([0-9a-f]{{{_PART}}})" * 6)
_NONE = "0" * _PART
_MODIFIED = (
    "{at}: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be modified. These blocks "
    "must remain as they were in the original response."
)
_FORGED = "{at}: Invalid `signature` in `thinking` block"
_MOVED = (
    "{at}: Invalid `signature` in `thinking` block. The block is bound to a different conversation. Remove the block, "
    'or set `thinking.block_binding.prefix_mismatch_behavior` to "drop_block". That setting requires the '
    "`thinking-binding-controls-2026-08-01` value in the `anthropic-beta` header. {what}"
)
_WHAT = {
    "tools": "The `tools` list differs from the one this block was created with.",
    "system": "The `system` prompt differs from the one this block was created with.",
    "messages": "The `messages` before this block differ from those it was created with.",
    "previous": "The `thinking` block that preceded this one when it was created is missing from this request.",
}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_PART // 2).hexdigest()


class _Conversation:
    """What a thinking block that comes after the blocks read so far is bound to."""

    __slots__ = ("_binds", "_messages", "_parts", "_previous")

    def __init__(self, body: Json, model: Model) -> None:
        self._binds = model.binds_thinking
        self._messages = hashlib.blake2b(digest_size=_PART // 2)
        self._previous = _NONE
        self._parts = {"model": _digest(model.id.encode()), "tools": _NONE, "system": _NONE}
        if self._binds:
            self._parts["tools"] = _digest(b"".join(map(canonical, body.get("tools") or ())))
            self._parts["system"] = _digest(b"".join(map(canonical, blocks_of(body.get("system")))))

    def read(self, block: Block) -> None:
        """Go past a block."""
        if block.kind == "thinking":
            self._previous = _digest(dump(block.content["signature"]))
        elif self._binds and block.kind not in THOUGHTS:
            self._messages.update(block.role.encode() + canonical(block.content))

    def signature(self, text: str) -> str:
        """For a thinking block that comes next."""
        return _MARK + "".join(self._expected(text).values())

    def _expected(self, text: str) -> dict[str, str]:
        return {
            **self._parts,
            "messages": self._messages.hexdigest(),
            "previous": self._previous,
            "text": _digest(dump(text)),
        }

    def check(self, block: Block, *, latest: bool) -> None:
        """Raise where `block`, which comes next, was made after other blocks than these, or says something else."""
        found = _SIGNATURE.fullmatch(block.content["signature"])
        expected = self._expected(block.content["thinking"])
        recorded = dict(zip(expected, found.groups(), strict=True)) if found else expected
        if recorded["model"] != expected["model"]:
            return
        if recorded["text"] != expected["text"]:
            raise invalid((_MODIFIED if latest else _FORGED).format(at=block.place))
        if self._previous == _NONE:
            recorded["previous"] = _NONE
        for name, what in _WHAT.items() if self._binds else ():
            if recorded[name] != expected[name]:
                raise invalid(_MOVED.format(at=block.place, what=what))


def sign(content: list[Json], body: Json, model: Model) -> None:
    """Give every thinking block of a reply to `body` that has no signature its own."""
    if not any(block["type"] == "thinking" and "signature" not in block for block in content):
        return
    conversation = _Conversation(body, model)
    for block in _since_compaction([*body["messages"], {"role": "assistant", "content": content}]):
        if block.kind == "thinking" and "signature" not in block.content:
            block.content["signature"] = conversation.signature(block.content["thinking"])
        conversation.read(block)


def check_thoughts(body: Json, model: Model) -> None:
    """Raise where a thinking block comes back changed, or in another conversation than its own."""
    messages: list[Json] = body["messages"]
    if not _thinks(messages):
        return
    latest = max(at for at, message in enumerate(messages) if message["role"] == "assistant")
    conversation = _Conversation(body, model)
    for block in _since_compaction(messages):
        if block.kind == "thinking":
            conversation.check(block, latest=block.message == latest)
        conversation.read(block)


def _thinks(messages: list[Json]) -> bool:
    for message in messages:
        if message["role"] == "assistant" and is_list(message["content"]):
            for block in message["content"]:
                if block["type"] == "thinking":
                    return True
    return False


def _since_compaction(messages: list[Json]) -> list[Block]:
    """The blocks from the last compaction on: what came before it is nothing that anything is bound to."""
    blocks = list(message_blocks(messages))
    for at in reversed(range(len(blocks))):
        if is_compaction(blocks[at].content):
            return blocks[at:]
    return blocks
