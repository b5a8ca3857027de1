"""The guard that says who may send next, with which key: the waiting line, the limits it spends from, and the keys.

`guard` takes and settles, `fair_queue` says who is next, `line` lets them in. `limits` says how much there is, `bucket`
counts it, `quota` keeps the buckets of an organization and `ramp` bounds its growth. `keys` is the pool of keys and
quotas, `quarantine` keeps some from use, `slots` bounds what runs at once. `estimate` guesses what a request will cost,
`feedback` learns from answers, `options` says what can be set, `statistics` shows it all.
"""

from penstock.guards.admit.guard import Admit
from penstock.guards.admit.limits import Limits
from penstock.guards.admit.options import AdmitOptions
from penstock.guards.admit.statistics import AdmitStatistics

__all__ = ["Admit", "AdmitOptions", "AdmitStatistics", "Limits"]
