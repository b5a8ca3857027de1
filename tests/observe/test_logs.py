from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.context import labels
from penstock._core.usage import Usage
from penstock.events import (
    BackgroundFailed,
    BreakerChanged,
    CallEnded,
    Event,
    GiveBackFailed,
    KeyChanged,
    LimitsLearned,
    Observers,
    QuotaCooled,
    RetryScheduled,
)
from penstock.guards.record import Record
from penstock.observe.logs import BufferedHandler, JSONFormatter, LogObserver, json_handler
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDED = CallEnded(
    call_id="abc-1",
    request_id="req_1",
    kind="messages",
    model="claude-sonnet-5-5",
    stream=True,
    status=200,
    failure=None,
    error_type=None,
    stop_reason="end_turn",
    attempts=2,
    usage=Usage(
        input_tokens=10, output_tokens=5, cache_creation_input_tokens=20, cache_read_input_tokens=70, estimated=True
    ),
    latency_s=1.23456,
    queued_s=0.5,
    first_token_s=0.25,
    key="key-12345678",
    labels={"user": "u1"},
)


class Log:
    """A logger with a handler that writes every line at once, and what it wrote."""

    def __init__(self, level: int) -> None:
        self.logger = logging.getLogger(f"test.{id(self)}")
        self.logger.propagate = False
        self.logger.setLevel(level)
        self.stream = io.StringIO()
        self.handler = json_handler(self.stream, most_lines=1)
        self.logger.addHandler(self.handler)
        self.observer = LogObserver(self.logger)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def log() -> Iterator[Log]:
    """A log of everything."""
    log = Log(logging.DEBUG)
    yield log
    log.handler.close()


def test_a_call_is_one_line_with_all_its_fields(log: Log) -> None:
    """A line tells who asked for what, how it ended, what it used and how long it took."""
    log.observer(ENDED)
    (line,) = log.lines
    written = datetime.fromisoformat(line.pop("timestamp"))
    assert written.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)
    assert line == {
        "level": "info",
        "event": "call_ended",
        "call_id": "abc-1",
        "request_id": "req_1",
        "kind": "messages",
        "model": "claude-sonnet-5-5",
        "stream": True,
        "status": 200,
        "failure": None,
        "error_type": None,
        "stop_reason": "end_turn",
        "attempts": 2,
        "latency_ms": 1234.6,
        "queue_ms": 500.0,
        "first_token_ms": 250.0,
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_write_tokens": 20,
        "cache_read_tokens": 70,
        "estimated": True,
        "key": "key-12345678",
        "labels": {"user": "u1"},
    }


def test_a_call_without_content_has_no_first_token_time(log: Log) -> None:
    """What didn't happen is null, so that every line has the same fields."""
    log.observer(replace(ENDED, first_token_s=None, request_id=None))
    assert (log.lines[0]["first_token_ms"], log.lines[0]["request_id"]) == (None, None)


@pytest.mark.parametrize(
    ("event", "level", "name"),
    [
        (replace(ENDED, failure="overloaded"), "warning", "call_ended"),
        (replace(ENDED, failure="cancelled"), "info", "call_ended"),
        (replace(ENDED, failure="abandoned"), "info", "call_ended"),
        (RetryScheduled(call_id="abc-1", attempt=1, delay_s=0.5, reason="overloaded"), "debug", "retry_scheduled"),
        (BreakerChanged(model_class="opus-4", before="closed", after="open"), "warning", "breaker_changed"),
        (BreakerChanged(model_class="opus-4", before="half_open", after="closed"), "info", "breaker_changed"),
        (KeyChanged(key="key-1", state="quarantined", reason="401", again_s=60.0), "warning", "key_changed"),
        (KeyChanged(key="key-1", state="ok", reason="accepted again", again_s=None), "info", "key_changed"),
        (QuotaCooled(quota="q", model_class="opus-4", seconds=2.0), "info", "quota_cooled"),
        (GiveBackFailed(call_id="abc-1", error_type="KeyError"), "error", "give_back_failed"),
        (BackgroundFailed(error_type="OSError"), "error", "background_failed"),
    ],
)
def test_every_event_has_its_level(event: Event, level: str, name: str, log: Log) -> None:
    """What went wrong is a warning, what the caller wanted is none, and retries are for debugging."""
    log.observer(event)
    assert [(line["level"], line["event"]) for line in log.lines] == [(level, name)]


def test_other_events_show_their_fields(log: Log) -> None:
    """A line of any event holds all that the event says."""
    log.observer(
        LimitsLearned(
            quota="q",
            model_class="opus-4",
            requests_per_minute=50.00049,
            input_tokens_per_minute=float("inf"),
            output_tokens_per_minute=None,
        )
    )
    (line,) = log.lines
    assert line["requests_per_minute"] == 50.0
    assert line["input_tokens_per_minute"] is None
    assert line["output_tokens_per_minute"] is None
    assert line["level"] == "debug"


def test_an_unknown_value_is_shown_by_its_type_only(log: Log) -> None:
    """An object could show content, so that only its type is logged."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class HTTPSeen(Event):
        content: list[str]
        counts: dict[str, int]

    log.observer(HTTPSeen(content=["secret"], counts={"a": 1}))
    assert log.lines[0]["content"] == "list"
    assert log.lines[0]["counts"] == {"a": 1}


@given(st.text(), st.text(), st.text())
def test_no_text_breaks_a_line(name: str, value: str, model: str) -> None:
    """Whatever a label or a model is called, an event is one line of ASCII that is valid JSON."""
    log = Log(logging.INFO)
    log.observer(replace(ENDED, labels={name: value}, model=model))
    text = log.stream.getvalue()
    log.handler.close()
    assert text.isascii()
    assert len(text.splitlines()) == 1
    assert json.loads(text)["labels"] == {cut(name): cut(value)}


def cut(text: str) -> str:
    """A text as it may appear in a line."""
    return text if len(text) <= 200 else text[:199] + "…"


@pytest.mark.parametrize("value", ["a\nb", "\x1b[31m", "\u2028", "\x85", "\ud800", "é"])
def test_control_characters_are_escaped(value: str, log: Log) -> None:
    """Line breaks of every kind, escape sequences and lone surrogates can't leave their field."""
    log.observer(replace(ENDED, labels={"user": value}))
    text = log.stream.getvalue()
    assert text.isascii()
    assert text.count("\n") == 1
    assert log.lines[0]["labels"] == {"user": value}


def test_huge_texts_are_cut_and_many_labels_left_out(log: Log) -> None:
    """A line is bounded, whatever a caller puts into labels or the name of a model."""
    many = {f"{number}-{'n' * 300}": "v" * 100_000 for number in range(1_000)}
    log.observer(replace(ENDED, labels=many, model="m" * 100_000))
    (line,) = log.lines
    assert len(line["labels"]) == 32
    assert all(len(name) == len(value) == 200 for name, value in line["labels"].items())
    assert line["model"] == "m" * 199 + "…"
    assert len(log.stream.getvalue()) < 20_000


def test_a_level_that_is_off_costs_no_line() -> None:
    """Below the logger's level nothing is written, and nothing is even looked at."""
    log = Log(logging.WARNING)

    class Touchy(Usage):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    log.observer(replace(ENDED, usage=Touchy()))
    log.observer(RetryScheduled(call_id="abc-1", attempt=1, delay_s=0.5, reason="overloaded"))
    assert log.lines == []
    log.handler.close()


def test_the_applications_structlog_is_left_alone(log: Log) -> None:
    """The application's processors neither see our lines, nor are they replaced."""
    seen: list[object] = []

    def see(logger: object, method: str, event: Any) -> Any:
        seen.append(event)
        return event

    structlog.configure(processors=[see])
    try:
        LogObserver(log.logger)(ENDED)
        assert structlog.get_config()["processors"] == [see]
    finally:
        structlog.reset_defaults()
    assert seen == []
    assert [line["event"] for line in log.lines] == ["call_ended"]


@pytest.mark.slow
def test_nothing_is_printed_until_a_handler_is_added_and_waiting_lines_are_written_at_exit() -> None:
    """Without a handler not even an error shows; with ours, what waits at exit goes to standard error."""
    script = (
        "import logging\n"
        "from penstock.events import BackgroundFailed, QuotaCooled\n"
        "from penstock.observe.logs import LogObserver, json_handler\n"
        "observer = LogObserver()\n"
        "observer(BackgroundFailed(error_type='OSError'))\n"
        "logger = logging.getLogger('penstock')\n"
        "logger.setLevel(logging.INFO)\n"
        "logger.addHandler(json_handler())\n"
        "observer(QuotaCooled(quota='q', model_class='opus-4', seconds=2.0))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == ""
    assert json.loads(result.stderr)["event"] == "quota_cooled"


def test_it_logs_to_the_logger_of_the_package() -> None:
    """Unless told otherwise, lines go to `penstock`, which stays silent by itself."""
    assert repr(LogObserver()) == "<LogObserver to 'penstock'>"
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("penstock").handlers)


def test_waiting_lines_are_written_when_logging_shuts_down() -> None:
    """The standard library closes all handlers at exit, and ours then writes what waits."""
    stream = io.StringIO()
    handler = json_handler(stream)
    handler.handle(record("last words"))
    logging.shutdown([weakref.ref(handler)])
    assert json.loads(stream.getvalue())["event"] == "last words"


def test_the_handler_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output belongs to the application."""
    handler = json_handler()
    handler.handle(record("a"))
    handler.close()
    captured = capsys.readouterr()
    assert (captured.out, json.loads(captured.err)["event"]) == ("", "a")


def record(message: str, *, at: float = 0.0, level: int = logging.INFO) -> logging.LogRecord:
    """A record made at a given time."""
    made = logging.LogRecord("penstock", level, "", 0, message, (), None)
    made.created = at
    return made


def test_lines_wait_until_there_are_many() -> None:
    """Lines are written together when `most_lines` of them wait."""
    stream = io.StringIO()
    handler = BufferedHandler(stream, most_lines=3)
    handler.handle(record("a"))
    handler.handle(record("b"))
    assert (stream.getvalue(), repr(handler)) == ("", "<BufferedHandler 2 lines waiting>")
    handler.handle(record("c"))
    handler.handle(record("d"))
    assert stream.getvalue() == "a\nb\nc\n"
    handler.close()
    assert stream.getvalue() == "a\nb\nc\nd\n"


class Awaited(io.StringIO):
    """A stream that another thread writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def flush(self) -> None:
        super().flush()
        self.written.set()


def test_a_line_is_written_in_time_though_no_other_comes() -> None:
    """A thread writes what has waited for `oldest_s`, again and again; nobody has to log anything more."""
    stream = Awaited()
    handler = BufferedHandler(stream, oldest_s=0.01)
    for expected in ("a\n", "a\nb\n"):
        stream.written.clear()
        handler.handle(record(expected[-2]))
        assert stream.written.wait(5)
        assert stream.getvalue() == expected
    handler.close()


def test_lines_need_no_more_than_one_thread() -> None:
    """However many come while one waits; and closing waits for none."""
    before = threading.active_count()
    handler = BufferedHandler(io.StringIO(), most_lines=2, oldest_s=1e300)
    for message in "abcdefg":
        handler.handle(record(message))
    assert threading.active_count() == before + 1
    handler.close()
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)
    assert threading.active_count() == before


def test_lines_are_written_at_once_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the interpreter exits; so are those that come when the handler is closed, and where none may wait."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Timer, "start", refuse)
        handler = BufferedHandler(stream)
        handler.handle(record("a"))
        assert stream.getvalue() == "a\n"
    handler.close()
    handler.handle(record("b"))
    assert stream.getvalue() == "a\nb\n"
    BufferedHandler(stream, oldest_s=0).handle(record("c"))
    assert stream.getvalue() == "a\nb\nc\n"


def test_a_line_that_can_t_be_written_in_time_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """On the standard error, as any other; the thread ends in order."""
    stream = io.StringIO()
    handler = BufferedHandler(stream, oldest_s=0.02)
    handler.handle(record("a"))
    timer = handler._timer
    assert timer is not None
    stream.close()
    timer.join(5)
    assert "I/O operation on closed file" in capsys.readouterr().err
    handler.close()


def test_an_error_is_written_at_once() -> None:
    """What may be the last words doesn't wait."""
    stream = io.StringIO()
    handler = BufferedHandler(stream)
    handler.handle(record("a"))
    handler.handle(record("b", level=logging.ERROR))
    assert stream.getvalue() == "a\nb\n"
    handler.flush()
    assert stream.getvalue() == "a\nb\n"
    handler.close()


def test_a_stream_that_fails_breaks_no_call(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines that can't be written are dropped, and the standard library reports it; the caller hears nothing."""
    stream = io.StringIO()
    handler = BufferedHandler(stream, most_lines=1)
    stream.close()
    handler.handle(record("a"))
    assert "I/O operation on closed file" in capsys.readouterr().err
    assert repr(handler) == "<BufferedHandler 0 lines waiting>"
    handler.close()


@pytest.mark.parametrize("options", [{"most_lines": 0}, {"oldest_s": -1.0}, {"oldest_s": float("nan")}])
def test_options_of_the_handler_are_checked(options: dict[str, Any]) -> None:
    """A buffer that could hold nothing, or time that runs backwards, is refused."""
    with pytest.raises(ValueError, match="most_lines"):
        json_handler(**options)


def test_other_records_become_json_lines_too() -> None:
    """Whatever else is logged through the handler has the same form, with its exception."""
    stream = io.StringIO()
    handler = json_handler(stream)
    handler.handle(record("100 %\nsure", at=0.0))
    error = KeyError("k")
    broken = (KeyError, error, error.__traceback__)
    handler.handle(logging.LogRecord("app", logging.ERROR, "", 0, "broke %s", ("it",), broken))
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first == {
        "timestamp": "1970-01-01T00:00:00+00:00",
        "level": "info",
        "event": "100 %\nsure",
        "logger": "penstock",
    }
    assert (second["event"], second["logger"]) == ("broke it", "app")
    assert "KeyError: 'k'" in second["exception"]
    handler.close()


def test_a_line_passes_other_handlers_as_it_is(log: Log) -> None:
    """A handler of the application's own gets the JSON line as the message."""
    stream = io.StringIO()
    log.logger.addHandler(logging.StreamHandler(stream))
    log.observer(replace(ENDED, labels={"user": "100 %s"}))
    assert json.loads(stream.getvalue())["labels"] == {"user": "100 %s"}
    assert isinstance(log.handler.formatter, JSONFormatter)


async def test_no_content_and_no_key_is_ever_logged(log: Log) -> None:
    """A line of a real call holds its labels and numbers, but nothing that was asked, answered or sent as a key."""
    key, prompt, answer = "sk-ant-very-secret", "the-private-prompt", "the-private-answer"
    simulator = Simulator()
    simulator.reply(answer)
    simulator.inject("overloaded", after=1)
    record = Record(observers=Observers((log.observer,)))
    claude = simulator.client(key, max_retries=0, middleware=[record])
    ask: Any = {"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": prompt}]}
    with labels(user="u1"):
        await claude.messages.create(**ask)
        with pytest.raises(anthropic.APIStatusError):
            await claude.messages.create(**ask)
    assert [(line["status"], line["error_type"], line["labels"]["user"]) for line in log.lines] == [
        (200, None, "u1"),
        (529, "overloaded_error", "u1"),
    ]
    text = log.stream.getvalue()
    assert not any(secret in text for secret in (key, prompt, answer))
