from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest

from penstock import (
    AdmissionTimeout,
    CircuitOpen,
    Client,
    KeyNotFound,
    Limits,
    NoKeyAvailable,
    QueueFull,
    RequestExceedsQuota,
    RetryOptions,
    deadline,
)
from penstock.simulator import Simulator
from penstock.simulator.server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.testing.plugin import VirtualTime

ASK: Any = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hello there"}],
}
QUICK = RetryOptions(base_s=0.001)


@pytest.fixture
def server() -> Iterator[tuple[Simulator, str]]:
    """A simulator that knows two keys, behind a real socket."""
    simulator = Simulator(keys={"sk-good": "org-1", "sk-other": "org-2"})
    with serving(simulator) as url:
        yield simulator, url


def governed(simulator: Simulator, **options: Any) -> Client:
    """Make a client that governs an SDK client of the simulator's."""
    return Client(sdk=simulator.client(), **{"log": False, "retry": QUICK, **options})


async def nothing_left(claude: Client, simulator: Simulator) -> None:
    """Nothing is held by a call that failed."""
    with anyio.fail_after(5):
        # Over a socket, the server may hear of it a little later.
        while simulator.in_flight:  # noqa: ASYNC110 - nobody tells when
            await anyio.sleep(0.005)
    statistics = claude.statistics()
    assert statistics.admission.slots_used == 0
    assert statistics.admission.waiting == {}
    assert statistics.calls.in_flight == 0
    for quota in claude._chain.admit.pool.quotas.values():
        for allowance in quota.classes.values():
            assert allowance.in_flight == 0


async def fails(claude: Client, simulator: Simulator, error: type[Exception], *, stream: bool, **changes: Any) -> Any:
    """The call fails with this error, and the client serves the next one."""
    params = {**ASK, **changes}

    async def ask() -> None:
        if not stream:
            await claude.messages.create(**params)
            return
        async with claude.messages.stream(**params) as events:
            await events.get_final_message()

    with pytest.raises(error) as raised:
        await ask()
    await nothing_left(claude, simulator)
    return raised.value


BAD: dict[str, tuple[dict[str, Any], type[anthropic.APIStatusError], str]] = {
    "unknown model": ({"model": "claude-nonesuch"}, anthropic.NotFoundError, "claude-nonesuch"),
    "no messages": ({"messages": []}, anthropic.BadRequestError, "messages"),
    "messages that are a text": ({"messages": "Hello"}, anthropic.BadRequestError, "messages"),
    "a message without role": ({"messages": [{"content": "Hello"}]}, anthropic.BadRequestError, "role"),
    "an unknown role": ({"messages": [{"role": "boss", "content": "Hi"}]}, anthropic.BadRequestError, "role"),
    "a content of another type": ({"messages": [{"role": "user", "content": 7}]}, anthropic.BadRequestError, "content"),
    "an unknown block": (
        {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
        anthropic.BadRequestError,
        "smell",
    ),
    "max_tokens below 0": ({"max_tokens": -1}, anthropic.BadRequestError, "max_tokens"),
    "an unknown field": ({"extra_body": {"temprature": 1}}, anthropic.BadRequestError, "temprature"),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("case", BAD)
async def test_a_request_that_is_wrong_fails_once(simulator: Simulator, case: str, stream: bool) -> None:
    """The API's own error comes back, naming what is wrong; nothing is repeated, and the breaker doesn't mind."""
    changes, kind, named = BAD[case]
    async with governed(simulator) as claude:
        error = await fails(claude, simulator, kind, stream=stream, **changes)
        assert named in str(error)
        assert len(simulator.journal) == 1
        assert claude.statistics().retry.retries == 0
        await claude.messages.create(**ASK)


@pytest.mark.parametrize("missing", ["model", "max_tokens", "messages"])
async def test_what_the_sdk_refuses_itself_takes_nothing(simulator: Simulator, missing: str) -> None:
    """A call without a required argument is a `TypeError` of the SDK's, before any guard."""
    async with governed(simulator) as claude:
        with pytest.raises(TypeError, match=missing):
            await claude.messages.create(**{name: value for name, value in ASK.items() if name != missing})
        await nothing_left(claude, simulator)
        assert claude.statistics().calls.calls == 0


async def test_what_cannot_be_encoded_leaves_nothing(simulator: Simulator) -> None:
    """Values that are no JSON fail before they are sent, and hold nothing."""
    async with governed(simulator) as claude:
        for value in (object(), float("nan"), "\ud800"):
            with pytest.raises((TypeError, ValueError)):
                await claude.messages.create(**{**ASK, "messages": [{"role": "user", "content": value}]})
            await nothing_left(claude, simulator)
        assert simulator.journal == []
        await claude.messages.create(**ASK)


@pytest.mark.slow
async def test_a_body_over_32_mb_fails_once(simulator: Simulator) -> None:
    """It is one 413, not repeated, and neither slot nor quota stays taken."""
    async with governed(simulator) as claude:
        text = "word " * 7_000_000
        error = await fails(
            claude,
            simulator,
            anthropic.RequestTooLargeError,
            stream=False,
            messages=[{"role": "user", "content": text}],
        )
        assert error.status_code == 413
        assert len(simulator.journal) == 1
        await claude.messages.create(**ASK)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # aiohttp's advice to whoever calls it
@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_a_body_over_32_mb_fails_over_a_socket(server: tuple[Simulator, str], transport: Any) -> None:
    """The same over real sockets, where the answer may come before all is sent."""
    _, url = server
    async with Client(api_keys="sk-good", base_url=url, transport=transport, log=False, retry=QUICK) as claude:
        content = "word " * 7_000_000
        with pytest.raises(anthropic.APIStatusError) as raised:
            await claude.messages.create(**{**ASK, "messages": [{"role": "user", "content": content}]})
        assert raised.value.status_code == 413
        await claude.messages.create(**ASK)
        assert claude.statistics().admission.slots_used == 0


async def test_a_missing_key_is_told_on_entry() -> None:
    """Before anything else happens, with every place that was looked at."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ANTHROPIC_API_KEY", "PENSTOCK_API_KEYS"):
            patch.delenv(name, raising=False)
        with pytest.raises(KeyNotFound, match="ANTHROPIC_API_KEY"):
            await Client(log=False).__aenter__()


async def test_a_wrong_key_says_so_and_is_not_used_again(server: tuple[Simulator, str]) -> None:
    """The only key is refused: the 401 comes back with a note, and the next call fails without being sent."""
    simulator, url = server
    async with Client(api_keys="sk-wrong", base_url=url, log=False, retry=QUICK) as claude:
        error = await fails(claude, simulator, anthropic.AuthenticationError, stream=False)
        (note,) = error.__notes__
        assert "no other key" in note
        assert "sk-wrong" not in note
        assert claude.statistics().admission.keys[0].name in note
        refused = await fails(claude, simulator, NoKeyAvailable, stream=False)
        assert refused.retry_after_s == pytest.approx(60, abs=1)
        assert len(simulator.journal) == 1


async def test_a_wrong_key_among_others_goes_unnoticed(server: tuple[Simulator, str]) -> None:
    """The call is answered with another key, at once, and the wrong one is quarantined."""
    simulator, url = server
    async with Client(api_keys="sk-wrong,sk-good", base_url=url, log=False, retry=QUICK) as claude:
        for _ in range(4):
            await claude.messages.create(**ASK)
        states = [key.state for key in claude.statistics().admission.keys]
    assert states == ["quarantined", "ok"]
    assert sorted(entry.status or 0 for entry in simulator.journal) == [200, 200, 200, 200, 401]


async def test_a_key_that_works_again_is_used_again(virtual_time: VirtualTime) -> None:
    """A quarantined key is probed by one request after a minute, and taken back when that succeeds."""
    simulator = Simulator()
    simulator.inject("authentication")
    async with governed(simulator) as claude:
        await fails(claude, simulator, anthropic.AuthenticationError, stream=False)
        await anyio.sleep(61)
        await claude.messages.create(**ASK)
        assert [key.state for key in claude.statistics().admission.keys] == ["ok"]


async def test_no_permission_is_for_its_caller_only(simulator: Simulator) -> None:
    """A 403 says nothing of the key: the next call goes out."""
    simulator.inject("permission")
    async with governed(simulator) as claude:
        await fails(claude, simulator, anthropic.PermissionDeniedError, stream=False)
        await claude.messages.create(**ASK)


async def test_a_spend_limit_is_final(simulator: Simulator) -> None:
    """A 429 for a spend limit is not retried; the quota rests, and calls fail at once with when to try again."""
    simulator.inject("spend_cap")
    async with governed(simulator) as claude:
        error = await fails(claude, simulator, anthropic.RateLimitError, stream=False)
        assert "limit" in str(error)
        assert len(simulator.journal) == 1
        refused = await fails(claude, simulator, NoKeyAvailable, stream=False)
        assert "spend limit" in str(refused)


@pytest.mark.parametrize(
    ("fault", "stream"),
    [("stall_before_headers", False), ("stall_before_headers", True), ("stall", False), ("pings_only", False)],
)
async def test_a_server_that_never_answers_is_given_up(
    simulator: Simulator, fault: str, stream: bool, virtual_time: VirtualTime
) -> None:
    """The deadline ends the call, whether nothing comes, half an answer, or pings for ever."""
    simulator.inject(fault, times=20)
    async with governed(simulator) as claude:
        with deadline(30):
            error = await fails(claude, simulator, anthropic.APITimeoutError, stream=stream)
        assert virtual_time.now() == pytest.approx(30, abs=0.1)
        assert "deadline of 30 s" in " ".join(getattr(error, "__notes__", ()))


async def test_a_server_that_never_answers_is_asked_again(simulator: Simulator, virtual_time: VirtualTime) -> None:
    """With a time limit for each attempt, the next attempt can succeed."""
    simulator.inject("stall_before_headers", times=2)
    async with Client(sdk=simulator.client(timeout=5), log=False) as claude:
        await claude.messages.create(**ASK)
        assert 10 < virtual_time.now() < 13
        assert claude.statistics().retry.retries == 2
        await nothing_left(claude, simulator)


@pytest.mark.lengthy
@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_nobody_listening_is_a_connection_error(transport: Any) -> None:
    """A refused connection is retried, and then told with how often it was tried."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    async with Client(api_keys="sk-1", base_url=url, transport=transport, log=False, retry=QUICK) as claude:
        with pytest.raises(anthropic.APIConnectionError) as raised:
            await claude.messages.create(**ASK)
        assert any("4 attempts" in note for note in raised.value.__notes__)
        statistics = claude.statistics()
        assert (statistics.admission.slots_used, statistics.calls.failures) == (0, 1)
        assert statistics.attempts.total.counted == 0


FINAL: dict[str, tuple[type[anthropic.APIError], bool]] = {
    "overloaded": (anthropic.APIStatusError, False),
    "api_error": (anthropic.InternalServerError, False),
    "bad_gateway": (anthropic.InternalServerError, False),
    "reset": (anthropic.APIConnectionError, False),
    "truncated": (anthropic.APIConnectionError, False),
    "bad_json": (anthropic.APIResponseValidationError, False),
    "stream_drop_before_content": (anthropic.APIConnectionError, True),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("fault", FINAL)
async def test_what_keeps_failing_is_raised_as_the_sdks_own_error(
    simulator: Simulator, fault: str, virtual_time: VirtualTime
) -> None:
    """After the last attempt, its own error comes out, with a note of how many there were.

    A connection that is closed at once counts as none, the first time.
    """
    kind, stream = FINAL[fault]
    attempts = 5 if fault == "reset" else 4
    simulator.inject(fault, times=10)
    async with governed(simulator) as claude:
        error = await fails(claude, simulator, kind, stream=stream)
        assert len(simulator.journal) == attempts
        assert any(f"{attempts} attempts" in note for note in error.__notes__)


async def test_an_error_that_every_stream_begins_with_is_raised_by_its_reader(
    simulator: Simulator, virtual_time: VirtualTime
) -> None:
    """After the last attempt the SDK raises what the stream said, as the error that it stands for."""
    simulator.inject("stream_error_before_content", times=4)
    async with governed(simulator) as claude:
        error = await fails(claude, simulator, anthropic.APIStatusError, stream=True)
        assert "Overloaded" in str(error)
        assert len(simulator.journal) == 4
        await claude.messages.create(**ASK)


async def test_a_service_that_is_down_is_left_alone(simulator: Simulator, virtual_time: VirtualTime) -> None:
    """The breaker's refusal says when to come back."""
    simulator.inject("api_error", times=100)
    async with governed(simulator, retry=RetryOptions(max_attempts=1)) as claude:
        for _ in range(20):
            await fails(claude, simulator, anthropic.InternalServerError, stream=False)
        error = await fails(claude, simulator, CircuitOpen, stream=False)
        assert error.retry_after_s == pytest.approx(30, abs=1)
        assert len(simulator.journal) == 20


async def test_a_request_larger_than_the_limit_fails_at_once(simulator: Simulator) -> None:
    """No wait would make it fit, so there is none."""
    async with governed(simulator, limits=Limits(input_tokens_per_minute=100)) as claude:
        error = await fails(
            claude, simulator, RequestExceedsQuota, stream=False, messages=[{"role": "user", "content": "word " * 5000}]
        )
        assert error.limit == "input_tokens"
        assert simulator.journal == []


async def test_a_full_line_refuses(virtual_time: VirtualTime) -> None:
    """`max_queued` and `queue_timeout_s` bound the wait; who is refused sent nothing."""
    simulator = Simulator(latency_s=50)
    async with (
        governed(simulator, concurrency=1, max_queued=1, queue_timeout_s=10) as claude,
        anyio.create_task_group() as group,
    ):
        group.start_soon(lambda: claude.messages.create(**ASK))
        await anyio.sleep(1)
        refused: list[BaseException] = []

        async def wait() -> None:
            try:
                await claude.messages.create(**ASK)
            except AdmissionTimeout as error:
                refused.append(error)

        group.start_soon(wait)
        await anyio.sleep(1)
        with pytest.raises(QueueFull):
            await claude.messages.create(**ASK)
        await anyio.sleep(10)
        assert len(refused) == 1
        assert len(simulator.journal) == 1


async def test_a_stream_that_breaks_after_its_content_is_not_repeated(simulator: Simulator) -> None:
    """What was delivered stays delivered: the error comes through the stream, once."""
    for fault in ("stream_error_after_content", "stream_drop_after_content"):
        simulator.inject(fault, after_deltas=2)
        simulator.reply("one two three four five six seven eight nine ten")
        seen: list[str] = []
        async with governed(simulator) as claude:

            async def read(claude: Client = claude, seen: list[str] = seen) -> None:
                async with claude.messages.stream(**ASK) as events:
                    async for text in events.text_stream:
                        seen.append(text)  # noqa: PERF401 - what came before the error counts

            with pytest.raises((anthropic.APIStatusError, httpx2.RemoteProtocolError)):
                await read()
            assert "".join(seen)
            await nothing_left(claude, simulator)
            assert claude.statistics().retry.retries == 0
            assert claude.statistics().calls.failures == 1
            assert claude.statistics().attempts.total.estimated == 1
