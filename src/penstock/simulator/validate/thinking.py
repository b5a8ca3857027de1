"""How much a model may think and write: `thinking`, `output_config`, `max_tokens`, by model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.simulator.validate import checks
from penstock.simulator.wire import invalid, is_object

if TYPE_CHECKING:
    from penstock.simulator.models import Model
    from penstock.simulator.wire import Json

__all__ = ["check_max_tokens", "check_output_config", "check_thinking"]

_TYPES = ("adaptive", "between_tools", "disabled", "enabled")
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_MIN_BUDGET = 1024
_REFUSED = {
    "enabled": (
        '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and '
        '"output_config.effort" to control thinking behavior.'
    ),
    "disabled": '"thinking.type.disabled" is not supported for this model.',
    "adaptive": '"thinking.type.adaptive" is not supported for this model.',
    "between_tools": '"thinking.type.between_tools" is not supported for this model.',
}
_SAY_BETWEEN_TOOLS = (
    'To turn thinking off on this model, send "thinking": {"type": "between_tools"} instead of {"type": "disabled"}.'
)
_BUDGET_OVER_MAX = (
    "`max_tokens` must be greater than `thinking.budget_tokens`. Please consult our documentation at "
    "https://docs.claude.com/en/docs/build-with-claude/extended-thinking#max-tokens-and-context-window-size"
)


def check_max_tokens(body: Json, model: Model) -> None:
    """Required, within the model's maximum; 0 only warms the cache."""
    value = checks.integer(checks.required(body, "max_tokens", "max_tokens"), "max_tokens", at_least=0)
    if value > model.max_output:
        raise invalid(
            f"max_tokens: {value} > {model.max_output}, which is the maximum allowed number of output tokens for "
            f"{model.id}"
        )
    if value == 0:
        _check_warming(body)


def _check_warming(body: Json) -> None:
    thinking, choice, config = body.get("thinking"), body.get("tool_choice"), body.get("output_config")
    conflicts = {
        "stream": body.get("stream") is True,
        "thinking": is_object(thinking) and thinking.get("type") == "enabled",
        "tool_choice": is_object(choice) and choice.get("type") in ("any", "tool"),
        "output_config.format": is_object(config) and config.get("format") is not None,
    }
    for name, conflict in conflicts.items():
        if conflict:
            raise invalid(f"max_tokens: 0 may not be combined with `{name}`.")


def check_thinking(body: Json, model: Model) -> None:
    """A type that the model accepts, with the fields of that type."""
    if "thinking" not in body:
        return
    thinking = checks.mapping(body["thinking"], "thinking")
    kind = checks.choice(thinking.get("type"), _TYPES, "thinking.type")
    if kind not in model.thinking:
        between = kind == "disabled" and "between_tools" in model.thinking
        raise invalid(_SAY_BETWEEN_TOOLS if between else _REFUSED[kind])
    if thinking.get("display") is not None:
        checks.choice(thinking["display"], ("summarized", "omitted"), f"thinking.{kind}.display")
    if kind == "enabled":
        _check_budget(thinking, body)
    _check_quiet(kind, body, model)


def _check_budget(thinking: Json, body: Json) -> None:
    at = "thinking.enabled.budget_tokens"
    budget = checks.integer(checks.required(thinking, "budget_tokens", at), at, at_least=_MIN_BUDGET)
    if "max_tokens" in body and budget >= body["max_tokens"]:
        raise invalid(_BUDGET_OVER_MAX)
    choice = body.get("tool_choice")
    if is_object(choice) and choice.get("type") in ("any", "tool"):
        raise invalid("Thinking may not be enabled when tool_choice forces tool use.")


def _check_quiet(kind: str, body: Json, model: Model) -> None:
    config = body.get("output_config")
    effort = config.get("effort") if is_object(config) else None
    if model.quiet_effort and kind in ("disabled", "between_tools") and effort in ("xhigh", "max"):
        raise invalid(
            f'"thinking.type.{kind}" is not supported with "output_config.effort" above "high" on this model.'
        )


def check_output_config(body: Json, model: Model) -> None:
    """Effort where the model has one, and a JSON schema as format."""
    if body.get("output_config") is None:
        return
    config = checks.mapping(body["output_config"], "output_config")
    checks.known(config, {"effort", "format", "task_budget"}, "output_config.")
    if config.get("effort") is not None:
        checks.choice(config["effort"], _EFFORTS, "output_config.effort")
        if not model.efforts:
            raise invalid("This model does not support the effort parameter.")
    if config.get("format") is not None:
        form = checks.mapping(config["format"], "output_config.format")
        checks.choice(form.get("type"), ("json_schema",), "output_config.format.type")
        at = "output_config.format.schema"
        checks.mapping(checks.required(form, "schema", at), at)
