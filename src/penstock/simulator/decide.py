"""What each request gets, decided synchronously, in this order: size, path, credentials, version, body, quota, fault.

What is refused, or answered by a fault, takes nothing from any quota.
"""

from __future__ import annotations

from email.utils import format_datetime
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, cast

from penstock.simulator import batches_api, compaction, respond, validate
from penstock.simulator.cache import Reading
from penstock.simulator.faults import PLAIN_EQUIVALENT, Fault, HtmlError, answer
from penstock.simulator.limits import CountQuota, Quota
from penstock.simulator.models import find_model, model_info, model_page
from penstock.simulator.reply import compose
from penstock.simulator.stream import event
from penstock.simulator.tokens import count_input
from penstock.simulator.wire import ApiError, identifier, invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.simulator.api import Api
    from penstock.simulator.batches import Item
    from penstock.simulator.exchange import Answer
    from penstock.simulator.journal import JournalEntry
    from penstock.simulator.limits import Organization
    from penstock.simulator.models import Model
    from penstock.simulator.reply import Reply
    from penstock.simulator.script import ScriptedReply
    from penstock.simulator.wire import Json, Request

__all__ = ["Decision"]

AnyQuota: TypeAlias = Quota | CountQuota
_ROUTES = {"/v1/messages": "POST", "/v1/messages/count_tokens": "POST", "/v1/models": "GET"}
_MODELS = "/v1/models/"
_QUOTA_STATUS = 429


class Decision:
    """How one request is answered, and what is charged for it while that happens."""

    __slots__ = ("_api", "_entry", "_now", "_quota", "_readings")

    def __init__(self, api: Api, entry: JournalEntry, now: float) -> None:
        self._api = api
        self._entry = entry
        self._now = now
        self._quota: AnyQuota | None = None
        self._readings: list[Reading] = []

    def charge(self, tokens: int) -> None:
        """Count generated tokens, now; only messages generate any."""
        self._entry.output_tokens += tokens
        cast("Quota", self._quota).output_tokens.take(tokens, self._api.clock.now())

    def answer(self, request: Request) -> Answer:
        """The answer to `request`, errors included."""
        try:
            return self._route_or_refuse(request)
        except ApiError as error:
            return respond.error_answer(error, self._entry.request_id, partial(self._headers, error.status))

    def _route_or_refuse(self, request: Request) -> Answer:
        try:
            return self._route(request)
        except RecursionError:
            raise invalid("The request body is nested too deeply") from None

    def _headers(self, status: int = 200) -> dict[str, str]:
        now = self._api.clock.wall(self._api.clock.now())
        headers = {"request-id": self._entry.request_id, "date": format_datetime(now, usegmt=True)}
        if self._entry.organization is not None:
            headers["anthropic-organization-id"] = self._entry.organization
        if self._quota is not None and status in (200, _QUOTA_STATUS):
            headers.update(self._quota.headers(self._api.clock.now(), self._api.clock))
        return headers

    def _route(self, request: Request) -> Answer:
        validate.check_size(request)
        _check_route(request)
        self._entry.key = key = validate.find_key(request.headers)
        try:
            self._entry.organization = self._api.organization_id(key)
        except ValueError:
            raise ApiError(401, "authentication_error", "invalid x-api-key") from None
        version = validate.check_version(request.headers)
        if batches_api.methods_of(request) is not None:
            return self._batches(request, version)
        if request.method == "GET":
            return self._models(request)
        body = validate.parse(request)
        self._note(body)
        model = find_model(validate.model_name(body))
        check, serve = (
            (validate.check_create, self._messages)
            if request.path == "/v1/messages"
            else (validate.check_count, self._count_tokens)
        )
        betas = request.headers.get("anthropic-beta", "")
        check(body, model, version, betas)
        validate.check_payer(body, request.headers.get("anthropic-user-profile-id"))
        return serve(compaction.visible(body) if "compact-" in betas else body, model)

    def _note(self, body: Json) -> None:
        name = body.get("model")
        self._entry.model = name if isinstance(name, str) else None
        self._entry.stream = body.get("stream") is True
        self._entry.body = body if self._api.keep_bodies else None

    def _models(self, request: Request) -> Answer:
        if request.path.startswith(_MODELS):
            found = model_info(find_model(request.path.removeprefix(_MODELS)))
        else:
            found = model_page(
                limit=validate.page_size(request.query),
                after_id=request.query.get("after_id"),
                before_id=request.query.get("before_id"),
            )
        return self._hit(self._draw()) or respond.json_answer(found, self._headers)

    def _batches(self, request: Request, version: str) -> Answer:
        api = self._api
        judge = partial(
            batches_api.judge, script=api.script, version=version, betas=request.headers.get("anthropic-beta", "")
        )
        asked = batches_api.BatchApi(api.batches, str(self._entry.organization), api.clock, self._now, request)
        if request.method == "POST" and request.path == batches_api.BATCHES:
            body = validate.parse(request)
            self._note(body)
            act = asked.creation(body, judge)
        else:
            act = asked.action(self._batched, self._entry.request_id)
        fault = self._draw()
        failed = self._hit(fault)
        if failed is not None:
            return failed
        found = batches_api.document(act(), fault, self._headers)
        found.delay_s += api.pace.latency_s
        return found

    def _batched(self, item: Item) -> Json:
        """The message that a request of a batch is answered with."""
        model = find_model(str(item.params["model"]))
        reply = self._compose(item.params, model, item.scripted, item.salt)
        return {
            **reply.message(identifier("msg", item.salt), model.id),
            "usage": {**reply.usage, "service_tier": "batch"},
        }

    def _count_tokens(self, body: Json, model: Model) -> Answer:
        quota = self._admitted().counting
        self._quota = quota
        quota.admit(self._now, model.id)
        fault = self._draw()
        failed = self._hit(fault)
        if failed is not None:
            quota.requests.take(-1, self._now)
            return failed
        return respond.json_answer(
            {"input_tokens": count_input(body, model)}, self._headers, delay_s=self._api.pace.latency_s
        )

    def _messages(self, body: Json, model: Model) -> Answer:
        reading = self._read(body, model)
        validate.check_window(reading.tokens, model)
        quota = self._admitted().quota(model.pool, self._now)
        self._quota = quota
        quota.admit(reading.charged, self._now, model.id)
        fault = self._draw()
        failed = self._hit(fault)
        if failed is not None:
            quota.give_back(reading.charged, self._now)
            return failed
        return self._reply(body, model, reading, quota, fault)

    def _read(self, body: Json, model: Model) -> Reading:
        tokens = count_input(body, model)
        reading = self._api.cache.read(body, model, str(self._entry.organization), tokens=tokens, now=self._now)
        if reading.used or reading.made:
            self._readings.append(reading)
        return reading

    def _cached(self, begins_at: float) -> None:
        """Keep what was read and marked."""
        for reading in self._readings:
            self._api.cache.keep(reading, self._now, begins_at)

    def _begun(self) -> dict[str, str]:
        """The headers of a reply, which begins with them."""
        for reading in self._readings:
            self._api.cache.begun(reading)
        return self._headers()

    def _admitted(self) -> Organization:
        return self._api.organization(str(self._entry.organization), self._now)

    def _reply(self, body: Json, model: Model, reading: Reading, quota: Quota, fault: Fault | None) -> Answer:
        api = self._api
        salt = f"{api.seed}-{self._entry.number}"
        delay_s = fault.number("delay_s", 0) if fault else 0
        reply = self._replied(body, model, reading, salt)
        self._cached(self._now + api.pace.latency_s + delay_s)
        quota.input_tokens.take(reply.charged - reading.charged, self._now)
        self._entry.input_tokens = reply.charged
        message = reply.message(identifier("msg", salt), model.id)
        if self._entry.stream:
            error = event((fault or Fault(name="error")).error(200).body(self._entry.request_id))
            found = respond.stream_answer(message, reply, fault, self._begun, api.pace, error=error)
        else:
            found = respond.plain_answer(message, reply, fault, self._begun, api.pace)
        found.delay_s += delay_s
        return found

    def _replied(self, body: Json, model: Model, reading: Reading, salt: str) -> Reply:
        write = partial(self._written, body, model, salt=salt)
        if body.get("context_management") is None:
            return write(reading)
        return compaction.reply_to(body, reading, partial(self._read, model=model), write)

    def _written(self, body: Json, model: Model, reading: Reading, lead: Sequence[Json] = (), *, salt: str) -> Reply:
        scripted = self._api.script.next()
        return compose(body, model, scripted, reading=reading, manner=self._api.manner, salt=salt, lead=lead)

    def _compose(self, body: Json, model: Model, scripted: ScriptedReply | None, salt: str) -> Reply:
        reading = Reading(tokens=count_input(body, model))
        return compose(body, model, scripted, reading=reading, manner=self._api.manner, salt=salt)

    def _draw(self) -> Fault | None:
        """The fault that hits this request, as the kind of request it is."""
        fault = self._api.faults.draw()
        if fault is None:
            return None
        self._entry.fault = fault.name
        if self._entry.stream:
            return fault
        return Fault(name=PLAIN_EQUIVALENT.get(fault.name, fault.name), params=fault.params)

    def _hit(self, fault: Fault | None) -> Answer | None:
        """The answer where the fault takes the place of any reply."""
        if fault is None:
            return None
        delay_s = fault.number("delay_s", 0)
        if fault.name in ("reset", "stall_before_headers"):
            return respond.silent_answer(fault, delay_s=delay_s)
        error = answer(fault)
        if isinstance(error, HtmlError):
            return respond.page_answer(error, self._headers, delay_s=delay_s)
        if error is None:
            return None
        return respond.error_answer(
            error, self._entry.request_id, partial(self._headers, error.status), delay_s=delay_s
        )


def _check_route(request: Request) -> None:
    batched = batches_api.methods_of(request)
    expected = "GET" if request.path.startswith(_MODELS) else _ROUTES.get(request.path)
    allowed = batched if batched is not None else (expected,) if expected is not None else ()
    if not allowed:
        raise ApiError(404, "not_found_error", "Not found")
    if request.method not in allowed:
        raise ApiError(405, "invalid_request_error", "Method Not Allowed", headers={"allow": ", ".join(allowed)})
