from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

import pytest

from penstock import Client
from penstock.batch.journal import Journal
from penstock.events import make_harmless
from penstock.observe.logs import LogObserver
from penstock.simulator import Simulator
from penstock.simulator.server import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from penstock.events import Observer

ASK: Any = {"model": "claude-sonnet-5-5", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}


def broken(record: logging.LogRecord) -> Any:
    """Raise as a filter or handler may."""
    raise KeyError("what an application's own code raises")


class BrokenHandler(logging.Handler):
    def __init__(self, raises: Callable[[logging.LogRecord], Any] = broken) -> None:
        super().__init__()
        self._raises = raises

    def emit(self, record: logging.LogRecord) -> None:
        self._raises(record)


def raising_filter_of_handler() -> logging.Handler:
    """A handler that never gets to its work."""
    handler = logging.NullHandler()
    handler.handle = BrokenHandler.handle.__get__(handler)  # type: ignore[method-assign] # its own passes no filter
    handler.addFilter(broken)
    return handler


class BrokenFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return str(broken(record))


def raising_formatter() -> logging.Handler:
    """A handler that asks its formatter, and doesn't catch what that raises."""
    handler = BrokenHandler(lambda record: handler.format(record))  # noqa: PLW0108 - it is not there yet
    handler.setFormatter(BrokenFormatter())
    return handler


@pytest.fixture(params=["handler", "filter of a handler", "formatter", "filter of the logger", "child"])
def logger(request: pytest.FixtureRequest) -> Iterator[logging.Logger]:
    """A logger that hears all, one thing of whose is broken; of `child`, that of the transport alone."""
    made = {"filter of a handler": raising_filter_of_handler, "formatter": raising_formatter}
    name = {"filter of the logger": "penstock", "child": "httpx2"}.get(request.param)
    logger, package = logging.getLogger(name), logging.getLogger("penstock")
    levels = logger.level, package.level
    logger.setLevel(logging.INFO)
    package.setLevel(logging.DEBUG)
    handler = made.get(request.param, BrokenHandler)()
    if request.param in {"filter of the logger", "child"}:
        logger.addFilter(broken)
    else:
        logger.addHandler(handler)
    yield logger
    logger.removeFilter(broken)
    logger.removeHandler(handler)
    logger.setLevel(levels[0])
    package.setLevel(levels[1])


def raising_observer(_: object) -> None:
    """Raise as an observer may."""
    raise ValueError("an observer's own")


@pytest.mark.lengthy
@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_no_paid_call_fails_for_a_broken_log(
    logger: logging.Logger, transport: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever of the application's logging raises, on whatever logger of the way; the standard error tells of it."""
    observers: list[Observer] = [raising_observer, LogObserver(logger)]
    with serving(simulator := Simulator()) as url:
        async with Client(api_keys=["sk-1"], base_url=url, transport=transport, observers=observers) as claude:
            assert (await claude.messages.create(**ASK)).stop_reason == "end_turn"
            async with claude.stream(**ASK) as stream:
                assert await stream.get_final_text()
            async with claude.fan_out(["one", "two"], model=ASK["model"], journal=tmp_path / "run.jsonl") as run:
                assert [result.ok async for result in run] == [True, True]
    assert len(simulator.journal) == 4
    async with Journal(tmp_path / "run.jsonl") as journal:
        assert (journal.answered, journal.failed) == (2, 0)
    err = capsys.readouterr().err
    assert f"a log handler or filter raised KeyError on a line of {logger.name.replace('root', '')}" in err
    assert "an application's own code" not in err


def test_a_broken_standard_error_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is closed, or missing, or told by `logging` to stay silent."""
    logger = logging.getLogger("penstock.of_a_test")
    make_harmless(logger)
    make_harmless(logger)
    logger.addFilter(broken)
    with monkeypatch.context() as patch:
        closed = io.StringIO()
        closed.close()
        for stream in (None, closed):
            patch.setattr("sys.stderr", stream)
            logger.error("a")
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.error("a")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(logging, "raiseExceptions", True)
    logger.error("a")
    assert capsys.readouterr().err == "a log handler or filter raised KeyError on a line of penstock.of_a_test\n"


def test_what_ends_a_program_gets_through() -> None:
    """Only errors are caught."""

    def interrupted(_: logging.LogRecord) -> bool:
        raise KeyboardInterrupt

    logger = logging.getLogger("penstock.of_another_test")
    make_harmless(logger)
    logger.addFilter(interrupted)
    with pytest.raises(KeyboardInterrupt):
        logger.error("a")
