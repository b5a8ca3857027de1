"""What the simulator was asked and how it answered: one entry for each request, oldest first, bounded in number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from penstock.simulator.wire import Json

__all__ = ["Journal", "JournalEntry", "Outcome"]

Outcome: TypeAlias = Literal["complete", "client closed", "fault", "refused"]


@dataclass(kw_only=True, slots=True)
class JournalEntry:
    """One request, from the moment it arrived. Content and key are never in its `repr`.

    Attributes:
        number: 1 for the simulator's first request.
        request_id: as in the `request-id` header.
        path: without the query.
        method: HTTP method.
        key: the API key that came with it.
        organization: its organization id.
        model: the model it names.
        stream: whether it asked for a stream.
        status: HTTP status of the answer; None where no headers were ever sent.
        fault: name of the fault that hit it.
        body: the parsed body; None where it is no JSON object, or bodies are not kept.
        headers: request headers, names in lower case.
        input_tokens: input tokens that it was charged for.
        output_tokens: tokens generated for it so far.
        started_at: loop time of its arrival, in seconds.
        ended_at: loop time of its end; None while in flight.
        outcome: None while in flight; `complete`: everything was sent; `client closed`: the client left before;
            `fault`: an injected or random fault ended it; `refused`: answered with an error of its own making.
    """

    number: int
    request_id: str
    path: str
    method: str
    key: str | None = field(default=None, repr=False)
    organization: str | None = None
    model: str | None = None
    stream: bool = False
    status: int | None = None
    fault: str | None = None
    body: Json | None = field(default=None, repr=False)
    headers: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    input_tokens: int = 0
    output_tokens: int = 0
    started_at: float = 0.0
    ended_at: float | None = None
    outcome: Outcome | None = None


class Journal:
    """The newest entries, at most `size` of them.

    The oldest tenth goes at once when it is full, because taking one from the front for each request would be slow.
    """

    __slots__ = ("entries", "size")

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"journal_size must be 0 or more entries, not {size}")
        self.size = size
        self.entries: list[JournalEntry] = []

    def __repr__(self) -> str:
        return f"Journal({len(self.entries)} of at most {self.size} entries)"

    def add(self, entry: JournalEntry) -> None:
        """Append `entry`."""
        self.entries.append(entry)
        excess = len(self.entries) - self.size
        if excess > 0:
            del self.entries[: max(excess, self.size // 10)]

    def after(self, number: int) -> list[JournalEntry]:
        """The entries with a larger number."""
        first = self.entries[0].number if self.entries else 0
        return self.entries[max(0, number + 1 - first) :]
