"""What is lost when the service fails: thousands of requests to a simulator that goes wrong every seventh time.

Targets: 3,000 requests with 15 % mixed faults give 3,000 answers, each once, and afterwards nothing is held any more:
no slot, no permit, no waiter, no socket. The same for 500 streams. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2

import penstock
from _harness import machine, open_sockets, quick, server, settle_environment, table

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = "claude-haiku-5-5"
MAX_TOKENS = 256
CONCURRENCY = 128
MIXED = 0.15
BROKEN_LATER = {"stream_error_after_content": 0.02, "stream_drop_after_content": 0.02}
SETTLE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What is to be a certain number, and what it was."""

    name: str
    seen: int
    wanted: int

    @property
    def ok(self) -> bool:
        """Whether it is."""
        return self.seen == self.wanted


@contextmanager
def simulator(faults: dict[str, float] | None = None) -> Iterator[str]:
    """Run the simulator as a server with faults; gives its address."""
    extra = ["--faults", ",".join(f"{name}={chance}" for name, chance in faults.items())] if faults else []
    options = ("--port", "0", "--mixed-faults", str(MIXED), *extra)
    with server("-m", "penstock.simulator", *options, announces="stderr") as line:
        yield next(word for word in line.split() if word.startswith("http://"))


def client(url: str) -> penstock.Client:
    """Two keys, which the simulator counts as two organizations.

    Ten attempts, which items of a fan-out have in any case: one call in 500 would by chance fail four times.
    """
    return penstock.Client(
        api_keys=["sk-bench-1", "sk-bench-2"],
        base_url=url,
        concurrency=CONCURRENCY,
        retry=penstock.RetryOptions(max_attempts=10),
    )


def prompt(number: int) -> str:
    """A prompt that no other is."""
    return f"Summarize paragraph {number}: the queue was full, so the producer of number {number} had to wait."


async def fan_out(claude: penstock.Client, count: int) -> list[Counted]:
    """Ask many prompts at once, each with an id of its own."""
    requests = (
        {"custom_id": f"item-{number}", "params": {"messages": [{"role": "user", "content": prompt(number)}]}}
        for number in range(count)
    )
    ids: Counter[str] = Counter()
    answered = mismatched = 0
    async with claude.fan_out(requests, model=MODEL, max_tokens=MAX_TOKENS, concurrency=CONCURRENCY) as results:
        async for result in results:
            ids[result.custom_id] += 1
            answered += result.ok
            mismatched += not answers(result)
    return [
        Counted(name="answered", seen=answered, wanted=count),
        Counted(name="ids that came once", seen=sum(times == 1 for times in ids.values()), wanted=count),
        Counted(name="answers to another prompt", seen=mismatched, wanted=0),
    ]


def answers(result: penstock.FanOutResult) -> bool:
    """Whether an answer belongs to its prompt, which the simulator's replies tell."""
    if result.message is None:
        return True
    number = result.custom_id.removeprefix("item-")
    return any(block.type == "text" and f"paragraph {number}:" in block.text for block in result.message.content)


async def streams(claude: penstock.Client, count: int) -> list[Counted]:
    """Read many streams to their end; some break after their content has begun, which nothing can repair."""
    outcomes: Counter[str] = Counter()
    left = iter(range(count))

    async def work() -> None:
        for number in left:
            outcomes[await read_stream(claude, number)] += 1

    async with anyio.create_task_group() as group:
        for _ in range(CONCURRENCY):
            group.start_soon(work)
    damaged = (await server_statistics(claude))["by_fault"]
    most = sum(damaged.get(name, 0) for name in BROKEN_LATER)
    print(f"\n{outcomes['broken']} streams broke after their reader had seen content ({most} such faults were sent).")
    return [
        Counted(
            name="whole, or a typed error after content", seen=outcomes["whole"] + outcomes["broken"], wanted=count
        ),
        Counted(
            name="broken more often than the server's faults explain", seen=max(outcomes["broken"] - most, 0), wanted=0
        ),
        Counted(name="failed before any content", seen=outcomes["failed"], wanted=0),
        Counted(name="silently cut short", seen=outcomes["cut"], wanted=0),
    ]


async def read_stream(claude: penstock.Client, number: int) -> str:
    """Read one stream; returns how it ended."""
    messages: Any = [{"role": "user", "content": prompt(number)}]
    text = ""
    try:
        async with claude.messages.stream(model=MODEL, max_tokens=MAX_TOKENS, messages=messages) as events:
            async for piece in events.text_stream:
                text += piece
            message = await events.get_final_message()
    except (anthropic.APIError, httpx2.TransportError):
        return "broken" if text else "failed"
    whole = message.stop_reason is not None and f"paragraph {number}:" in text
    return "whole" if whole else "cut"


async def server_statistics(claude: penstock.Client) -> dict[str, Any]:
    """Ask the simulator what it has seen, once it has ended every request."""
    async with httpx2.AsyncClient(base_url=str(claude.sdk.base_url)) as http:
        with anyio.move_on_after(SETTLE_S):
            while True:
                statistics: dict[str, Any] = json.loads((await http.get("/_simulator/statistics")).content)
                if statistics["in_flight"] == 0:
                    break
                await anyio.sleep(0.02)
        return statistics


async def left_over(claude: penstock.Client) -> list[Counted]:
    """Count what is still held after the last answer."""
    seen, service = claude.statistics(), await server_statistics(claude)
    held = {
        "slots in use": seen.admission.slots_used,
        "requests waiting": sum(seen.admission.waiting.values()),
        "calls in flight": seen.calls.in_flight,
        "attempts under way in the breaker": sum(each.under_way for each in seen.breaker.classes.values()),
        "items waiting for retry quota": seen.retry.waiting,
        "requests open at the server": service["in_flight"],
    }
    return [Counted(name=name, seen=number, wanted=0) for name, number in held.items()]


def tell(title: str, claude: penstock.Client, counted: list[Counted], took_s: float) -> bool:
    """Print what was counted; returns whether all of it is as it should be."""
    rows = [[one.name, f"{one.seen:,}", f"{one.wanted:,}", "✓" if one.ok else "✗"] for one in counted]
    table(f"{title} ({machine()})", ("what", "counted", "target", ""), rows)
    seen = claude.statistics()
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(seen.attempts.total.failures.items()))
    print(
        f"{seen.attempts.total.attempts:,} attempts, {seen.retry.retries:,} retries ({kinds}), {took_s:.0f} s.\n",
        flush=True,
    )
    return all(one.ok for one in counted)


async def main(*, brief: bool) -> bool:
    """Run both; returns whether every target was reached."""
    requests, streamed = (300, 100) if brief else (3000, 500)
    reached = True
    for title, job, count, faults in (
        (f"{requests:,} requests through `fan_out`, 15 % mixed faults", fan_out, requests, {}),
        (f"{streamed:,} streams, 15 % mixed faults and 4 % that break later", streams, streamed, BROKEN_LATER),
    ):
        with simulator(faults) as url:
            before, started_at = open_sockets(), anyio.current_time()
            async with client(url) as claude:
                counted = await job(claude, count)
                took_s = anyio.current_time() - started_at
                counted += await left_over(claude)
            await anyio.sleep(0.1)  # closed connections leave the event loop in its next turns
            if before is not None and (after := open_sockets()) is not None:
                counted.append(Counted(name="sockets left open", seen=after - before, wanted=0))
            reached &= tell(title, claude, counted, took_s)
    return reached


if __name__ == "__main__":
    settle_environment()
    shortened = quick(__doc__)
    if not anyio.run(lambda: main(brief=shortened)):
        sys.exit("a target was missed")
