"""From a decision to an answer: statuses, headers and bodies of replies, errors and faults."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.simulator.exchange import DROP, HANG, Answer, damaged
from penstock.simulator.stream import Step, stream_steps
from penstock.simulator.wire import ApiError, Json, dump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from penstock.simulator.faults import Fault, HtmlError
    from penstock.simulator.reply import Reply

__all__ = ["Pace", "error_answer", "json_answer", "page_answer", "plain_answer", "silent_answer", "stream_answer"]

JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class Pace:
    """How fast the simulated model is.

    Args:
        latency_s: time to the headers of a stream, 0 or more; for a plain reply the time of generation comes on top.
        tokens_per_s: speed of generation, above 0; None: instantly.
    """

    __slots__ = ("latency_s", "tokens_per_s")

    def __init__(self, latency_s: float, tokens_per_s: float | None) -> None:
        if not (math.isfinite(latency_s) and latency_s >= 0):
            raise ValueError(f"latency_s must be a finite number of seconds, 0 or more, not {latency_s!r}")
        if tokens_per_s is not None and not tokens_per_s > 0:
            raise ValueError(f"tokens_per_s must be above 0, or None, not {tokens_per_s!r}")
        self.latency_s = latency_s
        self.tokens_per_s = math.inf if tokens_per_s is None else tokens_per_s

    def paced(self, steps: Iterable[Step]) -> Iterator[Step]:
        """The same steps, each after the time that its tokens take."""
        for step in steps:
            delay_s = step.delay_s + step.tokens / self.tokens_per_s
            yield Step(step.data, step.name, step.content, step.tokens, delay_s)


def json_answer(
    body: Json, headers: Callable[[], dict[str, str]], status: int = 200, *, delay_s: float = 0.0
) -> Answer:
    """A JSON body, sent in one piece."""
    data = dump(body)
    length = str(len(data))
    return Answer(status, lambda: {**JSON, "content-length": length, **headers()}, (Step(data),), delay_s=delay_s)


def error_answer(
    error: ApiError, request_id: str, headers: Callable[[], dict[str, str]], *, delay_s: float = 0.0
) -> Answer:
    """The API's JSON error."""
    body = error.body(request_id)
    return json_answer(body, lambda: {**headers(), **error.headers}, error.status, delay_s=delay_s)


def page_answer(error: HtmlError, headers: Callable[[], dict[str, str]], *, delay_s: float = 0.0) -> Answer:
    """An error page of the proxy in front."""
    sent = {"content-type": "text/html", "content-length": str(len(error.page))}
    return Answer(error.status, lambda: {**sent, **headers()}, (Step(error.page),), delay_s=delay_s)


def silent_answer(fault: Fault, *, delay_s: float = 0.0) -> Answer:
    """No answer: the connection is cut, or nothing is ever sent."""
    return Answer(None, dict, delay_s=delay_s if fault.name == "reset" else math.inf)


def plain_answer(
    message: Json, reply: Reply, fault: Fault | None, headers: Callable[[], dict[str, str]], pace: Pace
) -> Answer:
    """A whole message, when all of it is generated."""
    delay_s = pace.latency_s + reply.generated / pace.tokens_per_s
    data = dump(message)
    half = data[: len(data) // 2]
    steps: tuple[Step, ...] = (Step(data),)
    length = len(data)
    if fault is not None and fault.name == "bad_json":
        steps, length = (Step(half),), len(half)
    elif fault is not None:
        steps = (Step(half), DROP if fault.name == "truncated" else HANG)
    sent = {**JSON, "content-length": str(length)}
    return Answer(200, lambda: {**sent, **headers()}, steps, delay_s=delay_s, generated=reply.generated)


def stream_answer(
    message: Json,
    reply: Reply,
    fault: Fault | None,
    headers: Callable[[], dict[str, str]],
    pace: Pace,
    *,
    error: bytes,
) -> Answer:
    """Server-sent events as they are generated; `error` is the event that an error within the stream sends."""
    steps: Iterator[Step] = pace.paced(stream_steps(reply, message))
    if fault is not None:
        size = sum(step.content for step in stream_steps(reply, message))
        steps = _ended(damaged(steps, fault, size), fault, error)
    return Answer(200, lambda: {**EVENTS, **headers()}, steps, delay_s=pace.latency_s)


def _ended(steps: Iterator[Step], fault: Fault, error: bytes) -> Iterator[Step]:
    yield from steps
    match fault.name:
        case "stream_error_before_content" | "stream_error_after_content":
            yield Step(error, "error")
        case "stream_drop_before_content" | "stream_drop_after_content" | "truncated":
            yield DROP
        case "stall":
            yield HANG
        case _:
            return
