"""Who waits for whom in the line, and what a waiter costs.

The rule here: order is counted in admissions, not in seconds. The line's own cost is measured on the line alone: each
waiter is a coroutine that is resumed by hand, so that neither tasks nor the SDK are in the figure.
"""

from __future__ import annotations

import gc
import math
import random
import time
import tracemalloc
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

import penstock
from _spending import MODEL
from penstock._core.secret import Secret
from penstock.guards.admit.keys import KeyPool
from penstock.guards.admit.limits import Cost, Limits
from penstock.guards.admit.line import Claim, Grant, Line
from penstock.guards.admit.slots import Slots
from penstock.simulator import Simulator
from penstock.testing import VirtualLoop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine, Iterable, Iterator

    from penstock.simulator.journal import JournalEntry

__all__ = ["Backlog", "Large", "backlog", "bytes_of_a_waiter", "large", "line_us"]

_VIRTUAL = {"loop_factory": VirtualLoop}
_UNBOUNDED = 1e9
# Admissions in one turn of the event loop, whose own cost is so spread over them.
_AT_ONCE = 20


def _tokens(rng: random.Random, most: int = 2000) -> int:
    """Mixed sizes: most requests are small, a few large."""
    return min(int(rng.lognormvariate(math.log(150), 1.0)) + 5, most)


# Interactive requests that meet a batch backlog


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """What a backlog and interactive requests did to each other.

    Attributes:
        passed: For each interactive request, the requests that were admitted between its arrival and its own admission.
        waits_s: How long each waited to be sent.
        batch_share: Of the input tokens, while both had work waiting.
    """

    passed: list[int]
    waits_s: list[float]
    batch_share: float


def backlog(*, waiting: int, urgent: int, flood: int, seed: int) -> Backlog:
    """Let interactive requests meet a standing backlog, first one now and then, and then a flood of them."""
    return anyio.run(_backlog, waiting, urgent, flood, seed, backend_options=_VIRTUAL)


async def _backlog(waiting: int, urgent: int, flood: int, seed: int) -> Backlog:
    rng = random.Random(seed)
    simulator = Simulator(input_tokens_per_minute=600_000, burst_s=6, latency_s=0.5, seed=seed)
    arrivals: dict[str, tuple[int, float]] = {}

    async def ask(claude: penstock.Client, mark: str) -> None:
        if mark.startswith("urgent"):
            arrivals[mark] = simulator.statistics().requests, anyio.current_time()
        messages: Any = [{"role": "user", "content": f"{mark} {'word' * _tokens(rng)}"}]
        with penstock.labels(priority="batch" if mark == "batch" else "interactive"):
            await claude.messages.create(model=MODEL, max_tokens=100, messages=messages)

    async with (
        simulator.client() as sdk,
        penstock.Client(sdk=sdk, log=False, concurrency=512, deadline_s=1e6) as claude,
        anyio.create_task_group() as group,
    ):
        for _ in range(waiting):
            group.start_soon(ask, claude, "batch")
        await anyio.sleep(10)
        for number in range(urgent):
            group.start_soon(ask, claude, f"urgent-{number}")
            await anyio.sleep(rng.expovariate(2.0))
        for _ in range(flood):
            group.start_soon(ask, claude, "flood")
        await anyio.sleep(0.5)
        began = simulator.statistics().requests
        ended = began
        while len({priority for flows in _waiting(claude) for priority, _ in flows}) > 1:
            ended = simulator.statistics().requests
            await anyio.sleep(0.1)
        group.cancel_scope.cancel()
    served = {_mark(entry): entry for entry in simulator.journal if entry.status == 200}
    both = [entry for entry in simulator.journal if began < entry.number <= ended and entry.status == 200]
    batch = sum(entry.input_tokens for entry in both if _mark(entry) == "batch")
    return Backlog(
        passed=[served[mark].number - before - 1 for mark, (before, _) in arrivals.items()],
        waits_s=[served[mark].started_at - at for mark, (_, at) in arrivals.items()],
        batch_share=batch / sum(entry.input_tokens for entry in both),
    )


def _waiting(claude: penstock.Client) -> list[Any]:
    return [list(flows) for flows in claude.statistics().admission.waiting_by.values()]


def _mark(entry: JournalEntry) -> str:
    body: Any = entry.body
    return str(body["messages"][0]["content"]).partition(" ")[0]


# The largest request among many


@dataclass(frozen=True, kw_only=True)
class Large:
    """How the largest request fared.

    Attributes:
        share_s: After so long a service shared token by token, and first in, first out within a tenant, would have
            served all of it.
        waited_s: Until it was admitted.
    """

    share_s: float
    waited_s: float


def large(*, waiting: int, tenants: int, seed: int) -> Large:
    """Put a request that takes two thirds of the bucket in the middle of a line of small ones."""
    return anyio.run(_large, waiting, tenants, seed, backend_options=_VIRTUAL)


async def _large(waiting: int, tenants: int, seed: int) -> Large:
    rng, per_minute, largest = random.Random(seed), 30_000, 20_000
    line = _line(Limits(input_tokens_per_minute=per_minute), slots=waiting + 1, keys=1)
    before, waited_s, admitted = 0, math.inf, anyio.Event()

    async def enter(tenant: str, tokens: int) -> None:
        nonlocal waited_s
        grant = await line.enter(Claim(model_class=MODEL, cost=Cost(1, tokens, 0), tenant=tenant))
        if tokens == largest:
            waited_s = grant.queued_s
            admitted.set()
        grant.allowance.settle(grant.cost, grant.cost)
        line.leave(grant)
        line.wake()

    # What was in the bucket at the start is no part of anybody's share.
    await enter("first", per_minute)
    async with anyio.create_task_group() as group:
        for number in range(waiting):
            tokens = largest if number == waiting // 2 else _tokens(rng)
            before += tokens if number <= waiting // 2 else 0
            group.start_soon(enter, "large" if tenants > 1 and tokens == largest else str(number % tenants), tokens)
        await admitted.wait()
        group.cancel_scope.cancel()
    share = before if tenants == 1 else (tenants + 1) * largest
    return Large(share_s=share / (per_minute / 60), waited_s=waited_s)


# What a waiter costs


def line_us(*, waiting: int, tenants: int, admissions: int) -> float:
    """Return the CPU that one admission takes of a line where so many wait: to come, be let in, and leave."""
    return anyio.run(_line_us, waiting, tenants, admissions)


def bytes_of_a_waiter(*, waiting: int, tenants: int) -> float:
    """Return the memory that one waiter takes."""
    return anyio.run(_bytes_of_a_waiter, waiting, tenants)


async def _line_us(waiting: int, tenants: int, admissions: int) -> float:
    # Made beforehand: what a request costs, and for whom it is, is known when it comes.
    standing = _Standing(waiting, list(islice(_claims(tenants), waiting + admissions + 2 * _AT_ONCE)))
    await standing.turn()
    gc.collect()
    gc.freeze()
    turns = admissions // _AT_ONCE
    before = time.process_time()
    for _ in range(turns):
        await standing.turn()
    used = time.process_time() - before
    gc.unfreeze()
    standing.end()
    return used * 1e6 / (turns * _AT_ONCE)


async def _bytes_of_a_waiter(waiting: int, tenants: int) -> float:
    standing = _Standing(0, _claims(tenants))
    gc.collect()
    tracemalloc.start()
    for _ in range(waiting):
        standing.enter()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    standing.end()
    return taken / waiting


def _claims(tenants: int) -> Iterator[Claim]:
    rng = random.Random(0)
    while True:
        yield Claim(model_class=MODEL, cost=Cost(1, _tokens(rng), 100), tenant=str(rng.randrange(tenants)))


class _Standing:
    """A line in which a certain number always waits: some leave, as many are let in, and as many come."""

    def __init__(self, waiting: int, claims: Iterable[Claim]) -> None:
        self._claims = iter(claims)
        limits = dict.fromkeys(Limits.model_fields, _UNBOUNDED)
        self._line = _line(Limits(**limits), slots=_AT_ONCE, keys=2)
        self._grants: list[Grant] = []
        self._waiters: dict[asyncio.Future[Any], Coroutine[Any, Any, Grant]] = {}
        self._let_in: list[asyncio.Future[Any]] = []
        for _ in range(_AT_ONCE + waiting):
            self.enter()

    def enter(self) -> None:
        """Drive a waiter to its future, where it stays; those for whom there is a slot don't wait."""
        waiter = self._line.enter(next(self._claims))
        try:
            future = waiter.send(None)
        except StopIteration as let_in:
            self._grants.append(let_in.value)
            return
        future.add_done_callback(self._let_in.append)
        self._waiters[future] = waiter

    async def turn(self) -> None:
        """Let those who are in leave, and resume those whom the line lets in."""
        for grant in self._grants:
            grant.allowance.settle(grant.cost, grant.cost)
            self._line.leave(grant)
            self._line.wake()
        self._grants.clear()
        await anyio.lowlevel.checkpoint()
        for future in self._let_in:
            try:
                self._waiters.pop(future).send(None)
            except StopIteration as let_in:
                self._grants.append(let_in.value)
        self._let_in.clear()
        for _ in self._grants:
            self.enter()

    def end(self) -> None:
        """Leave nobody behind."""
        for waiter in self._waiters.values():
            waiter.close()


def _line(limits: Limits, *, slots: int, keys: int) -> Line:
    secrets = [Secret(f"sk-{number}") for number in range(keys)]
    pool = KeyPool(secrets, configured=lambda _: limits, balance="headroom", rng=random.Random(0))
    return Line(pool, Slots(slots))
