from __future__ import annotations

import asyncio
import gc
import itertools
import tracemalloc
import types
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import penstock
from penstock import AccountRefused, Client, ClientClosed, FanOutResult, Journal, NoKeyAvailable, RetryOptions
from penstock.batch.fan_out import FanOut, Order
from penstock.events import CallEnded, Event
from penstock.simulator import Simulator
from penstock.testing import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
ORDERS: tuple[Order, ...] = ("completed", "input")
Kind = Literal["sync", "async"]
KINDS: tuple[Kind, ...] = ("sync", "async")


def governed(simulator: Simulator, **options: Any) -> Client:
    """Make a client that governs an SDK client of the simulator's."""
    return Client(sdk=simulator.client(), **{"log": False, "retry": RetryOptions(base_s=0.001), **options})


def text_of(result: FanOutResult) -> str:
    """The text that an item was answered with."""
    assert result.message is not None
    (block,) = result.message.content
    assert block.type == "text"
    return block.text


class Source:
    """An input that counts what was read of it, and may fail."""

    def __init__(self, size: float, *, fails_at: int | None = None, error: BaseException | None = None) -> None:
        self.size = size
        self.read = 0
        self._fails_at = fails_at
        self._error = error or RuntimeError("the user's own")

    def _next(self) -> str | None:
        if self.read == self._fails_at:
            raise self._error
        if self.read >= self.size:
            return None
        self.read += 1
        return f"item {self.read - 1}"

    def __iter__(self) -> Iterator[str]:
        while (item := self._next()) is not None:
            yield item

    async def stream(self) -> AsyncIterator[str]:
        """The same, asynchronously."""
        await anyio.lowlevel.checkpoint()
        while (item := self._next()) is not None:
            yield item
            await anyio.lowlevel.checkpoint()

    def of(self, kind: Kind) -> Any:
        """Either of the two."""
        return iter(self) if kind == "sync" else self.stream()


def nothing_left(claude: Client, simulator: Simulator) -> None:
    """No slot, request or task is left of a fan-out."""
    statistics = claude.statistics()
    assert (statistics.admission.slots_used, statistics.admission.waiting) == (0, {})
    assert statistics.calls.in_flight == 0
    assert simulator.in_flight == 0
    assert [task.get_name() for task in asyncio.all_tasks() if "fan_out" in repr(task.get_coro())] == []


def run(main: Callable[[], Awaitable[object]]) -> None:
    """Run on virtual time; Hypothesis and fixtures don't go together."""
    anyio.run(main, backend_options={"loop_factory": VirtualLoop})


class TestResults:
    @pytest.mark.lengthy
    @given(
        size=st.integers(0, 40),
        concurrency=st.integers(1, 12),
        order=st.sampled_from(ORDERS),
        kind=st.sampled_from(KINDS),
        pace=st.sampled_from([0.0, 0.05, 1.0]),
        seed=st.integers(0, 5),
    )
    def test_every_item_is_answered_once_and_read_late(  # noqa: PLR0917 - Hypothesis gives them by name
        self, size: int, concurrency: int, order: Order, kind: Kind, pace: float, seed: int
    ) -> None:
        """Of any input, with any concurrency, faults and speeds: one result each, and no more read than has a place."""
        ahead = concurrency if order == "input" else 2 * concurrency

        async def main() -> None:
            faults = {"overloaded": 0.1, "rate_limited_no_retry_after": 0.05}
            simulator = Simulator(latency_s=0.1, faults=faults, seed=seed)
            source = Source(size)
            seen: list[FanOutResult] = []
            async with governed(simulator) as claude:
                async with claude.fan_out(
                    source.of(kind), model=MODEL, concurrency=concurrency, order=order
                ) as results:
                    async for result in results:
                        seen.append(result)
                        assert source.read - len(seen) <= ahead
                        assert simulator.in_flight <= concurrency
                        await anyio.sleep(pace)
                        assert source.read - len(seen) <= ahead
                nothing_left(claude, simulator)
            assert source.read == size
            assert sorted(result.index for result in seen) == list(range(size))
            assert all(result.ok and result.custom_id == str(result.index) for result in seen)
            assert all(text_of(result).endswith(f"item {result.index}") for result in seen)
            if order == "input":
                assert [result.index for result in seen] == list(range(size))

        run(main)

    async def test_order_is_that_of_completion(self, virtual_time: VirtualTime) -> None:
        """The first to be done is the first to be given."""
        simulator = Simulator(tokens_per_s=10, output_tokens=lambda body: 50 if "slow" in str(body) else 5)
        async with governed(simulator) as claude:
            async with claude.fan_out(["slow", "one"], model=MODEL, concurrency=2) as results:
                assert [result.index async for result in results] == [1, 0]
            async with claude.fan_out(["slow", "one"], model=MODEL, concurrency=2, order="input") as results:
                assert [result.index async for result in results] == [0, 1]

    async def test_concurrency_bounds_what_is_under_way(self, virtual_time: VirtualTime) -> None:
        """As many at once as allowed, and not one more: so long do they take together."""
        simulator = Simulator(latency_s=1)
        async with governed(simulator) as claude:
            results = await claude.map(["x"] * 20, model=MODEL, concurrency=5)
        assert all(result.ok for result in results)
        assert virtual_time.now() == pytest.approx(4, abs=0.1)

    async def test_the_clients_own_concurrency_holds_as_well(self, virtual_time: VirtualTime) -> None:
        """Items beyond it wait in line."""
        simulator = Simulator(latency_s=1)
        async with governed(simulator, concurrency=2) as claude:
            await claude.map(["x"] * 20, model=MODEL, concurrency=10)
        assert virtual_time.now() == pytest.approx(10, abs=0.1)

    async def test_map_keeps_the_order(self, virtual_time: VirtualTime) -> None:
        """The list is that of the input, failures in their places."""
        simulator = Simulator(latency_s=0.1, faults={"overloaded": 0.3}, seed=3)
        async with governed(simulator) as claude:
            results = await claude.map(["one", 7, "three"], model=MODEL)  # type: ignore[list-item]
        assert [result.index for result in results] == [0, 1, 2]
        assert [result.ok for result in results] == [True, False, True]

    async def test_no_items_no_results(self, simulator: Simulator) -> None:
        """An empty input ends at once."""
        async with governed(simulator) as claude:
            for order in ORDERS:
                async with claude.fan_out([], model=MODEL, order=order) as results:
                    assert [each async for each in results] == []
                    assert [each async for each in results] == []

    async def test_repr_tells_how_far_it_is(self, simulator: Simulator) -> None:
        """Started, delivered, and how many work on it."""
        async with governed(simulator) as claude, claude.fan_out(["a", "b"], model=MODEL) as results:
            assert repr(results) == "<FanOut 0 read, 0 delivered, <Live, 1 workers>>"
            _ = [each async for each in results]
            assert repr(results) == "<FanOut 2 read, 2 delivered, <Live, 3 workers>>"


class TestRequests:
    async def test_params_of_an_item_win(self, simulator: Simulator) -> None:
        """An item's own params replace the common ones, which replace the settings."""
        items: list[Any] = [
            "plain",
            {"custom_id": "a", "params": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 7}},
            {
                "custom_id": "b",
                "params": {"messages": [{"role": "user", "content": "y"}], "model": "claude-opus-5-5", "system": "S"},
            },
        ]
        async with governed(simulator, max_tokens=99, model="claude-haiku-4-5") as claude:
            await claude.map(items, stop_sequences=["END"], concurrency=1)
            await claude.map(["again"], model=MODEL, max_tokens=3)
        bodies = [entry.body or {} for entry in simulator.journal]
        assert [body["max_tokens"] for body in bodies] == [99, 7, 99, 3]
        assert [body["model"] for body in bodies] == ["claude-haiku-4-5"] * 2 + ["claude-opus-5-5", MODEL]
        assert [body.get("system") for body in bodies] == [None, None, "S", None]
        assert [body.get("stop_sequences") for body in bodies] == [["END"]] * 3 + [None]

    async def test_custom_ids_come_back(self, simulator: Simulator) -> None:
        """A result is named as its request was; plain prompts by their index."""
        params = {"messages": [{"role": "user", "content": "x"}]}
        async with governed(simulator) as claude:
            results = await claude.map([{"custom_id": "a", "params": params}, "x"], model=MODEL)
        assert [result.custom_id for result in results] == ["a", "1"]

    @pytest.mark.lengthy
    @pytest.mark.parametrize(
        ("item", "said"),
        [
            (7, "item 0 must be a prompt or a mapping"),
            (None, "item 0 must be a prompt or a mapping"),
            (["x"], "item 0 must be a prompt or a mapping"),
            ({"params": {}}, "item 0 has no custom_id"),
            ({"custom_id": 7, "params": {}}, "item 0 has no custom_id"),
            ({"custom_id": "", "params": {}}, "item 0 has no custom_id"),
            ({"custom_id": "a"}, "item 0 has no params"),
            ({"custom_id": "a", "params": "x"}, "item 0 has no params"),
            ({"custom_id": "a", "params": {"messages": [], "stream": True}}, "item 0 asks for a stream"),
            ({"custom_id": "a", "params": {"messages": [], "temprature": 1}}, "temprature"),
            ({"custom_id": "a", "params": {}}, "messages"),
        ],
    )
    async def test_a_bad_item_is_a_result(self, simulator: Simulator, item: Any, said: str) -> None:
        """What can't be asked fails by itself, says why, and the others go on."""
        async with governed(simulator) as claude:
            bad, good = await claude.map([item, "x"], model=MODEL)
            nothing_left(claude, simulator)
        assert good.ok
        assert isinstance(bad.error, TypeError | ValueError)
        assert said in str(bad.error)
        assert len(simulator.journal) == 1

    async def test_a_request_that_fails_is_a_result(self, simulator: Simulator) -> None:
        """The API's error comes with its item."""
        async with governed(simulator) as claude:
            bad, good = await claude.map(
                [{"custom_id": "a", "params": {"messages": [], "model": MODEL}}, "x"], model=MODEL
            )
        assert isinstance(bad.error, anthropic.BadRequestError)
        assert (bad.custom_id, good.ok) == ("a", True)

    @pytest.mark.parametrize(
        ("requests", "options", "kind"),
        [
            ("one prompt", {}, TypeError),
            (b"bytes", {}, TypeError),
            ({"custom_id": "a", "params": {}}, {}, TypeError),
            (7, {}, TypeError),
            (["x"], {"concurrency": 0}, ValueError),
            (["x"], {"concurrency": 1.5}, ValueError),
            (["x"], {"concurrency": True}, ValueError),
            (["x"], {"order": "random"}, ValueError),
            (["x"], {"max_failures": -1}, ValueError),
            (["x"], {"stream": True}, ValueError),
            (["x"], {"output_format": {"type": "object"}}, TypeError),
        ],
    )
    async def test_bad_arguments_are_refused_at_once(
        self, simulator: Simulator, requests: Any, options: dict[str, Any], kind: type[Exception]
    ) -> None:
        """A single prompt is not an input, and a bad option is told where it is given."""
        async with governed(simulator) as claude:
            with pytest.raises(kind):
                claude.fan_out(requests, model=MODEL, **options)

    async def test_labels_are_inherited_and_priority_is_batch(self, simulator: Simulator) -> None:
        """Items carry the labels of whoever started the fan-out; `batch` unless labelled otherwise."""
        events: list[Event] = []
        async with governed(simulator, observers=[events.append]) as claude:
            with penstock.labels(user="u1"):
                await claude.map(["x", "y"], model=MODEL)
            with penstock.labels(priority="interactive"):
                await claude.map(["x"], model=MODEL)
            await claude.messages.create(
                model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "no item of a fan-out"}]
            )
        ended = [dict(event.labels) for event in events if isinstance(event, CallEnded)]
        assert ended == [{"user": "u1", "priority": "batch"}] * 2 + [{"priority": "interactive"}, {}]

    async def test_items_have_no_deadline_of_their_own(self, virtual_time: VirtualTime) -> None:
        """The deadline of ordinary calls doesn't hold for items, which may wait long; one around the block does."""
        simulator = Simulator(latency_s=50)
        async with governed(simulator, deadline_s=60, concurrency=1) as claude:
            assert all(result.ok for result in await claude.map(["x"] * 5, model=MODEL))
            with penstock.deadline(60):
                results = await claude.map(["x"] * 3, model=MODEL)
            assert [result.ok for result in results] == [True, False, False]

    async def test_items_are_tried_ten_times(self, virtual_time: VirtualTime) -> None:
        """More often than an ordinary call, because nobody is waiting for each of them."""
        simulator = Simulator()
        simulator.inject("overloaded", times=9)
        async with governed(simulator) as claude:
            (result,) = await claude.map(["x"], model=MODEL)
        assert result.ok
        assert len(simulator.journal) == 10

    async def test_it_works_over_an_ungoverned_client(self, simulator: Simulator) -> None:
        """It needs nothing but an `AsyncAnthropic`."""
        sdk = simulator.client(max_retries=0)
        async with FanOut(sdk, ["a", "b"], model=MODEL, max_tokens=50, concurrency=1) as results:
            assert [result.ok async for result in results] == [True, True]
        simulator.inject("overloaded")
        async with FanOut(sdk, ["a"], model=MODEL, max_tokens=50) as results:
            assert [type(result.error) async for result in results] == [anthropic.OverloadedError]
        async with FanOut(sdk, ["a"], model=MODEL) as results:
            assert [type(result.error) async for result in results] == [TypeError]

    async def test_an_item_has_labels_of_its_own(self, simulator: Simulator) -> None:
        """They win over those of the block, priority included; a bad one fails its item."""
        events: list[Event] = []
        ask = {"messages": [{"role": "user", "content": "x"}]}
        items: list[Any] = [
            {"custom_id": "a", "params": ask, "labels": {"user": "u2", "priority": "interactive"}},
            {"custom_id": "b", "params": ask, "labels": {"priority": "highest"}},
            {"custom_id": "c", "params": ask, "labels": 7},
        ]
        async with governed(simulator, observers=[events.append]) as claude:
            with penstock.labels(user="u1", feature="f"):
                results = await claude.map(items, model=MODEL)
        assert dict(results[0].labels) == {"user": "u2", "priority": "interactive"}
        assert [type(result.error) for result in results] == [type(None), ValueError, TypeError]
        ended = [dict(event.labels) for event in events if isinstance(event, CallEnded)]
        assert ended == [{"user": "u2", "feature": "f", "priority": "interactive"}]

    async def test_a_result_tells_what_it_took(self, virtual_time: VirtualTime) -> None:
        """Attempts, time, time in line, cost; what is not known is `None`."""
        simulator = Simulator(latency_s=3)
        simulator.inject("overloaded", times=2)
        async with governed(simulator, concurrency=1) as claude:
            items: list[Any] = ["x", "y", 7]
            results = await claude.map(items, model=MODEL, concurrency=3)
            assert results[0].message is not None
            assert results[0].cost_usd == claude.cost(results[0].message) > 0
        assert sum(result.attempts or 0 for result in results) == 4
        assert sorted(result.latency_s or 0 for result in results) == [
            0,
            pytest.approx(3, abs=0.1),
            pytest.approx(6, abs=0.1),
        ]
        assert max(result.queued_s or 0 for result in results) == pytest.approx(3, abs=0.1)
        bad = results[2]
        assert (bad.attempts, bad.latency_s, bad.queued_s, bad.cost_usd) == (None, None, None, None)

    async def test_an_ungoverned_client_counts_no_attempts(self, simulator: Simulator) -> None:
        """Nobody knows them there; the time is known."""
        async with FanOut(simulator.client(), ["a"], model=MODEL, max_tokens=50) as results:
            (result,) = [each async for each in results]
        assert (result.ok, result.attempts, result.queued_s) == (True, None, None)
        assert result.latency_s is not None

    async def test_answers_are_parsed(self, simulator: Simulator) -> None:
        """By the schema that they are asked to fit; an item's own output_config keeps its other fields."""
        ask = {"messages": [{"role": "user", "content": "x"}], "output_config": {"effort": "low"}}
        async with governed(simulator) as claude:
            results = await claude.map(
                ["x", {"custom_id": "a", "params": ask}], model=MODEL, output_format=dict[str, int]
            )
        assert [type(result.parsed) for result in results] == [dict, dict]
        configs = [(entry.body or {})["output_config"] for entry in simulator.journal]
        assert [config["format"]["type"] for config in configs] == ["json_schema"] * 2
        assert [config.get("effort") for config in configs] == [None, "low"]

    async def test_an_answer_that_does_not_fit_is_a_failure(self, virtual_time: VirtualTime) -> None:
        """With the answer, which was paid for, and why."""
        simulator = Simulator(output_tokens=lambda body: 1)
        async with governed(simulator) as claude:
            (result,) = await claude.map(["x"], model=MODEL, max_tokens=1, output_format=list[str])
            with pytest.raises(penstock.InvalidOutput):
                await claude.map(["x"], model=MODEL, max_tokens=1, output_format=list[str], fail_fast=True)
        assert isinstance(result.error, penstock.InvalidOutput)
        assert result.message is not None
        assert result.cost_usd
        assert not result.ok

    async def test_the_cache_is_warmed_by_one_item(self, virtual_time: VirtualTime) -> None:
        """The others start when the first is answered."""
        simulator = Simulator(latency_s=1)
        async with governed(simulator) as claude:
            assert len(await claude.map(["x"] * 9, model=MODEL, concurrency=4, warm_cache=True)) == 9
        starts = [entry.started_at for entry in simulator.journal]
        assert starts == [pytest.approx(when, abs=0.1) for when in (0, *[1] * 4, *[2] * 4)]

    async def test_a_cache_that_cannot_be_warmed_holds_nobody_up(self, virtual_time: VirtualTime) -> None:
        """After three failures the others go all the same; what was not asked is no try."""
        simulator = Simulator(latency_s=1)
        bad: list[Any] = [7, *({"custom_id": str(number), "params": {"messages": []}} for number in range(1, 7))]
        async with governed(simulator) as claude:
            await claude.map(bad, model=MODEL, concurrency=9, warm_cache=True)
        starts = [entry.started_at for entry in simulator.journal]
        assert len(set(starts[:3])) == 3
        assert len(starts) == 6

    @pytest.mark.parametrize("max_tokens", [8192, 8193, 64_000])
    async def test_a_long_answer_is_waited_for(self, max_tokens: int, virtual_time: VirtualTime) -> None:
        """As long as so many tokens take, where the SDK would refuse to; a shorter one for ten minutes, as ever."""
        slow = Simulator(latency_s=max(max_tokens / 128_000 * 3600 - 60, 540))
        async with governed(slow, max_tokens=max_tokens) as claude:
            (result,) = await claude.map(["x"], model=MODEL)
        assert result.ok

    async def test_a_time_limit_of_the_callers_own_holds(self, virtual_time: VirtualTime) -> None:
        """Whether it is the fan-out's, the item's or the client's."""
        simulator = Simulator(latency_s=1000)
        ask: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "timeout": 5.0}
        common: dict[str, Any] = {"model": MODEL, "max_tokens": 64_000}
        cases: list[tuple[Any, Any, dict[str, Any]]] = [
            (simulator.client(max_retries=0), "x", {"timeout": 5.0}),
            (simulator.client(max_retries=0), {"custom_id": "a", "params": ask}, {}),
            (simulator.client(max_retries=0, timeout=5.0), "x", {}),
        ]
        for sdk, item, options in cases:
            async with FanOut(sdk, [item], **common, **options) as results:
                assert [type(result.error) async for result in results] == [anthropic.APITimeoutError]
        assert virtual_time.now() == pytest.approx(15, abs=0.1)

    async def test_too_many_failures_end_it(self, virtual_time: VirtualTime) -> None:
        """Failures up to the limit are results; the next one is raised, and the rest is cancelled."""
        simulator = Simulator(latency_s=1)
        bad = [{"custom_id": f"bad {number}", "params": {"messages": []}} for number in range(50)]
        seen: list[FanOutResult] = []

        async def use() -> None:
            async with claude.fan_out([*bad, *["x"] * 100], model=MODEL, concurrency=2, max_failures=5) as results:
                async for result in results:
                    seen.append(result)  # noqa: PERF401 - what came before counts

        async with governed(simulator) as claude:
            with pytest.raises(penstock.TooManyFailures) as raised:
                await use()
            assert isinstance(raised.value.__cause__, anthropic.BadRequestError)
            assert len(seen) == 5
            await anyio.sleep(0.01)
            nothing_left(claude, simulator)
        assert len(simulator.journal) < 20


class TestEnds:
    @pytest.mark.lengthy
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("fails_at", [0, 1, 7])
    async def test_an_input_that_raises_loses_no_result(
        self, kind: Kind, order: Order, fails_at: int, virtual_time: VirtualTime
    ) -> None:
        """All that it gave before is delivered; then its own exception comes out, as it is."""
        simulator = Simulator(latency_s=0.1)
        cause = KeyError("why")
        error = RuntimeError("the user's own")
        error.__cause__ = cause
        seen: list[int] = []

        async def use(claude: Client) -> None:
            source = Source(20, fails_at=fails_at, error=error)
            async with claude.fan_out(source.of(kind), model=MODEL, concurrency=3, order=order) as results:
                async for result in results:
                    assert result.ok
                    seen.append(result.index)

        async with governed(simulator) as claude:
            with pytest.raises(RuntimeError) as raised:
                await use(claude)
            nothing_left(claude, simulator)
        assert raised.value is error
        assert raised.value.__cause__ is cause
        assert sorted(seen) == list(range(fails_at))

    async def test_after_the_inputs_error_there_is_nothing_more(self, simulator: Simulator) -> None:
        """It is raised once; who goes on asking is at the end."""
        async with (
            governed(simulator) as claude,
            claude.fan_out(iter(Source(5, fails_at=0)), model=MODEL) as results,
        ):
            with pytest.raises(RuntimeError):
                await anext(results)
            with pytest.raises(StopAsyncIteration):
                await anext(results)

    @pytest.mark.lengthy
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("after", [0, 1, 5])
    async def test_a_consumer_that_stops_early_ends_the_rest(
        self, order: Order, after: int, virtual_time: VirtualTime
    ) -> None:
        """Leaving the block cancels what is under way, at once, and reads no more."""
        simulator = Simulator(latency_s=1)
        source = Source(1000)
        async with governed(simulator) as claude:
            async with claude.fan_out(iter(source), model=MODEL, concurrency=4, order=order) as results:
                await anyio.sleep(0.5)
                for _ in range(after):
                    assert (await anext(results)).ok
            left_at = virtual_time.now()
            read = source.read
            await anyio.sleep(0.01)
            nothing_left(claude, simulator)
            await anyio.sleep(10)
            assert source.read == read
        assert left_at < after + 1

    async def test_results_end_with_the_block(self, simulator: Simulator) -> None:
        """Outside its block, it gives no results."""
        async with governed(simulator) as claude:
            fan_out = claude.fan_out(["a", "b"], model=MODEL)
            with pytest.raises(RuntimeError, match="async with"):
                await anext(fan_out)
            async with fan_out as results:
                await anext(results)
            with pytest.raises(StopAsyncIteration):
                await anext(results)
            with pytest.raises(RuntimeError, match="runs once"):
                await fan_out.__aenter__()

    async def test_leaving_without_entering_does_nothing(self, simulator: Simulator) -> None:
        """As when an exit stack is unwound halfway."""
        async with governed(simulator) as claude:
            await claude.fan_out(["a"], model=MODEL).__aexit__(None, None, None)

    @pytest.mark.parametrize("order", ORDERS)
    async def test_an_exception_of_the_consumer_leaves_as_itself(self, order: Order, virtual_time: VirtualTime) -> None:
        """Never wrapped in a group, nor is a group of the user's own changed."""
        simulator = Simulator(latency_s=0.1)
        async with governed(simulator) as claude:
            for error in (KeyError("mine"), ExceptionGroup("mine", [ValueError("one")])):

                async def use(error: Exception) -> None:
                    async with claude.fan_out(["x"] * 20, model=MODEL, concurrency=3, order=order) as results:
                        async for _ in results:
                            raise error

                with pytest.raises(type(error)) as raised:
                    await use(error)
                assert raised.value is error
                await anyio.sleep(0.01)
                nothing_left(claude, simulator)

    async def test_a_consumer_under_a_time_limit_is_cut_off(self, virtual_time: VirtualTime) -> None:
        """Both anyio's and asyncio's time limits end it in time, and leave the task uncancelled."""
        simulator = Simulator(latency_s=100)
        async with governed(simulator) as claude:
            with anyio.move_on_after(1) as scope:
                await claude.map(["x"] * 5, model=MODEL)
            assert scope.cancelled_caught
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await claude.map(["x"] * 5, model=MODEL)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            assert virtual_time.now() == pytest.approx(2, abs=0.1)
            await anyio.sleep(0.01)
            nothing_left(claude, simulator)

    @pytest.mark.parametrize("order", ORDERS)
    async def test_fail_fast_raises_the_first_failure(self, order: Order, virtual_time: VirtualTime) -> None:
        """Instead of giving it as a result; the rest is cancelled."""
        simulator = Simulator(latency_s=0.1)
        items: list[Any] = ["x", {"custom_id": "bad", "params": {"messages": []}}, *["x"] * 100]
        seen: list[FanOutResult] = []

        async def use(claude: Client) -> None:
            async with claude.fan_out(items, model=MODEL, concurrency=2, order=order, fail_fast=True) as results:
                async for result in results:
                    seen.append(result)  # noqa: PERF401 - what came before the failure counts

        async with governed(simulator) as claude:
            with pytest.raises(anthropic.BadRequestError):
                await use(claude)
            await anyio.sleep(0.01)
            nothing_left(claude, simulator)
        assert len(seen) <= 3
        assert all(result.ok for result in seen)
        assert len(simulator.journal) < 10

    @pytest.mark.parametrize("order", ORDERS)
    async def test_a_slow_consumer_holds_the_input_back(self, order: Order, virtual_time: VirtualTime) -> None:
        """Who doesn't take results gets no more items started than there is room for."""
        simulator = Simulator()
        source = Source(1000)
        async with (
            governed(simulator) as claude,
            claude.fan_out(iter(source), model=MODEL, concurrency=5, order=order) as results,
        ):
            await anyio.sleep(100)
            assert source.read == (5 if order == "input" else 10)
            await anext(results)
            await anyio.sleep(100)
            assert source.read == (6 if order == "input" else 11)

    async def test_in_input_order_no_more_results_are_held_than_concurrency(self, virtual_time: VirtualTime) -> None:
        """While the first item takes long, the others wait for it, and at most so many of them."""
        simulator = Simulator(tokens_per_s=10, output_tokens=lambda body: 1000 if "item 0" in str(body) else 1)
        source = Source(1000)
        async with (
            governed(simulator) as claude,
            claude.fan_out(iter(source), model=MODEL, concurrency=5, order="input") as results,
        ):
            assert (await anext(results)).index == 0
            assert virtual_time.now() == pytest.approx(100, abs=3)
            assert source.read <= 6

    async def test_a_slow_input_holds_up_nothing(self, virtual_time: VirtualTime) -> None:
        """Results are given while the next item is awaited."""

        async def slow() -> AsyncIterator[str]:
            for number in range(3):
                await anyio.sleep(10)
                yield str(number)

        simulator = Simulator(latency_s=1)
        async with governed(simulator) as claude, claude.fan_out(slow(), model=MODEL) as results:
            times = [virtual_time.now() async for _ in results]
        assert times == [pytest.approx(when, abs=0.1) for when in (11, 21, 31)]

    async def test_an_input_is_never_read_twice_at_once(self, virtual_time: VirtualTime) -> None:
        """An async generator can be read by one at a time only, whatever the concurrency."""
        reading = 0

        async def jealous() -> AsyncIterator[str]:
            nonlocal reading
            for number in range(30):
                reading += 1
                assert reading == 1
                await anyio.sleep(0.01)
                reading -= 1
                yield str(number)

        async with governed(Simulator(latency_s=1)) as claude:
            results = await claude.map(jealous(), model=MODEL, concurrency=10)
        assert all(result.ok for result in results)

    async def test_a_client_closed_in_the_middle_fails_the_rest(self, virtual_time: VirtualTime) -> None:
        """What was answered is delivered, what was not comes as `ClientClosed`; it ends, and soon."""
        simulator = Simulator(latency_s=1)
        claude = governed(simulator, close_timeout_s=0.1)
        await claude.__aenter__()
        seen: list[FanOutResult] = []
        async with claude.fan_out(["x"] * 20, model=MODEL, concurrency=4) as results:
            async for result in results:
                seen.append(result)
                if len(seen) == 4:
                    await anyio.sleep(0.5)
                    await claude.close()
        assert [result.ok for result in seen] == [True] * 4 + [False] * 16
        assert {type(result.error) for result in seen[4:]} == {ClientClosed}
        nothing_left(claude, simulator)

    async def test_without_a_key_items_fail_at_once(self, virtual_time: VirtualTime) -> None:
        """When every key was refused, items don't wait for a minute each, and the run stops after a few of them."""
        simulator = Simulator()
        simulator.inject("authentication", times=1000)
        async with (
            governed(simulator) as claude,
            claude.fan_out(["x"] * 1000, model=MODEL, concurrency=1) as results,
        ):
            seen = [await anext(results) for _ in range(4)]
            with pytest.raises(AccountRefused, match="the last 5 items were refused"):
                await anext(results)
        assert virtual_time.now() < 5
        assert isinstance(seen[0].error, anthropic.AuthenticationError)
        assert all(isinstance(result.error, NoKeyAvailable) for result in seen[1:])

    async def test_a_refused_account_stops_a_run(self, virtual_time: VirtualTime, tmp_path: Path) -> None:
        """After a few items, with one error that says why; nothing is written off, and the next run asks it all."""
        path, simulator = tmp_path / "run.jsonl", Simulator(latency_s=0.1)
        broke = "Your credit balance is too low to access the Anthropic API."
        simulator.inject("error", status=400, type="invalid_request_error", message=broke, times=1000)
        async with governed(simulator) as claude:
            for _ in range(2):
                with pytest.raises(AccountRefused, match="credit balance is too low"):
                    await claude.map(["x"] * 1000, model=MODEL, concurrency=8, journal=path)
            assert len(simulator.journal) <= 2 * 16
        async with Journal(path) as journal:
            assert (journal.answered, journal.failed) == (0, 0)
        simulator = Simulator()
        async with governed(simulator) as claude:
            assert all(result.ok for result in await claude.map(["x"] * 20, model=MODEL, journal=path))

    async def test_one_who_is_refused_does_not_stop_the_others(self, virtual_time: VirtualTime) -> None:
        """As a model may be that only some may use."""
        simulator = Simulator()
        for _ in range(10):
            simulator.inject("error", status=403, type="permission_error", message="not this one", times=2, after=1)
        async with governed(simulator) as claude:
            results = await claude.map(["x"] * 30, model=MODEL, concurrency=1)
        assert [result.ok for result in results] == [True, False, False] * 10


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_memory_does_not_grow_with_the_input(order: Order) -> None:
    """8,000 items that are made as they are read take no more memory than 1,000, but for a digest of each."""

    class Echo:
        """Answers by itself, because what is measured is the fan-out."""

        async def create(self, **params: Any) -> anthropic.types.Message:
            await anyio.lowlevel.checkpoint()
            return message

    message = anthropic.types.Message.model_validate(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": MODEL,
            "content": [],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
    )
    peaks: list[int] = []

    async def main() -> None:
        sdk: Any = types.SimpleNamespace(messages=Echo())
        items = ("item " + str(number) for number in itertools.count())
        count = 0
        async with FanOut(sdk, items, model=MODEL, max_tokens=10, concurrency=50, order=order) as results:
            async for _ in results:
                count += 1
                if count in {1_000, 8_000}:
                    gc.collect()
                    peaks.append(tracemalloc.get_traced_memory()[0])
                if count == 8_000:
                    break

    tracemalloc.start()
    try:
        anyio.run(main)
    finally:
        tracemalloc.stop()
    # 16 bytes for each custom_id, by which one that comes twice is found.
    assert peaks[1] - peaks[0] < 7_000 * 16 + 50_000
