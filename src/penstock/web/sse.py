"""A stream as server-sent events, on sse-starlette's response.

The rule here: one answer is asked for once. A browser's `EventSource` connects again by itself whenever a response
ends; every event has an id, so that such a request shows itself by its `Last-Event-ID` and is told to stay away.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anthropic
import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from penstock.errors import ClientClosed
from penstock.streaming.relay import FinalFrame, Frame, TextFrame, relay
from penstock.web.frames import cost_of, encoded, error_frame, wait_s
from penstock.web.sources import opens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.streams.memory import MemoryObjectSendStream
    from starlette.types import Receive, Scope, Send

    from penstock.streaming.stream import Stream
    from penstock.web.frames import Cost
    from penstock.web.sources import Opens, RelayedLoop, Source

__all__ = ["EventStreamResponse", "event_stream"]

# What a browser may take for the last frame when the server shuts down.
_FAREWELL_S: Final = 1.0
_NEWLINE: Final = "\n"


def _holds_no_content(record: logging.LogRecord) -> bool:
    return record.msg != _EVERY_CHUNK


# At level DEBUG, sse-starlette logs every event that it sends.
_EVERY_CHUNK: Final = "chunk: %s"
logging.getLogger("sse_starlette.sse").addFilter(_holds_no_content)


def event_stream(
    stream: Source,
    *,
    heartbeat_s: float = 15.0,
    send_timeout_s: float | None = 30.0,
    cost: Cost | None = None,
) -> EventStreamResponse:
    """Return a response that sends the text of a stream as server-sent events.

    Each event is an unnamed one, whose `data` is the JSON that `forward` sends. The response begins at once, with
    status 200, and is kept alive by comments while the request waits in line; a request that fails is an `error` frame.

    Args:
        stream: What `claude.stream(…)`, `conversation.stream(…)` or `claude.tool_loop(…)` returns, not yet entered:
            the request is sent when the response is, and ends when the browser leaves.
        heartbeat_s: Seconds between comments, which keep proxies from closing a silent connection; 0 for none.
        send_timeout_s: Seconds that the browser may take for one event, above 0; `None` for no bound.
        cost: As for `forward`.

    Returns:
        A response with `Cache-Control: no-store` and `X-Accel-Buffering: no`.

    Raises:
        ValueError: A `heartbeat_s` below 0.
        TypeError: `stream` is something else.

    Example:
        >>> from starlette.requests import Request
        >>> async def answer(request: Request) -> Response:
        ...     question = [{"role": "user", "content": request.query_params["question"]}]
        ...     return event_stream(claude.stream(model="claude-sonnet-5-5", max_tokens=500, messages=question))
    """
    source = opens(stream, "event_stream")
    return EventStreamResponse(source, heartbeat_s=heartbeat_s, send_timeout_s=send_timeout_s, cost=cost)


class EventStreamResponse(EventSourceResponse):
    """Sends one stream to one browser; made by `event_stream`."""

    def __init__(self, stream: Opens, *, heartbeat_s: float, send_timeout_s: float | None, cost: Cost | None) -> None:
        self._shutdown = anyio.Event()
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - it names a bare dict
            iter(()),
            ping=heartbeat_s,
            ping_message_factory=_heartbeat,
            send_timeout=send_timeout_s,
            shutdown_event=self._shutdown,
            shutdown_grace_period=_FAREWELL_S,
            sep=_NEWLINE,
        )
        self._source = stream
        self._cost = cost
        self._stream: Stream | RelayedLoop | None = None
        self._events = 0
        self._text_length = 0
        self._told = False
        self._wait_s: float | None = None
        self._error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as an ASGI application does."""
        if any(name == b"last-event-id" for name, _ in scope["headers"]):
            # By the specification of server-sent events, this status ends all attempts to connect again.
            await Response(status_code=204)(scope, receive, send)
            return
        put, self.body_iterator = anyio.create_memory_object_stream[ServerSentEvent](0)
        with put, self.body_iterator:
            self.data_sender_callable = lambda: self._answer(put)
            await super().__call__(scope, receive, send)
        if self._error is not None and not isinstance(self._error, anthropic.AnthropicError):
            raise self._error

    async def _answer(self, put: MemoryObjectSendStream[ServerSentEvent]) -> None:
        """Put the frames into the body, which ends when `put` is closed."""

        async def send(frame: Frame) -> None:
            await put.send(self._event(frame))

        with put:
            shutdown = anyio.CancelScope()
            async with anyio.create_task_group() as group:
                group.start_soon(self._cancel_on_shutdown, shutdown)
                with shutdown:
                    await self._relay(send)
                group.cancel_scope.cancel()
            if shutdown.cancelled_caught:
                error = ClientClosed("the server is shutting down")
                await send(error_frame(error, text_length=self._text_length))

    async def _cancel_on_shutdown(self, scope: anyio.CancelScope) -> None:
        await self._shutdown.wait()
        scope.cancel()

    async def _relay(self, send: Callable[[Frame], Awaitable[None]]) -> None:
        try:
            async with self._source as stream:
                self._stream = stream
                await relay(stream, send, send_timeout_s=None)
        except Exception as error:  # noqa: BLE001 - told to the browser; `__call__` raises it if it is not the API's
            self._error = error
            if not self._told:
                self._wait_s = wait_s(error)
                await send(error_frame(error))

    def _event(self, frame: Frame) -> ServerSentEvent:
        cost_usd = None
        if isinstance(frame, TextFrame):
            self._text_length += len(frame.text)
        elif isinstance(frame, FinalFrame):
            cost_usd = cost_of(self._stream, self._cost)
        else:
            self._told = True
        self._events += 1
        return ServerSentEvent(
            encoded(frame, cost_usd=cost_usd, wait_s=self._wait_s), id=str(self._events), sep=_NEWLINE
        )


def _heartbeat() -> ServerSentEvent:
    return ServerSentEvent(comment="heartbeat", sep=_NEWLINE)
