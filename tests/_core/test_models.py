from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.models import HIGH_RESOLUTION, STANDARD, Tier, check_system_turns, known, price_name


@pytest.mark.parametrize(
    "pool",
    [
        {
            "claude-opus-4-5",
            "claude-opus-4-6-20260101",
            "us.anthropic.claude-opus-4-7-v1:0",
            "claude-opus-4-8@20260801",
        },
        {"claude-sonnet-4-5", "claude-sonnet-4-6"},
        {"claude-fable-5", "claude-fable-5-2", "claude-fable-5-1-20260901"},
        {"claude-mythos-1", "claude-mythos-1-5"},
    ],
)
def test_models_of_one_pool_share_a_class(pool: set[str]) -> None:
    """Models whose limits the API counts together have one class, however a cloud spells their names."""
    assert len({known(model).pool for model in pool}) == 1


def test_models_of_different_pools_differ() -> None:
    """No model of one pool has the class of another."""
    models = [
        "opus-5-5",
        "opus-5",
        "opus-4-6",
        "sonnet-5-5",
        "sonnet-5",
        "sonnet-4-6",
        "haiku-5-5",
        "haiku-4-5",
        "fable-5",
    ]
    assert len({known(f"claude-{model}").pool for model in models}) == len(models)


def test_a_date_is_no_version() -> None:
    """A snapshot date after a major version is not read as a minor one."""
    assert known("claude-opus-5-20260301").pool == known("claude-opus-5").pool
    assert known("claude-opus-5-5-20260301").pool == known("claude-opus-5-5").pool


@given(st.text())
def test_any_text_has_a_class(model: str) -> None:
    """An unknown name is a class of its own, and none raises."""
    if "claude-" not in model:
        assert known(model).pool == model


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
    assert known(model).tier == tier


def test_the_table_agrees_with_what_the_api_says() -> None:
    """For every model of the simulated API, but one that is not named by a version."""
    from penstock.simulator.models import MODELS

    for name, model in MODELS.items():
        found = known(name)
        if name != "claude-mythos-preview":
            assert (found.window_tokens, found.max_output_tokens) == (model.window, model.max_output), name
            assert (found.prefill, found.compacts) == (model.prefill, model.compacts), name
        assert found.system_turns == model.system_turns, name


def test_a_model_that_is_not_known_gets_what_is_safe() -> None:
    """Old and unknown ones are treated with care; what only they may take is not refused."""
    for name in ("claude-opus-4-1", "claude-next"):
        assert known(name).window_tokens == 200_000
        assert not known(name).compacts
        assert not known(name).system_turns
        assert known(name).prefill


def test_system_turns_are_refused_where_the_model_takes_none() -> None:
    """With what to do instead."""
    check_system_turns("claude-sonnet-5-5")
    with pytest.raises(ValueError, match="begin a new conversation"):
        check_system_turns("claude-sonnet-5")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5-20250929"),
        ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("Claude-Opus-5-5", "claude-opus-5-5"),
        ("another", "another"),
    ],
)
def test_prices_know_a_model_by_its_own_name(model: str, name: str) -> None:
    """However a cloud spells it."""
    assert price_name(model) == name
