"""What a results file says, line by line, whatever else it holds.

The rule here: nothing that a file holds leaves in an error, and no line takes more memory than an answer may have.
What is no result is passed over, and what is missing for it is found out by whoever counts.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, cast

from penstock._core.call import MAX_RESPONSE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["ResultLines"]

# Far more than stands between results, and little enough that a line without end ends.
_MOST_PASSED_OVER_BYTES: Final = 1024 * 1024 * 1024
# What a line counts there at least: a million of them take seconds to look at.
_LINE_BYTES: Final = 1024
# What decodes and encodes it again calls itself as often as it nests, and Python bounds that at about 1,000.
_DEEPEST: Final = 500
_LOOKED_AT_BYTES: Final = 100
_BOM: Final = b"\xef\xbb\xbf"


class ResultLines:
    r"""Takes a results file apart, piece by piece.

    Args:
        most: Lines after which no more are read, 1 or more.

    Attributes:
        begun: Whether there was a result, or what begins like one.
        other: Whether there was anything else.
        over: Whether there has been so much that nothing more is worth reading.

    Example:
        >>> lines = ResultLines(most=10)
        >>> [*lines.feed(b'{"custom_id": "a"}\n{"cust'), *lines.feed(b'om_id": "b"}\n'), *lines.end()]
        [{'custom_id': 'a'}, {'custom_id': 'b'}]
    """

    def __init__(self, *, most: int) -> None:
        self.begun = self.other = self.over = False
        self._left = most
        self._held = bytearray()
        self._too_long = False
        self._passed_over_bytes = 0

    def __repr__(self) -> str:
        return f"<ResultLines, {len(self._held)} bytes held, {self._passed_over_bytes} passed over>"

    def feed(self, chunk: bytes) -> Iterator[Mapping[str, Any]]:
        """Take the next bytes, and give the results that end in them."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._hold(end)
            if (line := self._taken()) is not None:
                yield line
        self._hold(rest)

    def end(self) -> Iterator[Mapping[str, Any]]:
        """Give the result that the last newline is missing of, if it is whole. A file may break off anywhere."""
        if (line := self._taken()) is not None:
            yield line

    def _hold(self, piece: bytes) -> None:
        if not self._too_long:
            self._held += piece
            if len(self._held) > MAX_RESPONSE_BYTES:
                self._too_long = True
                self._pass_over(self._held, None)
                self._held = bytearray()
        else:
            self._count(len(piece))

    def _taken(self) -> Mapping[str, Any] | None:
        """Let go of the line that is held, and return the result that it is."""
        raw, self._held = self._held, bytearray()
        if self._too_long:
            self._too_long = False
            return None
        decoded: object = _decoded(raw) if raw else None
        line = _result_of(decoded)
        if line is None:
            self._pass_over(raw, decoded)
            return None
        self.begun = True
        self._left -= 1
        self.over = self.over or self._left <= 0
        return line

    def _pass_over(self, raw: bytes | bytearray, decoded: object) -> None:
        """Note what is no result, and whether it begins like one."""
        if beginning := raw[:_LOOKED_AT_BYTES].removeprefix(_BOM).lstrip():
            if beginning.startswith(b"{") and decoded is None:
                self.begun = True
            else:
                self.other = True
        self._count(max(len(raw), _LINE_BYTES))

    def _count(self, size: int) -> None:
        self._passed_over_bytes += size
        self.over = self.over or self._passed_over_bytes > _MOST_PASSED_OVER_BYTES


def _decoded(raw: bytearray) -> object:
    """Return what a line says; `None` if it can't be read."""
    try:
        decoded: object = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    # Most lines can't nest so deep: they hold fewer brackets.
    if raw.count(b"[") + raw.count(b"{") > _DEEPEST and _is_too_deep(decoded):
        return None
    return decoded


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        below: list[object] = []
        for each in level:
            if isinstance(each, dict):
                below += cast("dict[str, object]", each).values()
            elif isinstance(each, list):
                below += cast("list[object]", each)
        if not below:
            return False
        level = below
    return True


def _result_of(decoded: object) -> Mapping[str, Any] | None:
    """Return the result that a line is; `None` if it is none."""
    if not isinstance(decoded, dict):
        return None
    fields = cast("Mapping[str, Any]", decoded)
    custom_id: object = fields.get("custom_id")
    # The API takes nothing but ASCII for a name.
    return fields if isinstance(custom_id, str) and custom_id.isascii() else None
