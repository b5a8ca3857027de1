"""A stream as its reader sees it: text, events, the final message, and what happens when it breaks off.

The rule here: text and events share one cursor over what has come. What it has passed stays as it was and becomes a
message only when one is asked for. A failure is told after everything that came before it.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import httpx2
from pydantic import ValidationError
from pydantic_core import from_json

from penstock.errors import InvalidStream
from penstock.streaming.accumulate import Accumulator, Run, merged, run_of
from penstock.streaming.failure import interruption
from penstock.streaming.inbox import DELTA, Inbox
from penstock.streaming.source import close_generator
from penstock.streaming.split import data_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from anthropic import AsyncAnthropic

    from penstock.core.usage import Usage
    from penstock.streaming.accumulate import AnyEvent, AnyMessage
    from penstock.streaming.source import Source
    from penstock.streaming.split import Raw

__all__ = ["Stream"]

_TEXT: Final = b'"text_delta"'
_PREFIX: Final = len(DELTA)


class Stream:
    """An answer as it is generated, with the names of the SDK's `AsyncMessageStream`.

    Iterate over `text_stream` for the text, or over the stream itself for the SDK's own events, or over some of each:
    both go on where the other was left. `get_final_message` reads what is left and returns the whole message.
    Only one task at a time may read it; any may close it.

    Whatever reads it raises, once what came before has been given:

    - `StreamInterrupted`, if it broke off after its first content;
    - `anthropic.APIStatusError`, `anthropic.APIConnectionError`, `anthropic.APITimeoutError` or `InvalidStream`, if it
      brought no content at all, as any request may.
    """

    __slots__ = (
        "_accumulator",
        "_failure",
        "_inbox",
        "_make_accumulator",
        "_passed",
        "_response",
        "_run",
        "_source",
        "_text_stream",
        "_told",
        "_yielded",
    )

    def __init__(
        self, sdk: AsyncAnthropic, response: httpx2.Response, source: Source, *, beta: bool, output_format: Any = None
    ) -> None:
        self._response = response
        self._source = source
        self._inbox = Inbox(response)
        self._make_accumulator = partial(Accumulator, sdk, response, beta=beta, output_format=output_format)
        self._accumulator: Accumulator | None = None
        self._passed: list[Raw | Run] = []
        self._run: Run | None = None
        self._told = False
        # The next one last.
        self._yielded: list[AnyEvent] = []
        self._text_stream: AsyncGenerator[str, None] | None = None
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        cause = self._inbox.cause
        if cause is not None:
            state = f"ended by {type(cause).__name__}"
        else:
            state = "complete" if self.complete else "closed" if self._source.closed else "open"
        return f"<Stream {self.request_id}, {state}>"

    # What it tells

    @property
    def response(self) -> httpx2.Response:
        """The HTTP response; its body is read by this stream."""
        return self._response

    @property
    def request_id(self) -> str | None:
        """The API's id of the answer."""
        return self._response.headers.get("request-id")

    @property
    def workspace_id(self) -> str | None:
        """The workspace that the request counts for."""
        return self._response.headers.get("anthropic-workspace-id")

    @property
    def complete(self) -> bool:
        """Whether its last event has come."""
        return self._inbox.complete

    @property
    def usage(self) -> Usage:
        """Tokens as far as they are known: input from the start on, output at the end."""
        return self._inbox.usage

    @property
    def stop_reason(self) -> str | None:
        """Why the answer ended, as the API gave it; `None` before that."""
        return self._inbox.stop_reason

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
        inbox, events, source, anything = self._inbox, self._inbox.events, self._source, True
        while True:
            while events:
                try:
                    text = self._pass(events.pop())
                except InvalidStream as error:
                    await source.close()
                    self._break(error)
                if text is not None:
                    yield text
            if inbox.over or not inbox.splitter.clean:
                if not await self._more():
                    return
                continue
            # The hot path: while an answer is being written, a chunk is one delta of text.
            try:
                chunk = await source.read(anything=anything)
            except Exception as error:  # noqa: BLE001 - told after what came before it
                inbox.end(error)
                continue
            text = self._pass_chunk(chunk)
            if text is not None:
                yield text
            else:
                inbox.receive(chunk)
            anything = text is not None or bool(events)

    def __aiter__(self) -> Self:
        """The events that the SDK's `messages.stream` yields, from where it was left."""
        return self

    async def __anext__(self) -> AnyEvent:
        """Wait for the next event."""
        if self._passed:
            # The text has gone on since.
            self._yielded.clear()
        while not self._yielded:
            if not await self._more():
                raise StopAsyncIteration
            self._catch_up()
            self._accumulate((self._inbox.events.pop(),), self._yielded)
            self._yielded.reverse()
        return self._yielded.pop()

    async def until_done(self) -> None:
        """Read what is left, and give none of it."""
        while await self._more():
            self._passed += reversed(self._inbox.events)
            self._inbox.events.clear()
            self._run = None
        self._yielded.clear()
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
            if self._text_stream is not None:
                await close_generator(self._text_stream)

    async def _more(self) -> bool:
        """Wait until an event is there; False at the end."""
        inbox, anything = self._inbox, True
        while not (inbox.events or inbox.over):
            try:
                inbox.receive(await self._source.read(anything=anything))
            except Exception as error:  # noqa: BLE001 - told after what came before it
                inbox.end(error)
            anything = False
        if inbox.over:
            await self._source.close()
        if inbox.events:
            return True
        if not isinstance(inbox.cause, httpx2.StreamClosed):
            self._raise_failure()
        return False

    # Passing

    def _pass(self, raw: Raw) -> str | None:
        """Move the cursor past an event; returns its text if it is a delta of text.

        Raises:
            InvalidStream: It seemed to be one, but can't be decoded.
        """
        if isinstance(raw, bytes):
            if _TEXT not in raw:
                return self._pass_other(raw)
            text = self._pass_usual(raw) if raw.startswith(DELTA) else None
            return self._pass_unusual(raw) if text is None else text
        return self._pass_unusual(raw) if _TEXT.decode() in raw.data else self._pass_other(raw)

    def _pass_chunk(self, chunk: bytes | None) -> str | None:
        """Move the cursor past a chunk that is one whole delta of text; `None` if it isn't."""
        if chunk is None or not chunk.startswith(DELTA) or _TEXT not in chunk:
            return None
        if chunk.find(b"\n\n", _PREFIX) != len(chunk) - 2:
            return None
        text = self._pass_usual(chunk)
        if text is not None:
            self._inbox.splitter.position += len(chunk)
        return text

    def _pass_usual(self, raw: bytes) -> str | None:
        """Move the cursor past a delta of text; `None` if it is not one, or an unusual one."""
        try:
            data: Any = from_json(raw[_PREFIX:])
            delta = data["delta"]
            text = delta["text"]
            index = data["index"]
            if delta["type"] != "text_delta" or not isinstance(text, str):
                return None
        except (ValueError, LookupError, TypeError):
            return None
        self._run_for(index).append(text)
        return text

    def _run_for(self, index: object) -> list[str]:
        """Return where the text of a block is kept."""
        run = self._run
        if run is None or run.index != index:
            run = self._run = Run(index, "text_delta")
            self._passed.append(run)
        return run.parts

    def _pass_unusual(self, raw: Raw) -> str | None:
        data = data_of(raw)
        run = None if data is None else run_of(data)
        if run is not None and run.kind == "text_delta":
            self._run_for(run.index).append(run.parts[0])
            return run.parts[0]
        return self._pass_other(raw)

    def _pass_other(self, raw: Raw) -> str | None:
        self._passed.append(raw)
        self._run = None
        return None

    # What becomes of what has passed

    @property
    def _accumulated(self) -> Accumulator:
        if self._accumulator is None:
            self._accumulator = self._make_accumulator()
        return self._accumulator

    def _catch_up(self) -> None:
        """Have all that has passed accumulated."""
        if self._passed:
            self._accumulate(self._take_passed(), None)

    def _take_passed(self) -> list[Raw | Run]:
        passed, self._passed, self._run = self._passed, [], None
        self._told = self._told or any(isinstance(event, Run) and any(event.parts) for event in passed)
        return passed

    def _accumulate(self, events: Iterable[Raw | Run], yielded: list[AnyEvent] | None) -> None:
        accumulator = self._accumulated
        try:
            for data in merged(events):
                new = accumulator.feed(data)
                if yielded is not None:
                    yielded += new
        except ValidationError as error:
            # The text is no valid structured output: the SDK raises the same.
            self._failure = error
            self._break(error)
        except Exception as error:  # noqa: BLE001 - becomes the cause of what is raised
            self._break(error)

    # Failing

    def _break(self, cause: Exception) -> NoReturn:
        """Fail because of an event that can't be understood."""
        inbox = self._inbox
        inbox.over = True
        inbox.cause = inbox.cause or cause
        inbox.events.clear()
        raise self._failure_for(inbox.cause)

    def _raise_failure(self) -> None:
        """Raise what has ended the stream, if that was not its last event."""
        if self._inbox.cause is not None:
            raise self._failure_for(self._inbox.cause)

    def _failure_for(self, cause: Exception) -> Exception:
        if self._failure is None:
            self._failure = self._interruption(cause)
        return self._failure

    def _interruption(self, cause: Exception) -> Exception:
        accumulator, passed = self._accumulated, self._take_passed()
        # What can't be understood is left out of what came; the caller is told of the first cause.
        with contextlib.suppress(Exception):
            for data in merged(passed):
                accumulator.feed(data)
        usage = replace(self.usage, estimated=True)
        return interruption(cause, accumulator.snapshot, usage, response=self._response, told=self._told)
