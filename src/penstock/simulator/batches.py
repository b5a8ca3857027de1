"""Message batches as the simulated API keeps them: requests, states, and what becomes of each request.

The rule here: nothing runs in the background. What has happened to a batch by now follows from the clock, its options
and one seeded generator; it is settled when somebody looks, and never changes afterwards.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from penstock.simulator.clock import rfc3339
from penstock.simulator.wire import ApiError, Json, identifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from penstock.simulator.clock import Clock
    from penstock.simulator.script import ScriptedReply

__all__ = ["Batch", "BatchOptions", "Batches", "Item", "Judge"]

Outcome = Literal["succeeded", "errored", "canceled", "expired"]
Judge: TypeAlias = "Callable[[Json], ScriptedReply | None]"
"""Raises the `ApiError` that makes a request `errored`, or gives the reply that a script holds for it."""

_OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
_FAILURES = (("overloaded_error", "Overloaded"), ("api_error", "Internal server error"))


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOptions:
    """How batches go; seconds are those of the event loop.

    Attributes:
        duration_s: Time in which the requests of a batch are processed, one after the other, 0 or more.
        errored: Probability for each request of a failure of the service, 0 to 1.
        expired: Probability for each request that it is never processed, so that it expires, 0 to 1.
        lifetime_s: Time after which what is not processed expires, above 0.
        cancel_s: Time from a cancellation until the batch has ended, 0 or more.
        kept_s: Time since the creation for which results are kept, above 0.

    Raises:
        ValueError: One is out of its range.

    Example:
        >>> from penstock.simulator import BatchOptions
        >>> BatchOptions(errored=0.01).lifetime_s
        86400.0
    """

    duration_s: float = 60.0
    errored: float = 0.0
    expired: float = 0.0
    lifetime_s: float = 86_400.0
    cancel_s: float = 5.0
    kept_s: float = 29 * 86_400.0

    def __post_init__(self) -> None:
        for name in ("duration_s", "cancel_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a finite number of seconds, 0 or more, not {getattr(self, name)!r}")
        for name in ("lifetime_s", "kept_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a finite number of seconds above 0, not {getattr(self, name)!r}")
        if not (self.errored >= 0 and self.expired >= 0 and self.errored + self.expired <= 1):
            raise ValueError("errored and expired must be probabilities that add up to at most 1")


@dataclass(kw_only=True, slots=True)
class Item:
    """One request of a batch.

    Attributes:
        custom_id: As given.
        params: As given.
        processed_s: Seconds from the creation until it is processed; infinite: never.
        failure: `error.type` and message of the failure drawn for it.
        salt: Makes ids for it.
        outcome: None until the batch has ended.
        error: What it was refused with, or failed with.
        scripted: The reply that a script holds for it.
    """

    custom_id: str
    params: Json = field(repr=False)
    processed_s: float
    failure: tuple[str, str] | None
    salt: str
    outcome: Outcome | None = None
    error: ApiError | None = None
    scripted: ScriptedReply | None = field(default=None, repr=False)

    def settle(self, judge: Judge) -> None:
        """Process it."""
        if self.failure is not None:
            self.outcome, self.error = "errored", ApiError(500, *self.failure)
            return
        try:
            self.scripted = judge(self.params)
        except ApiError as error:
            self.outcome, self.error = "errored", error
        else:
            self.outcome = "succeeded"


class Batch:
    """A batch, as it stands at whatever moment it is looked at."""

    __slots__ = (
        "_items",
        "_judge",
        "_last_s",
        "_options",
        "_rng",
        "cancelled_at",
        "counts",
        "created_at",
        "id",
        "size",
    )

    def __init__(
        self,
        requests: list[Json],
        judge: Judge,
        *,
        options: BatchOptions,
        identity: str,
        rng: random.Random,
        now: float,
    ) -> None:
        self.id = identity
        self.created_at = now
        self.cancelled_at: float | None = None
        self.size = len(requests)
        self.counts: dict[Outcome, int] | None = None
        self._judge = judge
        self._options = options
        self._rng = rng
        self._items = list(self._drawn(requests))
        self._last_s = max(item.processed_s for item in self._items)

    def __repr__(self) -> str:
        return f"Batch({self.id}, {self.size} requests, {self.counts or 'in progress'})"

    def _drawn(self, requests: list[Json]) -> Iterator[Item]:
        """Two numbers are drawn for each request, so that a seed fixes all of them."""
        turns = self._rng.sample(range(self.size), self.size)
        step_s = self._options.duration_s / self.size
        for request, turn in zip(requests, turns, strict=True):
            chance, failure = self._rng.random(), self._rng.choice(_FAILURES)
            stuck = self._options.errored <= chance < self._options.errored + self._options.expired
            yield Item(
                custom_id=request["custom_id"],
                params=request["params"],
                processed_s=math.inf if stuck else step_s * (turn + 1),
                failure=failure if chance < self._options.errored else None,
                salt=f"{self.id}-{turn}",
            )

    @property
    def ends_at(self) -> float:
        """When it has ended, as things stand."""
        end = self.created_at + min(self._last_s, self._options.lifetime_s)
        return end if self.cancelled_at is None else min(end, self.cancelled_at + self._options.cancel_s)

    def ended(self, now: float) -> bool:
        """Whether it has ended; if so, everything about it is settled."""
        if self.counts is None and now >= self.ends_at:
            self._settle()
        return self.counts is not None

    def _settle(self) -> None:
        last_s = self._options.lifetime_s if self.cancelled_at is None else self.cancelled_at - self.created_at
        for item in self._items:
            if item.processed_s <= last_s:
                item.settle(self._judge)
            else:
                item.outcome = "expired" if self.cancelled_at is None else "canceled"
        self.counts = dict.fromkeys(_OUTCOMES, 0)
        for item in self._items:
            self.counts[cast("Outcome", item.outcome)] += 1
        # Results come in another order than requests.
        self._rng.shuffle(self._items)

    def cancel(self, now: float) -> None:
        """Stop it; what is processed by now stays so."""
        if self.ended(now):
            raise ApiError(400, "invalid_request_error", f"{self.id} has ended and can't be canceled.")
        if self.cancelled_at is None:
            self.cancelled_at = now

    def archived(self, now: float) -> bool:
        """Whether its results are gone."""
        gone = now >= self.created_at + self._options.kept_s
        if gone and self.counts is not None:
            self._items.clear()
        return gone

    def results(self, now: float) -> list[Item]:
        """Its requests with what became of them; raises the API's error where there is nothing to give."""
        if not self.ended(now):
            raise ApiError(404, "not_found_error", f"{self.id} has no results yet.")
        if self.archived(now):
            raise ApiError(404, "not_found_error", f"The results of {self.id} are no longer available.")
        return self._items

    def describe(self, now: float, clock: Clock, base_url: str) -> Json:
        """The `MessageBatch` object."""
        ended, archived = self.ended(now), self.archived(now)

        def moment(at: float | None) -> str | None:
            return None if at is None else rfc3339(clock.wall(at))

        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress" if self.cancelled_at is None else "canceling",
            "request_counts": {
                "processing": 0 if ended else self.size,
                **(self.counts or dict.fromkeys(_OUTCOMES, 0)),
            },
            "created_at": moment(self.created_at),
            "expires_at": moment(self.created_at + self._options.lifetime_s),
            "ended_at": moment(self.ends_at if ended else None),
            "cancel_initiated_at": moment(self.cancelled_at),
            "archived_at": moment(self.created_at + self._options.kept_s if archived else None),
            "results_url": f"{base_url}/{self.id}/results" if ended and not archived else None,
        }


class Batches:
    """The batches of every organization, newest last.

    Attributes:
        options: Of batches that are made from now on.
    """

    __slots__ = ("_made", "_of", "_seed", "options")

    def __init__(self, options: BatchOptions, seed: int) -> None:
        self.options = options
        self._seed = seed
        self._made = 0
        self._of: dict[str, dict[str, Batch]] = {}

    def __repr__(self) -> str:
        return f"Batches({sum(map(len, self._of.values()))} of {self._made})"

    def add(self, organization: str, requests: list[Json], judge: Judge, now: float) -> Batch:
        """Make a batch."""
        self._made += 1
        salt = f"{self._seed}-{self._made}"
        batch = Batch(
            requests,
            judge,
            options=self.options,
            identity=identifier("msgbatch", salt),
            rng=random.Random(salt),
            now=now,
        )
        self._of.setdefault(organization, {})[batch.id] = batch
        return batch

    def find(self, organization: str, identity: str) -> Batch:
        """The organization's own batch called so."""
        found = self._of.get(organization, {}).get(identity)
        if found is None:
            raise ApiError(404, "not_found_error", f"Message batch {identity} not found.")
        return found

    def delete(self, organization: str, identity: str, now: float) -> Json:
        """Forget a batch that has ended."""
        if not self.find(organization, identity).ended(now):
            raise ApiError(400, "invalid_request_error", f"{identity} is in progress; cancel it before deleting it.")
        del self._of[organization][identity]
        return {"id": identity, "type": "message_batch_deleted"}

    def page(
        self, organization: str, *, limit: int, after_id: str | None, before_id: str | None
    ) -> tuple[list[Batch], bool]:
        """Newest first: at most `limit` batches after or before another, and whether there are more."""
        batches = list(reversed(self._of.get(organization, {}).values()))
        start, end = 0, len(batches)
        if after_id is not None:
            start = batches.index(self.find(organization, after_id)) + 1
        if before_id is not None:
            end = batches.index(self.find(organization, before_id))
            start = max(start, end - limit)
            return batches[start:end], start > 0
        return batches[start : start + limit], start + limit < end
