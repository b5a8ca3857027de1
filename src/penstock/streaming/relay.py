"""A relay from a stream to a consumer that may be slow, hang, or leave.

The rule here: the reader never waits for the consumer. What it has read while a frame was being sent goes out as one
frame; so a slow consumer gets fewer, larger frames, and what is held is at most the message.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import anthropic
import anyio

from penstock.errors import StreamInterrupted
from penstock.streaming.stream import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from penstock._core.usage import Usage

__all__ = ["ErrorFrame", "EventFrame", "FinalFrame", "Frame", "Relayed", "TextFrame", "relay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFrame:
    """Text that follows what came before.

    Attributes:
        text: One delta, or several that came while the consumer was busy. Never in `repr`.
    """

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFrame:
    """What happened between texts, in a source that tells of more than text.

    Attributes:
        event: As the source tells it. Never in `repr`.
    """

    event: object = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalFrame:
    """The last frame of a stream that has ended as it should, or was closed by somebody else, as a stop button does.

    Attributes:
        stop_reason: As the API gave it; `None` if the stream was closed before its end.
        usage: Tokens that it used; estimated if it was closed.
        text_length: Characters of all text frames together, so that a consumer can tell whether it has got them all.
        text: That of all text frames together, for whoever keeps it; a consumer has it already. Never in `repr`.
    """

    stop_reason: str | None
    usage: Usage
    text_length: int
    text: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFrame:
    """The last frame of a stream that broke off; the text before it is all that came.

    Attributes:
        type: The API's error type (`overloaded_error`, …), else the name of the exception's class.
        message: What happened, for people; holds no content.
        text_length: As in `FinalFrame`.
    """

    type: str
    message: str
    text_length: int


Frame: TypeAlias = TextFrame | EventFrame | FinalFrame | ErrorFrame


class Relayed(Protocol):
    """What can be relayed besides a `Stream`."""

    @property
    def stop_reason(self) -> str | None:
        """Of the answer; `None` before its end."""
        ...

    @property
    def usage(self) -> Usage:
        """Tokens used so far."""
        ...

    @property
    def parts(self) -> AsyncIterator[str | EventFrame]:
        """Text, and what happens between, in order."""
        ...

    async def close(self) -> None:
        """End it; `parts` ends then."""
        ...


async def relay(
    stream: Stream | Relayed,
    send: Callable[[Frame], Awaitable[object]],
    *,
    send_timeout_s: float | None = 30.0,
    on_event: Callable[[Any], object] | None = None,
) -> FinalFrame:
    """Forward the text of a stream to a consumer without ever making the stream wait.

    Args:
        stream: An open stream, not yet read, or read in part; or another source of text.
        send: Awaited with each frame, one after the other; when it raises, the stream is closed at once.
        send_timeout_s: Seconds that one `send` may take, above 0; `None` for no bound.
        on_event: Called with each event of the stream (the SDK's own types), for what is not text: tools, thinking,
            citations. Synchronous, and as the events come, whatever the consumer has taken so far.

    Returns:
        The final frame, which was sent too.

    Raises:
        StreamInterrupted: The stream broke off; all its text and an `ErrorFrame` were sent before. Other errors of the
            stream are raised in the same way.
        TimeoutError: The consumer did not take a frame in time; the stream is closed.
        Exception: What `send` or `on_event` raised, as it is; the stream is closed.

    Example:
        >>> from penstock.streaming import stream
        >>> async def main() -> None:
        ...     async with anthropic.AsyncAnthropic() as claude:
        ...         params = {"model": "claude-sonnet-5-5", "max_tokens": 200}
        ...         messages = [{"role": "user", "content": "Hello"}]
        ...
        ...         async def send(frame: Frame) -> None:
        ...             if isinstance(frame, FinalFrame):
        ...                 print(frame.stop_reason)
        ...
        ...         async with stream(claude, messages=messages, **params) as answer:
        ...             await relay(answer, send)
        >>> import anyio
        >>> anyio.run(main)
        end_turn
    """
    mailbox = _Mailbox()
    raised: Exception | None = None
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_read, stream, mailbox, on_event)
            try:
                await _deliver(mailbox, send, send_timeout_s)
            except Exception as error:  # noqa: BLE001 - raised below, because a task group would wrap it
                raised = error
            group.cancel_scope.cancel()
        failure = raised or mailbox.error
        if failure is None:
            text = "".join(mailbox.sent)
            final = FinalFrame(
                stop_reason=stream.stop_reason, usage=stream.usage, text_length=mailbox.length, text=text
            )
            await _send(send, final, send_timeout_s)
            return final
        if raised is None:
            await _send(send, _error_frame(failure, mailbox.length), send_timeout_s)
    finally:
        await stream.close()
    try:
        raise failure
    finally:
        # Without the references, the error forms no cycle with its traceback.
        del failure, raised


class _Mailbox:
    """What the reader has read and the consumer has not yet taken.

    Attributes:
        parts: Text not yet sent, and what happened between.
        sent: Text that was.
        length: Characters of all text read.
        over: Whether no more will come.
        error: What the reader failed with.
        news: Set when any of this has changed.
    """

    __slots__ = ("error", "length", "news", "over", "parts", "sent")

    def __init__(self) -> None:
        self.parts: list[str | EventFrame] = []
        self.sent: list[str] = []
        self.length = 0
        self.over = False
        self.error: Exception | None = None
        self.news = asyncio.Event()

    def put(self, part: str | EventFrame) -> None:
        self.parts.append(part)
        self.length += len(part) if isinstance(part, str) else 0
        self.news.set()

    async def take(self) -> list[TextFrame | EventFrame]:
        """Wait for news and take all there is, adjacent text joined; empty at the end."""
        while not (self.parts or self.over):
            self.news.clear()
            await self.news.wait()
        parts, self.parts = self.parts, []
        frames: list[TextFrame | EventFrame] = []
        for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
            if is_text:
                self.sent.append("".join(cast("Iterable[str]", group)))
                frames.append(TextFrame(text=self.sent[-1]))
            else:
                frames += cast("Iterable[EventFrame]", group)
        return frames


async def _read(stream: Stream | Relayed, mailbox: _Mailbox, on_event: Callable[[Any], object] | None) -> None:
    try:
        if not isinstance(stream, Stream):
            async for part in stream.parts:
                mailbox.put(part)
        elif on_event is None:
            async for text in stream.text_stream:
                if text:
                    mailbox.put(text)
        else:
            async for event in stream:
                if event.type == "text" and event.text:
                    mailbox.put(event.text)
                on_event(event)
    except Exception as error:  # noqa: BLE001 - raised to the caller, once all text is sent
        mailbox.error = error
    finally:
        mailbox.over = True
        mailbox.news.set()


async def _deliver(mailbox: _Mailbox, send: Callable[[Frame], Awaitable[object]], send_timeout_s: float | None) -> None:
    while frames := await mailbox.take():
        for frame in frames:
            await _send(send, frame, send_timeout_s)


async def _send(send: Callable[[Frame], Awaitable[object]], frame: Frame, send_timeout_s: float | None) -> None:
    with anyio.move_on_after(send_timeout_s) as scope:
        await send(frame)
    if scope.cancelled_caught:
        raise TimeoutError(f"the consumer did not take a frame within {send_timeout_s:g} s; the stream is closed")


def _error_frame(error: Exception, text_length: int) -> ErrorFrame:
    cause = error.cause if isinstance(error, StreamInterrupted) else error
    kind = cause.type if isinstance(cause, anthropic.APIStatusError) and cause.type else type(cause).__name__
    return ErrorFrame(type=kind, message=str(error), text_length=text_length)
