"""Guesses what a request will cost before it is sent, and learns from what each one did cost.

The rule here: all guesses are running means by model, recent answers weighing more, so that they follow the tokenizer,
the task, and how much the prompt cache saves; `max_tokens` only bounds the output guess, because the API counts tokens
really generated. What text costs is learned from text alone; what a request can't tell (files, addresses, server tools)
is learned apart, by kind. What can't be true is learned by nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from penstock._core.size import CHARACTERS_PER_TOKEN, TokenRate
from penstock.guards.admit.limits import Cost

if TYPE_CHECKING:
    from penstock._core.size import Size
    from penstock._core.usage import Usage

__all__ = ["Estimator"]

_OUTPUT_TOKENS = 500.0
_MEMORY = 0.9
_MOST_MODELS = 1000
_MOST_KINDS = 64
# More than ten of the largest context windows nobody uses in one request; without anything unseen, not many times what
# it shows, but for what the service adds to it.
_MOST_INPUT, _MOST_OUTPUT = 10_000_000, 1_000_000
_MOST_OF_SHOWN, _ADDED = 4, 20_000


class _Learned:
    """Running means of one model: what text costs, what each kind of unseen input does, and how long answers are."""

    __slots__ = ("answers", "output_tokens", "rate", "unseen")

    def __init__(self) -> None:
        self.rate = TokenRate()
        self.output_tokens = _OUTPUT_TOKENS
        self.answers = 0
        self.unseen: dict[str, tuple[float, int]] = {}

    def unseen_tokens(self, size: Size) -> float:
        return sum(self.unseen.get(kind, (0.0, 0))[0] for kind in size.unseen)

    def add(self, size: Size, input_tokens: float, output_tokens: int) -> None:
        if size.unseen:
            self._add_unseen(size, input_tokens - self.rate.tokens(size))
        elif not size.media_tokens:
            self.rate.learn(size.characters, input_tokens)
        self.answers += 1
        # A plain mean of the first answers, which forgets the guess, then one in which the newest weighs a tenth.
        self.output_tokens += (output_tokens - self.output_tokens) * max(1 / self.answers, 1 - _MEMORY)

    def _add_unseen(self, size: Size, tokens: float) -> None:
        """Share out among the kinds of a request by how much they were wrong together."""
        wrong = (tokens - self.unseen_tokens(size)) / len(size.unseen)
        for kind in set(size.unseen):
            mean, answers = self.unseen.get(kind, (0.0, 0))
            if answers or len(self.unseen) < _MOST_KINDS:
                self.unseen[kind] = (mean + wrong * max(1 / (answers + 2), 1 - _MEMORY), answers + 1)


class Estimator:
    """Learns what requests of each model cost.

    Example:
        >>> from penstock._core.size import Size
        >>> Estimator().cost("claude-haiku-5-5", Size(320), max_tokens=50)
        Cost(requests=1, input_tokens=100.0, output_tokens=50.0)
    """

    __slots__ = ("_models",)

    def __init__(self) -> None:
        self._models: OrderedDict[str, _Learned] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Estimator of {len(self._models)} models>"

    def cost(self, model: str, size: Size, max_tokens: object) -> Cost:
        """Return what a request will probably take from its limits."""
        learned = self._of(model)
        output = learned.output_tokens
        if isinstance(max_tokens, int) and max_tokens >= 0:
            output = min(output, float(max_tokens))
        shown = learned.rate.tokens(size)
        text = shown - size.media_tokens
        sure = min(text, size.characters / CHARACTERS_PER_TOKEN)
        if size.unseen:
            return Cost(1, max(shown + learned.unseen_tokens(size), text), output, sure)
        return Cost(1, shown, output, sure + size.media_tokens)

    def believes(self, size: Size, usage: Usage) -> bool:
        """Whether a request of that size can have taken so much."""
        shown = _MOST_OF_SHOWN * (size.characters + size.media_tokens) + _ADDED
        most = _MOST_INPUT if size.unseen else min(shown, _MOST_INPUT)
        told = usage.total_input_tokens > 0 or usage.estimated
        return told and usage.rate_limited_input_tokens <= most and usage.output_tokens <= _MOST_OUTPUT

    def learn(self, model: str, size: Size, usage: Usage) -> None:
        """Learn from what a request took from its limits; input that the cache had doesn't count against them."""
        self._of(model).add(size, usage.rate_limited_input_tokens, usage.output_tokens)

    def _of(self, model: str) -> _Learned:
        learned = self._models.get(model)
        if learned is None:
            learned = self._models[model] = _Learned()
            if len(self._models) > _MOST_MODELS:
                self._models.popitem(last=False)
        return learned
