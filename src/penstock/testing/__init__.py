"""What tests of code on top of penstock need: virtual time, cancellation at every await, pytest fixtures (`plugin`)."""

from penstock.testing.cancellation import Cancelled, cancel_at_every_await
from penstock.testing.virtual import Deadlock, VirtualLoop

__all__ = ["Cancelled", "Deadlock", "VirtualLoop", "cancel_at_every_await"]
