"""The way of requests into a run."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, TypeAlias

import anyio
import anyio.lowlevel
import pytest

from penstock import FanOutResult
from penstock.batch.journal import Journal
from penstock.batch.journal.request import RequestDigest
from penstock.batch.progress import Tally
from penstock.cli.run.feed import Feed
from penstock.cli.run.lines import BadInput, Input
from penstock.cli.run.requests import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FileFeed: TypeAlias = "Callable[[str], Feed]"

COMMON = {"model": "claude-haiku-5-5", "max_tokens": 5}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the input is."""
    return tmp_path / "in.txt"


@pytest.fixture
def file_feed(path: Path) -> Iterator[FileFeed]:
    """Makes a feed from a file with a text."""
    with ExitStack() as stack:

        def make(text: str) -> Feed:
            path.write_text(text)
            return Feed(stack.enter_context(closing(Input.open(str(path)))), Reading())

        yield make


@pytest.fixture
def piped() -> Iterator[tuple[Feed, int]]:
    """A feed at the end of a pipe, and the other end."""
    reader, writer = os.pipe()
    feed = Feed(Input.open(f"/dev/fd/{reader}"), Reading())
    yield feed, writer
    feed.close()
    feed._source.close()
    os.close(reader)


def name_of(fields: dict[str, object]) -> str:
    """The name of a request."""
    return str(fields["custom_id"])


async def journal_of(path: Path, lines: dict[str, tuple[str, bool]]) -> Journal:
    """A journal that holds these requests: by name, the prompt, and whether it was answered."""
    digest = RequestDigest(COMMON)
    message = {"id": "msg_1", "type": "message", "content": [], "usage": {}}
    async with Journal(path) as journal:
        for name, (text, ok) in lines.items():
            result = {"type": "succeeded", "message": message} if ok else {"type": "errored", "error": {}}
            request = digest({"messages": [{"role": "user", "content": text}]})
            journal.write(FanOutResult.from_line({"custom_id": name, "result": result}, index=0), request=request)
    return Journal(path)


async def test_a_file_is_counted_before_it_is_read(file_feed: FileFeed, path: Path) -> None:
    """A check tells how many requests there are; then they come, each as it is."""
    feed = file_feed("one\ntwo\n")
    feed.check()
    await feed.wait()
    assert feed.total == 2
    assert [name_of(fields) async for fields in feed] == ["0", "1"]
    feed.close()
    assert repr(feed) == f"<Feed of {path}, None>"


@pytest.mark.parametrize(("text", "said"), [("", "there are no requests in it"), ("a\n\0", "line 2: holds zero bytes")])
def test_a_bad_file_is_found_by_the_check(text: str, said: str, file_feed: FileFeed, path: Path) -> None:
    """Whatever is wrong with a file is told before the first request comes, with its name."""
    with pytest.raises(BadInput) as bad:
        file_feed(text).check()
    assert str(bad.value).startswith(str(path))
    assert said in str(bad.value)


async def test_a_pipe_is_read_as_it_comes(piped: tuple[Feed, int]) -> None:
    """Of a pipe each request comes as soon as its line is there, before the pipe ends."""
    feed, writer = piped
    feed.check()
    assert feed.total is None
    os.write(writer, b"one\ntw")
    await feed.wait()
    assert name_of(await anext(feed)) == "0"
    with anyio.move_on_after(0.02) as scope:
        await anext(feed)
    assert scope.cancelled_caught
    os.close(writer)


async def test_an_empty_pipe_is_refused(piped: tuple[Feed, int]) -> None:
    """A pipe that ends without a request is an error before anything is made."""
    feed, writer = piped
    os.close(writer)
    with pytest.raises(BadInput, match="there are no requests in it"):
        await feed.wait()


async def test_a_bad_line_ends_a_pipe(piped: tuple[Feed, int]) -> None:
    """What came before a bad line is given, then its error raised."""
    feed, writer = piped
    os.write(writer, b"one\n\xff\ntwo\n")
    os.close(writer)
    await feed.wait()
    assert name_of(await anext(feed)) == "0"
    with pytest.raises(BadInput, match="line 2: not UTF-8"):
        await anext(feed)


@pytest.mark.parametrize(("retry_failed", "expected"), [(False, ["2"]), (True, ["1", "2"])])
async def test_what_is_known_goes_no_further(
    retry_failed: bool, expected: list[str], file_feed: FileFeed, path: Path
) -> None:
    """Requests that the journal holds are passed over, failed ones only if they aren't to be asked again."""
    feed = file_feed("one\ntwo\nthree")
    feed.tally = Tally(total=3, now=0.0)
    async with await journal_of(path.with_name("out"), {"0": ("one", True), "1": ("two", False)}) as journal:
        await feed.look_up(journal, COMMON, retry_failed=retry_failed)
        assert [name_of(fields) async for fields in feed] == expected
    assert feed.tally.resumed == 3 - len(expected)
    assert feed.tally.snapshot(now=1.0).in_flight == len(expected)


@pytest.mark.lengthy
async def test_a_million_known_requests_don_t_hold_up_the_others(file_feed: FileFeed, path: Path) -> None:
    """While known requests are passed over, the event loop runs."""
    feed = file_feed("\n".join(map(str, range(1000))))
    known = {str(number): (str(number), True) for number in range(1000)}
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with await journal_of(path.with_name("out"), known) as journal, anyio.create_task_group() as group:
        await feed.look_up(journal, COMMON, retry_failed=False)
        group.start_soon(turn)
        assert [fields async for fields in feed] == []
        group.cancel_scope.cancel()
    assert turns >= 9


async def test_an_empty_journal_knows_nothing(file_feed: FileFeed, path: Path) -> None:
    """With a new journal, everything is asked."""
    feed = file_feed("one\ntwo")
    async with await journal_of(path.with_name("out"), {}) as journal:
        await feed.look_up(journal, COMMON, retry_failed=False)
        assert [name_of(fields) async for fields in feed] == ["0", "1"]


async def test_changed_requests_are_found_before_anything_is_asked(file_feed: FileFeed, path: Path) -> None:
    """If a name stands in the journal for another request, the line is told, also where it is not the first."""
    feed = file_feed("one\nzwei")
    async with await journal_of(path.with_name("out"), {"0": ("one", True), "1": ("two", True)}) as journal:
        with pytest.raises(BadInput, match=r"line 2: journal .*'1' stands there for another request"):
            await feed.look_up(journal, COMMON, retry_failed=False)


async def test_the_journal_of_another_run_is_refused(file_feed: FileFeed, path: Path) -> None:
    """A journal that holds none of the requests is that of another run."""
    feed = file_feed("one")
    async with await journal_of(path.with_name("out"), {"a": ("one", True)}) as journal:
        with pytest.raises(BadInput, match="none of these requests is in the file of results"):
            await feed.look_up(journal, COMMON, retry_failed=False)


async def test_changed_requests_of_a_pipe_end_it(piped: tuple[Feed, int], path: Path) -> None:
    """A pipe can't be checked before; its first changed request is refused when it comes."""
    feed, writer = piped
    os.write(writer, b"new\none\n")
    os.close(writer)
    async with await journal_of(path.with_name("out"), {"1": ("two", True)}) as journal:
        await feed.look_up(journal, COMMON, retry_failed=False)
        await feed.wait()
        assert name_of(await anext(feed)) == "0"
        with pytest.raises(BadInput, match="line 2: journal"):
            await anext(feed)


async def test_a_failure_may_be_asked_again_as_another_request(file_feed: FileFeed, path: Path) -> None:
    """With the model spelled right, say; without `retry_failed` the line is told."""
    async with await journal_of(path.with_name("out"), {"0": ("one", True), "1": ("two", False)}) as journal:
        feed = file_feed("one\nzwei")
        with pytest.raises(BadInput, match=r"line 2: journal .*'1' stands there for another request.*retry_failed"):
            await feed.look_up(journal, COMMON, retry_failed=False)
        feed = file_feed("one\nzwei")
        await feed.look_up(journal, COMMON, retry_failed=True)
        assert [name_of(fields) async for fields in feed] == ["1"]
