"""What type checkers see of the public API. Checked, never run: each `assert_type` is a claim."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, assert_type

import anthropic
from anthropic import AsyncAnthropic, AsyncStream
from anthropic.resources import AsyncBeta, AsyncMessages, AsyncModels
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from anthropic.types.beta import BetaMessage, BetaMessageParam
from pydantic import BaseModel

import penstock
from penstock import (
    AdmissionTimeout,
    Admit,
    Allow,
    Answer,
    BreakerOptions,
    CircuitBreaker,
    CircuitOpen,
    Client,
    ClientClosed,
    ClientStatistics,
    Conversation,
    Deny,
    FanOutResult,
    KeyNotFound,
    Later,
    Limits,
    Meter,
    NoKeyAvailable,
    PenstockError,
    QueueFull,
    Record,
    Reply,
    RequestExceedsQuota,
    Retry,
    RetryOptions,
    Settings,
    SystemPrompt,
    Tool,
    ToolCall,
    ToolError,
    ToolLoop,
    ToolLoopLimit,
    ToolRun,
    UnknownPrice,
    tool,
)
from penstock.batch import FanOut, MessageBatches, Result, ask_all
from penstock.events import CallEnded, Event
from penstock.streaming import Stream, StreamManager
from penstock.testing import Cancelled, cancel_at_every_await
from penstock.tools import ToolFinished

if TYPE_CHECKING:
    from anthropic.lib.bedrock import AsyncAnthropicBedrock, AsyncAnthropicBedrockMantle
    from anthropic.lib.vertex import AsyncAnthropicVertex
    from anthropic.types.beta.message_create_params import MessageCreateParamsBase as BetaMessageCreateParamsBase
    from anthropic.types.message_create_params import MessageCreateParamsBase

MESSAGES: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Hello"}]


def observer(event: Event) -> None:
    """Observers are plain functions of an event."""
    if isinstance(event, CallEnded):
        assert_type(event.labels, Mapping[str, str])
        assert_type(event.latency_s, float)


def making(  # noqa: PLR0917 - one of each
    bedrock: AsyncAnthropicBedrock,
    mantle: AsyncAnthropicBedrockMantle,
    vertex: AsyncAnthropicVertex,
    foundry: anthropic.AsyncAnthropicFoundry,
    aws: anthropic.AsyncAnthropicAWS,
    google: anthropic.AsyncAnthropicGoogleCloud,
) -> list[Client]:
    """Every field has its type, and every asynchronous client of the SDK can be governed."""
    return [
        Client(),
        Client(Settings()),
        Client(Settings(concurrency=5), concurrency=6),
        Client(
            api_keys=["sk-1", "sk-2"],
            base_url="https://example.com",
            transport="httpx2",
            limits=Limits(requests_per_minute=1000),
            concurrency=64,
            deadline_s=None,
            retry=RetryOptions(max_attempts=2),
            breaker=BreakerOptions(window=50),
            balance="random",
            log=False,
        ),
        Client(limits={"claude-haiku-*": Limits()}, observers=[observer]),
        Client(sdk=AsyncAnthropic()),
        *(Client(sdk=sdk) for sdk in (bedrock, mantle, vertex, foundry, aws, google)),
    ]


def refused() -> None:
    """What would fail when run is told before."""
    from penstock import Clinet  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: F401

    Client(concurency=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Client(transport="curl")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(sdk=anthropic.Anthropic())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with penstock.labels(user=5):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pass
    with penstock.labels(priority="urgent"):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pass
    penstock.Clinet  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
    penstock.verbs  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # noqa: B018
    Settings().concurrency = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def using() -> None:
    """The SDK's own methods, with the SDK's own types."""
    async with Client() as claude:
        assert_type(claude, Client)
        assert_type(claude.sdk, AsyncAnthropic)
        assert_type(claude.messages, AsyncMessages)
        assert_type(claude.beta, AsyncBeta)
        assert_type(claude.models, AsyncModels)
        message = await claude.messages.create(model="m", max_tokens=9, messages=MESSAGES)
        assert_type(message, Message)
        stream = await claude.messages.create(model="m", max_tokens=9, messages=MESSAGES, stream=True)
        assert_type(stream, AsyncStream[RawMessageStreamEvent])
        async with claude.messages.stream(model="m", max_tokens=9, messages=MESSAGES) as events:
            assert_type(events.text_stream, AsyncIterator[str])
        assert_type(await claude.messages.count_tokens(model="m", messages=MESSAGES), MessageTokensCount)
        beta = await claude.beta.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
        assert_type(beta, BetaMessage)
        assert_type(claude.cost(message), Decimal)
        assert_type(claude.cost(beta), Decimal)
        assert_type(claude.settings, Settings)
        assert_type(await claude.close(), None)


async def streaming(claude: Client, messages: list[BetaMessageParam]) -> None:
    """A stream takes what the SDK's does, of both interfaces, and nothing else."""
    assert_type(claude.stream(model="m", max_tokens=9, messages=MESSAGES), StreamManager)
    async with claude.stream(
        model="m",
        max_tokens=9,
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        system=[{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
        thinking={"type": "enabled", "budget_tokens": 1024},
        tools=[{"name": "f", "input_schema": {"type": "object"}}],
        stop_sequences=["x"],
        metadata=anthropic.omit,
        timeout=anthropic.NOT_GIVEN,
        extra_headers={"x": "y"},
        extra_query=None,
        extra_body={"new": 1},
        on_abandon="drain",
    ) as stream:
        assert_type(stream, Stream)
    claude.stream(model="m", max_tokens=9, messages=messages, betas=["b"], output_format=Message)
    claude.stream(model="m", max_token=9, messages=MESSAGES)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    claude.stream(model="m", max_tokens=9)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    claude.stream(model="m", max_tokens="9", messages=MESSAGES)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    claude.stream(model="m", max_tokens=9, messages=[{"role": "tool", "content": "x"}])  # type: ignore[list-item, misc]  # pyright: ignore[reportArgumentType]


def passing_on(claude: Client, theirs: MessageCreateParamsBase, of_beta: BetaMessageCreateParamsBase) -> None:
    """Whatever is legal for the SDK is legal here: its own types are taken as they are."""
    assert_type(claude.stream(**theirs), StreamManager)
    assert_type(claude.stream(**of_beta), StreamManager)


def counting(claude: Client) -> None:
    """One frozen snapshot, typed to its leaves."""
    statistics = claude.statistics()
    assert_type(statistics, ClientStatistics)
    assert_type(statistics.calls.success_rate, float)
    assert_type(statistics.admission.slots_used, int)
    assert_type(statistics.retry.retries, int)
    assert_type(statistics.attempts.total.output_tokens, int)


async def many_at_once(claude: Client, prompts: AsyncIterator[str]) -> None:
    """Prompts or requests, from anything that can be iterated over."""
    assert_type(claude.fan_out(prompts), FanOut[None])
    async with claude.fan_out(["One?", "Two?"], model="m", concurrency=5, order="input", system="S") as results:
        async for result in results:
            assert_type(result, Result[None])
            assert_type(result.message, Message | None)
            assert_type(result.error, Exception | None)
            assert_type(result.ok, bool)
            assert_type(result.text, str)
            assert_type(result.parsed, None)
            assert_type(result.to_dict(), dict[str, object])
    assert_type(await claude.map(["One?"], model="m", concurrency=5), list[Result[None]])
    assert_type(
        claude.batch(["One?"], model="m", journal="run.jsonl", thinking={"type": "adaptive"}), MessageBatches[None]
    )
    claude.fan_out(["One?"], max_token=9)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    claude.batch(["One?"], max_token=9)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await claude.map(["One?"], max_token=9)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    mixed: list[str | dict[str, Any]] = ["One?", {"custom_id": "a", "params": {"messages": MESSAGES}}]
    assert_type(await claude.map(mixed), list[Result[None]])
    claude.fan_out(["One?"], order="random")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    claude.fan_out([1, 2])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


class City(BaseModel):
    """What answers are to fit."""

    name: str


async def answers_of_a_type(claude: Client, sdk: AsyncAnthropic) -> None:
    """Whatever runs many prompts gives results of that type."""
    assert_type(claude.batch(["One?"], output_format=City), MessageBatches[City])
    assert_type(await claude.map(["One?"], output_format=City), list[Result[City]])
    assert_type(FanOut(sdk, ["One?"], model="m", max_tokens=9, output_format=City), FanOut[City])
    assert_type(await ask_all(sdk, ["One?"], model="m", max_tokens=9, output_format=City), list[Result[City]])
    assert_type(claude.fan_out(["One?"], output_format=list[int]), FanOut[list[int]])
    assert_type(claude.fan_out(["One?"], output_format=anthropic.omit), FanOut[None])
    either: Any = City | None
    assert_type(claude.fan_out(["One?"], output_format=either), FanOut[Any])
    claude.fan_out(["One?"], output_format="City")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with claude.fan_out(["One?"], output_format=City) as results:
        async for result in results:
            assert_type(result, Result[City])
            assert_type(result.parsed, City | None)
            assert_type(whatever(result), str)
            told(result)


def told(result: Result[City]) -> None:
    """Where it has no error, it has an answer; this is what mypy and pyright both understand."""
    if result.error is None:
        assert_type(result.message, Message)
        assert_type(result.parsed, City)
    else:
        assert_type(result.error, Exception)
        assert_type(result.message, Message | None)
        assert_type(result.parsed, City | None)
    if result.ok is True:
        assert_type(result.message, Message)
        assert_type(result.parsed, City)
        assert_type(result.error, None)
    else:
        assert_type(result.error, Exception)


def told_shortly(result: Result[City]) -> None:
    """The shortest way to ask is understood by mypy; pyright looks at no truth of an attribute, by design."""
    if result.ok:
        assert_type(result.message, Message)  # pyright: ignore[reportAssertTypeFailure]
        assert_type(result.parsed, City)  # pyright: ignore[reportAssertTypeFailure]
    if not result.ok:
        return
    assert_type(result.parsed, City)  # pyright: ignore[reportAssertTypeFailure]


def whatever(result: FanOutResult) -> str:
    """The class alone stands for results of any type, and can be made as ever."""
    made = FanOutResult(custom_id="a", index=0, parsed=City(name="Bonn"))
    assert_type(made, FanOutResult[City])
    assert_type(made.message, Message | None)
    return result.text


@tool
async def get_weather(city: str) -> str:
    """Get the weather of a city."""
    raise ToolError(f"no such city: {city}")


@tool(safe_to_retry=True, timeout_s=5)
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def approve(call: ToolCall) -> bool | Allow | Deny | Answer:
    """A hook may decide in four ways."""
    assert_type(call.input, dict[str, Any])
    return Allow({"a": 1}) if call.name == "add" else Deny("no") if call.name == "rm" else Answer("x", is_error=True)


async def approve_later(call: ToolCall) -> bool | Later:
    """Or put it off."""
    return Later() if call.name == "add" else True


async def with_tools(claude: Client) -> None:
    """Functions, with options or without, and what comes of a run."""
    offered: list[Tool[..., Any]] = [add, get_weather]
    assert_type(add(1, 2), int)
    assert_type(await get_weather("Paris"), str)
    run = await claude.run_tools("Weather?", tools=[*offered, repr], approve=approve, max_iterations=3)
    assert_type(run, ToolRun)
    assert_type(run.transcript, list[anthropic.types.MessageParam])
    assert_type(run.iterations, int)
    assert_type(run.cost_usd, Decimal | None)
    assert_type(run.pending, tuple[ToolCall, ...])
    assert_type((await claude.run_tools("x", tools=[add], approve=approve_later)).pending, tuple[ToolCall, ...])
    assert_type(run.usage.total_tokens, int)
    assert_type(run.message.stop_reason == "end_turn", bool)
    async with claude.tool_loop(run.transcript, tools=[add], tool_timeout_s=5) as events:
        assert_type(events, ToolLoop)
        assert_type(events.transcript, list[anthropic.types.MessageParam])
        async for event in events:
            if isinstance(event, ToolFinished):
                assert_type(event.seconds, float)
    add("a", 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await claude.run_tools("x", tools=[], thinking={"type": "disabled"}, max_cost_usd=1, container=anthropic.omit)
    await claude.run_tools("x", tools=[], max_token=9)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    claude.tool_loop("x", tools=[], max_parralel_tools=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await claude.run_tools("x", tools=[5])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


async def conversing(claude: Client) -> None:
    """A conversation, its replies, and its system prompt."""
    prompt = SystemPrompt.from_file("support.v3.md", hash="97dd3b60")
    assert_type(prompt, SystemPrompt)
    assert_type(prompt.version, str | None)
    chat = claude.conversation(system=prompt, token_budget=50_000, tools=[get_weather, repr], overflow="summary")
    assert_type(chat, Conversation)
    reply = await chat.send("Weather?", pin=True, max_tokens=100, on_truncation="retry")
    assert_type(reply, Reply[None])
    assert_type(reply.parsed, None)
    typed = await chat.ask("A city?", output_format=City, keep_partial=True)
    assert_type(typed, Reply[City])
    assert_type(typed.parsed, City)
    assert_type(typed.parsed.name, str)
    await chat.ask("A city?", output_format=City(name="Bonn"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(reply.text, str)
    assert_type(reply.message, Message | BetaMessage)
    assert_type(reply.refusal, anthropic.types.RefusalStopDetails | None)
    assert_type(reply.usage.output_tokens, int)
    assert_type(reply.cost_usd, Decimal)
    asked = chat.stream([{"type": "text", "text": "And now?"}])
    async with asked as answer:
        assert_type(answer, Stream)
    assert_type(asked.reply, Reply | None)
    assert_type(chat.messages, list[anthropic.types.MessageParam])
    assert_type(chat.fork(), Conversation)
    assert_type(Conversation.from_json(chat.to_json(), claude, tools=[get_weather]), Conversation)
    Conversation.from_json(
        chat.to_json(), claude, tools=[get_weather], migrate={"tools"}, token_budget=None, max_iterations=9
    )
    Conversation.from_json(chat.to_json(), claude, migrate={"tool"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(chat.statistics().context_tokens, int)
    Conversation(AsyncAnthropic(), model="m", messages=chat.messages, tools=[{"name": "f", "input_schema": {}}])
    Conversation(AsyncAnthropic(), model="m", overflow="forget")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    claude.conversation(
        tools=[get_weather], approve=approve, tool_timeout_s=5, thinking={"type": "adaptive"}, timeout=9
    )
    claude.conversation(max_token=9)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    claude.conversation(thinking={"type": "enabled"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await chat.send("x", on_truncation="again")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def alone() -> AsyncAnthropic:
    """Guards are middleware of anyone's client."""
    guards: list[anthropic.Middleware] = [
        Record(),
        Retry(max_attempts=5),
        CircuitBreaker(),
        Admit(limits=Limits(requests_per_minute=50)),
        Meter(),
    ]
    return AsyncAnthropic(max_retries=0, middleware=guards)


def blocks() -> None:
    """Labels and deadlines are statements."""
    with penstock.labels(user="u1", feature="search", priority="interactive"), penstock.deadline(30):
        pass


def failing(error: Exception) -> None:
    """Errors carry their data."""
    match error:
        case NoKeyAvailable() | CircuitOpen() | QueueFull() | AdmissionTimeout():
            assert_type(error.retry_after_s, float | None)
        case KeyNotFound():
            assert_type(error.places, tuple[str, ...])
        case RequestExceedsQuota():
            assert_type(error.limit, str)
        case UnknownPrice():
            assert_type(error.model, str)
        case ToolLoopLimit():
            assert_type(error.limit, str)
        case ClientClosed() | PenstockError():
            assert_type(error.args, tuple[Any, ...])
        case _:
            pass


async def cancelling() -> None:
    """The test tools are typed as well."""

    async def scenario(cancelled: Cancelled) -> None:
        await cancelled(using())

    assert_type(await cancel_at_every_await(scenario, how="repeatedly", every=2), int)
