"""The endpoints below `/v1/messages/batches`: creation, pages, states, results.

The rule here: what a batch is like is not decided here but in `batches`; here it is asked for, and written.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, cast

from penstock.simulator import validate
from penstock.simulator.exchange import DROP, HANG, Answer
from penstock.simulator.models import find_model
from penstock.simulator.stream import Step
from penstock.simulator.tokens import count_input
from penstock.simulator.validate import checks
from penstock.simulator.wire import Json, dump, invalid, is_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from penstock.simulator.batches import Batch, Batches, Item, Judge
    from penstock.simulator.clock import Clock
    from penstock.simulator.faults import Fault
    from penstock.simulator.script import Script, ScriptedReply
    from penstock.simulator.wire import Request

__all__ = ["BATCHES", "BatchApi", "document", "judge", "methods_of"]

Act: TypeAlias = "Callable[[], Json | Iterator[bytes]]"

BATCHES = "/v1/messages/batches"
MAX_REQUESTS = 100_000
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_METHODS = {"": ("GET", "POST"), "batch": ("GET", "DELETE"), "cancel": ("POST",), "results": ("GET",)}
_JSON, _LINES_OF_JSON = "application/json", "application/x-jsonl"
_ENDS: dict[str, tuple[Step, ...]] = {"truncated": (DROP,), "bad_json": ()}
# Written together, because each step is waited for.
_LINES = 100


def _place(path: str) -> tuple[str, str]:
    """The kind of endpoint, and the batch's id."""
    _, _, rest = path.removeprefix(BATCHES).partition("/")
    identity, _, action = rest.partition("/")
    return (action or "batch" if identity else ""), identity


def methods_of(request: Request) -> tuple[str, ...] | None:
    """The methods that the request's path takes; None: it is no path of batches."""
    if request.path != BATCHES and not request.path.startswith(BATCHES + "/"):
        return None
    return _METHODS.get(_place(request.path)[0])


def _requests_of(body: Json) -> list[Json]:
    """The requests of a batch to be made, whose params are looked at later."""
    checks.known(body, {"requests"})
    requests = checks.listed(checks.required(body, "requests", "requests"), "requests")
    if not requests:
        raise invalid("requests: List should have at least 1 item after validation, not 0")
    if len(requests) > MAX_REQUESTS:
        raise invalid(f"requests: List should have at most {MAX_REQUESTS} items after validation, not {len(requests)}")
    seen: set[str] = set()
    for index, request in enumerate(requests):
        seen.add(_checked(request, f"requests.{index}", seen))
    return requests


def _checked(request: object, at: str, seen: set[str]) -> str:
    given = checks.mapping(request, at)
    checks.known(given, {"custom_id", "params"}, f"{at}.")
    custom_id = checks.string(checks.required(given, "custom_id", f"{at}.custom_id"), f"{at}.custom_id")
    if _CUSTOM_ID.fullmatch(custom_id) is None:
        raise invalid(f"{at}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
    if custom_id in seen:
        raise invalid(f"{at}.custom_id: custom_id values must be unique within a batch")
    checks.mapping(checks.required(given, "params", f"{at}.params"), f"{at}.params")
    return custom_id


def judge(params: Json, *, script: Script, version: str, betas: str) -> ScriptedReply | None:
    """The reply that a script holds for valid params, if any; raises the error that invalid ones get."""
    _check_batched(params)
    model = find_model(validate.model_name(params))
    validate.check_create(params, model, version, betas)
    validate.check_window(count_input(params, model), model)
    return script.next()


def _check_batched(params: Json) -> None:
    for name in ("speed", "fallbacks"):
        if params.get(name) is not None:
            raise invalid(f"{name}: not supported in message batches")
    if validate.bills_user_profile(params):
        raise invalid('billing_policy: "bill_to": "user_profile" is not supported in message batches')
    if params.get("stream"):
        raise invalid("stream: not supported in message batches")
    if params.get("max_tokens") == 0:
        raise invalid("max_tokens: 0 is not supported in message batches")


class BatchApi:
    """One request to these endpoints: what is refused is refused at once, what is done is done when called for.

    Args:
        batches: Everybody's.
        organization: Who asks.
        clock: Tells the time.
        now: When it was asked.
        request: What was asked.
    """

    __slots__ = ("_batches", "_clock", "_now", "_organization", "_request")

    def __init__(self, batches: Batches, organization: str, clock: Clock, now: float, request: Request) -> None:
        self._batches = batches
        self._organization = organization
        self._clock = clock
        self._now = now
        self._request = request

    def creation(self, body: Json, judge: Judge) -> Act:
        """Make a batch."""
        requests = _requests_of(body)
        return lambda: self._described(self._batches.add(self._organization, requests, judge, self._now))

    def action(self, message: Callable[[Item], Json], request_id: str) -> Act:
        """Give a page of batches, or look at one, cancel it, delete it, or give its results."""
        kind, identity = _place(self._request.path)
        if not kind:
            return partial(_itself, self._page())
        batch = self._batches.find(self._organization, identity)
        if self._request.method == "DELETE":
            return partial(self._batches.delete, self._organization, identity, self._now)
        if kind == "results":
            return partial(_pieces, batch.results(self._now), message, request_id)
        if kind == "cancel":
            return partial(self._cancel, batch)
        return partial(self._described, batch)

    def _cancel(self, batch: Batch) -> Json:
        batch.cancel(self._now)
        return self._described(batch)

    def _page(self) -> Json:
        query = self._request.query
        found, more = self._batches.page(
            self._organization,
            limit=validate.page_size(query),
            after_id=query.get("after_id"),
            before_id=query.get("before_id"),
        )
        data = [self._described(batch) for batch in found]
        return {
            "data": data,
            "has_more": more,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }

    def _described(self, batch: Batch) -> Json:
        host = self._request.headers.get("host", "simulator.invalid")
        return batch.describe(self._now, self._clock, f"http://{host}{BATCHES}")


def _itself(page: Json) -> Json:
    return page


def _pieces(items: Iterable[Item], message: Callable[[Item], Json], request_id: str) -> Iterator[bytes]:
    """The results file, some lines at a time; a reply is made when its line is."""
    held: list[bytes] = []
    for item in items:
        result: Json = {"type": item.outcome}
        if item.error is not None:
            result["error"] = item.error.body(request_id)
        elif item.outcome == "succeeded":
            result["message"] = message(item)
        held.append(dump({"custom_id": item.custom_id, "result": result}) + b"\n")
        if len(held) == _LINES:
            yield b"".join(held)
            held.clear()
    yield b"".join(held)


def document(found: Json | Iterator[bytes], fault: Fault | None, headers: Callable[[], dict[str, str]]) -> Answer:
    """An object or a results file; a fault of bodies leaves half of it, and then the end, nothing, or no JSON."""
    pieces = (dump(found),) if is_object(found) else cast("Iterator[bytes]", found)
    sent = {"content-type": _JSON if is_object(found) else _LINES_OF_JSON}
    if fault is None:
        steps: Iterable[Step] = (Step(piece) for piece in pieces)
    else:
        whole = b"".join(pieces)
        # Never the end of a line, which would leave a file that is short, but not broken.
        half = whole[: len(whole) // 2].rstrip(b"}\n")
        steps = (Step(half), *_ENDS.get(fault.name, (HANG,)))
        sent["content-length"] = str(len(half if fault.name == "bad_json" else whole))
    delay_s = fault.number("delay_s", 0) if fault else 0.0
    return Answer(200, lambda: {**sent, **headers()}, steps, delay_s=delay_s)
