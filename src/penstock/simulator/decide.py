"""What each request gets, decided synchronously, in this order: size, path, credentials, version, body, quota, fault.

What is refused, or answered by a fault, takes nothing from any quota.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from email.utils import format_datetime
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, cast

from penstock.simulator import respond, validate
from penstock.simulator.faults import PLAIN_EQUIVALENT, Fault, HtmlError, answer
from penstock.simulator.limits import CountQuota, Organization, Quota
from penstock.simulator.models import find_model, model_info, model_page
from penstock.simulator.reply import compose, identifier
from penstock.simulator.stream import event
from penstock.simulator.tokens import count_input
from penstock.simulator.wire import ApiError, invalid, is_object

if TYPE_CHECKING:
    from penstock.simulator.clock import Clock
    from penstock.simulator.exchange import Answer
    from penstock.simulator.faults import Faults
    from penstock.simulator.journal import JournalEntry
    from penstock.simulator.limits import Limits
    from penstock.simulator.models import Model
    from penstock.simulator.reply import OutputTokens, Script
    from penstock.simulator.wire import Json, Request

__all__ = ["Api", "Decision"]

AnyQuota: TypeAlias = Quota | CountQuota
_ROUTES = {"/v1/messages": "POST", "/v1/messages/count_tokens": "POST", "/v1/models": "GET"}
_MODELS = "/v1/models/"
_QUOTA_STATUS = 429


@dataclass(kw_only=True, slots=True)
class Api:
    """Everything that answers depend on, apart from the request.

    Attributes:
        keys: API key to organization id; None: every key is its own organization.
        organizations: by id, made when first seen.
    """

    limits: Limits
    keys: dict[str, str] | None = field(repr=False)
    faults: Faults
    seed: int
    pace: respond.Pace
    output_tokens: OutputTokens
    thinking: bool | None
    keep_bodies: bool
    clock: Clock
    script: Script
    organizations: dict[str, Organization] = field(default_factory=dict[str, Organization])

    def organization_id(self, key: str) -> str:
        """Whose key it is; raises `ValueError` where it is nobody's."""
        if self.keys is None:
            return str(uuid.UUID(bytes=hashlib.blake2b(key.encode(), digest_size=16).digest(), version=4))
        if key not in self.keys:
            raise ValueError("this key belongs to no organization")
        return self.keys[key]

    def organization(self, identity: str, now: float) -> Organization:
        """The organization called `identity`."""
        found = self.organizations.get(identity)
        if found is None:
            counting = CountQuota(identity, self.limits, now)
            found = Organization(id=identity, limits=self.limits, counting=counting)
            self.organizations[identity] = found
        return found


class Decision:
    """How one request is answered, and what is charged for it while that happens."""

    __slots__ = ("_api", "_entry", "_now", "_quota")

    def __init__(self, api: Api, entry: JournalEntry, now: float) -> None:
        self._api = api
        self._entry = entry
        self._now = now
        self._quota: AnyQuota | None = None

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
        check(body, model, version, request.headers.get("anthropic-beta", ""))
        return serve(body, model)

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
        given = count_input(body, model)
        validate.check_window(given, model)
        quota = self._admitted().quota(model.pool, self._now)
        self._quota = quota
        quota.admit(given, self._now, model.id)
        fault = self._draw()
        failed = self._hit(fault)
        if failed is not None:
            quota.give_back(given, self._now)
            return failed
        return self._reply(body, model, given, quota, fault)

    def _admitted(self) -> Organization:
        return self._api.organization(str(self._entry.organization), self._now)

    def _reply(self, body: Json, model: Model, given: int, quota: Quota, fault: Fault | None) -> Answer:
        api = self._api
        salt = f"{api.seed}-{self._entry.number}"
        reply = compose(
            body,
            model,
            api.script.next(),
            output_tokens=api.output_tokens,
            thinking=_thinks(body, model, preference=api.thinking),
            salt=salt,
        )
        charged = int(reply.usage["input_tokens"]) + int(reply.usage["cache_creation_input_tokens"])
        quota.input_tokens.take(charged - given, self._now)
        self._entry.input_tokens = charged
        message = reply.message(identifier("msg", salt), model.id)
        if self._entry.stream:
            error = event(ApiError(200, "overloaded_error", "Overloaded").body(self._entry.request_id))
            found = respond.stream_answer(message, reply, fault, self._headers, api.pace, error=error)
        else:
            found = respond.plain_answer(message, reply, fault, self._headers, api.pace)
        found.delay_s += fault.number("delay_s", 0) if fault else 0
        return found

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
    expected = "GET" if request.path.startswith(_MODELS) else _ROUTES.get(request.path)
    if expected is None:
        raise ApiError(404, "not_found_error", "Not found")
    if request.method != expected:
        raise ApiError(405, "invalid_request_error", "Method Not Allowed", headers={"allow": expected})


def _thinks(body: Json, model: Model, *, preference: bool | None) -> bool:
    asked, choice = body.get("thinking"), body.get("tool_choice")
    if is_object(choice) and choice["type"] in ("any", "tool"):
        return False
    if asked is None:
        return preference is True and model.thinks
    return preference is not False and asked["type"] in ("adaptive", "enabled", "between_tools")
