"""What tests of code on top of penstock need: virtual time, cancellation at every await, scripted answers, fixtures.

The fixtures are those of `penstock.testing.plugin`, which pytest finds by itself. It does so wherever penstock is
installed, and comes by this package: so each name is loaded when it is asked for, or all would wait for the SDK.
"""

from typing import TYPE_CHECKING

__all__ = ["Cancelled", "Deadlock", "ScriptedTransport", "VirtualLoop", "cancel_at_every_await"]

if TYPE_CHECKING:
    from penstock.testing.cancellation import Cancelled, cancel_at_every_await
    from penstock.testing.scripted import ScriptedTransport
    from penstock.testing.virtual import Deadlock, VirtualLoop
else:
    from importlib import import_module

    def __getattr__(name: str) -> object:
        homes = {"ScriptedTransport": "scripted", "Deadlock": "virtual", "VirtualLoop": "virtual"}
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{homes.get(name, 'cancellation')}"), name)
        globals()[name] = value
        return value
