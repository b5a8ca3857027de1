"""JSON as it crosses the wire: narrowing, compact writing, ids, the API's error body. Nothing here decides anything."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

__all__ = ["ApiError", "Json", "Request", "dump", "identifier", "invalid", "is_list", "is_object"]

Json: TypeAlias = dict[str, Any]

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def dump(value: object) -> bytes:
    """One line of compact JSON in UTF-8; lone surrogates are escaped, because UTF-8 has no place for them."""
    text = _encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def identifier(prefix: str, salt: str) -> str:
    """An id in the API's form, the same for the same `salt`."""
    digest = hashlib.blake2b(f"{prefix}\0{salt}".encode(), digest_size=11).hexdigest()
    return f"{prefix}_01{digest}"


def is_object(value: object) -> TypeGuard[Json]:
    """Whether `value` is a JSON object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether `value` is a JSON array."""
    return isinstance(value, list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One HTTP request as a front end received it.

    Attributes:
        method: upper case.
        path: without the query.
        query: first value of each parameter.
        headers: names in lower case.
        body: the whole body; empty where `too_large` made reading it pointless.
        too_large: the front end saw from `content-length` that the body is over the limit, and did not read it.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""
    too_large: bool = False

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path}, {len(self.body)} bytes)"


class ApiError(Exception):
    """The request is refused with this status and error body.

    Attributes:
        status: HTTP status.
        kind: `error.type` of the body.
        message: `error.message` of the body.
        error_code: `error.details.error_code`, where the API gives one.
        details: what else `error.details` holds.
        headers: extra response headers, such as `retry-after`.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        error_code: str | None = None,
        details: Json | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.error_code = error_code
        self.details = details or {}
        self.headers = headers or {}

    def body(self, request_id: str) -> Json:
        """The JSON error body, which names the request."""
        error: Json = {"type": self.kind, "message": self.message}
        details = {**self.details} if self.error_code is None else {"error_code": self.error_code, **self.details}
        if details:
            error["details"] = details
        return {"type": "error", "error": error, "request_id": request_id}


def invalid(message: str, *, error_code: str | None = None) -> ApiError:
    """The API's 400 `invalid_request_error` with this message."""
    return ApiError(400, "invalid_request_error", message, error_code=error_code)
