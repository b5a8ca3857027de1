"""What a run remembers of its batches, so that another one can go on with them.

The rule here: a batch is noted before it is submitted, with all that belongs to it, and again when its id is known. So
whatever was paid for is found again: what was noted with an id is collected, what was noted without one is looked for.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import anyio

from penstock._core.context import Pin
from penstock.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from penstock.batch.journal import Journal

__all__ = ["Batch", "Ledger", "Mark", "member"]

_KIND: Final = "message_batch"


def member(wire_id: str) -> int:
    """Return what stands for a request in the list of a batch's members."""
    return int.from_bytes(hashlib.blake2b(wire_id.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The newest batch of all when one was about to be submitted; by the API's own clock.

    Attributes:
        id: Its id; `None` if there was none at all.
        created_at: When it was made.
        organization: Who asked, as far as the API tells.
    """

    id: str | None = None
    created_at: datetime | None = None
    organization: str | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class Batch:
    """A batch of this run, or of the one that this one goes on from.

    Attributes:
        number: Counts the batches of a journal, from 1.
        size: Requests in it.
        attempt: How often they have been submitted, this time included.
        mark: From where on to look for it, if its id is lost.
        pin: Whose batch it is.
        id: The API's; `None` until known.
        adopted: Whether its id was found by looking for it, so that its results have yet to prove it.
        members: Its requests by `member`, sorted, where an earlier run submitted it; else empty.
        places: Its requests in the spool.
        answered: How many of its requests the journal answers already.
        complete: Set once nothing more of the input can belong to it.
        submitted_at: Time of the event loop; `None` where an earlier run submitted it.
        stopped: Whether the API was told to stop it.
        settled: How many of its requests this run has read a result of.
    """

    number: int
    size: int
    attempt: int
    mark: Mark
    pin: Pin = field(default_factory=Pin)
    id: str | None = None
    adopted: bool = False
    members: array[int] = field(default_factory=lambda: array("Q"), repr=False)
    places: array[int] = field(default_factory=lambda: array("Q"), repr=False)
    answered: int = 0
    complete: anyio.Event = field(default_factory=anyio.Event, repr=False)
    submitted_at: float | None = None
    stopped: bool = False
    settled: int = 0

    @property
    def accounted(self) -> bool:
        """Whether each of its requests has been met in the input."""
        return self.answered + len(self.places) >= self.size

    def holds(self, key: int) -> bool:
        """Whether a request belongs to it, by `member`."""
        at = bisect_left(self.members, key)
        return at < len(self.members) and self.members[at] == key


class Ledger:
    """The notes of a journal that concern batches.

    Args:
        journal: Where they are; `None` to remember nothing beyond this run.

    Raises:
        JournalError: They make no sense.

    Attributes:
        batches: Those that are not over.
        earlier: Those of earlier runs that were not over when this one began.
        ids: Of all batches that are known to be ours, those that are over included.
    """

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self.batches: dict[int, Batch] = {}
        self.ids: set[str] = set()
        self._last = 0
        if journal is not None:
            try:
                self._restore(journal.notes)
            except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
                reason = "its notes on message batches (the file beside it) are damaged. Use another journal"
                raise JournalError(str(journal.path), reason) from error
        self.earlier = tuple(self.batches.values())

    def __repr__(self) -> str:
        return f"<Ledger of {len(self.batches)} batches under way, {self._last} in all>"

    def _restore(self, notes: Iterable[Mapping[str, Any]]) -> None:
        for note in notes:
            if note.get(_KIND) is not None:
                self._take(note)
        for batch in self.batches.values():
            batch.members = array("Q", sorted(batch.members))

    def _take(self, note: Mapping[str, Any]) -> None:
        number = int(note["number"])
        self._last = max(self._last, number)
        match note[_KIND]:
            case "planned":
                self.batches[number] = _planned(number, note)
            case "made":
                self.ids.add(note["id"])
                batch = self.batches[number]
                batch.id, batch.adopted = note["id"], note["adopted"]
                batch.pin = Pin(key=note["key"], quota=note["quota"])
            case "stopped":
                self.batches[number].stopped = True
            case "lost":
                self.batches[number].id = None
            case _:
                self.batches.pop(number, None)

    def restored(self, wire_id: str) -> Batch | None:
        """Return the newest batch of an earlier run that a request belongs to."""
        if not self.earlier:
            return None
        key = member(wire_id)
        # A request that was submitted again is in both; what counts is the later one.
        return next((batch for batch in reversed(self.earlier) if batch.holds(key)), None)

    def plan(self, wire_ids: Iterable[str], places: array[int], *, attempt: int, mark: Mark, pin: Pin) -> Batch:
        """Note a batch that is about to be submitted."""
        # Two runs may write one journal at the same time: each of its notes takes a number.
        self._last = max(self._last, 0 if self._journal is None else len(self._journal.notes)) + 1
        batch = Batch(number=self._last, size=len(places), attempt=attempt, mark=mark, pin=pin, places=places)
        batch.complete.set()
        self.batches[batch.number] = batch
        if self._journal is not None:
            self._note(
                batch,
                "planned",
                attempt=attempt,
                key=pin.key,
                quota=pin.quota,
                after=mark.id,
                after_at=None if mark.created_at is None else mark.created_at.isoformat(),
                organization=mark.organization,
                members=_written(array("Q", map(member, wire_ids))),
            )
        return batch

    def made(self, batch: Batch, identity: str, *, adopted: bool = False) -> None:
        """Note the id of a batch."""
        batch.id, batch.adopted = identity, adopted
        self.ids.add(identity)
        self._note(batch, "made", id=identity, key=batch.pin.key, quota=batch.pin.quota, adopted=adopted)

    def stopped(self, batch: Batch) -> None:
        """Note that a batch was stopped by us, so that what it hasn't done is still wanted."""
        batch.stopped = True
        self._note(batch, "stopped")

    def lost(self, batch: Batch) -> None:
        """Note that a batch's id turned out to be that of another."""
        batch.id, batch.adopted = None, False
        self._note(batch, "lost")

    def over(self, batch: Batch) -> None:
        """Note that nothing more is expected of a batch."""
        self.batches.pop(batch.number, None)
        self._note(batch, "over")

    def _note(self, batch: Batch, kind: str, **more: object) -> None:
        if self._journal is not None:
            self._journal.note({_KIND: kind, "number": batch.number, **more})


def _planned(number: int, note: Mapping[str, Any]) -> Batch:
    members = _read(note["members"])
    after_at = note["after_at"]
    made_at = None if after_at is None else datetime.fromisoformat(after_at)
    mark = Mark(id=note["after"], created_at=made_at, organization=note["organization"])
    pin = Pin(key=note["key"], quota=note["quota"])
    return Batch(number=number, size=len(members), attempt=note["attempt"], mark=mark, pin=pin, members=members)


def _written(numbers: array[int]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}Q", *numbers)).decode()


def _read(text: str) -> array[int]:
    data = base64.b64decode(text)
    return array("Q", struct.unpack(f"<{len(data) // 8}Q", data))
