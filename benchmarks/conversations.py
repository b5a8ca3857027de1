"""Whether what a conversation sends is always what the API takes, and what it costs to send it again and again.

Targets: of 2,500 generated conversations (text, images, tools, thinking, pauses, refusals, cut answers, faults,
cancellation, trimming, saving and loading) no request is refused as invalid, and no failed send changes a history; in a
session of 100 turns the input is never above the set share of the window, at least 80 % of it is read from the prompt
cache, and no request is refused for a changed beginning. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from _conversing import Told, converse
from _harness import machine, quick, settle_environment, table
from penstock import Conversation
from penstock.simulator import Simulator
from penstock.testing import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARE, CACHED = 0.75, 0.80
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("no trimming needed", {}),
    ("sliding window of 40,000", {"window_tokens": 40_000}),
    ("summary, window of 40,000", {"window_tokens": 40_000, "overflow": "summary"}),
    ("compaction by the API, window of 80,000", {"window_tokens": 80_000, "overflow": "compaction"}),
    ("sliding window of 40,000, with tools", {"window_tokens": 40_000, "tools": ["search"]}),
    ("model without thinking, window of 40,000", {"window_tokens": 40_000, "model": "claude-sonnet-4-6"}),
)
WORDS = "The water of the upper lake drives the turbine below, as long as the gates stand open and the lake is full."


@dataclass(kw_only=True)
class Session:
    """What a session of many turns came to.

    Attributes:
        shortened: How often its input became shorter.
        share: The largest share of the window that the input of a request took.
        cached: The share of all input that was read from the cache.
        refused: Requests that were refused.
        replies: Requests that were answered.
    """

    shortened: int = 0
    share: float = 0.0
    cached: float = 0.0
    refused: int = 0
    replies: int = 0


async def session(turns: int, options: dict[str, Any]) -> Session:
    """Hold a session of `turns` questions, some with calls of tools in between."""
    simulator = Simulator(thinking=True, output_tokens=400, latency_s=2, tokens_per_s=100)
    names = options.get("tools", ())
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in names]
    told = Session()
    async with simulator.client() as sdk:
        fields = {"model": "claude-sonnet-5-5", "max_tokens": 2000, **options, "tools": tools}
        chat = Conversation(sdk, system=f"You know all about water. {WORDS * 60}", trim_at=SHARE, **fields)
        last = 0
        for turn in range(turns):
            content: Any = f"Question {turn}: {WORDS * 8}"
            if names and turn % 3 == 0:
                simulator.reply([{"type": "thinking", "thinking": ""}, {"type": "tool_use", "name": names[0]}])
            while True:
                reply = await chat.send(content)
                usage = reply.message.usage
                given = (
                    usage.input_tokens + (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
                )
                told.share = max(told.share, given / chat.statistics().window_tokens)
                told.shortened += given < last
                told.replies += 1
                last = given
                if not reply.tool_calls:
                    break
                content = [
                    {"type": "tool_result", "tool_use_id": call.id, "content": WORDS} for call in reply.tool_calls
                ]
            await anyio.sleep(20)
        told.cached = chat.usage.cache_read_input_tokens / chat.usage.total_input_tokens
    told.refused = sum(entry.status == 400 for entry in simulator.journal)
    return told


def sessions(turns: int) -> int:
    """Print what sessions of many turns came to, and return how many missed a target."""
    rows: list[Sequence[str]] = []
    missed = 0
    for name, options in VARIANTS:
        told = anyio.run(session, turns, options, backend_options={"loop_factory": VirtualLoop})
        met = told.share <= SHARE and told.cached >= CACHED and not told.refused
        missed += not met
        cells = (f"{told.share:.1%}", f"{told.cached:.1%}", str(told.refused), "✓" if met else "✗")
        rows.append((name, str(told.replies), str(told.shortened), *cells))
    limits = (f"largest input of the window (≤ {SHARE:.0%})", f"read from the cache (≥ {CACHED:.0%})", "refused (0)")
    table(f"A session of {turns} turns", ("session", "requests", "shortened", *limits, ""), rows)
    return missed


def generated(count: int) -> int:
    """Print what became of generated conversations, and return how many targets were missed."""
    told = Told()
    for seed in range(count):
        converse(seed, told)
    met = not told.rejected and not told.changed
    counted = (told.sends, told.requests, told.failed, told.trimmed, told.resumed, told.rejected, told.changed)
    header = ("conversations", "sends", "requests", "failed or cancelled", "trimmed", "saved and loaded",
              "refused as invalid (0)", "history changed by a failure (0)", "")  # fmt: skip
    table("Generated conversations", header, [(str(count), *map(str, counted), "✓" if met else "✗")])
    for reason in sorted(set(told.reasons))[:5]:
        print(f"\n    {reason[:200]}")
    return not met


def main() -> int:
    """Run both, and return how many targets were missed."""
    settle_environment()
    small = quick(__doc__)
    print(f"# Conversations\n\n{machine()}")
    return sessions(20 if small else 100) + generated(10 if small else 2500)


if __name__ == "__main__":
    sys.exit(bool(main()))
