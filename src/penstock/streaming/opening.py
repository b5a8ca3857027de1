"""Opening a stream: which method of the SDK sends the request, and what it is sent.

The rule here: the request is the one that the SDK's own `messages.stream` would send, by the SDK's public methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from types import TracebackType

    from anthropic import AsyncAnthropic

    from penstock.core.background import Background
    from penstock.streaming.stream import Stream

__all__ = ["OnAbandon", "StreamManager", "stream"]

OnAbandon: TypeAlias = Literal["close", "drain"]


class StreamManager:
    """Sends the request when it is entered, gives the `Stream`, and closes it when it is left; see `stream`."""

    async def __aenter__(self) -> Stream:
        """Send the request and wait for the answer to begin.

        Raises:
            anthropic.APIStatusError: The API refused.
            anthropic.APIConnectionError: It could not be reached.
        """
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream; an exception of the block leaves as it is."""
        raise NotImplementedError


def stream(
    sdk: AsyncAnthropic,
    *,
    stream_idle_timeout_s: float | None = 300.0,
    on_abandon: OnAbandon = "close",
    background: Background | None = None,
    **params: Any,
) -> StreamManager:
    """Stream a message: `async with` it, iterate over its text or its events, ask for the final message."""
    raise NotImplementedError
