"""Every way in which the simulated API goes wrong, by name: scripted in order, or drawn with given probabilities.

A fault is either an *answer* (an error response instead of a reply), a failure of the *transport* before any headers,
or damage to the *body* of a reply that is being sent. `PLAIN_EQUIVALENT` names the body faults that only a stream can
have, and what a plain request gets in their place.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penstock.simulator.wire import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FAULTS", "MIXED_FAULTS", "PLAIN_EQUIVALENT", "Fault", "Faults", "HtmlError", "answer"]


class HtmlError(Exception):
    """An error page of the proxy in front of the API: no JSON, no `error.type`."""

    def __init__(self, status: int, title: str) -> None:
        super().__init__(title)
        self.status = status
        self.page = (
            f"<html>\r\n<head><title>{status} {title}</title></head>\r\n<body>\r\n"
            f"<center><h1>{status} {title}</h1></center>\r\n"
            "<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
        ).encode()


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A fault that hits one request.

    Attributes:
        name: one of `FAULTS`.
        params: what `Simulator.inject` was given for it.
    """

    name: str
    params: dict[str, Any] = field(default_factory=dict[str, Any])

    def number(self, name: str, default: float) -> float:
        """The parameter `name`."""
        return float(self.params.get(name, default))

    def error(self, status: int | None = None) -> ApiError:
        """The error that its parameters describe; an overload where they describe none."""
        kind = str(self.params.get("type", "overloaded_error"))
        return ApiError(
            status or int(self.params.get("status", _STATUSES.get(kind, 500))),
            kind,
            str(self.params.get("message", "Overloaded" if kind == "overloaded_error" else "The request failed.")),
            error_code=self.params.get("error_code"),
            details=self.params.get("details"),
            headers=_said(self),
        )


_STATUSES = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "conflict_error": 409, "request_too_large": 413, "rate_limit_error": 429,
    "api_error": 500, "timeout_error": 504, "overloaded_error": 529,
}  # fmt: skip
"""The status that each `error.type` comes with."""

_RATE = "This request would exceed your organization's rate limit. Please try again later."
_RAMP = (
    "This request would exceed your organization's maximum usage increase rate for input tokens per minute. "
    "Please scale up your input tokens usage more gradually to stay within the acceleration limit."
)
_SPEND = (
    "Your organization has reached its monthly API usage limit. It is lifted when the limit rises or the month ends."
)

_ANSWERS: dict[str, tuple[int, str, str, str | None]] = {
    "rate_limited": (429, "rate_limit_error", _RATE, None),
    "rate_limited_no_retry_after": (429, "rate_limit_error", _RATE, None),
    "retry_after_ms": (429, "rate_limit_error", _RATE, None),
    "ramp": (429, "rate_limit_error", _RAMP, "ramp_limit_exceeded"),
    "spend_cap": (429, "rate_limit_error", _SPEND, "enforced_spend_limit_reached"),
    "overloaded": (529, "overloaded_error", "Overloaded", None),
    "api_error": (500, "api_error", "Internal server error", None),
    "should_retry_false": (500, "api_error", "Internal server error", None),
    "unavailable": (503, "api_error", "Service unavailable", None),
    "timeout_error": (504, "timeout_error", "Request timed out", None),
    "authentication": (401, "authentication_error", "invalid x-api-key", None),
    "permission": (
        403,
        "permission_error",
        "Your API key does not have permission to use the specified resource.",
        None,
    ),
    "not_found": (404, "not_found_error", "Not found", None),
    "request_timeout": (408, "timeout_error", "Request timeout", None),
    "conflict": (409, "conflict_error", "The request conflicts with another request in progress.", None),
}
_PAGES = {"bad_gateway": (502, "Bad Gateway"), "request_too_large": (413, "Request Entity Too Large")}
_TRANSPORT = frozenset({"reset", "stall_before_headers"})
_BODY = frozenset({
    "truncated", "stall", "pings_only", "stream_error_before_content", "stream_error_after_content",
    "stream_drop_before_content", "stream_drop_after_content", "no_message_stop", "bad_json",
})  # fmt: skip
FAULTS = frozenset({"error"}) | frozenset(_ANSWERS) | frozenset(_PAGES) | _TRANSPORT | _BODY
"""The names of all faults."""

PLAIN_EQUIVALENT = {
    "pings_only": "stall",
    "stream_error_before_content": "error",
    "stream_error_after_content": "error",
    "stream_drop_before_content": "reset",
    "stream_drop_after_content": "truncated",
    "no_message_stop": "truncated",
}
"""What a request that is no stream gets instead of a fault of streams."""

_DESCRIBED = {"type", "message", "error_code", "details"}
_PARAMS = {
    "error": _DESCRIBED | {"status", "retry_after_s", "should_retry"},
    "stream_error_before_content": _DESCRIBED,
    "rate_limited": {"retry_after_s"},
    "ramp": {"retry_after_s"},
    "retry_after_ms": {"retry_after_ms"},
    "pings_only": {"interval_s"},
    "stream_error_after_content": _DESCRIBED | {"after_deltas"},
    "stream_drop_after_content": {"after_deltas"},
    "stall": {"after_deltas"},
}
_MIX = {
    "rate_limited": 2, "overloaded": 5, "api_error": 2, "bad_gateway": 1, "reset": 2, "truncated": 2,
    "retry_after_ms": 1, "timeout_error": 1, "stream_error_before_content": 2, "stream_drop_before_content": 2,
}  # fmt: skip


def MIXED_FAULTS(share: float) -> dict[str, float]:  # noqa: N802 - a named mix, used like a constant
    """Split the probability `share` (0 to 1) over a realistic mix of faults that a client can retry unseen.

    Example:
        >>> from penstock.simulator import MIXED_FAULTS
        >>> round(sum(MIXED_FAULTS(0.1).values()), 9)
        0.1
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, not {share}")
    whole = sum(_MIX.values())
    return {name: share * part / whole for name, part in _MIX.items()}


def check_name(name: str) -> None:
    """Raise `ValueError` where there is no such fault."""
    if name not in FAULTS:
        raise ValueError(f"no fault is called {name!r}; there are: {', '.join(sorted(FAULTS))}")


class Faults:
    """Which fault hits the next request: the injected ones in order, else one drawn from the seeded generator."""

    __slots__ = ("_chances", "_injected", "_random")

    def __init__(self, chances: Mapping[str, float], seed: int) -> None:
        for name, chance in chances.items():
            check_name(name)
            if not 0 <= chance <= 1:
                raise ValueError(f"the probability of {name!r} must be between 0 and 1, not {chance}")
        if sum(chances.values()) > 1 + 1e-9:
            raise ValueError(
                f"the probabilities of all faults add up to {sum(chances.values()):g}; at most 1 is possible"
            )
        self._chances = dict(chances)
        self._injected: deque[Fault | None] = deque()
        self._random = random.Random(seed)

    def __repr__(self) -> str:
        return f"Faults({self._chances}, {len(self._injected)} injected)"

    def inject(self, name: str, *, times: int, after: int, params: dict[str, Any]) -> None:
        """Queue a fault behind those already queued; `after` lets so many requests pass before it."""
        check_name(name)
        if times < 1 or after < 0:
            raise ValueError(f"times must be at least 1 and after at least 0, not {times} and {after}")
        unknown = params.keys() - _PARAMS.get(name, set()) - {"delay_s"}
        if unknown:
            allowed = ", ".join(sorted(_PARAMS.get(name, set()) | {"delay_s"}))
            raise ValueError(f"fault {name!r} takes no {', '.join(sorted(unknown))}; it takes: {allowed}")
        self._injected.extend([None] * after)
        self._injected.extend([Fault(name=name, params=params)] * times)

    def draw(self) -> Fault | None:
        """The fault of the next request. One number is drawn for each request, so that a seed fixes all of them."""
        point = self._random.random()
        if self._injected:
            return self._injected.popleft()
        for name, chance in self._chances.items():
            point -= chance
            if point < 0:
                return Fault(name=name)
        return None


def answer(fault: Fault) -> ApiError | HtmlError | None:
    """The error response that `fault` is; None where it is none."""
    if fault.name in _PAGES:
        return HtmlError(*_PAGES[fault.name])
    if fault.name == "error":
        return fault.error()
    found = _ANSWERS.get(fault.name)
    if found is None:
        return None
    status, kind, message, error_code = found
    return ApiError(status, kind, message, error_code=error_code, headers=_headers(fault))


def _said(fault: Fault) -> dict[str, str]:
    """The headers that its parameters ask for."""
    headers: dict[str, str] = {}
    if "retry_after_s" in fault.params:
        headers["retry-after"] = f"{fault.number('retry_after_s', 1):g}"
    if "should_retry" in fault.params:
        headers["x-should-retry"] = "true" if fault.params["should_retry"] else "false"
    return headers


def _headers(fault: Fault) -> dict[str, str]:
    match fault.name:
        case "rate_limited" | "ramp":
            return {"retry-after": f"{fault.number('retry_after_s', 1):g}"}
        case "retry_after_ms":
            return {"retry-after-ms": f"{fault.number('retry_after_ms', 250):g}"}
        case "should_retry_false":
            return {"x-should-retry": "false"}
        case _:
            return {}
