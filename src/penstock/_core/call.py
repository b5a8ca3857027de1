"""A call: all that one method of the SDK client sets off, its attempts and waits, until its last body has ended.

The rule here: a call is opened by the first guard that it meets, lives in a `ContextVar` while the chain runs, and is
held by reference by what outlives the chain. It ends exactly once, after its last attempt. One cancel scope bounds it:
by its deadline, and by the client's close.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import secrets
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import anthropic
import anyio
import httpx2

from penstock._core.context import current_call_end, current_deadline, current_labels, current_patience
from penstock._core.failure import CLOSED
from penstock._core.kind import RequestKind, kind_of, model_of
from penstock._core.models import known
from penstock._core.usage import NOTHING, writes_for_an_hour
from penstock.errors import AdmissionTimeout, ClientClosed
from penstock.events import GiveBackFailed, Observers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager
    from contextvars import Token
    from types import TracebackType

    from anthropic import APIRequest

    from penstock._core.attempt import Attempt
    from penstock._core.background import Background
    from penstock._core.failure import Failure

__all__ = ["MAX_RESPONSE_BYTES", "Call", "CallGiveBack", "current_call", "open_call"]

MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024
"""What an answer may have unless something else is said: several times the largest that the API gives."""

CallGiveBack: TypeAlias = "Callable[[Call], None]"

current_call: ContextVar[Call | None] = ContextVar("penstock_call", default=None)
_numbers = itertools.count(1)
_NO_OBSERVERS = Observers()
_prefix = ""


def _begin_ids() -> None:
    """Name this process: one that is forked goes on counting where its parent was, but under a name of its own."""
    global _prefix  # noqa: PLW0603 - a process has one
    _prefix = secrets.token_hex(4)


_begin_ids()
if sys.platform != "win32":  # pragma: no branch - there is nothing to fork on Windows
    os.register_at_fork(after_in_child=_begin_ids)


class Call:
    """One call.

    Attributes:
        id: Identifies it within this process and its logs.
        kind: Which guards it passes.
        model: As asked for; changes if a guard chooses another.
        stream: Whether an event stream was asked for.
        labels: As set by the caller.
        max_response_bytes: What an answer may have, decompressed.
        deadline: Time of the event loop by which it must have returned; infinity for none.
        patience: Set for items of a batch.
        clock: The event loop's, for what may run where no loop does: the garbage collector may end a call.
        started_at: Time of the event loop.
        attempts: Attempts opened so far.
        attempt: The last attempt opened; `None` once the call is over.
        usage: Tokens of all attempts that ended.
        place: Its place in the waiting line, in the line's own terms; a retried attempt keeps it.
        forbidden: The key for which it was answered 403, in terms of the pool; `None` while it wasn't.
        notes: What the error finally raised should say besides the API's own words.
        renewed: Whether the SDK client was to get itself a new token.
        waiting: Whether it stands in the waiting line now.
        closing: Whether its client is being closed.
        ended: Whether it is over.
    """

    __slots__ = (
        "__weakref__",
        "_give_backs",
        "_request_body",
        "_returned",
        "attempt",
        "attempts",
        "background",
        "clock",
        "closing",
        "deadline",
        "ended",
        "failure",
        "first_content_at",
        "forbidden",
        "id",
        "key",
        "kind",
        "labels",
        "max_response_bytes",
        "model",
        "notes",
        "observers",
        "patience",
        "place",
        "queued_s",
        "renewed",
        "request_id",
        "scope",
        "started_at",
        "status",
        "stop_reason",
        "stream",
        "url",
        "usage",
        "waiting",
    )

    def __init__(
        self,
        request: APIRequest,
        *,
        observers: Observers,
        background: Background | None,
        deadline_s: float | None,
        max_response_bytes: int,
    ) -> None:
        self.id = f"{_prefix}-{next(_numbers)}"
        self.url = request.url
        self.kind = kind_of(request.method, request.url)
        self.model = model_of(request)
        self.stream = request.stream
        self.labels = current_labels()
        self.max_response_bytes = max_response_bytes
        self._request_body: object = request.json if self.kind is RequestKind.MESSAGES else None
        self.patience = current_patience()
        self.observers = observers
        self.background = background
        self.clock = asyncio.get_running_loop().time
        self.started_at = self.clock()
        own_s = self.patience.deadline_s if self.patience is not None else deadline_s
        self.deadline = min(current_deadline(), self.started_at + (own_s if own_s is not None else math.inf))
        self.attempts = 0
        self.attempt: Attempt | None = None
        self.usage = NOTHING
        self.failure: Failure | None = None
        self.status: int | None = None
        self.request_id: str | None = None
        self.stop_reason: str | None = None
        self.first_content_at: float | None = None
        self.queued_s = 0.0
        self.key: str | None = None
        self.place: object = None
        self.forbidden: object = None
        self.notes: list[str] = []
        self.renewed = False
        self.waiting = False
        self.closing = False
        self.ended = False
        self.scope: anyio.CancelScope | None = None
        self._returned = False
        told = current_call_end()
        self._give_backs: list[CallGiveBack] = [] if told is None else [told]

    def __repr__(self) -> str:
        state = "ended" if self.ended else "open"
        return f"<Call {self.id} {self.kind.value} {self.model!r}, {self.attempts} attempts, {state}>"

    def __enter__(self) -> Self:
        """Give itself for a block inside its own; see `open_call`."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Go on: whoever opened it ends it."""

    @property
    def overdue(self) -> bool:
        """Whether its deadline has cut it off."""
        return self.scope is not None and self.scope.cancel_called and not self.closing

    @property
    def model_class(self) -> str:
        """The pool of rate limits that its model belongs to."""
        return known(self.model).pool

    def writes_for_an_hour(self) -> bool:
        """Whether its request asks the prompt cache to keep what it writes for an hour."""
        return writes_for_an_hour(self._request_body)

    def push(self, give_back: CallGiveBack) -> None:
        """Have `give_back` called with this call when it ends, after its last attempt; at once if it has ended."""
        self._give_backs.append(give_back)
        if self.ended:
            self._give_all_back()

    def put(self, work: Callable[[], Awaitable[object]]) -> bool:
        """Have `work` done in the client's background task; False if there is none."""
        return self.background is not None and self.background.put(work)

    def close(self) -> None:
        """Cut it short, because its client is being closed: a wait or an attempt is cancelled, a body is closed."""
        self.closing = True
        if self.scope is not None:
            self.scope.cancel()
        elif self.attempt is not None and (body := self.attempt.body) is not None:
            self.attempt.failure = CLOSED
            self.attempt.end()
            self.put(body.aclose)

    def attempt_ended(self, attempt: Attempt) -> None:
        """Take over what an attempt came to; ends the call if it was the last."""
        if attempt.usage is not None:
            self.usage += attempt.usage
        self.failure = attempt.failure
        self.status = attempt.status
        self.request_id = attempt.request_id or self.request_id
        self.stop_reason = attempt.stop_reason
        self.first_content_at = attempt.first_content_at
        self.queued_s += attempt.queued_s
        self.key = attempt.key or self.key
        if self._returned:
            self.end()

    def returned(self) -> None:
        """Note that the chain has returned; the call ends now, or with the body that is still to be read."""
        self._returned = True
        if self.attempt is None or self.attempt.ended:
            self.end()

    def end(self) -> None:
        """End the call and run its give-backs; only the first call has an effect."""
        if self.ended:
            return
        self.ended = True
        if self.attempt is not None:
            self.attempt.end()
        self._give_all_back()
        # The call and its attempt refer to each other; without the cycle both are freed at once.
        self.attempt = None
        self._request_body = None

    def _give_all_back(self) -> None:
        while self._give_backs:
            give_back = self._give_backs.pop()
            try:
                give_back(self)
            except Exception as error:  # noqa: BLE001 - reported; the others must still run
                self.observers.emit(GiveBackFailed(call_id=self.id, error_type=type(error).__name__))

    def cut_short(self) -> Exception:
        """Return the error for a call that its own scope has cancelled: the client's close, or the deadline."""
        # A call that begins after its deadline has none of its time left.
        seconds = max(0.0, self.deadline - self.started_at)
        if self.closing:
            return ClientClosed("the client was closed while this call was under way")
        if self.waiting:
            return AdmissionTimeout(
                f"not admitted within the deadline of {seconds:.3g} s; nothing was sent. "
                "Allow more time, or raise the limits or concurrency."
            )
        error = anthropic.APITimeoutError(request=httpx2.Request("POST", "http://deadline.invalid" + self.url))
        error.add_note(f"the deadline of {seconds:.3g} s passed during attempt {self.attempts}")
        return error


def open_call(
    request: APIRequest,
    *,
    new: bool = False,
    observers: Observers = _NO_OBSERVERS,
    background: Background | None = None,
    deadline_s: float | None = None,
    max_response_bytes: int = MAX_RESPONSE_BYTES,
) -> AbstractContextManager[Call]:
    """Give the call that is under way for a `with` block, or open one.

    Whoever opens it ends it: at the end of the block, or, if an answer's body is still to be read, when that ends.

    Args:
        request: The request as the SDK's chain hands it on.
        new: Open one even if another is under way (a call made by a middleware inside another call).
        observers: Told of what goes wrong at its end.
        background: Does what outlives it.
        deadline_s: Seconds that an ordinary call may take; `None` for no bound.
        max_response_bytes: What an answer may have, decompressed, above 0.
    """
    call = current_call.get()
    if call is not None and not call.ended and not new:
        return call
    opened = Call(
        request,
        observers=observers,
        background=background,
        deadline_s=deadline_s,
        max_response_bytes=max_response_bytes,
    )
    return _Opening(opened)


class _Opening:
    """A block that opens a call, and ends it."""

    __slots__ = ("_call", "_scope", "_token")

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> Call:
        call = self._call
        self._token: Token[Call | None] = current_call.set(call)
        # A scope of anyio and not a bare cancellation, because it spares what the transport shields: its closing.
        self._scope = call.scope = anyio.CancelScope(deadline=call.deadline)
        self._scope.__enter__()
        return call

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        call = self._call
        cut = bool(self._scope.__exit__(kind, error, trace))
        call.scope = None
        current_call.reset(self._token)
        if error is None:
            call.returned()
            return
        call.end()
        if cut:
            raise call.cut_short() from None
