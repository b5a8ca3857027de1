from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import pytest

from penstock import events
from penstock.events import BackgroundFailed, Event, Observers

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT = BackgroundFailed(error_type="OSError")


def test_every_observer_hears_every_event_in_order() -> None:
    """Observers are called at once, in the order given."""
    heard: list[tuple[str, Event]] = []

    def observer(name: str) -> Callable[[Event], None]:
        return lambda event: heard.append((name, event))

    Observers((observer("a"), observer("b"))).emit(EVENT)
    assert heard == [("a", EVENT), ("b", EVENT)]


def test_an_observer_that_raises_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged by name only, because its text may hold content, and the next observer is called."""
    heard: list[Event] = []

    def broken(_event: Event) -> None:
        raise ValueError("the prompt was: secret")

    with caplog.at_level(logging.ERROR, logger="penstock"):
        Observers((broken, heard.append)).emit(EVENT)
    assert heard == [EVENT]
    assert caplog.messages == ["observer raised ValueError on BackgroundFailed"]
    assert "secret" not in caplog.text


def test_a_cancellation_in_an_observer_is_not_swallowed() -> None:
    """Only errors are caught: what ends a program must get through."""

    def interrupted(_event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Observers((interrupted,)).emit(EVENT)


def test_observers_tell_how_many_they_are() -> None:
    """Without observers it is falsy, so that nobody builds events for nobody."""
    assert not Observers()
    assert Observers((print,))
    assert repr(Observers((print, print))) == "<Observers 2>"


@pytest.mark.parametrize("name", [name for name in events.__all__ if name not in {"Event", "Observer", "Observers"}])
def test_events_are_frozen_and_slotted(name: str) -> None:
    """An event is a value: it can't be changed, and has no room for more than it declares."""
    kind = getattr(events, name)
    assert issubclass(kind, Event)
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)
    assert all(field.kw_only for field in dataclasses.fields(kind))
