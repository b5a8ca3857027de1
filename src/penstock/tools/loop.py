"""The tool loop as a stream of events, for interfaces: `ToolLoop`.

The rule here: the loop belongs to nobody's task, and never waits for whoever looks on. Events that nobody has taken are
kept, adjacent text joined, so that what is held is at most what the transcript holds. Leaving ends everything that is
under way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Self, Unpack

import anyio

from penstock._core.own_task import OwnTask
from penstock.tools.events import TextDelta
from penstock.tools.run import Drive

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from anthropic import AsyncAnthropic
    from anthropic.types import MessageParam

    from penstock._core.usage import Usage
    from penstock.tools.events import Approve, ToolEvent
    from penstock.tools.outcome import ToolRun
    from penstock.tools.params import LoopParams
    from penstock.tools.registry import AnyTool, Tools
    from penstock.tools.transcript import Prompt

__all__ = ["ToolLoop"]


class ToolLoop:
    """Runs tools and tells what happens: `async with` it, iterate over its events, leave early as you like.

    Args:
        sdk: The client that sends the requests, governed or not.
        prompt: As for `run_tools`.
        tools: As for `run_tools`.
        approve: As for `run_tools`.
        **params: As for `run_tools`.

    Raises:
        TypeError: As for `run_tools`.
        ValueError: As for `run_tools`.
        InvalidHistory: As for `run_tools`.

    Iterating raises what `run_tools` raises, after the events that came before it.

    Example:
        >>> async def get_weather(city: str) -> str:
        ...     '''Get the weather of a city.'''
        ...     return f"sunny in {city}"
        >>> async def main() -> None:
        ...     async with AsyncAnthropic() as claude:
        ...         params = {"model": "claude-sonnet-5-5", "max_tokens": 500}
        ...         async with ToolLoop(claude, "Weather in Paris?", tools=[get_weather], **params) as events:
        ...             async for event in events:
        ...                 pass
        ...         print(events.run.message.stop_reason)
        >>> from anthropic import AsyncAnthropic
        >>> anyio.run(main)
        end_turn
    """

    def __init__(
        self,
        sdk: AsyncAnthropic,
        prompt: Prompt,
        *,
        tools: Iterable[AnyTool] | Tools,
        approve: Approve | None = None,
        **params: Unpack[LoopParams],
    ) -> None:
        self._drive = Drive(sdk, prompt, tools=tools, approve=approve, params=params)
        self._events: deque[ToolEvent | _Text] = deque()
        self._news = asyncio.Event()
        self._over = False
        self._error: Exception | None = None
        self._run: ToolRun | None = None
        self._task = OwnTask("penstock-tool-loop")
        self._scope: anyio.CancelScope

    def __repr__(self) -> str:
        state = "not entered" if not self._task.begun else "over" if self._over else "running"
        return f"<ToolLoop {state}, {len(self._events)} events not taken>"

    @property
    def transcript(self) -> list[MessageParam]:
        """All messages so far, valid at any moment: every call is answered, if only with why it gave nothing."""
        return self._drive.transcript

    @property
    def resumable(self) -> list[MessageParam]:
        """All messages so far, calls that have not begun left unanswered, as those are that wait for approval.

        It is what to keep while somebody is asked: another process goes on from it by `tool_loop` or `run_tools`, which
        ask about these calls again. Calls that are being run are answered in it, by that it isn't known whether they do
        their work.
        """
        return self._drive.resumable

    @property
    def usage(self) -> Usage:
        """What all replies that came whole used so far."""
        return self._drive.usage

    @property
    def run(self) -> ToolRun:
        """What came of it.

        Raises:
            RuntimeError: It has not come to its end.
        """
        if self._run is None:
            raise RuntimeError("the tool loop has not come to its end; its transcript holds what happened so far")
        return self._run

    async def __aenter__(self) -> Self:
        """Start.

        Raises:
            RuntimeError: It was entered before.
        """
        if self._task.begun:
            raise RuntimeError("a tool loop runs once; make a new one, from its transcript")
        self._scope = anyio.CancelScope()
        self._task.begin(self._work)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what is still under way; an exception of the block leaves as it is."""
        try:
            await self.close()
        finally:
            self._events.clear()
            self._error = None

    async def close(self) -> None:
        """Cancel what is still under way, as a stop button does; what was told before can still be taken."""
        if self._task.begun:
            self._scope.cancel()
            await self._task.ended()

    def __aiter__(self) -> Self:
        """Events as they come."""
        return self

    async def __anext__(self) -> ToolEvent:
        """Wait for the next event."""
        if not self._task.begun:
            raise RuntimeError("use it inside `async with …tool_loop(…) as events:`")
        while not (self._events or self._over):
            self._news.clear()
            await self._news.wait()
        if self._events:
            event = self._events.popleft()
            return event.joined() if isinstance(event, _Text) else event
        error, self._error = self._error, None
        try:
            raise StopAsyncIteration if error is None else error
        finally:
            # Without the reference, the error forms no cycle with its traceback.
            del error

    async def _work(self) -> None:
        try:
            with self._scope:
                self._run = await self._drive.run(self._emit, telling_text=True)
        except Exception as error:  # noqa: BLE001 - raised to whoever iterates, after the events before it
            self._error = error
        except asyncio.CancelledError:
            # What is cut short must not look as if it had come to its end.
            self._error = RuntimeError("the tool loop was cancelled from outside before its end")
            raise
        finally:
            self._over = True
            self._news.set()

    def _emit(self, event: ToolEvent) -> None:
        last = self._events[-1] if self._events else None
        if not isinstance(event, TextDelta):
            self._events.append(event)
        elif isinstance(last, _Text) and last.iteration == event.iteration:
            last.parts.append(event.text)
        else:
            self._events.append(_Text(event))
        self._news.set()


class _Text:
    """Deltas of text that nobody has taken yet."""

    __slots__ = ("iteration", "parts")

    def __init__(self, first: TextDelta) -> None:
        self.iteration = first.iteration
        self.parts = [first.text]

    def joined(self) -> TextDelta:
        return TextDelta(text="".join(self.parts), iteration=self.iteration)
