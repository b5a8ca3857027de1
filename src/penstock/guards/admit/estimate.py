"""Guesses what a request will cost before it is sent, and learns from what each one did cost.

The rule here: both guesses are running means by model, recent answers weighing
more, so that they follow the tokenizer, the task, and how much the prompt cache saves; `max_tokens` only bounds the
output guess, because the API counts tokens really generated.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from penstock.guards.admit.limits import Cost

if TYPE_CHECKING:
    from penstock._core.size import Size
    from penstock._core.usage import Usage

__all__ = ["Estimator"]

# Where nothing has been learned yet: the newer tokenizers make a third more tokens than one for four characters.
_CHARACTERS_PER_TOKEN = 3.2
_OUTPUT_TOKENS = 500.0
_PRIOR_TOKENS = 100.0
_MEMORY = 0.9
_MOST_MODELS = 1000


class _Learned:
    """Running sums of one model: characters and tokens of prompts, tokens of answers."""

    __slots__ = ("answers", "characters", "input_tokens", "output_tokens")

    def __init__(self) -> None:
        self.characters = _CHARACTERS_PER_TOKEN * _PRIOR_TOKENS
        self.input_tokens = _PRIOR_TOKENS
        self.output_tokens = _OUTPUT_TOKENS
        self.answers = 0

    def add(self, characters: float, input_tokens: float, output_tokens: int) -> None:
        if characters > 0:
            # Sums, not a mean of ratios: a long prompt tells more about the tokenizer than a short one.
            self.characters = self.characters * _MEMORY + characters
            self.input_tokens = self.input_tokens * _MEMORY + input_tokens
        self.answers += 1
        # A plain mean of the first answers, which forgets the guess, then one in which the newest weighs a tenth.
        self.output_tokens += (output_tokens - self.output_tokens) * max(1 / self.answers, 1 - _MEMORY)


class Estimator:
    """Learns what requests of each model cost.

    Example:
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
        return Cost(1, size.characters * learned.input_tokens / learned.characters + size.media_tokens, output)

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
