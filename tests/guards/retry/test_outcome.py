from __future__ import annotations

from typing import TYPE_CHECKING

import anthropic
import httpx2
import pytest

from penstock._core.attempt import Attempt, CallNext, Response, open_attempt
from penstock._core.failure import Failure, FailureKind, failure_of_exception
from penstock.guards.retry.outcome import Outcome
from penstock.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from anthropic import APIRequest


class Body(httpx2.AsyncByteStream):
    closed = False
    fails = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"{}"

    async def aclose(self) -> None:
        self.closed = True
        if self.fails:
            raise httpx2.CloseError("reset")


class Tells(anthropic.Middleware):
    """A guard that makes an outcome of an attempt and hands it to the test."""

    def __init__(self) -> None:
        self.attempt: Attempt | None = None
        self.outcome: Outcome | None = None
        self.given_back = 0

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        with open_attempt(request) as self.attempt:
            self.attempt.push(self._give_back)
            response = await self.attempt.send(request, call_next)
            self.outcome = Outcome(self.attempt, response, Failure(kind=FailureKind.INVALID), None)
            return await self.then(self.outcome)

    async def then(self, outcome: Outcome) -> Response:
        await outcome.discard()
        return "told"

    def _give_back(self, attempt: Attempt) -> None:
        self.given_back += 1


async def ask(guard: anthropic.Middleware, answer: Callable[[], httpx2.Response]) -> Response:
    """Ask a server that gives one answer, and leave its body to the caller."""
    client = ScriptedTransport(lambda _: answer()).client(middleware=[guard])
    return await client.messages.create(
        model="claude-sonnet-5-5", max_tokens=10, messages=[{"role": "user", "content": "Hello"}], stream=True
    )


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_discarded_is_closed_and_ended(fails: bool) -> None:
    """The body is closed, even if the transport then fails; the attempt ends with its failure and gives back once."""
    body, guard = Body(), Tells()
    body.fails = fails

    assert await ask(guard, lambda: httpx2.Response(200, stream=body)) == "told"

    assert body.closed
    assert guard.given_back == 1
    assert guard.attempt is not None
    assert guard.attempt.ended
    assert guard.attempt.failure is not None
    assert guard.attempt.failure.kind is FailureKind.INVALID


async def test_a_failure_known_already_is_kept() -> None:
    """What an answer's status says of an attempt isn't overwritten."""
    guard = Tells()

    await ask(guard, lambda: httpx2.Response(529, json={}))

    assert guard.attempt is not None
    assert guard.attempt.failure is not None
    assert guard.attempt.failure.kind is FailureKind.OVERLOADED


async def test_an_answer_that_brings_its_error_itself_is_returned() -> None:
    """Without an error to raise, the caller gets the response."""

    class Concludes(Tells):
        async def then(self, outcome: Outcome) -> Response:
            response = await outcome.conclude("a note")
            assert response is outcome.response
            await outcome.discard()
            return "returned"

    assert await ask(Concludes(), lambda: httpx2.Response(200, stream=Body())) == "returned"


@pytest.mark.parametrize("note", [None, "2 attempts"])
async def test_an_error_is_raised_with_the_note_if_there_is_one(note: str | None) -> None:
    """It is the very error of the attempt."""
    error = anthropic.APIConnectionError(request=httpx2.Request("POST", "http://api.example"))

    class Concludes(Tells):
        async def then(self, outcome: Outcome) -> Response:
            return await Outcome(outcome.attempt, None, failure_of_exception(error), error).conclude(note)

    guard = Concludes()
    with pytest.raises(anthropic.APIConnectionError) as raised:
        await ask(guard, lambda: httpx2.Response(200, stream=Body()))

    assert raised.value is error
    assert getattr(error, "__notes__", []) == ([] if note is None else [note])
    assert guard.given_back == 1


async def test_it_shows_how_the_attempt_failed() -> None:
    """Its repr names the attempt and the kind of failure."""
    guard = Tells()

    await ask(guard, lambda: httpx2.Response(200, stream=Body()))

    assert repr(guard.outcome).endswith("failure=invalid>")
