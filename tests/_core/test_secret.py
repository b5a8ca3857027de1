from __future__ import annotations

import copy
import json
import pickle
import traceback
from typing import TYPE_CHECKING, NamedTuple

import anthropic
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.secret import MaskedStr, Secret, bearer, clean_error, key_name, without_secrets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

KEY = "sk-ant-api03-secret-secret"
PROMPT = "the prompt that nobody else may read"
SEEN = "***"


class TestSecret:
    def test_it_shows_its_name_instead_of_the_key(self) -> None:
        """No way to turn a secret into text gives the key."""
        secret = Secret(KEY)
        shown = [repr(secret), str(secret), f"{secret}", f"{secret:>40}", f"{[secret]}", format(secret)]
        assert all(secret.name in text for text in shown)
        assert KEY not in "".join(shown)
        assert secret.reveal() == KEY

    def test_its_name_is_the_hash_of_the_key(self) -> None:
        """The name is 8 hex digits of the SHA-256, equal on every machine."""
        assert Secret("sk-example").name == key_name("sk-example") == "key-f2d4b279"

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_it_refuses_to_be_pickled(self, protocol: int) -> None:
        """Pickling raises an error that names the secret and what to do, and not the key."""
        with pytest.raises(TypeError, match=r"Secret\('key-.*can't be pickled.*Pass its name") as failure:
            pickle.dumps({"nested": Secret(KEY)}, protocol)
        assert KEY not in str(failure.value)

    def test_a_copy_is_the_secret_itself(self) -> None:
        """Copying, shallow or deep, makes no second holder of the key."""
        secret = Secret(KEY)
        assert copy.copy(secret) is copy.deepcopy(secret) is secret

    @given(st.text(), st.text())
    def test_secrets_are_equal_as_their_keys_are(self, one: str, other: str) -> None:
        """Equality and hash follow the key, whatever characters it has."""
        assert (Secret(one) == Secret(other)) == (one == other)
        assert hash(Secret(one)) == hash(Secret(one))
        assert len({Secret(one), Secret(other)}) == len({one, other})

    def test_a_secret_is_not_equal_to_its_key(self) -> None:
        """A string never compares equal, so that a key in a list isn't found by chance."""
        assert Secret(KEY) != KEY

    def test_a_key_with_undecodable_bytes_has_a_name(self) -> None:
        """An environment variable that isn't UTF-8 holds surrogates, which must not fail here."""
        assert Secret("\udcff") == Secret("\udcff")


class TestMaskedStr:
    def test_it_authenticates_a_request(self) -> None:
        """A header made of it carries the key."""
        request = httpx2.Request("GET", "https://example.com", headers={"Authorization": bearer(Secret(KEY))})
        assert request.headers["authorization"] == f"Bearer {KEY}"

    def test_it_authenticates_after_a_deep_copy(self) -> None:
        """Request options are copied deeply by the SDK, and still authenticate."""
        value = bearer(Secret(KEY))
        assert str(copy.deepcopy({"headers": {"Authorization": value}})["headers"]["Authorization"]) == f"Bearer {KEY}"
        assert str(copy.copy(value)) == f"Bearer {KEY}"

    def test_its_repr_is_masked(self) -> None:
        """Neither its own `repr` nor that of what holds it shows the key."""
        assert repr(bearer(Secret(KEY))) == f"'Bearer {key_name(KEY)}'"
        assert repr([MaskedStr(KEY)]) == "['***']"

    def test_a_traceback_with_local_variables_does_not_show_it(self) -> None:
        """Tools that print the local variables of a traceback print the masked text."""
        headers = {"Authorization": bearer(Secret(KEY))}
        with pytest.raises(KeyError) as failure:
            headers["missing"]
        shown = "".join(traceback.TracebackException.from_exception(failure.value, capture_locals=True).format())
        assert "Authorization" in shown
        assert KEY not in shown

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_its_pickle_is_masked(self, protocol: int) -> None:
        """A pickle holds the masked text, as a plain string."""
        pickled = pickle.dumps(bearer(Secret(KEY)), protocol)
        assert KEY.encode() not in pickled
        assert pickle.loads(pickled) == f"Bearer {key_name(KEY)}"

    def test_it_equals_its_characters(self) -> None:
        """It is the string it was made of, for headers and comparisons."""
        assert MaskedStr("a") == "a"
        assert json.dumps(MaskedStr("a")) == '"a"'


def _request(**headers: str) -> httpx2.Request:
    return httpx2.Request(
        "POST",
        "https://user:password@example.com/v1/messages?beta=true",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        content=PROMPT.encode(),
        extensions={"timeout": {"read": 1}},
    )


class TestWithoutSecrets:
    @pytest.mark.parametrize(
        "name",
        [
            "Authorization",
            "x-api-key",
            "Cookie",
            "Proxy-Authorization",
            "x-goog-api-key",
            "api-key",
            "x-amz-security-token",
            "cf-aig-authorization",
            "ocp-apim-subscription-key",
            "Helicone-Auth",
            "content-length",
        ],
    )
    def test_it_drops(self, name: str) -> None:
        """Headers that authenticate anyone anywhere, and the length of the missing body, are gone."""
        request = _request(accept="text/html", **{name: "17"})
        assert set(without_secrets(request).headers) == {"host", "accept"}

    @pytest.mark.parametrize("name", ["idempotency-key", "x-stainless-raw-response", "anthropic-version", "user-agent"])
    def test_it_keeps(self, name: str) -> None:
        """Headers that explain what was asked for stay."""
        assert without_secrets(_request(**{name: "value"})).headers[name] == "value"

    async def test_method_query_and_time_outs_stay_and_body_user_and_other_extensions_go(self) -> None:
        """What remains says what was called and for how long, but neither with which content nor as whom."""
        request = _request()
        request.extensions["trace"] = print
        clean = without_secrets(request)
        assert (clean.method, str(clean.url)) == ("POST", "https://example.com/v1/messages?beta=true")
        assert (clean.content, clean.read(), await clean.aread()) == (b"", b"", b"")
        assert clean.extensions == {"timeout": {"read": 1}}
        assert PROMPT.encode() not in pickle.dumps(clean)

    def test_the_request_itself_is_not_changed(self) -> None:
        """The request may be on its way still, so the copy shares nothing that matters with it."""
        request = _request(authorization=f"Bearer {KEY}")
        clean = without_secrets(request)
        clean.headers["x-added"] = "1"
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert "x-added" not in request.headers
        assert request.content == PROMPT.encode()
        assert request.url.userinfo == b"user:password"

    def test_headers_keep_their_spelling_and_repetitions(self) -> None:
        """Filtering leaves the other headers as they were, in order."""
        headers = httpx2.Headers([("X-One", "1"), ("X-Api-Key", "k"), ("x-one", "2")])
        request = httpx2.Request("GET", "https://example.com", headers=headers)
        assert without_secrets(request).headers.raw == [(b"Host", b"example.com"), (b"X-One", b"1"), (b"x-one", b"2")]

    def test_canary_headers_hold_triples_of_spelling_lower_case_and_value(self) -> None:
        """The quick way filters the list inside httpx2's headers, whose layout is not public."""
        headers = httpx2.Headers([("X-Api-Key", "k")])
        assert headers._list == [(b"X-Api-Key", b"x-api-key", b"k")]

    def test_headers_of_another_layout_are_filtered_by_public_means(self) -> None:
        """Should httpx2 keep its headers otherwise, credentials are still removed."""

        class OtherHeaders(httpx2.Headers):
            _list = None  # type: ignore[assignment]

            def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
                self._raw = raw

            @property
            def raw(self) -> list[tuple[bytes, bytes]]:
                return self._raw

        request = _request()
        request.headers = OtherHeaders([(b"X-Api-Key", KEY.encode()), (b"Accept", b"text/html")])
        assert without_secrets(request).headers.raw == [(b"Accept", b"text/html")]

    async def test_the_sdk_works_with_a_response_whose_request_was_replaced(self) -> None:
        """The SDK reads its own marks from the request of a response; the copy still has them."""

        async def replace(response: httpx2.Response) -> None:
            response.request = without_secrets(response.request)

        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": {}}
        async with _client(lambda _: httpx2.Response(200, json=message), on_response=replace) as client:
            plain = await _create(client)
            raw = await client.messages.with_raw_response.create(
                model="claude-sonnet-5-5", max_tokens=5, messages=[{"role": "user", "content": PROMPT}]
            )
        assert isinstance(plain, anthropic.types.Message)
        assert (await raw.parse()).id == plain.id == "msg_1"
        assert "authorization" not in raw.http_request.headers


def _client(
    handler: Callable[[httpx2.Request], httpx2.Response], *, on_response: object = None
) -> anthropic.AsyncAnthropic:
    http_client = httpx2.AsyncClient(
        transport=httpx2.MockTransport(handler),
        follow_redirects=True,
        event_hooks={"response": [on_response] if on_response else []},  # type: ignore[list-item]
    )
    return anthropic.AsyncAnthropic(
        api_key=KEY, max_retries=0, http_client=http_client, base_url="https://user:password@example.com"
    )


async def _create(client: anthropic.AsyncAnthropic, *, stream: bool = False) -> object:
    return await client.messages.create(
        model="claude-sonnet-5-5",
        max_tokens=5,
        messages=[{"role": "user", "content": PROMPT}],
        stream=stream,
        extra_headers={"Cookie": f"session={KEY}"},
    )


async def _failure(handler: Callable[[httpx2.Request], httpx2.Response], *, stream: bool = False) -> Exception:
    """The error that a real client raises for what the handler answers."""
    async with _client(handler) as client:
        try:
            reply = await _create(client, stream=stream)
            async for _ in reply:  # type: ignore[attr-defined]
                pass
        except Exception as error:  # noqa: BLE001 - whatever it is, the tests look into it
            return error
    raise AssertionError("the client succeeded")


def _status(status: int, kind: str) -> Callable[[httpx2.Request], httpx2.Response]:
    body = {"type": "error", "error": {"type": kind, "message": "no"}}
    return lambda _: httpx2.Response(status, json=body)


def _raising(error: type[httpx2.TransportError], text: str = "failed") -> Callable[[httpx2.Request], httpx2.Response]:
    def handler(request: httpx2.Request) -> httpx2.Response:
        raise error(text)

    return handler


def _in_stream_error(_: httpx2.Request) -> httpx2.Response:
    body = b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}\n\n'
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)


def _broken_stream(_: httpx2.Request) -> httpx2.Response:
    async def body() -> AsyncIterator[bytes]:
        yield b'event: ping\ndata: {"type": "ping"}\n\n'
        raise httpx2.ReadError("reset by peer")

    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body())


def _redirected(request: httpx2.Request) -> httpx2.Response:
    if request.url.path != "/elsewhere":
        return httpx2.Response(307, headers={"location": "/elsewhere"})
    return httpx2.Response(400, json={})


def _illegal_header(request: httpx2.Request) -> httpx2.Response:
    # h11's wording, when a key was pasted with a character that no header may hold.
    raise httpx2.LocalProtocolError(f"Illegal header value {request.headers['authorization'].encode()!r}")


FAILURES = {
    "bad request": (_status(400, "invalid_request_error"), False),
    "wrong key": (_status(401, "authentication_error"), False),
    "redirected": (_redirected, False),
    "connection": (_raising(httpx2.ConnectError), False),
    "timeout": (_raising(httpx2.ReadTimeout), False),
    "quoted header": (_illegal_header, False),
    "error in the stream": (_in_stream_error, True),
    "broken stream": (_broken_stream, True),
}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _told(error: BaseException) -> str:
    """Everything that an error and its causes tell: texts, arguments, attributes, notes, pickles."""
    told = traceback.format_exception(error)
    for each in _chain(error):
        told += [repr(each), repr(each.args), repr(vars(each)), pickle.dumps(each).decode("latin-1")]
    return "".join(told)


class TestCleanError:
    @pytest.mark.parametrize("name", FAILURES)
    async def test_no_error_of_the_sdk_tells_the_key_or_the_prompt(self, name: str) -> None:
        """What a real client raises tells both, and neither of them once it is clean."""
        handler, stream = FAILURES[name]
        error = await _failure(handler, stream=stream)
        told = _told(error)
        assert KEY in told
        assert PROMPT in told
        clean_error(error)
        told = _told(error)
        assert KEY not in told
        assert PROMPT not in told
        assert "password" not in told

    async def test_what_helps_to_understand_the_error_stays(self) -> None:
        """Status, body, method and URL are still there, also in a pickle."""
        error = await _failure(_status(400, "invalid_request_error"))
        clean_error(error)
        for each in (error, pickle.loads(pickle.dumps(error))):
            assert isinstance(each, anthropic.BadRequestError)
            assert each.response.json()["error"]["type"] == each.type == "invalid_request_error"
            assert str(each.request.url) == str(each.response.request.url) == "https://example.com/v1/messages"

    async def test_requests_of_redirects_are_cleaned(self) -> None:
        """The responses that led to the last one, and the request that would come next, carry requests too."""
        error = await _failure(_redirected)
        assert isinstance(error, anthropic.BadRequestError)
        error.response.next_request = _request(x_api_key=KEY)
        clean_error(error)
        requests = [*(each.request for each in error.response.history), error.response.next_request]
        assert len(requests) == 2
        assert not any("authorization" in request.headers or "x-api-key" in request.headers for request in requests)

    def test_groups_causes_contexts_and_arguments_are_reached(self) -> None:
        """Wherever an error hangs in the tree of another, it is cleaned."""
        hidden = [httpx2.ConnectError("no", request=_request(authorization=f"Bearer {KEY}")) for _ in range(4)]
        group = ExceptionGroup("several", [ExceptionGroup("inner", [hidden[0]]), ValueError(hidden[1])])
        group.__cause__, group.__context__ = hidden[2], hidden[3]
        clean_error(group)
        assert not any("authorization" in error.request.headers for error in hidden)
        assert pickle.loads(pickle.dumps(group)).exceptions[1].args[0].args == ("no",)

    def test_errors_that_refer_to_each_other_end(self) -> None:
        """A cycle of causes is walked once."""
        one, other = (httpx2.ReadError("no", request=_request(x_api_key=KEY)) for _ in range(2))
        one.__cause__, other.__context__ = other, one
        clean_error(one)
        assert "x-api-key" not in one.request.headers
        assert "x-api-key" not in other.request.headers

    def test_an_error_without_its_request_is_left_alone(self) -> None:
        """httpx2 raises when a request that was never set is read; cleaning doesn't."""
        error = httpx2.ConnectError("no")
        response_error = anthropic.APIStatusError.__new__(anthropic.APIStatusError, "no")
        response_error.response = httpx2.Response(400)
        clean_error(error)
        clean_error(response_error)
        assert error.args == response_error.args == ("no",)

    def test_notes_arguments_and_attributes_that_quote_the_key_are_masked(self) -> None:
        """The key of the failed request is masked in every text of the tree, and other values that show it go."""

        class RequestInfo(NamedTuple):  # as aiohttp's errors hold it
            headers: dict[str, str]

        error = httpx2.ReadError(f"sent {KEY}", request=_request(authorization=f"Bearer {KEY}"))
        error.add_note(f"key {KEY} failed")
        cause = ValueError(RequestInfo({"Authorization": KEY}), 3, None)
        cause.detail = {"key": KEY}  # type: ignore[attr-defined]
        error.__cause__ = cause
        clean_error(error)
        assert error.args == (f"sent {SEEN}",)
        assert error.__notes__ == [f"key {SEEN} failed"]
        assert (cause.args, vars(cause)) == ((RequestInfo({}), 3, None), {"detail": SEEN})

    def test_words_that_are_no_secret_are_not_masked(self) -> None:
        """The scheme of a credential is no secret, and masking it would spoil texts."""
        error = httpx2.ReadError("Bearer is not basic", request=_request(authorization=f"Bearer {KEY}"))
        clean_error(error)
        assert error.args == ("Bearer is not basic",)

    @pytest.mark.parametrize("text", [f'{{"content": "{PROMPT} \ud800"}}', f"\ud800{PROMPT}", f"{PROMPT}\ud800"])
    def test_a_text_that_cannot_be_encoded_is_reduced_to_the_reason(self, text: str) -> None:
        """An encoding error holds the whole text; only what could not be encoded, and where, is left."""
        with pytest.raises(UnicodeEncodeError) as failure:
            text.encode()
        message = str(failure.value)
        clean_error(failure.value)
        assert str(failure.value) == message
        assert PROMPT not in _told(failure.value)
        assert len(failure.value.object) == len(text)

    async def test_the_sdk_error_for_a_prompt_that_cannot_be_encoded_is_cleaned(self) -> None:
        """A lone surrogate in a prompt raises before anything is sent; the error doesn't tell the prompt."""
        async with _client(_status(500, "api_error")) as client:
            with pytest.raises(UnicodeEncodeError) as failure:
                await client.messages.create(
                    model="claude-sonnet-5-5", max_tokens=5, messages=[{"role": "user", "content": PROMPT + "\ud800"}]
                )
        assert PROMPT in _told(failure.value)
        clean_error(failure.value)
        assert PROMPT not in _told(failure.value).replace(f'"content": "{PROMPT}"', "")

    def test_errors_of_others_are_not_touched(self) -> None:
        """An error that carries no request comes back as it was."""
        error = ValueError("text", {"key": "value"})
        clean_error(error)
        assert error.args == ("text", {"key": "value"})
