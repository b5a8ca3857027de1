"""A stream into a WebSocket, as JSON frames.

The rule here: whoever waits for the model also listens to the browser. A browser that leaves ends the request at once,
whether it waits in line, is being answered, or stands still; one that stops it gets a final frame.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from penstock._core.usage import Usage
from penstock.streaming.relay import ErrorFrame, FinalFrame, Frame, relay
from penstock.streaming.stream import Stream
from penstock.web.frames import CloseCode, close_code, cost_of, encoded, error_frame, wait_s
from penstock.web.sources import opens

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.web.frames import Cost
    from penstock.web.sources import Opens, RelayedLoop, Source

__all__ = ["forward"]

_CLOSE_WITHIN_S: Final = 2.0
# Of a request that was stopped before it was answered.
_NOTHING: Final = FinalFrame(stop_reason=None, usage=Usage(), text_length=0)
_LONGEST_STOP: Final = 100


async def forward(
    stream: Source | Stream,
    websocket: WebSocket,
    *,
    send_timeout_s: float | None = 30.0,
    cost: Cost | None = None,
    on_message: Callable[[str | bytes], object] | None = None,
) -> FinalFrame:
    """Forward the text of a stream to a browser, as JSON frames over a WebSocket that was accepted.

    Frames, each a text message: any number of `{"type": "text", "text": …}`, of a tool loop also `approval`,
    `tool_call` and `tool_result`, then one of
    `{"type": "final", "stop_reason": …, "usage": {…}, "text_length": …}`, with `"cost_usd"` where `cost` is given, and
    `{"type": "error", "error": {"type": …, "message": …}, "text_length": …}`, with `"retry_after_s"` inside `error`
    where that is known. A slow browser gets fewer, larger texts.

    Until it returns it also receives. A message `{"type": "stop"}` ends the request; the final frame then has the
    `stop_reason` null. The socket stays open for the next question; after an error it is closed (`CloseCode`).

    Args:
        stream: What `claude.stream(…)`, `conversation.stream(…)` or `claude.tool_loop(…)` returns, not yet entered, so
            that the browser may also leave or stop while the request waits in line; or a `Stream` that the caller
            opened and closes.
        websocket: Accepted, and used by nobody else meanwhile.
        send_timeout_s: Seconds that the browser may take for one frame, above 0; `None` for no bound.
        cost: Gives the price of a message in USD, as `claude.cost` does. Its first call loads the price tables, which
            takes a third of a second: call it once when the application starts.
        on_message: Called with every message that is no stop. Without it they are dropped.

    Returns:
        The final frame, which was sent too.

    Raises:
        starlette.websockets.WebSocketDisconnect: The browser left; the request has ended.
        StreamInterrupted: The stream broke off; all its text and the error were sent, and the socket was closed.
        anthropic.AnthropicError: The request failed before any text; the error was sent, and the socket was closed.
        TimeoutError: The browser did not take a frame in time; the request has ended, and the socket was closed.
        TypeError: `stream` is something else; nothing was sent.

    Example:
        >>> async def answer(websocket: WebSocket) -> None:
        ...     await websocket.accept()
        ...     question = [{"role": "user", "content": await websocket.receive_text()}]
        ...     stream = claude.stream(model="claude-sonnet-5-5", max_tokens=500, messages=question)
        ...     await forward(stream, websocket, cost=claude.cost)
    """
    source = stream if isinstance(stream, Stream) else opens(stream, "forward")
    return await _Forwarding(source, websocket, send_timeout_s, cost, on_message).run()


class _Forwarding:
    """One answer on its way to one browser."""

    def __init__(
        self,
        source: Opens | Stream,
        websocket: WebSocket,
        send_timeout_s: float | None,
        cost: Cost | None,
        on_message: Callable[[str | bytes], object] | None,
    ) -> None:
        self._source = source
        self._websocket = websocket
        self._send_timeout_s = send_timeout_s
        self._cost = cost
        self._on_message = on_message
        self._stream: Stream | RelayedLoop | None = None
        self._opening = anyio.CancelScope()
        self._listening = anyio.CancelScope()
        self._told: CloseCode | None = None
        self._error: Exception | None = None
        self._left: WebSocketDisconnect | None = None

    async def run(self) -> FinalFrame:
        final = _NOTHING
        async with anyio.create_task_group() as group:
            group.start_soon(self._listen, group.cancel_scope)
            try:
                final = await self._answer()
            except Exception as error:  # noqa: BLE001 - raised below, because a task group would wrap it
                self._error = error
            group.cancel_scope.cancel()
        failure = self._left or self._error
        if failure is None:
            return final
        try:
            if self._left is None:
                await self._close(failure)
            raise failure
        finally:
            # Without the references, the error forms no cycle with its traceback.
            self._error = self._left = failure = None

    # What the browser gets

    async def _answer(self) -> FinalFrame:
        if isinstance(self._source, Stream):
            self._stream = self._source
            return await self._relay(self._source)
        async with AsyncExitStack() as stack:
            try:
                with self._opening:
                    self._stream = await stack.enter_async_context(self._source)
            except Exception as error:
                await self._tell(error)
                raise
            if self._stream is None:
                with anyio.fail_after(self._send_timeout_s):
                    await self._send(_NOTHING)
                return _NOTHING
            return await self._relay(self._stream)

    async def _relay(self, stream: Stream | RelayedLoop) -> FinalFrame:
        if self._opening.cancel_called:
            await stream.close()
        return await relay(stream, self._send, send_timeout_s=self._send_timeout_s)

    async def _send(self, frame: Frame) -> None:
        cost_usd, estimated = None, False
        if isinstance(frame, FinalFrame):
            # What the browser says once it has this frame is for the next one who receives.
            self._listening.cancel()
            cost_usd = cost_of(self._stream, self._cost)
            estimated = self._stream is None or not self._stream.complete
        elif isinstance(frame, ErrorFrame):
            self._told = close_code(frame.type)
        await self._websocket.send_text(encoded(frame, cost_usd=cost_usd, estimated=estimated))

    async def _tell(self, error: Exception) -> None:
        """Tell of a request that failed before it was answered."""
        frame = error_frame(error)
        self._told = close_code(frame.type)
        with anyio.move_on_after(self._send_timeout_s):
            await self._websocket.send_text(encoded(frame, wait_s=wait_s(error)))

    async def _close(self, error: Exception) -> None:
        """Close the socket after an error; a browser that is gone, or hangs, can't keep us."""
        code = self._told or (CloseCode.POLICY if isinstance(error, TimeoutError) else CloseCode.FAILED)
        with anyio.move_on_after(_CLOSE_WITHIN_S):
            try:
                await self._websocket.close(code)
            except (RuntimeError, OSError, WebSocketDisconnect):
                # It is closed.
                return

    # What the browser says

    async def _listen(self, everything: anyio.CancelScope) -> None:
        try:
            with self._listening:
                while True:
                    await self._hear(await self._websocket.receive())
        except WebSocketDisconnect as left:
            self._left = left
            everything.cancel()
        except Exception as error:  # noqa: BLE001 - raised by `run`, because a task group would wrap it
            self._error = error
            everything.cancel()

    async def _hear(self, message: Any) -> None:
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005, message.get("reason"))
        said: str | bytes = message.get("text") or message.get("bytes") or ""
        if _is_stop(said):
            await self._stop()
        elif self._on_message is not None:
            self._on_message(said)

    async def _stop(self) -> None:
        if self._stream is None:
            self._opening.cancel()
        else:
            await self._stream.close()


def _is_stop(said: str | bytes) -> bool:
    if len(said) > _LONGEST_STOP:
        return False
    try:
        message: object = json.loads(said)
    except ValueError:
        return False
    return isinstance(message, dict) and cast("dict[str, object]", message).get("type") == "stop"
