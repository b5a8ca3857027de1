"""The requests of one conversation: how they begin, what marks the prompt cache has, what they are labelled with.

The rule here: every request begins with the same tools and the same system prompt, and is streamed, whoever reads it,
so that its usage is known from its first event on. Whatever becomes of it, what it used is counted, before anything is
awaited.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

from penstock._core.clock import wall_now
from penstock._core.context import current_labels, labels
from penstock._core.usage import NOTHING
from penstock.costs.spending import WORTH_TOKENS, Spending
from penstock.errors import StreamInterrupted
from penstock.messages.history import container_param, told_of_halves
from penstock.streaming.opening import StreamManager, stream

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from anthropic import AsyncAnthropic
    from anthropic.types import Message, MessageParam
    from anthropic.types.beta import BetaMessage

    from penstock._core.usage import Usage
    from penstock.conversation.options import ConversationOptions
    from penstock.conversation.system_prompt import SystemPrompt
    from penstock.messages.blocks import Block, Turn
    from penstock.streaming.stream import Stream

__all__ = ["Requests"]

# The API reads the cache from at most 20 blocks before a mark: one on the user's last turn, and one where the last
# request had it, however long the answer in between is.
_MARKED_TURNS: Final = 2


class Requests:
    """Sends a conversation's requests, and holds all of it that never changes.

    Args:
        sdk: Sends them.
        options: Of the conversation.
        session: Its id.
        system: Its system prompt.
        tools: Its tools, as the SDK takes them.
        params: More parameters of each request.
        spending: What they use is counted there.

    Attributes:
        sdk: As above, as `options`, `session`, `system`, `tools`, `params` and `spending`.
        of_reply: What was used since `begin`.
        container: Where code goes on that the model ran on the server, and until when; `None` if it ran none.
        partial: What was read of the last answer, if it was not read to its end.
    """

    __slots__ = (
        "container", "of_reply", "options", "params", "partial", "sdk", "session", "spending", "system", "tools",
    )  # fmt: skip

    def __init__(
        self,
        sdk: AsyncAnthropic,
        options: ConversationOptions,
        *,
        session: str,
        system: SystemPrompt | None,
        tools: Sequence[Block],
        params: Mapping[str, Any],
        spending: Spending,
    ) -> None:
        self.sdk = sdk
        self.options = options
        self.session = session
        self.system = system
        self.tools = list(tools)
        self.params = dict(params)
        self.spending = spending
        self.of_reply = Spending()
        self.container: tuple[str, datetime | None] | None = None
        self.partial: Message | BetaMessage | None = None

    def __repr__(self) -> str:
        return f"<Requests of {self.options.model!r}>"

    @property
    def fixed(self) -> dict[str, object]:
        """What every request begins with."""
        found: dict[str, object] = {}
        if self.tools:
            found["tools"] = self.tools
        if self.system is not None:
            found["system"] = [_marked({"type": "text", "text": self.system.text}, self._mark)]
        return found

    @property
    def _mark(self) -> dict[str, str] | None:
        ttl = self.options.cache_ttl
        if ttl is None:
            return None
        return {"type": "ephemeral", **({"ttl": ttl} if ttl != "5m" else {})}

    def begin(self) -> None:
        """Count anew what the reply uses that is asked for now."""
        self.of_reply = Spending()

    def open(
        self, turns: Sequence[Turn], *, input_tokens: int, max_tokens: int, at_least: int = 0, **more: Any
    ) -> StreamManager:
        """Return a stream that is not yet opened.

        Args:
            turns: What is sent.
            input_tokens: What that takes, estimated.
            max_tokens: What the answer may take.
            at_least: Less than that is not worth asking; what is usually worth it if 0.
            **more: More parameters.

        Raises:
            BudgetExceeded: The budgets don't pay for it.
        """
        self.partial = None
        allowed = self.spending.allow(
            self.options.model,
            input_tokens=input_tokens,
            max_tokens=max_tokens,
            at_least=at_least or min(max_tokens, WORTH_TOKENS + self._thinking_budget),
        )
        params: dict[str, Any] = {
            **self.params,
            **more,
            "model": self.options.model,
            "max_tokens": allowed,
            **self.fixed,
        }
        container = container_param(params.get("container"), self._current_container)
        if container is not None:
            params["container"] = container
        return stream(self.sdk, messages=self._messages(turns), **params)

    @property
    def _current_container(self) -> str | None:
        """One that is over is not asked for: the API makes another."""
        if self.container is None:
            return None
        identity, until = self.container
        return None if until is not None and until <= wall_now() else identity

    async def ask(
        self, turns: Sequence[Turn], *, input_tokens: int, max_tokens: int, at_least: int = 0, **more: Any
    ) -> Message | BetaMessage:
        """Return the whole answer; one that broke off is asked for once more, because nobody has seen any of it.

        Raises:
            BudgetExceeded: The budgets don't pay for it.
            StreamInterrupted: It broke off again, or can't be understood.
        """
        more.update(input_tokens=input_tokens, max_tokens=max_tokens, at_least=at_least)
        try:
            return await self._read(self.open(turns, **more), self.options.model)
        except StreamInterrupted as error:
            if not error.was_cut:
                raise
        return await self._read(self.open(turns, **more), self.options.model)

    async def ask_other(self, model: str, prompt: str, *, system: str, max_tokens: int, input_tokens: int) -> Message:
        """Return the answer of another model, which knows nothing of the conversation.

        Raises:
            BudgetExceeded: The budgets don't pay for it.
        """
        at_least = min(max_tokens, WORTH_TOKENS)
        allowed = self.spending.allow(model, input_tokens=input_tokens, max_tokens=max_tokens, at_least=at_least)
        messages: list[MessageParam] = [{"role": "user", "content": prompt}]
        manager = stream(self.sdk, model=model, max_tokens=allowed, system=system, messages=messages)
        with labels(request_type="summary"):
            return await self._read(manager, model)  # type: ignore[return-value]

    async def _read(self, manager: StreamManager, model: str) -> Message | BetaMessage:
        with self.labelled():
            async with manager as opened:
                try:
                    return await opened.get_final_message()
                finally:
                    self.count(opened, model)

    @contextlib.contextmanager
    def labelled(self) -> Generator[None]:
        """Label what is asked inside with the session, unless the caller has, and with the system prompt.

        Raises:
            InvalidHistory: There are characters that can't be sent.
        """
        given: dict[str, Any] = {} if self.system is None else dict(self.system.labels)
        if "session" not in current_labels():
            given["session"] = self.session
        with told_of_halves("content"), labels(**given):
            yield

    def count(self, opened: Stream, model: str | None = None) -> Message | BetaMessage | Exception | None:
        """Count what a stream has used so far: for one that did not come to its end, an estimate.

        Returns:
            The message, if its reader has got all of it, or why it can't be understood; else `None`.
        """
        model = model or self.options.model
        usage = opened.usage
        read = _read_of(opened)
        message = self.partial = None if isinstance(read, Exception) else read
        if opened.complete:
            whole = None if message is None or message.stop_reason is None else message
            self._add(model, usage, whole)
            self._note_container(whole)
            self.partial = message if whole is None else None
            return whole or (read if message is None else None)
        if usage != NOTHING:
            self._add(model, opened.usage_if_left(), None)
        return None

    def _add(self, model: str, usage: Usage, message: Message | BetaMessage | None) -> None:
        for spending in (self.spending, self.of_reply):
            spending.add(model, usage, message)

    def _note_container(self, message: Message | BetaMessage | None) -> None:
        found: Any = getattr(message, "container", None)
        if found is not None:
            until: object = getattr(found, "expires_at", None)
            aware = isinstance(until, datetime) and until.tzinfo is not None
            self.container = (str(found.id), cast("datetime", until) if aware else None)

    @property
    def _thinking_budget(self) -> int:
        """Tokens that the model is told to think for; its answer comes on top."""
        thinking: Any = self.params.get("thinking")
        budget = cast("Block", thinking).get("budget_tokens") if isinstance(thinking, dict) else None
        return budget if isinstance(budget, int) else 0

    def _messages(self, turns: Sequence[Turn]) -> list[Any]:
        messages: list[Any] = [turn.param() for turn in turns]
        mark, left = self._mark, _MARKED_TURNS
        for message in reversed(messages):
            if mark is not None and left and message["role"] == "user":
                message["content"][-1] = _marked(message["content"][-1], mark)
                left -= 1
        return messages


def _marked(block: Block, mark: dict[str, str] | None) -> Block:
    return block if mark is None else {**block, "cache_control": mark}


def _read_of(opened: Stream) -> Message | BetaMessage | Exception | None:
    """What its reader has got of the message, or why that can't be understood; `None` for nothing."""
    try:
        return opened.current_message_snapshot
    except RuntimeError:
        return None
    except Exception as error:  # noqa: BLE001 - for whoever wants the message
        return error
