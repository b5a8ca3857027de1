"""From events to the message that they make, and to the events of the SDK's stream helper, by the SDK's own code.

The rule here: nothing that the SDK does with an event is done a second time. Its synchronous helper is fed event by
event; a mark that it hands through as it came tells that it has finished with all it was given.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from anthropic import not_given
from anthropic.lib.streaming import BetaMessageStream, MessageStream
from anthropic.types import CacheCreation, RawMessageStreamEvent
from anthropic.types.beta import BetaCacheCreation, BetaRawMessageStreamEvent
from pydantic import BaseModel

from penstock._core.body.sse import data_of, field_of
from penstock.errors import InvalidStream
from penstock.messages.blocks import mended
from penstock.streaming.inputs import ToolInputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import httpx2
    from anthropic import AsyncAnthropic
    from anthropic.lib.streaming import ParsedBetaMessageStreamEvent, ParsedMessageStreamEvent
    from anthropic.types import ParsedMessage
    from anthropic.types.beta.parsed_beta_message import ParsedBetaMessage

__all__ = ["Accumulator", "AnyEvent", "AnyMessage", "Run", "merged", "run_of"]

AnyEvent: TypeAlias = "ParsedMessageStreamEvent[Any] | ParsedBetaMessageStreamEvent[Any]"
AnyMessage: TypeAlias = "ParsedMessage[Any] | ParsedBetaMessage[Any]"

_FIELD_OF_BLOCK: Final = {"text": "text", "thinking": "thinking"}
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

    def takes(self, data: dict[str, object]) -> bool:
        """Take a decoded event in, if it goes on with these deltas; returns whether it does."""
        delta = data.get("delta")
        if data.get("type") != "content_block_delta" or data.get("index") != self.index or not isinstance(delta, dict):
            return False
        fields = cast("dict[str, object]", delta)
        part = fields.get(_FIELD_OF[self.kind])
        if fields.get("type") != self.kind or not isinstance(part, str):
            return False
        self.parts.append(part)
        return True

    def data(self) -> dict[str, object]:
        """Return the one delta that does what all of them do."""
        delta = {"type": self.kind, _FIELD_OF[self.kind]: mended("".join(self.parts))}
        return {"type": "content_block_delta", "index": self.index, "delta": delta}


def merged(events: Iterable[bytes | Run]) -> Iterator[dict[str, object]]:
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
        if data is None or (run is not None and run.takes(data)):
            continue
        if run is not None:
            yield run.data()
        run = run_of(data)
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
        for_an_hour: Tells whether the request asked the prompt cache to keep what it writes for an hour.

    Attributes:
        before_start: Events that no message has begun for.
    """

    __slots__ = ("_beta", "_cast_to", "_feed", "_for_an_hour", "_helper", "_inputs", "_sdk", "before_start")

    def __init__(
        self,
        sdk: AsyncAnthropic,
        response: httpx2.Response,
        *,
        beta: bool,
        output_format: Any = None,
        for_an_hour: Callable[[], bool] = bool,
    ) -> None:
        self._sdk = sdk
        self._beta = beta
        self._for_an_hour = for_an_hour
        self._cast_to: Any = BetaRawMessageStreamEvent if beta else RawMessageStreamEvent
        self._feed = _Feed(response)
        self._inputs = ToolInputs()
        self.before_start: list[dict[str, object]] = []
        helper: Any = BetaMessageStream if beta else MessageStream
        self._helper = helper(
            raw_stream=self._feed, output_format=not_given if output_format is None else output_format
        )

    def feed(self, data: dict[str, object]) -> list[AnyEvent]:
        """Take the next event, and return what the SDK's stream yields for it.

        Raises:
            Exception: What the SDK raises for an event that it can't understand.
        """
        kind, feed = data.get("type"), self._feed
        taken = self._inputs.taken(_without_gaps(kind, data))
        if taken is None:
            return []
        event: Any = self._sdk._process_response_data(data=taken, cast_to=self._cast_to, response=feed.response)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - as the SDK's own stream does; a canary test watches it
        snapshot = self.snapshot
        if kind != "message_start" and snapshot is None:
            self.before_start.append(data)
            return [event]
        if kind == "content_block_stop" and snapshot is not None:
            self._inputs.mend(snapshot.content)
        feed.events.append(event)
        events = cast("list[AnyEvent]", list(iter(self._helper.__next__, _MARK)))
        if kind == "message_delta" and snapshot is not None:
            self._inputs.mend(snapshot.content, snapshot.stop_reason)
            self._tell_how_long()
        return events

    @property
    def written(self) -> int:
        """Characters of text, thinking and tool input that have come."""
        blocks = () if self.snapshot is None else self.snapshot.content
        said = (getattr(block, str(_FIELD_OF_BLOCK.get(block.type)), "") for block in blocks)
        return self._inputs.written + sum(map(len, said))

    def _tell_how_long(self) -> None:
        """Complete what the usage tells of cache writes: the last event names them, but not for how long they are."""
        usage: Any = getattr(self.snapshot, "usage", None)
        written = getattr(usage, "cache_creation_input_tokens", None)
        if not isinstance(written, int) or not self._for_an_hour():
            return
        if usage.cache_creation is None:
            made = BetaCacheCreation if self._beta else CacheCreation
            usage.cache_creation = made(ephemeral_1h_input_tokens=0, ephemeral_5m_input_tokens=0)
        told = usage.cache_creation
        told.ephemeral_1h_input_tokens = max(written - told.ephemeral_5m_input_tokens, told.ephemeral_1h_input_tokens)

    @property
    def snapshot(self) -> AnyMessage | None:
        """The message so far; `None` before its start."""
        try:
            return cast("AnyMessage", self._helper.current_message_snapshot)
        except AssertionError:
            return None


def _without_gaps(kind: object, data: dict[str, object]) -> dict[str, object]:
    """Return an event with what compatible servers leave out, and the SDK can't do without."""
    if kind == "message_delta" and not isinstance(data.get("usage"), dict):
        return {**data, "usage": {"output_tokens": 0}}
    block = data.get("content_block")
    name = _FIELD_OF_BLOCK.get(str(field_of(block, "type"))) if kind == "content_block_start" else None
    if name is not None and field_of(block, name) is None:
        return {**data, "content_block": {**cast("dict[str, object]", block), name: ""}}
    return data
