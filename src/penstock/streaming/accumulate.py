"""From events to the message that they make, and to the events of the SDK's stream helper, by the SDK's own code.

The rule here: nothing that the SDK does with an event is done a second time. Its synchronous helper is fed event by
event; a mark that it hands through as it came tells that it has finished with all it was given.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from anthropic import not_given
from anthropic.lib.streaming import BetaMessageStream, MessageStream
from anthropic.types import RawMessageStreamEvent
from anthropic.types.beta import BetaRawMessageStreamEvent
from pydantic import BaseModel

from penstock.errors import InvalidStream
from penstock.streaming.split import data_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import httpx2
    from anthropic import AsyncAnthropic
    from anthropic.lib.streaming import ParsedBetaMessageStreamEvent, ParsedMessageStreamEvent
    from anthropic.types import ParsedMessage
    from anthropic.types.beta.parsed_beta_message import ParsedBetaMessage

    from penstock.streaming.split import Raw

__all__ = ["Accumulator", "AnyEvent", "AnyMessage", "Run", "merged", "run_of"]

AnyEvent: TypeAlias = "ParsedMessageStreamEvent[Any] | ParsedBetaMessageStreamEvent[Any]"
AnyMessage: TypeAlias = "ParsedMessage[Any] | ParsedBetaMessage[Any]"

# What deltas of these types make is the same whether they come one by one or joined.
_FIELD_OF: Final = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class Run:
    """Deltas that follow each other in one block: their parts, and what kind they are.

    Attributes:
        index: Of the block.
        kind: Type of the deltas.
        parts: Their contents.
    """

    __slots__ = ("index", "kind", "parts")

    def __init__(self, index: object, kind: str) -> None:
        self.index = index
        self.kind = kind
        self.parts: list[str] = []

    def data(self) -> dict[str, object]:
        """Return the one delta that does what all of them do."""
        delta = {"type": self.kind, _FIELD_OF[self.kind]: "".join(self.parts)}
        return {"type": "content_block_delta", "index": self.index, "delta": delta}


def merged(events: Iterable[Raw | Run]) -> Iterator[dict[str, object]]:
    """Decode events, and join the deltas that follow each other in a block.

    Raises:
        InvalidStream: One is no valid event; all before it were given.
    """
    run: Run | None = None
    for event in events:
        try:
            data = event.data() if isinstance(event, Run) else data_of(event)
        except InvalidStream:
            if run is not None:
                yield run.data()
            raise
        if data is None:
            continue
        following = run_of(data)
        if run is not None and following is not None and (following.index, following.kind) == (run.index, run.kind):
            run.parts += following.parts
            continue
        if run is not None:
            yield run.data()
        run = following
        if run is None:
            yield data
    if run is not None:
        yield run.data()


def run_of(data: dict[str, object]) -> Run | None:
    """Return a delta that can be joined with others; `None` for any other event."""
    delta = data.get("delta")
    if data.get("type") != "content_block_delta" or not isinstance(delta, dict):
        return None
    fields = cast("dict[str, object]", delta)
    kind = str(fields.get("type"))
    part = fields.get(_FIELD_OF.get(kind, ""))
    if not isinstance(part, str):
        return None
    run = Run(data.get("index"), kind)
    run.parts.append(part)
    return run


class _Mark(BaseModel):
    """Passes through the SDK's helper, which hands on events of types that it doesn't know."""

    type: str = "penstock_mark"


_MARK: Final = _Mark()


class _Feed:
    """What the SDK's helper takes for its stream."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self.events: deque[object] = deque()

    def __iter__(self) -> Iterator[object]:
        while True:
            while self.events:
                yield self.events.popleft()
            yield _MARK
            if not self.events:
                raise RuntimeError("the installed anthropic handles unknown events otherwise; please report it")


class Accumulator:
    """Makes a message of a stream's events.

    Args:
        sdk: The client that sent the request.
        response: The answer.
        beta: Whether the beta's types are wanted.
        output_format: Type of structured output, as `messages.stream` takes it; `None` for plain text.
    """

    __slots__ = ("_cast_to", "_feed", "_helper", "_sdk")

    def __init__(
        self, sdk: AsyncAnthropic, response: httpx2.Response, *, beta: bool, output_format: Any = None
    ) -> None:
        self._sdk = sdk
        self._cast_to: Any = BetaRawMessageStreamEvent if beta else RawMessageStreamEvent
        self._feed = _Feed(response)
        helper: Any = BetaMessageStream if beta else MessageStream
        self._helper = helper(
            raw_stream=self._feed, output_format=not_given if output_format is None else output_format
        )

    def feed(self, data: dict[str, object]) -> list[AnyEvent]:
        """Take the next event, and return what the SDK's stream yields for it.

        Raises:
            Exception: What the SDK raises for an event that it can't understand.
        """
        feed = self._feed
        feed.events.append(
            self._sdk._process_response_data(data=data, cast_to=self._cast_to, response=feed.response)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - as the SDK's own stream does; a canary test watches it
        )
        return list(iter(self._helper.__next__, _MARK))

    @property
    def snapshot(self) -> AnyMessage | None:
        """The message so far; `None` before its start."""
        try:
            return cast("AnyMessage", self._helper.current_message_snapshot)
        except AssertionError:
            return None
