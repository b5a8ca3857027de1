"""Start-time fair queueing: who is served next, so that every flow gets its share, whatever backlog another has.

The rule here: plain synchronous state that knows neither time nor limits. Each flow is first in, first out. The start
tag of a flow's first item is the later of the virtual time and the flow's last finish tag; the smallest start tag is
served next, and the finish tag is that plus cost by weight (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM
1996). Only what is served moves a tag, so that items that leave unserved leave no trace; a flow that owes nothing is
forgotten.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Entry", "FairQueue", "Place"]

F = TypeVar("F", bound="Hashable")
T = TypeVar("T")
# Fewer items that have left than this are not worth a compaction.
_FEW = 16


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A place in the line.

    Attributes:
        start: Start tag.
        number: Order of arrival; decides between equal tags.
    """

    start: float
    number: int


class Entry(Generic[F, T]):
    """An item in the queue.

    Attributes:
        item: What waits; `None` once it was served or has left.
        place: Where it stood when it was served.
        number: Order of arrival.
        flow: What it belongs to; `None` if it was put back to its place.
        weight: Share of its flow.
        cost: What serving it takes.
    """

    __slots__ = ("cost", "flow", "item", "number", "place", "weight")

    def __init__(self, item: T, number: int, flow: _Flow[F, T] | None, weight: float, cost: float) -> None:
        self.item: T | None = item
        self.place: Place | None = None
        self.number = number
        self.flow = flow
        self.weight = weight
        self.cost = cost


class _Flow(Generic[F, T]):
    """One flow: its items, and what it owes."""

    __slots__ = ("entries", "finish", "gone", "name", "tag")

    def __init__(self, name: F) -> None:
        self.name = name
        self.entries: deque[Entry[F, T]] = deque()
        self.finish = 0.0
        self.gone = 0
        # What stands for it in the heap, once at most.
        self.tag: Place | None = None

    def first(self) -> Entry[F, T] | None:
        """Drop what has left from the front; return what is first then."""
        entries = self.entries
        while entries and entries[0].item is None:
            entries.popleft()
            self.gone -= 1
        return entries[0] if entries else None

    def compact(self) -> None:
        """Drop all that has left, once it is the greater part: amortised constant time and space for each."""
        if self.gone > len(self.entries) // 2 + _FEW:
            self.entries = deque(entry for entry in self.entries if entry.item is not None)
            self.gone = 0


class FairQueue(Generic[F, T]):
    """Serves flows by weight, each first in, first out.

    Example:
        >>> queue = FairQueue[str, str]()
        >>> backlog = [queue.push(f"batch {number}", flow="batch", weight=1, cost=100) for number in range(3)]
        >>> queue.pop().place.start
        0.0
        >>> urgent = queue.push("urgent", flow="interactive", weight=16, cost=100)
        >>> queue.first().item
        'urgent'
    """

    __slots__ = ("_flows", "_heap", "_idle", "_length", "_numbers", "_virtual")

    def __init__(self) -> None:
        self._flows: dict[F, _Flow[F, T]] = {}
        # The number in the middle decides between a place given here and an equal one that another queue has given.
        self._heap: list[tuple[Place, int, _Flow[F, T] | Entry[F, T]]] = []
        self._idle: list[tuple[float, int, _Flow[F, T]]] = []
        self._numbers = itertools.count()
        self._virtual = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"<FairQueue {self._length} waiting, {len(self._flows)} flows>"

    def lengths(self) -> dict[F, int]:
        """Return how many wait, by flow; those that were put back to their place are not counted."""
        return {name: count for name, flow in self._flows.items() if (count := len(flow.entries) - flow.gone)}

    def push(self, item: T, *, flow: F, weight: float, cost: float) -> Entry[F, T]:
        """Put `item` at the end of its flow.

        Args:
            item: What waits.
            flow: Names the flow.
            weight: Its share, more than 0.
            cost: What serving it takes, more than 0, in any unit that all flows share.
        """
        found = self._flows.get(flow)
        if found is None:
            found = self._flows[flow] = _Flow(flow)
        entry = Entry(item, next(self._numbers), found, weight, cost)
        found.entries.append(entry)
        self._length += 1
        if found.tag is None:
            self._tag(found, max(self._virtual, found.finish), entry)
        return entry

    def pass_by(self) -> Place:
        """Return the place of an item that is served without waiting, because nothing waits."""
        return Place(self._virtual, next(self._numbers))

    def put_back(self, item: T, place: Place) -> Entry[F, T]:
        """Put `item` back to where it was served before; it is not charged again."""
        entry = Entry[F, T](item, place.number, None, 1.0, 0.0)
        heapq.heappush(self._heap, (place, next(self._numbers), entry))
        self._length += 1
        return entry

    def first(self) -> Entry[F, T] | None:
        """Return what is served next; `None` if nothing waits."""
        heap = self._heap
        while heap:
            place, _, found = heap[0]
            if isinstance(found, Entry):
                if found.item is not None:
                    return found
                heapq.heappop(heap)
                continue
            entry = found.first()
            if entry is not None and entry.number == place.number:
                return entry
            heapq.heappop(heap)
            self._retag(found, place.start)
        return None

    def pop(self) -> Entry[F, T]:
        """Serve what is next.

        Raises:
            IndexError: Nothing waits.
        """
        entry = self.first()
        if entry is None:
            raise IndexError("nothing waits")
        entry.place = heapq.heappop(self._heap)[0]
        entry.item = None
        self._length -= 1
        flow = entry.flow
        if flow is not None:
            self._virtual = max(self._virtual, entry.place.start)
            flow.finish = entry.place.start + entry.cost / entry.weight
            flow.entries.popleft()
            self._retag(flow, flow.finish)
        self._forget_idle()
        return entry

    def leave(self, entry: Entry[F, T]) -> None:
        """Take an item out unserved, from wherever it stands."""
        if entry.item is None:
            return
        entry.item = None
        self._length -= 1
        flow = entry.flow
        if flow is not None:
            flow.gone += 1
            flow.compact()
        self._forget_idle()

    def _tag(self, flow: _Flow[F, T], start: float, entry: Entry[F, T]) -> None:
        flow.tag = Place(start, entry.number)
        heapq.heappush(self._heap, (flow.tag, next(self._numbers), flow))

    def _retag(self, flow: _Flow[F, T], start: float) -> None:
        """Let the flow's next item stand for it, or note that it is idle."""
        entry = flow.first()
        if entry is not None:
            self._tag(flow, start, entry)
            return
        flow.tag = None
        heapq.heappush(self._idle, (flow.finish, next(self._numbers), flow))

    def _forget_idle(self) -> None:
        """Forget flows that are idle and owe nothing; when nothing waits at all, nobody owes anything."""
        if not self._length:
            # The virtual time goes on from the last finish, so that places given before still come first.
            self._virtual = max([self._virtual, *(flow.finish for flow in self._flows.values())])
            self._flows.clear()
            self._heap.clear()
            self._idle.clear()
            return
        idle = self._idle
        while idle and idle[0][0] <= self._virtual:
            flow = heapq.heappop(idle)[2]
            if flow.tag is None and flow.finish <= self._virtual and self._flows.get(flow.name) is flow:
                del self._flows[flow.name]
