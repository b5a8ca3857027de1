"""How long a turn of tool calls takes: four tools of half a second each, here and with the SDK's own runner.

Target: at most 0.6 s (the tools run at the same time); the SDK's runner, which runs them one after the other, takes
2.0 s. Sync tools, which run in threads here, are told beside it; the SDK's async runner refuses them.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

import anthropic
import anyio

from _harness import machine, quick, settle_environment, table, verdict
from penstock import Client
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TOOLS = 4
TOOL_S = 0.5
MOST_S = 0.6
ROUNDS = 7
PARAMS: dict[str, Any] = {"model": "claude-sonnet-5-5", "max_tokens": 1000}
PROMPT = "How is the weather in Paris, Rome, Oslo and Bern?"
CITIES = ("Paris", "Rome", "Oslo", "Bern")


async def get_weather(city: str) -> str:
    """Get the weather of a city."""
    await anyio.sleep(TOOL_S)
    return f"sunny in {city}"


def get_weather_sync(city: str) -> str:
    """Get the weather of a city."""
    time.sleep(TOOL_S)  # noqa: TID251 - what a sync tool does
    return f"sunny in {city}"


def scripted(tool: str) -> Simulator:
    """Answer the question with four calls, and their results with words."""
    simulator = Simulator()
    simulator.reply([{"type": "tool_use", "name": tool, "input": {"city": city}} for city in CITIES])
    simulator.reply("Sunny everywhere.")
    return simulator


async def by_penstock(tool: Any) -> float:
    """Ours, through the whole chain; returns seconds."""
    simulator = scripted(tool.__name__)
    async with Client(sdk=simulator.client(), log=False) as claude:
        began = time.perf_counter()
        run = await claude.run_tools(PROMPT, tools=[tool], **PARAMS)
        took = time.perf_counter() - began
    assert (run.text, run.tool_calls) == ("Sunny everywhere.", TOOLS)
    return took


async def by_sdk() -> float:
    """The SDK's own runner; returns seconds."""
    simulator = scripted(get_weather.__name__)
    async with simulator.client() as claude:
        began = time.perf_counter()
        runner = claude.beta.messages.tool_runner(
            tools=[anthropic.beta_async_tool(get_weather)],
            messages=[{"role": "user", "content": PROMPT}],
            thread=False,
            **PARAMS,
        )
        message = await runner.until_done()
        took = time.perf_counter() - began
    assert message.content[0].type == "text"
    assert len(simulator.journal) == 2
    return took


async def main(*, brief: bool) -> None:
    """Take turns, and tell."""
    ways: dict[str, Callable[[], Awaitable[float]]] = {
        "`run_tools`, async tools": lambda: by_penstock(get_weather),
        "`run_tools`, sync tools": lambda: by_penstock(get_weather_sync),
        "the SDK's `tool_runner`": by_sdk,
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, 1 if brief else ROUNDS):
        for name, ask in ways.items():
            seconds = await ask()
            if number >= 0:  # what is first pays for imports and first connections
                took[name].append(seconds)
    rows = [
        [
            name,
            f"{median(rounds):.3f}",
            f"{min(rounds):.3f}–{max(rounds):.3f}",
            f"≤ {MOST_S}" if name.startswith("`run_tools`") else "",
            verdict(median(rounds), MOST_S) if name.startswith("`run_tools`") else "",
        ]
        for name, rounds in took.items()
    ]
    title = f"{TOOLS} tools of {TOOL_S} s in one turn ({machine()})"
    table(title, ("way", "s, whole run", "rounds", "target", ""), rows)


if __name__ == "__main__":
    settle_environment()
    anyio.run(lambda: main(brief=quick(__doc__)))
