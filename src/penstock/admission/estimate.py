"""Guesses what a request will cost before it is sent, and learns from what each one did cost.

The rule here: characters are counted, never copied. Both guesses are running means by model, recent answers weighing
more, so that they follow the tokenizer and the task; `max_tokens` only bounds the output guess, because the API counts
tokens really generated.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, cast

from penstock.admission.limits import Cost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from penstock.core.usage import Usage

__all__ = ["Estimator", "characters_of"]

# Where nothing has been learned yet: newer tokenizers make about a third more tokens than one for four characters.
_CHARACTERS_PER_TOKEN = 3.2
_OUTPUT_TOKENS = 500.0
_PRIOR_TOKENS = 100.0
_MEMORY = 0.9
_MOST_MODELS = 1000
# An image is counted by its area; 1,600 tokens is about what the largest standard-tier image costs
# (`ceil(w/28) * ceil(h/28)` <= 1,568).
_IMAGE_CHARACTERS = 1600 * _CHARACTERS_PER_TOKEN


def characters_of(body: object) -> float:
    """Return the number of characters of all text in a request body; images count as what they cost, not as encoded.

    Example:
        >>> characters_of({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5})
        9.0
    """
    total = 0.0
    stack = [body]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            fields = cast("dict[str, object]", item)
            if fields.get("type") == "base64":
                total += _IMAGE_CHARACTERS
            else:
                stack.extend(fields.values())
        elif isinstance(item, list | tuple):
            stack.extend(cast("Sequence[object]", item))
    return total


class _Learned:
    """Running sums of one model: characters and tokens of prompts, tokens of answers."""

    __slots__ = ("answers", "characters", "input_tokens", "output_tokens")

    def __init__(self) -> None:
        self.characters = _CHARACTERS_PER_TOKEN * _PRIOR_TOKENS
        self.input_tokens = _PRIOR_TOKENS
        self.output_tokens = _OUTPUT_TOKENS
        self.answers = 0

    def add(self, characters: float, input_tokens: int, output_tokens: int) -> None:
        if characters > 0 and input_tokens > 0:
            # Sums, not a mean of ratios: a long prompt tells more about the tokenizer than a short one.
            self.characters = self.characters * _MEMORY + characters
            self.input_tokens = self.input_tokens * _MEMORY + input_tokens
        self.answers += 1
        # A plain mean of the first answers, which forgets the guess, then one in which the newest weighs a tenth.
        self.output_tokens += (output_tokens - self.output_tokens) * max(1 / self.answers, 1 - _MEMORY)


class Estimator:
    """Learns what requests of each model cost.

    Example:
        >>> Estimator().cost(
        ...     "claude-haiku-5-5", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100}
        ... ).output_tokens
        100.0
    """

    __slots__ = ("_models",)

    def __init__(self) -> None:
        self._models: OrderedDict[str, _Learned] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Estimator of {len(self._models)} models>"

    def cost(self, model: str, body: Mapping[str, object]) -> Cost:
        """Return what a request will probably cost."""
        return self.cost_of(model, characters_of(body), body.get("max_tokens"))

    def cost_of(self, model: str, characters: float, max_tokens: object) -> Cost:
        """Return what a request of so many characters will probably cost."""
        learned = self._of(model)
        expected = learned.output_tokens
        most = float(max_tokens) if isinstance(max_tokens, int) and max_tokens >= 0 else expected
        return Cost(1, characters * learned.input_tokens / learned.characters, min(expected, most))

    def learn(self, model: str, characters: float, usage: Usage) -> None:
        """Learn from what a request did cost."""
        self._of(model).add(characters, usage.total_input_tokens, usage.output_tokens)

    def _of(self, model: str) -> _Learned:
        learned = self._models.get(model)
        if learned is None:
            learned = self._models[model] = _Learned()
            if len(self._models) > _MOST_MODELS:
                self._models.popitem(last=False)
        return learned
