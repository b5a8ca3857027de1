"""Guesses what a request will cost before it is sent, and learns from what each one did cost.

The rule here: both guesses are running means by model, recent answers weighing
more, so that they follow the tokenizer, the task, and how much the prompt cache saves; `max_tokens` only bounds the
output guess, because the API counts tokens really generated.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from penstock._core.size import TokenRate
from penstock.guards.admit.limits import Cost

if TYPE_CHECKING:
    from penstock._core.size import Size
    from penstock._core.usage import Usage

__all__ = ["Estimator"]

_OUTPUT_TOKENS = 500.0
_MEMORY = 0.9
_MOST_MODELS = 1000


class _Learned:
    """Running means of one model: what prompts cost, and how long answers are."""

    __slots__ = ("answers", "output_tokens", "rate")

    def __init__(self) -> None:
        self.rate = TokenRate()
        self.output_tokens = _OUTPUT_TOKENS
        self.answers = 0

    def add(self, characters: float, input_tokens: float, output_tokens: int) -> None:
        self.rate.learn(characters, input_tokens)
        self.answers += 1
        # A plain mean of the first answers, which forgets the guess, then one in which the newest weighs a tenth.
        self.output_tokens += (output_tokens - self.output_tokens) * max(1 / self.answers, 1 - _MEMORY)


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
        return Cost(1, learned.rate.tokens(size), output)

    def learn(self, model: str, size: Size, usage: Usage) -> None:
        """Learn from what a request took from its limits; input that the cache had doesn't count against them."""
        text_tokens = max(usage.rate_limited_input_tokens - size.media_tokens, 0.0)
        self._of(model).add(size.characters, text_tokens, usage.output_tokens)

    def _of(self, model: str) -> _Learned:
        learned = self._models.get(model)
        if learned is None:
            learned = self._models[model] = _Learned()
            if len(self._models) > _MOST_MODELS:
                self._models.popitem(last=False)
        return learned
