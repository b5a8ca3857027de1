"""Requests as the API gets to know them, set aside on disk for as long as their batches are under way.

The rule here: nothing goes into a batch that could spoil it for the others, and its name in there says what is asked.
Of what was read, memory holds a few bytes a request; whatever must be sent is read back from a file without a name,
which vanishes with the process, however that ends.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final, Self, cast

from anthropic import NotGiven, Omit
from pydantic import BaseModel

from penstock.batch.intake import Intake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from penstock.batch.items import Item
    from penstock.batch.result import FanOutResult

__all__ = ["BatchIntake", "Head", "Spool", "encoded", "wire_id"]

_FITS: Final = re.compile(r"[a-zA-Z0-9_-]{1,47}")
_NOT_SENT: Final = frozenset({"timeout", "extra_headers", "extra_query", "extra_body", "stream"})
_OF_A_BATCH: Final = ("extra_headers", "extra_query")


def wire_id(custom_id: str, digest: str) -> str:
    """Return the name under which the API gets to know an item: its own, if that will do, and what is asked.

    So a batch that is found again proves by the names in it that it holds these very requests.

    Args:
        custom_id: Of the item.
        digest: Of its request.

    Example:
        >>> wire_id("row-7", "0123456789abcdef"), len(wire_id("a text of any kind", "0123456789abcdef"))
        ('row-7-0123456789abcdef', 49)
    """
    if _FITS.fullmatch(custom_id) is None:
        custom_id = hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{custom_id}-{digest}"


def encoded(params: Mapping[str, Any]) -> bytes:
    """Return params as the API gets them, in one line of JSON; what is for the SDK alone stays out.

    Raises:
        TypeError: They are nothing that JSON can hold.
        ValueError: They hold a number or a text that JSON in UTF-8 can't, which would spoil the whole batch.
    """
    sent = {
        name: value
        for name, value in params.items()
        if name not in _NOT_SENT and not isinstance(value, NotGiven | Omit)
    }
    more = params.get("extra_body")
    body: Mapping[str, Any] = {**sent, **more} if isinstance(more, Mapping) else sent
    return json.dumps(body, default=_plain, allow_nan=False, ensure_ascii=False).encode()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings=False)
    raise TypeError(f"params must be what JSON can hold, and {type(value).__name__} is not")


class BatchIntake(Intake):
    """Reads items that are to go into batches: each with the digest of its request.

    Attributes:
        on_known: Told of each item that an earlier run had finished, by its wire id.
    """

    on_known: Callable[[str], object] = str

    def _prepared(self, item: Item) -> Item | FanOutResult | None:
        ready = super()._prepared(item)
        if item.request is None:
            item.request = self._digest(item.params)
        if ready is not item:
            self.on_known(wire_id(item.custom_id, item.request))
            return ready
        for name in _OF_A_BATCH:
            if item.params.get(name) != self._common.get(name):
                raise ValueError(f"item {item.index} has {name} of its own: give them to the whole batch, or ask live")
        return ready


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
        index, custom_id, digest, wire, labels = cast("list[Any]", json.loads(self._file.readline()))
        return Head(index=index, custom_id=custom_id, digest=digest, wire_id=wire, labels=labels)

    def params(self, place: int) -> dict[str, Any]:
        """Read what is asked."""
        self.head(place)
        return cast("dict[str, Any]", json.loads(self._file.readline()))

    def request(self, place: int) -> dict[str, Any]:
        """Read a request as the API takes it."""
        return {"custom_id": self.head(place).wire_id, "params": json.loads(self._file.readline())}

    def __iter__(self) -> Iterator[tuple[int, Head]]:
        """Read on from the first to the last, wherever others read meanwhile."""
        place = 0
        while place < self._end:
            head = self.head(place)
            self._file.readline()
            following = self._file.tell()
            yield place, head
            place = following
