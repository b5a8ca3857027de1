from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from penstock.simulator.clock import Clock
from penstock.simulator.limits import Bucket, CountQuota, Limit, Limits, Organization, Quota
from penstock.simulator.wire import ApiError

RATES = st.floats(min_value=0.5, max_value=1e6)
BURSTS = st.floats(min_value=0.1, max_value=600)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf")])
def test_a_limit_must_be_finite_and_above_zero(bad: float) -> None:
    """A rate or burst that no bucket could have is refused when the limit is made."""
    with pytest.raises(ValueError, match="per_minute"):
        Limit(bad)
    with pytest.raises(ValueError, match="burst_s"):
        Limit(60, burst_s=bad)


def test_a_bucket_holds_at_least_one() -> None:
    """Even a tiny burst lets one request through, or nothing ever could pass."""
    assert Limit(6, burst_s=1).capacity == 1
    assert Limit(1800, burst_s=6).capacity == 180


@given(rate=RATES, burst=BURSTS, steps=st.lists(st.tuples(st.floats(0, 30), st.floats(0.1, 2000)), max_size=60))
def test_never_grants_more_than_refill_and_burst(rate: float, burst: float, steps: list[tuple[float, float]]) -> None:
    """Whatever is asked when, granted amounts never exceed rate × time + capacity."""
    limit = Limit(rate, burst)
    bucket = Bucket(limit, 0.0)
    now = granted = 0.0
    for wait, amount in steps:
        now += wait
        if bucket.seconds_until(amount, now) == 0:
            bucket.take(amount, now)
            granted += amount
        assert granted <= limit.capacity + limit.per_second * now + 1e-6 * (1 + granted)


@given(rate=RATES, burst=BURSTS, drain=st.floats(0, 3), amount=st.floats(0.01, 1))
def test_seconds_until_is_when_it_can_be_taken(rate: float, burst: float, drain: float, amount: float) -> None:
    """Waiting as long as told is enough, and half of it is not."""
    limit = Limit(rate, burst)
    bucket = Bucket(limit, 0.0)
    bucket.take(limit.capacity * drain, 0.0)
    wait = bucket.seconds_until(limit.capacity * amount, 0.0)
    assert bucket.seconds_until(limit.capacity * amount, wait) == pytest.approx(0, abs=1e-6)
    if wait * limit.per_second > 1e-3:
        again = Bucket(limit, 0.0)
        again.take(limit.capacity * drain, 0.0)
        assert again.seconds_until(limit.capacity * amount, wait / 2) > 0


def test_more_than_the_capacity_can_never_be_taken() -> None:
    """An amount that the full bucket cannot hold has an infinite wait."""
    assert Bucket(Limit(60), 0.0).seconds_until(61, 1e9) == float("inf")


def test_a_clock_that_goes_back_refills_nothing() -> None:
    """Time before the last look changes nothing."""
    bucket = Bucket(Limit(60), 100.0)
    bucket.take(60, 100.0)
    assert bucket.level(0.0) == 0


class Buckets(RuleBasedStateMachine):
    """One quota, asked at random: what it grants, what it refuses, what it says about itself."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.limits = Limits(requests=Limit(60, 10), input_tokens=Limit(6000, 10), output_tokens=Limit(600, 10))
        self.quota = Quota("org", "pool", self.limits, 0.0)
        self.requests = self.tokens = 0.0

    def levels(self) -> list[float]:
        quota = self.quota
        return [each.level(self.now) for each in (quota.requests, quota.input_tokens, quota.output_tokens)]

    def refused(self, before: list[float], error: ApiError) -> None:
        assert self.levels() == before
        assert int(error.headers["retry-after"]) >= 1

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(tokens=st.integers(1, 1500))
    def ask(self, tokens: int) -> None:
        before = self.levels()
        try:
            self.quota.admit(tokens, self.now, "model")
        except ApiError as error:
            self.refused(before, error)
        else:
            self.requests += 1
            self.tokens += tokens

    @rule(tokens=st.integers(0, 300))
    def generate(self, tokens: int) -> None:
        self.quota.output_tokens.take(tokens, self.now)

    @rule(tokens=st.integers(1, 1000))
    def come_to_nothing(self, tokens: int) -> None:
        before = self.levels()
        try:
            self.quota.admit(tokens, self.now, "model")
        except ApiError:
            return
        self.quota.give_back(tokens, self.now)
        assert self.levels() == pytest.approx(before)

    @rule(tokens=st.integers(1, 900))
    def wait_as_told(self, tokens: int) -> None:
        try:
            self.quota.admit(tokens, self.now, "model")
        except ApiError as error:
            self.now += int(error.headers["retry-after"])
            self.quota.admit(tokens, self.now, "model")
        self.requests += 1
        self.tokens += tokens

    @invariant()
    def grants_no_more_than_there_was(self) -> None:
        assert self.requests <= 10 + self.now + 1e-3
        assert self.tokens <= 1000 + 100 * self.now + 1e-3

    @invariant()
    def tells_the_truth(self) -> None:
        headers = self.quota.headers(self.now, Clock())
        assert 0 <= int(headers["anthropic-ratelimit-requests-remaining"]) <= 10
        assert int(headers["anthropic-ratelimit-input-tokens-remaining"]) in (0, 1000)
        state = self.quota.requests.state(self.now)
        assert state.taken == self.requests
        assert state.possible == pytest.approx(10 + self.now)


TestBuckets = pytest.mark.lengthy(Buckets.TestCase)


def test_the_429_names_the_limit_that_is_short() -> None:
    """The message is the API's, with the limit, unit, organization and model."""
    quota = Quota("org-1", "pool", Limits(input_tokens=Limit(30_000)), 0.0)
    quota.admit(29_000, 0.0, "claude-opus-5")
    with pytest.raises(ApiError) as caught:
        quota.admit(2_000, 0.0, "claude-opus-5")
    assert caught.value.status == 429
    assert caught.value.kind == "rate_limit_error"
    assert caught.value.message.startswith(
        "This request would exceed your organization's rate limit of 30,000 input tokens per minute "
        "(org: org-1, model: claude-opus-5)."
    )
    assert caught.value.headers == {"retry-after": "2"}


def test_output_in_debt_refuses_until_it_is_paid() -> None:
    """Generated tokens may overdraw the bucket; nothing more starts before it is positive again."""
    quota = Quota("org", "pool", Limits(output_tokens=Limit(60)), 0.0)
    quota.admit(1, 0.0, "m")
    quota.output_tokens.take(100, 0.0)
    with pytest.raises(ApiError, match="60 output tokens per minute"):
        quota.admit(1, 0.0, "m")
    with pytest.raises(ApiError, match="output tokens"):
        quota.admit(1, 40.0, "m")
    quota.admit(1, 41.0, "m")


def test_a_request_that_never_fits_is_told_to_wait_a_minute() -> None:
    """More input than the bucket holds is refused for ever, with a finite `retry-after`."""
    quota = Quota("org", "pool", Limits(input_tokens=Limit(1000)), 0.0)
    with pytest.raises(ApiError) as caught:
        quota.admit(1001, 0.0, "m")
    assert caught.value.headers == {"retry-after": "60"}


def test_headers_say_what_is_left_and_when_it_is_full() -> None:
    """Tokens are rounded to thousands, `reset` is when it is full again, `tokens` is input plus output."""
    limits = Limits(requests=Limit(60), input_tokens=Limit(80_000), output_tokens=Limit(16_000))
    quota = Quota("org", "pool", limits, 0.0)
    clock = Clock()
    quota.admit(20_400, 0.0, "m")
    quota.output_tokens.take(1_600, 0.0)
    headers = quota.headers(0.0, clock)
    assert {
        name.removeprefix("anthropic-ratelimit-"): value for name, value in headers.items() if "reset" not in name
    } == {
        "requests-limit": "60",
        "requests-remaining": "59",
        "input-tokens-limit": "80000",
        "input-tokens-remaining": "60000",
        "output-tokens-limit": "16000",
        "output-tokens-remaining": "14000",
        "tokens-limit": "96000",
        "tokens-remaining": "74000",
    }
    full = datetime.strptime(headers["anthropic-ratelimit-input-tokens-reset"], "%Y-%m-%dT%H:%M:%SZ").replace(
        tzinfo=UTC
    )
    assert 15.3 <= (full - clock.wall(0.0)).total_seconds() <= 16.3
    assert headers["anthropic-ratelimit-tokens-reset"] == headers["anthropic-ratelimit-input-tokens-reset"]


def test_without_limits_nothing_is_refused_and_headers_are_large() -> None:
    """No limit means a large one in the headers, nothing refused, and still counted."""
    quota = Quota("org", "pool", Limits(), 0.0)
    for _ in range(1000):
        quota.admit(100_000, 0.0, "m")
    headers = quota.headers(0.0, Clock())
    assert headers["anthropic-ratelimit-requests-remaining"] == "1000000"
    assert headers["anthropic-ratelimit-input-tokens-limit"] == "1000000000"
    assert quota.requests.state(0.0).taken == 1000
    assert quota.requests.state(0.0).possible is None


def test_counting_tokens_has_a_bucket_of_its_own() -> None:
    """`count_tokens` is refused by its own limit only, and its headers speak of requests only."""
    quota = CountQuota("org", Limits(requests=Limit(1), count_tokens=Limit(2)), 0.0)
    quota.admit(0.0, "m")
    quota.admit(0.0, "m")
    with pytest.raises(ApiError, match="2 requests per minute"):
        quota.admit(0.0, "m")
    assert set(quota.headers(0.0, Clock())) == {
        f"anthropic-ratelimit-requests-{x}" for x in ("limit", "remaining", "reset")
    }


def test_an_organization_keeps_one_quota_for_each_model_class() -> None:
    """The same name gives the same quota, another name a fresh one."""
    limits = Limits(requests=Limit(60))
    organization = Organization(id="o", limits=limits, counting=CountQuota("o", limits, 0.0))
    organization.quota("a", 0.0).admit(1, 0.0, "m")
    assert organization.quota("a", 0.0).requests.level(0.0) == 59
    assert organization.quota("b", 0.0).requests.level(0.0) == 60
    assert set(organization.state(0.0).quotas) == {"a", "b"}


def test_reprs_show_levels() -> None:
    """A bucket and a quota say what they are."""
    assert "level=60.000" in repr(Bucket(Limit(60), 0.0))
    assert repr(Quota("o", "p", Limits(), 0.0)) == "Quota('o', 'p')"
