"""The fields of a body: which there may be, of which type, and what they may say together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.simulator.binding import check_thoughts
from penstock.simulator.validate import checks
from penstock.simulator.validate.caching import check_caching
from penstock.simulator.validate.context import check_context_management
from penstock.simulator.validate.media import refuse_remote_media
from penstock.simulator.validate.messages import check_messages, check_system
from penstock.simulator.validate.thinking import check_max_tokens, check_output_config, check_thinking
from penstock.simulator.validate.tools import check_tool_choice, check_tools, refuse_server_tools
from penstock.simulator.validate.turns import check_turns
from penstock.simulator.wire import invalid, is_object

if TYPE_CHECKING:
    from penstock.simulator.models import Model
    from penstock.simulator.wire import Json

__all__ = ["bills_user_profile", "check_count", "check_create", "check_payer", "check_window", "model_name"]

_COUNTED: frozenset[str] = frozenset(
    {"cache_control", "messages", "model", "output_config", "speed", "system", "thinking", "tool_choice", "tools"}
)
_CREATED = _COUNTED | {
    "container", "diagnostics", "inference_geo", "max_tokens", "metadata", "service_tier", "stop_sequences", "stream",
}  # fmt: skip
_BETA = frozenset(
    {"billing_policy", "compaction", "context_management", "fallback_credit_token", "fallbacks", "mcp_servers"}
)
_SAMPLING = frozenset({"temperature", "top_k", "top_p"})
_SAMPLING_VERSION = "2023-06-01"
_FAST = frozenset({"claude-opus-5-5", "claude-opus-5", "claude-opus-4-8", "claude-fable-5-2"})
_FAST_BY_BETA = frozenset({"claude-opus-5", "claude-opus-4-8"})
_FAST_BETA = "fast-mode-2026-02-01"


def model_name(body: Json) -> str:
    """The model that `body` names."""
    return checks.string(checks.required(body, "model", "model"), "model")


def check_window(input_tokens: int, model: Model) -> None:
    """The input alone must fit the model's context window."""
    if input_tokens > model.window:
        raise invalid(f"prompt is too long: {input_tokens} tokens > {model.window} maximum")


def check_create(body: Json, model: Model, version: str, betas: str) -> None:
    """Raise where `POST /v1/messages` would refuse `body`; `betas` is the `anthropic-beta` header."""
    if version == _SAMPLING_VERSION:
        _check_sampling(body)
    allowed = _CREATED | _SAMPLING if version == _SAMPLING_VERSION else _CREATED
    _check_names(body, allowed, betas)
    check_max_tokens(body, model)
    _check_simple(body)
    _check_shared(body, model, version, betas)


def bills_user_profile(body: Json) -> bool:
    """Whether `billing_policy` has the customer behind a user profile pay."""
    policy = body.get("billing_policy")
    return is_object(policy) and policy.get("bill_to") == "user_profile"


def check_payer(body: Json, user_profile_id: str | None) -> None:
    """Raise where a user profile is to pay and none is named."""
    if bills_user_profile(body) and not user_profile_id:
        message = 'billing_policy.bill_to is "user_profile", but the request names no user profile'
        raise invalid(message, error_code="user_profile_required")


def check_count(body: Json, model: Model, version: str, betas: str) -> None:
    """Raise where `POST /v1/messages/count_tokens` would refuse `body`."""
    _check_names(body, _COUNTED, betas)
    _check_shared(body, model, version, betas)
    refuse_server_tools(body)
    refuse_remote_media(body["messages"])


def _check_names(body: Json, allowed: frozenset[str], betas: str) -> None:
    if body.get("thread") is not None:
        message = "thread: This server does not support message threads. Send the full conversation without `thread`."
        raise invalid(message, error_code="thread_unsupported_request")
    checks.known(body, allowed | {"thread"} | (_BETA if betas else frozenset[str]()))


def _check_shared(body: Json, model: Model, version: str, betas: str) -> None:
    check_thinking(body, model)
    check_output_config(body, model)
    _check_speed(body, model, betas)
    check_system(body)
    check_tools(body, model)
    check_tool_choice(body, model)
    check_context_management(body, model, betas)
    check_messages(body, model, version, betas)
    check_turns(body["messages"], model)
    check_caching(body)
    check_thoughts(body, model)


def _check_simple(body: Json) -> None:
    if "stream" in body:
        checks.boolean(body["stream"], "stream")
    for name in ("inference_geo", "container"):
        if name in body and not isinstance(body[name], dict | str | None):
            raise invalid(f"{name}: Input should be a valid string")
    if "service_tier" in body:
        checks.choice(body["service_tier"], ("auto", "standard_only"), "service_tier")
    if "metadata" in body:
        _check_metadata(checks.mapping(body["metadata"], "metadata"))
    if body.get("stop_sequences") is not None:
        _check_stop_sequences(checks.listed(body["stop_sequences"], "stop_sequences"))


def _check_metadata(metadata: Json) -> None:
    checks.known(metadata, {"user_id"}, "metadata.")
    if metadata.get("user_id") is not None:
        checks.string(metadata["user_id"], "metadata.user_id")


def _check_stop_sequences(sequences: list[object]) -> None:
    for index, sequence in enumerate(sequences):
        if not checks.string(sequence, f"stop_sequences.{index}").strip():
            raise invalid("stop_sequences: each stop sequence must contain non-whitespace")


def _check_sampling(body: Json) -> None:
    for name in ("temperature", "top_p"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(f"{name}: Input should be a valid number")
        if not 0 <= value <= 1:
            raise invalid(f"{name}: range: 0..1")
    if body.get("top_k") is not None:
        checks.integer(body["top_k"], "top_k", at_least=0)


def _check_speed(body: Json, model: Model, betas: str) -> None:
    speed = body.get("speed")
    if speed is None:
        return
    if checks.choice(speed, ("standard", "fast"), "speed") == "standard":
        return
    if model.id not in _FAST or (model.id in _FAST_BY_BETA and _FAST_BETA not in betas):
        raise invalid("speed: fast mode is not supported for this model.")
