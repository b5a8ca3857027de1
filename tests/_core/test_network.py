from __future__ import annotations

import errno
import ssl

import httpx2
import pytest

from penstock._core.failure import FailureKind, errors_below, failure_of_exception
from penstock._core.network import network_problem


def caused(error: Exception, cause: BaseException | None) -> Exception:
    """The error, raised from a cause."""
    error.__cause__ = cause
    return error


REFUSED = OSError(errno.ECONNREFUSED, "secret")
NO_FILES = OSError(errno.EMFILE, "secret")
WORDLESS = ssl.SSLError(1)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        # Several addresses were tried.
        (
            caused(httpx2.ConnectError("secret"), OSError(caused(OSError("secret"), ExceptionGroup("", [REFUSED])))),
            "can't reach the API: connection refused",
        ),
        (httpx2.ProxyError("407, message='secret'"), "can't reach the API through the proxy: it answered 407"),
        (httpx2.ProxyError("secret"), "can't reach the API through the proxy: the connection failed"),
        (caused(httpx2.ConnectError("secret"), WORDLESS), "can't reach the API: TLS was refused (no reason)"),
        (httpx2.PoolTimeout("secret"), "no connection can be had here: all are in use"),
        (caused(httpx2.ConnectError("secret"), NO_FILES), "no connection can be had here: too many open files"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_is_told_in_words_of_ours(error: Exception, words: str) -> None:
    """Whatever a library says of it stays unsaid."""
    assert network_problem(error) == words


def test_what_the_caller_was_busy_with_is_nothing_of_it() -> None:
    """Who calls while handling an error of his own isn't told of that one."""

    def fail() -> None:
        try:
            raise NO_FILES
        except OSError:
            raise httpx2.ConnectError("secret")  # noqa: B904 - so that it has a context and no cause

    with pytest.raises(httpx2.ConnectError) as raised:
        fail()
    assert network_problem(raised.value) == "can't reach the API: the connection failed"
    assert failure_of_exception(raised.value).kind is FailureKind.CONNECTION


def test_errors_that_lead_to_each_other_have_an_end() -> None:
    """Twenty are enough to know."""
    error = OSError("a")
    error.args = (error, error)
    assert len(list(errors_below(error))) == 20
