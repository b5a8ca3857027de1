"""A faithful local Messages API, to develop and test against: quotas, faults, pace, validation, streaming.

Everything is decided in `decide`, synchronously; `transport` (in process, for tests) and `server` (a real one,
`python -m penstock.simulator`) only wait and send. It imports nothing of the rest of penstock, so that it can
disagree with it.
"""

from penstock.simulator.batches import BatchOptions
from penstock.simulator.core import Simulator
from penstock.simulator.faults import FAULTS, MIXED_FAULTS
from penstock.simulator.journal import JournalEntry
from penstock.simulator.limits import BucketLevel, Limit, OrganizationState, QuotaState
from penstock.simulator.statistics import SimulatorStatistics

__all__ = [
    "FAULTS",
    "MIXED_FAULTS",
    "BatchOptions",
    "BucketLevel",
    "JournalEntry",
    "Limit",
    "OrganizationState",
    "QuotaState",
    "Simulator",
    "SimulatorStatistics",
]
