from __future__ import annotations

import dataclasses
import warnings

import pytest
from anthropic.types import Message
from anthropic.types.beta import BetaMessage, BetaUsage
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.usage import Usage, writes_for_an_hour

REPORTED = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 10,
    "cache_read_input_tokens": 100,
    "cache_creation": {"ephemeral_5m_input_tokens": 6, "ephemeral_1h_input_tokens": 4},
    "output_tokens": 12,
    "output_tokens_details": {"thinking_tokens": 3},
    "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
    "service_tier": "standard",
    "speed": "fast",
    "inference_geo": "us",
}
READ = Usage(
    input_tokens=25,
    output_tokens=12,
    cache_creation_input_tokens=10,
    cache_read_input_tokens=100,
    cache_creation_1h_input_tokens=4,
    thinking_tokens=3,
    web_search_requests=2,
    web_fetch_requests=1,
    service_tier="standard",
    speed="fast",
)
ITERATIONS = [
    {"type": "compaction", "input_tokens": 1000, "output_tokens": 50, "cache_read_input_tokens": 7},
    {
        "type": "message",
        "input_tokens": 20,
        "output_tokens": 5,
        "cache_creation_input_tokens": 9,
        "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 8},
    },
]
SUMMED = Usage(
    input_tokens=1020,
    output_tokens=55,
    cache_read_input_tokens=7,
    cache_creation_input_tokens=9,
    cache_creation_1h_input_tokens=8,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = [*REPORTED, "iterations", "fallback_credit"]
COUNTS = [field.name for field in dataclasses.fields(Usage) if field.type == "int"]
USAGES = st.builds(Usage, **{name: st.integers(0, 10**9) for name in COUNTS}, estimated=st.booleans())


def _message(usage: object) -> dict[str, object]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5-5",
        "content": [],
        "usage": usage,
    }


def test_every_field_of_the_api_is_read() -> None:
    """What the API reports arrives in the field that means it."""
    assert Usage.from_mapping(REPORTED) == READ


def test_a_message_of_the_sdk_is_read_like_its_json() -> None:
    """Usage of a parsed `Message` equals usage of the JSON it was parsed from."""
    assert Usage.from_message(Message.model_validate(_message(REPORTED))) == READ


def test_a_beta_message_counts_its_iterations() -> None:
    """Usage of a `BetaMessage` is the sum of its iterations, because compaction is billed only there."""
    usage = {"input_tokens": 20, "output_tokens": 5, "iterations": ITERATIONS}
    assert Usage.from_message(BetaMessage.construct(**_message(usage))) == SUMMED  # type: ignore[arg-type]


def test_a_beta_message_whose_iterations_are_none_has_its_own_counts() -> None:
    """What a compatible server puts there instead of a list is passed over."""
    usage = BetaUsage.construct(input_tokens=20, output_tokens=5, iterations="none")
    expected = Usage(input_tokens=20, output_tokens=5)
    assert Usage.from_message(BetaMessage.construct(**_message(usage))) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("usage", [None, "many", 3, {"input_tokens": "many"}])
def test_a_message_without_usable_usage_used_nothing(usage: object) -> None:
    """A compatible server's message whose usage is missing or of another type used nothing, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Usage.from_message(Message.construct(**_message(usage))) == Usage()  # type: ignore[arg-type]


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=12))
def test_no_json_makes_reading_fail_or_a_count_negative(usage: dict[str, object]) -> None:
    """Whatever a server sends as usage is read, to counts that are not negative and parts that fit their whole."""
    read = Usage.from_mapping(usage)
    assert all(type(getattr(read, name)) is int and getattr(read, name) >= 0 for name in COUNTS)
    assert read.cache_creation_1h_input_tokens <= read.cache_creation_input_tokens


@pytest.mark.parametrize("value", [None, -1, 2.5, "7", True, [1]])
def test_a_value_that_is_no_count_is_zero_at_first_and_keeps_the_old_later(value: object) -> None:
    """A count that isn't one is 0 when usage is read, and changes nothing when it is updated."""
    assert Usage.from_mapping({"input_tokens": value}) == Usage()
    assert READ.updated({"input_tokens": value}) == READ


def test_totals_count_cached_tokens_as_the_api_does() -> None:
    """Total input has all three kinds of input; what counts against the rate limit leaves out cache reads."""
    assert (READ.total_input_tokens, READ.rate_limited_input_tokens, READ.total_tokens) == (135, 35, 147)


def test_iterations_are_summed_in_place_of_the_top_level() -> None:
    """Token counts of the top level are replaced by the sum of the iterations; searches stay, they are only there."""
    usage = {
        "input_tokens": 1,
        "output_tokens": 1,
        "server_tool_use": {"web_search_requests": 3},
        "iterations": ITERATIONS,
    }
    assert Usage.from_mapping(usage) == dataclasses.replace(SUMMED, web_search_requests=3)


def test_a_beta_message_of_the_usual_shape_counts_its_iterations_too() -> None:
    """All counts of the totals being there says nothing of what the iterations have."""
    zeros = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    compaction = {"type": "compaction", "input_tokens": 60_000, "output_tokens": 100, **zeros}
    answer = {"type": "message", "input_tokens": 10, "output_tokens": 3, **zeros}
    usage = {"input_tokens": 10, "output_tokens": 3, **zeros, "iterations": [compaction, answer]}
    read = Usage.from_message(BetaMessage.model_validate(_message(usage)))
    assert read == Usage.from_mapping(usage) == Usage(input_tokens=60_010, output_tokens=103)


def _credited(status: object, steps: list[dict[str, object]], read: int) -> dict[str, object]:
    totals = {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 20, "cache_read_input_tokens": read}
    return {**totals, "fallback_credit": {"status": status}, "iterations": steps}


STEP: dict[str, object] = {
    "type": "message",
    "input_tokens": 1,
    "output_tokens": 2,
    "cache_creation_input_tokens": 70,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 70},
    "cache_read_input_tokens": 5,
}


@pytest.mark.parametrize("stream", [False, True])
def test_a_redeemed_credit_moves_cache_writes_of_the_iterations_to_reads(stream: bool) -> None:
    """The totals tell how tokens are billed; in a `message_delta` as in a whole message."""
    usage = _credited({"type": "redeemed"}, [STEP], 55)
    read = Usage(input_tokens=1).updated(usage) if stream else Usage.from_mapping(usage)
    assert (read.cache_creation_input_tokens, read.cache_read_input_tokens) == (20, 55)
    assert (read.cache_creation_1h_input_tokens, read.total_tokens) == (20, 78)
    assert Usage.from_message(BetaMessage.model_validate(_message(usage))) == Usage.from_mapping(usage)


@pytest.mark.parametrize(
    ("status", "read"), [({"type": "redeemed"}, 56), ({"type": "not_applied"}, 55), (None, 55), ("redeemed", 55)]
)
def test_other_totals_do_not_correct_the_iterations(status: object, read: int) -> None:
    """Without a credit, or where the totals are of other steps, the iterations hold as they are."""
    usage = Usage.from_mapping(_credited(status, [STEP], read))
    assert (usage.cache_creation_input_tokens, usage.cache_read_input_tokens) == (70, 5)


def test_more_written_than_the_iterations_tell_moves_nothing() -> None:
    """No count ever becomes negative."""
    usage = Usage.from_mapping(_credited({"type": "redeemed"}, [{**STEP, "cache_creation_input_tokens": 10}], -5))
    assert (usage.cache_creation_input_tokens, usage.cache_read_input_tokens) == (10, 5)
    fewer = {**STEP, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 65}
    usage = Usage.from_mapping(_credited({"type": "redeemed"}, [fewer], 55))
    assert (usage.cache_creation_input_tokens, usage.cache_read_input_tokens) == (10, 65)


@pytest.mark.parametrize("iterations", [[], None, "none", [3, None]])
def test_iterations_without_counts_leave_the_top_level(iterations: object) -> None:
    """An empty or unusable list of iterations is ignored."""
    assert Usage.from_mapping({**REPORTED, "iterations": iterations}) == READ


def test_an_update_replaces_what_it_names_and_keeps_the_rest() -> None:
    """The usage of a `message_delta` is cumulative, so it replaces, never adds."""
    later = READ.updated({"output_tokens": 40, "cache_read_input_tokens": 0, "service_tier": "batch"})
    assert later == dataclasses.replace(READ, output_tokens=40, cache_read_input_tokens=0, service_tier="batch")


def test_an_update_of_a_total_keeps_its_part_within_it() -> None:
    """A smaller total of cache writes without its breakdown bounds the part for one hour."""
    assert READ.updated({"cache_creation_input_tokens": 3}).cache_creation_1h_input_tokens == 3


@pytest.mark.parametrize(
    ("delta", "total", "hour"),
    [
        ({"cache_creation_input_tokens": 25}, 25, 19),
        ({"cache_creation_input_tokens": 10}, 10, 4),
        ({"cache_creation_input_tokens": 3}, 3, 3),
        ({"cache_creation_input_tokens": 25, "cache_creation": {"ephemeral_1h_input_tokens": 5}}, 25, 5),
        ({"output_tokens": 40}, 10, 4),
        ({"iterations": ITERATIONS}, 9, 8),
    ],
)
def test_more_cache_writes_count_as_the_request_asked_to_keep_them(
    delta: dict[str, object], total: int, hour: int
) -> None:
    """Where an update has more of them and no breakdown, the request tells for how long; only then is it asked."""
    asked = []

    def for_an_hour() -> bool:
        asked.append(1)
        return True

    later = READ.updated(delta, for_an_hour=for_an_hour)
    assert (later.cache_creation_input_tokens, later.cache_creation_1h_input_tokens) == (total, hour)
    assert len(asked) == (hour == 19)
    assert READ.updated(delta) == READ.updated(delta, for_an_hour=lambda: False)
    assert READ.updated(delta).cache_creation_1h_input_tokens == (4 if hour == 19 else hour)


HOUR, MINUTES = {"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral"}


def _block(mark: object = None) -> dict[str, object]:
    return {"type": "text", "text": "x"} | ({} if mark is None else {"cache_control": mark})


def _turn(*blocks: object) -> dict[str, object]:
    return {"role": "user", "content": list(blocks)}


@pytest.mark.parametrize(
    ("request_body", "expected"),
    [
        ({}, False),
        ({"cache_control": HOUR}, True),
        ({"cache_control": MINUTES}, False),
        ({"cache_control": MINUTES, "system": [_block(HOUR)]}, False),
        ({"cache_control": HOUR, "messages": [_turn(_block(MINUTES))]}, True),
        ({"messages": [_turn(_block(HOUR))]}, True),
        ({"messages": (_turn(_block(HOUR)),)}, True),
        ({"messages": [_turn(_block(MINUTES), _block(HOUR), _block())]}, True),
        ({"messages": [_turn(_block(HOUR)), _turn(_block(MINUTES))]}, False),
        ({"messages": [_turn(_block(HOUR)), {"role": "user", "content": "x"}]}, True),
        ({"messages": [_turn({"type": "tool_result", "content": [_block(HOUR)]})]}, True),
        ({"messages": [_turn(_block())], "system": [_block(HOUR)]}, True),
        ({"messages": [_turn(_block(MINUTES))], "system": [_block(HOUR)]}, False),
        ({"messages": "Hi", "system": "x", "tools": [{"name": "f", "cache_control": HOUR}]}, True),
        ({"system": [_block(MINUTES)], "tools": [{"name": "f", "cache_control": HOUR}]}, False),
        ({"messages": [3, None, "x", object()]}, False),
        ({"cache_control": "1h"}, False),
        (None, False),
        ([HOUR], False),
    ],
)
def test_a_request_tells_how_long_its_last_cache_write_is_kept(request_body: object, expected: bool) -> None:
    """The whole request's mark, else that of the last marked block: of messages, then system, then tools."""
    assert writes_for_an_hour(request_body) is expected


def test_cache_writes_known_only_by_their_breakdown_are_counted() -> None:
    """Where the total of cache writes is missing, it is the sum of its parts."""
    usage = Usage.from_mapping({"cache_creation": {"ephemeral_5m_input_tokens": 6, "ephemeral_1h_input_tokens": 4}})
    assert (usage.cache_creation_input_tokens, usage.cache_creation_1h_input_tokens) == (10, 4)


def test_an_estimate_stays_one_when_updated() -> None:
    """Only who counts knows when an estimate has become fact, so an update doesn't change the mark."""
    assert Usage(estimated=True).updated({"output_tokens": 1}).estimated


@given(USAGES, USAGES)
def test_adding_adds_every_count_and_keeps_the_mark_of_an_estimate(one: Usage, other: Usage) -> None:
    """Each count of a sum is the sum of the counts, and a sum with an estimate in it is one."""
    total = one + other
    assert all(getattr(total, name) == getattr(one, name) + getattr(other, name) for name in COUNTS)
    assert total.estimated == (one.estimated or other.estimated)


@given(st.lists(st.builds(Usage, input_tokens=st.just(1), service_tier=st.sampled_from(["batch", "standard", None]))))
def test_a_sum_names_the_tier_only_where_all_its_parts_agree(usages: list[Usage]) -> None:
    """The tier of a sum is the tier of every part or none, in whatever order they were added."""
    tiers = {usage.service_tier for usage in usages}
    assert sum(usages, Usage()).service_tier == (tiers.pop() if len(tiers) == 1 else None)


def test_nothing_plus_a_usage_is_that_usage() -> None:
    """An empty usage is the neutral element, so a sum over replies of one speed keeps the speed."""
    assert Usage() + READ == READ + Usage() == READ
