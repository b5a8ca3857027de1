"""A relay from a stream to a consumer that may be slow, hang, or leave.

The rule here: the reader never waits for the consumer. What it has read while a frame was being sent goes out as one
frame; so a slow consumer gets fewer, larger frames, and what is held is at most the message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from penstock.core.usage import Usage
    from penstock.streaming.stream import Stream

__all__ = ["ErrorFrame", "FinalFrame", "Frame", "TextFrame", "relay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFrame:
    """Text that follows what came before.

    Attributes:
        text: One delta, or several that came while the consumer was busy. Never in `repr`.
    """

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalFrame:
    """The last frame of a stream that has ended as it should.

    Attributes:
        stop_reason: As the API gave it.
        usage: Tokens that it used.
        text_length: Characters of all text frames together, so that a consumer can tell whether it has got them all.
    """

    stop_reason: str | None
    usage: Usage
    text_length: int


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


Frame: TypeAlias = TextFrame | FinalFrame | ErrorFrame


async def relay(
    stream: Stream,
    send: Callable[[Frame], Awaitable[object]],
    *,
    send_timeout_s: float | None = 30.0,
    on_event: Callable[[Any], object] | None = None,
) -> FinalFrame:
    """Forward the text of a stream to a consumer without ever making the stream wait.

    Args:
        stream: An open stream, not yet read, or read in part.
        send: Awaited with each frame, one after the other; when it raises, the stream is closed at once.
        send_timeout_s: Seconds that one `send` may take; `None` for no bound.
        on_event: Called with each event of the stream (the SDK's types), for what is not text. Synchronous.

    Returns:
        The final frame, which was sent too.

    Raises:
        StreamInterrupted: The stream broke off; its text and an `ErrorFrame` were sent before.
        TimeoutError: The consumer did not take a frame in time; the stream is closed.
        Exception: What `send` or `on_event` raised, as it is; the stream is closed.
    """
    raise NotImplementedError
