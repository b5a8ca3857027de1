"""Looking at things where no event loop runs: in a REPL, a debugger, a thread of a metrics exporter, after the end."""

from __future__ import annotations

import gc
import inspect
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import penstock
from penstock import Client, Limits
from penstock.batch import FanOut, Journal, MessageBatches
from penstock.guards.admit import Admit
from penstock.simulator import BatchOptions, Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PARAMS: dict[str, Any] = {"model": "claude-haiku-5-5", "max_tokens": 9}
HELLO: Any = [{"role": "user", "content": "Hello"}]
LIMITS = Limits(requests_per_minute=60, input_tokens_per_minute=60_000, output_tokens_per_minute=60_000)


def ours() -> Iterator[object]:
    """Every object of the package's classes that there is."""
    for each in gc.get_objects():
        # Of a class that makes its own `__module__`, as a mock does, it may be anything.
        if str(type(each).__module__).startswith("penstock.") and not isinstance(each, type):
            yield each


def problems(others: Sequence[object]) -> list[str]:
    """What can't be looked at here; without those that other tests have left."""
    found: list[str] = []
    known = {id(each) for each in others}
    for each in [each for each in ours() if id(each) not in known]:
        statistics = getattr(type(each), "statistics", None)
        # Parts that are handed the time, and the like, are looked at through their owners.
        alone = callable(statistics) and len(inspect.signature(statistics).parameters) == 1
        for look in (repr, *((statistics,) if alone else ())):
            try:
                look(each)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                found.append(f"{type(each).__qualname__}: {error!r}")
    return found


async def use(simulator: Simulator, path: Path, kept: list[object]) -> None:
    """Use everything a client offers, and keep it."""
    client = Client(sdk=simulator.client(), limits=LIMITS, log=False)
    kept.append(client)
    async with client as claude:
        simulator.inject("error")
        await claude.messages.create(**PARAMS, messages=HELLO)
        async with claude.stream(**PARAMS, messages=HELLO) as stream:
            kept += [stream, *[text async for text in stream]]
        chat = claude.conversation(**PARAMS)
        kept += [chat, await chat.send("Hello")]
        async with claude.fan_out(["a", "b"], **PARAMS, journal=path) as results:
            kept += [results, *[result async for result in results]]
        async with claude.batch(["a"], **PARAMS, poll_s=0.01) as results:
            kept += [results, *[result async for result in results]]
        kept.append(await claude.run_tools("Hello", tools=[], **PARAMS))
        kept.append(claude.statistics())


@pytest.mark.lengthy
@pytest.mark.filterwarnings("error")
def test_everything_can_be_looked_at_outside_an_event_loop(tmp_path: Path) -> None:
    """Before a loop, while one runs elsewhere, and after it: every object's `repr`, every `statistics()`."""
    others = list(ours())
    simulator, sdk = Simulator(batch=BatchOptions(duration_s=0.01)), Simulator().client()
    kept: list[object] = [
        Client(sdk=simulator.client(), log=False),
        Admit(limits=LIMITS),
        FanOut(sdk, ["a"], **PARAMS),
        MessageBatches(sdk, ["a"], **PARAMS),
        Journal(tmp_path / "b"),
        penstock.Conversation(sdk, **PARAMS),
    ]
    assert problems(others) == []
    elsewhere: list[str] = []

    async def main() -> None:
        await use(simulator, tmp_path / "a", kept)
        thread = threading.Thread(target=lambda: elsewhere.extend(problems(others)))
        thread.start()
        thread.join()

    anyio.run(main)
    assert elsewhere == []
    assert problems(others) == []
    names = {type(each).__name__ for each in ours()}
    assert names >= {"Client", "Admit", "Retry", "CircuitBreaker", "Meter", "Record", "FanOut", "MessageBatches"}
    assert names >= {"Journal", "Conversation", "FanOutResult", "TokenBucket"}


def test_outside_it_is_as_late_as_inside() -> None:
    """What is read of a limit after the loop has ended is what is left of it then, and reading changes nothing."""
    admit = Admit(limits=LIMITS)

    async def main() -> float:
        sdk = Simulator().client(middleware=[admit], max_retries=0)
        for _ in range(10):
            await sdk.messages.create(**PARAMS, messages=HELLO)
        return left()

    def left() -> float:
        (quota,) = admit.statistics().quotas.values()
        (buckets,) = quota.values()
        return buckets["requests"].available

    inside = anyio.run(main)
    outside = left()
    assert 49 < inside < outside < 56
    assert outside <= left() < outside + 5
