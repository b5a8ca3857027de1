"""A conversation: ask, and be answered; the history changes when a whole answer has come, and only then.

The rule here: one at a time, in order. Whatever is asked works on a copy of the history, which takes the place of the
old one in a single assignment, after the last thing that can fail.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias, TypeVar, Unpack, cast

import anthropic

from penstock._core.models import check_system_turns
from penstock._core.options import given, given_or
from penstock.conversation import saved
from penstock.conversation.options import SUMMARY_PROMPT, ConversationOptions
from penstock.conversation.session import ConversationStatistics, Question, Session
from penstock.conversation.stream import ConversationStream
from penstock.conversation.system_prompt import SystemPrompt, as_system_prompt
from penstock.messages.history import check_roles, container_in, open_calls, turns_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from decimal import Decimal

    from anthropic import AsyncAnthropic
    from anthropic.types import MessageParam

    from penstock._core.usage import Usage
    from penstock.conversation.options import ConversationParams, LoadParams, OnTruncation, Overflow
    from penstock.conversation.reply import Reply
    from penstock.costs.spending import CacheTTL
    from penstock.messages.history import Content
    from penstock.tools.registry import AnyTool

__all__ = ["Conversation"]

OutputT = TypeVar("OutputT")


class HasSDK(Protocol):
    """A `Client`, or anything else with an SDK client."""

    # To type checkers, the client's cached property is not what it gives.
    @property
    def sdk(self) -> Any:
        """The SDK client."""
        ...


AnyClient: TypeAlias = "HasSDK | AsyncAnthropic"


class Conversation:
    """A session with a model: remembers what was said, and keeps it within the window and within a budget.

    Args:
        client: A `Client`, or an `AsyncAnthropic`, governed or not.
        model: Who answers. As a verb of a client, this, `max_tokens`, `system` and `token_budget` are its settings by
            default, and `max_iterations` is its `max_tool_iterations`.
        max_tokens: What an answer may take, 1 or more; each `send` may say otherwise.
        system: The system prompt. It never changes.
        messages: A history to begin with, as the SDK takes it.
        tools: Functions, as `run_tools` takes them: `send` runs what the model calls. Or entries as the SDK takes them:
            then a reply with `tool_calls` is answered by `send([…tool_result blocks…])`.
        max_iterations: With functions: replies of the model for one `send`, 1 or more.
        token_budget: Tokens that the whole session may use, 1,000 or more: of every request, input (also what the cache
            had) and output. `None` for no bound.
        cost_budget_usd: The same in USD, above 0. It bounds nothing where a user profile pays (`billing_policy`).
        on_truncation: What `send` does about an answer that `max_tokens` cuts off: `"return"` it, `"continue"` it, or
            `"retry"` with twice the `max_tokens`, up to three times.
        overflow: How the history is kept short: `"window"` leaves out the oldest exchanges, `"summary"` has them
            summarized, `"compaction"` leaves it to the API, where the model offers that.
        trim_at: The share of the window above which that happens, 0.1 to 0.95.
        trim_to: The share that it shrinks to, below `trim_at`.
        window_tokens: Treat the model's window as that large, 1,000 or more; the model's own by default.
        summary_model: Who summarizes.
        summary_prompt: What it is told.
        summary_max_tokens: What a summary may take, 100 or more, thinking included.
        cache_ttl: How long the prompt cache keeps what was sent: `"5m"` or `"1h"`; `None` marks nothing for it.
        id: The session's id, with which requests are labelled (`session`) unless the caller does; random by default.
        **params: More parameters of `messages.create`, for every request: `thinking`, `output_config`, …; with
            functions also `approve`, and fields of `penstock.tools.ToolOptions`: `tool_timeout_s`, `max_tool_calls`, ….

    The SDK's `omit` and `NOT_GIVEN` mean that an argument is not there, here as in all methods.

    Raises:
        InvalidHistory: The `messages` are not what the API takes.
        pydantic.ValidationError: An option is out of its range; it is also a `ValueError`.
        TypeError: The `client` is none, a tool can't be used, or one of `params` doesn't exist or isn't the caller's.
        ValueError: There is no model, two tools have the same name, or the system prompt is empty.

    Example:
        >>> import anthropic
        >>> async def main() -> None:
        ...     async with anthropic.AsyncAnthropic() as claude:
        ...         chat = Conversation(claude, model="claude-sonnet-5-5", system="You are terse.")
        ...         reply = await chat.send("Name a river.")
        ...         print(reply.stop_reason, len(chat.messages))
        >>> import anyio
        >>> anyio.run(main)
        end_turn 2
    """

    def __init__(
        self,
        client: AnyClient,
        *,
        model: str | None = None,
        max_tokens: int = 8192,
        system: str | SystemPrompt | None = None,
        messages: Iterable[MessageParam] = (),
        tools: Iterable[AnyTool] = (),
        max_iterations: int = 5,
        token_budget: int | None = None,
        cost_budget_usd: Decimal | float | None = None,
        on_truncation: OnTruncation = "return",
        overflow: Overflow = "window",
        trim_at: float = 0.75,
        trim_to: float = 0.40,
        window_tokens: int | None = None,
        summary_model: str = "claude-haiku-5-5",
        summary_prompt: str = SUMMARY_PROMPT,
        summary_max_tokens: int = 4096,
        cache_ttl: CacheTTL | None = "5m",
        id: str | None = None,  # noqa: A002 - the name of the attribute
        **params: Unpack[ConversationParams],
    ) -> None:
        model = given_or(model, None)
        if model is None:
            raise ValueError("a conversation needs a model: give model=…, or set the client's `model`")
        told = {
            "model": model,
            "max_tokens": max_tokens,
            "token_budget": token_budget,
            "cost_budget_usd": cost_budget_usd,
            "on_truncation": on_truncation,
            "overflow": overflow,
            "trim_at": trim_at,
            "trim_to": trim_to,
            "window_tokens": window_tokens,
            "summary_model": summary_model,
            "summary_prompt": summary_prompt,
            "summary_max_tokens": summary_max_tokens,
            "cache_ttl": cache_ttl,
        }
        options = ConversationOptions.model_validate(given(told))
        more = given({"max_iterations": max_iterations, **params})
        # Read twice.
        history = list(messages) if isinstance(messages, Iterator) else given_or(messages, ())
        turns = turns_of(history)
        check_roles(turns, model)
        self._session = Session.of(
            sdk_of(client),
            options,
            id=checked_id(given_or(id, None)),
            system=as_system_prompt(given_or(system, None)),
            tools=given_or(tools, ()),
            params=more,
            turns=turns,
        )
        if container := container_in(history):
            self._session.requests.container = (container, None)

    @classmethod
    def _of(cls, session: Session) -> Self:
        made = cls.__new__(cls)
        made._session = session  # noqa: SLF001 - of its own class
        return made

    def __repr__(self) -> str:
        return f"<Conversation {self.id}, {self.model}, {len(self._session.turns)} turns, {self.spent_tokens} tokens>"

    # What it is

    @property
    def id(self) -> str:
        """Its id, the label `session` of its requests."""
        return self._session.requests.session

    @property
    def model(self) -> str:
        """Who answers."""
        return self._session.requests.options.model

    @property
    def system(self) -> SystemPrompt | None:
        """Its system prompt."""
        return self._session.requests.system

    @property
    def options(self) -> ConversationOptions:
        """What it was told, checked."""
        return self._session.requests.options

    @property
    def messages(self) -> list[MessageParam]:
        """Its history, as the SDK takes it; a copy."""
        return copy.deepcopy([turn.param() for turn in self._session.turns])

    @property
    def pending_tool_calls(self) -> tuple[str, ...]:
        """The ids of the tool calls that the next `send` must answer."""
        return open_calls(self._session.turns)

    @property
    def usage(self) -> Usage:
        """Tokens of all its requests, interrupted and cancelled ones too, as far as they are known."""
        return self._session.requests.spending.usage

    @property
    def spent_tokens(self) -> int:
        """All those tokens together, which the `token_budget` pays for."""
        return self.usage.total_tokens

    @property
    def cost_usd(self) -> Decimal:
        """What they cost, in USD.

        Raises:
            UnknownPrice: The price of the model isn't known.
        """
        return self._session.requests.spending.cost_usd

    def statistics(self) -> ConversationStatistics:
        """Return its numbers at this moment."""
        return self._session.statistics()

    # Asking

    async def send(
        self,
        content: Content = "",
        *,
        images: Iterable[Mapping[str, Any]] = (),
        documents: Iterable[Mapping[str, Any]] = (),
        pin: bool = False,
        keep_partial: bool = False,
        max_tokens: int | None = None,
        on_truncation: OnTruncation | None = None,
    ) -> Reply[None]:
        """Ask, and wait for the whole reply; others who ask meanwhile wait for their turn.

        The history gets the question and the answer together. If anything fails or is cancelled, or if the model
        refuses (`reply.refusal`), it stays as it was.

        Args:
            content: A text, or content blocks, such as the results of tools. Nothing, to let a paused answer go on, to
                have a history answered that ends with the user's turn, or calls run that wait.
            images: Image blocks, as `penstock.image` makes them.
            documents: Document blocks.
            pin: Keep this exchange whatever is trimmed.
            keep_partial: Where it is cancelled, too late or breaks off while the answer is written: keep the question,
                and what came of the answer. The exception comes out all the same.
            max_tokens: For this reply.
            on_truncation: For this reply.

        Raises:
            BudgetExceeded: What is left of a budget doesn't pay for it. Nothing was sent.
            ContextOverflow: It does not fit into the window. Nothing was sent.
            InvalidHistory: The API would not take it: it is empty, or tool calls are left without results.
            StreamInterrupted: The answer broke off, twice.
            ToolLoopLimit: A bound on functions is reached; its `transcript` can be gone on from.
            RuntimeError: This task is still inside a `stream` of the same conversation, or a tool that it runs.
            anthropic.APIError: The request failed; `APITimeoutError` also where a `deadline` has passed.
        """
        question = self._question(
            content, images=images, documents=documents, pin=pin, keep_partial=keep_partial, max_tokens=max_tokens
        )
        return await self._session.send(question, self._on_truncation(on_truncation))

    async def ask(
        self,
        content: Content,
        *,
        output_format: type[OutputT],
        images: Iterable[Mapping[str, Any]] = (),
        documents: Iterable[Mapping[str, Any]] = (),
        pin: bool = False,
        keep_partial: bool = False,
        max_tokens: int | None = None,
        on_truncation: OnTruncation | None = None,
    ) -> Reply[OutputT]:
        """Ask for an answer that fits a type: as `send`, and `reply.parsed` is one.

        The history has the answer as it came, whether it fits or not.

        Args:
            content: As for `send`.
            output_format: What the answer is to be: a pydantic model, a dataclass, a `TypedDict`, …. Another than for
                the question before changes how requests begin, so that the prompt cache has to be written again.
            images: As for `send`.
            documents: As for `send`.
            pin: As for `send`.
            keep_partial: As for `send`.
            max_tokens: As for `send`.
            on_truncation: As for `send`.

        Raises:
            TypeError: There is no JSON schema for the `output_format`.
            Exception: As for `send`. `reply.parsed` raises `InvalidOutput` if the answer doesn't fit.

        Example:
            >>> from pydantic import BaseModel
            >>> class City(BaseModel):
            ...     name: str
            >>> async def main() -> None:
            ...     async with anthropic.AsyncAnthropic() as claude:
            ...         chat = Conversation(claude, model="claude-sonnet-5-5")
            ...         reply = await chat.ask("Name a city.", output_format=City)
            ...         print(type(reply.parsed).__name__)
            >>> import anthropic, anyio
            >>> anyio.run(main)
            City
        """
        from penstock.batch.output_format import OutputFormat  # noqa: PLC0415 - only who asks for it loads it

        question = self._question(
            content,
            images=images,
            documents=documents,
            pin=pin,
            keep_partial=keep_partial,
            max_tokens=max_tokens,
            output=OutputFormat(output_format),
        )
        return cast("Reply[OutputT]", await self._session.send(question, self._on_truncation(on_truncation)))

    def _on_truncation(self, given: OnTruncation | None) -> OnTruncation:
        chosen = given_or(given, None) or self._session.requests.options.on_truncation
        if chosen not in ("return", "continue", "retry"):
            raise ValueError(f"on_truncation must be 'return', 'continue' or 'retry', not {chosen!r}")
        return chosen

    def stream(
        self,
        content: Content = "",
        *,
        images: Iterable[Mapping[str, Any]] = (),
        documents: Iterable[Mapping[str, Any]] = (),
        pin: bool = False,
        keep_partial: bool = False,
        max_tokens: int | None = None,
    ) -> ConversationStream:
        """Ask, and read the answer as it comes: `async with` it for a `penstock.streaming.Stream`.

        When the block is left, the history gets the question and the answer, if the answer was read to its end, by
        whichever method. Left, interrupted or cancelled before, it stays as it was, unless `keep_partial`. An answer
        that is cut off or paused comes as it is: ask to go on with another `send` or `stream`.

        Args:
            content: As for `send`.
            images: As for `send`.
            documents: As for `send`.
            pin: As for `send`.
            keep_partial: If it is left, interrupted or cancelled before its end: have the question in the history, and
                what was read of the answer, without halves of calls and of thinking.
            max_tokens: As for `send`.

        Raises:
            TypeError: Its tools are functions, which only `send` runs.
        """
        if self._session.functions is not None:
            raise TypeError("stream can't run tools that are functions: use send, or a tool_loop, which streams")
        question = self._question(
            content, images=images, documents=documents, pin=pin, keep_partial=keep_partial, max_tokens=max_tokens
        )
        return ConversationStream(self._session, question)

    def _question(self, content: Content, *, max_tokens: int | None, **media: Any) -> Question:
        chosen = given_or(max_tokens, None)
        chosen = self._session.requests.options.max_tokens if chosen is None else chosen
        return Question.of(given_or(content, ""), max_tokens=chosen, **given(media))

    def add_system_turn(self, text: str) -> None:
        """Tell the model something as the operator, from here on; the system prompt stays as it is.

        Raises:
            ValueError: The text is empty, or the model takes no such turns.
            InvalidHistory: Tool calls wait for their results, or nothing has been said yet.
            RuntimeError: Somebody is asking now.
        """
        check_system_turns(self.model)
        if not text.strip():
            raise ValueError("a system turn must be a text that is not empty")
        self._session.add_system_turn(text)

    # Copies

    def fork(self, *, id: str | None = None) -> Self:  # noqa: A002 - the name of the attribute
        """Return a conversation that goes on from here by itself, with what was spent so far.

        Args:
            id: Of the new one; random by default.
        """
        return self._of(self._session.fork(checked_id(given_or(id, None))))

    def to_json(self) -> str:
        """Return it as text, history, options and what was spent; the same text for the same conversation.

        While calls of functions wait for approval, the question and the calls are in it, which one that is loaded is
        asked about again by `send()` without content.

        Parameters that may hold credentials (`extra_headers`, `mcp_servers`, …) and functions are not in it.
        """
        return saved.write(self._session)

    @classmethod
    def from_json(
        cls,
        text: str | bytes,
        client: AnyClient,
        *,
        model: str | None = None,
        system: str | SystemPrompt | None = None,
        tools: Iterable[AnyTool] | None = None,
        migrate: Collection[Literal["model", "params", "system", "tools"]] = (),
        **params: Unpack[LoadParams],
    ) -> Self:
        """Return a conversation that was saved, perhaps by an older version of your code.

        What you give holds; what you leave out is as it was saved. What bounds a conversation may be given anew at any
        time (`max_tokens`, `token_budget`, `max_iterations`, `tool_timeout_s`, …; `None` for no bound). What the model
        sees has to be what it was, because its history belongs to that, or be named in `migrate`: then it changes from
        here on, and thinking, which the API takes back only behind the same beginning, is left out of the history.

        Args:
            text: What `to_json` gave.
            client: As for a new one.
            model: Who is to answer.
            system: Its system prompt. Another label or version of the same text is the same.
            tools: Its tools; needed if they were functions.
            migrate: What may be something else than it was: `"model"`, `"system"`, `"tools"`, `"params"`.
            **params: Bounds, and parameters of requests as for a new one; those that are not saved (`extra_headers`,
                `mcp_servers`, …) are given again, with functions also `approve`.

        Raises:
            InvalidHistory: It is damaged, or something else, or had functions that are not given.
            ConversationChanged: What is named in it is something else now, and `migrate` doesn't name it.
            SystemPromptChanged: The same, if it is only the system prompt.
            TypeError: There is no such parameter, or a tool can't be used.
            ValueError: A bound is out of its range, or `migrate` names something else.
        """
        session = saved.read(
            text,
            sdk_of(client),
            model=given_or(model, None),
            system=as_system_prompt(given_or(system, None)),
            tools=given_or(tools, None),
            migrate=given_or(migrate, ()),
            params=given(params),
        )
        return cls._of(session)


def sdk_of(client: AnyClient) -> AsyncAnthropic:
    """Return the SDK client of what a caller gives as his client.

    Raises:
        TypeError: It has none, and is none; or it is a synchronous one.
    """
    sdk = cast("object", getattr(client, "sdk", client))
    if not hasattr(sdk, "messages") or isinstance(sdk, anthropic.Anthropic):
        raise TypeError(f"a conversation needs a Client or an AsyncAnthropic, not {type(sdk).__name__}")
    return cast("AsyncAnthropic", sdk)


def checked_id(given: object) -> str:
    """Return the id that a caller gives; a random one for none.

    Raises:
        TypeError: It is no text, or an empty one.
    """
    if given is None:
        return uuid.uuid4().hex
    if not isinstance(given, str) or not given:
        raise TypeError("the id of a conversation must be a text that is not empty")
    return given
