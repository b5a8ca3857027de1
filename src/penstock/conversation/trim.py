"""Making a history shorter: what goes, what stays, and what is left in its place.

The rule here: whole exchanges go, the oldest first, so that no tool call is parted from its result. The first user
turn, pinned turns and system turns stay. Thinking goes from every turn that stays, because the API refuses thinking
whose beginning has changed; images of older turns become a few words.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from penstock.messages.blocks import Turn, is_fresh

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from penstock.messages.blocks import Block

__all__ = ["Trimmed", "note", "trim"]

_THINKING: Final = frozenset({"thinking", "redacted_thinking"})
_NO_IMAGE: Final[dict[str, str]] = {"type": "text", "text": "[An image was shown here.]"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed:
    """A history that was made shorter.

    Attributes:
        head: The first exchange, or its first turn.
        left_out: The turns that went, oldest first; a note about earlier ones is among them.
        tail: The turns that stay after them.
    """

    head: tuple[Turn, ...]
    left_out: tuple[Turn, ...] = field(repr=False)
    tail: tuple[Turn, ...]

    @property
    def count(self) -> int:
        """How many messages are left out, earlier ones included."""
        return sum(turn.left_out or 1 for turn in self.left_out)

    def turns(self, summary: str = "") -> tuple[Turn, ...]:
        """Return the shorter history, with a note in place of what went."""
        return (*self.head, *([note(self.count, summary)] if self.left_out else ()), *self.tail)


def note(count: int, summary: str = "") -> Turn:
    """Return a turn that stands for messages that are left out."""
    told = f"[{count} earlier messages are left out here.]"
    if summary:
        told = f"[{count} earlier messages are left out here. What they said, in short:]\n{summary}"
    return Turn(role="user", content=({"type": "text", "text": told},), left_out=count)


def trim(turns: Sequence[Turn], *, cost: Callable[[Sequence[Turn]], float], target: float) -> Trimmed:
    """Make a history shorter, until it takes no more than `target`, or nothing more may go.

    Args:
        turns: The history; its last turn begins the exchange that is to be asked now.
        cost: What turns take, in tokens.
        target: Tokens that the history may take.
    """
    units = _units(turns)
    # The user may still ask about what he showed a moment ago.
    recent = len(units) - 2
    aged = (_aged(unit, images=index < recent) for index, unit in enumerate(units))
    units = [unit for unit in aged if unit]
    first, *others, newest = units if len(units) > 1 else ((), *units)
    total = sum(cost(unit) for unit in units)
    left_out: list[Turn] = []
    kept: list[Turn] = []
    if total > target and first and not _stays(first):
        left_out += first[1:]
        total -= cost(first[1:])
        first = first[:1]
    for unit in others:
        # A note is taken in by the next one.
        if (total > target and not _stays(unit)) or unit[0].left_out:
            left_out += unit
            total -= cost(unit)
        else:
            kept += unit
    return Trimmed(head=first, left_out=tuple(left_out), tail=(*kept, *newest))


def _units(turns: Sequence[Turn]) -> list[tuple[Turn, ...]]:
    """Exchanges: from where the user begins something new until he does again; a system turn is one of its own."""
    units: list[list[Turn]] = []
    for turn in turns:
        if not units or is_fresh(turn) or turn.role == "system" or units[-1][-1].role == "system":
            units.append([])
        units[-1].append(turn)
    return [tuple(unit) for unit in units]


def _stays(unit: Sequence[Turn]) -> bool:
    return any(turn.pinned or turn.role == "system" for turn in unit)


def without_thinking(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return a history as it can be sent where what it begins with has changed."""
    return _aged(turns, images=False)


def _aged(unit: Sequence[Turn], *, images: bool) -> tuple[Turn, ...]:
    """The same turns without thinking, and without images if they are to go and are not pinned."""
    aged: list[Turn] = []
    for turn in unit:
        content = tuple(block for block in turn.content if block["type"] not in _THINKING)
        if images and not _stays(unit):
            content = tuple(_without_images(block) for block in content)
        if content:
            aged.append(replace(turn, content=content))
    return tuple(aged)


def _without_images(block: Block) -> Block:
    if block["type"] == "image":
        return dict(_NO_IMAGE)
    inner: str | list[Block] | None = block.get("content")
    if block["type"] == "tool_result" and isinstance(inner, list):
        return {**block, "content": [_without_images(each) for each in inner]}
    return block
