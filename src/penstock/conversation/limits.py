"""What a model can take: from the Models API where it has been asked, else from a table.

The rule here: no failure of the Models API is anyone's: a table by the model's version answers instead, and a model
that isn't known gets the smallest window.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anthropic
import anyio

from penstock._core.kind import model_version

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

__all__ = ["SMALLEST_WINDOW", "ModelLimits", "asked_limits", "check_system_turns", "known_limits", "takes_system_turns"]

SMALLEST_WINDOW: Final = 200_000
_ASK_WITHIN_S: Final = 5.0
_MOST_MODELS: Final = 256
_COMPACTS_FROM: Final = (4, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What a model can take.

    Attributes:
        window_tokens: Its context window.
        max_output_tokens: The largest `max_tokens`.
        compacts: Whether the API compacts its conversations on request.
    """

    window_tokens: int
    max_output_tokens: int
    compacts: bool


_LARGE: Final = ModelLimits(window_tokens=1_000_000, max_output_tokens=128_000, compacts=True)
_SMALL: Final = ModelLimits(window_tokens=SMALLEST_WINDOW, max_output_tokens=64_000, compacts=False)
_OLD: Final = ModelLimits(window_tokens=SMALLEST_WINDOW, max_output_tokens=32_000, compacts=False)
# By address of the API and model; one that the API doesn't know, or an API without the list, is kept as the table's.
_answers: OrderedDict[tuple[str, str], ModelLimits] = OrderedDict()


def known_limits(model: str) -> ModelLimits:
    """Return the table's limits. Source: https://platform.claude.com/docs/en/about-claude/models/overview.

    Example:
        >>> known_limits("claude-haiku-4-5").window_tokens, known_limits("claude-sonnet-5-5").window_tokens
        (200000, 1000000)
    """
    version = model_version(model)
    if version is None:
        return _OLD
    return _LARGE if version >= _COMPACTS_FROM else _SMALL if version >= (4, 5) else _OLD


async def asked_limits(sdk: AsyncAnthropic, model: str) -> ModelLimits:
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


async def _ask(sdk: AsyncAnthropic, model: str) -> tuple[ModelLimits, bool]:
    """Return the limits, and whether asking again would bring the same."""
    table = known_limits(model)
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


def _limits_in(info: object, table: ModelLimits) -> ModelLimits:
    """What stands between may also answer a page, or JSON of its own."""
    managed: Any = getattr(getattr(info, "capabilities", None), "context_management", None)
    compaction = getattr(managed, "compact_20260112", None)
    return ModelLimits(
        window_tokens=_count(info, "max_input_tokens", table.window_tokens),
        max_output_tokens=_count(info, "max_tokens", table.max_output_tokens),
        compacts=table.compacts if managed is None else bool(getattr(compaction, "supported", False)),
    )


def _count(info: object, name: str, otherwise: int) -> int:
    found: object = getattr(info, name, None)
    return found if isinstance(found, int) and found > 0 else otherwise


def check_system_turns(model: str) -> None:
    """Check that a model takes them.

    Raises:
        ValueError: It doesn't.
    """
    if not takes_system_turns(model):
        raise ValueError(f"{model!r} takes no system turns; begin a new conversation with another system prompt")


def takes_system_turns(model: str) -> bool:
    """Whether a turn of a conversation may have the role `system`.

    Source: https://platform.claude.com/docs/en/api/messages; models that aren't known are said to take none.

    Example:
        >>> takes_system_turns("claude-sonnet-5-5"), takes_system_turns("claude-sonnet-5")
        (True, False)
    """
    if "claude-mythos" in model:
        return True
    version = model_version(model)
    if version is None:
        return False
    if "claude-opus" in model:
        return version >= (4, 8)
    return "claude-fable" in model or ("claude-sonnet" in model and version >= (5, 5))
