"""A 200 is an answer only if its body is a message, or a stream of one; else a failure, sorted by what it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest

from penstock import BreakerOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

JSON = "application/json"
HTML = "text/html; charset=utf-8"


def error_body(kind: str) -> bytes:
    """An error as the API writes it, where a gateway made the status 200."""
    return json.dumps({"type": "error", "error": {"type": kind, "message": "secret"}, "request_id": "req_1"}).encode()


# What may pass by itself, and what will not.
PASSING = {
    "overloaded_error": "overloaded",
    "api_error": "server",
    "timeout_error": "server",
    "rate_limit_error": "rate_limited",
}
LASTING = {
    "invalid_request_error": "request",
    "permission_error": "request",
    "not_found_error": "request",
    "request_too_large": "request",
    "billing_error": "request",
    "authentication_error": "authentication",
}


def without(name: str) -> Callable[[dict[str, Any]], bytes]:
    """A message that lacks a field."""
    return lambda message: json.dumps({k: v for k, v in message.items() if k != name}).encode()


def with_content(value: object) -> Callable[[dict[str, Any]], bytes]:
    """A message of another content."""
    return lambda message: json.dumps({**message, "content": value}).encode()


def fixed(body: bytes) -> Callable[[dict[str, Any]], bytes]:
    """A body that is no message at all."""
    return lambda _: body


CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "secret"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}
NO_MESSAGE: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "an empty object": (fixed(b"{}"), JSON),
    "null": (fixed(b"null"), JSON),
    "a list": (fixed(b"[]"), JSON),
    "a list of messages": (lambda message: json.dumps([message]).encode(), JSON),
    "a number": (fixed(b"42"), JSON),
    "true": (fixed(b"true"), JSON),
    "a text": (fixed(b'"secret"'), JSON),
    "a message as a text": (lambda message: json.dumps(json.dumps(message)).encode(), JSON),
    "content null": (with_content(None), JSON),
    "content a text": (with_content("secret"), JSON),
    "content an object": (with_content({"type": "text", "text": "secret"}), JSON),
    "content a list of null": (with_content([None]), JSON),
    "content a list of texts": (with_content(["secret"]), JSON),
    "no content": (without("content"), JSON),
    "of another type": (lambda message: json.dumps({**message, "type": "completion"}).encode(), JSON),
    "a chat completion": (fixed(json.dumps(CHAT).encode()), JSON),
    "an error of another API": (fixed(b'{"error": {"message": "secret", "type": "server_error", "code": null}}'), JSON),
    "an error as a text": (fixed(b'{"error": "secret"}'), JSON),
    "an error of a gateway": (fixed(b'{"code": 500, "msg": "secret", "success": false}'), JSON),
    "a detail": (fixed(b'{"detail": "secret"}'), JSON),
    "an error without its type": (fixed(b'{"type": "error", "error": null}'), JSON),
    "a count of tokens": (fixed(b'{"input_tokens": 5}'), JSON),
    "a batch": (fixed(b'{"id": "msgbatch_1", "type": "message_batch", "processing_status": "ended"}'), JSON),
    "a page": (fixed(b"<!DOCTYPE html><html><body>secret</body></html>"), HTML),
    "a page that is called JSON": (fixed(b"<html><body>secret</body></html>"), JSON),
    "a plain text": (fixed(b"upstream secret"), "text/plain"),
    "nothing": (fixed(b""), JSON),
    "nothing of no type": (fixed(b""), ""),
    "blanks": (fixed(b" \n "), JSON),
    "half a message": (lambda message: json.dumps(message).encode()[:-30], JSON),
    "a message and more": (lambda message: json.dumps(message).encode() + b'{"secret": 1}', JSON),
    "no UTF-8": (lambda message: json.dumps(message).encode().replace(b"Hello", b"\xff\xfe"), JSON),
    "deeply nested": (fixed(b"[" * 100_000), JSON),
}


def check_typed(error: Exception | None, root: type[Exception] = anthropic.APIError) -> None:
    """An error that a caller can catch as the SDK's, and that quotes nothing."""
    assert isinstance(error, root), repr(error)
    notes = getattr(error, "__notes__", [])
    assert "secret" not in f"{error}{notes}"


@pytest.mark.lengthy
@pytest.mark.parametrize(("body", "content_type"), NO_MESSAGE.values(), ids=NO_MESSAGE.keys())
async def test_what_is_no_message_is_no_answer(
    wire: Any, body: Callable[[dict[str, Any]], bytes], content_type: str
) -> None:
    """It is raised as an error of the SDK's, and every attempt at it counts as a failure."""
    async with wire.governed() as claude:
        wire.answer(body(wire.message()), content_type=content_type)
        outcome = await wire.create(claude)
        told = wire.told(claude)
    check_typed(outcome.error)
    assert (told.successes, told.attempts) == (0, wire.canned.asked)


@pytest.mark.lengthy
@pytest.mark.in_turn(of=NO_MESSAGE, how=["text", "final", "sdk stream", "sdk events"])
async def test_what_is_no_stream_is_no_answer_to_one_who_streams(
    wire: Any, of: tuple[Callable[[dict[str, Any]], bytes], str], how: str
) -> None:
    """JSON, HTML or nothing in place of a stream is raised, however it is read; never an empty answer."""
    body, content_type = of
    async with wire.governed() as claude:
        wire.answer(body(wire.message()), content_type=content_type)
        outcome = await wire.read(claude, how)
        told = wire.told(claude)
    check_typed(outcome.error, anthropic.AnthropicError)
    assert (told.successes, told.attempts) == (0, wire.canned.asked)


@pytest.mark.parametrize("how", ["text", "sdk stream", "sdk events"])
async def test_a_whole_message_is_no_stream(wire: Any, how: str) -> None:
    """A gateway that doesn't stream when asked to has failed: nothing of the message would reach the reader."""
    async with wire.governed() as claude:
        wire.answer(json.dumps(wire.message("secret")).encode(), content_type=JSON)
        outcome = await wire.read(claude, how)
        told = wire.told(claude)
    check_typed(outcome.error, anthropic.AnthropicError)
    assert told.successes == 0


@pytest.mark.parametrize("content_type", ["text/event-stream", JSON])
async def test_a_stream_is_no_answer_to_one_who_does_not_stream(wire: Any, content_type: str) -> None:
    """A gateway that always streams: its text is never given as a message."""
    async with wire.governed() as claude:
        wire.answer(wire.sse(*wire.hello), content_type=content_type)
        outcome = await wire.create(claude)
        told = wire.told(claude)
    check_typed(outcome.error)
    assert told.successes == 0


@pytest.mark.in_turn(how=["create", "text", "events", "sdk stream", "sdk events"], kind=list(PASSING))
async def test_an_error_that_passes_is_tried_again(wire: Any, kind: str, how: str) -> None:
    """An overload under the status 200 is retried like one under 529, streamed or not."""
    async with wire.governed() as claude:
        if how == "create":
            wire.answer(error_body(kind), json.dumps(wire.message()).encode(), content_type=JSON)
            outcome = await wire.create(claude)
            assert outcome.error is None
            assert outcome.message.content[0].text == "Hello"
        else:
            wire.answer(error_body(kind), wire.sse(*wire.hello), content_types=(JSON, wire.event_stream))
            outcome = await wire.read(claude, how)
            assert (outcome.text, outcome.error) == ("Hello, world", None)
        told = wire.told(claude)
    assert (told.attempts, told.failures) == (2, {PASSING[kind]: 1})


@pytest.mark.in_turn(kind=list(LASTING), how=["create", "text", "sdk stream", "sdk events"])
async def test_an_error_that_lasts_is_raised_at_once(wire: Any, kind: str, how: str) -> None:
    """What the request or the key is to blame for is asked once, and told as what it is."""
    async with wire.governed() as claude:
        wire.answer(error_body(kind), content_type=JSON)
        outcome = await (wire.create(claude) if how == "create" else wire.read(claude, how))
        told = wire.told(claude)
    assert isinstance(outcome.error, anthropic.APIStatusError), repr(outcome.error)
    assert outcome.error.type == kind
    assert wire.canned.asked == 1
    assert told.failures == {LASTING[kind]: 1}


@pytest.mark.parametrize("how", ["create", "text", "sdk stream"])
async def test_an_overload_that_stays_is_told_as_one(wire: Any, how: str) -> None:
    """After the last attempt the error says what the body said, as a status error of the SDK's."""
    async with wire.governed() as claude:
        wire.answer(error_body("overloaded_error"), content_type=JSON)
        outcome = await (wire.create(claude) if how == "create" else wire.read(claude, how))
    assert isinstance(outcome.error, anthropic.APIStatusError), repr(outcome.error)
    assert (outcome.error.type, wire.canned.asked) == ("overloaded_error", 2)


@pytest.mark.parametrize("kind", ["overloaded_error", "invalid_request_error"])
async def test_the_breaker_opens_for_errors_under_the_status_200(wire: Any, kind: str) -> None:
    """They speak of the service as their type does: an overload opens the breaker, a bad request never."""
    async with wire.governed(max_attempts=1, breaker=BreakerOptions(minimum=4, window=8)) as claude:
        wire.answer(error_body(kind), content_type=JSON)
        for _ in range(6):
            await wire.create(claude)
        told = wire.told(claude)
    assert told.breakers == {"open" if kind == "overloaded_error" else "closed"}


@pytest.mark.lengthy
@pytest.mark.in_turn(
    name=["an empty object", "content null", "a chat completion", "a page", "an error of a gateway", "nothing"],
    journaled=[True, False],
)
async def test_a_fan_out_never_takes_it_for_an_answer(wire: Any, tmp_path: Path, name: str, journaled: bool) -> None:
    """The item fails; its journal doesn't say that it succeeded, so that a later run asks again."""
    body, content_type = NO_MESSAGE[name]
    journal = {"journal": tmp_path / "journal.jsonl", "retry_failed": True} if journaled else {}
    asked = {"model": wire.ask["model"], "max_tokens": 100, **journal}
    async with wire.governed() as claude:
        wire.answer(body(wire.message()), content_type=content_type)
        async with claude.fan_out(["Hello"], **asked) as results:
            (failed,) = [result async for result in results]
        assert not failed.ok
        check_typed(failed.error)
        wire.answer(json.dumps(wire.message()).encode(), content_type=JSON)
        async with claude.fan_out(["Hello"], **asked) as results:
            (answered,) = [result async for result in results]
    assert answered.ok
    assert answered.message.content[0].text == "Hello"
    assert wire.canned.asked == 1


async def test_an_overload_in_a_fan_out_is_tried_again(wire: Any, tmp_path: Path) -> None:
    """As an item's attempts are many, it ends well in the same run."""
    async with wire.governed() as claude:
        wire.answer(error_body("overloaded_error"), json.dumps(wire.message()).encode(), content_type=JSON)
        asked = {"model": wire.ask["model"], "max_tokens": 100, "journal": tmp_path / "journal.jsonl"}
        async with claude.fan_out(["Hello"], **asked) as results:
            (result,) = [result async for result in results]
    assert result.ok
    assert (result.attempts, wire.canned.asked) == (2, 2)


TOLERATED: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "without usage": without("usage"),
    "without an id": without("id"),
    "without a stop reason": without("stop_reason"),
    "usage null": lambda message: json.dumps({**message, "usage": None}).encode(),
    "counts that are null": lambda message: json.dumps(
        {**message, "usage": {**message["usage"], "cache_read_input_tokens": None}}
    ).encode(),
    "no blocks at all": with_content([]),
    "a block of a later API": with_content([{"type": "a_new_block", "value": 1}]),
    "further fields": lambda message: json.dumps({**message, "x": [1]}).encode(),
    "spread over lines": lambda message: json.dumps(message, indent=2).encode() + b"\n",
    "UTF-8 unescaped": lambda message: json.dumps({**message, "x": "wörld 🎉"}, ensure_ascii=False).encode(),
}


@pytest.mark.lengthy
@pytest.mark.in_turn(body=TOLERATED, content_type=[JSON, "Application/JSON; charset=UTF-8"])
async def test_a_message_with_gaps_is_still_an_answer(
    wire: Any, body: Callable[[dict[str, Any]], bytes], content_type: str
) -> None:
    """What a compatible server leaves out, and what a later API adds, makes no failure of an answer."""
    async with wire.governed() as claude:
        wire.answer(body(wire.message()), content_type=content_type)
        outcome = await wire.create(claude)
        told = wire.told(claude)
    assert outcome.error is None
    assert isinstance(outcome.message, anthropic.types.Message)
    assert (told.successes, wire.canned.asked) == (1, 1)


# A body that is read already


def mocked(wire: Any, bodies: list[Any], asked: list[int], *, hook: bool = False) -> anthropic.AsyncAnthropic:
    """The SDK's client over httpx2's own mock, which hands over what is read already."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(1)
        body, content_type = bodies[min(len(asked), len(bodies)) - 1]
        given = {"text": body} if isinstance(body, str) else {"content": body}
        return httpx2.Response(200, headers={"content-type": content_type, "request-id": "req_1"}, **given)

    async def read(response: httpx2.Response) -> None:
        await response.aread()

    transport = httpx2.MockTransport(answer)
    hooks = {"response": [read]} if hook else {}
    return anthropic.AsyncAnthropic(
        api_key="sk-ant-test",
        max_retries=0,
        open_telemetry=False,
        http_client=httpx2.AsyncClient(transport=transport, event_hooks=hooks),
    )


READ: dict[str, tuple[bool, bool]] = {
    "bytes of a mock transport": (False, False),
    "bytes, and a hook that reads": (True, False),
    "a text of a mock transport": (False, True),
    "a text, and a hook that reads": (True, True),
}


@pytest.mark.in_turn(how=["text", "events", "final", "sdk stream", "sdk events"], given=READ)
async def test_a_stream_whose_body_is_read_already_is_a_stream(wire: Any, given: tuple[bool, bool], how: str) -> None:
    """As people test, and as hooks do: it is asked once, gives its text, and counts like any other."""
    hook, as_text = given
    body: Any = wire.sse(*wire.hello)
    asked: list[int] = []
    sdk = mocked(wire, [(body.decode() if as_text else body, wire.event_stream)], asked, hook=hook)
    async with wire.governed(sdk=sdk) as claude:
        outcome = await wire.read(claude, how)
        told = wire.told(claude)
    assert (outcome.text, outcome.error) == ("Hello, world", None)
    assert len(asked) == 1
    assert (told.successes, told.first_tokens, told.tokens) == (1, 1, (25, 3, 15))


@pytest.mark.parametrize("hook", [False, True], ids=["a mock transport", "a hook that reads"])
async def test_a_message_whose_body_is_read_already_is_judged_like_any_other(wire: Any, hook: bool) -> None:
    """An overload in it is retried, a message in it is an answer, and HTML in it is none."""
    whole = json.dumps(wire.message()).encode()
    asked: list[int] = []
    sdk = mocked(wire, [(error_body("overloaded_error"), JSON), (whole, JSON), (b"<html>", HTML)], asked, hook=hook)
    async with wire.governed(sdk=sdk) as claude:
        answered = await wire.create(claude)
        assert answered.error is None
        assert len(asked) == 2
        check_typed((await wire.create(claude)).error)
        told = wire.told(claude)
    assert told.successes == 1


@pytest.mark.parametrize("hook", [False, True], ids=["a mock transport", "a hook that reads"])
async def test_a_stream_that_is_read_already_is_retried_before_content(wire: Any, hook: bool) -> None:
    """An error before content is seen in it, too; one after content interrupts it."""
    failed = {"type": "error", "error": {"type": "overloaded_error", "message": "secret"}}
    bodies = [
        (wire.sse(wire.start(), failed), wire.event_stream),
        (wire.sse(*wire.hello), wire.event_stream),
        (wire.sse(*wire.hello[:3], failed), wire.event_stream),
    ]
    asked: list[int] = []
    async with wire.governed(sdk=mocked(wire, bodies, asked, hook=hook)) as claude:
        retried = await wire.read(claude)
        assert (retried.text, retried.error, len(asked)) == ("Hello, world", None, 2)
        broken = await wire.read(claude)
        told = wire.told(claude)
    assert broken.text == "Hello"
    assert type(broken.error).__name__ == "StreamInterrupted"
    assert (len(asked), told.failures) == (3, {"overloaded": 2})
