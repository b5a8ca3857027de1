"""What one does with a client: stream, fan out, converse, run tools.

The rule here: a verb only fills in what the client knows (its SDK client, its settings, its background) and does none
of the work: each lives in a package of its own, and works alone with any `AsyncAnthropic`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from penstock.batch.fan_out import FanOut
from penstock.streaming.opening import stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable
    from decimal import Decimal

    from anthropic import AsyncAnthropic
    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage

    from penstock.batch.fan_out import Order, Request
    from penstock.batch.result import FanOutResult
    from penstock.core.background import Background
    from penstock.core.events import Observers
    from penstock.settings import Settings
    from penstock.streaming.opening import OnAbandon, StreamManager

__all__ = ["Verbs"]


class Verbs(ABC):
    """The verbs of a `Client`."""

    _background: Background
    _observers: Observers

    @property
    @abstractmethod
    def sdk(self) -> AsyncAnthropic:
        """The governed SDK client."""

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """What the client was told, validated."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise `ClientClosed` unless the client is open, here."""

    def cost(self, message: Message | BetaMessage) -> Decimal:
        """Return what a message cost, in USD, cache and server tools included.

        Raises:
            UnknownPrice: No price is known for its model.
        """
        from penstock.costs.prices import cost  # noqa: PLC0415 - the price tables take a third of a second to load

        return cost(message)

    def stream(
        self, *, stream_idle_timeout_s: float | None = 300.0, on_abandon: OnAbandon = "close", **params: Any
    ) -> StreamManager:
        """Stream a message, with the names of the SDK's `messages.stream` and a fifth of its CPU for each delta.

        Args:
            stream_idle_timeout_s: Seconds that a reader waits for anything but pings, above 0; `None` for no bound.
            on_abandon: What happens to a stream that is left early: `"close"` ends the request, and its usage is an
                estimate; `"drain"` reads the rest in the background, so that its usage is exact.
            **params: Of the SDK's `messages.stream`.

        Raises:
            ValueError: A bad `stream_idle_timeout_s` or `on_abandon`.
            TypeError: An `output_format` that is not a type with a JSON schema.

        Example:
            >>> async def main() -> None:
            ...     messages = [{"role": "user", "content": "Hello"}]
            ...     async with (
            ...         Client() as claude,
            ...         claude.stream(model="claude-haiku-5-5", max_tokens=100, messages=messages) as stream,
            ...     ):
            ...         text = "".join([text async for text in stream.text_stream])
            ...         print(text == await stream.get_final_text())
            >>> import anyio
            >>> anyio.run(main)
            True
        """
        return stream(
            self.sdk,
            stream_idle_timeout_s=stream_idle_timeout_s,
            on_abandon=on_abandon,
            background=self._background,
            **params,
        )

    # Many at once

    def fan_out(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        model: str | None = None,
        max_tokens: int | None = None,
        concurrency: int | None = None,
        order: Order = "completed",
        fail_fast: bool = False,
        **params: Any,
    ) -> FanOut:
        """Ask many prompts at once: `async with` it, iterate over the results, leave early as you like.

        Args:
            requests: Plain prompts, or requests as Message Batches takes them (`custom_id`, `params`); an iterable or
                async iterable, read only as fast as items start.
            model: For items that name none; the setting `model` by default.
            max_tokens: For items that name none; the setting `max_tokens` by default.
            concurrency: Items started at once, 1 or more; the client's own `concurrency` by default, which bounds
                requests in any case.
            order: `"completed"`, or `"input"` to keep the order.
            fail_fast: Raise the first failure instead of giving it as a result.
            **params: Of `messages.create`, for every item; an item's own `params` win.

        Raises:
            ClientClosed: The client is not open, or belongs to another event loop.
            ValueError: A bad `concurrency` or `order`.
            TypeError: `requests` is a single text, or can't be iterated over.

        Example:
            >>> async def main() -> None:
            ...     async with (
            ...         Client() as claude,
            ...         claude.fan_out(["One?", "Two?"], model="claude-haiku-5-5") as results,
            ...     ):
            ...         print(sorted([result.custom_id async for result in results if result.ok]))
            >>> import anyio
            >>> anyio.run(main)
            ['0', '1']
        """
        self._check_open()
        chosen = model or self.settings.model
        if chosen is not None:
            params["model"] = chosen
        return FanOut(
            self.sdk,
            requests,
            concurrency=concurrency if concurrency is not None else self.settings.most_at_once,
            order=order,
            fail_fast=fail_fast,
            max_tokens=max_tokens if max_tokens is not None else self.settings.max_tokens,
            **params,
        )

    async def map(self, requests: Iterable[Request] | AsyncIterable[Request], **options: Any) -> list[FanOutResult]:
        """Ask many prompts at once and return all results, in the order of the input.

        Args:
            requests: As for `fan_out`.
            **options: As for `fan_out`.

        Example:
            >>> async def main() -> None:
            ...     async with Client() as claude:
            ...         print([result.ok for result in await claude.map(["One?", "Two?"], model="claude-haiku-5-5")])
            >>> import anyio
            >>> anyio.run(main)
            [True, True]
        """
        async with self.fan_out(requests, order="input", **options) as results:
            return [result async for result in results]
