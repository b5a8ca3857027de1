"""What can be forwarded to a browser: streams, those of conversations, and tool loops.

The rule here: what can't be is refused before anything is sent, with what can be. A tool loop is relayed as a stream
is: its text, and between it what its tools do.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final, Self, TypeAlias, cast

from penstock.conversation.stream import ConversationStream
from penstock.streaming.opening import StreamManager
from penstock.streaming.relay import EventFrame
from penstock.tools.events import ApprovalAsked, Finished, TextDelta, ToolDenied, ToolFinished, ToolStarted
from penstock.tools.loop import ToolLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from penstock._core.usage import Usage
    from penstock.streaming.stream import Stream

__all__ = ["Opens", "RelayedLoop", "Source", "opens"]

Source: TypeAlias = "AbstractAsyncContextManager[Stream] | ToolLoop"
Opens: TypeAlias = "AbstractAsyncContextManager[Stream | RelayedLoop]"

_TOLD: Final = (ApprovalAsked, ToolStarted, ToolFinished, ToolDenied)
_TAKEN: Final = "what claude.stream(…), conversation.stream(…) or claude.tool_loop(…) returns, not yet entered"


def opens(source: object, verb: str) -> Opens:
    """Return what gives a stream, or what is relayed like one, when it is entered.

    Args:
        source: As the caller gave it.
        verb: What the caller called.

    Raises:
        TypeError: It is nothing that can be forwarded.
    """
    if isinstance(source, ToolLoop):
        return RelayedLoop(source)
    if isinstance(source, StreamManager | ConversationStream):
        return source
    # Context managers of the application's own may give one; those of the SDK, and other ones of ours, don't.
    foreign = type(source).__module__.partition(".")[0] not in {"anthropic", "penstock"}
    if foreign and isinstance(source, AbstractAsyncContextManager):
        return cast("Opens", source)
    raise TypeError(f"{verb} takes {_TAKEN}, not {type(source).__name__}")


class RelayedLoop:
    """A tool loop, entered and left with its block, as a relay takes it.

    Args:
        loop: Not yet entered.
    """

    def __init__(self, loop: ToolLoop) -> None:
        self._loop = loop
        self._ended = False

    def __repr__(self) -> str:
        return f"<RelayedLoop of {self._loop!r}>"

    async def __aenter__(self) -> Self:
        """Start the loop."""
        await self._loop.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what is still under way."""
        await self._loop.__aexit__(kind, error, trace)

    @property
    def complete(self) -> bool:
        """Whether it has come to its end."""
        return self._ended

    @property
    def stop_reason(self) -> str | None:
        """Of the last reply; `None` if it was stopped."""
        return self._loop.run.message.stop_reason if self._ended else None

    @property
    def usage(self) -> Usage:
        """Of all replies so far."""
        return self._loop.usage

    @property
    def cost_usd(self) -> float | None:
        """What it took; `None` if it was stopped, or nobody knows."""
        cost = self._loop.run.cost_usd if self._ended else None
        return None if cost is None else float(cost)

    @property
    async def parts(self) -> AsyncIterator[str | EventFrame]:
        """Text, and what tools do, as it happens."""
        async for event in self._loop:
            if isinstance(event, TextDelta):
                if event.text:
                    yield event.text
            elif isinstance(event, _TOLD):
                yield EventFrame(event=event)
            self._ended = isinstance(event, Finished)

    async def close(self) -> None:
        """End it, as a stop button does."""
        await self._loop.close()
