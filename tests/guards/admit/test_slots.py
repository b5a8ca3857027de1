from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.guards.admit.slots import Slots


def test_a_fixed_number_stays() -> None:
    """Whatever the answers."""
    slots = Slots(5)
    for second in range(10):
        slots.overloaded(now=second)
    slots.used = 5
    for _ in range(100):
        slots.succeeded()
    assert (slots.total, slots.free) == (5, False)
    assert repr(slots) == "<Slots 5 of 5>"


def test_a_round_of_successes_adds_one_slot() -> None:
    """With the slots in use: as many successes as there are slots."""
    slots = Slots(10, floor=1, ceiling=100)
    slots.used = 10
    for _ in range(11):
        slots.succeeded()
    assert slots.total == 11


def test_unused_slots_are_no_reason_for_more() -> None:
    """Only a limit that is reached says anything about a higher one."""
    slots = Slots(10, floor=1, ceiling=100)
    slots.used = 5
    for _ in range(1000):
        slots.succeeded()
    assert slots.total == 10


def test_an_overload_takes_three_tenths_once_a_second() -> None:
    """Many answers of one moment are one overload."""
    slots = Slots(100, floor=1, ceiling=100)
    for moment in (0.0, 0.1, 0.9):
        slots.overloaded(now=moment)
        assert slots.total == 70
    slots.overloaded(now=1.0)
    assert slots.total == 49


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(1, 100),
    st.lists(st.booleans() | st.integers(0, 100), max_size=200),
)
def test_they_stay_within_their_bounds(one: int, other: int, start: int, answers: list[bool | int]) -> None:
    """Never below the floor, never above the ceiling, and free means fewer used than there are."""
    floor, ceiling = sorted((one, other))
    slots, now = Slots(start, floor=floor, ceiling=ceiling), 0.0
    for answer in answers:
        now += 0.5
        if answer is True:
            slots.succeeded()
        elif answer is False:
            slots.overloaded(now=now)
        else:
            slots.used = answer
        assert floor <= slots.total <= ceiling
        assert slots.free is (slots.used < slots.total)


def test_a_start_beyond_its_bounds_is_moved_into_them() -> None:
    """To the nearer one."""
    assert Slots(100, floor=1, ceiling=10).total == 10
    assert Slots(1, floor=5, ceiling=10).total == 5
    assert pytest.approx(Slots(7, floor=5, ceiling=10)._exact) == 7
