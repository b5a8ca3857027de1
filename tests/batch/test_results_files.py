"""Results files of message batches as no API should serve them, once and always."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import tracemalloc
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import Client, RetryOptions
from penstock.batch.message_batches import MessageBatches
from penstock.batch.message_batches.remote import NoResults
from penstock.batch.message_batches.results_file import ResultLines
from penstock.errors import ItemFailed
from penstock.simulator import BatchOptions, Simulator
from penstock.testing import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from penstock.batch.items import Request
    from penstock.batch.result import FanOutResult
    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
BATCHES = "/v1/messages/batches"
HOUR_S = 3_600.0
MIB = 1024 * 1024
SECRET = "kingfisher"


# What is served.


class Pieces(httpx2.AsyncByteStream):
    """A body in pieces, which may break at its end."""

    def __init__(self, pieces: Iterable[bytes], error: Exception | None = None) -> None:
        self._pieces = pieces
        self._error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        if self._error is not None:
            raise self._error


@dataclass(frozen=True)
class Served:
    """What comes in place of a results file."""

    pieces: Iterable[bytes]
    status: int = 200
    kind: str = "application/x-jsonl"
    encoding: str | None = None
    error: Exception | None = None

    def response(self) -> httpx2.Response:
        headers = {"content-type": self.kind}
        if self.encoding is not None:
            headers["content-encoding"] = self.encoding
        return httpx2.Response(self.status, headers=headers, stream=Pieces(self.pieces, self.error))


Change = "Callable[[bytes], Served]"


def body(*pieces: bytes, **more: Any) -> Served:
    """A body of these pieces."""
    return Served(pieces, **more)


def lines_of(content: bytes) -> list[bytes]:
    """The lines of a file, newlines included."""
    return content.splitlines(keepends=True)


def with_last(content: bytes, change: Callable[[bytes], bytes]) -> Served:
    """A file whose last line is another."""
    *others, last = lines_of(content)
    return body(*others, change(last))


def edited(line: bytes, **fields: Any) -> bytes:
    """A line whose message has other fields."""
    decoded = json.loads(line)
    decoded["result"]["message"].update(fields)
    return json.dumps(decoded).encode() + b"\n"


def deep(line: bytes, depth: int) -> bytes:
    """A line that nests."""
    return edited(line, more="deep").replace(b'"deep"', b"[" * depth + b"]" * depth)


def long(line: bytes, size: int) -> Iterator[bytes]:
    """A line of so many MiB, in pieces of one, without its newline."""
    start, end = edited(line, more="long").rstrip().split(b"long")
    yield start
    for _ in range(size):
        yield b"x" * MIB
    yield end


def longer(content: bytes, size: int, *, ended: bool = True) -> Served:
    """A file whose first line is long, and has an end or none."""
    first, *others = lines_of(content)
    return body(*long(first, size), *([b"\n", *others] if ended else []))


def gzipped(content: bytes, end: Callable[[bytes], bytes]) -> Served:
    """A compressed file that ends somehow in its last line."""
    *others, last = lines_of(content)
    made = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    whole = made.compress(b"".join(others)) + made.flush(zlib.Z_SYNC_FLUSH)
    return body(whole, end(made.compress(last) + made.flush()), encoding="gzip")


def dropped(content: bytes) -> Served:
    """A file whose connection ends in the last line."""
    *others, last = lines_of(content)
    return body(*others, last[:50], error=httpx2.RemoteProtocolError("peer closed connection"))


HTML = f"<html><body>Blocked: {SECRET}</body></html>".encode()
ERROR = json.dumps({"type": "error", "error": {"type": "api_error", "message": SECRET}}).encode()

WHOLE: dict[str, Callable[[bytes], Served]] = {
    "as it is": body,
    "byte by byte": lambda content: Served([content[at : at + 1] for at in range(len(content))]),
    "CRLF": lambda content: body(content.replace(b"\n", b"\r\n")),
    "byte order mark": lambda content: body(b"\xef\xbb\xbf" + content),
    "blank lines": lambda content: body(b"\n \r\n".join([b"", *lines_of(content), b""])),
    "twice": lambda content: body(content, content),
    "no last newline": lambda content: body(content.rstrip(b"\n")),
    "gzip": lambda content: body(gzip.compress(content), encoding="gzip"),
    "dropped after its end": lambda content: body(content.rstrip(b"\n"), error=httpx2.ReadError("reset")),
    "HTML before it": lambda content: body(HTML, b"\n", content),
    "an error behind it": lambda content: body(content, ERROR),
    "names that are none": lambda content: body(b'{"custom_id": "\\ud800"}\n{"custom_id": "\xc3\xa9"}\n', content),
    "nests a little": lambda content: with_last(content, lambda line: deep(line, 450)),
    "many lists, not deep": lambda content: with_last(content, lambda line: edited(line, more=[[{}]] * 1000)),
    "NaN": lambda content: with_last(content, lambda line: edited(line, more=float("nan"))),
    "half a character": lambda content: with_last(content, lambda line: edited(line, more="\ud800")),
}
"""What has all results, whatever else there is."""

SHORT: dict[str, Callable[[bytes], Served]] = {
    "cut in the last line": lambda content: with_last(content, lambda line: line[: len(line) // 2]),
    "cut at its first byte": lambda content: with_last(content, lambda line: line[:1]),
    "dropped in the last line": dropped,
    "cut gzip": lambda content: gzipped(content, lambda end: end[:20]),
    "missing": lambda content: with_last(content, lambda _: b""),
    "another's": lambda content: with_last(content, lambda _: b'{"custom_id": "x", "result": {"type": "expired"}}\n'),
    "nests too deep": lambda content: with_last(content, lambda line: deep(line, 100_000)),
    "nests a little too deep": lambda content: with_last(content, lambda line: deep(line, 600)),
    "not UTF-8": lambda content: with_last(content, lambda line: line.replace(b"Summary", b"\xff\xfe")),
    "an endless number": lambda content: with_last(
        content, lambda line: edited(line, more="n").replace(b'"n"', b"1" * 9999)
    ),
}
"""What has all results but the last."""

AMONG_OTHERS: dict[str, Callable[[bytes], Served]] = {
    "broken gzip": lambda content: gzipped(content, lambda end: end[:20] + b"\xff" * 100),
    "a list": lambda content: with_last(content, lambda line: b"[" + line.rstrip() + b"]\n"),
    "a name that is none": lambda content: with_last(content, lambda _: b'{"custom_id": 5}\n'),
}
"""The same, but what is in its place would tell of no result, if it stood alone."""

LONG: dict[str, Callable[[bytes], Served]] = {
    "a long line": lambda content: longer(content, 65),
    "a long line without end": lambda content: longer(content, 70, ended=False),
    "a line of more than all that is passed over": lambda content: longer(content, 1100),
}
"""What has a line of more bytes than an answer may have."""

OTHER: dict[str, Callable[[bytes], Served]] = {
    "HTML": lambda _: body(HTML, kind="text/html"),
    "HTML by the wrong name": lambda _: body(HTML),
    "an error with 200": lambda _: body(ERROR, kind="application/json"),
    "a list": lambda _: body(b"[1]"),
    "a number": lambda _: body(b"5"),
    "nests and says nothing": lambda _: body(b"[" * 100_000),
    "502": lambda _: body(HTML, status=502, kind="text/html"),
    "dropped at once": lambda _: body(error=httpx2.RemoteProtocolError("peer closed connection")),
    "gzip that is none": lambda _: body(HTML, encoding="gzip"),
}
"""What is no results file."""


class Between(httpx2.AsyncBaseTransport):
    """Stands between client and simulator, and serves results files otherwise, batch by batch."""

    def __init__(self, simulator: Simulator, change: Callable[[int, int, bytes], Served | None]) -> None:
        self._inner = simulator.transport()
        self._change = change
        self.readings: dict[str, int] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        path = request.url.path
        if not path.endswith("/results"):
            return response
        reading = self.readings[path] = self.readings.get(path, 0) + 1
        number = list(self.readings).index(path) + 1
        served = self._change(number, reading, await response.aread())
        return response if served is None else served.response()


def client_of(transport: httpx2.AsyncBaseTransport) -> anthropic.AsyncAnthropic:
    """A client of the SDK that sends through a transport."""
    http_client = httpx2.AsyncClient(transport=transport)
    return anthropic.AsyncAnthropic(api_key="sk-sim-1", http_client=http_client, max_retries=0)


def governed(transport: httpx2.AsyncBaseTransport) -> Client:
    """A governed client that sends through a transport."""
    return Client(sdk=client_of(transport), log=False, retry=RetryOptions(base_s=0.001))


def prompts(size: int) -> Iterator[Request]:
    """So many requests."""
    return (
        {"custom_id": f"row-{n}", "params": {"messages": [{"role": "user", "content": f"{SECRET} {n}"}]}}
        for n in range(size)
    )


async def ran(claude: Client, size: int, **options: Any) -> list[FanOutResult]:
    """All results of a run."""
    async with claude.batch(prompts(size), **{"model": MODEL, "max_tokens": 100, **options}) as results:
        return [result async for result in results]


def check(results: Sequence[FanOutResult], size: int) -> dict[int, FanOutResult]:
    """Each of `prompts` has one result, its own where it is an answer; by index."""
    found = {result.index: result for result in results}
    assert len(found) == len(results)
    assert sorted(found) == list(range(size))
    for result in results:
        assert result.custom_id == f"row-{result.index}"
        if result.ok:
            assert result.message is not None
            assert f"{SECRET} {result.index}" in json.dumps(result.message.to_dict())
    return found


def submitted(simulator: Simulator) -> list[int]:
    """The sizes of the batches that were submitted."""
    return [len(entry.body["requests"]) for entry in simulator.journal if entry.path == BATCHES and entry.body]


def check_says_nothing(error: BaseException | None) -> None:
    """Neither an error nor what is below it quotes what was served."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        told = [str(error), repr(error.args), repr(getattr(error, "__notes__", None)), repr(vars(error))]
        assert not any(SECRET in each for each in told)
        assert not hasattr(error, "doc")
        error = error.__cause__ or error.__context__


# Once, or always.


@pytest.mark.slow
@pytest.mark.parametrize("change", WHOLE.values(), ids=WHOLE)
async def test_what_is_whole_is_delivered_at_the_first_reading(
    virtual_time: VirtualTime, tmp_path: Path, change: Callable[[bytes], Served]
) -> None:
    """Whatever stands between the results, or in them; and the journal is one that can be read again."""
    simulator = Simulator()
    between = Between(simulator, lambda _number, _reading, content: change(content))
    async with governed(between) as claude:
        results = await ran(claude, 4, journal=tmp_path / "run.jsonl")
        assert all(result.ok for result in check(results, 4).values())
        assert len(await ran(claude, 4, journal=tmp_path / "run.jsonl", replay=True)) == 4
    assert submitted(simulator) == [4]
    assert list(between.readings.values()) == [1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [*SHORT.values(), *AMONG_OTHERS.values(), *OTHER.values()], ids=[*SHORT, *AMONG_OTHERS, *OTHER]
)
async def test_what_comes_otherwise_a_few_times_costs_nothing(
    virtual_time: VirtualTime, change: Callable[[bytes], Served]
) -> None:
    """It is read again, each answer comes once, and nothing is submitted again."""
    simulator = Simulator()
    between = Between(simulator, lambda _number, reading, content: change(content) if reading <= 4 else None)
    async with governed(between) as claude:
        results = await ran(claude, 4)
    assert all(result.ok for result in check(results, 4).values())
    assert submitted(simulator) == [4]


@pytest.mark.slow
@pytest.mark.parametrize("change", [*SHORT.values(), *AMONG_OTHERS.values()], ids=[*SHORT, *AMONG_OTHERS])
async def test_what_stays_missing_is_submitted_again(
    virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture, change: Callable[[bytes], Served]
) -> None:
    """After five readings that brought nothing; what is whole is delivered as it is."""
    simulator = Simulator()
    between = Between(simulator, lambda number, _reading, content: change(content) if number == 1 else None)
    async with governed(between) as claude:
        results = check(await ran(claude, 4), 4)
    assert all(result.ok for result in results.values())
    assert sorted(result.attempts or 0 for result in results.values()) == [1, 1, 1, 2]
    assert submitted(simulator) == [4, 1]
    assert list(between.readings.values()) == [6, 1]
    assert "1 results of msgbatch_" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("governs", [True, False], ids=["governed", "by itself"])
@pytest.mark.parametrize("change", SHORT.values(), ids=SHORT)
async def test_what_never_comes_is_a_failure_of_its_item(
    virtual_time: VirtualTime, tmp_path: Path, change: Callable[[bytes], Served], governs: bool
) -> None:
    """As often as it may be submitted; then it is told, and asked again on request only, as it may be paid for."""
    simulator = Simulator()
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "journal": tmp_path / "run.jsonl"}
    between = Between(simulator, lambda _number, _reading, content: change(content))
    sdk = client_of(between)
    async with Client(sdk=sdk, log=False) as claude:
        one = claude.sdk if governs else sdk
        async with MessageBatches(one, prompts(4), **options) as run:
            results = check([result async for result in run], 4)
        (failed,) = (result for result in results.values() if not result.ok)
        assert isinstance(failed.error, ItemFailed)
        assert (failed.error.result, failed.error.error_type) == ("errored", "missing_result")
        assert failed.attempts == 3
        assert "retry_failed" in json.dumps(failed.to_dict())
        check_says_nothing(failed.error)
        assert submitted(simulator) == [4, 1, 1]
        async with MessageBatches(one, prompts(4), **options) as run:
            assert [result async for result in run] == []
        async with MessageBatches(one, prompts(4), **options, replay=True) as run:
            replayed = {result.custom_id: result.error for result in [result async for result in run]}
        assert str(replayed[failed.custom_id]) == "the item errored: missing_result"
    async with governed(simulator.transport()) as claude:
        (again,) = await ran(claude, 4, journal=tmp_path / "run.jsonl", retry_failed=True)
    assert again.ok


@pytest.mark.slow
@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
async def test_what_is_no_results_file_is_sat_out_and_then_told(
    virtual_time: VirtualTime, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[bytes], Served]
) -> None:
    """For a day or so, as any outage is; nothing is paid for again, now or by the next run."""
    simulator = Simulator()
    between = Between(simulator, lambda _number, _reading, content: change(content))
    options: dict[str, Any] = {"journal": tmp_path / "run.jsonl", "poll_s": HOUR_S}
    async with governed(between) as claude:
        with pytest.raises((NoResults, anthropic.APIError, httpx2.TransportError, httpx2.DecodingError)) as caught:
            await ran(claude, 4, **options)
    if not isinstance(caught.value, anthropic.APIStatusError):
        check_says_nothing(caught.value)
    assert 25 * HOUR_S < virtual_time.now() < 30 * HOUR_S
    assert "are read again" in caplog.text
    async with governed(simulator.transport()) as claude:
        assert all(result.ok for result in check(await ran(claude, 4, **options), 4).values())
    assert submitted(simulator) == [4]


@pytest.mark.slow
async def test_a_404_for_a_while_costs_nothing(virtual_time: VirtualTime) -> None:
    """A batch that has just ended may have its results a moment later."""
    simulator = Simulator()
    gone = b'{"type":"error","error":{"type":"not_found_error","message":"none"}}'
    between = Between(simulator, lambda _number, reading, _content: body(gone, status=404) if reading <= 4 else None)
    async with governed(between) as claude:
        assert all(result.ok for result in check(await ran(claude, 4), 4).values())
    assert submitted(simulator) == [4]


# A batch with one request.


@pytest.mark.slow
@pytest.mark.parametrize("change", SHORT.values(), ids=SHORT)
async def test_a_single_result_that_never_comes_whole_is_told_too(
    virtual_time: VirtualTime, change: Callable[[bytes], Served]
) -> None:
    """Nothing whole stands before it, and the file is one of results all the same."""
    simulator = Simulator()
    between = Between(simulator, lambda _number, _reading, content: change(content))
    async with governed(between) as claude:
        (result,) = await ran(claude, 1, max_attempts=2)
    assert str(result.error) == "the item errored: missing_result"
    assert submitted(simulator) == [1, 1]


# Memory, and what has no end.


@pytest.mark.slow
@pytest.mark.parametrize("change", LONG.values(), ids=LONG)
async def test_a_long_line_is_passed_over_in_bounded_memory(
    virtual_time: VirtualTime, change: Callable[[bytes], Served]
) -> None:
    """It is one item's result, which is asked again; others go on, and the memory is that of the bound."""
    simulator = Simulator()
    between = Between(
        simulator, lambda number, reading, content: change(content) if (number, reading) == (1, 1) else None
    )
    async with governed(between) as claude:
        assert all(result.ok for result in check(await ran(claude, 3), 3).values())
    assert submitted(simulator) == [3]


@pytest.mark.slow
def test_memory_is_bounded_whatever_comes() -> None:
    """A line of 1 GiB takes no more than the bound and what makes it grow; a file of nothing else comes to an end."""
    lines = ResultLines(most=10)
    tracemalloc.start()
    try:
        fed = 0
        while not lines.over:
            assert list(lines.feed(b'{"custom_id": "' + b"x" * MIB)) == []
            fed += 1
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 160 * MIB
    assert 1000 < fed < 1100
    assert list(lines.end()) == []
    assert lines.begun
    assert not lines.other


@pytest.mark.slow
@pytest.mark.parametrize("junk", [b"\n" * 10_000, HTML * 1000 + b"\n"], ids=["blank lines", "HTML"])
def test_a_file_of_nothing_ends(junk: bytes) -> None:
    """However short its lines are."""
    lines = ResultLines(most=10)
    fed = 0
    while not lines.over and fed < 100_000:
        fed += 1
        assert list(lines.feed(junk)) == []
    assert lines.over
    assert not lines.begun


@pytest.mark.lengthy
def test_a_page_without_an_end_is_no_result() -> None:
    """Even if it has a brace where a piece of it begins."""
    lines = ResultLines(most=10)
    for piece in [b"<html>", *[b"{" + b"x" * MIB] * 70]:
        assert list(lines.feed(piece)) == []
    assert list(lines.end()) == []
    assert (lines.begun, lines.other) == (False, True)


async def test_a_file_that_says_the_same_for_ever_ends(virtual_time: VirtualTime) -> None:
    """Ten times as many lines as there were requests are enough."""
    simulator = Simulator()
    served = 0

    def endless(content: bytes) -> Iterator[bytes]:
        nonlocal served
        while served < 10_000:
            served += 1
            yield lines_of(content)[0]

    between = Between(simulator, lambda _number, reading, content: Served(endless(content)) if reading == 1 else None)
    async with governed(between) as claude:
        assert all(result.ok for result in check(await ran(claude, 3), 3).values())
    assert served == 30


@pytest.mark.lengthy
def test_a_long_line_spoils_no_other() -> None:
    """What comes behind it counts, in the same chunk too."""
    lines = ResultLines(most=10)
    first = list(lines.feed(b'{"custom_id": "a"}\n{"custom_id": "b", "x": "'))
    for _ in range(65):
        first += lines.feed(b"x" * MIB)
    last = list(lines.feed(b'"}\n{"custom_id": "c"}\n{"custom_id": "d"}'))
    assert [line["custom_id"] for line in [*first, *last, *lines.end()]] == ["a", "c", "d"]
    assert not lines.over
    assert repr(lines).startswith("<ResultLines, 0 bytes held")


# What a look says instead.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
@pytest.mark.parametrize(
    "content", [HTML, b"[" * 100_000, b"\xff", b"5", ERROR], ids=["HTML", "deep", "bytes", "5", "error"]
)
@pytest.mark.parametrize("ending", ["", "/cancel"])
async def test_an_answer_about_a_batch_that_is_none_is_asked_for_again(
    virtual_time: VirtualTime, kind: str, content: bytes, ending: str
) -> None:
    """Whoever is asked how a batch is, also on the way to its results, may say anything for a while."""
    simulator = Simulator(batch=BatchOptions(duration_s=30))
    inner, left = simulator.transport(), 8

    class Odd(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            nonlocal left
            response = await inner.handle_async_request(request)
            path = request.url.path
            if not path.startswith(BATCHES + "/") or path.endswith("/results") or not path.endswith(ending):
                return response
            # Every second one.
            left -= 1
            if left < 0 or left % 2:
                return response
            return httpx2.Response(200, headers={"content-type": kind}, content=content)

    async with governed(Odd()) as claude, claude.batch(prompts(3), model=MODEL, max_tokens=9) as results:
        if ending:
            await anyio.sleep(3)
            await results.cancel()
        found = [result async for result in results]
    check(found, 3)
    assert submitted(simulator) == [3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "result",
    [
        {"type": SECRET},
        {"type": {SECRET: 1}},
        {"type": "succeeded", "message": {"content": [], "_fields_set": 5}},
        {"type": "errored", "error": {"error": {"type": [SECRET], "message": SECRET}}},
        {"type": "succeeded", "message": {"content": SECRET}},
        [SECRET],
        None,
    ],
)
async def test_a_result_of_a_strange_form_is_one_items_failure(virtual_time: VirtualTime, result: object) -> None:
    """It is not quoted in what is told of it, and the others are answered."""
    simulator = Simulator()

    def strange(content: bytes) -> Served:
        return with_last(content, lambda line: json.dumps({**json.loads(line), "result": result}).encode() + b"\n")

    between = Between(simulator, lambda _number, _reading, content: strange(content))
    async with governed(between) as claude:
        results = check(await ran(claude, 3), 3)
    (failed,) = (each for each in results.values() if not each.ok)
    assert isinstance(failed.error, ItemFailed)
    assert failed.error.error_type == "unknown_result"
    check_says_nothing(failed.error)
    assert submitted(simulator) == [3]


# Anything, in any order.


@pytest.mark.slow
@settings(max_examples=25)
@given(st.data())
def test_nothing_is_lost_or_doubled_however_results_are_served(data: st.DataObject) -> None:
    """Whole ones, short ones and others alternate, over several runs with one journal: an item has one result."""
    size = data.draw(st.integers(1, 7))
    kinds = st.sampled_from([*WHOLE.values(), *SHORT.values(), *OTHER.values()])
    simulator = Simulator(batch=BatchOptions(duration_s=1))

    def change(number: int, reading: int, content: bytes) -> Served | None:
        # In the end it is served as it is.
        return data.draw(kinds)(content) if reading < 9 and number < 6 else None

    async def run() -> None:
        async with governed(Between(simulator, change)) as claude:
            batch_size, attempts = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
            results = check(await ran(claude, size, batch_size=batch_size, max_attempts=attempts), size)
        for result in results.values():
            assert result.ok or str(result.error) == "the item errored: missing_result"
            check_says_nothing(result.error)
            assert result.ok or result.attempts == attempts

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        logging.getLogger("penstock").setLevel(logging.ERROR)
        try:
            runner.run(run())
        finally:
            logging.getLogger("penstock").setLevel(logging.NOTSET)
