"""What happens between a question and its answer: the history is made to fit, asked with, and replaced.

The rule here: the history, and what is known of its size, are replaced together, after a whole answer, without
waiting in between.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

import anthropic
import anyio
import httpx2

from penstock._core.context import current_deadline
from penstock.conversation.functions import OF_LOOP, offered
from penstock.conversation.options import checked_params
from penstock.conversation.reply import Draft, Reply
from penstock.conversation.requests import Requests
from penstock.conversation.turn_lock import TurnLock
from penstock.conversation.window import TokenEstimate, Window
from penstock.costs.prices import billed_to_user_profile
from penstock.costs.spending import Spending
from penstock.errors import BudgetExceeded, InvalidHistory
from penstock.messages.blocks import Turn
from penstock.messages.history import check_pairs, open_calls, user_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anthropic import AsyncAnthropic

    from penstock._core.usage import Usage
    from penstock.batch.output_format import OutputFormat
    from penstock.conversation.functions import Functions, Show
    from penstock.conversation.options import ConversationOptions, OnTruncation
    from penstock.conversation.system_prompt import SystemPrompt
    from penstock.messages.blocks import Block
    from penstock.messages.history import Content
    from penstock.streaming.opening import StreamManager
    from penstock.tools.registry import AnyTool

__all__ = ["ConversationStatistics", "Question", "Session", "too_late"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationStatistics:
    """A conversation in numbers.

    Attributes:
        turns: Messages in its history.
        requests: Requests that were answered, wholly or in part.
        usage: Their tokens.
        context_tokens: What the history takes of the window, as far as known.
        window_tokens: The window.
    """

    turns: int
    requests: int
    usage: Usage
    context_tokens: int
    window_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the user asks next, copied when he asks, however long he has to wait for his turn.

    Attributes:
        content: Its blocks; none to let an answer go on, or a question be answered.
        pin: As for `Conversation.send`.
        keep_partial: The same.
        max_tokens: The same.
        output: What the answer is to fit; `None` for any text.
    """

    content: tuple[Block, ...] = field(repr=False)
    pin: bool
    keep_partial: bool
    max_tokens: int
    output: OutputFormat | None

    @classmethod
    def of(
        cls,
        content: Content,
        *,
        images: Iterable[object] = (),
        documents: Iterable[object] = (),
        pin: bool = False,
        keep_partial: bool = False,
        max_tokens: int,
        output: OutputFormat | None = None,
    ) -> Self:
        """Return what the caller of `Conversation.send` asks.

        Raises:
            InvalidHistory: The API would not take it.
            ValueError: `max_tokens` is no number of tokens.
        """
        given = cast("object", max_tokens)
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise ValueError(f"max_tokens must be a whole number, 1 or more, not {given!r}")
        blocks = user_blocks(content, images=images, documents=documents)
        return cls(content=blocks, pin=pin, keep_partial=keep_partial, max_tokens=max_tokens, output=output)

    def added_to(self, turns: tuple[Turn, ...], *, runs_calls: bool = False) -> tuple[Turn, ...]:
        """Return the history with the question as its last turn; as it is where there is none, and it can go on.

        Args:
            turns: The history.
            runs_calls: Whether calls that wait are run.

        Raises:
            InvalidHistory: The API would not take it.
        """
        paused = bool(turns) and turns[-1].paused
        if not self.content:
            if paused or (runs_calls if open_calls(turns) else turns and turns[-1].role == "user"):
                return turns
            raise InvalidHistory("content", "is empty")
        if paused:
            raise InvalidHistory("content", "the last answer is paused: `send()` without content lets it go on")
        added = (*turns, Turn(role="user", content=self.content, pinned=self.pin))
        if open_calls(turns) or any(block["type"] == "tool_result" for block in self.content):
            check_pairs(added, "turns")
        return added


class Session:
    """One conversation at work.

    Args:
        turns: Its history.
        requests: Sends its requests.

    Attributes:
        turns: Its history, replaced as a whole.
        requests: As above.
        estimate: What is known of its size, replaced with it.
        window: Makes it fit.
        functions: Run what the model calls; `None` if the caller does.
        turn_lock: Where one waits for one's turn.
    """

    __slots__ = ("_shown", "estimate", "functions", "requests", "turn_lock", "turns", "window")

    def __init__(self, turns: tuple[Turn, ...], requests: Requests) -> None:
        self.turns = turns
        self.requests = requests
        self.window = Window(requests.sdk, requests.options)
        self.estimate = TokenEstimate(requests.options.model, requests.fixed, has_tools=bool(requests.tools))
        self.functions: Functions | None = None
        self.turn_lock = TurnLock()
        self._shown: Show | None = None

    @classmethod
    def of(
        cls,
        sdk: AsyncAnthropic,
        options: ConversationOptions,
        *,
        id: str,  # noqa: A002 - the name of the attribute
        system: SystemPrompt | None,
        tools: Iterable[AnyTool],
        params: Mapping[str, Any],
        turns: tuple[Turn, ...],
    ) -> Self:
        """Return one of what a caller gives, checked.

        Args:
            sdk: Sends its requests.
            options: What it was told.
            id: Its id.
            system: Its system prompt.
            tools: Functions, or entries as the SDK takes them.
            params: More parameters of each request, and how far functions may go.
            turns: Its history.

        Raises:
            TypeError: There is no such parameter, or the conversation itself decides about it; or a bad tool.
            ValueError: Two tools have the same name, or a bound is out of its range.
            InvalidHistory: Something holds what can't be saved.
        """
        told = {name: params[name] for name in OF_LOOP & params.keys()}
        entries, functions = offered(tools, told, keep_marks=options.cache_ttl is None)
        # It has a default, so it is there also where nothing needs it.
        taken = {"max_iterations"} if functions is None else OF_LOOP
        checked = checked_params({name: value for name, value in params.items() if name not in taken})
        usd = None if billed_to_user_profile(checked) else options.cost_budget_usd
        spending = Spending(options.token_budget, usd, cache_ttl=options.cache_ttl)
        requests = Requests(sdk, options, session=id, system=system, tools=entries, params=checked, spending=spending)
        return cls(turns, requests).with_functions(functions)

    def with_functions(self, functions: Functions | None) -> Self:
        """Take over what runs its tools.

        Raises:
            TypeError: A call is forced in every reply.
        """
        choice: object = self.requests.params.get("tool_choice")
        forced = isinstance(choice, dict) and cast("Block", choice).get("type") in {"any", "tool"}
        if forced and functions is not None:
            raise TypeError("a forced tool_choice would force a call in every reply: it can't be given with functions")
        self.functions = functions
        return self

    def with_unsaved(self, functions: Functions | None, params: Mapping[str, Any]) -> Self:
        """Take over what is not saved with a conversation."""
        self.requests.params |= copy.deepcopy(dict(params))
        return self.with_functions(functions)

    def fork(self, id: str) -> Self:  # noqa: A002 - the name of the attribute
        """Return one of another id that goes on by itself from where this one is."""
        requests = copy.copy(self.requests)
        requests.session, requests.params, requests.spending = id, dict(requests.params), requests.spending.copy()
        forked = type(self)(self.turns, requests)
        forked.estimate, forked.functions = self.estimate.copy(), self.functions
        return forked

    @property
    def turns_to_save(self) -> tuple[Turn, ...]:
        """The history; while calls wait for approval, with the question and the calls."""
        waiting = None if self._shown is None else self._shown()
        return self.turns if waiting is None else waiting

    def _show(self, shown: Show) -> None:
        self._shown = shown

    def __repr__(self) -> str:
        return f"<Session of {len(self.turns)} turns, {self.turn_lock!r}>"

    def statistics(self) -> ConversationStatistics:
        """Return its numbers at this moment."""
        spending = self.requests.spending
        return ConversationStatistics(
            turns=len(self.turns),
            requests=spending.requests,
            usage=spending.usage,
            context_tokens=self.estimate.measure(self.turns),
            window_tokens=self.window.window_tokens,
        )

    async def send(self, question: Question, on_truncation: OnTruncation) -> Reply:
        """Ask, and return the whole reply, by the deadline in force."""
        with anyio.CancelScope(deadline=current_deadline()):
            await self.turn_lock.enter()
            try:
                return await self._send(question, on_truncation)
            finally:
                self.turn_lock.leave()
        raise too_late()

    async def _send(self, question: Question, on_truncation: OnTruncation) -> Reply:
        self.requests.begin()
        estimate = self.estimate.copy()
        ask = partial(self._ask, question=question, on_truncation=on_truncation, estimate=estimate)
        turns = question.added_to(self.turns, runs_calls=self.functions is not None)
        before = self.turns
        try:
            if self.functions is None:
                draft = await ask(turns)
            else:
                draft = await self.functions.run(turns, ask, self.turn_lock, self._show)
        except BaseException:
            if question.keep_partial and self._shown is not None and self.turns is before:
                # Nothing was written since tools have run.
                self.turns, self.estimate = self._shown(stopped=True) or before, estimate
            raise
        finally:
            self._shown = None
        return self.commit(draft, estimate, question)

    async def _ask(
        self, turns: tuple[Turn, ...], *, question: Question, on_truncation: OnTruncation, estimate: TokenEstimate
    ) -> Draft:
        """Return the whole answer to turns, and let the estimate learn from it."""
        draft = await self._draft(turns, question, on_truncation, estimate)
        while True:
            try:
                message = await self.requests.ask(draft.turns, **self._params(draft, estimate, question))
            except BudgetExceeded:
                if draft.message is None:
                    raise
                # What is there is paid for.
                break
            except BaseException:
                self.close_early(draft, estimate, question)
                raise
            if not draft.take(message) or self.window.overflows(draft.turns, estimate):
                break
        _learn(draft, estimate)
        return draft

    async def open(self, question: Question) -> tuple[Draft, TokenEstimate, StreamManager]:
        """Prepare a streamed answer, for whoever has entered the turn_lock."""
        self.requests.begin()
        estimate = self.estimate.copy()
        draft = await self._draft(question.added_to(self.turns), question, "return", estimate)
        return draft, estimate, self.requests.open(draft.turns, **self._params(draft, estimate, question))

    def close(self, draft: Draft, estimate: TokenEstimate, question: Question) -> Reply:
        """Take over what a streamed answer has come to."""
        _learn(draft, estimate)
        return self.commit(draft, estimate, question)

    def close_early(self, draft: Draft, estimate: TokenEstimate, question: Question) -> Reply | None:
        """Take over what was read of an answer that was stopped, if that is wanted and says anything."""
        partial = self.requests.partial if question.keep_partial else None
        return self.commit(draft, estimate, question) if partial and draft.take_partial(partial) else None

    def commit(self, draft: Draft, estimate: TokenEstimate, question: Question) -> Reply:
        """Take over what a draft has come to."""
        if draft.outcome is not None:
            self.turns, self.estimate = draft.outcome, estimate
        used = self.requests.of_reply
        read = {} if question.output is None else {"_read": question.output.read}
        return Reply(
            message=draft.whole,
            usage=used.usage,
            requests=used.requests,
            _cost=lambda: used.cost_usd,
            _waiting=draft.waiting,
            **read,
        )

    def add_system_turn(self, text: str) -> None:
        """Add what the operator tells the model from here on.

        Raises:
            InvalidHistory: The last turn is no answer that is done.
            RuntimeError: Somebody is asking now.
        """
        if self.turn_lock.busy:
            raise RuntimeError("an answer is under way; add a system turn when it is there")
        turns = self.turns
        if not turns or turns[-1].role == "user" or turns[-1].paused or open_calls(turns):
            raise InvalidHistory(f"turns.{len(turns)}", "a system turn can only follow an answer that is done")
        self.turns = (*turns, Turn(role="system", content=({"type": "text", "text": text},)))

    async def _draft(
        self, turns: tuple[Turn, ...], question: Question, on_truncation: OnTruncation, estimate: TokenEstimate
    ) -> Draft:
        return Draft(
            await self.window.fit(turns, estimate, self.requests, max_tokens=question.max_tokens),
            on_truncation=on_truncation,
            max_tokens=question.max_tokens,
            most_tokens=self.window.limits.max_output_tokens,
            pinned=question.pin,
        )

    def _params(self, draft: Draft, estimate: TokenEstimate, question: Question) -> dict[str, Any]:
        params = self.requests.params
        asked = {} if question.output is None else question.output.asked(params)
        return {
            "input_tokens": estimate.measure(draft.turns),
            "max_tokens": draft.max_tokens,
            "at_least": draft.at_least,
            **asked,
            **self.window.more(params),
        }


def _learn(draft: Draft, estimate: TokenEstimate) -> None:
    if draft.outcome is not None and draft.answer is not None:
        estimate.learn(draft.sent, draft.answer, turns=len(draft.outcome))


def too_late() -> Exception:
    """Return the error for a deadline that has passed, as calls raise it."""
    error = anthropic.APITimeoutError(request=httpx2.Request("POST", "http://deadline.invalid/v1/messages"))
    error.add_note("the deadline passed while a conversation waited for its turn or its answer")
    return error
