from __future__ import annotations

import contextlib
import gc
import json
import math
import random
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import anthropic
import anyio
import anyio.lowlevel
import httpx2
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.attempt import CallNext, Response, open_attempt
from penstock._core.background import Background
from penstock._core.call import open_call
from penstock._core.context import Patience, deadline, patience
from penstock._core.failure import Failure, FailureKind
from penstock.errors import (
    AdmissionTimeout,
    CircuitOpen,
    ClientClosed,
    InvalidStream,
    NoKeyAvailable,
    PenstockError,
    QueueFull,
    RequestExceedsQuota,
)
from penstock.events import Event, Observers, RetryScheduled
from penstock.guards.retry import Retry, RetryOptions, RetryStatistics
from penstock.guards.retry.course import Again, Course, Stop
from penstock.simulator import MIXED_FAULTS, Simulator
from penstock.testing import Cancelled, ScriptedTransport, cancel_at_every_await
from penstock.testing.cancellation import How

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from anthropic import APIRequest

    from penstock._core.call import Call
    from penstock.testing.plugin import VirtualTime

pytestmark = pytest.mark.usefixtures("virtual_time")

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
ASK: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "Hello"}],
}


def sse(*events: dict[str, Any]) -> bytes:
    """The bytes of events."""
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


PING = sse({"type": "ping"})
START = sse(
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
)
TEXT = sse({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}})
END = sse(
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
)
OVERLOADED = sse({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
REFUSED = sse({"type": "error", "error": {"type": "invalid_request_error", "message": "No"}})
PINGS: list[bytes | float] = [5.0, PING]
BROKEN_JSON = b"event: message_start\ndata: {\n\n"


class Body(httpx2.AsyncByteStream):
    """Bytes, seconds to wait, and errors to raise, in turn."""

    def __init__(self, *parts: bytes | float | Exception) -> None:
        self.parts = list(parts)
        self.closing = False
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
            elif isinstance(part, Exception):
                raise part
            else:
                await anyio.sleep(part)

    async def aclose(self) -> None:
        self.closing = True
        await anyio.lowlevel.checkpoint()
        self.closed = True


Answer = Callable[[], httpx2.Response]


def plain() -> httpx2.Response:
    """Answer with a message."""
    return httpx2.Response(200, json=MESSAGE)


def status(code: int, *, body: object = None, **headers: str) -> Answer:
    """Answer with an error of the API."""

    def answer() -> httpx2.Response:
        content = {"type": "error", "error": {"type": "an_error", "message": "No"}} if body is None else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx2.Response(code, json=content, headers={"request-id": f"req_{code}"} | named)

    return answer


def raising(error: Exception) -> Answer:
    """Fail before there is an answer."""

    def answer() -> httpx2.Response:
        raise error

    return answer


def stream(*parts: bytes | float | Exception) -> Answer:
    """Answer with an event stream."""
    return lambda: httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(*parts))


GOOD_STREAM = stream(START, TEXT, END)


class Server(ScriptedTransport):
    """Gives the answers in turn, and the last one for ever; keeps the bodies."""

    def __init__(self, *answers: Answer, latency_s: float = 0.0) -> None:
        super().__init__(*[self._made(answer) for answer in answers])
        self.latency_s = latency_s
        self.bodies: list[Body] = []

    def _made(self, answer: Answer) -> Callable[[httpx2.Request], Awaitable[httpx2.Response]]:
        async def make(_: httpx2.Request) -> httpx2.Response:
            if self.latency_s:
                await anyio.sleep(self.latency_s)
            response = answer()
            if isinstance(response.stream, Body):
                self.bodies.append(response.stream)
            return response

        return make

    def client(self, *middleware: anthropic.Middleware, **options: Any) -> anthropic.AsyncAnthropic:
        return super().client(middleware=list(middleware), **options)


class Refuses(anthropic.Middleware):
    """A guard below that refuses the first requests."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        with open_attempt(request) as attempt:
            error = self.errors.pop(0) if self.errors else None
            if error is not None:
                raise error
            return await attempt.send(request, call_next)


class Watches(anthropic.Middleware):
    """A guard below that takes something for each attempt, to be given back once."""

    def __init__(self) -> None:
        self.given_back: dict[int, int] = {}
        self.calls_attempts: list[int] = []
        self.failures: list[FailureKind | None] = []

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        with open_attempt(request) as attempt:
            place = len(self.given_back)
            self.given_back[place] = 0
            self.calls_attempts.append(attempt.call.attempts)

            def give_back(_: object) -> None:
                self.given_back[place] += 1
                self.failures.append(None if attempt.failure is None else attempt.failure.kind)

            attempt.push(give_back)
            attempt.sent = True
            return await attempt.send(request, call_next)


def retry_of(*, observer: Callable[[Event], None] | None = None, **fields: Any) -> Retry:
    """The guard with jitter that is the same in every run."""
    return Retry(rng=random.Random(3), observers=Observers(() if observer is None else (observer,)), **fields)


async def text_of(client: anthropic.AsyncAnthropic) -> str:
    """Stream an answer and return its text."""
    async with client.messages.stream(**ASK) as given:
        return await given.get_final_text()


@contextlib.asynccontextmanager
async def running_background() -> AsyncGenerator[Background, None]:
    """The background task of a client."""
    background, stop, started = Background(Observers()), anyio.Event(), anyio.Event()

    async def run() -> None:
        await background.run(stop, started=started, grace_s=1.0)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await started.wait()
        yield background
        stop.set()


class Opens(anthropic.Middleware):
    """Opens the call as a client does: with a background task."""

    def __init__(self, background: Background | None) -> None:
        self.background = background

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        with open_call(request, background=self.background):
            return await call_next(request)


# Causes that the API names.


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("fault", "requests"),
    [
        ({"type": "invalid_request_error", "error_code": "request_body_timeout"}, 2),
        ({"type": "api_error", "status": 503, "error_code": "authorization_check_unavailable"}, 2),
        ({"type": "invalid_request_error", "error_code": "image_dimensions_too_large"}, 1),
        ({"type": "invalid_request_error", "error_code": "workspace_human_review_disabled"}, 1),
        ({"type": "api_error", "status": 503, "error_code": "change_outcome_unknown", "should_retry": True}, 1),
        ({"type": "api_error", "status": 503, "error_code": "workspace_created_incomplete"}, 1),
        ({"type": "conflict_error", "error_code": "storage_in_use"}, 1),
        ({"type": "billing_error"}, 1),
        ({"type": "api_error", "status": 501}, 1),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_repeated_follows_from_the_cause(fault: dict[str, Any], requests: int, stream: bool) -> None:
    """Where nothing was done, the same is sent again, whatever the status; where it may be done, or stays, it isn't."""
    simulator, watched = Simulator(), Watches()
    simulator.inject("error", **fault)
    client = simulator.client(max_retries=0, middleware=[retry_of(), watched])
    with contextlib.nullcontext() if requests == 2 else pytest.raises(anthropic.APIStatusError):
        await (text_of(client) if stream else client.messages.create(**ASK))
    assert len(simulator.journal) == len(watched.given_back) == requests


async def test_inside_a_stream_the_cause_decides_too() -> None:
    """A code in an `error` event before any content, with a status of 200."""
    simulator = Simulator()
    simulator.inject("stream_error_before_content", type="invalid_request_error", error_code="request_body_timeout")
    simulator.inject("stream_error_before_content", type="api_error", error_code="change_outcome_unknown")
    client = simulator.client(max_retries=0, middleware=[retry_of()])
    with pytest.raises(anthropic.APIStatusError, match="failed"):
        await text_of(client)
    assert len(simulator.journal) == 2


@pytest.mark.parametrize(
    "error", [httpx2.LocalProtocolError("Illegal header value"), ValueError("Newline in a header")]
)
async def test_what_cannot_be_sent_is_tried_once(error: Exception) -> None:
    """The SDK makes a connection error of it, which would be retried."""
    server = Server(raising(error))
    with pytest.raises(anthropic.APIConnectionError):
        await server.client(retry_of()).messages.create(**ASK)
    assert len(server.requests) == 1


# Options.


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("max_attempts", 0),
        ("base_s", 0),
        ("cap_s", -1),
        ("hold_s", -1),
        ("quota", -1),
        ("cost", 0),
        ("throttled_cost", 0),
        ("probe_s", 0),
        ("base_s", math.nan),
        ("attempts", 3),
    ],
)
def test_a_bad_option_is_refused_by_name(field: str, bad: Any) -> None:
    """Options are checked once, when they are made, and the error names the field."""
    with pytest.raises(pydantic.ValidationError, match=field):
        Retry(**{field: bad})


def test_options_and_fields_exclude_each_other() -> None:
    """Nothing is accepted and ignored."""
    with pytest.raises(TypeError, match="not both"):
        Retry(RetryOptions(), max_attempts=2)


def test_it_shows_its_state() -> None:
    """Its repr and statistics say what is left of the quota."""
    retry = Retry(RetryOptions(max_attempts=3, quota=100))

    assert repr(retry) == "<Retry up to 3 attempts, 0 retries, <RetryQuota 100 of 100, 0 waiting>>"
    assert retry.statistics() == RetryStatistics(quota=100, capacity=100, waiting=0, delayed=0, retries=0, exhausted=0)


# The course: when the next attempt follows.

KINDS = st.sampled_from(
    [FailureKind.CONNECTION, FailureKind.TIMEOUT, FailureKind.RATE_LIMITED, FailureKind.OVERLOADED, FailureKind.SERVER]
)


@given(
    seed=st.integers(),
    base_s=st.floats(0.001, 100),
    cap_s=st.floats(0.001, 1000),
    failures=st.lists(st.tuples(KINDS, st.none() | st.floats(0.001, 500)), max_size=100),
)
def test_waits_are_full_jitter_and_never_sooner_than_the_server_asks(
    seed: int, base_s: float, cap_s: float, failures: list[tuple[FailureKind, float | None]]
) -> None:
    """Each wait is between nothing, or what the server asks, and the doubled base, or the cap."""
    course = Course(RetryOptions(base_s=base_s, cap_s=cap_s), random.Random(seed), max_attempts=1000)

    for number, (kind, retry_after_s) in enumerate(failures):
        step = course.after(Failure(kind=kind, retry_after_s=retry_after_s), None, now=0.0)

        assert isinstance(step, Again)
        assert not step.free
        asked_s = retry_after_s or 0.0
        most_s = min(cap_s, base_s * 2**number)
        assert asked_s <= step.delay_s <= max(most_s, asked_s + base_s if retry_after_s else 0.0) * (1 + 1e-9)
    assert course.attempts == len(failures)


def test_waits_are_spread_over_the_whole_range() -> None:
    """Full jitter: calls that failed together don't come back together, whether or not the server named a time."""
    for retry_after_s, low, high in ((None, 0.0, 0.5), (60.0, 60.0, 60.5)):
        failure = Failure(kind=FailureKind.SERVER, retry_after_s=retry_after_s)
        rng = random.Random(1)
        waits = [
            step.delay_s
            for _ in range(1000)
            if isinstance(step := Course(RetryOptions(), rng, max_attempts=2).after(failure, None, now=0.0), Again)
        ]

        assert len(waits) == 1000
        assert min(waits) < low + 0.01
        assert max(waits) > high - 0.01
        assert low <= sum(waits) / 1000 - 0.25 + 0.02 <= low + 0.04


@given(retry_after_s=st.none() | st.floats(0.1, 200), now=st.floats(0, 100), seed=st.integers())
def test_no_wait_passes_the_deadline(retry_after_s: float | None, now: float, seed: int) -> None:
    """A wait that would is not begun."""
    course = Course(RetryOptions(), random.Random(seed), max_attempts=4, deadline=100.0)

    step = course.after(Failure(kind=FailureKind.RATE_LIMITED, retry_after_s=retry_after_s), None, now=now)

    if isinstance(step, Again):
        assert now + step.delay_s < 100.0
    else:
        assert now + max(retry_after_s or 0.0, 0.0) + 0.5 >= 100.0
        assert "deadline" in step.why


def test_a_refusal_is_no_attempt() -> None:
    """Only what was sent counts; items of a fan-out wait for the breaker as often as it takes."""
    refused, error = Failure(kind=FailureKind.REFUSED), CircuitOpen("open", retry_after_s=20.0)
    course = Course(RetryOptions(), random.Random(1), max_attempts=2, patient=True)

    for _ in range(50):
        step = course.after(refused, error, now=0.0)
        assert isinstance(step, Again)
        assert step.free
        assert 20.0 <= step.delay_s <= 30.5
    assert course.attempts == 0
    assert isinstance(course.after(Failure(kind=FailureKind.SERVER), None, now=0.0), Again)
    assert course.after(Failure(kind=FailureKind.SERVER), None, now=0.0) == Stop("no attempt is left")


# Which failures are retried.

OVER_SPENT = {
    "type": "error",
    "error": {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}},
}
RETRIED: list[tuple[str, Answer]] = [
    ("connection refused", raising(httpx2.ConnectError("refused"))),
    ("connection lost", raising(httpx2.RemoteProtocolError("peer closed connection"))),
    ("read error", raising(httpx2.ReadError("reset"))),
    ("time-out", raising(httpx2.ReadTimeout("too slow"))),
    *((str(code), status(code)) for code in (408, 409, 429, 500, 502, 503, 504, 520, 529)),
    ("HTML", lambda: httpx2.Response(502, html="<html>Bad Gateway</html>")),
    ("asked for", status(400, x_should_retry="true")),
]
FINAL: list[tuple[str, Answer, type[anthropic.APIStatusError]]] = [
    ("400", status(400), anthropic.BadRequestError),
    ("401", status(401), anthropic.AuthenticationError),
    ("402", status(402), anthropic.APIStatusError),
    ("403", status(403), anthropic.PermissionDeniedError),
    ("404", status(404), anthropic.NotFoundError),
    ("413", status(413), anthropic.APIStatusError),
    ("422", status(422), anthropic.UnprocessableEntityError),
    ("forbidden", status(500, x_should_retry="false"), anthropic.InternalServerError),
    ("spend cap", status(429, body=OVER_SPENT), anthropic.RateLimitError),
    ("spend cap, asked for", status(429, body=OVER_SPENT, x_should_retry="true"), anthropic.RateLimitError),
]


@pytest.mark.lengthy
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("fault", [fault for _, fault in RETRIED], ids=[name for name, _ in RETRIED])
async def test_what_may_pass_is_tried_again(fault: Answer, streamed: bool) -> None:
    """Two failures and a success are a success; each attempt gives back what was taken for it."""
    server, watches = Server(fault, fault, GOOD_STREAM if streamed else plain), Watches()
    client = server.client(retry_of(), watches)

    if streamed:
        assert await text_of(client) == "Hi"
    else:
        assert (await client.messages.create(**ASK)).id == "msg_1"

    assert len(server.requests) == 3
    assert watches.given_back == {0: 1, 1: 1, 2: 1}
    assert all(body.closed for body in server.bodies)


@pytest.mark.lengthy
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(("fault", "error"), [row[1:] for row in FINAL], ids=[row[0] for row in FINAL])
async def test_what_would_fail_again_is_final(
    fault: Answer, error: type[anthropic.APIStatusError], streamed: bool
) -> None:
    """The request itself, the key, a spend cap and the server's own word aren't argued with, nor noted."""
    server, retry = Server(fault), retry_of()

    with pytest.raises(error) as raised:
        await server.client(retry).messages.create(**ASK, stream=streamed)

    assert len(server.requests) == 1
    assert not hasattr(raised.value, "__notes__")
    assert retry.statistics().quota == 500


@pytest.mark.parametrize(
    "error",
    [
        CircuitOpen("open", retry_after_s=3.0),
        NoKeyAvailable("none", retry_after_s=3.0),
        QueueFull("full"),
        AdmissionTimeout("late"),
        RequestExceedsQuota("input_tokens", needed=9, capacity=5),
        ClientClosed("closed"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_refusals_of_other_guards_are_final_and_free(error: PenstockError) -> None:
    """They reach the caller as they are, at once, and take nothing from the quota."""
    server, retry = Server(plain), retry_of()

    with pytest.raises(type(error)) as raised:
        await server.client(retry, Refuses(error)).messages.create(**ASK)

    assert raised.value is error
    assert not server.requests
    assert retry.statistics() == RetryStatistics(quota=500, capacity=500, waiting=0, delayed=0, retries=0, exhausted=0)


async def test_a_retry_that_is_refused_costs_nothing_and_says_what_came_before() -> None:
    """The refusal is raised, with a note of the attempt made."""
    server, retry = Server(status(500)), retry_of()

    with pytest.raises(CircuitOpen) as raised:
        await server.client(retry, Refuses(None, CircuitOpen("open"))).messages.create(**ASK)

    assert [note.split(" in ")[0] for note in raised.value.__notes__] == ["1 attempt"]
    assert retry.statistics().quota == 500


async def test_a_middleware_of_the_users_may_ask_for_a_retry() -> None:
    """`anthropic.RetryableError` is obeyed, and the answer that it left open is closed."""

    class Picky(anthropic.Middleware):
        refused = False

        async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
            response = await call_next(request)
            if not self.refused:
                self.refused = True
                raise anthropic.RetryableError
            return response

    server, watches = Server(GOOD_STREAM), Watches()

    assert await text_of(server.client(retry_of(), Picky(), watches)) == "Hi"

    assert len(server.requests) == 2
    assert [body.closed for body in server.bodies] == [True, True]


async def test_errors_of_a_users_middleware_are_final() -> None:
    """What isn't known isn't repeated."""
    server = Server(plain)

    with pytest.raises(ZeroDivisionError) as raised:
        await server.client(retry_of(), Refuses(ZeroDivisionError())).messages.create(**ASK)

    assert not hasattr(raised.value, "__notes__")


async def test_a_middleware_that_answers_itself_is_believed() -> None:
    """An answer without HTTP response passes as it is."""

    class Cache(anthropic.Middleware):
        async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
            return "cached"

    assert await Server(plain).client(retry_of(), Cache()).messages.create(**ASK) == "cached"


# How many attempts, and when.


async def test_attempts_are_counted_and_the_last_error_is_raised_with_a_note(virtual_time: VirtualTime) -> None:
    """Four attempts by default; the error is the SDK's own for the last answer, with how many and how long."""
    server, retry = Server(status(500), status(503), status(500), status(529)), retry_of()

    with pytest.raises(anthropic.APIStatusError) as raised:
        await server.client(retry).messages.create(**ASK)

    assert len(server.requests) == 4
    assert raised.value.status_code == 529
    assert raised.value.request_id == "req_529"
    assert raised.value.__notes__ == [f"4 attempts in {virtual_time.now():.3g} s; no attempt is left"]
    assert retry.statistics().quota == 500 - 3 * 14


async def test_the_last_connection_error_gets_the_note_too() -> None:
    """The SDK's own error, its cause, and the note."""
    lost = httpx2.ReadError("reset")
    server = Server(raising(lost))

    with pytest.raises(anthropic.APIConnectionError) as raised:
        await server.client(retry_of(max_attempts=2)).messages.create(**ASK)

    # The first connection may have been an old one, so that it doesn't count.
    assert len(server.requests) == 1 + 2
    assert raised.value.__cause__ is lost
    assert raised.value.__notes__[0].startswith("3 attempts in ")


async def test_the_number_of_retries_is_told_to_the_server_and_to_the_caller() -> None:
    """As with the SDK's own loop."""
    server = Server(status(500), status(500), plain)

    response = await server.client(retry_of()).messages.with_raw_response.create(**ASK)

    assert [request.headers["x-stainless-retry-count"] for request in server.requests] == ["0", "1", "2"]
    assert response.retries_taken == 2


async def test_every_attempt_sends_the_same_request() -> None:
    """The body and the SDK's idempotency key don't change."""
    server = Server(status(500), plain)

    await server.client(retry_of()).messages.create(**ASK)

    first, second = server.requests
    assert first.content == second.content
    ignored = {"x-stainless-retry-count"}
    assert {n: v for n, v in first.headers.items() if n not in ignored} == {
        n: v for n, v in second.headers.items() if n not in ignored
    }


async def test_back_off_doubles_up_to_the_cap() -> None:
    """The waits that observers hear of are the waits that are made."""
    events: list[Event] = []
    server = Server(*[status(500)] * 9, plain)

    await server.client(retry_of(observer=events.append, max_attempts=10, base_s=1, cap_s=16)).messages.create(**ASK)

    scheduled = [event for event in events if isinstance(event, RetryScheduled)]
    waits = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert waits == pytest.approx([event.delay_s for event in scheduled], abs=0.001)
    assert all(wait <= min(2**number, 16) + 0.001 for number, wait in enumerate(waits))
    assert sum(waits) > 20
    assert [event.attempt for event in scheduled] == list(range(1, 10))
    assert {event.reason for event in scheduled} == {"server"}
    assert len({event.call_id for event in scheduled}) == 1


@pytest.mark.parametrize(
    ("headers", "asked_s"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after_ms": "2500"}, 2.5),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
    ],
)
async def test_the_server_is_not_asked_sooner_than_it_says(headers: dict[str, str], asked_s: float) -> None:
    """`retry-after-ms` and `retry-after` are obeyed, plus a little jitter."""
    server = Server(status(429, **headers), plain)

    await server.client(retry_of()).messages.create(**ASK)

    assert asked_s <= server.times[1] - server.times[0] <= asked_s + 0.51


async def test_a_wait_beyond_the_deadline_is_not_begun(virtual_time: VirtualTime) -> None:
    """The caller hears at once what the server said, and why it isn't waited for."""
    server = Server(status(429, retry_after="3600"))

    with deadline(60), pytest.raises(anthropic.RateLimitError) as raised:
        await server.client(retry_of()).messages.create(**ASK)

    assert virtual_time.now() < 1
    assert "would pass the deadline" in raised.value.__notes__[0]
    assert raised.value.response.headers["retry-after"] == "3600"


async def test_back_off_that_would_pass_the_deadline_ends_in_the_last_error(virtual_time: VirtualTime) -> None:
    """Not in a time-out."""
    server = Server(status(503))

    with deadline(4), pytest.raises(anthropic.APIStatusError) as raised:
        await server.client(retry_of(max_attempts=50, base_s=1, quota=10_000)).messages.create(**ASK)

    assert raised.value.status_code == 503
    assert virtual_time.now() <= 4


async def test_a_server_that_never_answers_is_cut_off_at_the_deadline(virtual_time: VirtualTime) -> None:
    """The call ends in a time-out, and its attempt is given back."""
    server, watches = Server(plain, latency_s=1000), Watches()

    with deadline(20), pytest.raises(anthropic.APITimeoutError, match="timed out"):
        await server.client(retry_of(), watches).messages.create(**ASK)

    assert virtual_time.now() == pytest.approx(20, abs=0.01)
    assert (watches.given_back, watches.failures) == ({0: 1}, [FailureKind.TIMEOUT])


# The SDK's own error, raised where a note can be added.


@pytest.mark.lengthy
@pytest.mark.parametrize("raw", ["", "with_raw_response", "with_streaming_response"])
@pytest.mark.parametrize(
    "answer",
    [
        status(529),
        status(429, body=OVER_SPENT, x_should_retry="true"),
        status(500, body=[1]),
        lambda: httpx2.Response(502, html="<html>Bad Gateway</html>"),
        lambda: httpx2.Response(500),
    ],
)
async def test_the_error_raised_in_the_chain_is_the_one_that_the_sdk_raises(answer: Answer, raw: str) -> None:
    """Canary: same class, message, fields and chaining as without any middleware, in every way to call."""

    async def raised_by(client: anthropic.AsyncAnthropic) -> anthropic.APIStatusError:
        messages: Any = getattr(client.messages, raw) if raw else client.messages
        asked = messages.create(**ASK)
        with pytest.raises(anthropic.APIStatusError) as raised:
            await (asked.__aenter__() if raw == "with_streaming_response" else asked)
        return raised.value

    bare = await raised_by(Server(answer).client())
    ours = await raised_by(Server(status(503), answer).client(retry_of(max_attempts=2)))

    names = ("message", "api_message", "status_code", "body", "type", "error_code", "request_id", "args")
    assert type(ours) is type(bare)
    assert [getattr(ours, name) for name in names] == [getattr(bare, name) for name in names]
    assert (ours.__cause__, ours.__suppress_context__) == (bare.__cause__, bare.__suppress_context__)
    assert ours.response.content == bare.response.content
    assert len(ours.__notes__) == 1


@pytest.mark.parametrize("code", [400, 503])
async def test_an_error_answer_whose_body_breaks_off_is_told_by_its_status(code: int) -> None:
    """The status says enough, to retry by and to raise."""
    body = Body(b'{"type": ', httpx2.ReadError("reset"))
    server = Server(lambda: httpx2.Response(code, stream=body))

    with pytest.raises(anthropic.APIStatusError, match=f"Error code: {code}"):
        await server.client(retry_of(max_attempts=2)).messages.create(**ASK, stream=True)

    assert len(server.requests) == (2 if code == 503 else 1)


async def test_an_error_answer_that_no_sdk_client_made_is_handed_on() -> None:
    """Where a user's middleware answers with a bare response, the SDK gets it as it is."""

    class Bare(anthropic.Middleware):
        async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
            return (await call_next(request)).http_response

    server = Server(status(500))

    answer: Any = await server.client(retry_of(max_attempts=2), Bare()).messages.create(**ASK)

    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    assert len(server.requests) == 2


async def test_an_error_raised_keeps_nothing_alive() -> None:
    """Dropped, it is freed at once: it forms no cycle with the frames that it passed."""
    error: Any = None
    gc.collect()
    gc.disable()
    try:
        try:
            await Server(raising(httpx2.ReadError("reset"))).client(retry_of(max_attempts=2)).messages.create(**ASK)
        except anthropic.APIConnectionError as raised:
            error = weakref.ref(raised)
        assert error() is None
    finally:
        gc.enable()


# One retry loop.


async def test_with_the_sdks_retries_on_a_final_answer_stops_both_loops() -> None:
    """Two loops of three don't make nine attempts."""
    server = Server(status(500))

    with pytest.raises(anthropic.InternalServerError):
        await server.client(retry_of(max_attempts=3), max_retries=2).messages.create(**ASK)

    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", [status(429, body=OVER_SPENT), status(500, x_should_retry="false"), status(429)])
async def test_with_the_sdks_retries_on_the_first_final_answer_is_final(fault: Answer) -> None:
    """Also where this guard did not retry: because it may not, or because the quota is empty."""
    server = Server(fault)

    with pytest.raises(anthropic.APIStatusError):
        await server.client(retry_of(quota=0), max_retries=2).messages.create(**ASK)

    assert len(server.requests) == 1


async def test_with_the_sdks_retries_on_a_lost_connection_adds_one_attempt_for_each() -> None:
    """An exception can't be marked, so the SDK comes again; then one attempt is made each time."""
    server = Server(raising(httpx2.ReadError("reset")))

    with pytest.raises(anthropic.APIConnectionError):
        await server.client(retry_of(max_attempts=3), max_retries=2).messages.create(**ASK)

    assert len(server.requests) == 1 + 3 + 2


# The quota.


@pytest.mark.lengthy
async def test_an_outage_of_many_calls_is_not_multiplied() -> None:
    """When the quota is empty, calls fail at once, and their error says why."""
    server, retry = Server(status(500)), retry_of()
    client = server.client(retry)
    notes: list[str] = []

    async def call() -> None:
        try:
            await client.messages.create(**ASK)
        except anthropic.InternalServerError as error:
            notes.extend(error.__notes__)

    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(call)

    assert len(server.requests) == 200 + 500 // 14
    assert len(notes) == 200
    assert sum(note.endswith("the retry quota is empty") for note in notes) > 150
    statistics = retry.statistics()
    assert (statistics.quota, statistics.retries, statistics.exhausted > 150) == (500 - 35 * 14, 35, True)


async def test_what_a_retry_paid_comes_back_when_it_succeeds() -> None:
    """Failures that pass cost nothing in the end; first successes fill the quota up slowly."""
    retry = retry_of()
    client = Server(status(500), status(500), plain, plain, status(429), plain).client(retry)

    await client.messages.create(**ASK)
    assert retry.statistics().quota == 500 - 14
    await client.messages.create(**ASK)
    assert retry.statistics().quota == 500 - 14 + 1
    await client.messages.create(**ASK)
    assert retry.statistics().quota == 500 - 14 + 1
    assert retry.statistics().retries == 3


@pytest.mark.lengthy
async def test_items_of_a_fan_out_wait_for_the_quota_and_all_succeed() -> None:
    """In an outage of ten minutes, one item in 30 s goes on; when one succeeds, all do."""

    class Recovers(Server):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            response = await super().handle_async_request(request)
            return plain() if anyio.current_time() > 600 else response

    server, retry = Recovers(status(500)), retry_of()
    client = server.client(retry)
    answered, waited = 0, 0

    async def item() -> None:
        nonlocal answered, waited
        with patience(Patience(max_attempts=100)):
            await client.messages.create(**ASK)
        answered += 1

    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(item)
        await anyio.sleep(300)
        waited = retry.statistics().waiting

    assert (answered, waited) == (200, 200)
    during = [time for time in server.times if time < 600]
    assert len(during) <= 200 + 35 + 600 / 30 + 1
    assert max(server.times) < 700
    assert retry.statistics().waiting == 0


async def test_items_of_a_fan_out_have_their_own_number_of_attempts() -> None:
    """Ten, not four."""
    server = Server(*[status(500)] * 9, plain)

    with patience(Patience(max_attempts=10)):
        await server.client(retry_of()).messages.create(**ASK)

    assert len(server.requests) == 10


async def test_an_item_that_waited_for_the_quota_does_not_back_off_again() -> None:
    """The wait in line counts."""
    server, retry = Server(status(500), plain), retry_of(quota=0, probe_s=30, base_s=20)
    client = server.client(retry)
    retry._quota._probe_at = 30.0

    with patience(Patience()):
        await client.messages.create(**ASK)

    assert server.times[1] == pytest.approx(30.0, abs=0.01)


async def test_an_item_cancelled_while_it_waits_leaves_the_line() -> None:
    """Its place, its charge and its probe are free for others."""
    retry = retry_of(quota=0)
    client = Server(status(500)).client(retry)

    async def item() -> None:
        with patience(Patience()):
            await client.messages.create(**ASK)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(item)
        await anyio.sleep(5)
        assert retry.statistics().waiting > 0
        group.cancel_scope.cancel()

    assert retry.statistics().waiting == 0


async def test_an_item_waits_in_line_no_longer_than_its_deadline(virtual_time: VirtualTime) -> None:
    """A deadline of its own bounds the wait."""
    retry = retry_of(quota=0)
    retry._quota._probe_at = math.inf

    with patience(Patience(deadline_s=100)), pytest.raises(anthropic.APITimeoutError):
        await Server(status(500)).client(retry).messages.create(**ASK)

    assert virtual_time.now() == pytest.approx(100, abs=0.01)
    assert retry.statistics().waiting == 0


async def test_calls_that_wait_for_their_next_attempt_are_counted(virtual_time: VirtualTime) -> None:
    """From the failure to the next attempt, whether it is made or cancelled."""
    retry = retry_of()
    sdk = Server(status(500, retry_after="60"), plain).client(retry)
    async with anyio.create_task_group() as group:
        group.start_soon(partial(sdk.messages.create, **ASK))
        await anyio.sleep(30)
        assert retry.statistics().delayed == 1
    assert retry.statistics().delayed == 0

    with anyio.move_on_after(30):
        await Server(status(500, retry_after="60")).client(retry).messages.create(**ASK)
    assert retry.statistics().delayed == 0


async def test_a_retry_cancelled_in_its_wait_gives_back_what_it_paid() -> None:
    """A retry that is never made costs nothing."""
    retry = retry_of()

    with anyio.move_on_after(5):
        await Server(status(429, retry_after="60")).client(retry).messages.create(**ASK)

    assert retry.statistics() == RetryStatistics(quota=500, capacity=500, waiting=0, delayed=0, retries=0, exhausted=0)


async def test_items_of_a_fan_out_wait_for_the_circuit_breaker() -> None:
    """As long as it takes; it is no attempt, costs nothing, and observers hear of it."""
    events: list[Event] = []
    server, watches, retry = Server(status(500), plain), Watches(), retry_of(observer=events.append)
    refuses = Refuses(None, *[CircuitOpen("open", retry_after_s=20.0)] * 5)

    with patience(Patience(max_attempts=2)):
        await server.client(retry, refuses, watches).messages.create(**ASK)

    assert server.times[1] - server.times[0] >= 100
    assert watches.calls_attempts == [1, 2]
    assert [event.reason for event in events if isinstance(event, RetryScheduled)] == ["server"] + ["circuit_open"] * 5
    assert retry.statistics() == RetryStatistics(quota=500, capacity=500, waiting=0, delayed=0, retries=1, exhausted=0)


async def test_items_of_a_fan_out_do_not_wait_for_other_refusals() -> None:
    """With every key quarantined, an item fails as any call does."""
    server = Server(plain)

    with patience(Patience()), pytest.raises(NoKeyAvailable):
        await server.client(retry_of(), Refuses(NoKeyAvailable("none", retry_after_s=60))).messages.create(**ASK)


# Streams.

BEFORE_CONTENT: dict[str, tuple[Answer, FailureKind]] = {
    "error at once": (stream(OVERLOADED), FailureKind.OVERLOADED),
    "error": (stream(START, PING, OVERLOADED), FailureKind.OVERLOADED),
    "drop": (stream(START, httpx2.RemoteProtocolError("peer closed connection")), FailureKind.CONNECTION),
    "stall": (stream(START, 60.0, httpx2.ReadTimeout("too slow")), FailureKind.TIMEOUT),
    "end": (stream(START), FailureKind.CONNECTION),
    "nothing": (stream(), FailureKind.CONNECTION),
    "bad JSON": (stream(BROKEN_JSON), FailureKind.INVALID),
}


@pytest.mark.parametrize("name", BEFORE_CONTENT)
async def test_a_stream_that_fails_before_its_content_is_retried_unseen(name: str) -> None:
    """The caller sees one whole stream; every body is closed, every attempt ended with its own failure."""
    fault, kind = BEFORE_CONTENT[name]
    server, watches, retry = Server(fault, fault, GOOD_STREAM), Watches(), retry_of(hold_s=600)

    assert await text_of(server.client(retry, watches)) == "Hi"

    assert len(server.requests) == 3
    assert watches.given_back == {0: 1, 1: 1, 2: 1}
    assert watches.failures == [kind, kind, None]
    assert all(body.closed for body in server.bodies)


@pytest.mark.parametrize(
    "fault",
    [OVERLOADED, httpx2.RemoteProtocolError("peer closed connection"), BROKEN_JSON],
    ids=["error", "drop", "bad JSON"],
)
async def test_a_stream_that_fails_after_its_content_is_not_retried(fault: bytes | Exception) -> None:
    """The caller has seen a part of it, so the failure is his."""
    server, watches = Server(stream(START, TEXT, fault), GOOD_STREAM), Watches()

    with pytest.raises((anthropic.APIStatusError, httpx2.TransportError, json.JSONDecodeError)):
        await text_of(server.client(retry_of(), watches))

    assert len(server.requests) == 1
    assert server.bodies[0].closed
    assert watches.given_back == {0: 1}


@pytest.mark.parametrize(
    ("fault", "error", "attempts"),
    [
        (stream(START, OVERLOADED), anthropic.APIStatusError, 3),
        (stream(START, REFUSED), anthropic.APIStatusError, 1),
        (stream(START, httpx2.ReadError("reset")), anthropic.APIConnectionError, 3),
        (stream(START, httpx2.ReadTimeout("slow")), anthropic.APITimeoutError, 3),
        (stream(START), anthropic.APIConnectionError, 3),
        (stream(BROKEN_JSON), InvalidStream, 3),
    ],
)
async def test_a_stream_that_keeps_failing_before_its_content_ends_in_a_typed_error(
    fault: Answer, error: type[Exception], attempts: int
) -> None:
    """An error event is the SDK's to raise; transports and rubbish are told as what they are, with the note."""
    server, watches = Server(fault), Watches()

    with pytest.raises(error) as raised:
        await text_of(server.client(retry_of(max_attempts=3), watches))

    assert len(server.requests) == attempts
    assert all(body.closed for body in server.bodies)
    assert set(watches.given_back.values()) == {1}
    if not isinstance(raised.value, anthropic.APIStatusError):
        assert raised.value.__notes__[0].startswith("3 attempts in ")


async def test_what_a_discarded_stream_used_stays_spent() -> None:
    """Its usage is in that of the call, as an estimate."""
    server = Server(stream(START, OVERLOADED), GOOD_STREAM)
    calls: list[Call] = []

    class Keeps(anthropic.Middleware):
        async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
            with open_call(request) as call:
                call.push(calls.append)
                return await call_next(request)

    await text_of(server.client(Keeps(), retry_of()))

    assert calls[0].usage.input_tokens == 5 + 5
    assert calls[0].usage.output_tokens == 2 + 2
    assert calls[0].usage.estimated


async def test_a_stream_without_content_for_long_is_handed_on_and_retried_no_more() -> None:
    """After `hold_s` the caller gets what is there; what then fails is his."""
    server = Server(stream(START, 6.0, PING, 6.0, PING, 6.0, OVERLOADED), GOOD_STREAM)

    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        await text_of(server.client(retry_of(hold_s=10)))

    assert len(server.requests) == 1


async def test_with_a_background_the_stream_is_handed_on_in_time() -> None:
    """The read that is pending at `hold_s` goes on for whoever reads."""
    server = Server(stream(START, 60.0, TEXT, END))
    async with running_background() as background:
        client = server.client(Opens(background), retry_of(hold_s=10))

        given = await client.messages.create(**ASK, stream=True)
        assert anyio.current_time() == pytest.approx(10, abs=0.01)
        events = [event.type async for event in given]

    assert events[-1] == "message_stop"
    assert anyio.current_time() == pytest.approx(60, abs=0.01)


async def test_events_that_the_caller_reads_raw_are_held_back_for_as_long_as_it_takes() -> None:
    """With `with_streaming_response`, whoever reads wants whole streams: only the deadline bounds the hold."""
    server = Server(stream(START, *PINGS * 20, OVERLOADED), stream(START, PING, TEXT, END))
    client = server.client(retry_of(hold_s=10))

    async with client.messages.with_streaming_response.create(**ASK, stream=True) as response:
        chunks = [chunk async for chunk in response.http_response.aiter_raw()]

    assert chunks == [START, PING, TEXT, END]
    assert len(server.requests) == 2


async def test_raw_bodies_that_are_no_event_streams_are_not_read() -> None:
    """A plain body read through `with_streaming_response` is the caller's alone."""
    body = Body(json.dumps(MESSAGE).encode())
    server = Server(lambda: httpx2.Response(200, headers={"content-type": "application/json"}, stream=body))

    async with server.client(retry_of()).messages.with_streaming_response.create(**ASK) as response:
        assert not response.http_response.is_stream_consumed
        assert (await response.parse()).id == "msg_1"


async def test_event_streams_of_other_endpoints_are_not_read() -> None:
    """Only messages have content to wait for."""
    server = Server(stream(PING, 50.0, PING))

    given: anthropic.AsyncStream[Any] = await server.client(retry_of()).post(
        "/v1/other", body={}, cast_to=object, stream=True, stream_cls=anthropic.AsyncStream[Any]
    )

    assert anyio.current_time() < 1
    await given.close()


async def test_pings_do_not_defeat_the_deadline(virtual_time: VirtualTime) -> None:
    """A stream of pings ends at the deadline, and is closed."""
    server = Server(stream(START, *PINGS * 100))

    with deadline(60), pytest.raises(anthropic.APITimeoutError):
        async with server.client(retry_of()).messages.with_streaming_response.create(**ASK, stream=True):
            pass

    assert virtual_time.now() == pytest.approx(60, abs=0.01)
    assert server.bodies[0].closing


async def test_inside_an_attempt_of_an_outer_guard_each_retry_opens_its_own() -> None:
    """A guard put outside this one by mistake can't make it try an attempt that is over."""
    server, watches = Server(status(500), stream(START, OVERLOADED), GOOD_STREAM), Watches()

    assert await text_of(server.client(watches, retry_of())) == "Hi"

    assert len(server.requests) == 3
    assert watches.given_back == {0: 1}


# Cancellation.


@pytest.mark.lengthy
@pytest.mark.parametrize("patient", [False, True], ids=["a call", "an item"])
@pytest.mark.parametrize("background", [False, True], ids=["alone", "in a client"])
@pytest.mark.parametrize("how", get_args(How))
async def test_cancelled_at_any_await_it_leaves_nothing_behind(how: How, background: bool, patient: bool) -> None:
    """Every body is closed, every attempt given back once, nobody left in line, and no more than a retry spent."""
    faults = [status(500), stream(START, 1.0, OVERLOADED), raising(httpx2.ReadError("reset")), stream(START, 1.0)]

    async def scenario(cancelled: Cancelled) -> None:
        server, watches, retry = Server(*faults, GOOD_STREAM, latency_s=0.1), Watches(), retry_of(max_attempts=9)
        refuses = Refuses(None, CircuitOpen("open", retry_after_s=1.0) if patient else None)
        if patient:
            retry._quota.left = 20
        async with running_background() if background else contextlib.nullcontext() as given:
            client = server.client(Opens(given), retry, refuses, watches)

            async def main() -> None:
                with patience(Patience()) if patient else contextlib.nullcontext():
                    async with client.messages.stream(**ASK) as events:
                        _ = [event async for event in events]

            await cancelled(main())
            await anyio.sleep(1)
        assert all(body.closed if background else body.closing for body in server.bodies)
        assert set(watches.given_back.values()) <= {1}
        statistics = retry.statistics()
        assert statistics.waiting == 0
        if not patient:
            assert statistics.quota >= 500 - 14 * statistics.retries
        assert cancelled.reached or len(server.requests) == 5

    assert await cancel_at_every_await(scenario, how=how) > 10


# Against the simulator.


@pytest.mark.lengthy
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
async def test_hundreds_of_calls_with_mixed_faults_are_all_answered(streamed: bool, virtual_time: VirtualTime) -> None:
    """With 15 % of the faults that a client can retry unseen, nothing is lost and nothing left over."""
    simulator = Simulator(faults=MIXED_FAULTS(0.15), seed=11, latency_s=0.3, tokens_per_s=50)
    retry, answered = retry_of(max_attempts=8), 0

    async with simulator.client(max_retries=0, middleware=[retry]) as client:

        async def call() -> None:
            nonlocal answered
            text = await text_of(client) if streamed else (await client.messages.create(**ASK)).content[0]
            answered += bool(text)

        async with anyio.create_task_group() as group:
            for _ in range(300):
                group.start_soon(call)
                await anyio.sleep(0.05)

    assert answered == 300
    assert len(simulator.journal) == 300 + retry.statistics().retries
    assert retry.statistics().retries > 20
    assert simulator.in_flight == 0
