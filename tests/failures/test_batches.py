"""A message batch is submitted with another key where the first one's organization is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest
from _message_batches import BATCHES, between, check_all, kind_of, prompts, ran

from penstock import Client, RetryOptions
from penstock.simulator import BatchOptions, Simulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from penstock.testing.plugin import VirtualTime

pytestmark = pytest.mark.anyio

CREDIT = "Your credit balance is too low to access the Anthropic API."
REFUSAL = {"type": "error", "error": {"type": "invalid_request_error", "message": CREDIT}}


def site(simulator: Simulator, broke: set[str], made: list[str]) -> Client:
    """A client whose submissions are refused with some keys; they may still list what they have."""

    async def refuse(
        request: httpx2.Request, call: Callable[[httpx2.Request], Awaitable[httpx2.Response]]
    ) -> httpx2.Response:
        key = request.headers["authorization"].removeprefix("Bearer ")
        if kind_of(request) != "make":
            return await call(request)
        made.append(key)
        if key not in broke:
            return await call(request)
        return httpx2.Response(400, json=REFUSAL, headers={"anthropic-organization-id": f"org of {key}"})

    http_client = httpx2.AsyncClient(transport=between(simulator, refuse))
    sdk = anthropic.AsyncAnthropic(api_key="sk-none", http_client=http_client, max_retries=0)
    return Client(sdk=sdk, api_keys=("sk-a", "sk-b"), log=False, retry=RetryOptions(base_s=0.001))


async def test_a_batch_of_a_broken_organization_is_made_by_another(virtual_time: VirtualTime) -> None:
    """What was refused was not made, and all are answered; the next batch goes there at once."""
    made: list[str] = []
    simulator = Simulator(keys={"sk-a": "org of sk-a", "sk-b": "org of sk-b"}, batch=BatchOptions(duration_s=10))
    async with site(simulator, {"sk-a"}, made) as claude:
        options: dict[str, Any] = {"batch_size": 3}
        check_all(await ran(claude, prompts(6), **options), 6)
    assert made == ["sk-a", "sk-b", "sk-b"]
    assert {entry.key for entry in simulator.journal if entry.path == BATCHES and entry.method == "POST"} == {"sk-b"}


async def test_with_no_organization_left_the_run_ends(virtual_time: VirtualTime) -> None:
    """With the API's own words."""
    made: list[str] = []
    simulator = Simulator(keys={"sk-a": "org of sk-a", "sk-b": "org of sk-b"}, batch=BatchOptions(duration_s=10))
    async with site(simulator, {"sk-a", "sk-b"}, made) as claude:
        with pytest.raises(anthropic.BadRequestError, match="credit balance"):
            await ran(claude, prompts(3))
    assert made[:2] == ["sk-a", "sk-b"]
    assert len(made) <= 3
