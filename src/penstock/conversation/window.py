"""Keeping a history within its share of the window.

The rule here: rarely and deep. Below `trim_at` of the window nothing is touched, because a changed beginning loses the
prompt cache; above it, the history shrinks to `trim_to` at once. Nothing is touched while tools are being called. How
large the window is, the Models API is asked; no failure of it is anyone's, because the table of models answers instead.
What the API has counted of a history is never guessed again; what it hasn't is measured in characters, at a rate that
is learned from each answer, and a little too high rather than too low.
"""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import anthropic
import anyio

from penstock._core.models import known
from penstock._core.size import CHARACTERS_PER_TOKEN, Size, TokenRate, size_of
from penstock.conversation.summary import summarize
from penstock.conversation.trim import trim
from penstock.errors import ContextOverflow
from penstock.messages.blocks import is_fresh

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anthropic import AsyncAnthropic
    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage

    from penstock._core.models import Model
    from penstock.conversation.options import ConversationOptions
    from penstock.conversation.requests import Requests
    from penstock.messages.blocks import Turn

__all__ = ["TokenEstimate", "Window", "context_tokens"]

# No window is so small that the Models API must be asked below that.
_ASK_FROM_TOKENS: Final = 75_000
_NOTE_TOKENS: Final = 50
# It must become that much shorter to be worth it.
_WORTH: Final = 0.8
_COMPACTION: Final = "compact-2026-01-12"
_LEAST_TRIGGER: Final = 50_000
_ASK_WITHIN_S: Final = 5.0
_MOST_MODELS: Final = 256
# By address of the API and model; one that the API doesn't know, or an API without the list, is kept as the table's.
_answers: OrderedDict[tuple[str, str], Model] = OrderedDict()
_LEAST_RATE, _MOST_RATE = 1.0, 8.0
# Estimates of new text are taken this much higher, so that the share of the window is kept.
_MARGIN: Final = 1.1
_TURN_TOKENS: Final = 4
_TOOL_PROMPT_TOKENS: Final = 500
_logger: Final = logging.getLogger("penstock")


class Window:
    """What one conversation may take of its model's window.

    Args:
        sdk: Asks the Models API.
        options: Of the conversation.

    Attributes:
        limits: Of its model, as far as known.
    """

    __slots__ = ("_asked", "_options", "_sdk", "_summarized", "limits")

    def __init__(self, sdk: AsyncAnthropic, options: ConversationOptions) -> None:
        self._sdk = sdk
        self._options = options
        self._asked = False
        # The last summary, and of what: if what is asked with it fails, it is not paid for again.
        self._summarized: tuple[tuple[Turn, ...], str] = ((), "")
        self.limits = known(options.model)

    def __repr__(self) -> str:
        return f"<Window of {self.window_tokens} tokens>"

    @property
    def window_tokens(self) -> int:
        """What fits in."""
        return self._options.window_tokens or self.limits.window_tokens

    @property
    def compacts(self) -> bool:
        """Whether the API keeps the history short."""
        return self._options.overflow == "compaction" and self.limits.compacts

    def most_tokens(self, max_tokens: int) -> int:
        """Return the input tokens above which the history is trimmed: its share, or what leaves room for the answer."""
        window, options = self.window_tokens, self._options
        return max(int(min(options.trim_at * window, window - max_tokens)), int(options.trim_to * window))

    def overflows(self, turns: Sequence[Turn], estimate: TokenEstimate) -> bool:
        """Whether that is more than fits in."""
        return estimate.measure(turns, margin=1.0) > self.window_tokens

    async def fit(
        self, turns: tuple[Turn, ...], estimate: TokenEstimate, requests: Requests, *, max_tokens: int
    ) -> tuple[Turn, ...]:
        """Return what is sent: the same turns, or fewer; what `estimate` knows is forgotten then.

        Raises:
            ContextOverflow: What must stay does not fit in.
        """
        measured = estimate.measure(turns)
        await self._learn(measured)
        if measured > self.most_tokens(max_tokens) and not self.compacts and is_fresh(turns[-1]):
            turns = await self._trimmed(turns, estimate, requests)
        if self.overflows(turns, estimate):
            needed = estimate.measure(turns, margin=1.0)
            raise ContextOverflow(self._options.model, needed_tokens=needed, window_tokens=self.window_tokens)
        return turns

    async def _trimmed(self, turns: tuple[Turn, ...], estimate: TokenEstimate, requests: Requests) -> tuple[Turn, ...]:
        options = self._options
        summarizes = options.overflow == "summary"
        note = options.summary_max_tokens if summarizes else _NOTE_TOKENS
        found = trim(turns, cost=estimate.of, target=options.trim_to * self.window_tokens - estimate.fixed - note)
        shorter = found.turns()
        if estimate.of(shorter) > _WORTH * estimate.of(turns) and not self.overflows(turns, estimate):
            # Nearly everything is pinned: to change it, at every turn, would only lose the cache.
            return turns
        if summarizes and found.left_out:
            try:
                shorter = found.turns(await self._summary(found.left_out, requests))
            except anthropic.AnthropicError as error:
                if self.overflows(turns, estimate):
                    raise
                # There is room left. The next question tries again.
                _logger.warning("no summary (%s): the conversation goes on untrimmed", type(error).__name__)
                return turns
        estimate.forget()
        return shorter

    async def _summary(self, turns: tuple[Turn, ...], requests: Requests) -> str:
        if self._summarized[0] != turns:
            self._summarized = (turns, await summarize(requests, self._options, turns))
        return self._summarized[1]

    async def _learn(self, measured: int) -> None:
        options = self._options
        wanted = options.window_tokens is None and measured > _ASK_FROM_TOKENS
        if not self._asked and (wanted or options.overflow == "compaction"):
            self._asked = True
            self.limits = await asked(self._sdk, options.model)

    def more(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters by which the API compacts the history."""
        if not self.compacts:
            return {}
        trigger = max(_LEAST_TRIGGER, int(self._options.trim_at * self.window_tokens))
        edit = {"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": trigger}}
        managed: dict[str, Any] = params.get("context_management") or {}
        return {
            "betas": [*(params.get("betas") or ()), _COMPACTION],
            "context_management": {**managed, "edits": [*managed.get("edits", ()), edit]},
        }


# What a history takes


class TokenEstimate:
    """Tokens of one conversation's requests.

    Args:
        model: Whose tokens they are.
        fixed: What each request begins with: system prompt and tools.
        has_tools: Whether there are tools, which cost some tokens more.

    Attributes:
        tokens: What the API counted for the first `turns` turns, answer included, and all that stands before them; 0 if
            nothing is known.
        turns: For how many turns that is.
        per_token: Characters for each token, as learned.
    """

    __slots__ = ("_fixed", "_model", "per_token", "tokens", "turns")

    def __init__(self, model: str, fixed: object, *, has_tools: bool) -> None:
        self._model = model
        size = size_of(fixed, model)
        extra = _TOOL_PROMPT_TOKENS if has_tools else 0
        self._fixed = Size(size.characters, size.media_tokens + extra)
        self.tokens = 0
        self.turns = 0
        self.per_token = CHARACTERS_PER_TOKEN

    def __repr__(self) -> str:
        return f"<TokenEstimate {self.tokens} tokens in {self.turns} turns, {self.per_token:.2f} characters a token>"

    def measure(self, turns: Sequence[Turn], *, margin: float = _MARGIN) -> int:
        """Return how many input tokens a request with these turns will take, roughly, and rather too many.

        Args:
            turns: All that are sent. They begin with those that the API has counted, or `forget` was called.
            margin: What is estimated is taken this much higher.
        """
        if self.tokens and len(turns) >= self.turns:
            return self.tokens + round(margin * self.of(turns[self.turns :]))
        return round(margin * (self.fixed + self.of(_seen(turns))))

    def copy(self) -> TokenEstimate:
        """Return one that knows the same."""
        return copy.copy(self)

    def of(self, turns: Sequence[Turn]) -> float:
        """Return what turns take by themselves."""
        return self._tokens(self._size(turns)) + _TURN_TOKENS * len(turns)

    @property
    def fixed(self) -> float:
        """What stands before the turns takes."""
        return self._tokens(self._fixed)

    def forget(self) -> None:
        """Take nothing as counted: the turns have changed."""
        self.tokens = self.turns = 0

    def learn(self, sent: Sequence[Turn], message: Message | BetaMessage, *, turns: int) -> None:
        """Learn from an answer.

        Args:
            sent: The turns of its request.
            message: The answer, with its usage.
            turns: How many turns there are with it.
        """
        given, made = context_tokens(message)
        if not given:
            return
        self.tokens, self.turns = given + made, turns
        if any(block.type == "compaction" for block in message.content):
            # What was counted is the summary, not what was sent.
            return
        size, fixed = self._size(_seen(sent)), self._fixed
        rate = TokenRate()
        rate.learn(size.characters + fixed.characters, max(given - size.media_tokens - fixed.media_tokens, given / 10))
        self.per_token = min(max(rate.per_token, _LEAST_RATE), _MOST_RATE)

    def _tokens(self, size: Size) -> float:
        return size.characters / self.per_token + size.media_tokens

    def _size(self, turns: Sequence[Turn]) -> Size:
        return size_of([turn.content for turn in turns], self._model)


def _seen(turns: Sequence[Turn]) -> Sequence[Turn]:
    """What the model sees: from the last compaction on."""
    for index in reversed(range(len(turns))):
        if any(block["type"] == "compaction" for block in turns[index].content):
            return turns[index:]
    return turns


def context_tokens(message: Message | BetaMessage) -> tuple[int, int]:
    """Return the tokens of an answer's input and output as they stand in the window; 0 where the API gave none.

    What a compaction took on top is not in it.
    """
    usage: object = getattr(message, "usage", None)
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    given = sum(_count(usage, name) for name in names)
    return given, _count(usage, "output_tokens")


def _count(usage: object, name: str) -> int:
    value: object = getattr(usage, name, 0)
    return value if isinstance(value, int) else 0


# The Models API


async def asked(sdk: AsyncAnthropic, model: str) -> Model:
    """Return the Models API's limits, asked for once in the life of the process; the table's where it has none."""
    key = (str(getattr(sdk, "base_url", "")), model)
    if key in _answers:
        _answers.move_to_end(key)
        return _answers[key]
    limits, final = await _ask(sdk, model)
    if final:
        _answers[key] = limits
        if len(_answers) > _MOST_MODELS:
            _answers.popitem(last=False)
    return limits


async def _ask(sdk: AsyncAnthropic, model: str) -> tuple[Model, bool]:
    """Return the limits, and whether asking again would bring the same."""
    table = known(model)
    models = getattr(sdk, "models", None)
    if models is None:
        return table, True
    try:
        with anyio.move_on_after(_ASK_WITHIN_S):
            return _limits_in(await models.retrieve(model), table), True
    except anthropic.APIStatusError as error:
        return table, 400 <= error.status_code < 500 and error.status_code not in (408, 409, 429)
    except (anthropic.AnthropicError, ValueError):
        # What stands between may answer what is no JSON.
        return table, False
    return table, False


def _limits_in(info: object, table: Model) -> Model:
    """What stands between may also answer a page, or JSON of its own."""
    managed: Any = getattr(getattr(info, "capabilities", None), "context_management", None)
    compaction = getattr(managed, "compact_20260112", None)
    return replace(
        table,
        window_tokens=_told(info, "max_input_tokens", table.window_tokens),
        max_output_tokens=_told(info, "max_tokens", table.max_output_tokens),
        compacts=table.compacts if managed is None else bool(getattr(compaction, "supported", False)),
    )


def _told(info: object, name: str, otherwise: int) -> int:
    found: object = getattr(info, name, None)
    return found if isinstance(found, int) and found > 0 else otherwise
