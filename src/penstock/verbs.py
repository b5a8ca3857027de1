"""What one does with a client: stream, fan out, converse, run tools.

The rule here: a verb only fills in what the client knows (its SDK client, its settings, its background) and does none
of the work: each lives in a package of its own, which is loaded when it is first used, and works alone with any
`AsyncAnthropic`.
"""

# ruff: noqa: PLC0415 - who only sends messages doesn't wait for what conversations or batches need

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, Iterable
    from decimal import Decimal

    from anthropic import AsyncAnthropic
    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage

    from penstock._core.background import Background
    from penstock.batch.fan_out import FanOut, Order, Request
    from penstock.batch.journal import Journal
    from penstock.batch.message_batches import MessageBatches
    from penstock.batch.progress import OnProgress
    from penstock.batch.result import FanOutResult
    from penstock.conversation.conversation import Conversation
    from penstock.conversation.system_prompt import SystemPrompt
    from penstock.events import Observers
    from penstock.settings import Settings
    from penstock.streaming.opening import OnAbandon, StreamManager
    from penstock.tools.events import Approve
    from penstock.tools.loop import ToolLoop
    from penstock.tools.outcome import ToolRun
    from penstock.tools.registry import AnyTool, Tools
    from penstock.tools.transcript import Prompt

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
    def statistics(self) -> Any:
        """Return one frozen snapshot of everything that the guards count."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise `ClientClosed` unless the client is open, here."""

    def cost(self, message: Message | BetaMessage) -> Decimal:
        """Return what a message cost, in USD, cache and server tools included.

        Raises:
            UnknownPrice: No price is known for its model.
        """
        from penstock.costs.prices import cost

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
            >>> from penstock import Client
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
        from penstock.streaming.opening import stream

        return stream(
            self.sdk,
            stream_idle_timeout_s=stream_idle_timeout_s,
            on_abandon=on_abandon,
            background=self._background,
            **params,
        )

    # Conversations

    def conversation(
        self,
        *,
        system: str | SystemPrompt | None = None,
        model: str | None = None,
        max_tokens: int | None = None,
        token_budget: int | None = None,
        **options: Any,
    ) -> Conversation:
        """Begin a conversation.

        Args:
            system: Its system prompt; the setting `system` by default.
            model: Who answers; the setting `model` by default.
            max_tokens: Of each answer; the setting `max_tokens` by default.
            token_budget: Tokens that it may use in all; the setting `token_budget` by default.
            **options: Others of `penstock.Conversation`: `tools` (with functions, `max_iterations` is the setting
                `max_tool_iterations` by default), `messages`, `overflow`, `thinking`, ….

        Raises:
            ValueError: There is no model, or an option is out of its range.
            InvalidHistory: The `messages` are not what the API takes.

        Example:
            >>> from penstock import Client
            >>> async def main() -> None:
            ...     async with Client(model="claude-haiku-5-5") as claude:
            ...         chat = claude.conversation(system="You are terse.")
            ...         reply = await chat.send("Name a river.")
            ...         print(reply.stop_reason, len(chat.messages))
            >>> import anyio
            >>> anyio.run(main)
            end_turn 2
        """
        from penstock._core.options import given, given_or
        from penstock.conversation.conversation import Conversation

        settings, options = self.settings, given(options)
        system, model = given_or(system, None), given_or(model, None)
        max_tokens, token_budget = given_or(max_tokens, None), given_or(token_budget, None)
        options.setdefault("max_iterations", settings.max_tool_iterations)
        chosen = model or settings.model
        if chosen is None:
            raise ValueError("a conversation needs a model: give model=…, or set the client's `model`")
        return Conversation(
            self,
            model=chosen,
            max_tokens=settings.max_tokens if max_tokens is None else max_tokens,
            system=settings.system if system is None else system,
            token_budget=settings.token_budget if token_budget is None else token_budget,
            **options,
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
        max_failures: float | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
        retry_failed: bool = False,
        replay: bool = False,
        keep_params: bool = False,
        output_format: Any = None,
        warm_cache: bool = False,
        progress: bool = False,
        on_progress: OnProgress | None = None,
        total: int | None = None,
        **params: Any,
    ) -> FanOut:
        """Ask many prompts at once: `async with` it, iterate over the results, leave early as you like.

        Args:
            requests: Plain prompts, or requests as Message Batches takes them (`custom_id`, `params`; also `labels`);
                an iterable or async iterable, read only as fast as items start.
            model: For items that name none; the setting `model` by default.
            max_tokens: For items that name none; the setting `max_tokens` by default.
            concurrency: Items started at once, 1 or more; the client's own `concurrency` by default, which bounds
                requests in any case.
            order: `"completed"`, or `"input"` to keep the order.
            fail_fast: Raise the first failure instead of giving it as a result.
            max_failures: Raise `TooManyFailures` when more items have failed: a count from 0 up, or a share between 0
                and 1 of those that are finished, once there are 20 of them.
            journal: A file that every result is written to before it is given; what stands there is not asked again.
                Or a `Journal` that is open.
            retry_failed: Ask items again that failed by the journal, also where their request has changed.
            replay: Give results for items that are not asked again, too.
            keep_params: Keep the params of failed items in the journal.
            output_format: A type whose JSON schema the answers must fit; `result.parsed` is of that type.
            warm_cache: Ask one item first, so that the others find its prompt in the cache.
            progress: Show progress on the standard error: a bar in a terminal, else a line every five seconds.
            on_progress: Told how far it is, with a `Progress`, every second and at the end.
            total: Items in all, where `requests` doesn't tell by its length.
            **params: Of `messages.create`, for every item; an item's own `params` win.

        Raises:
            ClientClosed: The client is not open, or belongs to another event loop.
            ValueError: A bad `concurrency`, `order` or `max_failures`, or an option that needs a journal without one.
            TypeError: `requests` is a single text, or can't be iterated over; `output_format` has no JSON schema.

        Example:
            >>> from penstock import Client
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
        from penstock.batch.fan_out import FanOut

        return FanOut(
            self.sdk,
            requests,
            concurrency=concurrency if concurrency is not None else self.settings.most_at_once,
            order=order,
            fail_fast=fail_fast,
            max_failures=max_failures,
            journal=journal,
            retry_failed=retry_failed,
            replay=replay,
            keep_params=keep_params,
            output_format=output_format,
            warm_cache=warm_cache,
            progress=progress,
            on_progress=on_progress,
            total=total,
            quota_use=self._quota_use,
            **self._asked(model, max_tokens),
            **params,
        )

    def _quota_use(self) -> float | None:
        from penstock.batch.progress import quota_use

        return quota_use(self.statistics().admission)

    async def map(self, requests: Iterable[Request] | AsyncIterable[Request], **options: Any) -> list[FanOutResult]:
        """Ask many prompts at once and return all results, in the order of the input.

        Args:
            requests: As for `fan_out`.
            **options: As for `fan_out`; with a `journal`, the list has what stands there as well (`replay`).

        Example:
            >>> from penstock import Client
            >>> async def main() -> None:
            ...     async with Client() as claude:
            ...         print([result.ok for result in await claude.map(["One?", "Two?"], model="claude-haiku-5-5")])
            >>> import anyio
            >>> anyio.run(main)
            [True, True]
        """
        options.setdefault("replay", options.get("journal") is not None)
        async with self.fan_out(requests, order="input", **options) as results:
            return [result async for result in results]

    def batch(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        model: str | None = None,
        max_tokens: int | None = None,
        concurrency: int | None = None,
        **options: Any,
    ) -> MessageBatches:
        """Ask many prompts at half the price, within a day: through message batches, with the results of `fan_out`.

        Args:
            requests: As for `fan_out`; read lazily, one batch at a time.
            model: For items that name none; the setting `model` by default.
            max_tokens: For items that name none; the setting `max_tokens` by default.
            concurrency: Of what is asked live, because of a deadline; the client's own `concurrency` by default.
            **options: Others of `penstock.batch.MessageBatches` (`journal`, `deadline_s`, `batch_size`, `poll_s`, …),
                and params of `messages.create` for every item.

        Raises:
            ClientClosed: The client is not open, or belongs to another event loop.
            ValueError: An option is out of its range, or needs a journal without one.
            TypeError: `requests` is a single text, or can't be iterated over; `output_format` has no JSON schema.

        Example:
            >>> from penstock import Client
            >>> async def main() -> None:
            ...     async with (
            ...         Client() as claude,
            ...         claude.batch(["One?", "Two?"], model="claude-haiku-5-5", poll_s=0.05) as results,
            ...     ):
            ...         print(sorted([result.custom_id async for result in results if result.ok]))
            >>> import anyio
            >>> anyio.run(main)
            ['0', '1']
        """
        from penstock.batch.message_batches import MessageBatches

        return MessageBatches(
            self.sdk,
            requests,
            concurrency=concurrency if concurrency is not None else self.settings.most_at_once,
            **self._asked(model, max_tokens),
            **options,
        )

    def _asked(self, model: str | None, max_tokens: int | None) -> dict[str, Any]:
        """Return who is asked for how much: what is given, else the settings, for what needs an open client."""
        self._check_open()
        chosen = model or self.settings.model
        most = self.settings.max_tokens if max_tokens is None else max_tokens
        return {"max_tokens": most} if chosen is None else {"model": chosen, "max_tokens": most}

    # Tools

    async def run_tools(
        self,
        prompt: Prompt,
        *,
        tools: Iterable[AnyTool] | Tools,
        model: str | None = None,
        max_tokens: int | None = None,
        max_iterations: int | None = None,
        approve: Approve | None = None,
        **params: Any,
    ) -> ToolRun:
        """Ask the model, run the tools that it calls, all of a turn at once, tell it the results, until it is done.

        Args:
            prompt: A text, a list of content blocks, or messages: a transcript to go on from.
            tools: Functions, async or sync, what `penstock.tool` makes of them, function tools of the SDK, entries of
                tools that run on the server.
            model: The setting `model` by default.
            max_tokens: Of each reply; the setting `max_tokens` by default.
            max_iterations: Replies of the model, 1 or more; the setting `max_tool_iterations` by default.
            approve: Awaited before a call runs; returns whether it may: a bool, `Allow`, `Deny` or `Answer`.
            **params: Other fields of `penstock.tools.ToolOptions`, and parameters of `messages.create`.

        Returns:
            The last reply, the transcript, and what it took.

        Raises:
            ToolLoopLimit: A bound is reached; its `transcript` can be gone on from.
            Exception: See `penstock.tools.run_tools`.

        Example:
            >>> from penstock import Client
            >>> async def get_weather(city: str) -> str:
            ...     '''Get the weather of a city.'''
            ...     return f"sunny in {city}"
            >>> async def main() -> None:
            ...     async with Client() as claude:
            ...         run = await claude.run_tools("Weather?", tools=[get_weather], model="claude-haiku-5-5")
            ...         print(run.message.stop_reason)
            >>> import anyio
            >>> anyio.run(main)
            end_turn
        """
        from penstock.tools.run import run_tools

        params = self._of_a_loop(model, max_tokens, max_iterations, params)
        return await run_tools(self.sdk, prompt, tools=tools, approve=approve, **params)

    def tool_loop(
        self,
        prompt: Prompt,
        *,
        tools: Iterable[AnyTool] | Tools,
        model: str | None = None,
        max_tokens: int | None = None,
        max_iterations: int | None = None,
        approve: Approve | None = None,
        **params: Any,
    ) -> ToolLoop:
        """Do as `run_tools` does, and tell what happens: `async with` it, iterate over its events.

        Args:
            prompt: As for `run_tools`.
            tools: As for `run_tools`.
            model: As for `run_tools`.
            max_tokens: As for `run_tools`.
            max_iterations: As for `run_tools`.
            approve: As for `run_tools`.
            **params: As for `run_tools`.

        Example:
            >>> from penstock import Client
            >>> async def get_weather(city: str) -> str:
            ...     '''Get the weather of a city.'''
            ...     return f"sunny in {city}"
            >>> async def main() -> None:
            ...     async with (
            ...         Client() as claude,
            ...         claude.tool_loop("Weather?", tools=[get_weather], model="claude-haiku-5-5") as events,
            ...     ):
            ...         print(type([event async for event in events][-1]).__name__)
            >>> import anyio
            >>> anyio.run(main)
            Finished
        """
        from penstock.tools.loop import ToolLoop

        params = self._of_a_loop(model, max_tokens, max_iterations, params)
        return ToolLoop(self.sdk, prompt, tools=tools, approve=approve, **params)

    def _of_a_loop(
        self, model: str | None, max_tokens: int | None, max_iterations: int | None, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Fill in the settings of a tool loop."""
        most = self.settings.max_tool_iterations if max_iterations is None else max_iterations
        return {**params, **self._asked(model, max_tokens), "max_iterations": most}
