"""What tests of code on top of penstock need: virtual time here, pytest fixtures in `penstock.testing.plugin`."""

from penstock.testing.virtual import Deadlock, VirtualLoop

__all__ = ["Deadlock", "VirtualLoop"]
