"""What is known of a model from its name: whose limits it shares, what it takes, what it sees.

The rule here: one table, by family and version, and nothing is looked up elsewhere. A name that isn't known gets what
is safe: the smallest window, no feature, a pool of its own. Sources: https://platform.claude.com/docs/en/about-claude/models/overview,
"Rate limits" for pools, "Vision" for tiers, https://platform.claude.com/docs/en/api/messages for system turns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

__all__ = ["HIGH_RESOLUTION", "STANDARD", "Model", "Tier", "check_system_turns", "known", "price_name"]

Tier: TypeAlias = "tuple[int, int]"

STANDARD: Final[Tier] = (1568, 1568)
"""(longest edge in pixels, most tokens) of images, for models up to 4.6."""
HIGH_RESOLUTION: Final[Tier] = (2576, 4784)
"""(longest edge in pixels, most tokens) of images, for models from 4.7 on."""

_FAMILY: Final = re.compile(r"claude-(opus|sonnet|haiku|fable|mythos)-(\d+)(?:-(\d{1,2}))?(?![\d])")
_POOLS: Final = {
    **dict.fromkeys(("opus-4-5", "opus-4-6", "opus-4-7", "opus-4-8"), "opus-4"),
    **dict.fromkeys(("sonnet-4-5", "sonnet-4-6"), "sonnet-4"),
}
_LARGE, _SMALL, _OLD = (1_000_000, 128_000), (200_000, 64_000), (200_000, 32_000)
_NEVER: Final = (99, 0)
_SYSTEM_TURNS_FROM: Final = {"opus": (4, 8), "sonnet": (5, 5), "fable": (0, 0), "mythos": (0, 0)}
# us.anthropic.claude-sonnet-4-5-20250929-v1:0 (Bedrock), claude-sonnet-4-5@20250929 (Vertex)
_PRICED: Final = re.compile(r"claude-[^@:]*?(?=(?:-v\d+)?(?:[@:].*)?$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is known of a model.

    Attributes:
        version: Its version; `None` for an unknown name.
        pool: The pool of rate limits that it shares; an unknown name is its own.
        window_tokens: Its context window.
        max_output_tokens: The largest `max_tokens`.
        compacts: Whether the API compacts its conversations on request.
        tier: How large the images are that it sees; of an unknown name, as large as a new model's.
        system_turns: Whether a turn of a conversation may have the role `system`.
        prefill: Whether a request may end with the beginning of its answer; an unknown name's may.
    """

    version: tuple[int, int] | None
    pool: str
    window_tokens: int
    max_output_tokens: int
    compacts: bool
    tier: Tier
    system_turns: bool
    prefill: bool


@lru_cache(maxsize=1024)
def known(model: str) -> Model:
    """Return what is known of a model, however a cloud spells its name.

    Example:
        >>> known("claude-haiku-4-5").window_tokens, known("us.anthropic.claude-opus-4-8-v1:0").pool
        (200000, 'opus-4')
        >>> known("claude-sonnet-5-5").system_turns, known("claude-sonnet-5").system_turns
        (True, False)
    """
    match = _FAMILY.search(model)
    family, major, minor = match.groups() if match else (None, None, None)
    version = (int(major), int(minor or 0)) if major else None
    large = version is not None and version >= (4, 6)
    window, output = _LARGE if large else _SMALL if version is not None and version >= (4, 5) else _OLD
    return Model(
        version=version,
        pool=_pool(model, family, major, minor),
        window_tokens=window,
        max_output_tokens=output,
        compacts=large,
        tier=STANDARD if version is not None and version < (4, 7) else HIGH_RESOLUTION,
        system_turns="claude-mythos" in model
        or (version is not None and version >= _SYSTEM_TURNS_FROM.get(family or "", _NEVER)),
        prefill=not large,
    )


def _pool(model: str, family: str | None, major: str | None, minor: str | None) -> str:
    if family is None:
        return model
    name = "-".join(filter(None, (family, major, minor)))
    return family if family in {"fable", "mythos"} else _POOLS.get(name, name)


def check_system_turns(model: str) -> None:
    """Check that a model takes them.

    Raises:
        ValueError: It doesn't.
    """
    if not known(model).system_turns:
        raise ValueError(f"{model!r} takes no system turns; begin a new conversation with another system prompt")


def price_name(model: str) -> str:
    """Return a model's id as Anthropic's own API spells it, by which lists of prices know it.

    Example:
        >>> price_name("anthropic.claude-haiku-4-5-20251001-v1:0")
        'claude-haiku-4-5-20251001'
    """
    found = _PRICED.search(model.lower())
    return found.group() if found else model
