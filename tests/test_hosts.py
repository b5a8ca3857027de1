"""Runs in hosts that are not ours: waits that are given up, generators that are left, other event loops.

Each test tries fan-outs in both orders, message batches and the tool loop, in the event loop of asyncio, with eager
tasks, and in uvloop where there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import sys
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest

from penstock import Client, FanOutResult
from penstock.simulator import BatchOptions, Simulator
from penstock.testing import cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from penstock.testing import Cancelled
    from penstock.testing.cancellation import How

MODEL: dict[str, Any] = {"model": "claude-haiku-5-5", "max_tokens": 50}
HOWS: tuple[How, ...] = ("waiting", "done", "repeatedly")


# Loops


def eager() -> asyncio.AbstractEventLoop:
    """A loop that runs a task at once, until it first waits."""
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    return loop


def uvloop() -> asyncio.AbstractEventLoop:
    """A loop written in C."""
    loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    return loop


# Between two edits the first one will do.
LOOPS = [
    pytest.param(asyncio.new_event_loop, id="asyncio"),
    pytest.param(
        eager,
        id="eager",
        marks=[
            pytest.mark.lengthy,
            pytest.mark.skipif(sys.version_info < (3, 12), reason="new in Python 3.12"),
        ],
    ),
    pytest.param(
        uvloop,
        id="uvloop",
        marks=[
            pytest.mark.lengthy,
            pytest.mark.skipif(not importlib.util.find_spec("uvloop"), reason="not installed"),
        ],
    ),
]


def run(main: Callable[[], Coroutine[Any, Any, None]], loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Run it, and see that the loop has nothing to complain of."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(20):
            await main()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(watched())
    assert complaints == []


# Runs


Opened: TypeAlias = tuple[Client, Simulator]


@dataclass(frozen=True)
class Kind:
    """One of the things that are entered and iterated over."""

    name: str

    def of(self, opened: Opened, requests: Any, **options: Any) -> AbstractAsyncContextManager[Any]:
        """Make it."""
        claude, simulator = opened
        if self.name == "batch":
            return claude.batch(requests, poll_s=0.005, **MODEL, **options)
        if self.name == "tool_loop":
            for city in "abc":
                simulator.reply({"type": "tool_use", "name": "look", "input": {"city": city}})
            simulator.reply("There is nothing to see.")
            return self._tool_loop(claude)
        order: Any = self.name
        return claude.fan_out(requests, order=order, concurrency=3, **MODEL, **options)

    def _tool_loop(self, claude: Client) -> AbstractAsyncContextManager[Any]:
        async def look(city: str) -> str:
            """Look."""
            await anyio.sleep(0.001)
            return city

        return claude.tool_loop("Look around", tools=[look], max_iterations=9, **MODEL)

    def key(self, thing: Any) -> Any:
        """What tells things apart."""
        return thing.custom_id if isinstance(thing, FanOutResult) else thing


FAN_OUTS = [Kind("completed"), Kind("input")]
RUNS = [*FAN_OUTS, Kind("batch")]
ALL = [*RUNS, Kind("tool_loop")]


def named(kind: Kind) -> str:
    """For the names of tests."""
    return kind.name


@asynccontextmanager
async def opened(latency_s: float = 0.003) -> AsyncGenerator[Opened]:
    """A client of a simulator; nothing of ours may be left but the client's own task, and no request."""
    simulator = Simulator(latency_s=latency_s, batch=BatchOptions(duration_s=0.01))
    before = asyncio.all_tasks()
    async with Client(sdk=simulator.client(), log=False) as claude:
        with_client = asyncio.all_tasks()
        yield claude, simulator
        left: set[asyncio.Task[Any]] = set()
        for _ in range(100):
            left = {task for task in asyncio.all_tasks() - with_client if "penstock" in task.get_name()}
            if not left:
                break
            await asyncio.sleep(0.005)
        assert not left
        assert claude.statistics().calls.in_flight == 0
    assert not {task for task in asyncio.all_tasks() - before if "penstock" in task.get_name()}


async def everything(results: AsyncIterator[Any], kind: Kind) -> list[Any]:
    """Take what is left."""
    return [kind.key(result) async for result in results]


def whole(things: list[Any], kind: Kind, size: int = 12) -> bool:
    """Whether each thing came once, and in order where there is one."""
    if kind.name == "tool_loop":
        return [type(thing).__name__ for thing in things].count("ToolFinished") == 3
    assert sorted(things, key=int) == [str(number) for number in range(size)]
    return kind.name != "input" or things == [str(number) for number in range(size)]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ALL, ids=named)
class TestWaits:
    """A wait that is given up loses nothing; the next one is given what there is."""

    @pytest.mark.lengthy
    def test_wait_for(self, kind: Kind, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        """By `asyncio.wait_for`, again and again."""

        async def main() -> None:
            things: list[Any] = []
            async with opened() as our, kind.of(our, ["x"] * 12) as results:
                given_up = 0
                while True:
                    try:
                        things.append(kind.key(await asyncio.wait_for(anext(results), 0.0005)))
                    except TimeoutError:
                        given_up += 1
                    except StopAsyncIteration:
                        break
            assert given_up
            assert whole(things, kind)

        run(main, loop)

    @pytest.mark.lengthy
    @pytest.mark.parametrize("how", ["timeout", "move_on_after", "fail_after", "cancel"])
    def test_other_ways(self, kind: Kind, loop: Callable[[], asyncio.AbstractEventLoop], how: str) -> None:
        """By every other means to give up a wait."""

        async def wait(results: Any, things: list[Any]) -> None:
            if how == "timeout":
                async with asyncio.timeout(0.0005):
                    things.append(await anext(results))
            elif how == "cancel":
                task = asyncio.ensure_future(anext(results))
                await asyncio.sleep(0.0005)
                task.cancel()
                things.append(await task)
            else:
                with (anyio.move_on_after if how == "move_on_after" else anyio.fail_after)(0.0005):
                    things.append(await anext(results))

        async def main() -> None:
            things: list[Any] = []
            async with opened() as our, kind.of(our, ["x"] * 12) as results:
                while True:
                    try:
                        await wait(results, things)
                    except (TimeoutError, asyncio.CancelledError):
                        pass
                    except StopAsyncIteration:
                        break
            assert whole([kind.key(thing) for thing in things], kind)

        run(main, loop)

    @pytest.mark.lengthy
    def test_several_who_wait(self, kind: Kind, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        """Tasks that take turns, one of which is cancelled while it waits."""

        async def take(results: Any, things: list[Any]) -> None:
            async for result in results:
                things.append(kind.key(result))  # noqa: PERF401 - what was taken before the end counts

        async def main() -> None:
            things: list[Any] = []
            async with opened() as our, kind.of(our, ["x"] * 12) as results:
                tasks = [asyncio.ensure_future(take(results, things)) for _ in range(3)]
                await asyncio.sleep(0.002)
                tasks[0].cancel()
                await asyncio.wait(tasks)
            assert whole(sorted(things, key=int) if kind.name == "input" else things, kind)

        run(main, loop)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ALL, ids=named)
class TestLeft:
    """Who leaves, wherever and however, leaves nothing behind, and nobody else is cancelled."""

    @pytest.mark.lengthy
    def test_in_a_generator_that_is_dropped(self, kind: Kind, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        """The loop closes it in a task of its own; the caller goes on as if nothing were."""

        async def main() -> None:
            async with opened() as our:

                async def results_of() -> AsyncGenerator[Any]:
                    async with kind.of(our, ["x"] * 12) as results:
                        async for result in results:
                            yield result

                async for _ in results_of():
                    break
                gc.collect()
                for _ in range(50):
                    await asyncio.sleep(0)
                    await anyio.lowlevel.checkpoint()
                async with asyncio.timeout(1):
                    await asyncio.sleep(0.001)

        run(main, loop)

    def test_in_a_generator_that_is_closed(self, kind: Kind, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        """When `aclose` returns, nothing of the run is left."""

        async def main() -> None:
            async with opened(latency_s=0.02) as our:

                async def results_of() -> AsyncGenerator[Any]:
                    async with kind.of(our, ["x"] * 12) as results:
                        async for result in results:
                            yield result

                async with aclosing(results_of()) as results:
                    await anext(results)
                assert not [task for task in asyncio.all_tasks() if task.get_name() in OURS]

        run(main, loop)

    @pytest.mark.lengthy
    def test_in_another_task_than_entered(self, kind: Kind, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        """As dependencies of a web framework are."""

        async def main() -> None:
            async with opened() as our:
                results: Any = kind.of(our, ["x"] * 12)
                await asyncio.create_task(results.__aenter__())
                things = await asyncio.create_task(everything(results, kind))
                await asyncio.create_task(results.__aexit__(None, None, None))
                assert whole(things, kind)

        run(main, loop)

    @pytest.mark.lengthy
    @pytest.mark.parametrize("how", HOWS)
    def test_cancelled_anywhere(self, kind: Kind, loop: Callable[[], asyncio.AbstractEventLoop], how: How) -> None:
        """At every await of the caller's."""

        async def main() -> None:
            async def scenario(cancelled: Cancelled) -> None:
                async with opened(latency_s=0) as our:

                    async def use() -> None:
                        async with kind.of(our, ["x"] * 3) as results:
                            async for _ in results:
                                pass

                    await cancelled(use())

            assert await cancel_at_every_await(scenario, how=how) >= 2

        run(main, loop)


OURS = {"penstock-fan_out", "penstock-batch", "penstock-tool-loop", "penstock-input"}


async def with_a_group() -> AsyncGenerator[str]:
    """Hold a task group open while items are given."""
    send, receive = anyio.create_memory_object_stream[str](2)

    async def produce() -> None:
        with send:
            for number in range(12):
                await send.send(f"item {number}")

    async with anyio.create_task_group() as group:
        group.start_soon(produce)
        async with receive:
            async for item in receive:
                yield item


async def with_a_time_out() -> AsyncGenerator[str]:
    """Hold a time-out open while items are given."""
    with anyio.fail_after(10):
        for number in range(12):
            yield f"item {number}"
            await anyio.lowlevel.checkpoint()


async def with_a_python_time_out() -> AsyncGenerator[str]:
    """The same, as the standard library does it."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for number in range(12):
            await group.create_task(asyncio.sleep(0))
            yield f"item {number}"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", RUNS, ids=named)
class TestInputs:
    """All of the input runs in one task, where nothing else is open, and is closed there."""

    @pytest.mark.lengthy
    @pytest.mark.parametrize("source", [with_a_group, with_a_time_out, with_a_python_time_out])
    @pytest.mark.parametrize("leaves", ["at the end", "early", "by an error"])
    def test_generators_that_hold_something(
        self,
        kind: Kind,
        loop: Callable[[], asyncio.AbstractEventLoop],
        source: Callable[[], AsyncGenerator[str]],
        leaves: str,
    ) -> None:
        """Whether read to the end or left."""

        async def main() -> None:
            async with opened() as our:
                with contextlib.suppress(ZeroDivisionError):
                    async with kind.of(our, source(), **({"batch_size": 2} if kind.name == "batch" else {})) as results:
                        if leaves == "at the end":
                            assert whole(await everything(results, kind), kind)
                            return
                        await anext(results)
                        if leaves == "by an error":
                            raise ZeroDivisionError
                assert not [task for task in asyncio.all_tasks() if task.get_name() in OURS]

        run(main, loop)

    @pytest.mark.lengthy
    @pytest.mark.parametrize("first", RUNS, ids=named)
    def test_two_stages(self, kind: Kind, loop: Callable[[], asyncio.AbstractEventLoop], first: Kind) -> None:
        """The results of one run are the input of the next."""

        async def main() -> None:
            async with opened() as our:

                async def again() -> AsyncGenerator[dict[str, Any]]:
                    async with first.of(our, ["x"] * 12) as results:
                        async for result in results:
                            messages = [{"role": "user", "content": result.message.content[0].text}]
                            yield {"custom_id": result.custom_id, "params": {"messages": messages}}

                async with kind.of(our, again()) as results:
                    things = [result async for result in results]
                assert [result.error for result in things] == [None] * 12
                assert sorted(int(result.custom_id) for result in things) == list(range(12))

        run(main, loop)

    @pytest.mark.lengthy
    @pytest.mark.parametrize("how", ["anyio", "asyncio"])
    def test_a_time_out_of_the_input_s_own(
        self, kind: Kind, loop: Callable[[], asyncio.AbstractEventLoop], how: str
    ) -> None:
        """It is over while the input waits to be asked for more: what was given is answered, and its error is told."""

        async def main() -> None:
            async def limited() -> AsyncGenerator[str]:
                if how == "anyio":
                    with anyio.fail_after(0.03):
                        for number in range(1000):
                            yield f"item {number}"
                async with asyncio.timeout(0.03):
                    for number in range(1000):
                        yield f"item {number}"

            seen: list[Any] = []

            async def take(results: AsyncIterator[Any]) -> None:
                async for result in results:
                    assert result.ok
                    seen.append(result)
                    await asyncio.sleep(0.01)

            batches = {"batch_size": 2} if kind.name == "batch" else {}
            async with opened(latency_s=0.02) as our, kind.of(our, limited(), **batches) as results:
                with pytest.raises(TimeoutError):
                    await take(results)
            assert 0 < len(seen) < 100

        run(main, loop)

    @pytest.mark.lengthy
    def test_one_dict_for_every_item(self, kind: Kind, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        """Each item is asked as it was when it was read."""

        async def main() -> None:
            async def one_dict() -> AsyncGenerator[dict[str, Any]]:
                item: dict[str, Any] = {"params": {"messages": [{"role": "user", "content": [{"type": "text"}]}]}}
                for number in range(12):
                    item["custom_id"] = str(number)
                    item["params"]["messages"][0]["content"][0]["text"] = f"number {number}"
                    yield item
                    item["params"]["messages"][0]["content"][0]["text"] = "somebody else's"

            async with opened() as our, kind.of(our, one_dict()) as results:
                things = await everything(results, kind)
            assert whole(things, kind)
            assert "somebody else's" not in str(our[1].journal)

        run(main, loop)

    def test_an_input_that_is_cancelled(self, kind: Kind, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        """It is cut short, and never looks as if it had come to its end."""

        async def main() -> None:
            async def cut_short() -> AsyncGenerator[str]:
                yield "x"
                raise asyncio.CancelledError

            async with opened() as our:
                with pytest.raises(RuntimeError, match="the input was cancelled"):
                    async with kind.of(our, cut_short()) as results:
                        await everything(results, kind)

        run(main, loop)
