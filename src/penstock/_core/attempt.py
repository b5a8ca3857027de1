"""An attempt: one HTTP request of a call, and what must be given back when it is over.

The rule here: whoever takes something pushes its give-back, a plain function that never awaits. Give-backs run
last-in-first-out, exactly once, when the answer's body has ended, however it ended; one that raises is reported and
stops none of the others.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, cast

import anthropic
import httpx2
from anthropic.types import Message
from anthropic.types.beta import BetaMessage

from penstock._core.body.answer_errors import ended_early, error_of_answer
from penstock._core.body.body import Beginning, Body, scanner_for
from penstock._core.body.inflate import Bounded
from penstock._core.body.scanner import is_message
from penstock._core.call import current_call, open_call
from penstock._core.failure import INCOMPLETE, Cause, FailureKind, failure_of_exception, failure_of_response
from penstock._core.kind import RequestKind
from penstock._core.usage import Usage
from penstock.errors import InvalidStream, ResponseTooLarge
from penstock.events import GiveBackFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from contextlib import AbstractContextManager
    from types import TracebackType

    from anthropic import APIRequest

    from penstock._core.body.scanner import Scanner
    from penstock._core.call import Call
    from penstock._core.failure import Failure

__all__ = [
    "Attempt",
    "CallNext",
    "GiveBack",
    "Response",
    "brings_credentials",
    "http_response_of",
    "open_attempt",
    "read_whole",
]

# What the SDK's chain hands around: its response wrapper, or whatever a middleware of the user's answered with instead.
Response: TypeAlias = Any
CallNext: TypeAlias = "Callable[[APIRequest], Awaitable[Response]]"
GiveBack: TypeAlias = "Callable[[Attempt], None]"

_CREDENTIALS: Final = frozenset({"authorization", "x-api-key"})


def brings_credentials(headers: Iterable[str]) -> bool:
    """Whether a request has credentials of its own among its headers, whose names are given."""
    return not _CREDENTIALS.isdisjoint(name.lower() for name in headers)


def http_response_of(response: Response) -> httpx2.Response | None:
    """Return the HTTP response inside what a chain returned; `None` if a middleware answered without one."""
    if isinstance(response, httpx2.Response):
        return response
    inner = getattr(response, "http_response", None)
    return inner if isinstance(inner, httpx2.Response) else None


async def read_whole(http: httpx2.Response) -> None:
    """Read an answer that nobody streams; one to `/v1/messages` no further than its call allows.

    Raises:
        ResponseTooLarge: It is larger.
        InvalidStream: Its compression can't be undone.
    """
    call = current_call.get()
    if call is not None and call.attempt is not None:
        call.attempt.answered = True
    if call is not None and call.kind is RequestKind.MESSAGES and not _is_small(http, call.max_response_bytes):
        http.stream = Bounded(http, call.max_response_bytes)
    await http.aread()


def _is_small(http: httpx2.Response, limit: int) -> bool:
    """Whether a response that is still to be read says itself that it is no larger than that; or it was read."""
    length = http.headers.get("content-length", "")
    plain = length.isdecimal() and "content-encoding" not in http.headers
    return http.is_stream_consumed or (plain and int(length) <= limit)


class Attempt:
    """One HTTP request of a call.

    Attributes:
        call: The call that it belongs to.
        number: 1 for the first attempt of a call.
        started_at: Time of the event loop when it was opened.
        sent: Whether the request was handed to the transport.
        queued_s: Seconds that it waited in line.
        key: Name of the key that it was sent with.
        status: HTTP status of the answer.
        request_id: The API's id of the answer.
        failure: How it failed; `None` while it hasn't.
        usage: Tokens as far as known; `None` if the answer told none.
        stop_reason: As the API gave it.
        first_content_at: Time of the event loop at the first content of a stream.
        answered: Whether an answer has begun to come.
        ended: Whether it is over.
    """

    __slots__ = (
        "_body",
        "_give_backs",
        "_read",
        "_sending",
        "_written",
        "answered",
        "call",
        "ended",
        "failure",
        "first_content_at",
        "key",
        "number",
        "queued_s",
        "request_id",
        "sent",
        "started_at",
        "status",
        "stop_reason",
        "usage",
    )

    def __init__(self, call: Call) -> None:
        self.call = call
        call.attempts += 1
        self.number = call.attempts
        self.started_at = call.clock()
        self.sent = self.answered = False
        self.queued_s = 0.0
        self.key: str | None = None
        self.status: int | None = None
        self.request_id: str | None = None
        self.failure: Failure | None = None
        self.usage: Usage | None = None
        self.stop_reason: str | None = None
        self.first_content_at: float | None = None
        self.ended = False
        # What an answer told that was read whole.
        self._read: Scanner | None = None
        # Weakly, so that a body that is dropped is gone at once.
        self._body: weakref.ref[Body] | None = None
        self._give_backs: list[GiveBack] = []
        self._sending = False
        # Characters of an answer that did not come to its end.
        self._written = 0.0

    def __repr__(self) -> str:
        state = "ended" if self.ended else "open"
        failure = self.failure and self.failure.kind.value
        return f"<Attempt {self.number} of {self.call.id}, {state}, status={self.status}, failure={failure}>"

    def __enter__(self) -> Self:
        """Give itself for a block inside its own; see `open_attempt`."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Go on: whoever opened it ends it."""

    @property
    def body(self) -> Body | None:
        """The body of its answer, while somebody holds that."""
        return None if self._body is None else self._body()

    @property
    def ok(self) -> bool:
        """Whether it has not failed."""
        return self.failure is None

    @property
    def may_be_billed(self) -> bool:
        """Whether the API may charge for it: tokens were seen, or it was sent and did not certainly go unprocessed."""
        if self.usage is not None:
            return True
        return self.sent and (self.failure is None or self.failure.may_be_billed)

    def usage_if_left(self) -> Usage | None:
        """Return what it has used if its reader leaves now, or has left; `None` where nothing is known of its body."""
        if self.ended:
            return self.usage
        scanner = None if (body := self.body) is None else body.scanner
        return None if scanner is None else (scanner.usage or Usage()).left_early(scanner.written)

    def push(self, give_back: GiveBack) -> None:
        """Have `give_back` called with this attempt when it ends; at once if it has ended."""
        self._give_backs.append(give_back)
        if self.ended:
            self._give_all_back()

    async def send(self, request: APIRequest, call_next: CallNext) -> Response:
        """Run the rest of the chain, note how it went, and watch the body of the answer.

        Every guard calls this instead of `call_next`; the innermost one does the work and the others find it done. The
        guards next to the transport set `sent` first.
        """
        self._sending = True
        try:
            response = await call_next(request)
        except BaseException as error:
            self.note_exception(error)
            raise
        if self.status is None:
            http = http_response_of(response)
            if http is not None:
                await self._note_response(response, http)
        return response

    def hand_on(self, request: APIRequest, call_next: CallNext) -> Awaitable[Response]:
        """Run the rest of the chain for a guard that looks at no answer: as `send`, unless one further out does."""
        return call_next(request) if self._sending else self.send(request, call_next)

    def watch(self, response: Response) -> None:
        """Stand in for a body that has not been read yet; does nothing if it is done already."""
        http = http_response_of(response)
        if http is None or self._body is not None or self.ended or http.is_closed or http.is_stream_consumed:
            return
        if isinstance(http.stream, httpx2.AsyncByteStream):
            http.stream = body = Body(http, self)
            self._body = weakref.ref(body)
            # For a reader who sees a failure that the transport doesn't, such as a stream of nothing but pings.
            http.extensions["penstock_attempt"] = self

    async def begin(self, http: httpx2.Response, *, hold_s: float) -> Beginning:
        """Return how the answer begins; reads ahead in a stream until that is known. See `Body.begin`."""
        body = self.body
        if body is not None and self.call.stream and self.failure is None and http.is_success:
            return await body.begin(http, hold_s=hold_s)
        if self._read is None or self._read.begun or self.failure is None:
            return Beginning(failure=None if self._read is not None else self.failure)
        error = error_of_answer(http, self._read) if self._read.failure is not None else ended_early(http)
        return Beginning(failure=self.failure, error=error)

    async def _note_response(self, response: Response, http: httpx2.Response) -> None:
        self.status = http.status_code
        self.request_id = http.headers.get("request-id")
        # A redirect that was not followed is no answer either.
        if not http.is_success:
            await self._note_error(response, http)
        elif not (http.is_closed or http.is_stream_consumed):
            self.watch(http)
        elif self.call.kind is RequestKind.MESSAGES:
            await self._note_read(response, http)

    async def _note_read(self, response: Response, http: httpx2.Response) -> None:
        """Take in an answer that was read whole: a message, or, in tests and after a hook that reads, a stream."""
        if not self.call.stream and await self._note_message(response):
            return
        scanner = scanner_for(http.headers.get("content-type", ""), self.call)
        if scanner is None:
            return
        try:
            scanner.see(http.content)
        except httpx2.ResponseNotRead:
            # Somebody reads the body himself; nothing is known of it.
            return
        scanner.finish()
        self.take(scanner)
        if scanner.begun:
            self.note_first_content()
        if self.failure is None and not scanner.complete:
            self.failure = INCOMPLETE
        self._read = scanner

    async def _note_message(self, response: Response) -> bool:
        """Take in a whole message: the SDK parses it in any case and keeps it, so here it is just done sooner."""
        if not isinstance(response, anthropic.AsyncAPIResponse):
            return False
        try:
            message = await cast("anthropic.AsyncAPIResponse[object]", response).parse()
        except Exception:  # noqa: BLE001 - the SDK will raise it again to its caller, whose matter it is
            return False
        if not isinstance(message, Message | BetaMessage) or not is_message(message.__dict__):
            return False
        self.usage, self.stop_reason = Usage.from_message(message), message.stop_reason
        return True

    async def _note_error(self, response: Response, http: httpx2.Response) -> None:
        try:
            await read_whole(http)
        except (httpx2.RequestError, httpx2.StreamError, InvalidStream, ResponseTooLarge):
            # The body broke off or is nonsense, but the status is known, and says enough. A body that counts as not
            # read lets the SDK tell the status without it.
            await http.aclose()
            http.is_stream_consumed = False
        except BaseException:
            self.call.put(http.aclose)
            raise
        finally:
            self.failure = failure_of_response(http)
            if self.failure.kind is FailureKind.AUTHENTICATION and _dropped_token(response) and not self.call.renewed:
                self.call.renewed = True
                self.failure = replace(self.failure, cause=Cause.NOTHING_DONE)

    def note_exception(self, error: BaseException) -> None:
        """Note what was raised, unless a failure is known already.

        A sent request that its call's deadline cuts off has timed out, as far as the service's health is concerned.
        """
        if self.failure is None:
            self.failure = failure_of_exception(error)
            if self.failure.kind is FailureKind.CANCELLED and self.sent and self.call.overdue:
                self.failure = replace(self.failure, kind=FailureKind.TIMEOUT)

    def note_first_content(self) -> None:
        """Note that the first content of a stream has come."""
        self.first_content_at = self.call.clock()

    def take(self, scanner: Scanner) -> None:
        """Take over what was learned of the body."""
        self.usage = scanner.usage
        self.stop_reason = scanner.stop_reason
        if not scanner.complete:
            self._written = scanner.written
            scanner.forget()
        if scanner.failure is not None:
            self.failure = scanner.failure

    def end(self) -> None:
        """End the attempt and run its give-backs; only the first call has an effect."""
        if self.ended:
            return
        self.ended = True
        if (
            self.may_be_billed
            and self.call.kind is RequestKind.MESSAGES
            and (self.failure is not None or self.usage is None)
        ):
            self.usage = (self.usage or Usage()).left_early(self._written)
        self._give_all_back()
        self.call.attempt_ended(self)

    def _give_all_back(self) -> None:
        while self._give_backs:
            give_back = self._give_backs.pop()
            try:
                give_back(self)
            except Exception as error:  # noqa: BLE001 - reported; the others must still run
                self.call.observers.emit(GiveBackFailed(call_id=self.call.id, error_type=type(error).__name__))


def open_attempt(request: APIRequest) -> AbstractContextManager[Attempt]:
    """Give the attempt that is under way for a `with` block, or open one, and its call.

    Whoever opens it ends it: at the end of the block, or, if the answer's body is still to be read, when that ends.

    Args:
        request: The request as the SDK's chain hands it on.
    """
    call = current_call.get()
    if call is None or call.ended:
        return _Opening(open_call(request))
    attempt = call.attempt
    return _Opening(call) if attempt is None or attempt.ended else attempt


def _dropped_token(response: Response) -> bool:
    """Have the SDK client get itself a new token after a 401, if it was one of those that it gets itself.

    Its own retries would do that, were they on.
    """
    cache = getattr(getattr(response, "_client", None), "_token_cache", None)
    options = getattr(response, "_options", None)
    if cache is None or brings_credentials(getattr(options, "headers", None) or ()):
        return False
    cache.invalidate()
    return True


class _Opening:
    """A block that opens an attempt, and ends it."""

    __slots__ = ("_attempt", "_call")

    def __init__(self, call: AbstractContextManager[Call]) -> None:
        self._call = call

    def __enter__(self) -> Attempt:
        call = self._call.__enter__()
        self._attempt = call.attempt = Attempt(call)
        return self._attempt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        attempt = self._attempt
        if error is not None:
            attempt.note_exception(error)
            attempt.end()
            if (body := attempt.body) is not None:
                # Whoever raised has left the answer behind.
                attempt.call.put(body.aclose)
        elif attempt.body is None or attempt.failure is not None:
            attempt.end()
        self._call.__exit__(kind, error, trace)
