"""The guard that looks at what users, tools and documents put into a request.

`guard` finds the texts and acts on them, `rules` says what is looked for, `texts` knows where a request has texts.
"""

from penstock.guards.sanitize.guard import SUSPICIOUS, Sanitize, SanitizeOptions, SanitizeStatistics
from penstock.guards.sanitize.rules import Finding

__all__ = ["SUSPICIOUS", "Finding", "Sanitize", "SanitizeOptions", "SanitizeStatistics"]
