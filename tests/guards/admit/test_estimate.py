from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.size import Size, size_of
from penstock._core.usage import Usage
from penstock.guards.admit.estimate import Estimator

MODEL = "claude-sonnet-5-5"
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def characters(value: Any) -> int:
    """All text in a value, counted the plain way."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(characters(inner) for inner in value.values())
    return sum(characters(inner) for inner in value) if isinstance(value, list) else 0


@pytest.mark.lengthy
@given(json_values)
def test_all_text_counts_wherever_it_stands(body: Any) -> None:
    """System prompt, tools, results: every string value, however deep, and nothing else."""
    assert size_of(body).characters == characters(body)


def test_deep_bodies_dont_overflow() -> None:
    """A body of ten thousand levels is measured, not recursed into."""
    body: Any = "deep"
    for _ in range(10_000):
        body = [body]
    assert size_of(body) == Size(4)


def test_an_image_counts_as_what_it_costs() -> None:
    """Its encoding of a million characters is no text, and costs no fortune."""
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 1_000_000}
    body = {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}
    size = size_of(body, MODEL)
    assert size.characters == len("user") + len("image")
    assert 0 < size.media_tokens < 10_000


def test_something_merely_called_base64_is_text() -> None:
    """Only encoded data is left uncounted."""
    assert size_of({"type": "base64", "data": 5, "note": "four"}).characters == len("base64") + len("four")


def test_without_answers_the_guess_is_the_prior() -> None:
    """3.2 characters a token, and 500 tokens of output unless `max_tokens` allows less."""
    cost = Estimator().cost(MODEL, Size(320), max_tokens=4096)
    assert (cost.requests, cost.output_tokens) == (1, 500)
    assert cost.input_tokens == pytest.approx(100)
    assert Estimator().cost(MODEL, Size(320), max_tokens=10).output_tokens == 10


@pytest.mark.parametrize("max_tokens", [None, "many", -5, 1.5])
def test_a_bad_max_tokens_bounds_nothing(max_tokens: object) -> None:
    """The API will refuse it; the guess doesn't."""
    assert Estimator().cost(MODEL, Size(0), max_tokens).output_tokens == 500


def test_media_tokens_dont_depend_on_the_tokenizer() -> None:
    """They are added as they are, and not learned from."""
    estimator = Estimator()
    assert estimator.cost(MODEL, Size(320, 1500), 1).input_tokens == pytest.approx(1600)
    for _ in range(50):
        estimator.learn(MODEL, Size(320, 1500), Usage(input_tokens=1600, output_tokens=1))
    assert estimator.cost(MODEL, Size(320), 1).input_tokens == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize(("per_token", "output"), [(1.5, 20), (4.0, 3000)])
def test_guesses_follow_the_answers(per_token: float, output: int) -> None:
    """After a few dozen answers, both guesses are within a twentieth of what such requests cost."""
    estimator, rng = Estimator(), random.Random(7)
    for _ in range(60):
        length = rng.randint(100, 10_000)
        spread = rng.randint(-output // 10, output // 10)
        estimator.learn(MODEL, Size(length), Usage(input_tokens=int(length / per_token), output_tokens=output + spread))
    cost = estimator.cost(MODEL, Size(1000), 100_000)
    assert cost.input_tokens == pytest.approx(1000 / per_token, rel=0.05)
    assert cost.output_tokens == pytest.approx(output, rel=0.05)


def test_guesses_follow_a_change() -> None:
    """Old answers are forgotten: a task that changes is known again after a few dozen."""
    estimator = Estimator()
    for output in [2000] * 100 + [10] * 60:
        estimator.learn(MODEL, Size(1000), Usage(input_tokens=300, output_tokens=output))
    assert estimator.cost(MODEL, Size(1000), 100_000).output_tokens < 20


def test_the_first_answer_replaces_the_guess() -> None:
    """One answer tells more than a guess made for all tasks."""
    estimator = Estimator()
    estimator.learn(MODEL, Size(1000), Usage(input_tokens=300, output_tokens=7))
    assert estimator.cost(MODEL, Size(1000), 100_000).output_tokens == 7


def test_what_the_cache_had_is_not_expected_again() -> None:
    """Cache reads don't count against the limit, so a cached prompt is expected to cost little."""
    estimator = Estimator()
    for _ in range(60):
        estimator.learn(MODEL, Size(32_000), Usage(input_tokens=100, cache_read_input_tokens=9900, output_tokens=1))
    assert estimator.cost(MODEL, Size(32_000), 1).input_tokens < 200


def test_models_are_learned_apart() -> None:
    """What one model's answers cost says nothing about another's."""
    estimator = Estimator()
    estimator.learn(MODEL, Size(1000), Usage(input_tokens=1000, output_tokens=1))
    assert estimator.cost("claude-opus-5-5", Size(320), 4096) == Estimator().cost("claude-opus-5-5", Size(320), 4096)


def test_a_request_without_text_teaches_only_output() -> None:
    """There is no ratio of nothing."""
    estimator = Estimator()
    estimator.learn(MODEL, Size(0, 1500), Usage(input_tokens=1500, output_tokens=9))
    cost = estimator.cost(MODEL, Size(320), 4096)
    assert cost.input_tokens == pytest.approx(100)
    assert cost.output_tokens == 9


def test_any_number_of_model_names_takes_bounded_memory() -> None:
    """Names come from callers; the oldest are forgotten."""
    estimator = Estimator()
    for number in range(3000):
        estimator.cost(f"model-{number}", Size(1), None)
    assert repr(estimator) == "<Estimator of 1000 models>"
