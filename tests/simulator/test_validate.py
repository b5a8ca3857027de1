from __future__ import annotations

import base64
import gzip
import json
import zlib
from typing import Any

import pytest

from penstock.simulator import Simulator
from penstock.simulator.models import MODELS
from penstock.simulator.wire import Request

NEW, OLD = "2026-10-21", "2023-06-01"
USER = {"role": "user", "content": "Hi"}
TOOL: dict[str, Any] = {"name": "look", "input_schema": {"type": "object", "additionalProperties": False}}
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}


def answer(
    body: object,
    *,
    path: str = "/v1/messages",
    headers: dict[str, str] | None = None,
    data: bytes | None = None,
    query: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    """(status, JSON body) of the simulator's answer."""
    method = "GET" if path == "/v1/models" else "POST"
    given = {"x-api-key": "k", "anthropic-version": NEW, **(headers or {})}
    simulator = Simulator()
    exchange = simulator.open(
        Request(method=method, path=path, query=query or {}, headers=given, body=data or json.dumps(body).encode())
    )
    status = exchange.begin()
    got = b"".join(exchange.produce(step) for step in exchange.steps)
    exchange.close(complete=True)
    return status, json.loads(got) if got.startswith(b"{") else {}


def refusal(body: object, **how: Any) -> str:
    """The message of the 400 that `body` gets."""
    status, got = answer(body, **how)
    assert status == 400, got
    assert got["error"]["type"] == "invalid_request_error"
    return str(got["error"]["message"])


def ask(model: str = "claude-opus-4-8", **fields: object) -> dict[str, object]:
    """A valid body with fields replaced, or left out where they are `...`."""
    body: dict[str, object] = {"model": model, "max_tokens": 2000, "messages": [USER], **fields}
    return {name: value for name, value in body.items() if value is not ...}


def talk(*messages: object, model: str = "claude-opus-4-8") -> dict[str, object]:
    """A body with these messages."""
    return ask(model, messages=list(messages))


def user(*blocks: object) -> dict[str, object]:
    """A message of the user with these blocks."""
    return {"role": "user", "content": list(blocks)}


def image(width: int = 10, height: int = 10, **fields: object) -> dict[str, object]:
    """A PNG of this size, as far as its header goes."""
    data = base64.b64encode(PNG + width.to_bytes(4) + height.to_bytes(4)).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}, **fields}


def pdf(pages: int) -> dict[str, object]:
    """A PDF with so many page objects."""
    data = base64.b64encode(b"%PDF-1.7 " + b"/Type /Page " * pages).decode()
    return {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": data}}


def source(kind: str = "image", **fields: object) -> dict[str, object]:
    """A block with this source."""
    return {"type": kind, "source": fields}


FIELDS: list[tuple[dict[str, object], str]] = [
    (ask(model=...), "model: Field required"),  # type: ignore[arg-type]
    (ask(model=5), "model: Input should be a valid string"),  # type: ignore[arg-type]
    (ask(max_tokens=...), "max_tokens: Field required"),
    (ask(max_tokens="10"), "max_tokens: Input should be a valid integer"),
    (ask(max_tokens=True), "max_tokens: Input should be a valid integer"),
    (ask(max_tokens=-1), "max_tokens: Input should be greater than or equal to 0"),
    (
        ask("claude-opus-4-6", max_tokens=128_001),
        "max_tokens: 128001 > 128000, which is the maximum allowed number of output tokens for claude-opus-4-6",
    ),
    (ask(max_tokens=0, stream=True), "max_tokens: 0 may not be combined with `stream`."),
    (
        ask(max_tokens=0, output_config={"format": {"type": "json_schema", "schema": {}}}),
        "max_tokens: 0 may not be combined with `output_config.format`.",
    ),
    (
        ask(max_tokens=0, tools=[TOOL], tool_choice={"type": "any"}),
        "max_tokens: 0 may not be combined with `tool_choice`.",
    ),
    (
        ask("claude-opus-4-6", max_tokens=0, thinking={"type": "enabled", "budget_tokens": 1024}),
        "max_tokens: 0 may not be combined with `thinking`.",
    ),
    (ask(temperature=1), "temperature: Extra inputs are not permitted"),
    (ask(top_p=0.5), "top_p: Extra inputs are not permitted"),
    (ask(top_k=5), "top_k: Extra inputs are not permitted"),
    (ask(prompt="x"), "prompt: Extra inputs are not permitted"),
    (ask(context_management={}), "context_management: Extra inputs are not permitted"),
    (ask(stream="yes"), "stream: Input should be a valid boolean"),
    (ask(stop_sequences="x"), "stop_sequences: Input should be a valid list"),
    (ask(stop_sequences=[" "]), "stop_sequences: each stop sequence must contain non-whitespace"),
    (ask(metadata={"name": "x"}), "metadata.name: Extra inputs are not permitted"),
    (ask(metadata={"user_id": 5}), "metadata.user_id: Input should be a valid string"),
    (ask(service_tier="fast"), "service_tier: Input should be 'auto' or 'standard_only'"),
    (ask(inference_geo=5), "inference_geo: Input should be a valid string"),
    (ask(speed="fast", model="claude-opus-4-6"), "speed: fast mode is not supported for this model."),
    (ask(speed="fast", model="claude-opus-5"), "speed: fast mode is not supported for this model."),
    (ask(speed="slow"), "speed: Input should be 'standard' or 'fast'"),
    (ask(cache_control={"type": "x"}), "cache_control.type: Input should be 'ephemeral'"),
    (ask(cache_control={"type": "ephemeral", "ttl": "2h"}), "cache_control.ttl: Input should be '5m' or '1h'"),
    (ask(system=5), "system: Input should be a valid list"),
    (ask(system=[{"type": "image"}]), "system.0.type: Input should be 'text'"),
    (ask(system=[{"type": "text", "text": ""}]), "messages: text content blocks must be non-empty"),
    (ask(output_config={"verbosity": 1}), "output_config.verbosity: Extra inputs are not permitted"),
    (
        ask(output_config={"effort": "huge"}),
        "output_config.effort: Input should be 'low', 'medium', 'high', 'xhigh' or 'max'",
    ),
    (ask("claude-haiku-4-5", output_config={"effort": "low"}), "This model does not support the effort parameter."),
    (ask(output_config={"format": {"type": "xml"}}), "output_config.format.type: Input should be 'json_schema'"),
    (ask(output_config={"format": {"type": "json_schema"}}), "output_config.format.schema: Field required"),
]
THINKING: list[tuple[dict[str, object], str]] = [
    (ask(thinking=True), "thinking: Input should be a valid dictionary"),
    (
        ask(thinking={"type": "on"}),
        "thinking.type: Input should be 'adaptive', 'between_tools', 'disabled' or 'enabled'",
    ),
    (
        ask(thinking={"type": "enabled", "budget_tokens": 1024}),
        (
            '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and '
            '"output_config.effort" '
            "to control thinking behavior."
        ),
    ),
    (
        ask("claude-sonnet-5-5", thinking={"type": "disabled"}),
        (
            'To turn thinking off on this model, send "thinking": {"type": "between_tools"} '
            'instead of {"type": "disabled"}.'
        ),
    ),
    (
        ask("claude-opus-5-5", thinking={"type": "disabled"}),
        '"thinking.type.disabled" is not supported for this model.',
    ),
    (
        ask("claude-opus-4-5", thinking={"type": "adaptive"}),
        '"thinking.type.adaptive" is not supported for this model.',
    ),
    (
        ask(thinking={"type": "between_tools"}),
        '"thinking.type.between_tools" is not supported for this model.',
    ),
    (ask("claude-opus-4-6", thinking={"type": "enabled"}), "thinking.enabled.budget_tokens: Field required"),
    (
        ask("claude-opus-4-6", thinking={"type": "enabled", "budget_tokens": 1000}),
        "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024",
    ),
    (
        ask("claude-opus-4-6", thinking={"type": "enabled", "budget_tokens": 2000}),
        (
            "`max_tokens` must be greater than `thinking.budget_tokens`. Please consult our documentation at "
            "https://docs.claude.com/en/docs/build-with-claude/extended-thinking#max-tokens-and-context-window-size"
        ),
    ),
    (
        ask(
            "claude-opus-4-6",
            thinking={"type": "enabled", "budget_tokens": 1024},
            tools=[TOOL],
            tool_choice={"type": "any"},
        ),
        "Thinking may not be enabled when tool_choice forces tool use.",
    ),
    (
        ask(thinking={"type": "adaptive", "display": "full"}),
        "thinking.adaptive.display: Input should be 'summarized' or 'omitted'",
    ),
    (
        ask("claude-haiku-5-5", thinking={"type": "disabled"}, output_config={"effort": "max"}),
        '"thinking.type.disabled" is not supported with "output_config.effort" above "high" on this model.',
    ),
]
FORCED = 'tool_choice: type "tool" and "any" are not supported for this model.'
TOOLS: list[tuple[dict[str, object], str]] = [
    (ask(tools={}), "tools: Input should be a valid list"),
    (ask(tools=["x"]), "tools.0: Input should be a valid dictionary"),
    (ask(tools=[{"input_schema": {"type": "object"}}]), "tools.0.custom.name: Field required"),
    (ask(tools=[{**TOOL, "name": "a b"}]), "tools.0.custom.name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'"),
    (ask(tools=[{**TOOL, "description": 5}]), "tools.0.custom.description: Input should be a valid string"),
    (ask(tools=[{**TOOL, "parameters": {}}]), "tools.0.custom.parameters: Extra inputs are not permitted"),
    (ask(tools=[{"name": "a"}]), "tools.0.custom.input_schema: Field required"),
    (ask(tools=[{"name": "a", "input_schema": {}}]), "tools.0.custom.input_schema.type: Field required"),
    (
        ask(tools=[{"name": "a", "input_schema": {"type": "array"}}]),
        "tools.0.custom.input_schema.type: Input should be 'object'",
    ),
    (
        ask(
            tools=[
                {"name": "a", "strict": True, "input_schema": {**TOOL["input_schema"], "anyOf": [{"type": "object"}]}}
            ]
        ),
        "tools.0.custom.input_schema: For 'object' type, 'additionalProperties' must be explicitly set to false",
    ),
    (ask(tools=[TOOL, TOOL]), "tools: Tool names must be unique."),
    (ask(tools=[{"type": "web_search_20250305", "name": 5}]), "tools.0.name: Input should be a valid string"),
    (
        ask(tools=[{**TOOL, "name": f"t{n}", "strict": True} for n in range(21)]),
        "tools: at most 20 tools may be strict.",
    ),
    (
        ask(tools=[{"name": "a", "strict": True, "input_schema": {"type": "object", "anyOf": [{"type": "object"}]}}]),
        "tools.0.custom.input_schema: For 'object' type, 'additionalProperties' must be explicitly set to false",
    ),
    (
        ask(tools=[{"type": "magic_2026", "name": "m"}]),
        "tools.0: Input tag 'magic_2026' found using 'type' does not match any of the expected tags",
    ),
    (
        ask("claude-opus-5-5", tools=[{"type": "computer_20250124", "name": "computer"}]),
        "tools.0: 'computer_20250124' is not supported for this model.",
    ),
    (
        ask(tools=[TOOL], tool_choice={"type": "some"}),
        "tool_choice.type: Input should be 'auto', 'any', 'tool' or 'none'",
    ),
    (ask(tool_choice={"type": "auto"}), "tool_choice: tool_choice may only be specified while providing tools."),
    (ask(tools=[TOOL], tool_choice={"type": "tool"}), "tool_choice.tool.name: Field required"),
    (ask(tools=[TOOL], tool_choice={"type": "tool", "name": "x"}), "Tool 'x' not found in provided tools"),
    (
        ask(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": 1}),
        "tool_choice.auto.disable_parallel_tool_use: Input should be a valid boolean",
    ),
    *[
        (ask(model, tools=[TOOL], tool_choice={"type": "any"}), FORCED)
        for model in ("claude-opus-5-5", "claude-sonnet-5-5", "claude-fable-5-1", "claude-fable-5-2")
    ],
]
EMPTY = "all messages must have non-empty content except for the optional final assistant message"
MESSAGES: list[tuple[dict[str, object], str]] = [
    (ask(messages=...), "messages: Field required"),
    (ask(messages={}), "messages: Input should be a valid list"),
    (ask(messages=[]), "messages: at least one message is required"),
    (ask(messages=[USER] * 100_001), "messages: Too many messages: 100001 > 100000 maximum"),
    (talk("Hi"), "messages.0: Input should be a valid dictionary"),
    (talk({"content": "Hi"}), "messages.0.role: Field required"),
    (talk({"role": "robot", "content": "Hi"}), "messages.0.role: Input should be 'user' or 'assistant'"),
    (talk({"role": "user"}), "messages.0.content: Field required"),
    (talk({"role": "user", "content": 5}), "messages.0.content: Input should be a valid list"),
    (talk({"role": "user", "content": ""}), f"messages.0: {EMPTY}"),
    (talk({"role": "user", "content": " \n"}), "messages: text content blocks must contain non-whitespace text"),
    (talk({**USER, "name": "x"}), "messages.0.name: Extra inputs are not permitted"),
    (
        talk({"role": "system", "content": "Hi"}, model="claude-sonnet-5"),
        (
            'messages: Unexpected role "system". The Messages API accepts a top-level `system` parameter, '
            'not "system" as an '
            "input message role."
        ),
    ),
    (talk(user("x")), "messages.0.content.0: Input should be a valid dictionary"),
    (talk(user({"text": "x"})), "messages.0.content.0.type: Field required"),
    (
        talk(user({"type": "audio"})),
        (
            "messages.0.content.0: Input tag 'audio' found using 'type' does not match any of the expected "
            "tags: 'text', "
            "'image', 'document', 'search_result', 'tool_result'"
        ),
    ),
    (
        talk(user({"type": "bash_tool_result"})),
        (
            "messages.0.content.0: Input tag 'bash_tool_result' found using 'type' does not match any of "
            "the expected tags: "
            "'text', 'image', 'document', 'search_result', 'tool_result'"
        ),
    ),
    (talk(user({"type": "text"})), "messages.0.content.0.text.text: Field required"),
    (talk(user({"type": "text", "text": ""})), "messages: text content blocks must be non-empty"),
    (talk(user({"type": "text", "text": " "})), "messages: text content blocks must contain non-whitespace text"),
    (
        talk(user({"type": "text", "text": "x", "id": 1})),
        "messages.0.content.0.text.id: Extra inputs are not permitted",
    ),
    (
        talk(user({"type": "text", "text": "x", "citations": [{}]})),
        "messages.0.content.0.text.citations: Citations are not permitted on `text` blocks of `user` messages.",
    ),
    (
        talk(USER, {"role": "assistant", "content": [pdf(1)]}, USER),
        "messages.1.content.0: `document` blocks are not permitted in `assistant` messages.",
    ),
    (
        talk(USER, {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n"}]}, USER),
        "messages.1.content.0.tool_use.input: Field required",
    ),
    (
        talk(
            USER,
            {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x", "cache_control": {}}]},
            USER,
        ),
        "messages.1.content.0.redacted_thinking.cache_control: Extra inputs are not permitted",
    ),
    (
        talk(USER, CALL, user({**RESULT, "content": [{"type": "tool_use"}]})),
        (
            "messages.2.content.0.tool_result.content.0: Input tag 'tool_use' found using 'type' does not "
            "match any of the "
            "expected tags: 'text', 'image', 'document', 'search_result', 'tool_reference', 'browser_state'"
        ),
    ),
    (
        talk(USER, CALL, user({**RESULT, "content": 5})),
        "messages.2.content.0.tool_result.content: Input should be a valid list",
    ),
]
PREFILL = "This model does not support assistant message prefill. The conversation must end with a user message."
UNANSWERED = (
    "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: t1. Each "
    "`tool_use` block must "
    "have a corresponding `tool_result` block in the next message."
)
UNEXPECTED = (
    "messages.{at}.content: unexpected `tool_use_id` found in `tool_result` blocks: t1. Each `tool_result` "
    "block must have a "
    "corresponding `tool_use` block in the previous message."
)
OLD_MODEL = "claude-haiku-4-5"
TURNS: list[tuple[dict[str, object], str]] = [
    (talk(USER, {"role": "assistant", "content": "So"}), PREFILL),
    (
        talk(USER, {"role": "assistant", "content": "So "}, model=OLD_MODEL),
        "messages: final assistant content cannot end with trailing whitespace",
    ),
    (talk(USER, CALL, USER), UNANSWERED),
    (talk(USER, CALL, user({"type": "text", "text": "first"}, RESULT)), UNANSWERED),
    (talk(USER, CALL, model=OLD_MODEL), UNANSWERED),
    (talk(user(RESULT)), UNEXPECTED.format(at=0)),
    (talk(USER, CALL, user(RESULT), {"role": "assistant", "content": "Ok"}, user(RESULT)), UNEXPECTED.format(at=4)),
    (
        talk(USER, CALL, user(RESULT, RESULT)),
        "messages.2.content: each tool_use must have a single result. Found multiple `tool_result` blocks with id: t1",
    ),
    (talk(USER, CALL, CALL, user(RESULT)), "messages.1.content: `tool_use` ids must be unique"),
]
MEDIA: list[tuple[dict[str, object], str]] = [
    (talk(user({"type": "image"})), "messages.0.content.0.image.source: Field required"),
    (
        talk(user(source(type="disk"))),
        "messages.0.content.0.image.source.type: Input should be 'base64', 'url' or 'file'",
    ),
    (talk(user(source(type="url"))), "messages.0.content.0.image.source.url.url: Field required"),
    (talk(user(source(type="file"))), "messages.0.content.0.image.source.file.file_id: Field required"),
    (talk(user(source(type="base64"))), "messages.0.content.0.image.source.base64.data: Field required"),
    (talk(user(source(type="base64", data="?"))), "messages.0.content.0.image.source.base64: invalid base64 data"),
    (
        talk(user(source(type="base64", data="aGk=", media_type="image/bmp"))),
        (
            "messages.0.content.0.image.source.base64.media_type: Input should be 'image/jpeg', "
            "'image/png', 'image/gif' or "
            "'image/webp'"
        ),
    ),
    (
        talk(user(source(type="base64", data="aGk=", media_type="image/png"))),
        "messages.0.content.0.image.source.base64.data: Could not process image",
    ),
    (
        talk(
            user(
                source(
                    type="base64",
                    data=base64.b64encode(b"GIF89a" + bytes([1, 0, 1, 0])).decode(),
                    media_type="image/png",
                )
            )
        ),
        "messages.0.content.0.image.source.base64.data: Image does not match the provided media type image/png",
    ),
    (
        talk(user(source(type="base64", data="A" * (10 * 1024 * 1024 + 4), media_type="image/png"))),
        "messages.0.content.0.image.source.base64: image exceeds 10 MB maximum: 10485764 bytes > 10485760 bytes",
    ),
    (
        talk(user(image(8001, 10))),
        "messages.0.content.0.image.source.base64.data: image dimensions exceed max allowed size: 8000 pixels",
    ),
    (
        talk(user(*[image(2001, 10)] * 21)),
        "messages: At least one of the image dimensions exceed max allowed size for many-image requests: 2000 pixels",
    ),
    (talk(user(*[image()] * 601)), "messages: Too many images: 601 > 600 maximum"),
    (talk(user(*[image()] * 101), model=OLD_MODEL), "messages: Too many images: 101 > 100 maximum"),
    (
        talk(user(image(3840, 2160, transformations={"oversized_image": "error"}))),
        "messages.0.content.0.image: image dimensions 3840x2160 exceed the largest that fit this model: 2576x1449",
    ),
    (
        talk(user(source("document", type="base64", data="aGk=", media_type="application/pdf"))),
        "messages.0.content.0.document.source.base64.data: The PDF specified was not valid.",
    ),
    (
        talk(user(source("document", type="base64", data="aGk=", media_type="text/plain"))),
        "messages.0.content.0.document.source.base64.media_type: Input should be 'application/pdf'",
    ),
    (talk(user(pdf(101)), model=OLD_MODEL), "messages: A maximum of 100 PDF pages may be provided."),
    (
        talk(USER, CALL, user({**RESULT, "content": [source(type="disk")]})),
        "messages.2.content.0.tool_result.content.0.image.source.type: Input should be 'base64', 'url' or 'file'",
    ),
]
ALL = FIELDS + THINKING + TOOLS + MESSAGES + TURNS + MEDIA


@pytest.mark.lengthy
@pytest.mark.parametrize(("body", "message"), ALL, ids=[f"{n}-{message[:50]}" for n, (_, message) in enumerate(ALL)])
def test_what_the_api_refuses_is_refused_with_its_words(body: dict[str, object], message: str) -> None:
    """Each invalid body gets 400 `invalid_request_error` and the message that says why."""
    assert refusal(body) == message


ACCEPTED: list[dict[str, object]] = [
    ask(max_tokens=0),
    ask(system="Be terse.", metadata={"user_id": "u"}, service_tier="auto", stop_sequences=["x"], inference_geo="us"),
    ask(system=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}], metadata={}),
    ask(cache_control={"type": "ephemeral"}),
    ask(cache_control={"type": "ephemeral", "ttl": "1h"}, container=None, output_config=None, tool_choice=None),
    ask("claude-opus-5-5", speed="fast", output_config={"effort": "max"}),
    ask("claude-opus-4-6", speed="standard", thinking={"type": "enabled", "budget_tokens": 1024, "display": "omitted"}),
    ask("claude-sonnet-5-5", thinking={"type": "between_tools"}),
    ask("claude-haiku-5-5", thinking={"type": "disabled"}, output_config={"effort": "high"}),
    ask("claude-haiku-5-5", tools=[TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True}),
    ask(
        tools=[{**TOOL, "strict": True, "description": "x", "type": "custom"}],
        tool_choice={"type": "tool", "name": "look"},
    ),
    ask(
        tools=[
            {
                **TOOL,
                "strict": True,
                "input_schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"a": {"type": "string", "enum": ["x"]}},
                    "required": ["a"],
                },
            }
        ]
    ),
    ask(tools=[{"type": "web_search_20260209", "name": "web_search"}, {"type": "browser_toolset_20260801"}]),
    ask("claude-opus-4-8", tools=[{"type": "computer_20250124", "name": "computer"}], tool_choice={"type": "none"}),
    ask(tool_choice={"type": "none"}),
    ask(output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}}),
    talk(USER, {"role": "system", "content": "Now in French."}, USER),
    talk(USER, {"role": "assistant", "content": "So"}, model=OLD_MODEL),
    talk(USER, {"role": "assistant", "content": []}, model=OLD_MODEL),
    talk(USER, {"role": "assistant", "content": ""}, model=OLD_MODEL),
    talk(USER, CALL, user(RESULT), USER),
    talk(USER, CALL, user(RESULT, {"type": "text", "text": "and more"})),
    talk(USER, CALL, user({**RESULT, "content": [image()], "is_error": True})),
    talk(USER, CALL, user({"type": "tool_result", "tool_use_id": "t1"})),
    talk(
        USER,
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": "s"}, *CALL["content"]]},
        user(RESULT),
    ),
    talk(
        USER,
        {"role": "assistant", "content": [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}]},
    ),
    talk(USER, {"role": "assistant", "content": [{"type": "web_search_tool_result", "content": []}]}, USER),
    talk(user(image(8000, 8000), source(type="url", url="https://x"), source(type="file", file_id="f"))),
    talk(user(image(100, 100, transformations={"oversized_image": "error"}), pdf(3))),
    talk(
        user(
            source("document", type="text", data="x"),
            {"type": "search_result", "content": [], "source": "s", "title": "t"},
        )
    ),
    talk(user(*[image(2000, 2000)] * 21)),
]


@pytest.mark.lengthy
@pytest.mark.parametrize("body", ACCEPTED, ids=range(len(ACCEPTED)))
def test_what_the_api_accepts_is_accepted(body: dict[str, object]) -> None:
    """Each valid body gets a message."""
    status, got = answer(body)
    assert (status, got.get("type")) == (200, "message"), got


@pytest.mark.lengthy
@pytest.mark.parametrize("model", sorted(MODELS))
def test_each_model_accepts_its_own_thinking_types_only(model: str) -> None:
    """Over all models and types, what is accepted is what the model table says."""
    for kind in ("adaptive", "between_tools", "disabled", "enabled"):
        status, _ = answer(ask(model, thinking={"type": kind, "budget_tokens": 1024}))
        assert (status == 200) == (kind in MODELS[model].thinking), kind


def test_sampling_parameters_live_on_in_the_old_version() -> None:
    """Version 2023-06-01 takes them, in their ranges."""
    old = {"anthropic-version": OLD}
    assert answer(ask(temperature=0.5, top_p=1, top_k=3), headers=old)[0] == 200
    assert answer(ask(temperature=None), headers=old)[0] == 200
    assert refusal(ask(temperature=1.5), headers=old) == "temperature: range: 0..1"
    assert refusal(ask(top_p="x"), headers=old) == "top_p: Input should be a valid number"
    assert refusal(ask(top_k=-1), headers=old) == "top_k: Input should be greater than or equal to 0"
    documents = talk(USER, {"role": "assistant", "content": [pdf(1)]}, USER)
    assert answer(documents, headers=old)[0] == 200


def test_the_version_must_be_known() -> None:
    """A missing or unknown `anthropic-version` is refused before the body is read."""
    simulator = Simulator()
    for headers, message in (
        ({}, "anthropic-version: header is required"),
        ({"anthropic-version": "2020-01-01"}, 'anthropic-version: "2020-01-01" is not a valid version'),
    ):
        exchange = simulator.open(
            Request(method="POST", path="/v1/messages", query={}, headers={"x-api-key": "k", **headers}, body=b"{")
        )
        assert exchange.begin() == 400
        (step,) = exchange.steps
        assert json.loads(exchange.produce(step))["error"]["message"] == message


TEXT: dict[str, Any] = {"type": "text", "text": "x"}
MARK: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}
FIVE: dict[str, Any] = {**TEXT, **MARK}
HOUR: dict[str, Any] = {**TEXT, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
SHORTER_FIRST = (
    "{}.cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block. Note "
    "that blocks are processed in the following order: `tools`, `system`, `messages`."
)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (talk(user(*[FIVE] * 5)), "A maximum of 4 blocks with cache_control may be provided. Found 5."),
        (
            ask(
                messages=[user(FIVE, FIVE)],
                system=[FIVE, FIVE],
                tools=[{**TOOL, "cache_control": {"type": "ephemeral"}}],
            ),
            "A maximum of 4 blocks with cache_control may be provided. Found 5.",
        ),
        (
            ask(messages=[user(*[FIVE] * 4, TEXT)], cache_control={"type": "ephemeral"}),
            "A maximum of 4 blocks with cache_control may be provided. Found 4, and automatic caching needs one more.",
        ),
        (
            ask(messages=[user(TEXT, FIVE)], cache_control={"type": "ephemeral", "ttl": "1h"}),
            "cache_control.ttl: the last block, messages.0.content.1, has a cache_control with another ttl.",
        ),
        (ask(messages=[user(HOUR)], system=[FIVE]), SHORTER_FIRST.format("messages.0.content.0")),
        (
            ask(system=[FIVE], cache_control={"type": "ephemeral", "ttl": "1h"}),
            SHORTER_FIRST.format("messages"),
        ),
        (
            talk(user({**TEXT, "cache_control": {"type": "forever"}})),
            "messages.0.content.0.cache_control.type: Input should be 'ephemeral'",
        ),
        (
            ask(tools=[{**TOOL, "cache_control": {"type": "ephemeral", "ttl": 5}}]),
            "tools.0.cache_control.ttl: Input should be '5m' or '1h'",
        ),
        (
            ask(system=[{**TEXT, "cache_control": {"type": "ephemeral", "scope": "all"}}]),
            "system.0.cache_control.scope: Extra inputs are not permitted",
        ),
        (
            talk(user({**TEXT, "cache_control": 5})),
            "messages.0.content.0.cache_control: Input should be a valid dictionary",
        ),
    ],
)
def test_marks_of_the_cache_that_the_api_refuses(body: dict[str, object], message: str) -> None:
    """At most four, longer times first, and each of them well formed."""
    assert refusal(body) == message
    assert (
        refusal({name: value for name, value in body.items() if name != "max_tokens"}, path="/v1/messages/count_tokens")
        == message
    )


@pytest.mark.parametrize(
    "body",
    [
        talk(user(*[FIVE] * 4)),
        ask(messages=[user(FIVE, FIVE, FIVE, TEXT)], cache_control={"type": "ephemeral"}),
        ask(messages=[user(FIVE, FIVE, FIVE, FIVE)], cache_control={"type": "ephemeral"}),
        ask(messages=[user(TEXT, HOUR)], cache_control={"type": "ephemeral", "ttl": "1h"}),
        ask(messages=[user(HOUR, FIVE)], system=[HOUR], cache_control=None),
        ask(system=[{**TEXT, "cache_control": None}]),
    ],
)
def test_marks_of_the_cache_that_the_api_accepts(body: object) -> None:
    """Automatic caching of a block that is marked already needs no place of its own."""
    assert answer(body)[0] == 200


COMPACT = {"anthropic-beta": "compact-2026-01-12"}
CLEAR = {"anthropic-beta": "context-management-2025-06-27"}


def compact(**fields: object) -> dict[str, object]:
    """A body that asks for compaction."""
    return ask("claude-opus-4-8", context_management={"edits": [{"type": "compact_20260112", **fields}]})


AT = "context_management.edits.0"
UNEXPECTED = AT + ": Input tag '{}' found using 'type' does not match any of the expected tags: {}"


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (compact(), {}, "context_management: Extra inputs are not permitted"),
        (compact(), {"anthropic-beta": "files-api-2025-04-14"}, "context_management: Extra inputs are not permitted"),
        (
            compact(),
            CLEAR,
            UNEXPECTED.format("compact_20260112", "'clear_thinking_20251015', 'clear_tool_uses_20250919'"),
        ),
        (
            ask(context_management={"edits": [{"type": "clear_tool_uses_20250919"}]}),
            COMPACT,
            UNEXPECTED.format("clear_tool_uses_20250919", "'compact_20260112'"),
        ),
        (ask(context_management=[]), COMPACT, "context_management: Input should be a valid dictionary"),
        (ask(context_management={"edit": []}), COMPACT, "context_management.edit: Extra inputs are not permitted"),
        (ask(context_management={"edits": {}}), COMPACT, "context_management.edits: Input should be a valid list"),
        (ask(context_management={"edits": [1]}), COMPACT, f"{AT}: Input should be a valid dictionary"),
        (compact(keep=3), COMPACT, f"{AT}.compact_20260112.keep: Extra inputs are not permitted"),
        (
            compact(trigger={"type": "input_tokens", "value": 49_999}),
            COMPACT,
            f"{AT}.compact_20260112.trigger.value: Input should be greater than or equal to 50000",
        ),
        (
            compact(trigger={"type": "tool_uses", "value": 50_000}),
            COMPACT,
            f"{AT}.compact_20260112.trigger.type: Input should be 'input_tokens'",
        ),
        (compact(trigger={"type": "input_tokens"}), COMPACT, f"{AT}.compact_20260112.trigger.value: Field required"),
        (
            compact(pause_after_compaction=1),
            COMPACT,
            f"{AT}.compact_20260112.pause_after_compaction: Input should be a valid boolean",
        ),
        (compact(instructions=1), COMPACT, f"{AT}.compact_20260112.instructions: Input should be a valid string"),
        (
            {**compact(), "model": "claude-haiku-4-5"},
            COMPACT,
            f"{AT}.compact_20260112: compaction is not supported for this model.",
        ),
        (
            talk(user({"type": "compaction", "content": ""})),
            COMPACT,
            "messages.0.content.0.compaction.content: String should have at least 1 character",
        ),
        (
            talk(user({"type": "compaction", "content": 1})),
            COMPACT,
            "messages.0.content.0: Input should be a valid string",
        ),
    ],
)
def test_compaction_that_the_api_refuses(body: object, headers: dict[str, str], message: str) -> None:
    """It needs its beta and a model that has it; each field is checked."""
    assert refusal(body, headers=headers) == message


def test_compaction_that_the_api_accepts() -> None:
    """With all its fields; blocks of it, also those that failed."""
    trigger = {"type": "input_tokens", "value": 50_000}
    for body in (
        compact(),
        compact(trigger=trigger, pause_after_compaction=False, instructions="Keep names."),
        compact(trigger=None, instructions=None),
        talk({"role": "assistant", "content": [{"type": "compaction", "content": None}]}, USER),
    ):
        assert answer(body, headers=COMPACT)[0] == 200
    clear = ask(context_management={"edits": [{"type": "clear_tool_uses_20250919"}]})
    assert answer(clear, headers=CLEAR)[0] == 200
    assert "Input tag 'compaction'" in refusal(talk(user({"type": "compaction", "content": "So"})))


@pytest.mark.parametrize(
    ("policy", "profile", "code"),
    [
        ({"bill_to": "user_profile"}, "", "user_profile_required"),
        ({"bill_to": "user_profile"}, "up_1", None),
        ({"bill_to": "self"}, "", None),
        (None, "", None),
    ],
)
def test_a_user_profile_that_pays_is_named(policy: Any, profile: str, code: str | None) -> None:
    """`bill_to: user_profile` without the header `anthropic-user-profile-id` is refused, by its code."""
    headers = {"anthropic-beta": "billing-policy-2026-11-01", "anthropic-user-profile-id": profile}
    status, got = answer(ask(billing_policy=policy), headers=headers)
    assert status == (200 if code is None else 400)
    assert got.get("error", {}).get("details", {}).get("error_code") == code


def test_beta_fields_need_a_beta_header() -> None:
    """With an `anthropic-beta` header the beta fields are accepted; fast mode of older models is then on."""
    beta = {"anthropic-beta": "fast-mode-2026-02-01,context-management-2025-06-27"}
    assert answer(ask(context_management={"edits": []}), headers=beta)[0] == 200
    assert answer(ask("claude-opus-5", speed="fast"), headers=beta)[0] == 200


def test_threads_are_refused_with_their_error_code() -> None:
    """`thread` tells the SDK to send the whole conversation instead; null is no thread."""
    status, got = answer(ask(thread={"type": "create"}), headers={"anthropic-beta": "message-threads-2026-08-12"})
    assert (status, got["error"]["details"]) == (400, {"error_code": "thread_unsupported_request"})
    assert answer(ask(thread=None))[0] == 200


def test_counting_takes_fewer_fields() -> None:
    """What only generation needs is an extra input to `count_tokens`; server tools cannot be counted."""
    path = "/v1/messages/count_tokens"
    counted = {"model": "claude-opus-4-8", "messages": [USER]}
    assert answer(counted, path=path) == (200, {"input_tokens": 4})
    assert refusal({**counted, "max_tokens": 5}, path=path) == "max_tokens: Extra inputs are not permitted"
    assert (
        refusal({**counted, "model": "claude-opus-5-5", "tools": [TOOL], "tool_choice": {"type": "any"}}, path=path)
        == FORCED
    )
    search = {"type": "web_search_20260209", "name": "web_search"}
    assert refusal({**counted, "tools": [TOOL, search]}, path=path).startswith(
        "tools.1: Server tools are not supported"
    )
    advisor = {"type": "advisor_20260301", "name": "advisor"}
    assert answer({**counted, "tools": [advisor]}, path=path)[0] == 200
    mcp = refusal({**counted, "mcp_servers": [{}]}, path=path, headers={"anthropic-beta": "mcp"})
    assert mcp == "mcp_servers: not supported by token counting"
    assert answer({**counted, "messages": [user(pdf(1), {"type": "text", "text": "x"})]}, path=path)[0] == 200
    for media in (source(type="url", url="https://x"), source("document", type="file", file_id="f")):
        refused = refusal({**counted, "messages": [user(media)]}, path=path)
        assert refused.endswith("sources are not supported in the count_tokens endpoint")


def test_a_prompt_longer_than_the_window_is_refused() -> None:
    """The message names both numbers."""
    message = refusal(talk({"role": "user", "content": "x" * 800_004}, model=OLD_MODEL))
    assert message == "prompt is too long: 200004 tokens > 200000 maximum"


@pytest.mark.lengthy
def test_compressed_bodies_are_read() -> None:
    """Gzip and deflate are accepted, anything else and broken data refused, and the limit holds for what comes out."""
    data = json.dumps(ask()).encode()
    assert answer(None, data=gzip.compress(data), headers={"content-encoding": "gzip"})[0] == 200
    assert answer(None, data=zlib.compress(data), headers={"content-encoding": "deflate"})[0] == 200
    status, got = answer(None, data=data, headers={"content-encoding": "br"})
    assert (status, got["error"]["details"]["error_code"]) == (400, "request_body_encoding_unsupported")
    status, got = answer(None, data=data, headers={"content-encoding": "gzip"})
    assert (status, got["error"]["details"]["error_code"]) == (400, "request_body_encoding_invalid")
    bomb = gzip.compress(b" " * (32 * 1024 * 1024 + 1))
    status, got = answer(None, data=bomb, headers={"content-encoding": "gzip"})
    assert (status, got["error"]["details"]["error_code"]) == (413, "request_body_too_large_after_decoding")


@pytest.mark.parametrize("data", [b"{", b'{"a": NaN}', b"\xff", b"[" * 100_000, b'{"a": 1'])
def test_what_is_not_json_is_refused(data: bytes) -> None:
    """Cut, endless and foreign bodies are one clear error."""
    assert refusal(None, data=data) == "The request body is not valid JSON"


@pytest.mark.parametrize("depth", [10, 300, 450, 900, 3000, 9000])
def test_endless_nesting_never_breaks_it(depth: int) -> None:
    """However deep a schema is, it is taken or refused."""
    schema = b'{"type":"object","additionalProperties":false,"anyOf":[' * depth + b"]}" * depth
    body = json.dumps(ask(tools=[{"name": "a", "strict": True, "input_schema": "SCHEMA"}])).encode()
    status, got = answer(None, data=body.replace(b'"SCHEMA"', schema))
    refusals = ("The request body is not valid JSON", "The request body is nested too deeply")
    assert status == 200 or got["error"]["message"] in refusals


@pytest.mark.parametrize("limit", ["0", "1001", "x", "-1", "²", "9" * 50])
def test_page_sizes_are_bounded(limit: str) -> None:
    """`limit` of a list is between 1 and 1000."""
    message = refusal(None, path="/v1/models", query={"limit": limit})
    assert message == "limit: Input should be a valid integer between 1 and 1000"
