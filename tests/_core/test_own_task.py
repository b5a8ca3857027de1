from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest

from penstock._core.own_task import HandOver, OwnTask


async def turns(count: int = 5) -> None:
    """Let everybody else run."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


class TestOwnTask:
    async def test_it_runs_beside_whoever_began_it(self) -> None:
        """Until its own end, which others can wait for; its error is theirs then."""
        done: list[str] = []

        async def work() -> None:
            await turns()
            done.append("work")
            raise OSError("its own")

        task = OwnTask("example")
        assert (task.begun, repr(task)) == (False, "<OwnTask example, not begun>")
        await task.ended()
        task.cancel()
        task.begin(work)
        assert (task.begun, repr(task), done) == (True, "<OwnTask example, running>", [])
        with pytest.raises(OSError, match="its own"):
            await task.ended()
        assert (repr(task), done) == ("<OwnTask example, ended>", ["work"])

    @pytest.mark.parametrize("by", ["task", "scope"])
    async def test_a_wait_for_its_end_is_not_cut_short(self, by: str) -> None:
        """Whoever is cancelled meanwhile is cancelled afterwards."""
        events: list[str] = []

        async def work() -> None:
            await anyio.sleep(0.02)
            events.append("ended")

        task = OwnTask("example")
        task.begin(work)

        async def wait() -> None:
            try:
                await task.ended()
                await anyio.lowlevel.checkpoint()
            finally:
                events.append("waited")

        if by == "scope":
            with anyio.CancelScope() as scope:
                scope.cancel()
                await wait()
        else:
            waiting = asyncio.get_running_loop().create_task(wait())
            await turns()
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
        assert events == ["ended", "waited"]

    async def test_one_that_is_cancelled_ends_quietly(self) -> None:
        """That is no error of those who wait for it."""
        task = OwnTask("example")
        task.begin(lambda: anyio.sleep(60))
        await turns()
        task.cancel()
        await task.ended()


class TestHandOver:
    async def test_each_thing_comes_once_in_order_and_then_the_end(self) -> None:
        """What was given before the end can still be taken."""
        things: HandOver[int] = HandOver()
        for thing in range(3):
            things.give(thing)
        things.close()
        assert (len(things), repr(things)) == (3, "<HandOver 3 given, closed>")
        assert [await things.take() for _ in range(3)] == [0, 1, 2]
        with pytest.raises(EOFError):
            await things.take()
        things.give(4)
        things.clear()
        assert repr(things) == "<HandOver 0 given, closed>"

    async def test_who_is_told_and_cancelled_passes_it_on(self) -> None:
        """Another one who waits is given the thing, and does not wait for ever."""
        things: HandOver[str] = HandOver()
        loop = asyncio.get_running_loop()
        first, second = loop.create_task(things.take()), loop.create_task(things.take())
        await turns()
        things.give("a thing")
        first.cancel()
        with anyio.fail_after(1):
            assert await second == "a thing"
        assert first.cancelled()

    async def test_who_gives_up_is_not_told(self) -> None:
        """The next one is."""
        things: HandOver[str] = HandOver()
        loop = asyncio.get_running_loop()
        first, second = loop.create_task(things.take()), loop.create_task(things.take())
        await turns()
        first.cancel()
        things.give("a thing")
        with anyio.fail_after(1):
            assert await second == "a thing"
        waiting = loop.create_task(things.take())
        await turns()
        waiting.cancel()
        await turns()
        things.give("another")
        assert await things.take() == "another"

    async def test_all_who_wait_hear_of_the_end(self) -> None:
        """None is left waiting."""
        things: HandOver[str] = HandOver()
        waiting = [asyncio.get_running_loop().create_task(things.take()) for _ in range(3)]
        await turns()
        things.close()
        with anyio.fail_after(1):
            await asyncio.wait(waiting)
        assert [type(task.exception()) for task in waiting] == [EOFError] * 3
