from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest
from _message_batches import MODEL, asked, check_all, governed, made, prompts, ran

from penstock.batch.journal import Journal
from penstock.batch.message_batches import MessageBatches
from penstock.batch.message_batches.requests import encoded, wire_id
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.batch.items import Request
    from penstock.batch.result import FanOutResult
    from penstock.testing.plugin import VirtualTime


async def test_input_is_split_and_read_one_batch_at_a_time(virtual_time: VirtualTime) -> None:
    """When a batch is submitted, no more than the first item of the next one has been read."""
    simulator = Simulator(latency_s=0.1)
    read: list[int] = []
    reads_at_submission: list[int] = []

    def given() -> Iterator[Request]:
        for number, request in enumerate(prompts(25)):
            reads_at_submission.append(len(made(simulator)))
            read.append(number)
            yield request

    async with governed(simulator) as claude:
        check_all(await ran(claude, given(), batch_size=10), 25)
    assert [len(wires) for wires in made(simulator)] == [10, 10, 5]
    assert reads_at_submission == [0] * 10 + [1] * 10 + [2] * 5


@pytest.mark.lengthy
async def test_a_batch_holds_no_more_bytes_than_it_may(virtual_time: VirtualTime) -> None:
    """The limit holds for what is sent; a request beyond it fails alone."""
    simulator = Simulator()
    requests = [f"{number} " + "x" * 900 for number in range(10)]
    async with governed(simulator) as claude:
        results = await ran(claude, [*requests, "y" * 5000], batch_bytes=4000)
    bodies = [entry.body for entry in simulator.journal if entry.method == "POST"]
    assert [len(body["requests"]) for body in bodies if body is not None] == [3, 3, 3, 1]
    assert max(len(json.dumps(body)) for body in bodies) <= 4100
    (failed,) = [result for result in results if not result.ok]
    assert "a batch takes 4000" in str(failed.error)


async def test_what_can_not_be_asked_fails_alone(virtual_time: VirtualTime) -> None:
    """Duplicates, nonsense, and what no JSON can hold are results; the others are asked."""
    simulator = Simulator()
    bad: list[Any] = [
        5,
        {"params": {}},
        {"custom_id": "row-0", "params": {"messages": []}},
        {"custom_id": "object", "params": {"messages": object()}},
        {"custom_id": "nan", "params": {"messages": [], "x": float("nan")}},
        {"custom_id": "surrogate", "params": {"messages": [{"role": "user", "content": "\ud800"}]}},
        {"custom_id": "stream", "params": {"messages": [], "stream": True}},
    ]
    async with governed(simulator) as claude:
        results = await ran(claude, [*prompts(2), *bad])
    check_all([result for result in results if result.ok], 2)
    errors = {result.index: str(result.error) for result in results if not result.ok}
    assert sorted(errors) == list(range(2, 9))
    assert "has the custom_id 'row-0', as one before it has" in errors[4]
    assert len(made(simulator)[0]) == 2


async def test_an_error_of_the_input_comes_last(virtual_time: VirtualTime) -> None:
    """Everything that it gave before is answered; then it is raised as it is."""
    simulator = Simulator()

    def given() -> Iterator[Request]:
        yield from prompts(3)
        raise OSError("unplugged")

    seen: list[FanOutResult] = []
    async with governed(simulator) as claude, claude.batch(given(), model=MODEL) as results:
        with pytest.raises(OSError, match="unplugged"):
            seen.extend([await anext(results) for _ in itertools.count()])
        with pytest.raises(StopAsyncIteration):
            await anext(results)
    assert asked(simulator, "GET", "results") != []


def test_params_are_sent_as_json() -> None:
    """Blocks of an answer go back as they came, and what is not given is left out."""
    block = anthropic.types.TextBlock.construct(type="text", text="Hi")
    params = {"messages": [{"role": "assistant", "content": [block]}], "system": anthropic.NOT_GIVEN}
    assert json.loads(encoded(params)) == {
        "messages": [{"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}]
    }
    with pytest.raises(TypeError, match="object is not"):
        encoded({"messages": object()})


def test_wire_ids_are_what_the_api_takes() -> None:
    """64 characters of its alphabet at most, different wherever the name or the request is."""
    digests = ("0" * 16, "f" * 16)
    names = ("a", "b", "a b", "ä", "x" * 47, "x" * 48, "x" * 500, "\ud800", "")
    found = {wire_id(name, digest) for name in names for digest in digests}
    assert len(found) == len(names) * len(digests)
    assert all(len(wire) <= 64 and wire.replace("-", "").isalnum() and wire.isascii() for wire in found)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 100_001}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"batch_bytes": 256_000_000}, "batch_bytes"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"concurrency": 0}, "concurrency"),
        ({"poll_s": 0}, "poll_s"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"live_s": float("inf")}, "live_s"),
        ({"stream": True}, "stream"),
        ({"retry_failed": True}, "retry_failed needs a journal"),
        ({"replay": True}, "replay needs a journal"),
        ({"keep_params": True}, "keep_params needs a journal"),
        ({"keep_params": True, "journal": Journal("run.jsonl")}, "keep_params belongs"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], error: str) -> None:
    """Each names itself, before anything is done."""
    with pytest.raises(ValueError, match=error):
        MessageBatches(Simulator().client(), [], **options)


async def test_it_runs_once_and_inside_its_block(virtual_time: VirtualTime) -> None:
    """Whoever holds it wrong is told so."""
    async with governed(Simulator()) as claude:
        with pytest.raises(TypeError, match="requests must be"):
            claude.batch("One prompt", model=MODEL)
        with pytest.raises(TypeError, match="on_progress must be"):
            claude.batch([], model=MODEL, on_progress=anyio.sleep)  # type: ignore[arg-type]
        results = claude.batch(["One"], model=MODEL, max_tokens=9)
        assert repr(results) == "<MessageBatches 0 read, 0 delivered, <Batches, not begun>>"
        with pytest.raises(RuntimeError, match="inside"):
            await anext(results)
        with pytest.raises(RuntimeError, match="inside"):
            await results.cancel()
        async with results:
            pass
        with pytest.raises(RuntimeError, match="once"):
            await results.__aenter__()
        await claude.batch([], model=MODEL).__aexit__(None, None, None)
