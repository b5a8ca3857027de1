"""Answers that can't go back as they came: whoever keeps the history asks once, answers every call, and goes on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import anthropic
import anyio
import httpx2
import pytest

from penstock import Conversation, InvalidHistory, StreamInterrupted, ToolLoopLimit
from penstock.simulator import Simulator
from penstock.tools import ToolLoop, run_tools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

MODEL: Final = "claude-sonnet-5-5"
PARAMS: Final[dict[str, Any]] = {"model": MODEL, "max_tokens": 100}
TEXT: Final[dict[str, Any]] = {"type": "text", "text": "Done."}
CALL: Final[dict[str, Any]] = {"type": "tool_use", "id": "a", "name": "f", "input": {"city": "Rome"}}
CITED: Final[dict[str, Any]] = {
    "type": "char_location", "cited_text": "x", "document_index": 0, "document_title": None, "file_id": None,
    "start_char_index": 0, "end_char_index": 1,
}  # fmt: skip
CONTAINER: Final = {"id": "container_1", "expires_at": "2999-01-01T00:00:00Z"}
ran: list[Any] = []


async def f(city: str = "nowhere") -> str:
    """Tell of a city."""
    await anyio.lowlevel.checkpoint()
    ran.append(city)
    return f"sunny in {city}"


class Model(httpx2.AsyncBaseTransport):
    """Streams answers in order, then says that it is done; each request must be one that the API takes."""

    def __init__(self, *answers: Sequence[dict[str, Any]], container: object = None) -> None:
        self.answers = list(answers)
        self.container = container
        self.bodies: list[Any] = []
        self.sent = 0
        self._simulator = Simulator()
        self._checked: Any = self._simulator.client()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(await request.aread())
        self.bodies.append(body)
        refused: httpx2.Response = await self._checked._client._transport.handle_async_request(request)
        if refused.status_code != 200:
            return refused
        content = self.answers.pop(0) if self.answers else [TEXT]
        self.sent += 1
        return httpx2.Response(
            200, headers={"content-type": "text/event-stream"}, content=b"".join(self._events(content)), request=request
        )

    def _events(self, content: Sequence[dict[str, Any]]) -> Any:
        message: dict[str, Any] = {
            "id": "m", "type": "message", "role": "assistant", "model": MODEL, "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 1},
        }  # fmt: skip
        yield event(type="message_start", message=message)
        for index, block in enumerate(content):
            yield event(type="content_block_start", index=index, content_block=opening(block))
            for delta in deltas(block):
                if delta == b"":
                    return
                if isinstance(delta, bytes):
                    yield delta
                    continue
                yield event(type="content_block_delta", index=index, delta=delta)
            yield event(type="content_block_stop", index=index)
        calls = any(block["type"] == "tool_use" for block in content)
        end = {"stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None, "container": self.container}
        yield event(type="message_delta", delta=end, usage={"output_tokens": 5})
        yield event(type="message_stop")

    @property
    def sdk(self) -> anthropic.AsyncAnthropic:
        """A client of it."""
        http = anthropic.DefaultAsyncHttpxClient(transport=self)
        return anthropic.AsyncAnthropic(api_key="k", base_url="http://a.invalid", http_client=http, max_retries=0)


def event(**data: Any) -> bytes:
    """An event as it is sent."""
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


def opening(block: dict[str, Any]) -> dict[str, Any]:
    """How a block begins."""
    empty: dict[str, Any] = {
        "text": {"text": "", "citations": None},
        "tool_use": {"input": {}},
        "server_tool_use": {"input": {}},
    }
    return {**{name: part for name, part in block.items() if name != "pieces"}, **empty.get(block["type"], {})}


def deltas(block: dict[str, Any]) -> Any:
    """What a block is made of: `pieces` as they are, or what it says."""
    if block["type"] == "text":
        for piece in block.get("pieces", [block.get("text", "")]):
            yield piece if isinstance(piece, bytes) else {"type": "text_delta", "text": piece}
        for citation in block.get("citations", ()):
            yield {"type": "citations_delta", "citation": citation}
    elif "input" in block:
        for piece in block.get("pieces", [json.dumps(block["input"])]):
            yield {"type": "input_json_delta", "partial_json": piece}


async def by_conversation(model: Model) -> Any:
    """Functions of a conversation, saved and loaded in between."""
    chat = Conversation(model.sdk, tools=[f], **PARAMS)
    reply = await chat.send("Hello")
    again = Conversation.from_json(chat.to_json(), model.sdk, tools=[f])
    await again.send("And now?")
    return reply.message


async def by_hand(model: Model) -> Any:
    """Tools that the caller runs."""
    chat = Conversation(model.sdk, tools=[{"name": "f", "input_schema": {"type": "object"}}], **PARAMS)
    reply = await chat.send("Hello")
    while reply.tool_calls:
        chat = Conversation.from_json(chat.to_json(), model.sdk)
        reply = await chat.send([{"type": "tool_result", "tool_use_id": call.id} for call in reply.tool_calls])
    return reply.message


async def by_stream(model: Model) -> Any:
    """A conversation that is streamed."""
    chat = Conversation(model.sdk, tools=[{"name": "f", "input_schema": {"type": "object"}}], **PARAMS)
    opened = chat.stream("Hello")
    async with opened as stream:
        async for _ in stream.text_stream:
            pass
    assert opened.reply is not None
    if calls := opened.reply.tool_calls:
        await chat.send([{"type": "tool_result", "tool_use_id": call.id} for call in calls])
    await chat.send("And now?")
    return opened.reply.message


async def by_run(model: Model) -> Any:
    """One call, and another from its transcript."""
    run = await run_tools(model.sdk, "Hello", tools=[f], **PARAMS)
    await run_tools(model.sdk, [*run.transcript, {"role": "user", "content": "And now?"}], tools=[f], **PARAMS)
    return run.message


async def by_loop(model: Model) -> Any:
    """Events, and another loop from the transcript."""
    async with ToolLoop(model.sdk, "Hello", tools=[f], **PARAMS) as events:
        async for _ in events:
            pass
    more: Any = {"role": "user", "content": "And now?"}
    await run_tools(model.sdk, [*events.transcript, more], tools=[f], **PARAMS)
    return events.run.message


WAYS: Final = [by_conversation, by_hand, by_stream, by_run, by_loop]
ALL = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(autouse=True)
async def nothing_ran() -> AsyncIterator[None]:
    """Each test for itself."""
    ran.clear()
    yield
    ran.clear()


@pytest.mark.lengthy
@ALL
async def test_an_empty_text_beside_a_call_is_left_out(way: Any) -> None:
    """The API gives such, and takes none back."""
    model = Model([{"type": "text", "text": ""}, CALL, {"type": "text", "text": " "}])
    await way(model)
    assert [block["type"] for block in model.bodies[1]["messages"][1]["content"]] == ["tool_use"]


@ALL
async def test_citations_go_back_as_they_came(way: Any) -> None:
    """The title is null, and required."""
    model = Model([{**TEXT, "citations": [CITED]}])
    await way(model)
    if way is not by_hand:
        assert model.bodies[1]["messages"][1]["content"][0]["citations"] == [CITED]


@pytest.mark.lengthy
@ALL
@pytest.mark.parametrize("given", [["x"], "x", 7, [{"city": "Rome"}]])
async def test_an_input_that_is_no_object_is_answered_and_wrapped(way: Any, given: object) -> None:
    """Asked for once; no tool runs with it, not even one that needs no arguments."""
    model = Model([{**CALL, "input": given}])
    await way(model)
    question, said, answered = model.bodies[1]["messages"][:3]
    assert question["role"] == "user"
    assert said["content"][0]["input"] == {"INVALID_JSON": json.dumps(given)}
    assert answered["content"][0]["tool_use_id"] == "a"
    if way in (by_conversation, by_run, by_loop):
        assert answered["content"][0]["is_error"] is True
        assert "not a JSON object" in answered["content"][0]["content"]
    assert ran == []
    assert len(model.bodies) <= 3


@pytest.mark.lengthy
@ALL
@pytest.mark.parametrize("second", [{**CALL}, {**CALL, "input": {"city": "Oslo"}}])
async def test_two_calls_with_one_id_are_told_apart(way: Any, second: Any) -> None:
    """One that came twice is one; two different ones each have an id, and an answer."""
    model = Model([CALL, second])
    await way(model)
    said, answered = model.bodies[1]["messages"][1:3]
    ids = ["a"] if second == CALL else ["a", "a_2"]
    assert [block["id"] for block in said["content"]] == ids
    assert [block["tool_use_id"] for block in answered["content"]] == ids


@pytest.mark.lengthy
@ALL
async def test_a_call_without_an_id_gets_one(way: Any) -> None:
    """As compatible servers send it."""
    model = Model([{**CALL, "id": ""}])
    await way(model)
    assert model.bodies[1]["messages"][1]["content"][0]["id"] == "toolu_2"


@ALL
async def test_halves_of_a_character_are_joined_and_lone_ones_replaced(way: Any) -> None:
    """The reply has them joined; what goes back is all whole."""
    model = Model([{"type": "text", "pieces": ["x\ud83d", "\ude00 \ud83d"]}])
    message = await way(model)
    assert message.content[0].text == "x\U0001f600 \ufffd"
    if way is not by_hand:
        assert model.bodies[1]["messages"][1]["content"][0]["text"] == "x\U0001f600 \ufffd"


@ALL
async def test_code_goes_on_in_its_container(way: Any) -> None:
    """In every request after it."""
    model = Model([CALL], container=CONTAINER)
    await way(model)
    assert "container" not in model.bodies[0]
    assert model.bodies[1]["container"] == "container_1"
    if way in (by_conversation, by_stream):
        assert model.bodies[-1]["container"] == "container_1"


async def test_code_goes_on_in_its_container_after_a_limit() -> None:
    """From the transcript, which knows it; from a copy of it, if it is given along; and in a conversation."""
    model = Model([CALL], [CALL], container=CONTAINER)
    with pytest.raises(ToolLoopLimit) as raised:
        await run_tools(model.sdk, "Hello", tools=[f], max_iterations=1, **PARAMS)
    limit: Any = raised.value
    assert limit.container == "container_1"
    run = await run_tools(model.sdk, limit.transcript, tools=[f], **PARAMS)
    assert run.container == "container_1"
    await run_tools(model.sdk, list(limit.transcript), tools=[f], container=limit.container, **PARAMS)
    assert [body.get("container") for body in model.bodies] == [None, *["container_1"] * 3]
    for messages in (
        limit.transcript,
        [*limit.transcript[:1], run.message],
        iter([*limit.transcript[:1], run.message]),
    ):
        chat = Conversation(model.sdk, messages=messages, **PARAMS)
        await chat.send("And now?" if messages is not limit.transcript else "")
        assert model.bodies[-1]["container"] == "container_1"


async def test_a_conversation_keeps_its_container_through_everything() -> None:
    """A fork, a copy that was saved, a limit; skills of the caller's stay, another container of his too."""
    model = Model([TEXT], container=CONTAINER)
    chat = Conversation(model.sdk, container={"skills": [{"type": "anthropic", "skill_id": "xlsx"}]}, **PARAMS)
    await chat.send("Hello")
    model.container = None
    for other in (chat, chat.fork(), Conversation.from_json(chat.to_json(), model.sdk)):
        await other.send("And now?")
        assert model.bodies[-1]["container"] == {"skills": model.bodies[0]["container"]["skills"], "id": "container_1"}
    named = Conversation(model.sdk, container="container_2", **PARAMS)
    model.container = CONTAINER
    await named.send("Hello")
    await named.send("And now?")
    assert model.bodies[-1]["container"] == "container_2"


async def test_a_container_that_is_over_is_not_asked_for() -> None:
    """The API makes another; one that tells no time is kept."""
    for until, sent in (("2020-01-01T00:00:00Z", None), (None, "container_1"), ("2999-01-01T00:00:00", "container_1")):
        model = Model(container={"id": "container_1", "expires_at": until})
        chat = Conversation(model.sdk, **PARAMS)
        await chat.send("Hello")
        await Conversation.from_json(chat.to_json(), model.sdk).send("And now?")
        assert model.bodies[-1].get("container") == sent


@pytest.mark.parametrize("nothing", [anthropic.omit, anthropic.NOT_GIVEN, anthropic.not_given])
async def test_what_is_omitted_is_not_there(nothing: Any) -> None:
    """In all that a conversation and a tool loop are told."""
    model = Model()
    chat = Conversation(
        model.sdk, model=MODEL, max_tokens=nothing, system=nothing, messages=nothing, tools=nothing, thinking=nothing,
        token_budget=nothing, cost_budget_usd=nothing, cache_ttl=nothing, id=nothing, max_iterations=nothing,
        tool_choice=nothing,
    )  # fmt: skip
    await chat.send("Hello", images=nothing, documents=nothing, pin=nothing, max_tokens=nothing, on_truncation=nothing)
    again = Conversation.from_json(
        chat.fork(id=nothing).to_json(), model.sdk, system=nothing, tools=nothing, extra_headers=nothing
    )
    await again.send(nothing if again.pending_tool_calls else "And now?", max_tokens=nothing)
    await run_tools(
        model.sdk, "Hello", tools=[f], max_cost_usd=nothing, container=nothing, tool_choice=nothing, **PARAMS
    )
    assert {name for body in model.bodies for name in body} == {"max_tokens", "messages", "model", "stream", "tools"}


@pytest.mark.parametrize(
    ("prompt", "place", "said"),
    [
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "Hi"}], "messages.1", "is an answer"),
        ("half \ud83d", "messages", "half of a surrogate pair"),
        ([{"role": "system", "content": "x"}], "messages.0", "can't begin with role 'system'"),
    ],
)
async def test_a_tool_loop_refuses_what_the_api_would(prompt: Any, place: str, said: str) -> None:
    """With the place, and what to do; nothing is sent."""
    model = Model()
    with pytest.raises(InvalidHistory, match=said) as raised:
        await run_tools(model.sdk, prompt, tools=[f], **PARAMS)
    assert raised.value.place == place
    assert model.bodies == []


async def test_a_tool_loop_refuses_what_only_some_models_take() -> None:
    """System turns; the beginning of an answer goes to models that take one, as does a paused answer to any."""
    system: Any = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"},
        {"role": "system", "content": "z"},
    ]
    with pytest.raises(ValueError, match="takes no system turns"):
        await run_tools(Model().sdk, system, tools=[f], model="claude-sonnet-5", max_tokens=100)
    begun: Any = system[:2]
    await run_tools(Model().sdk, begun, tools=[f], model="claude-haiku-4-5", max_tokens=100)
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    paused: Any = [begun[0], {"role": "assistant", "content": [search]}]
    await run_tools(Model().sdk, paused, tools=[f], **PARAMS)


@pytest.mark.parametrize("way", [by_conversation, by_run])
@pytest.mark.parametrize(("broken", "asked"), [(b"event: content_block_delta\ndata: {no\n\n", 1), (b"", 2)])
async def test_what_cannot_be_understood_is_asked_for_once(way: Any, broken: bytes, asked: int) -> None:
    """It would be paid again; what only broke off is asked for again, because nobody has seen it."""
    model = Model(*[[{"type": "text", "pieces": ["Well", broken]}]] * asked)
    if asked == 1:
        with pytest.raises(StreamInterrupted) as raised:
            await way(model)
        assert not raised.value.was_cut
        assert model.sent == 1
    else:
        model.answers.pop()
        await way(model)
        assert model.sent == 3
