"""What can be said about admission.

The rule here: frozen, checked when made; every option has a default that works without any configuration.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from penstock._core.options import Options
from penstock.guards.admit.keys import Balance
from penstock.guards.admit.limits import Limits, QuotaScope

__all__ = ["PRIORITY_WEIGHTS", "AdmitOptions"]

PRIORITY_WEIGHTS: Final = {"interactive": 16.0, "default": 4.0, "batch": 1.0}


class AdmitOptions(Options):
    """How requests are admitted.

    Args:
        limits: Limits per minute for each quota and model class, for all models or by model pattern
            (`{"claude-haiku-*": Limits(…)}`, the first match holds); what is left out is learned from the answers.
        concurrency: Requests under way at once, 1 or more; or `"adaptive"`: between `min_concurrency` and
            `max_concurrency`, one more for each round of successes, three tenths fewer after an overload or a time-out.
        min_concurrency: Floor of `"adaptive"`, 1 or more.
        max_concurrency: Ceiling of `"adaptive"`, 1 or more.
        max_queued: The most that may wait; `None` for no bound.
        queue_timeout_s: Seconds that a request may wait; `None` for no bound but the call's deadline.
        balance: How a key is chosen: `"headroom"` (the quota with the most left), `"least_loaded"`, `"round_robin"` or
            `"random"`.
        key_weights: Shares of keys by name (`key-…`), more than 0; 1 where none is given.
        quota_scope: What shares a quota: a `"workspace"`, an `"organization"`, or nothing but each `"key"` itself.
        fair_by: The label that names the tenant of fairness; where it isn't set, the request's `metadata.user_id` does.
        tenant_weights: Shares of tenants, more than 0; 1 where none is given.
        priority_weights: Shares of priorities, more than 0.
    """

    limits: Limits | dict[str, Limits] | None = None
    concurrency: int | Literal["adaptive"] = Field(default=64)
    min_concurrency: int = Field(default=4, ge=1)
    max_concurrency: int = Field(default=512, ge=1)
    max_queued: int | None = Field(default=None, ge=0)
    queue_timeout_s: float | None = Field(default=None, gt=0)
    balance: Balance = "headroom"
    key_weights: dict[str, float] = Field(default_factory=dict)
    quota_scope: QuotaScope = "workspace"
    fair_by: str = Field(default="user", min_length=1)
    tenant_weights: dict[str, float] = Field(default_factory=dict)
    priority_weights: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> AdmitOptions:
        if isinstance(self.concurrency, int) and self.concurrency < 1:
            raise ValueError(f"concurrency must be 1 or more, or 'adaptive', not {self.concurrency}")
        if self.min_concurrency > self.max_concurrency:
            raise ValueError("min_concurrency must not be above max_concurrency")
        for name in ("key_weights", "tenant_weights", "priority_weights"):
            if any(not weight > 0 for weight in getattr(self, name).values()):
                raise ValueError(f"{name} must all be above 0")
        if unknown := self.priority_weights.keys() - PRIORITY_WEIGHTS.keys():
            raise ValueError(f"priority_weights knows {', '.join(PRIORITY_WEIGHTS)}, not {', '.join(sorted(unknown))}")
        return self

    @property
    def most_at_once(self) -> int:
        """The most requests that can ever be under way at once."""
        return self.concurrency if isinstance(self.concurrency, int) else self.max_concurrency
