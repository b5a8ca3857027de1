from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.errors import CircuitOpen, QueueFull
from penstock.events import BreakerChanged, Event, Observers
from penstock.guards.breaker import Breaker, BreakerOptions, CircuitBreaker, Passage
from penstock.testing import ScriptedTransport

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

Answer = Callable[[httpx2.Request], Awaitable[httpx2.Response]]
Step = dict[str, Any] | float

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 5, "output_tokens": 2},
}
START = {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}}
CONTENT: list[Step] = [
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
]
END: list[Step] = [
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


# The state machine, against a model that keeps every passage ever given and works everything out from them.


@dataclass(eq=False)
class Given:
    """What the model knows of a passage: the `life` that it was given in, whether its probe is still looked at."""

    life: int
    since: float
    watched: bool
    content: bool = False
    counted: bool = False
    ended: bool = False

    def has_content(self) -> bool:
        return self.content


class BreakerMachine(RuleBasedStateMachine):
    WINDOW, MINIMUM, SHARE, OPEN_S, PROBES = 6, 3, 0.5, 10.0, 2

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = Breaker(
            BreakerOptions(
                window=self.WINDOW,
                minimum=self.MINIMUM,
                failure_share=self.SHARE,
                open_s=self.OPEN_S,
                probes=self.PROBES,
            )
        )
        self.state = "closed"
        self.changed_at = 0.0
        self.life = 0
        self.outcomes: list[bool] = []
        self.refused = 0
        self.passages: dict[Passage, Given] = {}

    def change(self, state: str) -> None:
        self.state, self.changed_at, self.life = state, self.now, self.life + 1

    def count(self, passage: Given, *, failed: bool) -> None:
        if passage.life != self.life or passage.counted:
            return
        passage.counted = True
        if self.state == "half_open":
            mine = [other for other in self.passages.values() if other.life == self.life and other.counted]
            if failed:
                self.change("open")
            elif len(mine) == self.PROBES:
                self.outcomes = []
                self.change("closed")
        else:
            self.outcomes.append(failed)
            last = self.outcomes[-self.WINDOW :]
            begun = max(len(last), min(len(last) + len(self.under_way()), self.WINDOW))
            if len(last) >= self.MINIMUM and sum(last) / begun >= self.SHARE:
                self.change("open")

    def places_taken(self) -> int:
        return sum(
            passage.life == self.life
            and (passage.counted or (not passage.ended and self.now - passage.since < self.OPEN_S))
            for passage in self.passages.values()
        )

    @rule(seconds=st.sampled_from([0.5, 4.0, 9.5, 10.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_caller_comes(self) -> None:
        if self.state == "open" and self.now >= self.changed_at + self.OPEN_S:
            self.change("half_open")
        if self.state == "half_open":
            for earlier in list(self.passages.values()):
                # A probe that was silent for long has no place any more, so nobody looks whether it has content.
                if earlier.content and not earlier.ended and earlier.watched:
                    self.count(earlier, failed=False)
                elif self.now - earlier.since >= self.OPEN_S:
                    earlier.watched = False
        may = self.state == "closed" or (self.state == "half_open" and self.places_taken() < self.PROBES)
        given = Given(life=self.life, since=self.now, watched=self.state == "half_open")
        passage = self.breaker.enter(self.now, given.has_content)
        assert (passage is not None) == may
        if passage is not None:
            self.passages[passage] = given
        else:
            self.refused += 1

    def under_way(self) -> list[Passage]:
        return [passage for passage, entry in self.passages.items() if not entry.ended]

    @precondition(lambda self: self.under_way())
    @rule(data=st.data())
    def content_comes(self, data: st.DataObject) -> None:
        self.passages[data.draw(st.sampled_from(self.under_way()))].content = True

    @precondition(lambda self: self.under_way())
    @rule(data=st.data(), failed=st.sampled_from([False, True, False, None]))
    def an_attempt_ends(self, data: st.DataObject, failed: bool | None) -> None:
        passage = data.draw(st.sampled_from(self.under_way()))
        entry = self.passages[passage]
        entry.ended = True
        if failed is not None:
            self.count(entry, failed=failed)
        self.breaker.leave(passage, failed=failed, now=self.now)

    @invariant()
    def agrees_with_the_model(self) -> None:
        statistics = self.breaker.statistics()
        last = self.outcomes[-self.WINDOW :]
        assert statistics.state == self.breaker.state == self.state
        assert (statistics.failures, statistics.seen) == (sum(last), len(last))
        assert statistics.open_until == (self.changed_at + self.OPEN_S if self.state == "open" else None)
        assert statistics.under_way == len(self.under_way())
        assert statistics.refused == self.refused
        assert self.breaker.idle == (self.state == "closed" and not self.under_way())

    @invariant()
    def a_refusal_says_when_to_come_again(self) -> None:
        wait_s = self.breaker.retry_after_s(self.now)
        assert 0 <= wait_s <= self.OPEN_S
        if self.state == "open":
            assert self.now + wait_s == max(self.now, self.changed_at + self.OPEN_S)


TestBreakerMachine = pytest.mark.lengthy(BreakerMachine.TestCase)


def broken(options: BreakerOptions, *, now: float = 0.0) -> Breaker:
    """A breaker that `minimum` failures have just opened."""
    breaker = Breaker(options)
    passages = [breaker.enter(now) for _ in range(options.minimum)]
    for passage in passages:
        assert passage is not None
        breaker.leave(passage, failed=True, now=now)
    assert breaker.state == "open"
    return breaker


def test_a_share_that_binary_fractions_cannot_hold_is_reached_exactly() -> None:
    """Three of 30 are a tenth, whatever floating point makes of 0.1 × 30."""
    breaker = Breaker(BreakerOptions(window=30, minimum=30, failure_share=0.1))
    for number in range(30):
        passage = breaker.enter(0.0)
        assert passage is not None
        breaker.leave(passage, failed=number < 3, now=0.0)
    assert breaker.state == "open"


def test_failures_that_come_back_at_once_do_not_outvote_what_is_under_way() -> None:
    """Twenty quick failures beside eighty attempts that take their time are a fifth, and no outage."""
    breaker = Breaker(BreakerOptions())
    passages = [breaker.enter(0.0) for _ in range(100)]
    states: list[str] = []
    for failures in (passages[:20], passages[20:49], passages[49:50]):
        for passage in failures:
            assert passage is not None
            breaker.leave(passage, failed=True, now=0.0)
        states.append(breaker.state)
    assert states == ["closed", "closed", "open"]


def test_only_the_last_attempts_count() -> None:
    """What has left the window is forgotten: failures far apart never open the breaker."""
    breaker = Breaker(BreakerOptions(window=4, minimum=3, failure_share=0.5))
    for failed in [False, True, *[False] * 3, True, *[False] * 3, True]:
        passage = breaker.enter(0.0)
        assert passage is not None
        breaker.leave(passage, failed=failed, now=0.0)
    assert (breaker.statistics().failures, breaker.statistics().seen, breaker.state) == (1, 4, "closed")


def test_attempts_from_before_it_opened_change_nothing_when_they_end() -> None:
    """A late failure doesn't reopen a half-open breaker, and a late success doesn't help to close it."""
    options = BreakerOptions(minimum=2, probes=1, open_s=10)
    breaker = Breaker(options)
    early = [passage for _ in range(4) if (passage := breaker.enter(0.0)) is not None]
    for passage in early[:2]:
        breaker.leave(passage, failed=True, now=1.0)
    probe = breaker.enter(11.0)
    assert probe is not None
    breaker.leave(early[2], failed=True, now=12.0)
    breaker.leave(early[3], failed=False, now=12.0)
    assert breaker.state == "half_open"
    breaker.leave(probe, failed=False, now=12.0)
    assert (breaker.state, breaker.statistics().seen) == ("closed", 0)


def test_a_probe_that_says_nothing_makes_room_and_still_counts() -> None:
    """A probe that hangs holds its place for `open_s` only, and closes the breaker if it succeeds after all."""
    breaker = broken(BreakerOptions(minimum=1, probes=1, open_s=10))
    silent = breaker.enter(10.0)
    assert silent is not None
    assert breaker.enter(19.9) is None
    assert breaker.enter(20.0) is not None
    breaker.leave(silent, failed=False, now=21.0)
    assert breaker.state == "closed"


def test_its_repr_tells_state_and_share() -> None:
    """A breaker shows what it is doing."""
    assert repr(broken(BreakerOptions(minimum=2))) == "<Breaker open, 2 of 2 failed, 0 under way>"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"window": 0}, "window"),
        ({"failure_share": 0.0}, "failure_share"),
        ({"failure_share": 1.1}, "failure_share"),
        ({"minimum": 0}, "minimum"),
        ({"window": 10, "minimum": 11}, "minimum"),
        ({"open_s": 0.0}, "open_s"),
        ({"open_s": float("inf")}, "open_s"),
        ({"probes": 0}, "probes"),
        ({"threshold": 5}, "threshold"),
    ],
)
def test_options_out_of_range_are_named(fields: dict[str, Any], named: str) -> None:
    """A bad or unknown option is refused when the guard is made, by its name."""
    with pytest.raises(ValueError, match=named):
        CircuitBreaker(**fields)


def test_options_and_fields_together_are_refused() -> None:
    """Either an options object or its fields, so that none is silently ignored."""
    with pytest.raises(TypeError, match="BreakerOptions"):
        CircuitBreaker(BreakerOptions(), window=50)


# The guard, in a client of the SDK whose service is a function.


class Service(ScriptedTransport):
    """A service that is a function, which may change."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(self._answered)
        self.answer = answer
        self.before = 0

    async def _answered(self, request: httpx2.Request) -> httpx2.Response:
        return await self.answer(request)

    @property
    def seen(self) -> int:
        return len(self.requests) - self.before


class Events(httpx2.AsyncByteStream):
    """An event stream that waits at every number and sends every mapping."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for step in self.steps:
            if isinstance(step, dict):
                yield f"event: {step['type']}\ndata: {json.dumps(step)}\n\n".encode()
            else:
                await anyio.sleep(step)


def streamed(*steps: Step) -> httpx2.Response:
    """A streamed answer."""
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Events(*steps))


async def healthy(request: httpx2.Request) -> httpx2.Response:
    """A service that works."""
    return httpx2.Response(200, json=MESSAGE)


async def overloaded(request: httpx2.Request) -> httpx2.Response:
    """A service that fails."""
    return httpx2.Response(529, json=OVERLOADED)


class Rig:
    """A client with a breaker, its service, and what the observer saw."""

    def __init__(self, answer: Answer, *inner: anthropic.Middleware, **fields: Any) -> None:
        self.service = Service(answer)
        self.events: list[Event] = []
        self.guard = CircuitBreaker(observers=Observers((self.events.append,)), **fields)
        self.sdk = anthropic.AsyncAnthropic(
            api_key="sk-test",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=self.service),
            middleware=[self.guard, *inner],
        )

    async def ask(self, model: str = "claude-sonnet-5-5") -> anthropic.types.Message:
        return await self.sdk.messages.create(
            model=model, max_tokens=10, messages=[{"role": "user", "content": "Hello"}]
        )

    async def stream(self) -> anthropic.AsyncStream[Any]:
        return await self.sdk.messages.create(
            model="claude-sonnet-5-5", max_tokens=10, messages=[{"role": "user", "content": "Hello"}], stream=True
        )

    async def fail(self, times: int, model: str = "claude-sonnet-5-5") -> None:
        for _ in range(times):
            with pytest.raises(anthropic.APIError):
                await self.ask(model)

    @property
    def changes(self) -> list[tuple[str, str]]:
        return [(event.before, event.after) for event in self.events if isinstance(event, BreakerChanged)]

    def state(self, model_class: str = "sonnet-5-5") -> str:
        return self.guard.statistics().classes[model_class].state


async def half_open(answer: Answer, *inner: anthropic.Middleware, probes: int = 1) -> Rig:
    """A rig whose breaker opened, and whose `open_s` of 30 s are over, so that the next callers are probes."""
    rig = Rig(overloaded, *inner, minimum=2, probes=probes, open_s=30)
    await rig.fail(2)
    await anyio.sleep(30)
    rig.service.answer = answer
    rig.service.before = len(rig.service.requests)
    return rig


async def test_an_open_breaker_refuses_at_once_and_sends_nothing(virtual_time: VirtualTime) -> None:
    """After `minimum` failures nothing more is sent, and the error says when to come again and what to do."""
    rig = Rig(overloaded, minimum=3)
    await rig.fail(3)
    await anyio.sleep(12)
    with pytest.raises(CircuitOpen, match=r"'sonnet-5-5' is open: 3 of its last 3 .* try again in 18 s") as caught:
        await rig.ask()
    assert caught.value.retry_after_s == pytest.approx(18, abs=0.1)
    assert rig.service.seen == 3
    assert rig.guard.statistics().refused == 1
    assert repr(rig.guard) == "<CircuitBreaker 1 model classes, 1 not closed>"


async def test_model_classes_fail_apart_and_models_of_one_class_together() -> None:
    """A breaker belongs to a pool of limits: its models share it, the others don't."""
    rig = Rig(overloaded, minimum=2)
    await rig.fail(1, "claude-opus-4-7")
    await rig.fail(1, "claude-opus-4-8")
    with pytest.raises(CircuitOpen):
        await rig.ask("claude-opus-4-7")
    await rig.fail(1, "claude-haiku-5-5")
    assert (rig.state("opus-4"), rig.state("haiku-5-5")) == ("open", "closed")


@pytest.mark.lengthy
@pytest.mark.parametrize("status", [400, 401, 404, 413, 429])
async def test_what_the_client_did_wrong_never_opens_it(status: int) -> None:
    """A 4xx or a 429 is an answer of a service that works."""
    rig = Rig(healthy, minimum=1)

    async def refuse(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, json={"type": "error", "error": {"type": "x", "message": "m"}})

    rig.service.answer = refuse
    await rig.fail(30)
    statistics = rig.guard.statistics().classes["sonnet-5-5"]
    assert (statistics.state, statistics.failures, statistics.seen) == ("closed", 0, 30)


async def test_broken_connections_and_time_outs_open_it() -> None:
    """A service that can't be reached, or doesn't answer in time, is failing."""
    errors = [httpx2.ConnectError("refused"), httpx2.ReadTimeout("slow"), httpx2.ReadError("reset")]

    async def fail(request: httpx2.Request) -> httpx2.Response:
        raise errors.pop()

    rig = Rig(fail, minimum=3)
    await rig.fail(3)
    assert rig.state() == "open"


async def test_exactly_the_probes_pass_among_many_callers(virtual_time: VirtualTime) -> None:
    """Of 50 callers who come together after `open_s`, 3 are sent; when they succeed, everybody may."""

    async def slow(request: httpx2.Request) -> httpx2.Response:
        await anyio.sleep(2)
        return await healthy(request)

    rig = await half_open(slow, probes=3)
    waits: list[float | None] = []

    async def come() -> None:
        try:
            await rig.ask()
        except CircuitOpen as error:
            waits.append(error.retry_after_s)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(come)
    assert rig.service.seen == 3
    assert waits == [1.0] * 47
    assert rig.changes == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]
    assert rig.guard.statistics().classes["sonnet-5-5"].seen == 0
    await rig.ask()
    assert rig.guard.statistics().classes["sonnet-5-5"].seen == 1


async def test_one_failed_probe_opens_it_again(virtual_time: VirtualTime) -> None:
    """One probe that fails is enough, and `open_s` begins anew."""
    rig = await half_open(overloaded, probes=3)
    await rig.fail(1)
    await anyio.sleep(29)
    with pytest.raises(CircuitOpen):
        await rig.ask()
    assert rig.changes[-2:] == [("open", "half_open"), ("half_open", "open")]
    assert rig.service.seen == 1


async def test_a_cancelled_probe_gives_its_place_back(virtual_time: VirtualTime) -> None:
    """A probe whose caller went away says nothing: the next caller takes its place at once."""

    async def hang(request: httpx2.Request) -> httpx2.Response:
        await anyio.sleep_forever()
        raise AssertionError

    rig = await half_open(hang, probes=1)
    with anyio.move_on_after(1):
        await rig.ask()
    assert rig.state() == "half_open"
    rig.service.answer = healthy
    await rig.ask()
    assert rig.state() == "closed"


async def test_a_probe_refused_further_in_gives_its_place_back(virtual_time: VirtualTime) -> None:
    """What an inner guard refuses was never sent, so that it neither closes nor reopens the breaker."""

    class Full(anthropic.Middleware):
        full = False

        async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
            if self.full:
                raise QueueFull("the line is full")
            return await call_next(request)

    inner = Full()
    rig = await half_open(healthy, inner, probes=1)
    inner.full = True
    with pytest.raises(QueueFull):
        await rig.ask()
    assert (rig.state(), rig.service.seen) == ("half_open", 0)
    inner.full = False
    await rig.ask()
    assert rig.state() == "closed"


async def test_an_error_inside_a_stream_counts_as_what_it_is() -> None:
    """An overload that comes as an event of an HTTP 200 stream is a failure, counted when the stream has ended."""

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return streamed(START, *CONTENT, OVERLOADED)

    rig = Rig(answer, minimum=1)
    stream = await rig.stream()
    assert rig.guard.statistics().classes["sonnet-5-5"].seen == 0
    with pytest.raises(anthropic.APIStatusError):
        async for _ in stream:
            pass
    assert rig.state() == "open"


async def test_a_stream_counts_once_when_it_has_ended() -> None:
    """A whole stream is one success."""

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return streamed(START, *CONTENT, *END)

    rig = Rig(answer, minimum=1)
    async for event in await rig.stream():
        under_way = rig.guard.statistics().classes["sonnet-5-5"].under_way
        assert under_way == (event.type != "message_stop")
    statistics = rig.guard.statistics().classes["sonnet-5-5"]
    assert (statistics.seen, statistics.failures, statistics.under_way) == (1, 0, 0)


async def test_a_stream_left_before_its_first_content_counts_neither_way() -> None:
    """Whoever leaves before anything was said can't tell whether the service works."""

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return streamed(START, *CONTENT, *END)

    rig = Rig(answer, minimum=1)
    await (await rig.stream()).close()
    assert rig.guard.statistics().classes["sonnet-5-5"].seen == 0


async def test_a_stream_left_after_its_first_content_is_an_answer() -> None:
    """Content that came shows that the service works, even if the reader then leaves."""

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return streamed(START, *CONTENT, *END)

    rig = Rig(answer, minimum=1)
    stream = await rig.stream()
    async for event in stream:
        if event.type == "content_block_delta":
            break
    await stream.close()
    statistics = rig.guard.statistics().classes["sonnet-5-5"]
    assert (statistics.seen, statistics.failures) == (1, 0)


async def test_a_long_stream_that_brings_content_does_not_keep_others_out(virtual_time: VirtualTime) -> None:
    """A probe that is a stream of ten minutes has proved its point with its first content."""

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return streamed(START, *CONTENT, 600.0, *END)

    rig = await half_open(answer, probes=1)
    stream = await rig.stream()
    with pytest.raises(CircuitOpen):
        await rig.ask()
    events = aiter(stream)
    while (await anext(events)).type != "content_block_delta":
        pass
    rig.service.answer = healthy
    await rig.ask()
    assert rig.state() == "closed"
    assert [event.type async for event in events][-1] == "message_stop"
    assert rig.guard.statistics().classes["sonnet-5-5"].seen == 1


async def test_a_probe_whose_body_was_dropped_unread_gives_its_place_back(virtual_time: VirtualTime) -> None:
    """The breaker doesn't keep a forgotten body alive: it ends as it is forgotten, and another probe may go."""

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return streamed(START, 600.0)

    rig = await half_open(answer, probes=1)
    with pytest.warns(ResourceWarning, match="dropped"):
        await rig.stream()
    rig.service.answer = healthy
    await rig.ask()
    assert rig.state() == "closed"


async def test_other_requests_pass_an_open_breaker() -> None:
    """Only messages pass the breaker: counting tokens and listing models go on, and don't count."""
    rig = Rig(overloaded, minimum=1)
    await rig.fail(1)

    async def count(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"input_tokens": 3})

    rig.service.answer = count
    counted = await rig.sdk.messages.count_tokens(
        model="claude-sonnet-5-5", messages=[{"role": "user", "content": "Hello"}]
    )
    assert counted.input_tokens == 3
    assert rig.guard.statistics().classes["sonnet-5-5"].seen == 1


async def test_memory_is_bounded_and_what_is_broken_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many classes are kept, the idle ones unused for longest make room, an open one stays."""
    monkeypatch.setattr("penstock.guards.breaker._MOST_CLASSES", 20)
    rig = Rig(overloaded, minimum=1)
    await rig.fail(1, "broken")
    rig.service.answer = healthy
    for number in range(25):
        await rig.ask(f"model-{number}")
    classes = rig.guard.statistics().classes
    assert len(classes) == 20
    assert classes["broken"].state == "open"
    assert "model-5" not in classes
    assert "model-6" in classes


async def test_it_outgrows_its_bound_rather_than_forget_an_open_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """If every class is broken, none is forgotten: that would let doomed requests through."""
    monkeypatch.setattr("penstock.guards.breaker._MOST_CLASSES", 20)
    rig = Rig(overloaded, minimum=1)
    for number in range(21):
        await rig.fail(1, f"model-{number}")
    assert len(rig.guard.statistics().classes) == 21
