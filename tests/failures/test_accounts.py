"""A key, or its organization, is refused: who is told, and who does the work."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest
from _scripted_server import OK, Arrived, answer, error, serving

from penstock import Client, NoKeyAvailable, RetryOptions
from penstock._core.context import Pin, pinned
from penstock._core.failure import Failure, FailureKind
from penstock._core.secret import key_name
from penstock.guards.retry.course import Again, Course, Stop

if TYPE_CHECKING:
    from penstock.events import Event

pytestmark = pytest.mark.anyio

ASK: dict[str, Any] = {
    "model": "claude-haiku-5-5",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hello"}],
}
BROKE, WELL = "sk-ant-api03-broke", "sk-ant-api03-well"
KEYS = (BROKE, WELL)
CREDIT = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade."
USAGE = "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."
DISABLED = "This organization has been disabled."
SPENT = "This request would exceed your account's monthly spend limit. Please try again later."

WAYS = {
    "401": error(401, "authentication_error", "invalid x-api-key"),
    "401, told to retry": error(401, "authentication_error", "invalid x-api-key", x_should_retry="true"),
    "400: no credit": error(400, "invalid_request_error", CREDIT),
    "400: usage limits": error(400, "invalid_request_error", USAGE),
    "400: disabled": error(400, "invalid_request_error", DISABLED),
    "402": error(402, "billing_error", "Your payment method was declined."),
    "403: not permitted": error(403, "permission_error", "Your API key does not have permission to use this resource."),
    "403: disabled": error(403, "permission_error", DISABLED),
    "429: spend limit": error(429, "rate_limit_error", SPENT),
    "429: spend limit by code": error(429, "rate_limit_error", code="enforced_spend_limit_reached"),
    "400: on hold": error(400, "invalid_request_error", code="organization_on_hold"),
    "400: no credit, told to retry": error(400, "invalid_request_error", CREDIT, x_should_retry="true"),
    "402, told not to retry": error(402, "billing_error", x_should_retry="false"),
}


def broken(way: bytes) -> Any:
    """A script by which one key is broken."""
    return lambda request: way if request.key == BROKE else OK


@pytest.mark.lengthy
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_with_one_key_of_two_broken_no_call_is_lost(way: bytes) -> None:
    """Of 100 calls at once and 20 one by one, each is answered; the broken key is left alone once that is known."""
    async with serving(broken(way)) as server, Client(api_keys=KEYS, base_url=server.url, log=False) as claude:
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(lambda: claude.messages.create(**ASK))
        asked = server.keys[BROKE]
        for _ in range(20):
            await claude.messages.create(**ASK)
        statistics = claude.statistics()
    assert server.keys[WELL] == 120
    assert asked <= 60
    if b"does not have permission" not in way:
        assert server.keys[BROKE] == asked
        assert [key.state for key in statistics.admission.keys] == ["quarantined", "ok"]
    # Another key is no retry, and a refused key is not the service's failure.
    assert statistics.retry.quota == statistics.retry.capacity
    assert statistics.breaker.classes["haiku-5-5"].failures == 0


@pytest.mark.lengthy
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_with_none_left_one_clear_error_says_whose_account(way: bytes) -> None:
    """The API's own, with a note; what comes after is refused here, and names each key and why, but no key itself."""
    forbidden = b"does not have permission" in way
    async with serving(way) as server, Client(api_keys=KEYS, base_url=server.url, log=False) as claude:
        with pytest.raises(anthropic.APIStatusError) as raised:
            await claude.messages.create(**ASK)
        assert len(server.arrived) == 2
        if forbidden:
            # Whatever the key is: then it is the request, or both.
            assert [key.state for key in claude.statistics().admission.keys] == ["ok", "ok"]
            return
        note = " ".join(raised.value.__notes__)
        assert key_name(server.arrived[1].key) in note
        assert "no other key is left" in note
        with pytest.raises(NoKeyAvailable) as refused:
            await claude.messages.create(**ASK)
        assert len(server.arrived) == 2
    told = str(refused.value)
    assert all(key_name(key) in told and key not in told for key in (BROKE, WELL))


async def test_all_keys_of_a_broken_organization_rest() -> None:
    """What speaks of the organization speaks of its other key as well, which therefore isn't tried."""

    def script(request: Arrived) -> bytes:
        organization = "well" if request.key == WELL else "broke"
        headers = {"anthropic_organization_id": organization}
        if organization == "broke" and len(server.arrived) > 3:
            return error(400, "invalid_request_error", CREDIT, **headers)
        return OK.replace(b"\r\n\r\n", f"\r\nanthropic-organization-id: {organization}\r\n\r\n".encode(), 1)

    other = BROKE + "2"
    async with serving(script) as server:
        keys = (BROKE, other, WELL)
        async with Client(api_keys=keys, balance="round_robin", base_url=server.url, log=False) as claude:
            for _ in range(8):
                await claude.messages.create(**ASK)
            states = [key.state for key in claude.statistics().admission.keys]
    assert states == ["quarantined", "quarantined", "ok"]
    assert server.keys == {BROKE: 2, other: 1, WELL: 6}


async def test_nobodys_words_speak_for_the_account() -> None:
    """A 400 may repeat what it was sent: behind a colon or a quotation mark, nothing is believed."""
    said = "credit balance is too low"
    ways = [f"tools.0.name: {said}", f"Unknown tool `{said}`", f'Unknown tool "{said}"', f"Unknown tool '{said}'"]
    for way in ways:
        quoting = serving(error(400, "invalid_request_error", way))
        async with quoting as server, Client(api_keys=KEYS, base_url=server.url, log=False) as claude:
            with pytest.raises(anthropic.BadRequestError):
                await claude.messages.create(**ASK)
            assert [key.state for key in claude.statistics().admission.keys] == ["ok", "ok"]
        assert len(server.arrived) == 1, way


async def test_a_customers_account_is_not_ours() -> None:
    """Where a user profile pays, its refusal concerns this request alone: no other key is tried, and none rests."""
    way = error(402, "billing_error", code="linked_organization_spend_limit_reached")
    async with serving(way) as server, Client(api_keys=KEYS, base_url=server.url, log=False) as claude:
        with pytest.raises(anthropic.APIStatusError):
            await claude.messages.create(**ASK)
        assert [key.state for key in claude.statistics().admission.keys] == ["ok", "ok"]
    assert len(server.arrived) == 1


async def test_who_watches_is_told_once_why() -> None:
    """The event names the key, and says why; so does the log, which is made of it."""
    told: list[Event] = []
    async with (
        serving(broken(WAYS["400: no credit"])) as server,
        Client(
            api_keys=KEYS, balance="round_robin", base_url=server.url, log=False, observers=(told.append,)
        ) as claude,
    ):
        for _ in range(4):
            await claude.messages.create(**ASK)
    changed = [event for event in told if type(event).__name__ == "KeyChanged"]
    assert [(each.key, each.state, each.reason) for each in changed] == [  # type: ignore[attr-defined]
        (key_name(BROKE), "quarantined", "credit balance is too low, 400")
    ]


async def test_an_endpoint_that_is_about_no_message_finds_the_other_key_too() -> None:
    """Models are listed with the key that works."""
    models = answer(200, {"data": [], "has_more": False, "first_id": None, "last_id": None})
    site = serving(lambda request: WAYS["402"] if request.key == BROKE else models)
    async with site as server, Client(api_keys=KEYS, base_url=server.url, log=False) as claude:
        assert (await claude.models.list()).data == []
        assert (await claude.models.list()).data == []
    assert server.keys == {BROKE: 1, WELL: 2}


async def test_what_is_pinned_to_a_broken_organization_is_told_and_goes_nowhere_else() -> None:
    """Another organization does not know its batches: no key is left for it, though another may be used."""

    def script(request: Arrived) -> bytes:
        if request.key == BROKE and len(server.arrived) > 1:
            return WAYS["402"]
        return models.replace(b"\r\n\r\n", f"\r\nanthropic-organization-id: {request.key}\r\n\r\n".encode(), 1)

    models = answer(200, {"data": [], "has_more": False, "first_id": None, "last_id": None})
    pin = Pin()
    async with serving(script) as server, Client(api_keys=KEYS, base_url=server.url, log=False) as claude:
        with pinned(pin):
            await claude.models.list()
            with pytest.raises(anthropic.APIStatusError) as raised:
                await claude.models.list()
        assert "no other key is left" in " ".join(raised.value.__notes__)
    assert server.keys == {BROKE: 2}


def test_however_often_another_is_to_serve_there_is_an_end() -> None:
    """Whatever goes wrong, nothing is sent for ever."""
    course = Course(RetryOptions(), random.Random(1), max_attempts=2)
    failure = Failure(kind=FailureKind.REQUEST, status=402, elsewhere=True)
    steps = [course.after(failure, None, now=0.0) for _ in range(103)]
    assert steps[:100] == [Again(0.0, free=True)] * 100
    assert isinstance(steps[101], Stop)
