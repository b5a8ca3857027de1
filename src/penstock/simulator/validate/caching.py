"""Marks of the prompt cache: at most four, the automatic one included, those that last longer before the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.simulator.prefix import marks_of
from penstock.simulator.validate import checks
from penstock.simulator.wire import invalid

if TYPE_CHECKING:
    from penstock.simulator.wire import Json

__all__ = ["check_caching"]

_TTLS = ("5m", "1h")
_MOST = 4
_SHORTER_FIRST = (
    "{at}.cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block. Note "
    "that blocks are processed in the following order: `tools`, `system`, `messages`."
)


def check_caching(body: Json) -> None:
    """Raise where the API would refuse the marks of `body`, whose blocks are well formed."""
    marks = marks_of(body)
    automatic = body.get("cache_control")
    if not marks and automatic is None:
        return
    places = [(at, _ttl(control, f"{at}.cache_control")) for at, control in marks]
    if len(places) > _MOST:
        raise invalid(f"A maximum of {_MOST} blocks with cache_control may be provided. Found {len(places)}.")
    if automatic is not None:
        places += _automatic(body, dict(places), _ttl(automatic, "cache_control"))
    shorter = False
    for at, ttl in places:
        if shorter and ttl == "1h":
            raise invalid(_SHORTER_FIRST.format(at=at))
        shorter = shorter or ttl == "5m"


def _ttl(control: object, at: str) -> str:
    given = checks.mapping(control, at)
    checks.known(given, {"type", "ttl"}, f"{at}.")
    checks.choice(given.get("type"), ("ephemeral",), f"{at}.type")
    return checks.choice(given.get("ttl") or "5m", _TTLS, f"{at}.ttl")


def _automatic(body: Json, explicit: dict[str, str], ttl: str) -> list[tuple[str, str]]:
    """The place of automatic caching, unless its block is marked already."""
    messages = body["messages"]
    last = f"messages.{len(messages) - 1}.content.{len(messages[-1]['content']) - 1}"
    if last in explicit:
        if explicit[last] != ttl:
            raise invalid(f"cache_control.ttl: the last block, {last}, has a cache_control with another ttl.")
        return []
    if len(explicit) == _MOST:
        raise invalid(
            f"A maximum of {_MOST} blocks with cache_control may be provided. Found {_MOST}, and automatic caching "
            "needs one more."
        )
    return [("messages", ttl)]
