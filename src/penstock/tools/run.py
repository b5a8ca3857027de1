"""One run of the tool loop: doing what its state decides, asking the model, running calls; as one call, `run_tools`.

The rule here: one request at a time, streamed, and over before any tool runs. Only replies whose text nobody has seen
are asked for again when they break off; what came whole but can't be understood is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Unpack, cast

import anyio

from penstock._core.context import labels
from penstock._core.options import given
from penstock._core.usage import Usage
from penstock.costs.prices import billed_to_user_profile, price_of
from penstock.errors import StreamInterrupted
from penstock.messages.blocks import ids_of, whole
from penstock.messages.history import check_can_be_sent, check_roles, container_param, told_of_halves
from penstock.streaming.opening import stream
from penstock.tools.calls import Calls
from penstock.tools.events import Finished, IterationStarted, MessageFinished, TextDelta
from penstock.tools.registry import Tools
from penstock.tools.state import Ask, End, LoopState, RunCalls, ToolOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anthropic import AsyncAnthropic
    from anthropic.types import MessageParam

    from penstock.messages.blocks import Turn
    from penstock.streaming.accumulate import AnyMessage
    from penstock.tools.events import Approve, Emit, ToolEvent
    from penstock.tools.outcome import ToolRun
    from penstock.tools.params import LoopParams
    from penstock.tools.registry import AnyTool
    from penstock.tools.transcript import Prompt

__all__ = ["Drive", "run_tools"]

_ASKED_AGAIN: Final = 2
_NOT_OURS: Final = {"messages": "give the messages as the prompt", "stream": "every reply is streamed already"}


class Drive:
    """One run of a tool loop.

    Args:
        sdk: The client that sends the requests, governed or not.
        prompt: As for `run_tools`.
        tools: As for `run_tools`.
        approve: As for `run_tools`.
        params: Fields of `ToolOptions`, and parameters of `messages.create`.

    Raises:
        TypeError: A tool can't be used, or a parameter isn't the caller's to give.
        ValueError: An option is out of its range, or two tools have the same name.
        InvalidHistory: A message of the prompt is not what the API takes.
    """

    def __init__(
        self,
        sdk: AsyncAnthropic,
        prompt: Prompt,
        *,
        tools: Iterable[AnyTool] | Tools,
        approve: Approve | None,
        params: Mapping[str, Any],
    ) -> None:
        for name, instead in _NOT_OURS.items():
            if name in params:
                raise TypeError(f"{name!r} is no parameter of a tool loop: {instead}")
        params = given(params)
        own = {name: value for name, value in params.items() if name in ToolOptions.model_fields}
        self._options = ToolOptions.model_validate(own)
        self._params = {name: value for name, value in params.items() if name not in own}
        if billed_to_user_profile(self._params):
            self._options = self._options.model_copy(update={"max_cost_usd": None})
        self._tools = tools if isinstance(tools, Tools) else Tools(tools)
        self._approve = approve
        self._check_approval()
        self._sdk = sdk
        self._state = LoopState(prompt, self._tools, self._options)
        turns, model = self._state.transcript.turns, str(self._params.get("model"))
        check_roles(turns, model)
        check_can_be_sent(turns, model)

    def __repr__(self) -> str:
        return f"<Drive of {self._params.get('model')!r}, {self._state!r}>"

    @property
    def transcript(self) -> list[MessageParam]:
        """All messages so far, with an answer to every call."""
        return self._state.transcript.valid

    @property
    def resumable(self) -> list[MessageParam]:
        """The same, calls that have not begun left unanswered."""
        return self._state.transcript.resumable

    @property
    def usage(self) -> Usage:
        """Of all replies so far."""
        return self._state.spending.usage

    async def run(self, emit: Emit, *, telling_text: bool) -> ToolRun:
        """Go on until the end.

        Args:
            emit: Told what happens.
            telling_text: Whether it wants each delta of text.

        Raises:
            ToolLoopLimit: A bound is reached.
            UnknownTool: The model called a tool that it was not given, and `on_unknown_tool` is `"raise"`.
            UnknownPrice: There is a bound on the cost, and no price is known for the model.
            StreamInterrupted: A reply broke off.
            anthropic.APIError: The API refused, or could not be reached.
            Exception: What `approve` raised, as it is.
        """
        if self._options.max_cost_usd is not None:
            price_of(Usage(input_tokens=1), str(self._params.get("model")))
        self._state.begin(anyio.current_time())
        run = None
        with anyio.move_on_after(self._options.max_seconds):
            run = await self._steps(emit, telling_text=telling_text)
        if run is None:
            raise self._state.out_of_time().error
        emit(Finished(run=run))
        return run

    async def _steps(self, emit: Emit, *, telling_text: bool) -> ToolRun:
        state = self._state
        calls = Calls(self._tools, self._options, approve=self._approve, emit=emit)
        while True:
            step = state.next(anyio.current_time())
            if isinstance(step, Ask):
                emit(IterationStarted(iteration=step.iteration))
                message = await self._ask(step, emit if telling_text else None)
                state.received(message)
                emit(MessageFinished(message=message, iteration=step.iteration))
            elif isinstance(step, RunCalls):
                await calls.run(step.calls, state)
            elif isinstance(step, End):
                return step.run
            else:
                raise step.error

    async def _ask(self, step: Ask, emit: Emit | None) -> AnyMessage:
        left = 0 if emit else _ASKED_AGAIN
        while True:
            try:
                return whole(await self._reply(step, emit), _calls_before(step.turns))
            except StreamInterrupted as error:
                if left == 0 or not error.was_cut:
                    raise
                left -= 1
                self._state.broke_off(error.usage, str(self._params.get("model")))

    async def _reply(self, step: Ask, emit: Emit | None) -> AnyMessage:
        params = self._params_of(step)
        with told_of_halves("messages"), labels(tool_iteration=str(step.iteration)):
            async with stream(self._sdk, messages=step.messages, **params) as answer:
                if emit is not None:
                    async for text in answer.text_stream:
                        emit(TextDelta(text=text, iteration=step.iteration))
                return await answer.get_final_message()

    def _params_of(self, step: Ask) -> dict[str, Any]:
        params = dict(self._params)
        if len(self._tools):
            params["tools"] = self._tools.params
        choice = params.get("tool_choice")
        if step.iteration > 1 and isinstance(choice, dict):
            params["tool_choice"] = _no_longer_forced(cast("dict[str, Any]", choice))
        container = container_param(params.get("container"), self._state.transcript.container)
        return params if container is None else {**params, "container": container}

    def _check_approval(self) -> None:
        if self._approve is not None and not callable(cast("object", self._approve)):
            raise TypeError("approve must be an async function that takes a ToolCall")
        unasked = [tool.name for tool in self._tools.runnable if tool.needs_approval]
        if unasked and self._approve is None:
            raise TypeError(f"tool {unasked[0]!r} needs approval: give the loop a hook, approve=…")


def _calls_before(turns: tuple[Turn, ...]) -> list[str]:
    """Ids of calls in the turn that a reply goes on with."""
    return ids_of(turns[-1].content, "tool_use") if turns[-1].role == "assistant" else []


def _no_longer_forced(choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice under which the model may end: a forced call would be forced again in each reply."""
    if choice.get("type") not in {"any", "tool"}:
        return choice
    return {"type": "auto", **{name: value for name, value in choice.items() if name == "disable_parallel_tool_use"}}


# As one call


async def run_tools(
    sdk: AsyncAnthropic,
    prompt: Prompt,
    *,
    tools: Iterable[AnyTool] | Tools,
    approve: Approve | None = None,
    **params: Unpack[LoopParams],
) -> ToolRun:
    """Ask the model, run the tools that it calls, all of a turn at once, tell it the results, until it needs no more.

    Args:
        sdk: The client that sends the requests, governed or not.
        prompt: A text, a list of content blocks, or messages: a transcript to go on from. Calls that stand unanswered
            at its end are run first.
        tools: Functions, what `penstock.tool` makes of them, function tools of the SDK, entries of tools that run on
            the server.
        approve: Awaited before a call runs; returns whether it may: a bool, `Allow`, `Deny`, `Answer` or `Later`.
            The calls of a turn are asked about at the same time.
        **params: The fields of `ToolOptions` (`max_iterations`, `tool_timeout_s`, …), and parameters of
            `messages.create` (`model`, `max_tokens`, `system`, …), or of `beta.messages.create`. As a verb of a client,
            `model`, `max_tokens` and `max_iterations` are its settings by default.

    Returns:
        The last reply, the transcript, and what it took.

    Raises:
        ToolLoopLimit: A bound is reached; its `transcript` can be gone on from.
        UnknownTool: The model called a tool that it was not given, and `on_unknown_tool` is `"raise"`.
        UnknownPrice: `max_cost_usd` is given, and no price is known for the model.
        InvalidHistory: A message of the prompt is not what the API takes.
        TypeError: A tool can't be described to the model, or nothing would run it.
        ValueError: An option is out of its range, or two tools have the same name.
        Exception: What a request raises, and what `approve` raises, as it is. Use `ToolLoop` to have the transcript
            then, too.

    Example:
        >>> async def get_weather(city: str) -> str:
        ...     '''Get the weather of a city.'''
        ...     return f"sunny in {city}"
        >>> async def main() -> None:
        ...     async with AsyncAnthropic() as claude:
        ...         params = {"model": "claude-sonnet-5-5", "max_tokens": 500}
        ...         run = await run_tools(claude, "How is the weather in Paris?", tools=[get_weather], **params)
        ...         print(run.message.stop_reason)
        >>> import anyio
        >>> from anthropic import AsyncAnthropic
        >>> anyio.run(main)
        end_turn
    """
    return await Drive(sdk, prompt, tools=tools, approve=approve, params=params).run(_ignore, telling_text=False)


def _ignore(event: ToolEvent) -> None:
    del event
