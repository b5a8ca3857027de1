"""API keys that are held without being shown, and errors that are freed of them.

The rule here: a key is readable in two places only, the header that carries it and `Secret.reveal`. Whatever else may
show it (a `repr`, a log line, a pickle, a traceback with local variables, an error with its request) shows a name
instead: `key-` and 8 hex digits of the key's SHA-256, the same on every machine, so that two log lines can be matched
and a key can't be recovered.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import re
import sys
import traceback
from functools import lru_cache
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, cast

import anthropic
import httpx2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

__all__ = ["MaskedStr", "Secret", "bearer", "clean_error", "key_name", "names_credential", "without_secrets"]

_MASKED: Final = "***"
_NO_BODY: Final = httpx2.ByteStream(b"")
_BODY_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding"})
# Words of header names, so that credentials of gateways and clouds are known too: x-goog-api-key, cf-aig-authorization.
_CREDENTIAL_WORDS: Final = frozenset(
    b"apikey auth authentication authorization cookie credential credentials jwt key password secret signature"
    b" token".split()
)
# Shorter words of a credential (Bearer, Basic) are no secret, and masking them would spoil messages.
_SHORTEST_SECRET: Final = 8
_BETWEEN_SECRETS: Final = re.compile(r"[\s;,=]+")
# RFC 9110 §5.1 and §5.5. What is none of it is not sent, and may be anything: a prompt that slipped into a header.
_HEADER_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_HEADER_VALUE: Final = re.compile(rb"([!-~\x80-\xff]([\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
# How h11 and h2 show what they refuse.
_QUOTED: Final = re.compile(r"""b?(['"]).*\1""", re.DOTALL)
_WAITS: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
# Before, to clear the frame of what only waits is to end it.
_KNOWS_WHAT_WAITS: Final = sys.version_info >= (3, 13)


def key_name(key: str) -> str:
    """Name a key without telling it.

    Args:
        key: The key.

    Returns:
        `key-` and the first 8 hex digits of its SHA-256.

    Example:
        >>> key_name("sk-example")
        'key-f2d4b279'
    """
    return "key-" + hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:8]


class Secret:
    """An API key: compared in constant time, shown by its name, never pickled.

    Args:
        value: The key itself.

    Example:
        >>> secret = Secret("sk-example")
        >>> secret, f"{secret}", secret.reveal()
        (Secret('key-f2d4b279'), 'key-f2d4b279', 'sk-example')
    """

    __slots__ = ("_name", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        self._name = key_name(value)

    @property
    def name(self) -> str:
        """The name to show in place of the key."""
        return self._name

    def reveal(self) -> str:
        """The key itself."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self._name!r})"

    def __str__(self) -> str:
        return self._name

    def __format__(self, format_spec: str) -> str:
        return format(self._name, format_spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        mine, others = (secret.reveal().encode(errors="surrogatepass") for secret in (self, other))
        return hmac.compare_digest(mine, others)

    def __hash__(self) -> int:
        return hash(self._name)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} can't be pickled, because the pickle would hold the key. Pass its name, look the key up there."
        )


class MaskedStr(str):
    """A string for a header's value, which shows something else in place of itself.

    Only `repr` and pickles are masked: headers are built from the characters, so those must stay.

    Args:
        value: The characters.
        shown: What to show in their place.

    Example:
        >>> {"Authorization": MaskedStr("Bearer sk-example")}
        {'Authorization': '***'}
    """

    __slots__ = ("_shown",)
    _shown: str

    def __new__(cls, value: str, shown: str = _MASKED) -> Self:
        """Attach what to show; a string's characters can only be given here."""
        masked = super().__new__(cls, value)
        masked._shown = shown
        return masked

    def __repr__(self) -> str:
        return repr(self._shown)

    # The SDK copies request options deeply; a copy must still authenticate.
    def __copy__(self) -> MaskedStr:
        return self

    def __deepcopy__(self, memo: object) -> MaskedStr:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self._shown,)

    def __reduce_ex__(self, protocol: object) -> tuple[type[str], tuple[str]]:
        return self.__reduce__()


def bearer(secret: Secret) -> MaskedStr:
    """The value of an `Authorization` header for a key.

    Args:
        secret: The key.

    Returns:
        A string that authenticates and shows the key's name.

    Example:
        >>> bearer(Secret("sk-example"))
        'Bearer key-f2d4b279'
    """
    return MaskedStr(f"Bearer {secret.reveal()}", f"Bearer {secret.name}")


def without_secrets(request: httpx2.Request) -> httpx2.Request:
    """Copy a request without what must not leave with an error or a response.

    Args:
        request: A request, sent or not. It isn't changed.

    Returns:
        A request with the same method, URL (less its user and password), headers (less credentials) and time-outs,
        and an empty body.

    Example:
        >>> request = httpx2.Request("POST", "https://api.anthropic.com", headers={"X-Api-Key": "k"}, content=b"Hi")
        >>> clean = without_secrets(request)
        >>> "x-api-key" in clean.headers, clean.content
        (False, b'')
    """
    url = request.url
    if url.userinfo:
        url = url.copy_with(username=None, password=None)
    clean = httpx2.Request(request.method, url, headers=_without_credentials(request.headers), stream=_NO_BODY)
    if (timeout := request.extensions.get("timeout")) is not None:
        clean.extensions["timeout"] = timeout
    # Reading it ends with nothing instead of an error.
    clean._content = b""  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - what `read()` sets, which takes longer
    return clean


def clean_error(error: BaseException) -> None:
    """Free an error, its causes, contexts and group members of credentials and prompts; in place.

    The SDK's and the transport's errors carry their request, and pickle it. Some quote what could not be sent: a
    header's value that isn't a legal one, or the whole text where a character of it can't be encoded. And tools that
    report errors show the local variables of every frame: those of frames that are left are forgotten, files and lines
    stay. Errors that a caller is handling while it asks are its own, and keep theirs.

    Args:
        error: Any error; below where this is called, nothing needs the variables of its frames any more.

    Example:
        >>> request = httpx2.Request("GET", "https://api.anthropic.com", headers={"X-Api-Key": "k"})
        >>> error = anthropic.APIConnectionError(request=request)
        >>> clean_error(error)
        >>> "x-api-key" in error.request.headers
        False
    """
    # Not this frame itself: one that refers to itself, and to the error, would not be freed with it.
    here, *callers = islice(_frames_from(inspect.currentframe()), 1, None)
    for each in list(_tree(error, unless=lambda each: each is not error and _first_frame(each) in callers)):
        _forget_variables(each, running={here, *callers})
    errors = list(_tree(error))
    secrets: set[str] = set()
    for each in errors:
        secrets.update(_strip_requests(each))
    for each in errors:
        if isinstance(each, UnicodeEncodeError):
            _mask_unencodable(each)
        elif type(each).__name__ == "LocalProtocolError":
            # Of h11, h2, httpcore2 or httpx2: each makes its own of the other's.
            each.args = tuple(_QUOTED.sub(_MASKED, arg) if isinstance(arg, str) else arg for arg in each.args)
        if secrets:
            _mask_texts(each, secrets)


def _frames_from(frame: FrameType | None) -> Iterator[FrameType | None]:
    """A frame that is at work, and all that have called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _first_frame(error: BaseException) -> FrameType | None:
    return None if error.__traceback__ is None else error.__traceback__.tb_frame


def _forget_variables(error: BaseException, *, running: set[FrameType | None]) -> None:
    if not _KNOWS_WHAT_WAITS:
        error.__traceback__ = _without_waiting(error.__traceback__, running)
    traceback.clear_frames(error.__traceback__)


def _without_waiting(trace: TracebackType | None, running: set[FrameType | None]) -> TracebackType | None:
    """Leave out the frames that may only wait, as those of another task that was told the same error."""
    frames: list[TracebackType] = []
    while trace is not None:
        if trace.tb_frame in running or not trace.tb_frame.f_code.co_flags & _WAITS:
            frames.append(trace)
        trace = trace.tb_next
    kept = None
    for each in reversed(frames):
        kept = TracebackType(kept, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return kept


@lru_cache(maxsize=1024)
def _is_withheld(name: bytes) -> bool:
    """Whether a header, by its name in lower case, stays behind: a credential, the missing body's, or no header."""
    return name in _BODY_HEADERS or names_credential(name) or not _HEADER_NAME.fullmatch(name)


def names_credential(name: bytes) -> bool:
    """Return whether a header carries a credential, by its name in lower case."""
    return name != b"idempotency-key" and not _CREDENTIAL_WORDS.isdisjoint(name.replace(b"_", b"-").split(b"-"))


def _without_credentials(headers: httpx2.Headers) -> httpx2.Headers:
    items = cast("list[tuple[bytes, bytes, bytes]] | None", getattr(headers, "_list", None))
    if items is None:
        return httpx2.Headers([(name, value) for name, value in headers.raw if not _is_withheld(name.lower())])
    # This runs for every response. Building headers from pairs takes four times as long as filtering the list inside.
    clean = httpx2.Headers()
    clean._list = [item for item in items if not _is_withheld(item[1])]  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return clean


def _no(_: BaseException) -> bool:
    return False


def _tree(error: BaseException, *, unless: Callable[[BaseException], bool] = _no) -> Iterator[BaseException]:
    """The error and everything that is reachable from it, once each, but for some and what only they lead to."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen or unless(each):
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__, *(part for part in each.args if isinstance(part, BaseException))]
        if isinstance(each, BaseExceptionGroup):
            waiting += cast("BaseExceptionGroup[BaseException]", each).exceptions


def _strip_requests(error: BaseException) -> Iterator[str]:
    """Replace every request that the error carries by a clean copy; yields the credentials that they held."""
    if not isinstance(error, (anthropic.APIError, httpx2.HTTPError)):
        return
    request, response = _attribute(error, "request"), _attribute(error, "response")
    if isinstance(request, httpx2.Request):
        yield from _credentials(request)
        clean = error.request = without_secrets(request)
        clean.headers = httpx2.Headers(
            [(name, value) for name, value in clean.headers.raw if _HEADER_VALUE.fullmatch(value)]
        )
    if isinstance(response, httpx2.Response):
        yield from _strip_response(response)


def _strip_response(response: httpx2.Response) -> Iterator[str]:
    for each in (*response.history, response):
        for name in ("request", "next_request"):
            request = _attribute(each, name)
            if isinstance(request, httpx2.Request):
                yield from _credentials(request)
                setattr(each, name, without_secrets(request))


def _attribute(holder: object, name: str) -> object:
    try:
        return getattr(holder, name, None)
    except RuntimeError:  # how httpx2 says that a request was never set
        return None


def _credentials(request: httpx2.Request) -> Iterator[str]:
    """Every secret word in the headers and the URL of a request."""
    values = [value for name, value in request.headers.raw if _is_withheld(name.lower())]
    for value in (*values, request.url.userinfo):
        words = _BETWEEN_SECRETS.split(value.decode(errors="replace"))
        yield from (word for word in words if len(word) >= _SHORTEST_SECRET)


def _mask_unencodable(error: UnicodeEncodeError) -> None:
    """Leave only the characters that could not be encoded: the text is a header's value or a whole request."""
    start, end = error.start, error.end
    error.object = "?" * start + error.object[start:end] + "?" * (len(error.object) - end)
    error.args = (error.encoding, error.object, start, end, error.reason)


def _mask_texts(error: BaseException, secrets: Iterable[str]) -> None:
    """Mask secrets in the arguments, attributes and notes of an error."""
    if not isinstance(error, BaseExceptionGroup):  # its members are reached by themselves, its message can't be changed
        error.args = tuple(_without(secrets, argument) for argument in error.args)
    for name, value in vars(error).items():
        if name == "__notes__":
            error.__notes__ = [str(_without(secrets, note)) for note in value]
        else:
            vars(error)[name] = _without(secrets, value)


def _without(secrets: Iterable[str], value: object) -> object:
    """The value, if it shows no secret; else, of a string the rest, and of anything else nothing."""
    if isinstance(value, BaseException):
        return value
    shown = value if isinstance(value, str) else repr(value)
    for secret in secrets:
        if secret in shown:
            if "headers" in getattr(value, "_fields", ()):
                # Of aiohttp, whose errors can't be shown without.
                return cast("Any", value)._replace(headers={})
            shown = shown.replace(secret, _MASKED)
            value = shown if isinstance(value, str) else _MASKED
    return value
