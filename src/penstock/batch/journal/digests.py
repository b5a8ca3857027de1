"""Compact tables of texts, for more ids than one would keep as Python objects.

The rule here: a text is remembered as 8 bytes of its hash and never as itself, at no more than 16 bytes a text. Two
texts are taken for one by chance only: within a million, in about 3 of 100 million cases.
"""

from __future__ import annotations

from array import array
from typing import Final

__all__ = ["DigestMap", "DigestSet"]

# Many shards, so that a table grows a little at a time; each by a half when it is four fifths full, so that between
# 1.25 and 1.9 places are kept for each text.
_SHARDS: Final = 64
_SHIFT: Final = 6
_FIRST: Final = 8
_ALL_BITS: Final = (1 << 64) - 1


def _digest(text: str) -> int:
    """Return the hash that Python keeps for its own dictionaries: keyed anew in every process, never 0 here."""
    return (hash(text) & _ALL_BITS) or 1


class _Table:
    """Open addressing with linear probing: each place holds a digest (0 for none) and `width - 1` numbers."""

    __slots__ = ("_counts", "_shards", "_width")

    def __init__(self, width: int) -> None:
        self._width = width
        self._shards: list[array[int] | None] = [None] * _SHARDS
        self._counts = [0] * _SHARDS

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def size_bytes(self) -> int:
        """What the places take, in bytes."""
        return sum(len(shard) * shard.itemsize for shard in self._shards if shard is not None)

    def _found(self, digest: int) -> tuple[array[int], int] | None:
        """Return where a digest stands."""
        shard = self._shards[digest & (_SHARDS - 1)]
        if shard is None:
            return None
        place = self._place(shard, digest)
        return (shard, place) if shard[place] else None

    def _taken(self, digest: int) -> tuple[array[int], int, bool]:
        """Return where a digest stands from now on, and whether it is new."""
        number = digest & (_SHARDS - 1)
        shard = self._shards[number]
        if shard is None:
            shard = self._shards[number] = array("Q", bytes(8 * _FIRST * self._width))
        place = self._place(shard, digest)
        if shard[place]:
            return shard, place, False
        self._counts[number] += 1
        if self._counts[number] * self._width * 5 > len(shard) * 4:
            shard = self._shards[number] = self._grown(shard)
            place = self._place(shard, digest)
        shard[place] = digest
        return shard, place, True

    def _place(self, shard: array[int], digest: int) -> int:
        width, size = self._width, len(shard)
        place = (digest >> _SHIFT) * width % size
        while (there := shard[place]) and there != digest:
            place += width
            if place == size:
                place = 0
        return place

    def _grown(self, shard: array[int]) -> array[int]:
        width = self._width
        more = array("Q", bytes(8 * width * (len(shard) // width * 3 // 2)))
        for start in range(0, len(shard), width):
            if digest := shard[start]:
                place = self._place(more, digest)
                more[place : place + width] = shard[start : start + width]
        return more


class DigestSet(_Table):
    """A set of texts that only grows.

    Example:
        >>> seen = DigestSet()
        >>> seen.add("a"), seen.add("a"), len(seen)
        (True, False, 1)
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(1)

    def __repr__(self) -> str:
        return f"<DigestSet {len(self)} texts, {self.size_bytes} bytes>"

    def add(self, text: str) -> bool:
        """Take in a text.

        Returns:
            Whether it is new.
        """
        return self._taken(_digest(text))[2]

    def __contains__(self, text: str) -> bool:
        return self._found(_digest(text)) is not None


class DigestMap(_Table):
    """Two whole numbers, 0 to 2⁶⁴ - 1, for each text.

    Example:
        >>> places = DigestMap()
        >>> places.put("a", 7, 8)
        >>> places.get("a"), places.get("b")
        ((7, 8), None)
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(3)

    def __repr__(self) -> str:
        return f"<DigestMap {len(self)} texts, {self.size_bytes} bytes>"

    def put(self, text: str, first: int, second: int) -> None:
        """Keep two numbers for a text, in place of those that it had."""
        shard, place, _ = self._taken(_digest(text))
        shard[place + 1], shard[place + 2] = first, second

    def get(self, text: str) -> tuple[int, int] | None:
        """Return the numbers of a text; `None` if it has none."""
        found = self._found(_digest(text))
        if found is None:
            return None
        shard, place = found
        return shard[place + 1], shard[place + 2]
