"""The models that the simulated API serves, and what each accepts: one table, one line a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.simulator.wire import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.simulator.wire import Json

__all__ = ["MODELS", "Model", "find_model", "model_info", "model_page"]

_ADAPTIVE = frozenset({"adaptive"})
_ADAPTIVE_OR_OFF = frozenset({"adaptive", "disabled"})
_ADAPTIVE_OR_TOOLS = frozenset({"adaptive", "between_tools"})
_ALL_BUT_TOOLS = frozenset({"adaptive", "disabled", "enabled"})
_ENABLED_OR_OFF = frozenset({"disabled", "enabled"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What the API accepts for one model.

    Attributes:
        id: as requests name it.
        pool: the model class whose rate limits it shares.
        created: day of release, ISO 8601.
        window: context window, in tokens.
        max_output: largest `max_tokens`.
        thinking: accepted `thinking.type` values.
        thinks: whether it thinks when `thinking` is omitted.
        shows_thinking: whether `thinking.display` is `summarized` by default rather than `omitted`.
        forced_tools: whether `tool_choice` may be `any` or `tool`.
        quiet_effort: whether thinking may only be turned off (or between tools) at an effort of at most high.
        efforts: whether `output_config.effort` is accepted.
        prefill: whether the conversation may end with an assistant turn.
        system_turns: whether a message may have the role `system`.
        binds_thinking: whether thinking blocks may only come back in the conversation that they were made in.
        cacheable: fewest tokens of a prefix that can be cached.
        compacts: whether the server summarizes conversations.
        retires: ISO 8601 day of retirement of a deprecated model.
    """

    id: str
    pool: str
    created: str
    window: int = 1_000_000
    max_output: int = 128_000
    thinking: frozenset[str] = field(default=_ADAPTIVE_OR_OFF)
    thinks: bool = True
    shows_thinking: bool = False
    forced_tools: bool = True
    quiet_effort: bool = False
    efforts: bool = True
    prefill: bool = False
    system_turns: bool = False
    binds_thinking: bool = False
    cacheable: int = 512
    compacts: bool = True
    retires: str | None = None

    @property
    def line(self) -> str:
        """`opus`, `sonnet`, `haiku`, `fable` or `mythos`."""
        return self.id.split("-")[1]

    @property
    def high_resolution(self) -> bool:
        """Whether images are seen at the high-resolution tier: everything from 4.7 on."""
        return self.pool != "haiku-4-5" and not self.id.startswith(
            ("claude-opus-4-5", "claude-opus-4-6", "claude-sonnet-4")
        )


def _top(
    name: str, pool: str, created: str, *, forced: bool, binds_thinking: bool = False, cacheable: int = 512
) -> Model:
    return Model(
        id=name,
        pool=pool,
        created=created,
        thinking=_ADAPTIVE,
        forced_tools=forced,
        system_turns=True,
        binds_thinking=binds_thinking,
        cacheable=cacheable,
    )


def _small(
    name: str,
    pool: str,
    created: str,
    *,
    cacheable: int = 4096,
    efforts: bool = False,
    retires: str | None = None,
) -> Model:
    return Model(
        id=name,
        pool=pool,
        created=created,
        window=200_000,
        max_output=64_000,
        thinking=_ENABLED_OR_OFF,
        thinks=False,
        shows_thinking=True,
        efforts=efforts,
        prefill=True,
        cacheable=cacheable,
        compacts=False,
        retires=retires,
    )


_TABLE = (
    _top("claude-fable-5-2", "fable-5", "2026-11-09", forced=False, binds_thinking=True),
    _top("claude-mythos-5-2", "mythos", "2026-11-09", forced=False),
    Model(id="claude-haiku-5-5", pool="haiku-5-5", created="2026-10-07", quiet_effort=True, binds_thinking=True),
    Model(
        id="claude-sonnet-5-5",
        pool="sonnet-5-5",
        created="2026-09-28",
        thinking=_ADAPTIVE_OR_TOOLS,
        forced_tools=False,
        quiet_effort=True,
        system_turns=True,
        binds_thinking=True,
    ),
    _top("claude-opus-5-5", "opus-5-5", "2026-09-22", forced=False, binds_thinking=True),
    _top("claude-fable-5-1", "fable-5", "2026-08-01", forced=False, binds_thinking=True),
    _top("claude-mythos-5-1", "mythos", "2026-08-01", forced=False),
    Model(id="claude-sonnet-5", pool="sonnet-5", created="2026-06-26", cacheable=1024),
    _top("claude-fable-5", "fable-5", "2026-06-01", forced=True),
    _top("claude-mythos-5", "mythos", "2026-06-01", forced=True),
    Model(id="claude-opus-5", pool="opus-5", created="2026-06-01", quiet_effort=True, system_turns=True),
    Model(id="claude-opus-4-8", pool="opus-4", created="2026-04-01", thinks=False, system_turns=True, cacheable=1024),
    Model(id="claude-opus-4-7", pool="opus-4", created="2026-03-01", thinks=False, cacheable=2048),
    _top("claude-mythos-preview", "mythos", "2026-02-15", forced=True, cacheable=2048),
    Model(
        id="claude-opus-4-6",
        pool="opus-4",
        created="2026-02-01",
        thinking=_ALL_BUT_TOOLS,
        thinks=False,
        shows_thinking=True,
        cacheable=4096,
    ),
    Model(
        id="claude-sonnet-4-6",
        pool="sonnet-4",
        created="2026-02-01",
        thinking=_ALL_BUT_TOOLS,
        thinks=False,
        shows_thinking=True,
        cacheable=1024,
    ),
    _small("claude-opus-4-5", "opus-4", "2025-11-01", efforts=True),
    _small("claude-opus-4-5-20251101", "opus-4", "2025-11-01", efforts=True),
    _small("claude-haiku-4-5", "haiku-4-5", "2025-10-01"),
    _small("claude-haiku-4-5-20251001", "haiku-4-5", "2025-10-01"),
    _small("claude-sonnet-4-5", "sonnet-4", "2025-09-29", cacheable=1024, retires="2026-11-30"),
    _small("claude-sonnet-4-5-20250929", "sonnet-4", "2025-09-29", cacheable=1024, retires="2026-11-30"),
)
MODELS: dict[str, Model] = {model.id: model for model in _TABLE}


def find_model(name: str) -> Model:
    """The model called `name`, or the API's 404."""
    model = MODELS.get(name)
    if model is None:
        raise ApiError(404, "not_found_error", f"model: {name}")
    return model


def _supported(names: Iterable[str], yes: Iterable[str]) -> Json:
    chosen = frozenset(yes)
    return {name: {"supported": name in chosen} for name in names}


def model_info(model: Model) -> Json:
    """The `ModelInfo` object of `GET /v1/models/{id}`."""
    levels = ("low", "medium", "high", "xhigh", "max")
    edits = ("clear_thinking_20251015", "clear_tool_uses_20250919", "compact_20260112")
    types = ("adaptive", "between_tools", "disabled", "enabled")
    simple = ("batch", "citations", "code_execution", "image_input", "pdf_input", "structured_outputs")
    capabilities: Json = {name: {"supported": True} for name in simple}
    capabilities["context_management"] = {
        "supported": True,
        **_supported(edits, edits if model.compacts else edits[:2]),
    }
    capabilities["effort"] = {"supported": model.efforts, **_supported(levels, levels if model.efforts else ())}
    capabilities["server_tools"] = {
        "supported": True,
        **_supported(("code_execution", "web_search"), ("code_execution", "web_search")),
    }
    capabilities["thinking"] = {"supported": True, "types": _supported(types, model.thinking)}
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.id.replace("-", " ").title(),
        "created_at": f"{model.created}T00:00:00Z",
        "lifecycle": "deprecated" if model.retires else "active",
        "line": model.line,
        "max_input_tokens": model.window,
        "max_tokens": model.max_output,
        "deprecated_at": f"{model.created}T00:00:00Z" if model.retires else None,
        "retires_at": f"{model.retires}T00:00:00Z" if model.retires else None,
        "capabilities": capabilities,
    }


def model_page(*, limit: int, after_id: str | None, before_id: str | None) -> Json:
    """A page of `GET /v1/models`, newest first; unknown cursors give an empty page."""
    names = list(MODELS)
    if after_id is not None:
        names = names[names.index(after_id) + 1 :] if after_id in MODELS else []
    if before_id is not None:
        names = names[: names.index(before_id)] if before_id in MODELS else []
        page = names[-limit:]
    else:
        page = names[:limit]
    data = [model_info(MODELS[name]) for name in page]
    first, last = (page[0], page[-1]) if page else (None, None)
    return {"data": data, "has_more": len(page) < len(names), "first_id": first, "last_id": last}
