"""One request being answered: everything was decided when it arrived; what is left is to wait and to send.

A front end waits `delay_s`, calls `begin`, sends status and headers, then takes the `steps` in turn (wait, `produce`,
send), and calls `close` in the end, whatever happened. `Dropped` means: cut the connection. Nothing here awaits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from penstock.simulator.stream import PING, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from penstock.simulator.faults import Fault
    from penstock.simulator.journal import JournalEntry, Outcome
    from penstock.simulator.statistics import SimulatorStatistics
    from penstock.simulator.wire import Request

__all__ = ["DROP", "HANG", "Answer", "Dropped", "Exchange", "Service", "damaged"]

OK = 200
# Whoever has one of these events knows how it ended: clients needn't read on to the end of the body.
_LAST = frozenset({"message_stop", "error", "bad_json"})
DROP = Step(b"", "drop")
"""Cut the connection."""
HANG = Step(b"", "hang", delay_s=math.inf)
"""Send nothing more, and keep the connection open."""


class Dropped(Exception):
    """The connection is to be cut here."""


class Answer:
    """What is sent: status, headers, and the body's steps.

    Attributes:
        status: HTTP status; None: the connection is cut without an answer.
        headers: asked for when they are sent, because they tell what is left then.
        steps: the body, piece by piece.
        delay_s: time until the headers are sent; infinite: never.
        generated: output tokens generated before the headers, which is all of them for a plain reply.
    """

    __slots__ = ("delay_s", "generated", "headers", "status", "steps")

    def __init__(
        self,
        status: int | None,
        headers: Callable[[], dict[str, str]],
        steps: Iterable[Step] = (),
        *,
        delay_s: float = 0.0,
        generated: int = 0,
    ) -> None:
        self.status = status
        self.headers = headers
        self.steps = steps
        self.delay_s = delay_s
        self.generated = generated


class Exchange:
    """One request, from its arrival until its response is sent, dropped or abandoned.

    Attributes:
        entry: its line in the journal.
        headers: response headers, known once it began.
    """

    __slots__ = ("_answer", "_begun", "_charge", "_delivered", "_now", "_on_close", "entry", "headers")

    def __init__(
        self,
        entry: JournalEntry,
        answer: Answer,
        *,
        now: Callable[[], float],
        charge: Callable[[int], None],
        on_close: Callable[[JournalEntry], None],
    ) -> None:
        self.entry = entry
        self.headers: dict[str, str] = {}
        self._answer = answer
        self._begun = False
        self._delivered = False
        self._now = now
        self._charge = charge
        self._on_close = on_close

    def __repr__(self) -> str:
        return f"Exchange({self.entry!r})"

    @property
    def delay_s(self) -> float:
        """Time until `begin` is due; infinite: never."""
        return self._answer.delay_s

    @property
    def steps(self) -> Iterable[Step]:
        """The body: wait `step.delay_s`, then send what `produce(step)` gives."""
        return self._answer.steps

    def begin(self) -> int:
        """Settle the headers and return the status; raises `Dropped` where there is no answer at all."""
        self._begun = True
        if self._answer.status is None:
            raise Dropped
        if self._answer.generated:
            self._charge(self._answer.generated)
        self.headers = self._answer.headers()
        self.entry.status = self._answer.status
        return self._answer.status

    def produce(self, step: Step) -> bytes:
        """The bytes of one step, which count as generated now; raises `Dropped` where the body breaks off."""
        if step is DROP:
            raise Dropped
        if step.tokens:
            self._charge(step.tokens)
        self._delivered = self._delivered or step.name in _LAST
        return step.data

    def close(self, *, complete: bool) -> None:
        """The end; only the first call counts. `complete`: everything was sent that was to be sent."""
        if self.entry.outcome is not None:
            return
        self.entry.ended_at = self._now()
        if not self._begun:
            self._charge_unfinished(self.entry.ended_at - self.entry.started_at)
        self.entry.outcome = self._outcome(complete=complete)
        self._on_close(self.entry)

    def _charge_unfinished(self, elapsed_s: float) -> None:
        """The client left while a plain reply was generated: what was generated until then counts."""
        if self._answer.generated and self._answer.delay_s > 0:
            self._charge(int(self._answer.generated * min(1.0, elapsed_s / self._answer.delay_s)))

    def _outcome(self, *, complete: bool) -> Outcome:
        if not (complete or self._delivered):
            return "client closed"
        if self.entry.fault is not None:
            return "fault"
        return "complete" if self.entry.status == OK else "refused"


class Service(Protocol):
    """What front ends need of a simulator."""

    def open(self, request: Request) -> Exchange:
        """Decide how `request` is answered."""
        ...

    def statistics(self) -> SimulatorStatistics:
        """Counts since the start."""
        ...

    def journal_after(self, number: int) -> list[JournalEntry]:
        """Later entries of the journal."""
        ...


def damaged(steps: Iterable[Step], fault: Fault, size: int) -> Iterator[Step]:
    """A body as `fault` leaves it; `size` is the number of content deltas in it."""
    half = fault.number("after_deltas", max(1, size // 2))
    match fault.name:
        case "stream_error_before_content" | "stream_drop_before_content":
            yield from _until_content(steps, 0)
        case "stream_error_after_content" | "stream_drop_after_content" | "stall":
            yield from _until_content(steps, int(half))
        case "truncated":
            yield from _broken_in_content(steps)
        case "pings_only":
            yield from _pings(steps, fault.number("interval_s", 10))
        case "no_message_stop":
            yield from (step for step in steps if step.name not in ("message_delta", "message_stop"))
        case _:
            yield from _with_bad_json(steps)


def _until_content(steps: Iterable[Step], count: int) -> Iterator[Step]:
    for step in steps:
        count -= step.content
        if count < 0:
            return
        yield step


def _broken_in_content(steps: Iterable[Step]) -> Iterator[Step]:
    for step in steps:
        if step.content:
            yield Step(step.data[: len(step.data) // 2], tokens=step.tokens, delay_s=step.delay_s)
            return
        yield step


def _pings(steps: Iterable[Step], interval_s: float) -> Iterator[Step]:
    yield next(iter(steps))
    while True:
        yield Step(PING.data, PING.name, delay_s=interval_s)


def _with_bad_json(steps: Iterable[Step]) -> Iterator[Step]:
    broken = False
    for step in steps:
        if step.content and not broken:
            broken = True
            yield Step(step.data[: len(step.data) // 2] + b"\n\n", "bad_json", tokens=step.tokens, delay_s=step.delay_s)
        else:
            yield step
