"""How much of the window a history takes: what the API counted last, and an estimate of what came since.

The rule here: what the API has counted is never guessed again. What it hasn't is measured in characters, at a rate that
is learned from each answer, and a little too high rather than too low.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final

from penstock._core.size import CHARACTERS_PER_TOKEN, Size, TokenRate, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage

    from penstock.messages.blocks import Block, Turn

__all__ = ["TokenEstimate", "context_tokens"]

_LEAST, _MOST = 1.0, 8.0
# Estimates of new text are taken this much higher, so that the share of the window is kept.
_MARGIN: Final = 1.1
_TURN_TOKENS: Final = 4
_TOOL_PROMPT_TOKENS: Final = 500


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
        return sum((self._tokens(self._size(turn.content)) + _TURN_TOKENS for turn in turns), 0.0)

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
        size = [self._fixed, *(self._size(turn.content) for turn in _seen(sent))]
        characters = sum(each.characters for each in size)
        text_tokens = max(given - sum(each.media_tokens for each in size), given / 10)
        rate = TokenRate()
        rate.learn(characters, text_tokens)
        self.per_token = min(max(rate.per_token, _LEAST), _MOST)

    def _tokens(self, size: Size) -> float:
        return TokenRate(self.per_token).tokens(size)

    def _size(self, content: Sequence[Block]) -> Size:
        return size_of(content, self._model)


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
