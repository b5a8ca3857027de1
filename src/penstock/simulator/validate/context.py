"""What a request asks the server to do about a long conversation: `context_management`, by beta and model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.simulator.validate import checks
from penstock.simulator.wire import invalid

if TYPE_CHECKING:
    from penstock.simulator.models import Model
    from penstock.simulator.wire import Json

__all__ = ["check_context_management"]

_BETAS = {
    "clear_thinking_20251015": "context-management-2025-06-27",
    "clear_tool_uses_20250919": "context-management-2025-06-27",
    "compact_20260112": "compact-2026-01-12",
}
_LOWEST_TRIGGER = 50_000


def check_context_management(body: Json, model: Model, betas: str) -> None:
    """Raise where the API would refuse the edits that `body` asks for."""
    given = body.get("context_management")
    if given is None:
        return
    offered = [name for name, beta in _BETAS.items() if beta in betas]
    if not offered:
        raise invalid("context_management: Extra inputs are not permitted")
    checks.known(checks.mapping(given, "context_management"), {"edits"}, "context_management.")
    edits = checks.listed(given.get("edits", []), "context_management.edits")
    for index, edit in enumerate(edits):
        at = f"context_management.edits.{index}"
        kind = checks.mapping(edit, at).get("type")
        if kind not in offered:
            expected = ", ".join(f"'{name}'" for name in offered)
            raise invalid(
                f"{at}: Input tag '{kind}' found using 'type' does not match any of the expected tags: {expected}"
            )
        if kind == "compact_20260112":
            _check_compact(edit, f"{at}.{kind}", model)


def _check_compact(edit: Json, at: str, model: Model) -> None:
    checks.known(edit, {"type", "trigger", "pause_after_compaction", "instructions"}, f"{at}.")
    if not model.compacts:
        raise invalid(f"{at}: compaction is not supported for this model.")
    if edit.get("trigger") is not None:
        trigger = checks.mapping(edit["trigger"], f"{at}.trigger")
        checks.choice(trigger.get("type"), ("input_tokens",), f"{at}.trigger.type")
        value = checks.required(trigger, "value", f"{at}.trigger.value")
        checks.integer(value, f"{at}.trigger.value", at_least=_LOWEST_TRIGGER)
    if "pause_after_compaction" in edit:
        checks.boolean(edit["pause_after_compaction"], f"{at}.pause_after_compaction")
    if edit.get("instructions") is not None:
        checks.string(edit["instructions"], f"{at}.instructions")
