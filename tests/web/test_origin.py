from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from penstock.web import check_origin


def opened_by(*origins: str, host: str = "chat.example:8000") -> HTTPConnection:
    """A handshake with these `Origin` headers."""
    headers = [(b"host", host.encode()), *((b"origin", origin.encode()) for origin in origins)]
    return HTTPConnection({"type": "websocket", "headers": headers})


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://chat.example:8000", "chat.example:8000"),
        ("https://chat.example:8000", "CHAT.example:8000"),
        ("https://chat.example", "chat.example"),
        ("https://chat.example", "chat.example:443"),
        ("http://chat.example:80", "chat.example"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_pages_of_this_server_pass(origin: str, host: str) -> None:
    """The same host and port are the same server, however they are written."""
    assert check_origin(opened_by(origin, host=host))


@pytest.mark.parametrize(
    "origins",
    [
        ["http://evil.example:8000"],
        ["http://chat.example"],
        ["http://chat.example:8001"],
        ["http://chat.example.evil.example:8000"],
        ["http://evil.example#chat.example:8000"],
        ["http://evil.example?@chat.example:8000#"],
        ["null"],
        [""],
        ["chat.example:8000"],
        ["file://chat.example:8000"],
        ["http://chat.example:port"],
        ["http://[chat.example:8000"],
        ["http://chat.example:8000", "http://evil.example"],
    ],
)
def test_other_pages_do_not(origins: list[str]) -> None:
    """Neither another host or port, nor an origin that is none, nor two of them."""
    assert not check_origin(opened_by(*origins))


def test_a_page_of_nowhere_is_not_of_a_server_without_a_name() -> None:
    """Nothing and nothing are not the same host."""
    assert not check_origin(opened_by("http://", host=""))


def test_other_pages_may_be_allowed() -> None:
    """Those that are named pass, and no others."""
    allowed = {"https://app.example"}
    assert check_origin(opened_by("https://app.example"), allowed=allowed)
    assert not check_origin(opened_by("http://app.example"), allowed=allowed)


def test_what_is_no_browser_passes() -> None:
    """Browsers always say where a page came from."""
    assert check_origin(opened_by())
