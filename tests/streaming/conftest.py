"""Streams as bytes, and an SDK client whose every answer they are: no simulator, so that any bytes can come."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import anyio.lowlevel
import httpx2
import pytest
from anthropic import AsyncAnthropic

from penstock.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

Part: TypeAlias = "bytes | float | Exception"
HEADERS = {"content-type": "text/event-stream; charset=utf-8", "request-id": "req_1", "anthropic-workspace-id": "ws_1"}


def sse(*events: dict[str, Any], end: str = "\n") -> bytes:
    """Events as the API writes them."""
    lines = (f"event: {event['type']}{end}data: {json.dumps(event)}{end}{end}" for event in events)
    return "".join(lines).encode()


def start(**fields: Any) -> dict[str, Any]:
    """How a message begins."""
    usage = {"input_tokens": 25, "cache_read_input_tokens": 3, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5", "content": []}
    return {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage, **fields}}


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    """A content block: its start, its deltas, its end."""
    return [
        {"type": "content_block_start", "index": index, "content_block": content},
        *[{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas],
        {"type": "content_block_stop", "index": index},
    ]


def text(index: int, *parts: str) -> list[dict[str, Any]]:
    """A block of text."""
    return block(index, {"type": "text", "text": ""}, *[{"type": "text_delta", "text": part} for part in parts])


def end(stop_reason: str = "end_turn", **fields: Any) -> list[dict[str, Any]]:
    """How a message ends."""
    usage = {"output_tokens": 15, "output_tokens_details": {"thinking_tokens": 4}}
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return [{"type": "message_delta", "delta": delta, "usage": usage, **fields}, {"type": "message_stop"}]


CITATION = {
    "type": "char_location",
    "cited_text": "a river",
    "document_index": 0,
    "document_title": None,
    "start_char_index": 0,
    "end_char_index": 7,
}
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
RESULT = {
    "type": "web_search_tool_result",
    "tool_use_id": "srvtoolu_1",
    "content": [
        {
            "type": "web_search_result",
            "url": "https://a.example",
            "title": "A",
            "encrypted_content": "x",
            "page_age": None,
        }
    ],
}
RECORDED: list[dict[str, Any]] = [
    start(),
    {"type": "ping"},
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Let me "},
        {"type": "thinking_delta", "thinking": "see…"},
        {"type": "signature_delta", "signature": "c2ln"},
    ),
    *block(1, {"type": "redacted_thinking", "data": "ZGF0YQ=="}),
    *text(2, "Hello", ", ", 'wörld "\n\ttext_delta"', "", " 🎉"),
    *block(
        3,
        {"type": "text", "text": "", "citations": []},
        {"type": "citations_delta", "citation": CITATION},
        {"type": "text_delta", "text": "a river"},
        {"type": "citations_delta", "citation": {**CITATION, "document_index": 1}},
    ),
    {"type": "ping"},
    *block(
        4,
        {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}},
        {"type": "input_json_delta", "partial_json": ""},
        {"type": "input_json_delta", "partial_json": '{"city": "Par'},
        {"type": "input_json_delta", "partial_json": 'is", "days": [1, 2'},
        {"type": "input_json_delta", "partial_json": "]}"},
    ),
    *block(5, SEARCH, {"type": "input_json_delta", "partial_json": '{"query": "x"}'}),
    *block(6, RESULT),
    {"type": "a_new_event", "with": {"a": "field"}},
    *block(7, {"type": "a_new_block", "value": 1}, {"type": "a_new_delta", "value": 2}),
    *text(8, "Bye", "."),
    *end("tool_use"),
]
TEXTS = ["Hello", ", ", 'wörld "\n\ttext_delta"', "", " 🎉", "a river", "Bye", "."]
MCP = {"type": "mcp_tool_use", "id": "mcptoolu_1", "name": "n", "server_name": "s", "input": {}}
BETA: list[dict[str, Any]] = [
    start(),
    *block(
        0,
        {"type": "compaction", "content": None, "encrypted_content": None},
        {"type": "compaction_delta", "content": "a summary", "encrypted_content": "ZQ=="},
    ),
    *block(
        1,
        {
            "type": "fallback",
            "from": {"model": "claude-fable-5"},
            "to": {"model": "claude-opus-5-5"},
            "trigger": {"type": "refusal", "category": None},
        },
    ),
    *block(
        2,
        MCP,
        {"type": "input_json_delta", "partial_json": '{"a"'},
        {"type": "input_json_delta", "partial_json": ": 1}"},
    ),
    *block(3, {"type": "mcp_tool_result", "tool_use_id": "mcptoolu_1", "is_error": False, "content": []}),
    *text(4, "Hi", " there"),
    *end(context_management={"applied_edits": []}),
]


class Body(httpx2.AsyncByteStream):
    """Sends parts in turn: bytes; a number is a pause in seconds; an exception is raised."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            if isinstance(part, bytes):
                yield part
            else:
                await anyio.sleep(part)

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = True


class Canned(ScriptedTransport):
    """Answers every request with the same body; keeps what was asked."""

    def __init__(self, parts: Sequence[Part], headers: dict[str, str]) -> None:
        super().__init__(self._answer)
        self.parts = parts
        self.headers = headers
        self.bodies: list[Body] = []

    @property
    def asked(self) -> list[tuple[str, dict[str, Any], httpx2.Headers]]:
        return [(request.url.path, json.loads(request.content), request.headers) for request in self.requests]

    def _answer(self, _: httpx2.Request) -> httpx2.Response:
        self.bodies.append(Body(self.parts))
        return httpx2.Response(200, headers=self.headers, stream=self.bodies[-1])


class Wire:
    """What tests of streams need; see the module."""

    sse = staticmethod(sse)
    start = staticmethod(start)
    block = staticmethod(block)
    text = staticmethod(text)
    end = staticmethod(end)
    recorded = RECORDED
    texts = TEXTS
    beta = BETA

    def client(self, *parts: Part, headers: dict[str, str] | None = None, **options: Any) -> AsyncAnthropic:
        """An SDK client whose every answer is `parts`."""
        self.transport = Canned(parts, HEADERS | (headers or {}))
        http = httpx2.AsyncClient(transport=self.transport)
        return AsyncAnthropic(api_key="sk-ant-test", http_client=http, max_retries=0, open_telemetry=False, **options)

    def response(self, *parts: Part, **headers: str) -> httpx2.Response:
        """An answer that no client asked for."""
        request = httpx2.Request("POST", "https://api.example/v1/messages")
        return httpx2.Response(200, headers=HEADERS | headers, stream=Body(parts), request=request)


@pytest.fixture(scope="session")
def wire() -> Wire:
    """Streams, and clients and responses that they come from."""
    return Wire()
