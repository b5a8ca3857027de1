"""The guard that tries again.

`guard` runs the attempts of a call, `course` says whether and when the next one follows, `quota` bounds what all calls
together may spend on retries, `outcome` closes a failed attempt or gives its error to the caller.
"""

from penstock.guards.retry.course import RetryOptions
from penstock.guards.retry.guard import Retry, RetryStatistics

__all__ = ["Retry", "RetryOptions", "RetryStatistics"]
