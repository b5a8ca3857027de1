"""A governed client is the SDK's own, to the letter: what `docs/drop-in.md` says differs, and nothing else."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest
from _listener import MESSAGE
from anthropic.lib.credentials import AccessToken
from anthropic.lib.middleware import BetaFallbackState, BetaRefusalFallbackMiddleware

from penstock import Client, NoKeyAvailable, Retry, RetryOptions
from penstock.batch import FanOut
from penstock.events import KeyChanged
from penstock.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from penstock.events import Event

ASK: Any = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "the prompt"}]}
QUICK = RetryOptions(base_s=0.001, cap_s=0.001)
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


def said(status: int, body: object = MESSAGE) -> Callable[[httpx2.Request], httpx2.Response]:
    """The same answer, made anew each time."""
    return lambda _: httpx2.Response(status, json=body)


def governing(sdk: anthropic.AsyncAnthropic, **options: Any) -> Client:
    """A client that governs one of the SDK's."""
    return Client(sdk=sdk, **{"log": False, "retry": QUICK, **options})


class Tokens:
    """A service that takes one token, and the provider that a client gets them from."""

    def __init__(self, taken: str) -> None:
        self.taken = taken
        self.given: list[bool] = []
        self.transport = ScriptedTransport(self._answer)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        if request.headers["authorization"] != f"Bearer {self.taken}":
            return httpx2.Response(
                401, json={"type": "error", "error": {"type": "authentication_error", "message": ""}}
            )
        return httpx2.Response(200, json={"data": [], "has_more": False} if request.method == "GET" else MESSAGE)

    async def provide(self, *, force_refresh: bool = False) -> AccessToken:
        self.given.append(force_refresh)
        return AccessToken(f"token-{len(self.given)}")

    def client(self, **options: Any) -> anthropic.AsyncAnthropic:
        return self.transport.client(api_key=None, credentials=self.provide, **options)


class TestCredentialsThatRefresh:
    """A token that has had its day is not a key that was revoked."""

    @pytest.mark.parametrize(
        "ask",
        [
            lambda claude: claude.messages.create(**ASK),
            lambda claude: claude.messages.count_tokens(model=ASK["model"], messages=ASK["messages"]),
            lambda claude: claude.models.list(),
            lambda claude: claude.sdk.with_options(timeout=5).messages.create(**ASK),
        ],
    )
    async def test_a_new_token_is_asked_for_first(self, ask: Callable[[Client], Awaitable[object]]) -> None:
        """Once, as the SDK's own retries do; nothing is quarantined."""
        tokens = Tokens("token-2")
        told: list[Event] = []
        async with governing(tokens.client(), observers=[told.append]) as claude:
            await ask(claude)
            await ask(claude)
        assert tokens.given == [False, True]
        assert [request.headers["x-stainless-retry-count"] for request in tokens.transport.requests] == ["0", "1", "0"]
        assert not any(isinstance(each, KeyChanged) for each in told)

    async def test_credentials_that_stay_refused_are_quarantined(self) -> None:
        """One new token for each call; then it is as with a key."""
        tokens = Tokens("another")
        async with governing(tokens.client()) as claude:
            with pytest.raises(anthropic.AuthenticationError) as raised:
                await claude.messages.create(**ASK)
            assert "2 attempts" in raised.value.__notes__[0] or "refused" in raised.value.__notes__[0]
            with pytest.raises(NoKeyAvailable):
                await claude.messages.create(**ASK)
        assert len(tokens.transport.requests) == 2

    async def test_a_token_that_ends_after_other_failures_is_renewed_too(self) -> None:
        """It has nothing to do with how often the call was tried."""
        tokens = Tokens("token-2")
        tokens.transport.answers.insert(0, said(529, OVERLOADED))
        async with governing(tokens.client()) as claude:
            assert (await claude.messages.create(**ASK)).id == MESSAGE["id"]
        assert len(tokens.transport.requests) == 3

    async def test_a_key_of_the_pool_has_no_token(self) -> None:
        """What the SDK client would have sent itself is left alone."""
        tokens = Tokens("sk-2")
        async with governing(tokens.client(), api_keys=["sk-1", "sk-2"], balance="round_robin") as claude:
            for _ in range(2):
                await claude.messages.create(**ASK)
            assert [key.state for key in claude.statistics().admission.keys] == ["quarantined", "ok"]
        assert tokens.given == []


class Sees(anthropic.Middleware):
    """A middleware of the user's."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
        response = await call_next(request)
        self.seen.append(response.http_response.status_code)
        return response


class TestFailedStatuses:
    """They are responses for whatever stands outside the guards, and errors for the caller."""

    @pytest.mark.lengthy
    @pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 529])
    @pytest.mark.parametrize("alone", [False, True], ids=["a client", "a guard alone"])
    async def test_a_middleware_outside_sees_a_response(self, status: int, alone: bool) -> None:
        """And the error still says how often it was tried; also on a copy."""
        outside, transport = Sees(), ScriptedTransport(said(status, OVERLOADED))
        sdk = transport.client(middleware=[outside, *([Retry(QUICK)] if alone else [])])
        async with governing(transport.client(middleware=[outside])) as claude:
            for asked in (
                (sdk, sdk.with_options(timeout=5)) if alone else (claude.sdk, claude.sdk.with_options(timeout=5))
            ):
                if status == 401 and not alone and outside.seen:
                    break
                with pytest.raises(anthropic.APIStatusError) as raised:
                    await asked.messages.create(**ASK)
                assert raised.value.status_code == status
                notes = getattr(raised.value, "__notes__", [])
                assert any("4 attempts" in note for note in notes) is (status in {429, 500, 529})
                assert len(notes) <= 1
        assert set(outside.seen) == {status}

    async def test_an_error_has_no_note_of_another(self) -> None:
        """What was tried once, and is final, says nothing of tries."""
        transport = ScriptedTransport(said(529, OVERLOADED))
        async with governing(transport.client()) as claude:
            with pytest.raises(anthropic.InternalServerError) as tried:
                await claude.messages.create(**ASK)
            transport.answers = [said(404, OVERLOADED)]
            with pytest.raises(anthropic.NotFoundError) as final:
                await claude.messages.create(**ASK)
        assert len(tried.value.__notes__) == 1
        assert not hasattr(final.value, "__notes__")

    async def test_another_answer_may_be_given(self) -> None:
        """No error is left behind where a middleware has one."""

        class Answers(anthropic.Middleware):
            async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
                response = await call_next(request)
                return (
                    response if response.http_response.is_success else anthropic.types.Message.model_validate(MESSAGE)
                )

        transport = ScriptedTransport(said(529, OVERLOADED))
        async with governing(transport.client(middleware=[Answers()])) as claude:
            assert (await claude.messages.create(**ASK)).id == MESSAGE["id"]
            assert claude.statistics().calls.failures == 1

    async def test_the_sdks_own_fallback_fires(self) -> None:
        """Where the fast service of a fallback has no room, it asks the ordinary one."""

        def answer(request: httpx2.Request) -> httpx2.Response:
            return (
                httpx2.Response(429, json=OVERLOADED)
                if b'"fast"' in request.content
                else httpx2.Response(200, json=MESSAGE)
            )

        transport = ScriptedTransport(answer)
        falls_back = BetaRefusalFallbackMiddleware([{"model": "claude-opus-5-5"}])
        async with governing(transport.client(middleware=[falls_back])) as claude:
            with BetaFallbackState() as state:
                state.index = 0
                message = await claude.beta.messages.create(**ASK, speed="fast", betas=["fast-mode-2026-02-01"])
        assert message.id == MESSAGE["id"]
        assert [b'"fast"' in request.content for request in transport.requests] == [True] * 4 + [False]

    @pytest.mark.parametrize(("status", "requests"), [(302, 1), (400, 1), (404, 1), (529, 4)])
    async def test_an_answer_that_is_asked_for_bare_fails_as_well(self, status: int, requests: int) -> None:
        """It is the SDK's error, and a success is the bare answer."""
        transport = ScriptedTransport(said(status, OVERLOADED))
        async with governing(transport.client()) as claude:
            with pytest.raises(anthropic.APIStatusError) as raised:
                await claude.sdk.post("/v1/messages", body=ASK, cast_to=httpx2.Response)
            assert (raised.value.status_code, len(transport.requests)) == (status, requests)
            transport.answers = [said(200)]
            response = await claude.sdk.post("/v1/messages", body=ASK, cast_to=httpx2.Response)
            assert type(response) is httpx2.Response
            assert response.json() == MESSAGE


class TestMaxRetries:
    """`with_options(max_retries=…)` says how often the calls of a copy are repeated; the loop is ours."""

    @pytest.mark.filterwarnings("ignore:max_retries")
    @pytest.mark.parametrize("answer", [said(529, OVERLOADED), httpx2.ConnectError("refused")], ids=["529", "nobody"])
    async def test_a_copy_is_tried_as_often_as_it_says(self, answer: Any) -> None:
        """Once for 0, and never more often than said; the last word holds."""
        transport = ScriptedTransport(answer)
        async with governing(transport.client()) as claude:
            sdk = claude.sdk
            for copy, attempts in (
                (sdk, 4),
                (sdk.with_options(max_retries=0), 1),
                (sdk.with_options(max_retries=1), 2),
                (sdk.with_options(max_retries=5), 6),
                (sdk.copy(max_retries=0).with_options(timeout=5), 1),
                (sdk.with_options(max_retries=5).with_options(max_retries=0), 1),
                (sdk.with_options(max_retries=0).with_options(max_retries=2), 3),
                (sdk.with_options(max_retries=0, middleware=[*sdk.middleware, Sees()]), 1),
                (sdk.with_options(max_retries=0, middleware=[]), 1),
            ):
                transport.requests.clear()
                with pytest.raises(anthropic.APIError):
                    await copy.messages.create(**ASK)
                assert len(transport.requests) == attempts

    async def test_copies_are_made_as_the_sdks(self) -> None:
        """Editors and `help()` show the same arguments."""
        sdk = ScriptedTransport(said(200)).client()
        copy = governing(sdk).sdk.with_options(timeout=5)
        assert inspect.signature(copy.with_options) == inspect.signature(sdk.with_options)

    async def test_one_request_can_say_so(self) -> None:
        """In its options, as the SDK lets it."""
        transport = ScriptedTransport(said(529, OVERLOADED))
        async with governing(transport.client()) as claude:
            with pytest.raises(anthropic.InternalServerError):
                await claude.sdk.post("/v1/messages", body=ASK, cast_to=object, options={"max_retries": 0})
        assert len(transport.requests) == 1

    @pytest.mark.filterwarnings("ignore:max_retries")
    async def test_what_has_a_bound_of_its_own_keeps_it(self) -> None:
        """Items of a fan-out are tried less often, never more."""
        transport = ScriptedTransport(said(529, OVERLOADED))
        for max_retries, attempts in ((0, 1), (20, 10)):
            transport.requests.clear()
            async with governing(transport.client()) as claude:
                copy = claude.sdk.with_options(max_retries=max_retries)
                async with FanOut(copy, ["Hi"], model=ASK["model"], max_tokens=9) as results:
                    (result,) = [each async for each in results]
            assert not result.ok
            assert len(transport.requests) == attempts

    async def test_a_copys_own_http_client_is_held_to_the_same(self) -> None:
        """What is sent goes nowhere else, whatever carries it."""
        moved = httpx2.Response(307, headers={"location": "http://elsewhere.example/v1/messages"})
        mine = ScriptedTransport(moved)
        async with governing(ScriptedTransport(said(200)).client()) as claude:
            copy = claude.sdk.with_options(http_client=httpx2.AsyncClient(transport=mine, follow_redirects=True))
            with pytest.raises(anthropic.APIStatusError):
                await copy.messages.create(**ASK)
        assert [request.url.host for request in mine.requests] == ["api.example"]


class TestRequests:
    """What leaves with an answer or an error says what was asked, without credentials and prompt, and can be read."""

    @pytest.mark.parametrize(
        "answer",
        [said(200), said(400, OVERLOADED), httpx2.ReadTimeout("slow"), httpx2.ConnectError("refused")],
        ids=["200", "400", "time-out", "nobody"],
    )
    async def test_the_body_is_empty_and_the_time_outs_stay(self, answer: Any) -> None:
        """However it is looked at."""
        async with governing(ScriptedTransport(answer).client(timeout=7)) as claude:
            try:
                request = (await claude.messages.with_raw_response.create(**ASK)).http_request
            except anthropic.APIError as error:
                request = error.request
        assert (request.content, request.read(), await request.aread()) == (b"", b"", b"")
        assert request.extensions["timeout"] == {"connect": 7, "read": 7, "write": 7, "pool": 7}
        assert "authorization" not in request.headers


class TestThreads:
    """Threads of the beta keep account of their turns themselves."""

    @pytest.mark.parametrize("more", [(), ({"role": "user", "content": "once more"},)], ids=["as it is", "more"])
    async def test_a_turn_that_broke_off_is_sent_again_with_its_cache_markers(self, more: tuple[Any, ...]) -> None:
        """What was asked in it stands in the thread, though no content came."""
        start = {"type": "message_start", "message": {**MESSAGE, "id": "msg_2", "content": [], "stop_reason": None}}
        broken = f"event: message_start\ndata: {json.dumps(start)}\n\n".encode()
        transport = ScriptedTransport(
            said(200),
            lambda _: httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=broken),
            said(200),
        )
        marked: Any = {
            "role": "user",
            "content": [{"type": "text", "text": "keep this", "cache_control": {"type": "ephemeral"}}],
        }
        async with governing(transport.client(), retry=RetryOptions(max_attempts=1)) as claude:
            thread = claude.beta.messages.thread(model=ASK["model"], max_tokens=100)
            await thread.send(marked)
            async with thread.stream(marked) as stream:
                await stream.until_done()
            await thread.send(*more)
            assert claude.statistics().calls.failures == 1
        sent = json.loads(transport.requests[-1].content)
        assert sent["thread"] == {"type": "create"}
        assert sent["messages"][2:] == [marked, *more]
        assert "cache_control" not in sent["messages"][0]["content"][0]
