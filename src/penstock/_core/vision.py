"""What a model sees of an image: the size that it is scaled down to, and the tokens that it then costs.

The rule here: the API's own arithmetic, to the pixel, as documented under "Vision". An image is scaled down to the
largest size of the same shape whose edges, padded to patches of 28 pixels, and number of patches both fit the model.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, sqrt
from typing import TYPE_CHECKING, Final, TypeAlias

from penstock._core.kind import model_version

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HIGH_RESOLUTION", "STANDARD", "Tier", "seen_size", "seen_tokens", "tier_of"]

Tier: TypeAlias = "tuple[int, int]"

STANDARD: Final[Tier] = (1568, 1568)
"""(longest edge in pixels, most tokens) of models up to 4.6."""
HIGH_RESOLUTION: Final[Tier] = (2576, 4784)
"""(longest edge in pixels, most tokens) of models from 4.7 on."""

_HIGH_FROM: Final = (4, 7)
_PATCH: Final = 28


def tier_of(model: str) -> Tier:
    """Return how large the images are that a model sees; a model of unknown name counts as a new one.

    Example:
        >>> tier_of("claude-haiku-4-5"), tier_of("claude-haiku-5-5")
        ((1568, 1568), (2576, 4784))
    """
    version = model_version(model)
    return STANDARD if version is not None and version < _HIGH_FROM else HIGH_RESOLUTION


def seen_tokens(width: int, height: int, tier: Tier) -> int:
    """Return what an image of that size costs, in tokens.

    Args:
        width: In pixels, 1 or more.
        height: In pixels, 1 or more.
        tier: Of the model.

    Example:
        >>> seen_tokens(1920, 1080, STANDARD), seen_tokens(1920, 1080, HIGH_RESOLUTION)
        (1560, 2691)
    """
    return _tokens(*seen_size(width, height, tier))


@lru_cache(maxsize=1024)
def seen_size(width: int, height: int, tier: Tier) -> tuple[int, int]:
    """Return the size that an image is scaled down to before the model sees it.

    Args:
        width: In pixels, 1 or more.
        height: In pixels, 1 or more.
        tier: Of the model.

    Example:
        >>> seen_size(1920, 1080, STANDARD)
        (1456, 819)
    """
    if height > width:
        turned = seen_size(height, width, tier)
        return turned[1], turned[0]
    if _fits(width, height, tier):
        return width, height
    return next(size for size in _smaller(width, height, tier) if _fits(*size, tier))


def _smaller(width: int, height: int, tier: Tier) -> Iterator[tuple[int, int]]:
    """Give the sizes of the same shape, from one that is too large or just fits."""
    edge, cap = tier
    shape = width / height
    # The most that a width can be: its height is shorter than its share by half a pixel at most, through rounding.
    most = shape / 2 * (0.5 + sqrt(0.25 + 4 * cap * _PATCH * _PATCH / shape))
    return ((each, max(round(each / shape), 1)) for each in range(min(width, edge, ceil(most)), 0, -1))


def _fits(width: int, height: int, tier: Tier) -> bool:
    edge, cap = tier
    return max(ceil(width / _PATCH), ceil(height / _PATCH)) * _PATCH <= edge and _tokens(width, height) <= cap


def _tokens(width: int, height: int) -> int:
    return ceil(width / _PATCH) * ceil(height / _PATCH)
