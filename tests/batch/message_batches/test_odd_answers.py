from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest
from _message_batches import (
    HOUR_S,
    MODEL,
    Killed,
    asked,
    between,
    changed,
    check_all,
    edited,
    governed,
    kind_of,
    made,
    passing,
    prompts,
    ran,
    reply,
)

from penstock.batch.message_batches.remote import NoResults
from penstock.errors import ItemFailed
from penstock.simulator import BatchOptions, Simulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from penstock.testing.plugin import VirtualTime


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda lines: [b"\n", *lines[:2], b"\r\n", *lines[2:]], id="blank lines"),
        pytest.param(lambda lines: [*lines[:2], b"{garbage\n", *lines[2:]], id="no JSON"),
        pytest.param(lambda lines: [b'[1]\n"x"\n5\nnull\n', *lines], id="no objects"),
        pytest.param(lambda lines: [b'{"result":{"type":"expired"}}\n', *lines], id="no custom_id"),
        pytest.param(lambda lines: [b'{"custom_id":[5],"result":{"type":"expired"}}\n', *lines], id="list for a name"),
        pytest.param(lambda lines: [b'{"custom_id":"theirs","result":{"type":"expired"}}\n', *lines], id="unknown"),
        pytest.param(lambda lines: [*lines, b"5"], id="no object at the end"),
        pytest.param(lambda lines: [*lines, *reversed(lines)], id="twice"),
        pytest.param(lambda lines: [b"".join(lines).rstrip(b"\n")], id="no last newline"),
    ],
)
async def test_odd_lines_of_a_results_file_are_passed_over(
    virtual_time: VirtualTime, tmp_path: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    """Each answer comes once, at the first reading, whatever stands between them."""
    simulator = Simulator()

    def odd(content: bytes) -> httpx2.Response:
        return reply(b"".join(change(content.splitlines(keepends=True))), "application/x-jsonl")

    async with changed(simulator, "results", odd) as claude:
        check_all(await ran(claude, prompts(5), journal=tmp_path / "run.jsonl"), 5)
    assert (len(asked(simulator, "GET", "results")), len(made(simulator))) == (1, 1)
    assert len((tmp_path / "run.jsonl").read_bytes().splitlines()) == 5


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "result",
    [{"type": "paused"}, {"type": "succeeded", "message": None}, {"type": "succeeded", "message": {"model": MODEL}}],
)
async def test_a_result_that_nobody_understands_is_a_failure(
    virtual_time: VirtualTime, tmp_path: Path, result: dict[str, Any]
) -> None:
    """It may be paid for, so it is asked again on request only; and the journal stays one."""
    simulator = Simulator()
    options: dict[str, Any] = {"journal": tmp_path / "run.jsonl"}

    def odd(content: bytes) -> httpx2.Response:
        line = json.loads(content)
        return reply(json.dumps({**line, "result": result}).encode(), "application/x-jsonl")

    async with changed(simulator, "results", odd) as claude:
        (failed,) = await ran(claude, prompts(1), **options)
        assert isinstance(failed.error, ItemFailed)
        assert failed.error.error_type == "unknown_result"
        assert await ran(claude, prompts(1), **options) == []
        assert len(made(simulator)) == 1
        check_all(await ran(claude, prompts(1), **options, retry_failed=True), 1)


async def test_a_failure_without_a_reason_is_the_services(virtual_time: VirtualTime) -> None:
    """So it is asked again."""
    simulator = Simulator()

    def odd(content: bytes) -> httpx2.Response:
        line = {**json.loads(content), "result": {"type": "errored", "error": None}}
        return reply(json.dumps(line).encode() + b"\n", "application/x-jsonl")

    async with changed(simulator, "results", odd) as claude:
        check_all(await ran(claude, prompts(1)), 1)
    assert len(made(simulator)) == 2


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("kind", "change", "times"),
    [
        ("look", lambda _: reply(b"<html>", "text/html"), 3),
        ("look", lambda _: reply(b"<html>", "text/html", 502), 30),
        ("look", lambda _: reply(b"<html>", "text/html", 404), 1),
        ("look", lambda _: reply(b"{}"), 3),
        ("look", lambda _: reply(b"[]"), 3),
        ("look", lambda _: reply(b"", status=204), 3),
        ("look", edited(processing_status="paused"), 3),
        ("look", edited(processing_status="ended", results_url=None), 3),
        ("results", lambda _: reply(b'{"type":"error","error":{"type":"not_found_error"}}', status=404), 3),
        ("results", lambda _: reply(b"<html>", "text/html", 502), 100),
        ("list", lambda _: reply(b"<html>", "text/html"), 3),
        ("list", lambda _: reply(b"{}"), 3),
        ("make", lambda _: reply(b"<html>", "text/html"), 1),
        ("make", lambda _: reply(b"{}"), 1),
    ],
)
async def test_what_is_no_answer_is_asked_for_again(
    virtual_time: VirtualTime, kind: str, change: Callable[[bytes], httpx2.Response], times: int
) -> None:
    """A page of a proxy, or an answer that says nothing, ends no run and makes no second batch."""
    simulator = Simulator(batch=BatchOptions(duration_s=1))
    async with changed(simulator, kind, change, times=times) as claude:
        check_all(await ran(claude, prompts(5)), 5)
    assert repr(simulator.batches) == "Batches(1 of 1)"


def moved(status: int) -> httpx2.Response:
    """A redirect to another host."""
    return httpx2.Response(status, headers={"location": "https://elsewhere.example/results"})


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("kind", "change", "error"),
    [
        ("list", lambda _: reply(b"{}"), anthropic.APIResponseValidationError),
        ("list", lambda _: reply(b"{}", status=403), anthropic.PermissionDeniedError),
        ("results", lambda _: reply(b"{}", status=403), anthropic.PermissionDeniedError),
        ("results", lambda _: reply(b"{}", status=404), anthropic.NotFoundError),
        ("results", lambda _: moved(302), anthropic.APIStatusError),
        ("results", lambda _: moved(307), anthropic.APIStatusError),
        ("results", lambda _: reply(b"{}", status=500), anthropic.InternalServerError),
        ("look", edited(processing_status="ended", results_url=None), NoResults),
    ],
)
async def test_what_stays_so_is_an_error(
    virtual_time: VirtualTime,
    tmp_path: Path,
    kind: str,
    change: Callable[[bytes], httpx2.Response],
    error: type[Exception],
) -> None:
    """After a day or so at most it is raised, and another run goes on where this one was."""
    simulator = Simulator()
    path = tmp_path / "run.jsonl"
    async with changed(simulator, kind, change, times=math.inf) as claude:
        with pytest.raises(error):
            await ran(claude, prompts(2), journal=path, poll_s=5 if kind == "list" else HOUR_S)
    assert virtual_time.now() < 30 * HOUR_S
    async with governed(simulator) as claude:
        check_all(await ran(claude, prompts(2), journal=path), 2)
    assert repr(simulator.batches) == "Batches(1 of 1)"


async def test_a_batch_deleted_before_its_results_are_read_is_submitted_again(virtual_time: VirtualTime) -> None:
    """It had ended a moment ago."""
    simulator = Simulator()
    first = itertools.count()

    async def on_the_way(
        request: httpx2.Request, call: Callable[[httpx2.Request], Awaitable[httpx2.Response]]
    ) -> httpx2.Response:
        if kind_of(request) == "results" and next(first) == 0:
            url = str(request.url).removesuffix("/results")
            await call(httpx2.Request("DELETE", url, headers=request.headers))
        return await call(request)

    async with passing(between(simulator, on_the_way)) as claude:
        found = await ran(claude, prompts(3))
    check_all(found, 3)
    assert {result.attempts for result in found} == {2}


async def test_a_search_for_a_lost_batch_is_made_again(virtual_time: VirtualTime) -> None:
    """Where it gets no answer, it has not shown that there is none."""
    simulator = Simulator()
    simulator.inject("truncated", after=1)
    count = itertools.count()

    def later(content: bytes) -> httpx2.Response:
        return reply(b"{}" if next(count) else content)

    async with changed(simulator, "list", later, times=4) as claude:
        check_all(await ran(claude, prompts(2)), 2)
    assert repr(simulator.batches) == "Batches(1 of 1)"


async def test_a_lost_batch_is_looked_for_until_none_is_left(virtual_time: VirtualTime) -> None:
    """Another's of the same size that was made before it is not the end of the search, so ours is not paid twice."""
    simulator = Simulator()
    theirs: Any = [{"custom_id": f"x-{n}", "params": {"model": MODEL, "messages": []}} for n in range(2)]
    first = itertools.count()
    async with simulator.client() as other:

        async def on_the_way(
            request: httpx2.Request, call: Callable[[httpx2.Request], Awaitable[httpx2.Response]]
        ) -> httpx2.Response:
            if kind_of(request) == "make" and next(first) == 0:
                await other.messages.batches.create(requests=theirs)
                await call(request)
                raise httpx2.ReadError("lost", request=request)
            return await call(request)

        async with passing(between(simulator, on_the_way)) as claude:
            found = await ran(claude, prompts(2))
    check_all(found, 2)
    assert {result.attempts for result in found} == {1}
    assert repr(simulator.batches) == "Batches(2 of 2)"


async def test_a_lost_batch_proves_itself_to_an_input_that_lacks_some_of_it(
    virtual_time: VirtualTime, tmp_path: Path
) -> None:
    """Its other requests are known from the notes, so it is not taken for another's, and not paid for twice."""
    simulator = Simulator(latency_s=1)
    run = Killed(simulator, tmp_path)
    # The batch exists, its answer is on the way.
    await run.until(1.5, 5)
    assert len(made(simulator)) == 1
    check_all(await run.finish(3), 3)
    assert sorted(result.index for result in await run.finish(5)) == [3, 4]
    assert repr(simulator.batches) == "Batches(1 of 1)"


@pytest.mark.lengthy
async def test_more_batches_than_a_page_holds_are_searched(virtual_time: VirtualTime) -> None:
    """A lost one is found behind them."""
    simulator = Simulator()
    theirs: Any = [{"custom_id": "x", "params": {"model": MODEL, "messages": []}}]
    first = itertools.count()
    async with simulator.client() as other:

        async def on_the_way(
            request: httpx2.Request, call: Callable[[httpx2.Request], Awaitable[httpx2.Response]]
        ) -> httpx2.Response:
            if kind_of(request) == "make" and next(first) == 0:
                await call(request)
                for _ in range(120):
                    await other.messages.batches.create(requests=theirs)
                raise httpx2.ReadError("lost", request=request)
            return await call(request)

        async with passing(between(simulator, on_the_way)) as claude:
            check_all(await ran(claude, prompts(2)), 2)
    assert repr(simulator.batches) == "Batches(121 of 121)"
