"""The record: one report for every call, and nothing secret in what leaves the chain.

The rule here: it stands outermost, so that it sees every call begin and end whatever happens inside. A call is reported
once, when its last body has ended. Responses and errors leave with a copy of their request that holds neither
credentials nor a body, because the SDK's errors, and their pickles, carry both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anthropic
import anyio

from penstock._core.attempt import http_response_of, open_attempt
from penstock._core.call import MAX_RESPONSE_BYTES, open_call
from penstock._core.failure import Failure, FailureKind, failure_of_exception
from penstock._core.secret import clean_error, without_secrets
from penstock.errors import PenstockError
from penstock.events import CallEnded, Observers

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2
    from anthropic import APIRequest

    from penstock._core.attempt import CallNext, Response
    from penstock._core.background import Background
    from penstock._core.call import Call

__all__ = ["Record", "RecordStatistics"]

_NO_OBSERVERS: Final = Observers()
_BY_THE_CALLER: Final = frozenset({FailureKind.CANCELLED, FailureKind.ABANDONED})


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordStatistics:
    """All calls of a client, as their callers saw them.

    Attributes:
        calls: Calls that ended.
        successes: Those that succeeded.
        failures: Those that failed.
        cancelled: The others: their caller cancelled them, or left a stream before its end.
        in_flight: Calls under way.
        mean_latency_s: From start to end, waits, retries and body included; 0 if no call has ended.
        input_tokens: Input after the last cache breakpoint; like all tokens here, of all attempts.
        output_tokens: Generated, thinking included.
        cache_read_tokens: Input read from the prompt cache.
        cache_write_tokens: Input written to the prompt cache.
    """

    calls: int
    successes: int
    failures: int
    cancelled: int
    in_flight: int
    mean_latency_s: float
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int

    @property
    def success_rate(self) -> float:
        """The share of successes among the calls that succeeded or failed, 0 to 1; 1 if there were none."""
        decided = self.successes + self.failures
        return self.successes / decided if decided else 1.0


class _Totals:
    """The sums of all calls that ended."""

    __slots__ = ("cache_read", "cache_write", "calls", "cancelled", "failures", "input", "latency_s", "output")

    def __init__(self) -> None:
        self.calls = self.failures = self.cancelled = 0
        self.input = self.output = self.cache_read = self.cache_write = 0
        self.latency_s = 0.0

    def add(self, call: Call, failure: Failure | None, latency_s: float) -> None:
        self.calls += 1
        self.latency_s += latency_s
        if failure is not None:
            if failure.kind in _BY_THE_CALLER:
                self.cancelled += 1
            else:
                self.failures += 1
        usage = call.usage
        self.input += usage.input_tokens
        self.output += usage.output_tokens
        self.cache_read += usage.cache_read_input_tokens
        self.cache_write += usage.cache_creation_input_tokens

    def statistics(self, *, in_flight: int) -> RecordStatistics:
        return RecordStatistics(
            calls=self.calls,
            successes=self.calls - self.failures - self.cancelled,
            failures=self.failures,
            cancelled=self.cancelled,
            in_flight=in_flight,
            mean_latency_s=self.latency_s / self.calls if self.calls else 0.0,
            input_tokens=self.input,
            output_tokens=self.output,
            cache_read_tokens=self.cache_read,
            cache_write_tokens=self.cache_write,
        )


class Record(anthropic.Middleware):
    """Opens a call for every request that enters the chain, bounds it, and reports how it ended.

    Args:
        observers: Told once of every call that ended (`CallEnded`).
        background: Does what outlives a call, e.g. closing the body of a stream that was dropped.
        deadline_s: Seconds that a call may take, waits and attempts together, unless `penstock.deadline` says less;
            more than 0, `None` for no bound. A stream must have begun by then, and may be read on.
        max_response_bytes: What an answer to `/v1/messages` may have, decompressed, above 0.
        gate: Called before every call; what it raises refuses the call.

    Raises:
        ValueError: `deadline_s` is not a number above 0.

    Example:
        >>> ended = []
        >>> record = Record(observers=Observers((ended.append,)))
        >>> claude = anthropic.AsyncAnthropic(api_key="…", middleware=[record])
        >>> record.statistics().success_rate
        1.0
    """

    def __init__(
        self,
        *,
        observers: Observers = _NO_OBSERVERS,
        background: Background | None = None,
        deadline_s: float | None = 600.0,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        gate: Callable[[], None] | None = None,
    ) -> None:
        if deadline_s is not None and not deadline_s > 0:
            raise ValueError(f"deadline_s must be more than 0 seconds, or None for no bound, not {deadline_s!r}")
        self._observers = observers
        self._background = background
        self._deadline_s = deadline_s
        self._max_response_bytes = max_response_bytes
        self._gate = gate
        self._totals = _Totals()
        # What was raised to the caller goes with the call, because the last attempt may have told another story.
        self._live: dict[Call, Failure | None] = {}
        self._emptied: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<Record {len(self._live)} calls under way, {self._totals.calls} ended>"

    @property
    def live(self) -> frozenset[Call]:
        """The calls under way now, streams that are being read included."""
        return frozenset(self._live)

    async def idle(self, *, within_s: float) -> bool:
        """Wait until no call is under way.

        Args:
            within_s: Seconds to wait at most, 0 or more.

        Returns:
            Whether none is.
        """
        with anyio.move_on_after(within_s):
            while self._live:
                if self._emptied is None:
                    self._emptied = anyio.Event()
                await self._emptied.wait()
        return not self._live

    def statistics(self) -> RecordStatistics:
        """Return the sums so far."""
        return self._totals.statistics(in_flight=len(self._live))

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        """Send `request` on within a call of its own."""
        if self._gate is not None:
            self._gate()
        try:
            with open_call(
                request,
                new=True,
                observers=self._observers,
                background=self._background,
                deadline_s=self._deadline_s,
                max_response_bytes=self._max_response_bytes,
            ) as call:
                self._begin(call)
                try:
                    response = await call_next(request)
                except BaseException as error:
                    self._live[call] = _failure_of(call, error)
                    raise
                if not call.attempts:
                    response = await _watched(response, request)
        except BaseException as error:
            clean_error(error)
            raise
        http = http_response_of(response)
        if http is not None:
            _clean(http)
        return response

    def _begin(self, call: Call) -> None:
        call.push(self._ended)
        self._live[call] = None

    def _ended(self, call: Call) -> None:
        failure = self._live.pop(call) or call.failure
        latency_s = call.clock() - call.started_at
        self._totals.add(call, failure, latency_s)
        if not self._live and self._emptied is not None:
            self._emptied.set()
            self._emptied = None
        if self._observers:
            self._observers.emit(_report(call, failure, latency_s))


async def _watched(response: Response, request: APIRequest) -> Response:
    """Have an answer watched for which no guard further in has opened an attempt."""

    async def answered(_request: APIRequest) -> Response:
        return response

    with open_attempt(request) as attempt:
        return await attempt.send(request, answered)


def _failure_of(call: Call, error: BaseException) -> Failure:
    """Return what the caller gets to see as a failure.

    That is what the last attempt noted, which knows more than the exception, unless something else ended the call.
    """
    if isinstance(error, Exception):
        known = call.failure if not isinstance(error, PenstockError) else None
        return known or failure_of_exception(error)
    if call.closing:
        return Failure(kind=FailureKind.CANCELLED, error_type="ClientClosed")
    return failure_of_exception(call.cut_short() if call.overdue else error)


def _report(call: Call, failure: Failure | None, latency_s: float) -> CallEnded:
    first_content_at = call.first_content_at
    return CallEnded(
        call_id=call.id,
        request_id=call.request_id,
        kind=call.kind.value,
        model=call.model,
        stream=call.stream,
        status=call.status,
        failure=None if failure is None else failure.kind.value,
        error_type=None if failure is None else failure.error_type,
        stop_reason=call.stop_reason,
        attempts=call.attempts,
        usage=call.usage,
        latency_s=latency_s,
        queued_s=call.queued_s,
        first_token_s=None if first_content_at is None else first_content_at - call.started_at,
        key=call.key,
        labels=dict(call.labels),
    )


def _clean(http: httpx2.Response) -> None:
    """Free a response of secrets: errors that the SDK raises after the chain, and while a stream is read, carry it."""
    for response in (*http.history, http):
        try:
            response.request = without_secrets(response.request)
        except RuntimeError:
            # A response that some middleware made up has no request.
            continue
        if response.next_request is not None:
            response.next_request = without_secrets(response.next_request)
