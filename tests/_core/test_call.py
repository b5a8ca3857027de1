from __future__ import annotations

import contextlib
import gc
import math
import weakref
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import anyio.lowlevel
import httpx2
import pytest
from anthropic._models import FinalRequestOptions

from penstock._core.attempt import open_attempt
from penstock._core.call import MAX_RESPONSE_BYTES, Call, current_call, open_call
from penstock._core.context import Patience, deadline, labels, patience
from penstock._core.failure import FailureKind
from penstock._core.kind import RequestKind
from penstock._core.usage import Usage
from penstock.errors import AdmissionTimeout, ClientClosed
from penstock.events import Event, GiveBackFailed, Observers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from penstock.testing.plugin import VirtualTime

MESSAGE = {"type": "message", "content": [], "usage": {"input_tokens": 3, "output_tokens": 4}}


def api_request(url: str = "/v1/messages", body: object = None, *, stream: bool = True) -> anthropic.APIRequest:
    """A request as the SDK's chain hands it on."""
    given = {"model": "claude-sonnet-4-6"} if body is None else body
    options = FinalRequestOptions.construct(method="post", url=url, json_data=given)
    return anthropic.APIRequest(options=options, cast_to=object, stream=stream)


class Body(httpx2.AsyncByteStream):
    """A body of a few chunks."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"{"
        await anyio.sleep(1)
        yield b"}"


def is_open(call: Call) -> bool:
    """Whether it is under way; asked anew, whatever a type checker has concluded from the last answer."""
    return not call.ended


async def answer(_request: anthropic.APIRequest) -> httpx2.Response:
    """An answer whose body was read."""
    return httpx2.Response(200, json=MESSAGE)


async def unread(_request: anthropic.APIRequest) -> httpx2.Response:
    """An answer whose body is still to be read."""
    return httpx2.Response(200, stream=Body(), request=httpx2.Request("POST", "http://x"))


async def test_a_call_knows_its_request_and_what_its_caller_said(virtual_time: VirtualTime) -> None:
    """Kind, model, pool, stream, labels, patience and deadline are noted once, when it is opened."""
    with labels(user="u1"), deadline(30), open_call(api_request()) as call:
        assert (call.kind, call.model, call.model_class) == (RequestKind.MESSAGES, "claude-sonnet-4-6", "sonnet-4")
        assert (call.stream, dict(call.labels), call.patience) == (True, {"user": "u1"}, None)
        assert call.deadline == pytest.approx(virtual_time.now() + 30, abs=0.01)
        assert call.id in repr(call)
        assert "open" in repr(call)
    assert "ended" in repr(call)


async def test_a_call_knows_what_its_answer_may_have() -> None:
    """As given by whoever opens it; a guard that finds it changes nothing."""
    with open_call(api_request()) as call:
        assert call.max_response_bytes == MAX_RESPONSE_BYTES
    with open_call(api_request(), max_response_bytes=7) as call, open_call(api_request(), max_response_bytes=9) as same:
        assert (same, call.max_response_bytes) == (call, 7)


async def test_a_call_knows_how_long_its_cache_writes_are_kept() -> None:
    """Its request says so while it is under way; the body of another kind of request is not looked into."""
    body = {"model": "claude-sonnet-4-6", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    with open_call(api_request(body=body)) as call:
        assert call.writes_for_an_hour()
    assert not call.writes_for_an_hour()
    for other in (api_request(), api_request("/v1/messages/count_tokens", body)):
        with open_call(other) as call:
            assert not call.writes_for_an_hour()


@pytest.mark.parametrize(
    ("own_s", "patience_s", "said_s", "expected_s"),
    [
        (None, ..., None, math.inf),
        (600, ..., None, 600),
        (600, ..., 30, 30),
        (30, ..., 600, 30),
        (600, None, None, math.inf),
        (600, 60, None, 60),
        (600, None, 30, 30),
    ],
)
async def test_the_earliest_deadline_holds(
    own_s: float | None, patience_s: Any, said_s: float | None, expected_s: float, virtual_time: VirtualTime
) -> None:
    """An ordinary call has the client's bound, an item of a batch its own, and the caller can only shorten it."""
    with contextlib.ExitStack() as stack:
        if patience_s is not ...:
            stack.enter_context(patience(Patience(deadline_s=patience_s)))
        if said_s is not None:
            stack.enter_context(deadline(said_s))
        call = stack.enter_context(open_call(api_request(), deadline_s=own_s))
        assert call.deadline - call.started_at == pytest.approx(expected_s, abs=0.01)


async def test_guards_share_one_call_and_its_opener_ends_it() -> None:
    """The innermost guard finds the call of the outermost; it is current while the chain runs, and no longer."""
    assert current_call.get() is None
    with open_call(api_request()) as outer:
        assert current_call.get() is outer
        with open_call(api_request()) as inner:
            assert inner is outer
        assert is_open(outer)
    assert not is_open(outer)
    assert current_call.get() is None


async def test_a_call_inside_a_call_is_its_own_when_asked_for() -> None:
    """A middleware that makes a request of its own doesn't disturb the one under way."""
    with open_call(api_request()) as outer:
        with open_call(api_request("/v1/messages/count_tokens"), new=True) as inner:
            assert inner is not outer
            assert current_call.get() is inner
        assert inner.ended
        assert current_call.get() is outer
        assert not outer.ended


async def test_a_call_that_has_ended_is_not_found_again() -> None:
    """A task that inherited the context of a call opens its own."""
    with open_call(api_request()) as first:
        first.end()
        with open_call(api_request()) as second:
            assert second is not first


async def test_give_backs_run_last_in_first_out_exactly_once() -> None:
    """However often a call is ended."""
    given_back = list[int]()
    with open_call(api_request()) as call:
        for number in range(3):
            call.push(lambda _call, number=number: given_back.append(number))  # type: ignore[misc]
    call.end()
    call.returned()
    assert given_back == [2, 1, 0]


async def test_a_give_back_that_raises_is_reported_and_stops_none() -> None:
    """Its error is an event, by name; the caller never sees it."""
    events, given_back = list[Event](), list[Call]()

    def broken(_call: Call) -> None:
        raise OSError("secret")

    with open_call(api_request(), observers=Observers((events.append,))) as call:
        call.push(given_back.append)
        call.push(broken)
    assert given_back == [call]
    assert events == [GiveBackFailed(call_id=call.id, error_type="OSError")]


async def test_what_is_pushed_after_the_end_is_given_back_at_once() -> None:
    """Nobody can come too late to give back."""
    given_back = list[Call]()
    with open_call(api_request()) as call:
        pass
    call.push(given_back.append)
    assert given_back == [call]


async def test_a_call_ends_with_its_last_body(virtual_time: VirtualTime) -> None:
    """The chain has returned, but the body is still to be read; then the call sums up what its attempts came to."""
    ended = list[Call]()
    with open_call(api_request(stream=False)) as call:
        call.push(ended.append)
        with open_attempt(api_request()) as attempt:
            await attempt.send(api_request(), answer)
        with open_attempt(api_request()) as attempt:
            attempt.key, attempt.queued_s = "key-1", 2.0
            response = await attempt.send(api_request(), unread)
    assert not ended
    await response.aread()
    assert ended == [call]
    assert (call.attempts, call.status, call.usage, call.key, call.queued_s) == (
        2,
        200,
        Usage(input_tokens=3, output_tokens=4),
        "key-1",
        2.0,
    )
    assert call.attempt is None


async def test_a_call_without_an_attempt_ends_with_its_block() -> None:
    """One that a guard refused has none."""
    with open_call(api_request()) as call:
        pass
    assert (call.ended, call.attempts) == (True, 0)


async def test_an_error_leaves_as_it_is_and_ends_the_call() -> None:
    """What a guard or a user's middleware raises is not wrapped."""
    given_back, error = list[Call](), ValueError("mine")
    with pytest.raises(ValueError, match="mine") as raised, open_call(api_request()) as call:  # noqa: PT012 - a block is what is cut short
        call.push(given_back.append)
        raise error
    assert raised.value is error
    assert given_back == [call]


async def test_an_error_ends_an_attempt_whose_body_is_unread() -> None:
    """A middleware that raises after the answer came leaves no attempt open."""
    given_back = list[object]()
    with pytest.raises(ValueError, match="mine"), open_call(api_request()) as call:  # noqa: PT012 - a block is what is cut short
        with open_attempt(api_request()) as attempt:
            attempt.push(given_back.append)
            response = await attempt.send(api_request(), unread)
        raise ValueError("mine")
    assert given_back == [attempt]
    assert call.ended
    await response.aclose()


async def test_a_call_that_is_over_is_freed_at_once() -> None:
    """No cycle keeps it, its attempt, or what the guards hung on it, until the next collection."""
    gc.collect()
    gc.disable()
    try:
        with open_call(api_request()) as call, open_attempt(api_request()) as attempt:
            await attempt.send(api_request(), answer)
        gone = weakref.ref(call)
        del call, attempt
        assert gone() is None
    finally:
        gc.enable()


# Deadline, cancellation, close.


async def test_a_deadline_that_passes_under_way_is_a_timeout(virtual_time: VirtualTime) -> None:
    """The SDK's own error, which says that it was the deadline, in which attempt, and when."""
    raises = pytest.raises(anthropic.APITimeoutError)
    with raises as raised, deadline(30), open_call(api_request()) as call, open_attempt(api_request()):
        await anyio.sleep(100)
    assert virtual_time.now() == pytest.approx(30, abs=0.1)
    assert raised.value.__notes__ == ["the deadline of 30 s passed during attempt 1"]
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    assert call.ended


async def test_a_sent_attempt_that_the_deadline_cuts_off_has_timed_out(virtual_time: VirtualTime) -> None:
    """It speaks of the service's health; one that was never sent was only cancelled."""
    kinds = list[object]()
    for sent in (True, False):
        with pytest.raises(anthropic.APITimeoutError), deadline(1), open_attempt(api_request()) as attempt:  # noqa: PT012 - a block is what is cut short
            attempt.sent = sent
            await anyio.sleep(100)
        kinds.append(attempt.failure and attempt.failure.kind)
    assert kinds == [FailureKind.TIMEOUT, FailureKind.CANCELLED]


async def test_a_deadline_that_passes_in_line_is_an_admission_timeout(virtual_time: VirtualTime) -> None:
    """Nothing was sent, and the error says so."""
    late = pytest.raises(AdmissionTimeout, match="within the deadline of 2 s; nothing was sent")
    with late, deadline(2), open_call(api_request()) as call:
        call.waiting = True
        await anyio.sleep(100)


async def test_a_call_that_begins_after_its_deadline_says_no_negative_time(virtual_time: VirtualTime) -> None:
    """Nothing was left of the time; it wasn't less than nothing."""
    with deadline(2):
        await anyio.sleep(5)
        none_left = pytest.raises(AdmissionTimeout, match="within the deadline of 0 s")
        with none_left, open_call(api_request()) as call:
            call.waiting = True
            await anyio.sleep(1)


async def test_a_deadline_bounds_the_chain_and_not_the_body(virtual_time: VirtualTime) -> None:
    """A stream whose answer came in time may be read on."""
    with deadline(0.5), open_attempt(api_request()) as attempt:
        response = await attempt.send(api_request(), unread)
    assert await response.aread() == b"{}"
    assert virtual_time.now() > 0.9


async def test_an_answer_in_time_is_an_answer(virtual_time: VirtualTime) -> None:
    """A deadline that passes only after the work is done cuts nothing off."""
    with deadline(1), open_call(api_request()) as call:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(2)
    assert call.ended


async def test_the_callers_own_cancellation_is_never_turned_into_an_error(virtual_time: VirtualTime) -> None:
    """It goes through, even with a deadline that has passed at the same time."""
    with anyio.move_on_after(1) as scope:
        with deadline(1), open_call(api_request()) as call:
            await anyio.sleep(100)
    assert scope.cancelled_caught
    assert call.ended


async def test_an_error_while_cut_off_leaves_as_it_is(virtual_time: VirtualTime) -> None:
    """What a guard raises in the face of cancellation is not replaced."""
    with pytest.raises(ValueError, match="mine"), deadline(1), open_call(api_request()):  # noqa: PT012 - a block is what is cut short
        try:
            await anyio.sleep(100)
        finally:
            raise ValueError("mine")


async def test_closing_cuts_a_call_short(virtual_time: VirtualTime) -> None:
    """While the chain runs, the client's close cancels it, and the error says why, in line or under way."""
    for waiting in (False, True):
        async with anyio.create_task_group() as group:
            with pytest.raises(ClientClosed, match="while this call was under way"), open_call(api_request()) as call:  # noqa: PT012 - a block is what is cut short
                call.waiting = waiting
                group.start_soon(close_after, call, 1.0)
                await anyio.sleep(100)
        assert not call.overdue
        assert call.ended


async def close_after(call: Call, seconds: float) -> None:
    """As a client does."""
    await anyio.sleep(seconds)
    call.close()


async def test_closing_ends_an_attempt_whose_body_is_unread(virtual_time: VirtualTime) -> None:
    """What was taken is given back at once, marked as cut off by the client."""
    given_back = list[object]()
    with open_attempt(api_request()) as attempt:
        attempt.push(given_back.append)
        response = await attempt.send(api_request(), unread)
    call = attempt.call
    call.close()
    assert given_back == [attempt]
    assert call.ended
    assert attempt.failure is not None
    assert attempt.failure.kind is FailureKind.CANCELLED
    await response.aclose()


async def test_closing_a_call_that_is_over_changes_nothing() -> None:
    """There is nothing left to cut short."""
    with open_attempt(api_request(stream=False)) as attempt:
        await attempt.send(api_request(), answer)
    attempt.call.close()
    assert attempt.failure is None


async def test_without_a_background_nothing_is_put() -> None:
    """A guard that works alone is told so."""
    with open_call(api_request()) as call:
        assert not call.put(anyio.lowlevel.checkpoint)
