"""The request around its fields: size, credentials, version, encoding, JSON."""

from __future__ import annotations

import json
import zlib

from penstock.simulator.wire import ApiError, Json, Request, invalid, is_object

__all__ = ["check_size", "check_version", "find_key", "max_bytes", "page_size", "parse"]

MAX_BYTES = 32 * 1024 * 1024
MAX_BATCH_BYTES = 256 * 1024 * 1024
MAX_PAGE = 1000
VERSIONS = ("2023-06-01", "2026-10-21")
_WINDOW_BITS = {"gzip": 31, "deflate": 15}


def max_bytes(path: str) -> int:
    """How large a body may be: 256 MB for a batch, else 32 MB."""
    return MAX_BATCH_BYTES if path == "/v1/messages/batches" else MAX_BYTES


def check_size(request: Request) -> None:
    """No body is larger than its path takes."""
    if request.too_large or len(request.body) > max_bytes(request.path):
        raise ApiError(413, "request_too_large", "Request exceeds the maximum size")


def find_key(headers: dict[str, str]) -> str:
    """The API key, from `x-api-key` or `Authorization: Bearer`; the former wins."""
    key = headers.get("x-api-key", "").strip()
    if not key:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else ""
    if not key:
        raise ApiError(401, "authentication_error", "x-api-key header is required")
    return key


def check_version(headers: dict[str, str]) -> str:
    """The API version that the request asks for."""
    version = headers.get("anthropic-version")
    if version is None:
        raise invalid("anthropic-version: header is required")
    if version not in VERSIONS:
        raise invalid(f'anthropic-version: "{version}" is not a valid version')
    return version


def parse(request: Request) -> Json:
    """The body as a JSON object."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    data = _decoded(request.body, encoding, most=max_bytes(request.path))
    try:
        body: object = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise invalid("The request body is not valid JSON") from None
    if not is_object(body):
        raise invalid("Input should be a valid dictionary")
    return body


def _refuse(name: str) -> None:
    """Python reads `NaN` and `Infinity`; JSON has neither."""
    raise ValueError(name)


def _decoded(data: bytes, encoding: str, *, most: int) -> bytes:
    if encoding == "identity":
        return data
    if encoding not in _WINDOW_BITS:
        raise invalid(f"content-encoding: {encoding} is not supported", error_code="request_body_encoding_unsupported")
    inflate = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = inflate.decompress(data, most + 1)
    except zlib.error:
        raise invalid(f"The request body is not valid {encoding}", error_code="request_body_encoding_invalid") from None
    if len(plain) > most:
        message = "Request exceeds the maximum size after decoding"
        raise ApiError(413, "request_too_large", message, error_code="request_body_too_large_after_decoding")
    return plain


def page_size(query: dict[str, str]) -> int:
    """The `limit` of a list request."""
    text = query.get("limit", "20")
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MAX_PAGE):
        raise invalid(f"limit: Input should be a valid integer between 1 and {MAX_PAGE}")
    return int(text)
