"""The way of requests into a run."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, TypeAlias

import anyio
import pytest

from penstock import FanOutResult
from penstock.batch.journal import Journal
from penstock.cli.run.feed import Feed
from penstock.cli.run.lines import BadInput, Input
from penstock.cli.run.requests import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FileFeed: TypeAlias = "Callable[[str], Feed]"


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


async def journal_of(path: Path, names: list[str]) -> Journal:
    """A journal that has answers to requests of these names."""
    message = {"id": "msg_1", "type": "message", "content": [], "usage": {}}
    async with Journal(path) as journal:
        for name in names:
            line = {"custom_id": name, "result": {"type": "succeeded", "message": message}}
            journal.write(FanOutResult.from_line(line, index=0), request=None)
    return Journal(path)


async def test_a_file_is_counted_before_it_is_read(file_feed: FileFeed, path: Path) -> None:
    """A check tells how many requests there are; then they come, each as it is."""
    feed = file_feed("one\ntwo\n")
    feed.check()
    await feed.wait()
    assert feed.total == 2
    assert [name_of(fields) async for fields in feed] == ["0", "1"]
    feed.close()
    assert repr(feed) == f"<Feed of {path}>"


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


@pytest.mark.parametrize("names", [[], ["1"]])
async def test_a_journal_of_these_requests_will_do(names: list[str], file_feed: FileFeed, path: Path) -> None:
    """One that is new, or holds any of them: what it answers is the run's to pass over."""
    feed = file_feed("one\ntwo")
    async with await journal_of(path.with_name("out"), names) as journal:
        await feed.look_up(journal)
        assert [name_of(fields) async for fields in feed] == ["0", "1"]


async def test_the_journal_of_another_run_is_refused(file_feed: FileFeed, path: Path) -> None:
    """A journal that holds none of the requests is that of another run."""
    feed = file_feed("one")
    async with await journal_of(path.with_name("out"), ["a"]) as journal:
        with pytest.raises(BadInput, match="none of these requests is in the file of results"):
            await feed.look_up(journal)


async def test_a_pipe_is_not_looked_up(piped: tuple[Feed, int], path: Path) -> None:
    """It can be read only once."""
    feed, writer = piped
    os.write(writer, b"new\n")
    os.close(writer)
    async with await journal_of(path.with_name("out"), ["a"]) as journal:
        await feed.look_up(journal)
        await feed.wait()
        assert name_of(await anext(feed)) == "0"
