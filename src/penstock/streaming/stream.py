"""A stream as its reader sees it: text, events, the final message, and what happens when it breaks off.

The rule here: events are received once, in order, and kept as bytes until the one cursor over them, which text and
events share, comes to them. What the cursor has passed becomes a message only when one is asked for. A failure is told
after everything that came before it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, cast

import httpx2
from pydantic import ValidationError
from pydantic_core import from_json

from penstock.core.sse import ServerSentEvent
from penstock.core.usage import Usage
from penstock.errors import InvalidStream
from penstock.streaming.accumulate import Accumulator, Run, merged, run_of
from penstock.streaming.failure import ended_early, error_of_event, interruption
from penstock.streaming.split import Splitter, data_of, name_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anthropic import AsyncAnthropic

    from penstock.streaming.accumulate import AnyEvent, AnyMessage
    from penstock.streaming.source import Source
    from penstock.streaming.split import Raw

__all__ = ["Stream"]

_DELTA: Final = b"event: content_block_delta\ndata: "
_TEXT: Final = b'"text_delta"'


class Stream:
    """An answer as it is generated, with the names of the SDK's `AsyncMessageStream`.

    Iterate over `text_stream` for the text, or over the stream itself for the SDK's own events, or over some of each:
    both go on where the other was left. `get_final_message` reads what is left and returns the whole message.

    Raises, while it is read:
        StreamInterrupted: It broke off after its first content. All text that had come was given before.
        anthropic.APIStatusError: It brought an error and no content.
        anthropic.APIConnectionError: It broke off, or fell silent, before its first content.
    """

    def __init__(
        self, sdk: AsyncAnthropic, response: httpx2.Response, source: Source, *, beta: bool, output_format: Any = None
    ) -> None:
        self._response = response
        self._source = source
        self._make_accumulator = lambda: Accumulator(sdk, response, beta=beta, output_format=output_format)
        self._accumulator: Accumulator | None = None
        self._splitter = Splitter()
        self._received: deque[Raw] = deque()
        self._passed: list[Raw | Run] = []
        self._run: Run | None = None
        self._yielded: deque[AnyEvent] = deque()
        self._told = False
        self._with_usage: list[Raw] = []
        self._usage = Usage()
        self._text_stream: AsyncGenerator[str, None] | None = None
        self._over = False
        self._complete = False
        self._cause: Exception | None = None
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        if self._complete:
            state = "complete"
        elif self._cause is not None:
            state = f"ended by {type(self._cause).__name__}"
        else:
            state = "closed" if self._source.closed else "open"
        return f"<Stream {self.request_id}, {state}>"

    # What it tells

    @property
    def response(self) -> httpx2.Response:
        """The HTTP response; its body is read by this stream."""
        return self._response

    @property
    def request_id(self) -> str | None:
        """The API's id of the answer."""
        return cast("str | None", self._response.headers.get("request-id"))

    @property
    def workspace_id(self) -> str | None:
        """The workspace that the request was counted in."""
        return cast("str | None", self._response.headers.get("anthropic-workspace-id"))

    @property
    def complete(self) -> bool:
        """Whether its last event, `message_stop`, has come."""
        return self._complete

    @property
    def usage(self) -> Usage:
        """Tokens as far as they are known: input from the start on, output at the end."""
        while self._with_usage:
            self._usage = self._usage.updated(_usage_in(self._with_usage.pop(0)))
        return self._usage

    @property
    def current_message_snapshot(self) -> AnyMessage:
        """The message as far as it was read.

        Raises:
            RuntimeError: Its start has not been read yet.
        """
        self._catch_up()
        snapshot = self._accumulated.snapshot
        if snapshot is None:
            raise RuntimeError("nothing of the message has been read yet")
        return snapshot

    # Reading

    @property
    def text_stream(self) -> AsyncGenerator[str, None]:
        """The text deltas. There is one such generator for the whole stream: it goes on where it was left."""
        if self._text_stream is None:
            self._text_stream = self._texts()
        return self._text_stream

    async def _texts(self) -> AsyncGenerator[str, None]:
        received, splitter, source = self._received, self._splitter, self._source
        anything = True
        while True:
            while received:
                try:
                    text = self._pass(received.popleft())
                except InvalidStream as error:
                    await source.close()
                    self._break(error)
                if text is not None:
                    yield text
            if self._over or not splitter.clean:
                if not await self._more():
                    return
                continue
            # The hot path: while an answer is being written, a chunk is one delta.
            try:
                chunk = await source.read(anything=anything)
            except Exception as error:  # noqa: BLE001 - told after what came before it
                self._end(error)
                continue
            text = self._pass_chunk(chunk)
            if text is None:
                self._receive(chunk)
            else:
                yield text
            anything = text is not None or bool(received)

    def __aiter__(self) -> Self:
        """The events that the SDK's `messages.stream` yields, from where it was left."""
        return self

    async def __anext__(self) -> AnyEvent:
        """Wait for the next event."""
        while not self._yielded:
            if not self._received and not await self._more():
                raise StopAsyncIteration
            self._catch_up()
            self._accumulate((self._received.popleft(),), self._yielded)
        return self._yielded.popleft()

    async def until_done(self) -> None:
        """Read what is left, and give none of it."""
        while True:
            self._yielded.clear()
            self._run = None
            self._passed += self._received
            self._received.clear()
            if not await self._more():
                break
        self._raise_failure()

    async def get_final_message(self) -> AnyMessage:
        """Read what is left, and return the whole message, as the SDK's own helper makes it."""
        await self.until_done()
        return self.current_message_snapshot

    async def get_final_text(self) -> str:
        """Read what is left, and return the text of all text blocks.

        Raises:
            RuntimeError: The message has no text block.
        """
        message = await self.get_final_message()
        texts = [block.text for block in message.content if block.type == "text"]
        if not texts:
            kinds = ", ".join(block.type for block in message.content) or "none"
            raise RuntimeError(f"the message has no text block; its blocks: {kinds}. Use get_final_message().")
        return "".join(texts)

    async def close(self) -> None:
        """Leave the stream: the request ends now, or is read to its end in the background with `on_abandon="drain"`.

        Another task may call it, as a stop button does: whoever reads then finds the stream at its end.
        """
        try:
            await self._source.abandon()
        finally:
            texts = self._text_stream
            if texts is not None and not texts.ag_running:
                await texts.aclose()

    # Receiving

    async def _more(self) -> bool:
        """Wait until something has come; False at the end."""
        received, anything = self._received, True
        while not (received or self._over):
            try:
                chunk = await self._source.read(anything=anything)
            except Exception as error:  # noqa: BLE001 - told after what came before it
                self._end(error)
            else:
                self._receive(chunk)
                anything = False
        if self._over:
            await self._source.close()
        if received:
            return True
        if not isinstance(self._cause, httpx2.StreamClosed):
            self._raise_failure()
        return False

    def _receive(self, chunk: bytes | None) -> None:
        splitter, received = self._splitter, self._received
        try:
            events = splitter.finish() if chunk is None else splitter.feed(chunk)
            for raw in events:
                if isinstance(raw, bytes) and raw.startswith(_DELTA):
                    received.append(raw)
                    continue
                self._receive_other(raw)
                if self._over:
                    break
        except InvalidStream as error:
            self._end(error)
        if chunk is None and not self._over:
            self._end(httpx2.StreamClosed() if self._source.closed else ended_early(self._response))

    def _receive_other(self, raw: Raw) -> None:
        name = name_of(raw)
        if name == "message":
            # Without a name the SDK skips it; some proxies drop the name, but its data has it too.
            name = _type_in(raw)
        if name in {"ping", None}:
            return
        if name == "error":
            self._end(error_of_event(text_of(raw), self._response))
            return
        if name == "message_stop":
            self._complete = True
        elif name in {"message_start", "message_delta"}:
            self._with_usage.append(raw)
        self._received.append(raw)

    def _end(self, cause: Exception) -> None:
        """Note that nothing more will come; what came is still to be given."""
        self._over = True
        if not self._complete:
            self._cause = cause

    # Passing

    def _pass(self, raw: Raw) -> str | None:
        """Move the cursor past an event; returns its text if it is a delta of text.

        Raises:
            InvalidStream: It seemed to be one, but can't be decoded.
        """
        if isinstance(raw, bytes):
            if _TEXT in raw and raw.startswith(_DELTA):
                text = self._pass_usual(raw)
                return self._pass_unusual(raw) if text is None else text
        elif _TEXT.decode() in raw.data:
            return self._pass_unusual(raw)
        return self._pass_other(raw)

    def _pass_chunk(self, chunk: bytes | None) -> str | None:
        """Move the cursor past a chunk that is one whole delta of text; `None` if it isn't."""
        if chunk is None or not chunk.startswith(_DELTA) or _TEXT not in chunk:
            return None
        if chunk.find(b"\n\n", len(_DELTA)) != len(chunk) - 2:
            return None
        text = self._pass_usual(chunk)
        if text is not None:
            self._splitter.position += len(chunk)
        return text

    def _pass_usual(self, raw: bytes) -> str | None:
        """Move the cursor past a delta of text; `None` if it is not one, or an unusual one."""
        try:
            data: Any = from_json(raw[len(_DELTA) :])
            delta = data["delta"]
            text = delta["text"]
            if delta["type"] == "text_delta" and isinstance(text, str):
                return self._pass_text(data["index"], text)
        except (ValueError, LookupError, TypeError):
            pass
        return None

    def _pass_text(self, index: object, text: str) -> str:
        run = self._run
        if run is None or run.index != index:
            run = self._run = Run(index, "text_delta")
            self._passed.append(run)
        run.parts.append(text)
        if self._yielded:
            self._yielded.clear()
        self._told = True
        return text

    def _pass_unusual(self, raw: Raw) -> str | None:
        data = data_of(raw)
        run = None if data is None else run_of(data)
        if run is not None and run.kind == "text_delta":
            return self._pass_text(run.index, run.parts[0])
        return self._pass_other(raw)

    def _pass_other(self, raw: Raw) -> None:
        self._passed.append(raw)
        self._run = None
        self._yielded.clear()

    # What becomes of what has passed

    @property
    def _accumulated(self) -> Accumulator:
        if self._accumulator is None:
            self._accumulator = self._make_accumulator()
        return self._accumulator

    def _catch_up(self) -> None:
        """Have all that has passed accumulated."""
        if self._passed:
            passed, self._passed, self._run = self._passed, [], None
            self._accumulate(passed, None)

    def _accumulate(self, events: Iterable[Raw | Run], yielded: deque[AnyEvent] | None) -> None:
        accumulator = self._accumulated
        try:
            for data in merged(events):
                new = accumulator.feed(data)
                if yielded is not None:
                    yielded += new
        except ValidationError as error:
            # The text is no valid structured output; the SDK raises the same.
            self._over, self._cause, self._failure = True, error, error
            raise
        except Exception as error:  # noqa: BLE001 - becomes the cause of what is raised
            self._break(error)

    # Failing

    def _break(self, cause: Exception) -> NoReturn:
        """Fail because of an event that can't be understood."""
        if self._cause is None or not self._over:
            self._over, self._cause = True, cause
        self._received.clear()
        self._raise_failure()
        raise cause

    def _raise_failure(self) -> None:
        """Raise what has ended the stream, if it was no proper end."""
        if self._failure is None and self._cause is not None:
            self._failure = self._interruption(self._cause)
        if self._failure is not None:
            raise self._failure

    def _interruption(self, cause: Exception) -> Exception:
        accumulator, passed = self._accumulated, self._passed
        self._passed = []
        # What can't be understood of it is left out; the caller is told of the first cause.
        with contextlib.suppress(Exception):
            for data in merged(passed):
                accumulator.feed(data)
        usage = replace(self.usage, estimated=True)
        return interruption(cause, accumulator.snapshot, usage, response=self._response, told=self._told)


def _usage_in(raw: Raw) -> Mapping[str, object]:
    """Return the usage that an event tells; nothing if it can't be understood."""
    with contextlib.suppress(InvalidStream):
        data: Any = data_of(raw) or {}
        for fields in (data, data.get("message")):
            if isinstance(fields, dict) and isinstance(usage := fields.get("usage"), dict):
                return cast("Mapping[str, object]", usage)
    return {}


def _type_in(raw: Raw) -> str | None:
    with contextlib.suppress(InvalidStream):
        kind = (data_of(raw) or {}).get("type")
        return kind if isinstance(kind, str) else None
    return None
