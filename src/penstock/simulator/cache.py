"""The prompt cache: prefixes that requests marked, by digest, while they last. What isn't marked costs nothing.

Entries are written at marks only. Reading looks back from each mark over at most 20 positions, the mark's own included,
where a run of tool calls or of their results is one position. A prefix is the tools, the system prompt and the messages
in this order, each after the settings that change how the model sees it; organizations and models share nothing.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from penstock.simulator.prefix import THOUGHTS, blocks_of, canonical, marks_of, message_blocks
from penstock.simulator.tokens import PER_MESSAGE, count_block, count_tools
from penstock.simulator.wire import Json, dump, is_object

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.simulator.models import Model

__all__ = ["PromptCache", "Reading"]

_LOOK_BACK = 20
_TTL_S = {"5m": 300.0, "1h": 3600.0}
_RUNS = ("tool_use", "tool_result")


@dataclass(slots=True)
class _Entry:
    """A cached prefix. It can be read once the response that made it began."""

    ttl_s: float
    begins_at: float
    begun: bool = False
    expires_at: float = 0.0

    def usable(self, now: float) -> bool:
        return (self.begun or now > self.begins_at) and now < self.expires_at


class _Position(NamedTuple):
    """The end of a block: the prefix up to there, its tokens, and which run of blocks it belongs to."""

    digest: bytes
    tokens: int
    run: int
    ttl: str | None


@dataclass(kw_only=True, slots=True)
class Reading:
    """What it takes to read a prompt.

    Attributes:
        tokens: all input tokens.
        read: those that come from the cache.
        written_5m: those written to the cache for five minutes.
        written_1h: those written to the cache for an hour.
        used: digests of the entries that are read or marked again.
        made: digests of the entries to be written, and their time to live.
    """

    tokens: int
    read: int = 0
    written_5m: int = 0
    written_1h: int = 0
    used: tuple[bytes, ...] = field(default=(), repr=False)
    made: tuple[tuple[bytes, str], ...] = field(default=(), repr=False)

    @property
    def charged(self) -> int:
        """What counts against the limit of input tokens: all but what was read from the cache."""
        return self.tokens - self.read

    def usage(self) -> Json:
        """The input fields of `usage`, whose sum is `tokens`."""
        five, hour = self.written_5m, self.written_1h
        return {
            "input_tokens": self.tokens - self.read - five - hour,
            "cache_creation_input_tokens": five + hour,
            "cache_read_input_tokens": self.read,
            "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour},
        }


class PromptCache:
    """All cached prefixes.

    Args:
        most: entries kept; the expired go first, then those used longest ago.
    """

    __slots__ = ("_entries", "_most")

    def __init__(self, most: int = 10_000) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self._most = most

    def __repr__(self) -> str:
        return f"PromptCache({len(self._entries)} of at most {self._most} entries)"

    def read(self, body: Json, model: Model, organization: str, *, tokens: int, now: float) -> Reading:
        """What it takes to read `body` of so many tokens; changes nothing."""
        if body.get("cache_control") is None and not marks_of(body):
            return Reading(tokens=tokens)
        positions = _positions(body, model, organization)
        marks = [at for at, position in enumerate(positions) if position.ttl is not None]
        hit = max((self._look_back(positions, at, now) for at in marks), default=-1)
        found = positions[hit : hit + 1] if hit >= 0 else []
        start = found[0].tokens if found else 0
        marked = [positions[at] for at in marks if positions[at].tokens >= model.cacheable]
        fresh = [each for each in marked if not self._usable(each.digest, now)]
        # Longer times come first: up to the last mark for an hour all is written for an hour.
        hour = max(start, *(each.tokens for each in fresh if each.ttl == "1h"), 0)
        return Reading(
            tokens=tokens,
            read=start,
            written_5m=max(hour, *(each.tokens for each in fresh), 0) - hour,
            written_1h=hour - start,
            used=tuple(each.digest for each in (*found, *marked) if self._usable(each.digest, now)),
            made=tuple((each.digest, str(each.ttl)) for each in fresh),
        )

    def _look_back(self, positions: list[_Position], at: int, now: float) -> int:
        """The nearest position that is cached, -1 where none is in sight."""
        last = positions[at].run - _LOOK_BACK
        while at >= 0 and positions[at].run > last:
            if self._usable(positions[at].digest, now):
                return at
            at -= 1
        return -1

    def _usable(self, digest: bytes, now: float) -> bool:
        entry = self._entries.get(digest)
        return entry is not None and entry.usable(now)

    def keep(self, reading: Reading, now: float, begins_at: float) -> None:
        """Write and refresh what a request that is answered has marked; `begins_at` is when its response begins."""
        for digest in reading.used:
            self._put(digest, self._entries[digest], now)
        for digest, ttl in reading.made:
            entry = self._entries.get(digest)
            if entry is None or now >= entry.expires_at:
                entry = _Entry(_TTL_S[ttl], begins_at)
            self._put(digest, entry, now)
        if len(self._entries) > self._most:
            self._shrink(now)

    def _put(self, digest: bytes, entry: _Entry, now: float) -> None:
        self._entries.pop(digest, None)
        self._entries[digest] = entry
        entry.expires_at = max(entry.expires_at, now + entry.ttl_s)

    def _shrink(self, now: float) -> None:
        """Make room for a tenth at once, because each entry for itself would be slow."""
        alive = [item for item in self._entries.items() if now < item[1].expires_at]
        self._entries = dict(alive[-math.ceil(self._most * 0.9) :])

    def begun(self, reading: Reading) -> None:
        """The response began: what it wrote can be read."""
        for digest, _ in reading.made:
            if digest in self._entries:
                self._entries[digest].begun = True


def _positions(body: Json, model: Model, organization: str) -> list[_Position]:
    """The ends of all blocks of a prompt."""
    chain = hashlib.blake2b(f"{organization}\0{model.id}".encode(), digest_size=16)
    found: list[_Position] = []
    tokens = run = 0
    before = ""
    for block, size, kind in _blocks(body, model):
        tokens += size
        chain.update(block if isinstance(block, bytes) else kind.encode() + canonical(block))
        if isinstance(block, bytes):
            continue
        run += kind not in _RUNS or kind != before
        before = kind
        control = block.get("cache_control")
        found.append(_Position(chain.digest(), tokens, run, (control.get("ttl") or "5m") if control else None))
    return _automatic(found, body)


def _blocks(body: Json, model: Model) -> Iterator[tuple[Json | bytes, int, str]]:
    """(block, tokens, kind) of all blocks, and the settings of each level as bytes before them."""
    tools = list(zip(body.get("tools") or (), count_tools(body.get("tools")), strict=True))
    # Web search changes the system prompt, not the tools.
    for tool, size in tools:
        if not _is_search(tool):
            yield tool, size, "tool"
    yield _system_settings(body), 0, ""
    for tool, size in tools:
        if _is_search(tool):
            yield tool, size, "tool"
    for block in blocks_of(body.get("system")):
        yield block, count_block(block, model), "system"
    yield _message_settings(body, model), 0, ""
    for said in message_blocks(body["messages"]):
        size = count_block(said.content, model) + (0 if said.nth else PER_MESSAGE)
        # Only the user and the assistant can say the same.
        yield said.content, size, said.kind if said.kind in _RUNS else f"{said.role} {said.kind}"


def _is_search(tool: Json) -> bool:
    return str(tool.get("type")).startswith("web_search_")


def _inner(body: Json) -> Iterator[Json]:
    """All blocks of the messages, those in tool results included."""
    for block in message_blocks(body["messages"]):
        yield block.content
        if block.kind == "tool_result":
            yield from blocks_of(block.content.get("content"))


def _system_settings(body: Json) -> bytes:
    cites = (block["citations"] for block in _inner(body) if is_object(block.get("citations")))
    return dump(["system", body.get("speed") or "standard", any(each.get("enabled") for each in cites)])


def _message_settings(body: Json, model: Model) -> bytes:
    thinking = body.get("thinking") or {"type": "adaptive" if model.thinks else "disabled"}
    config: Json = body.get("output_config") or {}
    images = any(block["type"] == "image" for block in _inner(body))
    choice = body.get("tool_choice") or {"type": "auto"}
    thought = [thinking["type"], thinking.get("budget_tokens")]
    return dump(["messages", choice, thought, config.get("effort"), config.get("format"), images])


def _automatic(positions: list[_Position], body: Json) -> list[_Position]:
    """Mark the last block that can be marked, where the request asks for that and hasn't marked it itself."""
    control = body.get("cache_control")
    kinds = [block.kind for block in message_blocks(body["messages"])]
    last = next((back for back, kind in enumerate(reversed(kinds), 1) if kind not in THOUGHTS), None)
    if control is not None and last is not None and positions[-last].ttl is None:
        positions[-last] = positions[-last]._replace(ttl=control.get("ttl") or "5m")
    return positions
