from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pydantic
import pytest

from penstock._core.attempt import http_response_of, open_attempt
from penstock._core.background import Background
from penstock._core.context import deadline, labels
from penstock.errors import ClientClosed, QueueFull
from penstock.events import CallEnded, Event, Observers
from penstock.guards.record import Record
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from penstock.testing.plugin import VirtualTime

KEY = "sk-ant-very-secret-key"
PROMPT = "the-very-private-prompt"
ASK: Any = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": PROMPT}]}


class Rig:
    """A client whose outermost guard is a record, and what its observer saw."""

    def __init__(self, simulator: Simulator, *inner: anthropic.Middleware, **options: Any) -> None:
        self.events: list[Event] = []
        self.record = Record(observers=Observers((self.events.append,)), **options)
        self.responses: list[httpx2.Response] = []
        self.claude = simulator.client(KEY, max_retries=0, middleware=[self.watch, self.record, *inner])

    async def watch(self, request: anthropic.APIRequest, call_next: Any) -> Any:
        response = await call_next(request)
        self.responses.append(http_response_of(response) or httpx2.Response(0))
        return response

    @property
    def ended(self) -> list[CallEnded]:
        assert all(isinstance(event, CallEnded) for event in self.events)
        return [event for event in self.events if isinstance(event, CallEnded)]

    async def create(self) -> anthropic.types.Message:
        message: anthropic.types.Message = await self.claude.messages.create(**ASK)
        return message

    async def read(self) -> None:
        async for _ in await self.claude.messages.create(**ASK, stream=True):
            pass


class Twice(anthropic.Middleware):
    """Opens an attempt after the other until one succeeds, two at most, as a guard that retries does."""

    async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
        response: Any = None
        for _ in range(2):
            with open_attempt(request) as attempt:
                attempt.sent = True
                response = await attempt.send(request, call_next)
            if attempt.failure is None:
                break
        return response


class Raises(anthropic.Middleware):
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
        raise self.error


async def test_a_call_is_reported_once_with_everything(virtual_time: VirtualTime) -> None:
    """One event tells who asked for what, how it ended, what it used and how long it took."""
    simulator = Simulator(latency_s=2.0, output_tokens=7)
    rig = Rig(simulator)
    with labels(user="u1", feature="search"):
        message = await rig.create()
    (event,) = rig.ended
    assert (event.kind, event.model, event.stream) == ("messages", "claude-sonnet-5-5", False)
    assert (event.status, event.failure, event.error_type, event.stop_reason) == (200, None, None, "end_turn")
    assert event.request_id == message._request_id
    assert (event.usage.input_tokens, event.usage.output_tokens) == (message.usage.input_tokens, 7)
    assert event.latency_s == pytest.approx(2.0, abs=0.01)
    assert (event.attempts, event.queued_s, event.first_token_s, event.key) == (1, 0.0, None, None)
    assert event.labels == {"user": "u1", "feature": "search"}


async def test_a_stream_is_reported_when_it_has_ended(virtual_time: VirtualTime) -> None:
    """A stream's call lives until its last byte, and tells when its first content came."""
    rig = Rig(Simulator(latency_s=1.0, tokens_per_s=10, output_tokens=40))
    stream = await rig.claude.messages.create(**ASK, stream=True)
    assert (rig.ended, len(rig.record.live)) == ([], 1)
    async for _ in stream:
        pass
    (event,) = rig.ended
    assert event.first_token_s is not None
    assert 1 <= event.first_token_s < 3
    assert event.latency_s == pytest.approx(5, rel=0.1)
    assert (event.stream, event.stop_reason, event.usage.output_tokens) == (True, "end_turn", 40)
    assert not rig.record.live


async def test_attempts_are_reported_together() -> None:
    """A call that was repeated is one call: its outcome is the last one's, and its tokens are all of them."""
    simulator = Simulator(output_tokens=7)
    simulator.inject("overloaded")
    rig = Rig(simulator, Twice())
    await rig.create()
    (event,) = rig.ended
    assert (event.attempts, event.failure, event.status, event.usage.output_tokens) == (2, None, 200, 7)


class Summary(pydantic.BaseModel):
    text: str


async def _stream_helper(claude: anthropic.AsyncAnthropic) -> None:
    async with claude.messages.stream(**ASK) as stream:
        assert "Summary" in await stream.get_final_text()


async def _beta_stream_helper(claude: anthropic.AsyncAnthropic) -> None:
    async with claude.beta.messages.stream(**ASK, betas=["structured-outputs-2025-11-13"]) as stream:
        await stream.get_final_message()
        assert "anthropic-beta" in stream.response.request.headers


async def _raw(claude: anthropic.AsyncAnthropic) -> None:
    raw = await claude.messages.with_raw_response.create(**ASK)
    assert (raw.method, raw.retries_taken, raw.http_request.headers["x-stainless-retry-count"]) == ("POST", 0, "0")
    assert (await raw.parse()).stop_reason == "end_turn"


async def _raw_body(claude: anthropic.AsyncAnthropic) -> None:
    async with claude.messages.with_streaming_response.create(**ASK) as raw:
        assert "Summary" in await raw.text()


async def _parse(claude: anthropic.AsyncAnthropic) -> None:
    assert (await claude.messages.parse(**ASK, output_format=Summary)).parsed_output == Summary(text="Hi")


async def _count(claude: anthropic.AsyncAnthropic) -> None:
    counted = await claude.messages.count_tokens(model=ASK["model"], messages=ASK["messages"])
    assert counted.input_tokens > 0


async def _models(claude: anthropic.AsyncAnthropic) -> None:
    assert (await claude.models.list(limit=1)).data


SURFACES = [_stream_helper, _beta_stream_helper, _raw, _raw_body, _parse, _count, _models]


@pytest.mark.lengthy
@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.__name__.strip("_"))
async def test_every_surface_is_reported_once_and_its_response_holds_no_secrets(
    surface: Callable[[anthropic.AsyncAnthropic], Awaitable[None]],
) -> None:
    """Whatever method made the request, it works, is reported once, and its response carries neither key nor prompt."""
    simulator = Simulator()
    if surface is _parse:
        simulator.reply('{"text": "Hi"}')
    rig = Rig(simulator)
    await surface(rig.claude)
    assert [(event.failure, event.status, event.attempts) for event in rig.ended] == [(None, 200, 1)]
    (response,) = rig.responses
    assert str(response.url).startswith("http://simulator.invalid/v1/")
    sent = pickle.dumps(response.request)
    assert KEY.encode() not in sent
    assert PROMPT.encode() not in sent


async def test_pages_follow_each_other() -> None:
    """Listing goes on to the next page with the credentials that the first response no longer shows."""
    rig = Rig(Simulator())
    models = [model.id async for model in rig.claude.models.list(limit=1)]
    assert len(models) == len(rig.ended) > 1


@pytest.mark.parametrize(
    "fault", ["overloaded", "authentication", "bad_gateway", "reset", "stall_before_headers", "truncated"]
)
async def test_errors_leave_without_key_and_prompt(fault: str, virtual_time: VirtualTime) -> None:
    """Neither an error nor anything that it refers to, nor its pickle, holds the key or what was asked."""
    simulator = Simulator()
    simulator.inject(fault)
    rig = Rig(simulator)
    with pytest.raises(anthropic.APIError) as caught:
        await rig.create()
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY.encode() not in pickle.dumps(error)
        assert PROMPT.encode() not in pickle.dumps(error)
        error = error.__cause__ or error.__context__
    (event,) = rig.ended
    assert event.failure is not None


@pytest.mark.parametrize(
    ("fault", "failure"), [("stream_error_after_content", "overloaded"), ("stream_drop_after_content", "connection")]
)
async def test_errors_of_a_stream_leave_without_key_and_prompt(fault: str, failure: str) -> None:
    """What is raised while a stream is read, long after the chain, holds no secrets either."""
    simulator = Simulator()
    simulator.inject(fault)
    rig = Rig(simulator)
    with pytest.raises((anthropic.APIError, httpx2.HTTPError)) as caught:
        await rig.read()
    assert KEY.encode() not in pickle.dumps(caught.value)
    assert PROMPT.encode() not in pickle.dumps(caught.value)
    assert [event.failure for event in rig.ended] == [failure]


async def moved(request: httpx2.Request) -> httpx2.Response:
    """A service that sends everybody to another path."""
    if request.url.path == "/moved":
        return httpx2.Response(200, json={"data": [], "has_more": False})
    return httpx2.Response(307, headers={"location": "/moved"})


def redirected(*, follow: bool) -> anthropic.AsyncAnthropic:
    """A client of that service."""
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(moved), follow_redirects=follow)
    return anthropic.AsyncAnthropic(api_key=KEY, http_client=http, max_retries=0, middleware=[Record()])


async def test_redirects_leave_no_secrets_behind() -> None:
    """Every request on the way to the answer is cleaned."""
    response = (await redirected(follow=True).models.with_raw_response.list()).http_response
    assert len(response.history) == 1
    for each in (response, *response.history):
        assert KEY.encode() not in pickle.dumps(each.request)


async def test_a_redirect_that_was_not_followed_holds_no_secrets() -> None:
    """The request that would have followed is cleaned too."""
    with pytest.raises(anthropic.APIStatusError) as caught:
        await redirected(follow=False).models.list()
    followed = caught.value.response.next_request
    assert followed is not None
    assert KEY.encode() not in pickle.dumps(followed)


async def test_an_answer_without_a_request_passes() -> None:
    """What a middleware further in made up is handed on as it is."""

    class Forgets(anthropic.Middleware):
        async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
            response = await call_next(request)
            response.http_response._request = None
            return response

    rig = Rig(Simulator(), Forgets())
    assert (await rig.create()).stop_reason == "end_turn"


async def test_an_answer_that_is_no_response_passes() -> None:
    """A middleware further in may answer from its own store; the call succeeded, with nothing used."""

    class Answers(anthropic.Middleware):
        async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
            return "stored"

    rig = Rig(Simulator(), Answers())
    answer: Any = await rig.create()
    assert answer == "stored"
    assert [(event.failure, event.status, event.usage.total_tokens) for event in rig.ended] == [(None, None, 0)]


async def test_a_refusal_further_in_is_reported_without_an_attempt() -> None:
    """What a guard refuses before any attempt is a failed call of no attempts."""
    rig = Rig(Simulator(), Raises(QueueFull("full")))
    with pytest.raises(QueueFull):
        await rig.create()
    (event,) = rig.ended
    assert (event.failure, event.error_type, event.attempts, event.status) == ("refused", "QueueFull", 0, None)


async def test_a_refusal_after_a_failed_attempt_is_what_is_reported() -> None:
    """If a guard refuses after a failed attempt, the caller sees the refusal, and so does the observer."""

    class Refuses(anthropic.Middleware):
        async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
            with open_attempt(request) as attempt:
                await attempt.send(request, call_next)
            raise QueueFull("full")

    simulator = Simulator()
    simulator.inject("overloaded")
    rig = Rig(simulator, Refuses())
    with pytest.raises(QueueFull):
        await rig.create()
    assert [(event.failure, event.status) for event in rig.ended] == [("refused", 529)]


async def test_an_error_of_the_chain_is_reported_as_what_the_attempt_knew() -> None:
    """An attempt that failed knows more than the exception made of it, such as the API's error type."""
    simulator = Simulator()
    simulator.inject("overloaded")

    class Complains(anthropic.Middleware):
        async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
            with open_attempt(request) as attempt:
                await attempt.send(request, call_next)
            raise RuntimeError("it did not work")

    rig = Rig(simulator, Complains())
    with pytest.raises(RuntimeError):
        await rig.create()
    assert [(event.failure, event.error_type) for event in rig.ended] == [("overloaded", "overloaded_error")]


async def test_the_deadline_of_the_record_bounds_a_call(virtual_time: VirtualTime) -> None:
    """A call that takes longer than `deadline_s` ends as the SDK's own time-out."""
    rig = Rig(Simulator(latency_s=100), deadline_s=5)
    with pytest.raises(anthropic.APITimeoutError) as caught:
        await rig.create()
    assert virtual_time.now() == pytest.approx(5, abs=0.01)
    assert KEY.encode() not in pickle.dumps(caught.value)
    assert [(event.failure, event.error_type) for event in rig.ended] == [("timeout", "APITimeoutError")]


async def test_the_callers_deadline_wins_if_it_is_nearer(virtual_time: VirtualTime) -> None:
    """`penstock.deadline` may say less than `deadline_s`, and without `deadline_s` it is the only bound."""
    rig = Rig(Simulator(latency_s=100), deadline_s=None)
    with pytest.raises(anthropic.APITimeoutError), deadline(3):
        await rig.create()
    assert virtual_time.now() == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_deadline_must_lie_ahead(seconds: float) -> None:
    """A bound that no call can keep is refused when the guard is made."""
    with pytest.raises(ValueError, match="deadline_s"):
        Record(deadline_s=seconds)


async def test_a_cancelled_call_is_reported_as_cancelled(virtual_time: VirtualTime) -> None:
    """Cancellation by the caller is neither a success nor a failure."""
    rig = Rig(Simulator(latency_s=100))
    with anyio.move_on_after(1):
        await rig.create()
    assert [event.failure for event in rig.ended] == ["cancelled"]
    statistics = rig.record.statistics()
    assert (statistics.calls, statistics.cancelled, statistics.success_rate) == (1, 1, 1.0)


async def test_closing_a_call_cuts_it_short(virtual_time: VirtualTime) -> None:
    """A client that closes ends the calls under way; their callers get `ClientClosed`."""
    rig = Rig(Simulator(latency_s=100))

    async def ask() -> None:
        with pytest.raises(ClientClosed):
            await rig.create()

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.sleep(1)
        for call in rig.record.live:
            call.close()
    assert [(event.failure, event.error_type) for event in rig.ended] == [("cancelled", "ClientClosed")]


async def test_closing_ends_a_stream_that_is_being_read(virtual_time: VirtualTime) -> None:
    """A stream that is open when the client closes ends at once, and is reported."""
    stop, started = anyio.Event(), anyio.Event()
    background = Background(Observers())
    rig = Rig(Simulator(tokens_per_s=1, output_tokens=100), background=background)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: background.run(stop, started=started, grace_s=1))
        await started.wait()
        await rig.claude.messages.create(**ASK, stream=True)
        for call in rig.record.live:
            call.close()
        assert [(event.failure, event.error_type) for event in rig.ended] == [("cancelled", "ClientClosed")]
        stop.set()


async def test_the_gate_refuses_before_anything_happens() -> None:
    """What the gate raises goes to the caller; no call was opened, none is reported."""

    def closed() -> None:
        raise ClientClosed("closed")

    simulator = Simulator()
    rig = Rig(simulator, gate=closed)
    with pytest.raises(ClientClosed):
        await rig.create()
    assert (rig.ended, rig.record.statistics().calls, simulator.journal) == ([], 0, [])


async def test_an_open_gate_lets_calls_through() -> None:
    """A gate that returns is asked for every call."""
    asked: list[None] = []
    rig = Rig(Simulator(), gate=lambda: asked.append(None))
    await rig.create()
    await rig.create()
    assert (len(asked), len(rig.ended)) == (2, 2)


async def test_whoever_waits_for_idleness_waits_for_the_last_call(virtual_time: VirtualTime) -> None:
    """All who wait are told when the last call has ended; who has less time is told that one is left."""
    rig = Rig(Simulator(latency_s=10))
    idle: list[tuple[bool, float]] = []

    async def wait(within_s: float) -> None:
        idle.append((await rig.record.idle(within_s=within_s), round(virtual_time.now())))

    async with anyio.create_task_group() as group:
        group.start_soon(rig.create)
        await anyio.sleep(5)
        group.start_soon(rig.create)
        for within_s in (1.0, 20.0, 20.0):
            group.start_soon(wait, within_s)
    assert idle == [(False, 6), (True, 15), (True, 15)]
    assert await rig.record.idle(within_s=0)


async def test_statistics_add_up_all_calls(virtual_time: VirtualTime) -> None:
    """The snapshot counts calls, outcomes, tokens and the mean latency."""
    simulator = Simulator(latency_s=2.0, output_tokens=7)
    rig = Rig(simulator)
    assert (rig.record.statistics().mean_latency_s, rig.record.statistics().success_rate) == (0.0, 1.0)
    for _ in range(3):
        await rig.create()
    simulator.inject("overloaded", delay_s=2.0)
    with pytest.raises(anthropic.APIStatusError):
        await rig.create()
    await (await rig.claude.messages.create(**ASK, stream=True)).close()
    simulator.reply("Hi", usage={"cache_read_input_tokens": 70, "cache_creation_input_tokens": 20})
    await rig.read()
    statistics = rig.record.statistics()
    assert (statistics.calls, statistics.successes, statistics.failures, statistics.cancelled) == (6, 4, 1, 1)
    assert statistics.success_rate == 0.8
    assert statistics.output_tokens > 21
    assert (statistics.cache_read_tokens, statistics.cache_write_tokens) == (70, 20)
    assert statistics.mean_latency_s == pytest.approx(2.0, abs=0.5)
    assert statistics.in_flight == 0
    assert repr(rig.record) == "<Record 0 calls under way, 6 ended>"


async def test_a_call_inside_a_call_is_one_of_its_own() -> None:
    """A middleware that asks something itself makes another call, reported by itself."""
    simulator = Simulator()
    rig = Rig(simulator)

    class Counts(anthropic.Middleware):
        async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
            if request.url.startswith("/v1/messages") and "count" not in request.url:
                await rig.claude.messages.count_tokens(model=ASK["model"], messages=ASK["messages"])
            return await call_next(request)

    asking = simulator.client(KEY, max_retries=0, middleware=[rig.record, Counts()])
    await asking.messages.create(**ASK)
    assert [event.kind for event in rig.ended] == ["count_tokens", "messages"]
