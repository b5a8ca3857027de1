from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.guards.admit.quarantine import Quarantine


def test_nothing_is_quarantined_at_first() -> None:
    """It may be used, and using it is no probe."""
    quarantine = Quarantine()
    assert not quarantine.active
    assert quarantine.may_use(now=0)
    assert quarantine.probe() is False
    assert quarantine.again_in_s(now=0) == 0.0


def test_the_first_probe_comes_after_a_minute() -> None:
    """Until then nothing may use it."""
    quarantine = Quarantine()
    quarantine.begin(now=10)
    assert quarantine.active
    assert not quarantine.may_use(now=69.9)
    assert quarantine.again_in_s(now=20) == 50
    assert quarantine.may_use(now=70)
    assert quarantine.again_in_s(now=80) == 0.0


def test_failed_probes_double_the_wait_up_to_an_hour() -> None:
    """60 s, 120 s, 240 s, … 3,600 s, and no more."""
    quarantine, now, waits = Quarantine(), 0.0, list[float]()
    quarantine.begin(now=now)
    for _ in range(9):
        waits.append(quarantine.again_in_s(now=now))
        now += waits[-1]
        assert quarantine.probe()
        quarantine.begin(now=now)
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def test_only_one_request_at_a_time_probes() -> None:
    """While one does, nobody else may; when it told nothing, the next may at once."""
    quarantine = Quarantine()
    quarantine.begin(now=0)
    assert quarantine.probe()
    assert not quarantine.may_use(now=1000)
    assert quarantine.again_in_s(now=1000) == 60
    quarantine.probe_told_nothing(now=1000)
    assert quarantine.may_use(now=1000)


def test_a_late_failure_changes_nothing() -> None:
    """The answer to what was sent before the quarantine began is no probe's."""
    quarantine = Quarantine()
    quarantine.begin(now=0)
    quarantine.begin(now=30)
    assert quarantine.until == 60
    quarantine.probe_told_nothing(now=30)
    assert quarantine.until == 60


def test_a_success_ends_it_and_the_next_begins_anew() -> None:
    """After a probe that worked, a later failure waits a minute again."""
    quarantine = Quarantine()
    quarantine.begin(now=0)
    quarantine.probe()
    quarantine.begin(now=60)
    quarantine.end()
    assert not quarantine.active
    quarantine.begin(now=1000)
    assert quarantine.until == 1060
    assert repr(quarantine) == "<Quarantine until=1060.0 probing=False>"


class QuarantineMachine(RuleBasedStateMachine):
    """Requests come when they may, and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.quarantine = Quarantine()
        self.now = 0.0
        self.probes = 0

    @rule(seconds=st.floats(min_value=0, max_value=4000))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def request(self) -> None:
        if self.quarantine.may_use(now=self.now):
            self.probes += self.quarantine.probe()

    @rule()
    def late_failure(self) -> None:
        if not self.probes:
            self.quarantine.begin(now=self.now)

    @precondition(lambda self: self.probes)
    @rule(outcome=st.sampled_from(["failed", "worked", "nothing"]))
    def probe_ends(self, outcome: str) -> None:
        self.probes -= 1
        if outcome == "failed":
            self.quarantine.begin(now=self.now)
        elif outcome == "worked":
            self.quarantine.end()
        self.quarantine.probe_told_nothing(now=self.now)

    @invariant()
    def one_probe_at_a_time(self) -> None:
        assert self.probes <= 1

    @invariant()
    def it_opens_again(self) -> None:
        wait = self.quarantine.again_in_s(now=self.now)
        assert 0 <= wait <= 3600
        if not self.probes:
            # A rounding error later, at most.
            assert self.quarantine.may_use(now=self.now + wait + 1e-6)


TestQuarantine = pytest.mark.lengthy(QuarantineMachine.TestCase)
TestQuarantine.settings = settings(max_examples=50)
