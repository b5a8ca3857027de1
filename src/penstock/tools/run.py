"""The tool loop as one call: `run_tools`.

The rule here: it is the same loop as `ToolLoop`, with nobody looking on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.tools.drive import Drive

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anthropic import AsyncAnthropic

    from penstock.tools.call import Approve
    from penstock.tools.events import ToolEvent
    from penstock.tools.outcome import ToolRun
    from penstock.tools.registry import AnyTool, Tools
    from penstock.tools.transcript import Prompt

__all__ = ["run_tools"]


async def run_tools(
    sdk: AsyncAnthropic,
    prompt: Prompt,
    *,
    tools: Iterable[AnyTool] | Tools,
    approve: Approve | None = None,
    **params: Any,
) -> ToolRun:
    """Ask the model, run the tools that it calls, all of a turn at once, tell it the results, until it needs no more.

    Args:
        sdk: The client that sends the requests, governed or not.
        prompt: A text, a list of content blocks, or messages: a transcript to go on from. Calls that stand unanswered
            at its end are run first.
        tools: Functions, what `penstock.tool` makes of them, function tools of the SDK, entries of tools that run on
            the server.
        approve: Awaited before a call runs; returns whether it may: a bool, `Allow`, `Deny` or `Answer`. The calls of
            a turn are asked about at the same time.
        **params: The fields of `ToolOptions` (`max_iterations`, `tool_timeout_s`, …), and parameters of
            `messages.create` (`model`, `max_tokens`, `system`, …), or of `beta.messages.create`.

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
