"""What others get to see of a client at work: logs, and in time metrics and traces.

Guards report small frozen events (`penstock.events`) and know nothing of formats; only what lives here knows
structlog, Prometheus or OpenTelemetry. Nothing of it is imported unless it is asked for.
"""

from __future__ import annotations
