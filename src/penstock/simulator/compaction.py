"""Compaction: where a request asks for it and is long enough, the reply begins with a summary of all before it.

In later requests everything before such a block is as if it weren't there.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from penstock.simulator.cache import Reading
from penstock.simulator.prefix import is_compaction
from penstock.simulator.reply import Reply
from penstock.simulator.tokens import count_text, plain_text
from penstock.simulator.wire import Json, is_list

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["reply_to", "visible"]

_COMPACT = "compact_20260112"
_DEFAULT = {"value": 150_000}
_WORDS = 200


def visible(body: Json) -> Json:
    """A valid request from its last compaction block on."""
    messages: list[Json] = body["messages"]
    for at in reversed(range(len(messages))):
        content = messages[at]["content"]
        for nth in reversed(range(len(content))) if is_list(content) else ():
            if is_compaction(content[nth]):
                return {**body, "messages": [{**messages[at], "content": content[nth:]}, *messages[at + 1 :]]}
    return body


def reply_to(
    body: Json, reading: Reading, read: Callable[[Json], Reading], write: Callable[[Reading, Sequence[Json]], Reply]
) -> Reply:
    """The reply to a request that asks for compaction, after it where the prompt is long enough.

    Args:
        body: the request.
        reading: what it takes to read its prompt.
        read: what it takes to read another.
        write: gives the reply, once it is known what that takes, with some blocks before it.
    """
    edit = next((each for each in body["context_management"].get("edits", ()) if each["type"] == _COMPACT), None)
    if edit is None:
        return write(reading, ())
    if reading.tokens <= (edit.get("trigger") or _DEFAULT)["value"]:
        return _accounted(write(reading, ()), [])
    block = _summary(body["messages"])
    spent = {"type": "compaction", **reading.usage(), "output_tokens": count_text(block["content"])}
    if edit.get("pause_after_compaction"):
        usage = {**Reading(tokens=0).usage(), "output_tokens": 0, "service_tier": "standard", "iterations": [spent]}
        return Reply(content=[block], stop_reason="compaction", usage=usage)
    seen = {**body, "messages": [{"role": "assistant", "content": [block]}]}
    return _accounted(write(read(seen), [block]), [spent])


def _summary(messages: list[Json]) -> Json:
    """The first words of what the user said."""
    said = (plain_text(message["content"]) for message in messages if message["role"] == "user")
    words = list(islice((word for text in said for word in text.split()), _WORDS))
    return {"type": "compaction", "content": " ".join(["Summary of the conversation:", *words])}


def _accounted(reply: Reply, before: list[Json]) -> Reply:
    """The usage of a compaction is told in `iterations` only."""
    own = {name: reply.usage[name] for name in (*Reading(tokens=0).usage(), "output_tokens")}
    reply.usage["iterations"] = [*before, {"type": "message", **own}]
    return reply
