from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest

import penstock
from penstock.errors import StreamInterrupted
from penstock.streaming import ErrorFrame, FinalFrame, TextFrame, relay, stream
from penstock.testing import Cancelled, cancel_at_every_await

if TYPE_CHECKING:
    from penstock.simulator import Simulator
    from penstock.streaming import Frame
    from penstock.testing.plugin import VirtualTime

PARAMS: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 1000,
    "messages": [{"role": "user", "content": "Tell me of rivers, of many of them, and of how they come to the sea."}],
}


class Consumer:
    """Takes frames, each after `delay_s`; keeps them."""

    def __init__(self, delay_s: float = 0.0, *, raise_at: int | None = None) -> None:
        self.frames: list[Frame] = []
        self._delay_s = delay_s
        self._raise_at = raise_at

    @property
    def text(self) -> str:
        return "".join(frame.text for frame in self.frames if isinstance(frame, TextFrame))

    async def __call__(self, frame: Frame) -> None:
        await anyio.sleep(self._delay_s)
        if len(self.frames) == self._raise_at:
            raise ConnectionError("the consumer has left")
        self.frames.append(frame)


def paced(wire: Any, texts: list[str], pause_s: float) -> list[Any]:
    """A stream of one event after each pause."""
    parts: list[Any] = []
    for event in [wire.start(), *wire.text(0, *texts), *wire.end()]:
        parts += [wire.sse(event), pause_s]
    return parts


async def test_a_quick_consumer_gets_each_delta(wire: Any, virtual_time: VirtualTime) -> None:
    """One frame for each delta that has text, then the final frame with reason, usage and length."""
    claude = wire.client(*paced(wire, ["a", "", "b", "c"], 0.01))
    consumer = Consumer()
    async with stream(claude, **PARAMS) as answer:
        final = await relay(answer, consumer)
        assert (await answer.get_final_message()).stop_reason == "end_turn"
    assert [frame.text for frame in consumer.frames if isinstance(frame, TextFrame)] == ["a", "b", "c"]
    assert consumer.frames[-1] == final
    assert final == FinalFrame(stop_reason="end_turn", usage=answer.usage, text_length=3, text="abc")
    assert "abc" not in repr(final)
    assert "a" not in repr(consumer.frames[0]).removeprefix("TextFrame")


async def test_a_slow_consumer_holds_nothing_up(wire: Any, virtual_time: VirtualTime) -> None:
    """At a hundredth of the speed: the request ends at full speed, few large frames bring the whole text in order."""
    texts = [f"{number} " for number in range(500)]
    claude = wire.client(*paced(wire, texts, 0.01))
    consumer = Consumer(delay_s=1.0)
    ended_at: list[float] = []
    async with stream(claude, **PARAMS) as answer:
        began = virtual_time.now()

        def watch(event: Any) -> None:
            if event.type == "message_stop":
                ended_at.append(virtual_time.now() - began)

        await relay(answer, consumer, on_event=watch)
    assert consumer.text == "".join(texts)
    assert ended_at[0] == pytest.approx(len(texts) * 0.01, abs=0.1)
    assert len(consumer.frames) <= len(texts) / 50
    assert isinstance(consumer.frames[-1], FinalFrame)


async def test_events_are_told_as_they_come(wire: Any) -> None:
    """`on_event` sees every event of the SDK's; the text is the same; what it raises leaves as it is."""
    claude = wire.client(wire.sse(*wire.recorded))
    kinds: list[str] = []
    consumer = Consumer()
    async with stream(claude, **PARAMS) as answer:
        await relay(answer, consumer, on_event=lambda event: kinds.append(event.type))
    assert {"thinking", "input_json", "citation", "a_new_event", "message_stop"} < set(kinds)
    assert consumer.text == "".join(wire.texts)

    def fail(event: Any) -> None:
        raise LookupError("mine")

    async with stream(claude, **PARAMS) as answer:
        with pytest.raises(LookupError, match="mine"):
            await relay(answer, consumer, on_event=fail)
        assert wire.transport.bodies[-1].closed


@pytest.mark.parametrize("at", [0, 1])
async def test_a_consumer_that_leaves_ends_the_request(
    simulator: Simulator, virtual_time: VirtualTime, at: int
) -> None:
    """Its own exception comes out, not wrapped; the request and the slot are free before the block ends."""
    admit = penstock.Admit(concurrency=1)
    async with simulator.client(max_retries=0, middleware=[admit]) as claude, stream(claude, **PARAMS) as answer:
        with pytest.raises(ConnectionError, match="has left"):
            await relay(answer, Consumer(raise_at=at))
        assert simulator.in_flight == 0
        assert admit.statistics().slots_used == 0


async def test_a_consumer_that_hangs_is_given_up(simulator: Simulator, virtual_time: VirtualTime) -> None:
    """After `send_timeout_s` the stream is closed and `TimeoutError` raised."""
    async with simulator.client(max_retries=0) as claude, stream(claude, **PARAMS) as answer:
        began = virtual_time.now()
        with pytest.raises(TimeoutError, match="within 30 s"):
            await relay(answer, Consumer(delay_s=10_000))
        assert virtual_time.now() - began == pytest.approx(30, abs=1)
        assert simulator.in_flight == 0
    async with simulator.client(max_retries=0) as claude, stream(claude, **PARAMS) as answer:
        await relay(answer, Consumer(delay_s=1000), send_timeout_s=None)


async def test_a_time_out_of_the_consumers_own_leaves_as_itself(simulator: Simulator) -> None:
    """What `send` raises is not taken for ours."""

    async def send(frame: Frame) -> None:
        raise TimeoutError("the consumer's own")

    async with simulator.client(max_retries=0) as claude, stream(claude, **PARAMS) as answer:
        with pytest.raises(TimeoutError, match="consumer's own"):
            await relay(answer, send)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("stream_error_after_content", "overloaded_error"),
        ("stream_drop_after_content", "RemoteProtocolError"),
        ("stream_error_before_content", "overloaded_error"),
        ("stream_drop_before_content", "APIConnectionError"),
    ],
)
async def test_a_broken_stream_is_told_after_its_text(
    simulator: Simulator, virtual_time: VirtualTime, fault: str, kind: str
) -> None:
    """All text, then an `ErrorFrame` without content; the error is raised too."""
    simulator.inject(fault)
    consumer = Consumer(delay_s=0.5)
    async with simulator.client(max_retries=0) as claude, stream(claude, **PARAMS) as answer:
        with pytest.raises((StreamInterrupted, anthropic.APIError)) as caught:
            await relay(answer, consumer)
    error = consumer.frames[-1]
    assert isinstance(error, ErrorFrame)
    assert error.type == kind
    assert error.text_length == len(consumer.text)
    if isinstance(caught.value, StreamInterrupted) and caught.value.partial is not None:
        assert caught.value.partial.content[0].text == consumer.text  # type: ignore[union-attr]
        assert consumer.text not in error.message


@pytest.mark.parametrize("on_event", [None, id])
async def test_a_stream_closed_by_someone_else_has_its_final_frame(
    wire: Any, virtual_time: VirtualTime, on_event: Any
) -> None:
    """A stop button: the consumer gets what came, and is told that there is no more; usage is an estimate."""
    claude = wire.client(*paced(wire, list("abcdef"), 10.0))
    consumer = Consumer()
    async with stream(claude, **PARAMS) as answer, anyio.create_task_group() as group:

        async def stop() -> None:
            await anyio.sleep(35)
            await answer.close()

        group.start_soon(stop)
        final = await relay(answer, consumer, on_event=on_event)
        assert virtual_time.now() < 36
    assert consumer.text == "ab"
    assert consumer.frames[-1] == final
    assert (final.stop_reason, final.text_length, final.usage.estimated) == (None, 2, True)


@pytest.mark.lengthy
async def test_cancellation_anywhere_leaves_nothing_behind(virtual_time: VirtualTime) -> None:
    """Cancelled at every await, in the middle of a send too: no request, no slot stays, and frames stay in order."""
    from penstock.simulator import Simulator

    wanted = ""
    for how in ("waiting", "done", "repeatedly"):

        async def scenario(cancelled: Cancelled) -> None:
            nonlocal wanted
            simulator, admit, consumer = (
                Simulator(tokens_per_s=50),
                penstock.Admit(concurrency=1),
                Consumer(delay_s=0.01),
            )

            async def use() -> None:
                async with stream(claude, **PARAMS) as answer:
                    await relay(answer, consumer)

            claude = simulator.client(max_retries=0, middleware=[admit], open_telemetry=False)
            await cancelled(use())
            await anyio.sleep(1)
            assert simulator.in_flight == 0
            assert admit.statistics().slots_used == 0
            wanted = consumer.text if not cancelled.reached else wanted
            assert not wanted or wanted.startswith(consumer.text)

        assert await cancel_at_every_await(scenario, how=how) > 10


@pytest.mark.slow
async def test_a_thousand_consumers_of_which_a_third_hangs(simulator: Simulator, virtual_time: VirtualTime) -> None:
    """The others get everything, in order and once; those that hang are given up; nothing stays open."""
    admit = penstock.Admit(concurrency=100)
    gave_up = 0

    async def serve(number: int) -> None:
        nonlocal gave_up
        consumer = Consumer(delay_s=10_000 if number % 3 == 0 else 0.001 * number)
        try:
            async with stream(claude, **PARAMS) as answer:
                final = await relay(answer, consumer)
                assert consumer.text == await answer.get_final_text()
            assert consumer.frames.count(final) == 1
            assert final.text_length == len(consumer.text)
        except TimeoutError:
            gave_up += 1

    async with simulator.client(max_retries=0, middleware=[admit]) as claude, anyio.create_task_group() as group:
        for number in range(1000):
            group.start_soon(serve, number)
    assert gave_up == 334
    assert simulator.in_flight == 0
    assert admit.statistics().slots_used == 0
