"""The simulated API as it lasts from request to request: options, script, cache, batches, and who its users are."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.simulator.cache import PromptCache
from penstock.simulator.limits import CountQuota, Organization

if TYPE_CHECKING:
    from penstock.simulator.batches import Batches
    from penstock.simulator.clock import Clock
    from penstock.simulator.faults import Faults
    from penstock.simulator.limits import Limits
    from penstock.simulator.reply import Manner
    from penstock.simulator.respond import Pace
    from penstock.simulator.script import Script

__all__ = ["Api"]


@dataclass(kw_only=True, slots=True)
class Api:
    """Everything that answers depend on, apart from the request.

    Attributes:
        keys: API key to organization id; None: every key is its own organization.
        organizations: by id, made when first seen.
    """

    limits: Limits
    keys: dict[str, str] | None = field(repr=False)
    faults: Faults
    seed: int
    pace: Pace
    manner: Manner
    keep_bodies: bool
    clock: Clock
    script: Script
    batches: Batches
    cache: PromptCache = field(default_factory=PromptCache)
    organizations: dict[str, Organization] = field(default_factory=dict[str, Organization])

    def organization_id(self, key: str) -> str:
        """Whose key it is; raises `ValueError` where it is nobody's."""
        if self.keys is None:
            return str(uuid.UUID(bytes=hashlib.blake2b(key.encode(), digest_size=16).digest(), version=4))
        if key not in self.keys:
            raise ValueError("this key belongs to no organization")
        return self.keys[key]

    def organization(self, identity: str, now: float) -> Organization:
        """The organization called `identity`."""
        found = self.organizations.get(identity)
        if found is None:
            counting = CountQuota(identity, self.limits, now)
            found = Organization(id=identity, limits=self.limits, counting=counting)
            self.organizations[identity] = found
        return found
