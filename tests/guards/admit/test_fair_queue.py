from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.guards.admit.fair_queue import Entry, FairQueue, Place


def served(queue: FairQueue[str, str], count: int) -> list[str]:
    """The next so many items."""
    return [queue.pop().flow.name for _ in range(count)]  # type: ignore[union-attr]


def backlog(queue: FairQueue[str, str], flow: str, count: int, *, weight: float = 1, cost: float = 1) -> None:
    """Put many items of one flow."""
    for number in range(count):
        queue.push(f"{flow}{number}", flow=flow, weight=weight, cost=cost)


def test_flows_are_served_by_weight() -> None:
    """Of two backlogs, the one of weight 3 gets three of four."""
    queue = FairQueue[str, str]()
    backlog(queue, "a", 300, weight=3)
    backlog(queue, "b", 300)
    assert Counter(served(queue, 200)) == {"a": pytest.approx(150, abs=2), "b": pytest.approx(50, abs=2)}


def test_flows_are_served_by_cost() -> None:
    """Whoever asks for ten times as much each time is served a tenth as often."""
    queue = FairQueue[str, str]()
    backlog(queue, "large", 300, cost=1000)
    backlog(queue, "small", 300, cost=100)
    assert Counter(served(queue, 220))["large"] == pytest.approx(20, abs=2)


def test_a_newcomer_waits_for_no_backlog() -> None:
    """However long another's line is, the first of a new flow is served with the next or the one after it."""
    queue = FairQueue[str, str]()
    backlog(queue, "batch", 10_000)
    served(queue, 100)
    queue.push("urgent", flow="interactive", weight=16, cost=1)
    assert "interactive" in served(queue, 2)


def test_who_was_idle_has_saved_nothing_up() -> None:
    """A flow that comes back after a pause gets its share from now on, not what it has missed."""
    queue = FairQueue[str, str]()
    backlog(queue, "a", 400)
    backlog(queue, "b", 1)
    served(queue, 200)
    backlog(queue, "b", 100)
    assert Counter(served(queue, 100))["b"] == pytest.approx(50, abs=1)


def test_who_has_left_is_passed_over() -> None:
    """One that was put back to its place and leaves, twice even, is never served, and nobody is served in its stead."""
    queue = FairQueue[str, str]()
    with pytest.raises(IndexError, match="nothing waits"):
        queue.pop()
    backlog(queue, "a", 2)
    place = queue.pop().place
    assert place is not None
    again = queue.put_back("again", place)
    for _ in range(2):
        queue.leave(again)
        assert len(queue) == 1
    assert served(queue, 1) == ["a"]


def test_who_comes_back_before_it_is_forgotten_keeps_its_debt() -> None:
    """A flow that was idle for a moment waits for what it was served before, and is not forgotten while it waits."""
    queue = FairQueue[str, str]()
    backlog(queue, "dear", 1, cost=50)
    backlog(queue, "b", 100)
    while queue.pop().flow.name != "dear":  # type: ignore[union-attr]
        pass
    backlog(queue, "dear", 1, cost=50)
    assert served(queue, 60).count("dear") == 1


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 20), st.integers(1, 50)), min_size=2),
    st.integers(min_value=1, max_value=200),
)
def test_backlogs_never_differ_by_more_than_one_item_each(flows: dict[str, tuple[int, int]], count: int) -> None:
    """The bound of the paper: service by weight of two backlogs differs by their largest items' at most."""
    queue = FairQueue[str, str]()
    for name, (weight, cost) in flows.items():
        backlog(queue, name, count, weight=weight, cost=cost)
    work = Counter(served(queue, count))
    largest = {name: cost / weight for name, (weight, cost) in flows.items()}
    for one in flows:
        for other in flows:
            difference = abs(work[one] * largest[one] - work[other] * largest[other])
            assert difference <= largest[one] + largest[other] + 1e-9


def test_put_back_an_item_stands_where_it_stood() -> None:
    """Before all that came after it, and among several by their places."""
    queue = FairQueue[str, str]()
    backlog(queue, "a", 5)
    first, second = queue.pop(), queue.pop()
    assert first.place is not None
    assert second.place is not None
    queue.put_back("second again", second.place)
    queue.put_back("first again", first.place)
    assert [entry.item for entry in (queue.first(),) if entry is not None] == ["first again"]
    queue.pop()
    assert queue.first().item == "second again"  # type: ignore[union-attr]


def test_who_passed_by_has_a_place_too() -> None:
    """One that was served without waiting goes before those who came later."""
    queue = FairQueue[str, str]()
    place = queue.pass_by()
    queue.push("later", flow="a", weight=1, cost=1)
    queue.put_back("earlier", place)
    assert queue.first().item == "earlier"  # type: ignore[union-attr]


def test_a_place_of_another_queue_is_as_good_as_any() -> None:
    """A request that changed its model brings the place of another line, which may equal one here."""
    queue = FairQueue[str, str]()
    for number in range(3):
        queue.push(str(number), flow=str(number), weight=1, cost=1)
    for number in (0, 1, 2, 1):
        queue.put_back(f"other {number}", Place(0.0, number))
    assert len([queue.pop() for _ in range(7)]) == 7


def test_nothing_waits_in_an_empty_queue() -> None:
    """It has no first, and nothing to serve."""
    queue = FairQueue[str, str]()
    assert queue.first() is None
    with pytest.raises(IndexError, match="nothing waits"):
        queue.pop()
    assert repr(queue) == "<FairQueue 0 waiting, 0 flows>"


@pytest.mark.lengthy
def test_flows_that_owe_nothing_are_forgotten() -> None:
    """Names come from callers: ten thousand tenants that came and went take no memory."""
    queue = FairQueue[str, str]()
    backlog(queue, "steady", 30_000)
    for number in range(10_000):
        queue.push("once", flow=f"tenant {number}", weight=1, cost=1)
        served(queue, 2)
    assert len(queue._flows) < 10
    assert len(queue._idle) < 10


def test_items_that_left_take_no_memory() -> None:
    """Those in the middle of a long line too."""
    queue = FairQueue[str, str]()
    queue.push("stays", flow="a", weight=1, cost=1)
    for _ in range(10_000):
        queue.leave(queue.push("leaves", flow="a", weight=1, cost=1))
    assert len(queue._flows["a"].entries) < 100
    assert queue.lengths() == {"a": 1}


class FairQueueMachine(RuleBasedStateMachine):
    """Items come, are served, leave and come back, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue[str, int]()
        self.waiting = dict[int, Entry[str, int]]()
        self.back = dict[int, Place]()
        self.places = list[Place]()
        self.count = 0
        self.last = defaultdict[str, int](lambda: -1)

    @rule(flow=st.sampled_from("abc"), weight=st.sampled_from([1, 4, 16]), cost=st.integers(1, 1000))
    def push(self, flow: str, weight: int, cost: int) -> None:
        self.waiting[self.count] = self.queue.push(self.count, flow=flow, weight=weight, cost=cost)
        self.count += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.waiting)))
        entry = self.waiting.pop(number)
        self.back.pop(number, None)
        self.queue.leave(entry)
        self.queue.leave(entry)

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        place = self.places.pop(data.draw(st.integers(0, len(self.places) - 1)))
        self.waiting[self.count] = self.queue.put_back(self.count, place)
        self.back[self.count] = place
        self.count += 1

    @rule()
    def pass_by(self) -> None:
        if not self.waiting:
            self.places.append(self.queue.pass_by())

    @precondition(lambda self: self.waiting)
    @rule()
    def pop(self) -> None:
        first = self.queue.first()
        assert first is not None
        number = first.item
        assert number is not None
        entry = self.queue.pop()
        assert entry is first is self.waiting.pop(number)
        assert entry.place is not None
        self.places.append(entry.place)
        if number in self.back:
            place = self.back.pop(number)
            assert all(place <= other for other in self.back.values()), "another had a place before it"
        else:
            assert not self.back, "one that came back was overtaken"
            assert entry.flow is not None
            assert number > self.last[entry.flow.name], "a flow is first in, first out"
            self.last[entry.flow.name] = number

    @invariant()
    def counts_what_waits(self) -> None:
        assert len(self.queue) == len(self.waiting)
        fresh = Counter(e.flow.name for e in self.waiting.values() if e.flow is not None)
        assert self.queue.lengths() == fresh
        assert (self.queue.first() is None) is (not self.waiting)


TestFairQueue = pytest.mark.slow(FairQueueMachine.TestCase)
TestFairQueue.settings = settings(max_examples=100, stateful_step_count=60)
