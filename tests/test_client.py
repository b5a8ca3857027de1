from __future__ import annotations

import asyncio
import dataclasses
import gc
import subprocess
import sys
import textwrap
import threading
import warnings
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pydantic
import pytest

import penstock
from penstock import Client, ClientClosed, KeyNotFound, Limits, NoKeyAvailable, RetryOptions, Settings
from penstock._core.secret import key_name
from penstock.events import CallEnded, Event, KeyChanged
from penstock.simulator import Simulator
from penstock.simulator.server import serving
from penstock.testing import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from penstock.testing.plugin import VirtualTime

ASK: Any = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hello there"}],
}
CREDENTIALS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "PENSTOCK_API_KEYS")


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own environment decides a test."""
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)


def governed(simulator: Simulator, **options: Any) -> Client:
    """Make a client that governs an SDK client of the simulator's."""
    return Client(sdk=simulator.client(), **{"log": False, **options})


async def test_the_user_profile_of_a_request_goes_with_each_of_its_attempts() -> None:
    """The header is as the SDK makes it, in every way to ask; the body says who pays."""
    simulator = Simulator()
    beta: Any = {"billing_policy": {"type": "billing_policy", "bill_to": "user_profile"}, "betas": ["billing-policy"]}
    async with governed(simulator, sanitize=True, retry=RetryOptions(base_s=0.001)) as claude:
        simulator.inject("overloaded")
        await claude.messages.create(**ASK, user_profile_id="uprof_1")
        await claude.messages.count_tokens(model=ASK["model"], messages=ASK["messages"], user_profile_id="uprof_1")
        async with claude.stream(**ASK, **beta, user_profile_id="uprof_1") as stream:
            await stream.get_final_message()
        await claude.beta.messages.create(**ASK, **beta, user_profile_id="uprof_1")
        async with claude.fan_out([{"custom_id": "a", "params": {**ASK, "user_profile_id": "uprof_1"}}]) as results:
            [result] = [each async for each in results]
    assert result.ok
    assert [entry.headers.get("anthropic-user-profile-id") for entry in simulator.journal] == ["uprof_1"] * 6
    assert [(entry.body or {}).get("billing_policy") for entry in simulator.journal][3:5] == [
        beta["billing_policy"]
    ] * 2


@pytest.fixture
def server() -> Iterator[tuple[Simulator, str]]:
    """A simulator behind a real socket."""
    simulator = Simulator()
    with serving(simulator) as url:
        yield simulator, url


class TestCreation:
    @pytest.mark.slow
    def test_creating_a_client_does_no_io(self) -> None:
        """Creating a client, and reaching for its resources, opens no file, no socket and no process."""
        code = """
            import sys
            import anthropic, anthropic.resources.messages, anthropic.resources.beta, anthropic.resources.models
            from penstock import Client
            Client(api_keys=["sk-warm"], log=False).sdk  # what is imported on first use is imported
            seen = []
            def hook(event, args):
                if event in ("open", "os.listdir", "subprocess.Popen") or event.startswith("socket."):
                    seen.append((event, args))
            sys.addaudithook(hook)
            for transport in ("aiohttp", "httpx2"):
                client = Client(api_keys=["sk-1"], transport=transport, log=False)
                client.sdk, client.messages, client.beta, client.models
            print([each for each in seen if "cacert" not in str(each)])
        """
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
        )
        assert ran.stdout.strip() == "[]"

    def test_creating_a_client_needs_no_event_loop_and_no_key(self) -> None:
        """A client can be made at import time of an application; the key is asked for on entry."""
        assert repr(Client(log=False)) == "<Client not entered, 0 calls under way>"

    def test_fields_win_over_settings(self) -> None:
        """What is given by name replaces the same field of the settings, and the others stay."""
        client = Client(Settings(concurrency=7, max_tokens=9), concurrency=3, log=False)
        assert (client.settings.concurrency, client.settings.max_tokens) == (3, 9)

    def test_settings_are_taken_as_they_are(self) -> None:
        """Without further fields, the very settings given are used."""
        settings = Settings(concurrency=7, log=False)
        assert Client(settings).settings is settings

    def test_an_unknown_field_is_refused(self) -> None:
        """A field that isn't one is an error, not ignored."""
        with pytest.raises(pydantic.ValidationError, match="concurency"):
            Client(concurency=3)  # type: ignore[call-arg]

    def test_plain_http_to_another_machine_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keys never travel in the clear, wherever the address comes from, unless that is asked for."""
        with pytest.raises(ValueError, match="plain http"):
            Client(base_url="http://example.com")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://example.com")
        with pytest.raises(ValueError, match="plain http"):
            Client(log=False)
        assert Client(allow_http=True, log=False).sdk.base_url == "http://example.com"

    @pytest.mark.lengthy
    def test_the_address_of_the_environment_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`ANTHROPIC_BASE_URL` counts unless `base_url` is given; else it is the public API."""
        assert str(Client(log=False).sdk.base_url) == "https://api.anthropic.com"
        monkeypatch.setenv("ANTHROPIC_BASE_URL", "https://one.example")
        assert str(Client(log=False).sdk.base_url) == "https://one.example"
        assert str(Client(base_url="https://two.example", log=False).sdk.base_url) == "https://two.example"

    @pytest.mark.parametrize("concurrency", [1, 64, 5000])
    def test_connections_are_never_fewer_than_slots(self, concurrency: int) -> None:
        """A request that was let in never waits a second time, for a connection."""
        limits = _limits_of(Client(concurrency=concurrency, transport="httpx2", log=False))
        assert limits["_max_connections"] >= concurrency
        assert limits["_max_keepalive_connections"] >= concurrency

    async def test_connections_of_aiohttp_are_never_fewer_than_slots(self, server: tuple[Simulator, str]) -> None:
        """The same holds for the other transport, whose pool is made on first use."""
        async with Client(api_keys="sk-1", base_url=server[1], concurrency=5000, log=False) as claude:
            await claude.messages.create(**ASK)
            connector = claude.sdk._client._transport.client.connector  # type: ignore[attr-defined]
            assert connector.limit >= 5000
            assert connector.limit_per_host == 0 or connector.limit_per_host >= 5000

    @pytest.mark.lengthy
    def test_the_timeout_is_the_sdks_unless_given(self) -> None:
        """Any value would switch off the SDK's guard against long requests, so none is set by default."""
        assert not Client(log=False).sdk._timeout_overridden
        assert Client(timeout_s=7, log=False).sdk.timeout == 7

    def test_the_sdks_own_retries_are_off(self, simulator: Simulator) -> None:
        """There is one retry loop."""
        assert Client(log=False).sdk.max_retries == 0
        assert governed(simulator).sdk.max_retries == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("configured", [False, True])
    def test_spans_are_off_unless_tracing_is_configured(self, configured: bool) -> None:
        """The SDK's call spans cost a tenth of a request; they are on where somebody receives them."""
        code = f"""
            from opentelemetry import trace
            if {configured}:
                trace.set_tracer_provider(trace.NoOpTracerProvider())
            from penstock import Client
            print(Client(log=False).sdk._tracer is not None)
        """
        ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == str(configured)


def _limits_of(client: Client) -> dict[str, Any]:
    http: Any = client.sdk._client
    return dict(vars(http._transport._pool))


class TestKeys:
    async def test_without_a_key_entering_names_every_place(self) -> None:
        """The error says where keys are looked for, and what else one can do."""
        client = Client(log=False)
        with pytest.raises(KeyNotFound) as raised:
            await client.__aenter__()
        assert raised.value.places == ("Client(api_keys=…)", "PENSTOCK_API_KEYS", "ANTHROPIC_API_KEY")
        assert all(place in str(raised.value) for place in raised.value.places)
        assert "sdk=" in str(raised.value)
        await client.close()

    async def test_a_key_may_be_set_after_a_client_was_not_entered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A failed entry leaves nothing behind: the same client can be entered once there is a key."""
        client = Client(log=False)
        with pytest.raises(KeyNotFound):
            await client.__aenter__()
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-late")
        async with client as claude:
            assert [key.name for key in claude.statistics().admission.keys] == [key_name("sk-late")]

    @pytest.mark.parametrize("value", ["", "  ", "\n"])
    async def test_an_empty_key_is_none(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        """A variable that is set to nothing is no key."""
        monkeypatch.setenv("ANTHROPIC_API_KEY", value)
        monkeypatch.setenv("PENSTOCK_API_KEYS", value)
        with pytest.raises(KeyNotFound):
            await Client(log=False).__aenter__()

    @pytest.mark.lengthy
    @pytest.mark.parametrize(
        ("given", "environment", "used"),
        [
            (["sk-a"], {"PENSTOCK_API_KEYS": "sk-b", "ANTHROPIC_API_KEY": "sk-c"}, ["sk-a"]),
            (None, {"PENSTOCK_API_KEYS": "sk-b, sk-b2", "ANTHROPIC_API_KEY": "sk-c"}, ["sk-b", "sk-b2"]),
            (None, {"ANTHROPIC_API_KEY": "sk-c"}, ["sk-c"]),
            ("sk-a,sk-a2", {}, ["sk-a", "sk-a2"]),
        ],
    )
    async def test_keys_come_from_arguments_then_settings_then_the_sdks_variable(
        self,
        monkeypatch: pytest.MonkeyPatch,
        server: tuple[Simulator, str],
        given: Any,
        environment: dict[str, str],
        used: list[str],
    ) -> None:
        """The first place that has keys is the only one whose keys are sent."""
        simulator, url = server
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fields = {} if given is None else {"api_keys": given}
        async with Client(base_url=url, log=False, **fields) as claude:
            for _ in used:
                await claude.messages.create(**ASK)
        assert [entry.key for entry in simulator.journal] == used

    async def test_each_request_carries_one_key_of_the_pool(self, server: tuple[Simulator, str]) -> None:
        """The placeholder that the SDK client is made with is never sent."""
        simulator, url = server
        async with Client(api_keys=["sk-1", "sk-2"], base_url=url, log=False) as claude:
            for _ in range(4):
                await claude.messages.create(**ASK)
            await claude.models.list()
        assert {entry.headers["authorization"] for entry in simulator.journal} == {"Bearer sk-1", "Bearer sk-2"}
        assert not any("x-api-key" in entry.headers for entry in simulator.journal)

    async def test_keys_can_come_and_go(self, server: tuple[Simulator, str]) -> None:
        """While the client is open a key can be added, and another retired, so that keys can be rotated."""
        simulator, url = server
        async with Client(api_keys="sk-old", base_url=url, log=False) as claude:
            await claude.messages.create(**ASK)
            assert claude.add_key("sk-new") == key_name("sk-new")
            assert claude.retire_key(key_name("sk-old")) is True
            assert claude.retire_key("key-00000000") is False
            for _ in range(3):
                await claude.messages.create(**ASK)
        assert [entry.key for entry in simulator.journal] == ["sk-old", "sk-new", "sk-new", "sk-new"]

    async def test_keys_cannot_be_added_to_other_credentials(self, simulator: Simulator) -> None:
        """A client of the user's brings its own."""
        async with governed(simulator) as claude:
            with pytest.raises(TypeError, match="credentials of its sdk"):
                claude.add_key("sk-new")

    async def test_a_copy_without_the_guards_still_has_a_key(self, server: tuple[Simulator, str]) -> None:
        """`with_options(middleware=…)` replaces the guards, as documented, and not the credentials."""
        simulator, url = server
        async with Client(api_keys=["sk-1"], base_url=url, log=False) as claude:
            await claude.sdk.with_options(middleware=[]).messages.create(**ASK)
            assert claude.statistics().calls.calls == 0
        assert simulator.journal[-1].key == "sk-1"


Verb = "Callable[[Client], Awaitable[object]]"


async def _tool_runner(claude: Client) -> object:
    @anthropic.beta_async_tool
    async def get_weather(city: str) -> str:
        """Get the weather.

        Args:
            city: A city.
        """
        return f"sunny in {city}"

    runner = claude.beta.messages.tool_runner(**ASK, tools=[get_weather], thread=False)
    return await runner.until_done()


async def _parse(claude: Client) -> object:
    class Answer(pydantic.BaseModel):
        city: str

    return await claude.messages.parse(**ASK, output_format=Answer)


async def _read_stream(claude: Client) -> object:
    async with claude.messages.stream(**ASK) as stream:
        return await stream.get_final_message()


async def _read_events(claude: Client) -> object:
    return [event async for event in await claude.messages.create(**ASK, stream=True)]


async def _read_beta_stream(claude: Client) -> object:
    async with claude.beta.messages.stream(**ASK) as stream:
        return await stream.get_final_message()


async def _read_bytes(claude: Client) -> object:
    async with claude.messages.with_streaming_response.create(**ASK) as response:
        return b"".join([chunk async for chunk in response.iter_bytes()])


async def _read_lines(claude: Client) -> object:
    async with claude.messages.with_streaming_response.create(**ASK, stream=True) as response:
        return [line async for line in response.iter_lines()]


VERBS: dict[str, tuple[Any, str, int]] = {
    "create": (lambda claude: claude.messages.create(**ASK), "messages", 1),
    "create(stream=True)": (_read_events, "messages", 1),
    "stream": (_read_stream, "messages", 1),
    "parse": (_parse, "messages", 1),
    "with_raw_response": (lambda claude: claude.messages.with_raw_response.create(**ASK), "messages", 1),
    "with_streaming_response": (_read_bytes, "messages", 1),
    "with_streaming_response, streamed": (_read_lines, "messages", 1),
    "beta.create": (lambda claude: claude.beta.messages.create(**ASK), "messages", 1),
    "beta.stream": (_read_beta_stream, "messages", 1),
    "beta.tool_runner": (_tool_runner, "messages", 2),
    "count_tokens": (
        lambda claude: claude.messages.count_tokens(model=ASK["model"], messages=ASK["messages"]),
        "count_tokens",
        1,
    ),
    "models.list": (lambda claude: claude.models.list(), "other", 1),
    "models.retrieve": (lambda claude: claude.models.retrieve("claude-sonnet-5-5"), "other", 1),
}


class TestGoverned:
    @pytest.mark.lengthy
    @pytest.mark.parametrize("verb", VERBS)
    async def test_every_method_of_the_sdk_is_governed(self, verb: str) -> None:
        """Each request of any method is one call of ours: recorded, retried after a failure, given a key, reported."""
        call, kind, calls = VERBS[verb]
        simulator = Simulator()
        if verb == "beta.tool_runner":
            simulator.reply([{"type": "tool_use", "name": "get_weather", "input": {"city": "Rome"}}])
        if verb == "parse":
            simulator.reply('{"city": "Rome"}')
        simulator.inject("overloaded")
        events: list[Event] = []
        async with governed(simulator, observers=[events.append], retry=RetryOptions(base_s=0.001)) as claude:
            await call(claude)
            statistics = claude.statistics()
        ended = [event for event in events if isinstance(event, CallEnded)]
        assert [event.kind for event in ended] == [kind] * calls
        assert [event.failure for event in ended] == [None] * calls
        assert (statistics.calls.calls, statistics.calls.successes, statistics.calls.in_flight) == (calls, calls, 0)
        assert statistics.retry.retries == 1
        assert len(simulator.journal) == calls + 1
        assert statistics.attempts.total.attempts == (calls + 1 if kind == "messages" else 0)
        assert statistics.admission.admitted == (0 if kind == "other" else calls + 1)
        assert statistics.admission.slots_used == 0
        if kind == "messages":
            assert statistics.calls.output_tokens == sum(entry.output_tokens for entry in simulator.journal) > 0

    async def test_the_resources_are_the_sdks_own(self, simulator: Simulator) -> None:
        """Types and attributes are the SDK's: nothing is wrapped."""
        claude = governed(simulator)
        assert type(claude.sdk) is anthropic.AsyncAnthropic
        assert claude.sdk is claude.sdk
        assert claude.messages is claude.sdk.messages
        assert claude.beta is claude.sdk.beta
        assert claude.models is claude.sdk.models

    async def test_labels_and_key_are_reported(self, simulator: Simulator) -> None:
        """What a caller labels a block with comes back with the event of each of its calls."""
        events: list[Event] = []
        async with governed(simulator, observers=[events.append]) as claude:
            with penstock.labels(user="u1", feature="search"):
                await claude.messages.create(**ASK)
        (ended,) = [event for event in events if isinstance(event, CallEnded)]
        assert ended.labels == {"user": "u1", "feature": "search"}
        assert ended.key == "sdk"

    async def test_a_deadline_bounds_waits_and_attempts(self, simulator: Simulator, virtual_time: VirtualTime) -> None:
        """A block's deadline ends a call whose server never answers; the call's own default is the setting."""
        simulator.inject("stall_before_headers", times=2)
        async with governed(simulator, deadline_s=50.0) as claude:
            with penstock.deadline(7), pytest.raises(anthropic.APITimeoutError):
                await claude.messages.create(**ASK)
            assert virtual_time.now() == pytest.approx(7, abs=0.1)
            with pytest.raises(anthropic.APITimeoutError):
                await claude.messages.create(**ASK)
            assert virtual_time.now() == pytest.approx(57, abs=0.1)
            assert claude.statistics().admission.slots_used == 0

    @pytest.mark.lengthy
    async def test_settings_reach_the_guards(self, simulator: Simulator, virtual_time: VirtualTime) -> None:
        """Limits, concurrency and retries of the settings are those that hold."""
        options = {"limits": Limits(requests_per_minute=60), "concurrency": 3, "retry": RetryOptions(max_attempts=1)}
        async with governed(simulator, **options) as claude:
            assert claude.statistics().admission.concurrency == 3
            simulator.inject("overloaded")
            with pytest.raises(anthropic.InternalServerError):
                await claude.messages.create(**ASK)
            results = await claude.map(["Hello"] * 90, model="claude-sonnet-5-5")
            assert all(result.ok for result in results)
            assert virtual_time.now() == pytest.approx(30, abs=3)

    async def test_a_second_retry_loop_is_warned_about(self, simulator: Simulator) -> None:
        """Whoever switches the SDK's own retries on hears that two loops multiply; on copies of copies too."""
        claude = governed(simulator)
        with pytest.warns(UserWarning, match="second retry loop") as seen:
            claude.sdk.with_options(max_retries=2)
        assert seen[0].filename == __file__
        with pytest.warns(UserWarning, match="second retry loop"):
            claude.sdk.copy(max_retries=2)
        with pytest.warns(UserWarning, match="second retry loop"):
            claude.sdk.with_options(timeout=5).with_options(max_retries=1)

    async def test_harmless_options_are_not_warned_about(self, simulator: Simulator) -> None:
        """Copies that leave retries off stay governed, silently."""
        async with governed(simulator) as claude:
            await claude.sdk.with_options(timeout=5, max_retries=0).messages.create(**ASK)
            await claude.sdk.with_middleware(_Passes()).messages.create(**ASK)
            assert claude.statistics().calls.calls == 2

    async def test_cost_is_the_messages_own(self, simulator: Simulator) -> None:
        """The price of a message is computed from its model and usage."""
        async with governed(simulator) as claude:
            message = await claude.messages.create(**{**ASK, "model": "claude-haiku-4-5"})
            assert claude.cost(message) > 0


class _Passes(anthropic.Middleware):
    async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
        return await call_next(request)


class TestStatistics:
    async def test_statistics_are_complete_and_frozen(self, simulator: Simulator) -> None:
        """One snapshot holds what every guard counts, and nobody can change it."""
        async with governed(simulator, limits=Limits(requests_per_minute=60), sanitize=True) as claude:
            await claude.messages.create(**ASK)
            statistics = claude.statistics()
            await claude.messages.create(**ASK)
        assert statistics.calls.calls == 1
        assert statistics.retry.quota == statistics.retry.capacity == 500
        assert statistics.breaker.classes["sonnet-5-5"].state == "closed"
        (quota,) = statistics.admission.quotas.values()
        assert quota["sonnet-5-5"]["requests"].per_minute == 60
        assert statistics.attempts.models["claude-sonnet-5-5"].latency.count == 1
        with pytest.raises(dataclasses.FrozenInstanceError):
            statistics.calls = statistics.calls  # type: ignore[misc]
        for part in dataclasses.fields(statistics):
            value = getattr(statistics, part.name)
            assert dataclasses.is_dataclass(value)
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, dataclasses.fields(value)[0].name, 0)

    async def test_waiting_and_slots_are_seen(self, simulator: Simulator, virtual_time: VirtualTime) -> None:
        """While requests are under way and waiting, the snapshot says how many of which."""
        slow = Simulator(latency_s=10)
        async with governed(slow, concurrency=2) as claude, anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(lambda: claude.messages.create(**ASK))
            await anyio.sleep(1)
            admission = claude.statistics().admission
            assert (admission.slots_used, admission.waiting) == (2, {"sonnet-5-5": 3})
            assert claude.statistics().calls.in_flight == 5
        assert simulator.in_flight == 0

    async def test_key_states_are_seen(self, server: tuple[Simulator, str]) -> None:
        """A key that was refused is quarantined in the snapshot, by name, and observers are told."""
        simulator, url = server
        simulator.inject("authentication")
        events: list[Event] = []
        async with Client(api_keys="sk-1,sk-2", base_url=url, log=False, observers=[events.append]) as claude:
            await claude.messages.create(**ASK)
            states = {key.name: key.state for key in claude.statistics().admission.keys}
        assert sorted(states.values()) == ["ok", "quarantined"]
        assert states.keys() == {key_name("sk-1"), key_name("sk-2")}
        (changed,) = [event for event in events if isinstance(event, KeyChanged)]
        assert changed.key == next(name for name, state in states.items() if state == "quarantined")


class TestGivenSDK:
    async def test_the_original_is_unchanged(self, simulator: Simulator) -> None:
        """A copy is governed; what was given keeps its middleware and retries, and its http client is shared."""
        mine = _Passes()
        original = simulator.client(middleware=[mine], max_retries=5)
        async with Client(sdk=original, log=False) as claude:
            assert claude.sdk is not original
            assert vars(claude.sdk._client) is vars(original._client)
            assert isinstance(claude.sdk._client, type(original._client))
            assert original.middleware == (mine,)
            assert original.max_retries == 5
            await original.messages.create(**ASK)
            assert claude.statistics().calls.calls == 0

    async def test_the_original_is_not_closed(self, simulator: Simulator) -> None:
        """It outlives the client that governed its copy."""
        original = simulator.client()
        async with Client(sdk=original, log=False) as claude:
            await claude.messages.create(**ASK)
        assert not original.is_closed()
        await original.messages.create(**ASK)

    async def test_the_users_own_middleware_stays_outermost(self, simulator: Simulator) -> None:
        """It sees a call once, before any guard, however many attempts there are."""
        seen: list[str] = []

        async def mine(request: anthropic.APIRequest, call_next: Any) -> Any:
            seen.append("before")
            response = await call_next(request)
            seen.append("after")
            return response

        simulator.inject("overloaded")
        original = simulator.client(middleware=[mine])
        async with Client(sdk=original, log=False, retry=RetryOptions(base_s=0.001)) as claude:
            assert claude.sdk.middleware[0] is mine
            await claude.messages.create(**ASK)
        assert seen == ["before", "after"]
        assert len(simulator.journal) == 2

    async def test_its_credentials_are_its_own(self, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keys in the environment are meant for our own client: one that is given sends what it would send anyway."""
        monkeypatch.setenv("PENSTOCK_API_KEYS", "sk-penstock")
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-environment")
        async with Client(sdk=simulator.client("sk-own"), log=False) as claude:
            await claude.messages.create(**ASK)
            assert [key.name for key in claude.statistics().admission.keys] == ["sdk"]
        assert simulator.journal[-1].key == "sk-own"

    async def test_api_keys_can_serve_a_plain_client(self, simulator: Simulator) -> None:
        """A client with an `http_client` of the user's can be given the keys of a pool."""
        async with Client(sdk=simulator.client("sk-own"), api_keys="sk-1,sk-2", log=False) as claude:
            await claude.messages.create(**ASK)
            await claude.messages.create(**ASK)
        assert [entry.key for entry in simulator.journal] == ["sk-1", "sk-2"]

    def test_api_keys_are_refused_for_another_class(self, simulator: Simulator) -> None:
        """An Anthropic key must not reach a third party, so only a plain `AsyncAnthropic` takes them."""

        class Mine(anthropic.AsyncAnthropic):
            pass

        with pytest.raises(TypeError, match="Mine: it brings credentials of its own"):
            Client(sdk=Mine(api_key="sk-own"), api_keys="sk-1", log=False)
        with pytest.raises(TypeError, match="Mine"):
            Client(Settings(api_keys="sk-1"), sdk=Mine(api_key="sk-own"), log=False)


class TestLife:
    async def test_use_before_entry_and_after_close_is_refused(self, simulator: Simulator) -> None:
        """A client that isn't open sends nothing, and says so."""
        claude = governed(simulator)
        with pytest.raises(ClientClosed, match="not entered"):
            await claude.messages.create(**ASK)
        with pytest.raises(ClientClosed, match="not entered"):
            claude.fan_out(["Hello"])
        async with claude:
            await claude.messages.create(**ASK)
        for verb, (call, _, _) in VERBS.items():
            with pytest.raises(ClientClosed, match="is closed"):
                await call(claude)
            assert len(simulator.journal) == 1, verb
        with pytest.raises(ClientClosed, match="is closed"):
            await claude.map(["Hello"])

    async def test_it_is_entered_once(self, simulator: Simulator) -> None:
        """Neither an open client nor a closed one can be entered."""
        claude = governed(simulator)
        async with claude:
            with pytest.raises(ClientClosed, match="is open"):
                await claude.__aenter__()
        with pytest.raises(ClientClosed, match="is closed"):
            await claude.__aenter__()

    async def test_it_can_be_opened_where_there_is_no_block(self, simulator: Simulator) -> None:
        """As in a notebook, where one cell opens it and another closes it: it is the same as entering."""
        claude = await governed(simulator).open()
        assert await claude.map(["Hello"], model="claude-haiku-5-5", max_tokens=10)
        with pytest.raises(ClientClosed):
            await claude.open()
        await claude.close()
        with pytest.raises(ClientClosed):
            await claude.open()

    async def test_closing_one_that_was_never_entered_ends_it(self, simulator: Simulator) -> None:
        """It needs no event loop work, and the client can't be entered any more."""
        claude = governed(simulator)
        await claude.close()
        with pytest.raises(ClientClosed, match="is closed"):
            await claude.__aenter__()

    def test_use_in_another_loop_is_refused(self) -> None:
        """A client belongs to the loop that it was entered in; in another it sends nothing, nor can it be closed."""
        simulator = Simulator()
        claude = governed(simulator)
        refused: list[BaseException] = []

        async def elsewhere() -> None:
            for attempt in (lambda: claude.messages.create(**ASK), claude.close):
                try:
                    await attempt()
                except ClientClosed as error:
                    refused.append(error)

        async def main() -> None:
            async with claude:
                thread = threading.Thread(target=lambda: anyio.run(elsewhere))
                thread.start()
                await anyio.to_thread.run_sync(thread.join)
                await claude.messages.create(**ASK)

        anyio.run(main)
        assert [str(error) for error in refused] == [str(refused[0])] * 2
        assert "another event loop" in str(refused[0])
        assert len(simulator.journal) == 1

    def test_a_thread_without_a_loop_is_refused(self) -> None:
        """The same goes for a fan-out that is made where no loop is running."""
        claude = governed(Simulator())

        async def main() -> None:
            async with claude:
                with pytest.raises(ClientClosed, match="another event loop"):
                    await anyio.to_thread.run_sync(lambda: claude.fan_out(["Hello"]))

        anyio.run(main)

    async def test_entry_and_exit_may_happen_in_different_tasks(self, simulator: Simulator) -> None:
        """Test fixtures and ASGI lifespans enter in one task and leave in another."""
        claude = governed(simulator)
        async with anyio.create_task_group() as group:
            group.start_soon(claude.__aenter__)
        await claude.messages.create(**ASK)
        async with anyio.create_task_group() as group:
            group.start_soon(claude.__aexit__, None, None, None)
        with pytest.raises(ClientClosed):
            await claude.messages.create(**ASK)
        assert _tasks() == set()

    async def test_the_scope_of_whoever_enters_does_not_hold_it(
        self, simulator: Simulator, virtual_time: VirtualTime
    ) -> None:
        """A client that was entered under a time limit goes on when that has passed."""
        claude = governed(simulator)
        with anyio.move_on_after(1):
            await claude.__aenter__()
            await anyio.sleep_forever()
        await claude.messages.create(**ASK)
        await claude.close()

    async def test_a_cancelled_entry_leaves_nothing(self, server: tuple[Simulator, str]) -> None:
        """Whoever is cancelled while entering never leaves, so entering itself cleans up."""
        claude = Client(api_keys="sk-1", base_url=server[1], log=False)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await claude.__aenter__()
        await _until(lambda: not _tasks())
        assert claude.sdk.is_closed()
        with pytest.raises(ClientClosed):
            await claude.messages.create(**ASK)

    async def test_close_waits_for_calls_under_way(self, virtual_time: VirtualTime) -> None:
        """Calls that end within `close_timeout_s` end well, and closing takes no longer than they do."""
        simulator = Simulator(latency_s=4)
        done: list[str] = []

        async def ask() -> None:
            message = await claude.messages.create(**ASK)
            done.append(message.id)

        async with anyio.create_task_group() as group, governed(simulator) as claude:
            for _ in range(3):
                group.start_soon(ask)
            await anyio.sleep(1)
        assert len(done) == 3
        assert virtual_time.now() == pytest.approx(4, abs=0.1)

    @pytest.mark.parametrize("verb", ["create", "create(stream=True)", "stream", "with_streaming_response, streamed"])
    async def test_close_cancels_what_does_not_end(self, verb: str, virtual_time: VirtualTime) -> None:
        """After `close_timeout_s`, callers get `ClientClosed`: those that wait, and those that read a stream."""
        simulator = Simulator(output_tokens=50)
        simulator.inject("stall", **({} if verb == "create" else {"after_deltas": 2}))
        raised: list[BaseException] = []
        closed_at = await self._close_while_stalled(governed(simulator, close_timeout_s=3), verb, raised, wait_s=5)
        assert [type(error) for error in raised] == [ClientClosed]
        assert closed_at == pytest.approx(8, abs=0.1)
        assert simulator.in_flight == 0

    async def test_close_cancels_those_that_wait_in_line(self, virtual_time: VirtualTime) -> None:
        """A call that was never let in is cancelled too, and nothing of it is sent."""
        simulator = Simulator(latency_s=100)
        raised: list[Exception] = []

        async def ask() -> None:
            try:
                await claude.messages.create(**ASK)
            except ClientClosed as error:
                raised.append(error)

        claude = governed(simulator, concurrency=1, close_timeout_s=3)
        async with anyio.create_task_group() as group, claude:
            for _ in range(3):
                group.start_soon(ask)
            await anyio.sleep(1)
        assert len(raised) == 3
        assert len(simulator.journal) == 1
        admission = claude.statistics().admission
        assert (admission.slots_used, admission.waiting) == (0, {})

    @pytest.mark.slow
    @pytest.mark.parametrize("verb", ["create", "create(stream=True)", "stream", "with_streaming_response, streamed"])
    @pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
    async def test_close_cancels_on_real_sockets(
        self, server: tuple[Simulator, str], transport: Any, verb: str
    ) -> None:
        """The same over both transports: a stalled reader is woken, and no connection is left."""
        simulator, url = server
        simulator.inject("stall", **({} if verb == "create" else {"after_deltas": 1}))
        raised: list[BaseException] = []
        claude = Client(api_keys="sk-1", base_url=url, transport=transport, close_timeout_s=0.01, log=False)
        await self._close_while_stalled(claude, verb, raised, wait_s=0.05, started=lambda: simulator.in_flight == 1)
        assert [type(error) for error in raised] == [ClientClosed]
        await _until(lambda: simulator.in_flight == 0)

    async def _close_while_stalled(
        self,
        claude: Client,
        verb: str,
        raised: list[BaseException],
        *,
        wait_s: float,
        started: Callable[[], bool] | None = None,
    ) -> float:
        async def read() -> None:
            try:
                await VERBS[verb][0](claude)
            except Exception as error:  # noqa: BLE001 - what it is, is the claim
                raised.append(error)

        async with anyio.create_task_group() as group:
            async with claude:
                group.start_soon(read)
                if started is not None:
                    await _until(started)
                await anyio.sleep(wait_s)
                assert len(claude._chain.record.live) == 1
            closed_at = anyio.current_time()
        statistics = claude.statistics()
        assert (statistics.admission.slots_used, statistics.calls.in_flight, statistics.calls.cancelled) == (0, 0, 1)
        assert _tasks() == set()
        return closed_at

    async def test_close_is_idempotent_and_concurrent(self, virtual_time: VirtualTime) -> None:
        """However often and by however many it is called, all wait for the one end."""
        simulator = Simulator(latency_s=4)
        claude = governed(simulator)
        ended: list[float] = []

        async def close() -> None:
            await claude.close()
            ended.append(virtual_time.now())

        async with claude, anyio.create_task_group() as group:
            group.start_soon(lambda: claude.messages.create(**ASK))
            await anyio.sleep(1)
            group.start_soon(close)
            group.start_soon(close)
        await claude.close()
        assert ended == [pytest.approx(4, abs=0.1)] * 2

    async def test_new_calls_are_refused_while_it_closes(self, virtual_time: VirtualTime) -> None:
        """As soon as closing has begun nothing more is let in; what is under way goes on."""
        simulator = Simulator(latency_s=4)
        claude = governed(simulator)
        async with claude, anyio.create_task_group() as group:
            group.start_soon(lambda: claude.messages.create(**ASK))
            await anyio.sleep(1)
            group.start_soon(claude.close)
            await anyio.sleep(1)
            with pytest.raises(ClientClosed):
                await claude.messages.create(**ASK)
        assert claude.statistics().calls.successes == 1

    async def test_closing_finishes_though_its_caller_is_cancelled(self, server: tuple[Simulator, str]) -> None:
        """Who waits for the end may be cancelled; the end comes all the same."""
        claude = Client(api_keys="sk-1", base_url=server[1], log=False)
        await claude.__aenter__()
        await claude.messages.create(**ASK)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await claude.close()
        await _until(lambda: not _tasks())
        assert claude.sdk.is_closed()

    @pytest.mark.lengthy
    def test_a_loop_that_ends_first_leaves_no_connection(self) -> None:
        """A client that nobody closed is closed with its event loop, which cancels all tasks when it ends."""
        simulator = Simulator()
        with serving(simulator) as url:
            claude = Client(api_keys="sk-1", base_url=url, log=False)

            async def main() -> None:
                await claude.__aenter__()
                await claude.messages.create(**ASK)

            anyio.run(main)
            assert claude.sdk.is_closed()
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                gc.collect()
        assert [str(each.message) for each in seen if "Unclosed" in str(each.message)] == []

    async def test_an_exception_of_the_block_leaves_as_itself(self, simulator: Simulator) -> None:
        """The user's own exception is not wrapped, a group of the user's own included."""
        for error in (KeyError("mine"), ExceptionGroup("mine", [ValueError("one")])):

            async def use(error: Exception) -> None:
                async with governed(simulator) as claude:
                    await claude.messages.create(**ASK)
                    raise error

            with pytest.raises(type(error)) as raised:
                await use(error)
            assert raised.value is error
            assert raised.value.__context__ is None

    async def test_a_cancelled_block_stays_cancelled(self, virtual_time: VirtualTime) -> None:
        """A time limit around the block ends it, with everything that it set off."""
        simulator = Simulator(latency_s=100)
        with anyio.move_on_after(5) as scope:
            async with governed(simulator, close_timeout_s=1) as claude:
                await claude.messages.create(**ASK)
        assert scope.cancelled_caught
        await _until(lambda: not _tasks())
        assert simulator.in_flight == 0

    async def test_repr_tells_the_state(self, simulator: Simulator) -> None:
        """One sees whether it is open, and how much is under way."""
        async with governed(simulator) as claude:
            assert repr(claude) == "<Client open, 0 calls under way>"
        assert repr(claude) == "<Client closed, 0 calls under way>"

    async def test_an_observer_that_raises_breaks_nothing(self, simulator: Simulator) -> None:
        """Calls go on when a user's observer fails; it is logged."""

        def raises(_event: Event) -> None:
            raise RuntimeError("mine")

        async with governed(simulator, observers=[raises]) as claude:
            assert (await claude.messages.create(**ASK)).stop_reason == "end_turn"

    @pytest.mark.slow
    def test_a_client_without_log_loads_no_structlog(self) -> None:
        """What isn't used isn't imported."""
        code = "import sys; from penstock import Client; Client(log=False).sdk; print('structlog' in sys.modules)"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == "False"


def _tasks() -> set[str]:
    """Names of the client's own tasks that are left."""
    return {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("penstock")}


async def _until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - nobody tells when
            await anyio.sleep(0.005)


async def test_no_key_left_is_told_at_once(server: tuple[Simulator, str]) -> None:
    """When the API has refused every key, further calls fail without being sent."""
    simulator, url = server
    simulator.inject("authentication", times=10)
    async with Client(api_keys="sk-1,sk-2", base_url=url, log=False) as claude:
        with pytest.raises(anthropic.AuthenticationError):
            await claude.messages.create(**ASK)
        with pytest.raises(NoKeyAvailable) as raised:
            await claude.messages.create(**ASK)
    assert raised.value.retry_after_s == pytest.approx(60, abs=5)
    assert len(simulator.journal) == 2


def test_the_virtual_loop_governs_a_client_too() -> None:
    """The README's way to run a client on virtual time works without pytest."""

    async def main() -> float:
        async with Client(sdk=Simulator(latency_s=3600).client(timeout=7200), deadline_s=None, log=False) as claude:
            await claude.messages.create(**ASK)
            return anyio.current_time()

    assert anyio.run(main, backend_options={"loop_factory": VirtualLoop}) == pytest.approx(3600, abs=1)


def test_httpx2_is_the_transport_when_asked() -> None:
    """The setting chooses the SDK's own http clients."""
    assert isinstance(Client(transport="httpx2", log=False).sdk._client, anthropic.DefaultAsyncHttpxClient)
    assert isinstance(Client(transport="aiohttp", log=False).sdk._client, anthropic.DefaultAioHttpClient)
