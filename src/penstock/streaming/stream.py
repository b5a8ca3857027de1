"""skeleton"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    import httpx2
    from anthropic.lib.streaming import ParsedBetaMessageStreamEvent, ParsedMessageStreamEvent
    from anthropic.types import ParsedMessage
    from anthropic.types.beta.parsed_beta_message import ParsedBetaMessage

    from penstock.core.usage import Usage


class Stream:
    """An answer as it is generated; has the names of the SDK's `AsyncMessageStream`.

    Attributes:
        text_stream: Async generator of the text deltas, one for the whole stream: it goes on where it was left.
    """

    text_stream: AsyncGenerator[str, None]

    @property
    def response(self) -> httpx2.Response: ...
    @property
    def request_id(self) -> str | None: ...
    @property
    def workspace_id(self) -> str | None: ...
    @property
    def usage(self) -> Usage:
        """Tokens as far as known: input from the start, output at the end."""

    @property
    def current_message_snapshot(self) -> ParsedMessage[Any] | ParsedBetaMessage[Any]: ...
    @property
    def complete(self) -> bool:
        """Whether `message_stop` has come."""

    def __aiter__(self) -> AsyncIterator[ParsedMessageStreamEvent[Any] | ParsedBetaMessageStreamEvent[Any]]: ...
    async def __anext__(self) -> ParsedMessageStreamEvent[Any] | ParsedBetaMessageStreamEvent[Any]: ...
    async def until_done(self) -> None: ...
    async def get_final_message(self) -> ParsedMessage[Any] | ParsedBetaMessage[Any]: ...
    async def get_final_text(self) -> str: ...
    async def close(self) -> None:
        """Close it; from another task too: who is reading then finds the stream at its end (a stop button)."""
