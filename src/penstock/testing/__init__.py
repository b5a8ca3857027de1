"""What tests of code on top of penstock need: virtual time, cancellation at every await, scripted answers, fixtures.

The fixtures are those of `penstock.testing.plugin`, which pytest finds by itself.
"""

from penstock.testing.cancellation import Cancelled, cancel_at_every_await
from penstock.testing.scripted import ScriptedTransport
from penstock.testing.virtual import Deadlock, VirtualLoop

__all__ = ["Cancelled", "Deadlock", "ScriptedTransport", "VirtualLoop", "cancel_at_every_await"]
