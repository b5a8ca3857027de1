from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from penstock._core.context import Pin
from penstock._core.secret import Secret
from penstock.errors import RequestExceedsQuota
from penstock.guards.admit.keys import Balance, Key, KeyPool
from penstock.guards.admit.limits import Cost, Limits

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

SONNET = "sonnet-5-5"
BALANCES: list[Balance] = ["headroom", "least_loaded", "round_robin", "random"]


def pool_of(count: int, limits: Limits | None = None, *, balance: Balance = "round_robin", **options: Any) -> KeyPool:
    """A pool of so many keys."""
    secrets = [Secret(f"sk-{number}") for number in range(count)]
    given = limits or Limits()
    return KeyPool(secrets, configured=lambda _: given, balance=balance, rng=random.Random(7), **options)


def chosen(pool: KeyPool, cost: Cost | None = None, *, now: float = 0.0, session: str | None = None) -> Key:
    """The key that the pool chooses, used."""
    key = pool.choose(SONNET, cost or Cost(), now=now, session=session).key
    assert key is not None
    key.quota.of_class(SONNET).take(cost or Cost(), now=now)
    pool.use(key, session=session)
    return key


def learn_all(pool: KeyPool) -> None:
    """Let every quota know that there is no need to begin gently."""
    for key in pool.keys:
        key.quota.of_class(SONNET)._taught = True


# Which key.


async def test_keys_take_turns() -> None:
    """Round robin: each once, and again."""
    pool = pool_of(3)
    assert [chosen(pool).name for _ in range(6)] == [key.name for key in pool.keys] * 2


async def test_a_key_that_can_not_take_the_cost_is_passed_over(virtual_time: VirtualTime) -> None:
    """Whoever has room serves."""
    pool = pool_of(2, Limits(requests_per_minute=60))
    first, second = pool.keys
    first.quota.of_class(SONNET).buckets["requests"].take(60)
    assert {chosen(pool).name for _ in range(5)} == {second.name}


@pytest.mark.parametrize("balance", BALANCES)
async def test_every_balance_uses_every_key(balance: Balance, virtual_time: VirtualTime) -> None:
    """None of many equal keys is left out, and none gets much more than its share."""
    pool = pool_of(4, Limits(requests_per_minute=6000), balance=balance)
    learn_all(pool)
    counts = Counter(chosen(pool).name for _ in range(400))
    assert len(counts) == 4
    assert max(counts.values()) < 140


@pytest.mark.parametrize("balance", ["least_loaded", "round_robin", "random"])
async def test_keys_serve_by_weight(balance: Balance, virtual_time: VirtualTime) -> None:
    """One of weight 3 serves three times as much as one of weight 1."""
    heavy = Secret("sk-0").name
    pool = pool_of(2, balance=balance, weights={heavy: 3.0})
    learn_all(pool)
    counts = Counter(chosen(pool).name for _ in range(400))
    assert counts[heavy] == pytest.approx(300, abs=30)


async def test_the_quota_with_the_most_left_serves(virtual_time: VirtualTime) -> None:
    """Headroom: the share left of its scarcest bucket decides."""
    pool = pool_of(3, Limits(requests_per_minute=60), balance="headroom")
    for key, used in zip(pool.keys, (30, 10, 20), strict=True):
        key.quota.of_class(SONNET).buckets["requests"].take(used)
    assert chosen(pool) is pool.keys[1]


async def test_the_key_with_the_least_under_way_serves(virtual_time: VirtualTime) -> None:
    """Least loaded: what has ended counts no more."""
    pool = pool_of(2, balance="least_loaded")
    first = chosen(pool)
    second = chosen(pool)
    assert second is not first
    first.in_flight -= 1
    assert chosen(pool) is first


async def test_a_session_keeps_to_its_quota_while_there_is_room(virtual_time: VirtualTime) -> None:
    """Prompt caches live there; without room, another quota serves, and from then on keeps the session."""
    pool = pool_of(3, Limits(requests_per_minute=600))
    learn_all(pool)
    first = chosen(pool, session="s1")
    assert {chosen(pool, session="s1").name for _ in range(10)} == {first.name}
    assert chosen(pool, session="s2") is not first
    first.quota.of_class(SONNET).buckets["requests"].take(600)
    second = chosen(pool, session="s1")
    assert second is not first
    await anyio.sleep(60)
    assert chosen(pool, session="s1", now=virtual_time.now()) is second


@pytest.mark.lengthy
async def test_sessions_take_bounded_memory(virtual_time: VirtualTime) -> None:
    """Names come from callers; the oldest are forgotten."""
    pool = pool_of(2)
    learn_all(pool)
    for number in range(11_000):
        chosen(pool, session=f"s{number}")
    assert len(pool._sessions) == 10_000


async def test_a_key_given_twice_is_one_key() -> None:
    """Else it would have twice its limits."""
    pool = KeyPool(
        [Secret("sk-1"), Secret("sk-1")], configured=lambda _: Limits(), balance="random", rng=random.Random(7)
    )
    assert len(pool.keys) == 1


async def test_without_keys_of_ours_the_sdks_own_credentials_are_one() -> None:
    """They are called `sdk`, and have a quota."""
    pool = KeyPool([None], configured=lambda _: Limits(), balance="headroom", rng=random.Random(7))
    assert (pool.keys[0].name, pool.keys[0].secret, pool.keys[0].quota.name) == ("sdk", None, "sdk")


# How long to wait.


async def test_the_wait_is_for_the_first_key_that_is_ready(virtual_time: VirtualTime) -> None:
    """Of several keys, the shortest wait; and whether it is a cool-down."""
    pool = pool_of(2, Limits(requests_per_minute=60))
    learn_all(pool)
    first, second = (key.quota.of_class(SONNET) for key in pool.keys)
    now = virtual_time.now()
    first.cool_down(30, now=now)
    second.buckets["requests"].take(60)
    choice = pool.choose(SONNET, Cost(10), now=now)
    assert (choice.key, choice.cooling_s, choice.quarantined) == (None, 0, False)
    assert choice.wait_s == pytest.approx(10, abs=0.01)
    second.cool_down(20, now=now)
    choice = pool.choose(SONNET, Cost(10), now=now)
    assert choice.cooling_s
    assert choice.wait_s == pytest.approx(20, abs=0.01)


async def test_a_cool_down_shorter_than_the_refill_is_not_what_is_waited_for(virtual_time: VirtualTime) -> None:
    """Settling may shorten the wait for a bucket, so that it is never given up for a cool-down that ends before."""
    pool = pool_of(1, Limits(requests_per_minute=60))
    learn_all(pool)
    allowance = pool.keys[0].quota.of_class(SONNET)
    allowance.buckets["requests"].take(60)
    allowance.cool_down(5, now=virtual_time.now())
    choice = pool.choose(SONNET, Cost(30), now=virtual_time.now())
    assert not choice.cooling_s
    assert choice.wait_s == pytest.approx(30, abs=0.01)


async def test_a_key_to_be_probed_sooner_shortens_the_wait(virtual_time: VirtualTime) -> None:
    """It may turn out to work before the other is free."""
    pool = pool_of(2, Limits(requests_per_minute=1))
    learn_all(pool)
    first, second = pool.keys
    first.quota.of_class(SONNET).cool_down(300, now=5)
    second.quarantine.begin(now=0)
    choice = pool.choose(SONNET, Cost(), now=10)
    assert (choice.wait_s, choice.quarantined, choice.cooling_s) == (50, False, 0)
    assert pool.choose(SONNET, Cost(), now=60).key is second


async def test_with_every_key_quarantined_the_wait_is_for_a_probe(virtual_time: VirtualTime) -> None:
    """By its key or by its quota."""
    pool = pool_of(2)
    first, second = pool.keys
    first.quarantine.begin(now=0)
    second.quota.quarantine.begin(now=30)
    choice = pool.choose(SONNET, Cost(), now=40)
    assert (choice.key, choice.wait_s, choice.quarantined) == (None, 20, True)
    assert first.quarantined
    assert second.quarantined
    assert "quarantined" in repr(first)


async def test_one_request_probes_and_the_others_wait(virtual_time: VirtualTime) -> None:
    """While it does, the key can't be chosen again, whether the key or its quota is quarantined."""
    for what in ("key", "quota"):
        pool = pool_of(1)
        key = pool.keys[0]
        (key.quarantine if what == "key" else key.quota.quarantine).begin(now=0)
        assert pool.choose(SONNET, Cost(), now=60).key is key
        assert pool.use(key) is True
        choice = pool.choose(SONNET, Cost(), now=60)
        assert (choice.key, choice.quarantined) == (None, True)


async def test_using_a_sound_key_is_no_probe() -> None:
    """Nothing is to be found out."""
    pool = pool_of(1)
    assert pool.use(pool.keys[0]) is False


async def test_without_keys_nothing_can_be_waited_for() -> None:
    """All were retired."""
    pool = pool_of(1)
    assert pool.retire(pool.keys[0].name)
    choice = pool.choose(SONNET, Cost(), now=0)
    assert (choice.key, choice.wait_s, choice.quarantined) == (None, math.inf, True)
    pool.check(SONNET, Cost(), now=0)


async def test_a_cost_too_large_for_every_key_is_refused(virtual_time: VirtualTime) -> None:
    """As long as one usable key could take it, it isn't; what is quarantined doesn't count."""
    pool = pool_of(2)
    for key, limit in zip(pool.keys, (1000, 5000), strict=True):
        key.quota._configured = lambda _, limit=limit: Limits(input_tokens_per_minute=limit)  # type: ignore[misc]
    pool.check(SONNET, Cost(1, 5000), now=0)
    with pytest.raises(RequestExceedsQuota):
        pool.check(SONNET, Cost(1, 5001), now=0)
    pool.keys[1].quarantine.begin(now=0)
    with pytest.raises(RequestExceedsQuota):
        pool.check(SONNET, Cost(1, 5000), now=0)


# Which quota.


async def test_a_key_keeps_its_buckets_when_its_quota_is_recognised(virtual_time: VirtualTime) -> None:
    """The quota turns out to have a name; what was taken from it stays taken."""
    pool = pool_of(1, Limits(requests_per_minute=60))
    key = chosen(pool)
    before = key.quota
    assert pool.recognise(key, "org/wrk")
    assert key.quota is before
    assert key.quota.name == "org/wrk"
    assert list(pool.quotas) == ["org/wrk"]
    assert not pool.recognise(key, "org/wrk")


async def test_an_answer_without_ids_recognises_nothing() -> None:
    """Each key stays a quota of its own."""
    pool = pool_of(2)
    assert not pool.recognise(pool.keys[0], None)
    assert len(pool.quotas) == 2


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_keys_of_one_organization_share_a_quota_in_whatever_order_they_answer(order: tuple[int, ...]) -> None:
    """Three of one organization become one quota, the fourth stays apart, and no quota is left over."""
    pool = pool_of(4)
    for number in order:
        pool.recognise(pool.keys[number], "org-a" if number < 3 else "org-b")
    assert {key.quota.name for key in pool.keys[:3]} == {"org-a"}
    assert len({id(key.quota) for key in pool.keys[:3]}) == 1
    assert pool.keys[3].quota.name == "org-b"
    assert set(pool.quotas) == {"org-a", "org-b"}


async def test_a_shared_quota_grants_once(virtual_time: VirtualTime) -> None:
    """After two keys were recognised as one organization's, they have its limits together, not each."""
    pool = pool_of(2, Limits(requests_per_minute=60))
    for key in pool.keys:
        pool.recognise(key, "org")
    learn_all(pool)
    granted = 0
    while pool.choose(SONNET, Cost(), now=virtual_time.now()).key is not None:
        chosen(pool, now=virtual_time.now())
        granted += 1
    assert granted == 60


async def test_a_cool_down_is_not_lost_when_quotas_turn_out_to_be_one(virtual_time: VirtualTime) -> None:
    """The longer of both holds for the organization."""
    for longer in (0, 1):
        pool = pool_of(2)
        for number, key in enumerate(pool.keys):
            key.quota.of_class(SONNET).cool_down(100 if number == longer else 10, now=0)
        for key in pool.keys:
            pool.recognise(key, "org")
        assert pool.keys[0].quota.of_class(SONNET).cooling_until == 100


async def test_a_key_that_moves_takes_no_other_along() -> None:
    """A key moved to another organization leaves the others where they are."""
    pool = pool_of(2)
    for key in pool.keys:
        pool.recognise(key, "org-a")
    assert pool.recognise(pool.keys[0], "org-b")
    assert [key.quota.name for key in pool.keys] == ["org-b", "org-a"]
    assert set(pool.quotas) == {"org-a", "org-b"}


# What no limit applies to.


async def test_a_pin_keeps_to_its_key_and_then_to_its_quota() -> None:
    """Its own key, then others of the quota; any key where neither is here; none where there are none at all."""
    pool = pool_of(4)
    first, second, third, fourth = pool.keys
    for key in (second, fourth):
        pool.recognise(key, "org")
    assert pool.unlimited(None, now=0) is first
    assert pool.unlimited(Pin(), now=0) is first
    assert pool.unlimited(Pin(key=fourth.name), now=0) is fourth
    assert pool.unlimited(Pin(key="key-gone", quota="org"), now=0) is second
    assert pool.unlimited(Pin(key="key-gone", quota="gone"), now=0) is first
    fourth.quarantine.begin(now=0)
    assert pool.unlimited(Pin(key=fourth.name), now=0) is second
    second.quarantine.begin(now=0)
    # Another quota's key would not do.
    assert pool.unlimited(Pin(key=fourth.name), now=0) is fourth
    first.quarantine.begin(now=0)
    assert pool.unlimited(None, now=0) is third
    for key in (first, second, third, fourth):
        pool.retire(key.name)
    assert pool.unlimited(Pin(), now=0) is None


# Keys come and go.


async def test_a_new_key_takes_its_turn_and_not_all_the_work() -> None:
    """It starts where the others are."""
    pool = pool_of(2)
    learn_all(pool)
    for _ in range(100):
        chosen(pool)
    added = pool.add(Secret("sk-new"))
    added.quota.of_class(SONNET)._taught = True
    assert Counter(chosen(pool).name for _ in range(30))[added.name] == pytest.approx(10, abs=1)


async def test_a_key_added_again_is_free_at_once() -> None:
    """Rotation ends its quarantine."""
    pool = pool_of(1)
    pool.keys[0].quarantine.begin(now=0)
    assert pool.add(Secret("sk-0")) is pool.keys[0]
    assert pool.choose(SONNET, Cost(), now=0).key is pool.keys[0]


async def test_a_retired_key_is_used_no_more() -> None:
    """Its quota goes with its last key; an answer that still comes recognises nothing."""
    pool = pool_of(2)
    gone = pool.keys[0]
    pool.recognise(gone, "org")
    assert pool.retire(gone.name)
    assert not pool.retire(gone.name)
    assert not pool.recognise(gone, "org-b")
    assert {chosen(pool) for _ in range(3)} == {pool.keys[0]}
    assert "org" not in pool.quotas
    assert repr(pool) == f"<KeyPool {pool.keys}>"


async def test_a_quota_stays_as_long_as_a_key_spends_from_it() -> None:
    """Two keys of one organization: the first to be retired doesn't take its limits along."""
    pool = pool_of(2)
    for key in pool.keys:
        pool.recognise(key, "org")
    pool.retire(pool.keys[0].name)
    assert list(pool.quotas) == ["org"]


async def test_others_are_those_that_may_be_used() -> None:
    """A quarantined key is no way out."""
    pool = pool_of(2)
    first, second = pool.keys
    assert pool.others(first, now=0)
    second.quarantine.begin(now=0)
    assert not pool.others(first, now=0)
    assert pool.others(first, now=60)
