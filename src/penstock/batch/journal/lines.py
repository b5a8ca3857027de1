r"""The lines of a journal: what is written, and what is made of what is found.

The rule here: a line is a line of a Message Batches result file, with one key more (`penstock`) that other readers
ignore. A line counts when its newline is there; newlines of every kind are escaped, Unicode's too, so that a line is
never cut but at its end, whoever reads it.

    {"custom_id": "a", "result": {"type": "succeeded", "message": {…}}, "penstock": {"asked": "9f…", …, "crc32": "…"}}
    {"custom_id": "b", "result": {"type": "errored", "error": {…}}, "penstock": {"asked": "07…", …, "crc32": "…"}}

`penstock` holds: `asked`, the digest of the request (`penstock.batch.journal.request`); `attempts`, `latency_s`,
`queued_s` and `labels` as in `FanOutResult`; `error`, for an answer that did not fit its `output_format`; `params`, for
a failed item with `keep_params`; `retryable`, where the item failed for
reasons that lie outside it, so that the next run asks it again; and last `crc32`, the checksum of the line up to there.
Lines of others have none, nor have those of before; they are taken at their word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from pydantic_core import PydanticSerializationError, to_jsonable_python

from penstock.batch.journal.checksum import CHECKSUM, is_checked, with_checksum
from penstock.batch.journal.request import encode_params

if TYPE_CHECKING:
    from anthropic.types import Message

    from penstock.batch.result import FanOutResult

__all__ = ["Line", "State", "decode_line", "is_ours", "is_torn", "read_line", "write_line"]

_Fields: TypeAlias = Mapping[str, Any]

_NOTHING: Final[_Fields] = {}
_BEGINNING: Final = b'{"custom_id"'
_OURS: Final = b'"penstock":{'
# What a line without a checksum may hold: a damaged key, or a damaged checksum, is none of it.
_UNCHECKED: Final = frozenset(
    ("asked", "attempts", "error", "labels", "latency_s", "params", "queued_s", "request", "retryable")
)
_BOM: Final = b"\xef\xbb\xbf"
_encode: Final = json.JSONEncoder(separators=(",", ":"), default=to_jsonable_python).encode
# What JSON allows as it is, and many a reader of lines (`str.splitlines`) takes for the end of one.
_SEPARATORS: Final = tuple((character, f"\\u{ord(character):04x}") for character in "\x85\u2028\u2029")
_MOST: Final = (1 << 64) - 1


class State(IntEnum):
    """What a line says of its item."""

    ANSWERED = 1
    FAILED = 2
    UNASKED = 3  # to be asked as if there were no line: canceled, expired, or failed for reasons outside the item


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a journal remembers of a line.

    Attributes:
        custom_id: Of the item.
        state: What became of it.
        request: Digest of its request as a number; 0 if the line tells none.
    """

    custom_id: str
    state: State
    request: int


def write_line(
    result: FanOutResult, *, request: str | None, params: Mapping[str, Any] | None, retryable: bool = False
) -> bytes:
    """Return the line of a result, its newline included.

    Args:
        result: What came of an item.
        request: Digest of its request; `None` if it isn't known.
        params: Of its request, where they are to be kept.
        retryable: Whether the next run is to ask the item again.
    """
    told: list[str] = [] if request is None else [f'"asked":"{request}",']
    if retryable:
        told.append('"retryable":true,')
    if result.attempts is not None:
        told.append(f'"attempts":{result.attempts},')
    if result.latency_s is not None:
        told.append(f'"latency_s":{round(result.latency_s, 3)},')
    if result.queued_s:
        told.append(f'"queued_s":{round(result.queued_s, 3)},')
    if result.labels:
        told.append(f'"labels":{_encode(dict(result.labels))},')
    if result.message is None:
        body = _encode(result.to_dict()["result"])
    else:
        body = f'{{"type":"succeeded","message":{_message(result.message)}}}'
        if result.error is not None:
            told.append(f'"error":"{type(result.error).__name__}",')
    if params is not None:
        told.append(f'"params":{encode_params(params)},')
    custom_id = encode_basestring_ascii(result.custom_id)
    return with_checksum(f'{{"custom_id":{custom_id},"result":{body},"penstock":{{{"".join(told)}', "}}")


def _message(message: Message) -> str:
    try:
        text = message.model_dump_json(by_alias=True, exclude_unset=True, warnings=False)
    except PydanticSerializationError:
        # Half a surrogate pair can't be encoded but by an escape, which is how it came.
        return _encode(message.to_dict(mode="python", warnings=False))
    if not text.isascii():
        for separator, escaped in _SEPARATORS:
            text = text.replace(separator, escaped)
    return text


def read_line(raw: bytes) -> Line | None:
    """Read a line.

    Returns:
        What it says; `None` if it is blank.

    Raises:
        ValueError: It is no line of a result file; the text says why, and quotes nothing.
    """
    if not raw.strip():
        return None
    line = decode_line(raw)
    custom_id, result, more = line.get("custom_id"), line.get("result"), line.get("penstock")
    if isinstance(custom_id, str) and "params" in line and result is None:
        raise ValueError("is a request, not a result: give the journal a file of its own")
    if not isinstance(custom_id, str) or not isinstance(result, dict):
        raise ValueError("is no result: it has no custom_id and result")  # noqa: TRY004 - of the text it is read from
    told = _fields(more)
    return Line(custom_id=custom_id, state=_state(_fields(line["result"]), told), request=_request(told))


def decode_line(raw: bytes) -> Mapping[str, Any]:
    """Return what a line says, as it was written.

    Raises:
        ValueError: It is no JSON, or damaged; the text says so, and quotes nothing.
    """
    text = raw.removeprefix(_BOM)
    checked = is_checked(text)
    try:
        line = _fields(json.loads(text.decode()))
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not checked and not _fields(line.get("penstock")).keys() <= _UNCHECKED:
        raise ValueError("is damaged: its checksum can't be read")
    return line


def is_ours(raw: bytes) -> bool:
    """Return whether a line was written here, damaged or not, so that its file is a journal for certain."""
    return CHECKSUM.encode() in raw[-40:] or (raw.startswith(_BEGINNING) and _OURS in raw)


def _fields(decoded: object) -> _Fields:
    return cast("_Fields", decoded) if isinstance(decoded, dict) else _NOTHING


def _state(result: _Fields, told: _Fields) -> State:
    kind = result.get("type")
    if kind == "succeeded" and isinstance(result.get("message"), dict):
        return State.ANSWERED if told.get("error") is None else State.FAILED
    if kind == "errored":
        return State.UNASKED if told.get("retryable") is True else State.FAILED
    if kind in {"canceled", "expired"}:
        return State.UNASKED
    raise ValueError("is no result: its type is none of succeeded, errored, canceled, expired")


def _request(told: _Fields) -> int:
    try:
        request = int(told.get("asked", "0"), 16)
    except (TypeError, ValueError):
        request = -1
    if not 0 <= request <= _MOST:
        raise ValueError("has a digest that is none")
    return request


def is_torn(raw: bytes) -> bool:
    """Return whether the end of a file, which is no line, is the beginning of one.

    A power failure may leave a file longer than what was written, filled up with zeros.
    """
    written = raw.rstrip(b"\0")
    return written.startswith(_BEGINNING) or _BEGINNING.startswith(written)
