from __future__ import annotations

from math import ceil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock._core.vision import HIGH_RESOLUTION, STANDARD, Tier, seen_size, seen_tokens, tier_of

# As the API documents them: size, seen by older models, seen by newer ones, tokens of both.
DOCUMENTED = [
    ((200, 200), (200, 200), (200, 200), 64, 64),
    ((1000, 1000), (1000, 1000), (1000, 1000), 1296, 1296),
    ((1092, 1092), (1092, 1092), (1092, 1092), 1521, 1521),
    ((1920, 1080), (1456, 819), (1920, 1080), 1560, 2691),
    ((2000, 1500), (1270, 952), (2000, 1500), 1564, 3888),
    ((3840, 2160), (1456, 819), (2576, 1449), 1560, 4784),
    ((1075, 1520), (924, 1307), (1075, 1520), 1551, 2145),
]
tiers = st.sampled_from([STANDARD, HIGH_RESOLUTION])
sides = st.integers(min_value=1, max_value=20_000)


def documented(width: int, height: int, edge: int, cap: int) -> tuple[int, int]:
    """The documented search, without a shortcut."""

    def tokens(w: int, h: int) -> int:
        return ceil(w / 28) * ceil(h / 28)

    def fits(w: int, h: int) -> bool:
        return max(ceil(w / 28), ceil(h / 28)) * 28 <= edge and tokens(w, h) <= cap

    if height > width:
        return documented(height, width, edge, cap)[::-1]
    if fits(width, height):
        return width, height
    sizes = ((a, max(round(a / (width / height)), 1)) for a in range(min(width, edge), 0, -1))
    return next(size for size in sizes if fits(*size))


@pytest.mark.parametrize(("size", "old", "new", "old_tokens", "new_tokens"), DOCUMENTED)
def test_sizes_and_tokens_are_those_of_the_documentation(
    size: tuple[int, int], old: tuple[int, int], new: tuple[int, int], old_tokens: int, new_tokens: int
) -> None:
    """To the pixel."""
    assert (seen_size(*size, STANDARD), seen_size(*size, HIGH_RESOLUTION)) == (old, new)
    assert (seen_tokens(*size, STANDARD), seen_tokens(*size, HIGH_RESOLUTION)) == (old_tokens, new_tokens)


@given(sides, sides, tiers)
@example(20_000, 1, STANDARD)
@example(1, 1, HIGH_RESOLUTION)
def test_any_size_is_that_of_the_documented_search(width: int, height: int, tier: Tier) -> None:
    """The shortcut to where the search starts misses nothing."""
    assert seen_size(width, height, tier) == documented(width, height, *tier)


@pytest.mark.parametrize(
    ("model", "tier"),
    [
        ("claude-opus-4-6", STANDARD),
        ("claude-haiku-4-5-20251001", STANDARD),
        ("claude-opus-4-7", HIGH_RESOLUTION),
        ("claude-sonnet-5", HIGH_RESOLUTION),
        ("some-new-model", HIGH_RESOLUTION),
    ],
)
def test_newer_models_see_more(model: str, tier: Tier) -> None:
    """From 4.7 on; an unknown name counts as new."""
    assert tier_of(model) == tier
