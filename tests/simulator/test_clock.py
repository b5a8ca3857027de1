from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio

from penstock.simulator.clock import Clock, rfc3339

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime


async def test_wall_time_moves_with_the_loop(virtual_time: VirtualTime) -> None:
    """A virtual day later, headers name the next day."""
    clock = Clock()
    before = clock.wall(clock.now())
    assert abs(before - datetime.now(UTC)) < timedelta(seconds=5)
    await anyio.sleep(86_400)
    assert timedelta(days=1) <= clock.wall(clock.now()) - before < timedelta(days=1, seconds=1)


def test_outside_a_loop_time_stands_still() -> None:
    """Without a loop there is the last reading, and a wall clock all the same."""
    clock = Clock()
    assert clock.now() == 0

    async def read() -> float:
        return clock.now()

    inside = anyio.run(read)
    assert clock.now() == inside > 0
    assert f"{inside:.6f}" in repr(clock)


def test_times_are_rounded_up_to_the_second() -> None:
    """A reset is never announced too early."""
    assert rfc3339(datetime(2026, 11, 20, 12, 40, 59, tzinfo=UTC)) == "2026-11-20T12:40:59Z"
    assert rfc3339(datetime(2026, 11, 20, 12, 40, 59, 1, tzinfo=UTC)) == "2026-11-20T12:41:00Z"
