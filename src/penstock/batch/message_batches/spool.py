"""Requests set aside on disk, for as long as their batches are under way.

The rule here: of what was submitted, memory holds a few bytes a request. Whatever must be sent once more is read back
from a file without a name, which vanishes with the process, however that ends.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Head", "Spool", "wire_request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What tells requests apart.

    Attributes:
        index: Place in the input, from 0.
        custom_id: As its author knows it.
        digest: Of the request.
        wire_id: As the API knows it: names the item and what is asked, so that no other request has the same.
        labels: The item's own.
    """

    index: int
    custom_id: str
    digest: str
    wire_id: str
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


def wire_request(wire_id: str, params: object) -> dict[str, Any]:
    """Return a request as the API takes it."""
    return {"custom_id": wire_id, "params": params}


class Spool:
    """The file.

    Args:
        folder: Where it is; the system's own for such files by default.

    Raises:
        OSError: It can't be made.

    Example:
        >>> with Spool(None) as spool:
        ...     place = spool.add(Head(index=0, custom_id="a", digest="", wire_id="a-"), b'{"max_tokens": 5}')
        ...     spool.head(place).custom_id, spool.params(place)
        ('a', {'max_tokens': 5})
    """

    def __init__(self, folder: Path | None) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed on exit
        self._end = 0
        self._at_end = True

    def __repr__(self) -> str:
        return f"<Spool of {self._end} bytes>"

    def __enter__(self) -> Self:
        """Nothing is left to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it; what it holds is gone."""
        self._file.close()

    def add(self, head: Head, params: bytes) -> int:
        """Put a request at the end.

        Args:
            head: What tells it apart.
            params: Of the request, as one line of JSON.

        Returns:
            Where it is.
        """
        if not self._at_end:
            self._file.seek(self._end)
            self._at_end = True
        place = self._end
        first = json.dumps([head.index, head.custom_id, head.digest, head.wire_id, dict(head.labels)]).encode()
        self._end += self._file.write(b"%b\n%b\n" % (first, params))
        return place

    def head(self, place: int) -> Head:
        """Read what tells a request apart."""
        self._file.seek(place)
        self._at_end = False
        index, custom_id, digest, wire_id, labels = cast("list[Any]", json.loads(self._file.readline()))
        return Head(index=index, custom_id=custom_id, digest=digest, wire_id=wire_id, labels=labels)

    def params(self, place: int) -> dict[str, Any]:
        """Read what is asked."""
        self.head(place)
        return cast("dict[str, Any]", json.loads(self._file.readline()))

    def request(self, place: int) -> dict[str, Any]:
        """Read a request as the API takes it."""
        return wire_request(self.head(place).wire_id, json.loads(self._file.readline()))
