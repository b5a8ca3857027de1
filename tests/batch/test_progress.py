from __future__ import annotations

import logging
from decimal import Decimal
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st

from penstock import BreakerOptions, Client, FanOutResult, Limits, Progress, RetryOptions
from penstock.batch.fan_out import FanOut
from penstock.batch.progress import ProgressReporter, Tally, Waits
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"


def answer(*, model: str = MODEL, attempts: int | None = 1) -> FanOutResult:
    """An answer of 1,000 tokens in, of which 400 from the cache, and 200 out."""
    usage = {"input_tokens": 600, "cache_read_input_tokens": 400, "output_tokens": 200}
    message = Message.construct(model=model, content=[], usage=usage)
    return FanOutResult(custom_id="a", index=0, message=message, attempts=attempts)


FAILED = FanOutResult(custom_id="b", index=1, error=ValueError("no"), attempts=3)


def begun(*, total: int | None, elapsed_s: float = 1.0, waits: Callable[[float], Waits] | None = None) -> Tally:
    """Counts that have been kept for so long."""
    tally = Tally(total=total, waits=waits)
    clock = chain([100.0], repeat(100.0 + elapsed_s))
    tally.begin(lambda: next(clock))
    return tally


class TestTally:
    def test_it_adds_up(self) -> None:
        """Items, attempts beyond the first, tokens, cost; the rest is reckoned from them."""
        tally = begun(total=10, elapsed_s=6.0, waits=lambda now: Waits(quota_use=0.25, quota_s=now))
        for result in (answer(), answer(attempts=None), FAILED):
            tally.start()
            tally.add(result)
        tally.start()
        tally.resumed = 3
        cost = answer().cost_usd
        assert cost
        assert tally.snapshot() == Progress(
            total=10,
            answered=2,
            failed=1,
            resumed=3,
            in_flight=1,
            retried=2,
            input_tokens=2000,
            output_tokens=400,
            cost_usd=2 * cost,
            expected_cost_usd=2 * cost * 7 / 3,
            elapsed_s=6.0,
            rate_per_s=0.5,
            left_s=8.0,
            waits=Waits(quota_use=0.25, quota_s=106.0),
        )
        assert tally.snapshot().done == 6
        assert repr(tally) == "<Tally 2 answered, 1 failed, 3 resumed>"

    @pytest.mark.lengthy
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([MODEL, "claude-haiku-4-5", "claude-sonnet-4-6", "claude-nonesuch"]),
                st.sampled_from([1, 1000, 60_000, 150_000, 300_000]),
                st.sampled_from([None, "standard", "batch"]),
                st.booleans(),
            ),
            max_size=30,
        )
    )
    def test_the_cost_is_the_sum_of_the_answers(self, answers: list[tuple[str, int, str | None, bool]]) -> None:
        """To the last digit: of long prompts, which cost more, of batches, and of answers that took several steps."""
        tally = begun(total=None)
        results: list[FanOutResult] = []
        for model, tokens, tier, steps in answers:
            usage: dict[str, Any] = {"input_tokens": tokens, "output_tokens": 7, "service_tier": tier}
            if steps:
                usage["iterations"] = [{"type": "message", "model": "claude-opus-4-6", "input_tokens": 9}]
            message = Message.construct(model=model, content=[], usage=usage)
            results.append(FanOutResult(custom_id="a", index=0, message=message))
            tally.start()
            tally.add(results[-1])
            assert tally.snapshot().cost_usd == sum(result.cost_usd or 0 for result in results)

    def test_an_answer_without_usage_costs_nothing(self) -> None:
        """As a compatible server may send it."""
        tally = begun(total=None)
        tally.start()
        tally.add(FanOutResult(custom_id="a", index=0, message=Message.construct(model=MODEL, content=[])))
        progress = tally.snapshot()
        assert (progress.answered, progress.cost_usd) == (1, Decimal(0))

    def test_what_cannot_be_told_is_none(self) -> None:
        """Neither before the first item nor without a total is there an end in sight."""
        start = begun(total=10, elapsed_s=0.0).snapshot()
        assert (start.rate_per_s, start.left_s, start.expected_cost_usd, start.waits) == (0.0, None, None, Waits())
        tally = begun(total=None)
        tally.start()
        tally.add(answer(model="claude-nonesuch"))
        progress = tally.snapshot()
        assert (progress.left_s, progress.expected_cost_usd, progress.cost_usd) == (None, None, Decimal(0))

    def test_more_items_than_said_leave_nothing(self) -> None:
        """A total may be wrong; what is left is never less than nothing."""
        tally = begun(total=1)
        for _ in range(3):
            tally.start()
            tally.add(answer())
        assert tally.snapshot().left_s == 0.0


class TestReporter:
    async def test_each_is_told_at_its_own_pace(self, virtual_time: VirtualTime) -> None:
        """And all of them once at the end."""
        quick: list[float] = []
        slow: list[float] = []
        tally = Tally(total=None)
        tally.begin(anyio.current_time)
        reporter = ProgressReporter(
            tally.snapshot, [(lambda it: quick.append(it.elapsed_s), 1.0), (lambda it: slow.append(it.elapsed_s), 2.5)]
        )
        with anyio.move_on_after(5.2):
            await reporter.run()
        assert quick == [pytest.approx(when, abs=0.01) for when in (1, 2, 3, 4, 5)]
        assert slow == [pytest.approx(when, abs=0.01) for when in (2.5, 5)]
        reporter.end()
        reporter.end()
        assert (len(quick), len(slow)) == (6, 3)
        assert repr(reporter) == "<ProgressReporter, 2 told>"

    async def test_one_that_raises_breaks_nothing(
        self, virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is logged, by the name of its error; the others are told."""
        told: list[Progress] = []

        def broken(_: Progress) -> None:
            raise ValueError("the secret")

        reporter = ProgressReporter(Tally(total=None).snapshot, [(broken, 1.0), (told.append, 1.0)])
        with caplog.at_level(logging.ERROR, "penstock"), anyio.move_on_after(2.5):
            await reporter.run()
        assert len(told) == 2
        assert caplog.messages == ["on_progress raised ValueError"] * 2
        assert "secret" not in caplog.text


class TestFanOut:
    async def test_a_fan_out_tells_how_far_it_is(self, virtual_time: VirtualTime) -> None:
        """Every second and at the end; failures and retries are counted apart."""
        simulator = Simulator(latency_s=0.5)
        simulator.inject("overloaded", times=2)
        told: list[Progress] = []
        items: list[Any] = [*["x"] * 19, {"custom_id": "bad", "params": {"messages": []}}, 7]
        async with (
            Client(sdk=simulator.client(), log=False, retry=RetryOptions(base_s=0.001)) as claude,
            claude.fan_out(items, model=MODEL, concurrency=2, on_progress=told.append) as results,
        ):
            assert len([result async for result in results]) == 21
        assert told[0].elapsed_s == pytest.approx(1, abs=0.01)
        assert [each.ended for each in told] == [False] * (len(told) - 1) + [True]
        assert [each.done for each in told] == sorted(each.done for each in told)
        assert all(each.in_flight <= 2 and each.total == 21 for each in told)
        last = told[-1]
        assert (last.answered, last.failed, last.retried, last.in_flight) == (19, 2, 2, 0)
        assert last.output_tokens > 0
        assert last.cost_usd > 0
        assert last.expected_cost_usd == last.cost_usd
        assert last.left_s == 0

    @pytest.mark.lengthy
    async def test_progress_is_shown_on_the_standard_error(
        self, virtual_time: VirtualTime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Every five seconds and at the end, in plain lines where that is no terminal; else nothing is shown."""
        async with Client(sdk=Simulator(latency_s=1).client(), log=False) as claude:
            await claude.map(["x"] * 24, model=MODEL, concurrency=2)
            assert capsys.readouterr() == ("", "")
            await claude.map(["x"] * 24, model=MODEL, concurrency=2, progress=True)
        out, err = capsys.readouterr()
        assert out == ""
        assert [line.partition(",")[0] for line in err.splitlines()] == [
            "0:05  8 of 24 done",
            "0:10  18 of 24 done",
            "0:12  24 of 24 done",
        ]

    async def test_left_early_it_tells_once_more(self, virtual_time: VirtualTime) -> None:
        """What was under way then is neither answered nor failed."""
        told: list[Progress] = []
        async with Client(sdk=Simulator(latency_s=1).client(), log=False) as claude:
            requests = (str(number) for number in range(100))
            async with claude.fan_out(requests, model=MODEL, concurrency=4, total=100, on_progress=told.append):
                await anyio.sleep(0.5)
        (last,) = told
        assert (last.total, last.done, last.in_flight, last.ended) == (100, 0, 4, True)

    @pytest.mark.lengthy
    async def test_quota_use_is_that_of_the_fullest_bucket(self, virtual_time: VirtualTime) -> None:
        """Nothing is known before the first request; then the share that is gone, and when there is more."""
        told: list[Progress] = []
        simulator = Simulator(latency_s=0.1)
        async with Client(sdk=simulator.client(), log=False, limits=Limits(requests_per_minute=60)) as claude:
            assert claude.fan_out([], model=MODEL).progress.waits == Waits()
            await claude.map(["x"] * 20, model=MODEL, concurrency=20, on_progress=told.append)
            assert told[-1].waits.quota_use == pytest.approx(20 / 60, abs=0.01)
            assert told[-1].waits.quota_s == 0
            async with claude.fan_out(["x"] * 60, model=MODEL) as results:
                await anyio.sleep(0.5)
                assert results.progress.waits.quota_use == pytest.approx(1, abs=0.02)
                assert results.progress.waits.quota_s == pytest.approx(0.3, abs=0.1)
                assert results.progress.waits.in_line == pytest.approx(20, abs=2)

    async def test_a_cool_down_of_all_keys_is_waited_for(self, virtual_time: VirtualTime) -> None:
        """Whatever the buckets hold; as long as one of the keys may be used, nobody waits for the others."""
        simulator = Simulator()
        simulator.inject("rate_limited", retry_after_s=40)
        async with (
            Client(sdk=simulator.client(), log=False) as claude,
            claude.fan_out(["x"] * 5, model=MODEL, concurrency=1) as results,
        ):
            await anyio.sleep(10)
            waits = results.progress.waits
            assert waits.quota_s == pytest.approx(30, abs=0.5)
            assert (waits.retrying, waits.in_line) in {(0, 1), (1, 0)}
            assert len([result async for result in results if result.ok]) == 5
            assert results.progress.waits.quota_s == 0

    async def test_an_open_breaker_is_waited_for(self, virtual_time: VirtualTime) -> None:
        """Until it lets requests try the service again, and while they do."""
        simulator = Simulator(latency_s=1)
        simulator.inject("api_error", times=4)
        breaker = BreakerOptions(window=4, minimum=4, open_s=100)
        async with (
            Client(sdk=simulator.client(), log=False, breaker=breaker, retry=RetryOptions(base_s=0.001)) as claude,
            claude.fan_out(["x"] * 4, model=MODEL, concurrency=4) as results,
        ):
            seen = [results.progress.waits]
            for pause_s in (51, 49.5):
                await anyio.sleep(pause_s)
                seen.append(results.progress.waits)
            assert [each.breaker_s for each in seen] == [None, pytest.approx(49, abs=1), 0]
            assert [each.retrying for each in seen] == [0, 4, 1]
            assert len([result async for result in results if result.ok]) == 4
            assert results.progress.waits == Waits(quota_use=results.progress.waits.quota_use, quota_s=0)

    async def test_a_network_that_fails_is_told(self, refusing_port: int) -> None:
        """And how many items are waiting to be tried again."""
        async with (
            Client(
                api_keys=["sk-ant-1"], base_url=f"http://127.0.0.1:{refusing_port}", allow_http=True, log=False
            ) as claude,
            claude.fan_out(["x"] * 3, model=MODEL, max_tokens=9) as results,
        ):
            with anyio.fail_after(5):
                while results.progress.waits.retrying < 3:  # noqa: ASYNC110 - nobody is told of it
                    await anyio.sleep(0.01)
            assert results.progress.waits.network == "can't reach 127.0.0.1: connection refused"

    async def test_what_it_waits_for_is_asked_only_when_somebody_is_told(self, simulator: Simulator) -> None:
        """Counting an item asks nobody; and before it begins, no time could be told."""
        asked: list[float] = []

        def waits(now: float) -> Waits:
            asked.append(now)
            return Waits(in_line=5)

        results = FanOut(simulator.client(), ["x"] * 5, model=MODEL, max_tokens=9, waits=waits)
        assert results.progress.waits == Waits()
        async with results:
            assert len([result async for result in results]) == 5
            assert not asked
            assert results.progress.waits.in_line == 5
        assert asked == [pytest.approx(anyio.current_time(), abs=5)]


@pytest.mark.parametrize("model", [None, 5, []])
def test_answers_without_a_model_cost_nothing(model: Any) -> None:
    """Whatever a compatible server sends in its place, counting goes on."""
    tally = begun(total=None)
    for result in (answer(model=model), answer()):
        tally.add(result)
    progress = tally.snapshot()
    assert (progress.answered, progress.input_tokens, progress.cost_usd) == (2, 2000, answer().cost_usd)


def test_who_is_told_must_be_no_coroutine_function() -> None:
    """It would never run, which nobody would be told."""

    async def told(_: Progress) -> None:
        """Would be awaited by nobody."""

    with pytest.raises(TypeError, match="on_progress must be an ordinary function"):
        FanOut(Simulator().client(), [], on_progress=told)
