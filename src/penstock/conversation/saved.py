"""A conversation as text: everything that it is, and nothing of the client it is held with.

The rule here: the same conversation gives the same bytes, in the order in which everything was said: the order of keys
in the input of a tool counts for the prompt cache. What is read is checked as if it came from anywhere, and what
is wrong with it is told with its place. How far it may go is what code says; what the model sees may become something
else only by name.
"""

from __future__ import annotations

import json
from dataclasses import fields
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from penstock._core.size import CHARACTERS_PER_TOKEN
from penstock._core.usage import Usage
from penstock.conversation.functions import OF_LOOP, offered
from penstock.conversation.options import IN_PASSING, NOT_SAVED, ConversationOptions, checked_params
from penstock.conversation.session import Session
from penstock.conversation.system_prompt import SystemPrompt, same_prompt, same_text, told_of
from penstock.conversation.trim import without_thinking
from penstock.errors import ConversationChanged, InvalidHistory
from penstock.messages.blocks import Turn
from penstock.messages.history import check_roles, turns_of
from penstock.tools.state import ToolOptions

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from anthropic import AsyncAnthropic

    from penstock.conversation.functions import Functions
    from penstock.messages.blocks import Block
    from penstock.tools.registry import AnyTool

__all__ = ["read", "write"]

VERSION: Final = 1
_KEY: Final = "penstock_conversation"
_MAY_CHANGE: Final = frozenset({"model", "params", "system", "tools"})
_FLAGS: Final = ("pinned", "paused", "left_out")

PartT = TypeVar("PartT", bound=BaseModel)
_Count = Annotated[int, Field(ge=0, strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class _System(_Part):
    text: str = Field(pattern=r"\S")
    name: str | None = None
    version: str | None = None


class _Used(_Part):
    input_tokens: _Count = 0
    output_tokens: _Count = 0
    cache_creation_input_tokens: _Count = 0
    cache_read_input_tokens: _Count = 0
    cache_creation_1h_input_tokens: _Count = 0
    thinking_tokens: _Count = 0
    web_search_requests: _Count = 0
    web_fetch_requests: _Count = 0
    service_tier: str | None = None
    speed: str | None = None
    estimated: bool = False


class _Spent(_Part):
    usage: _Used = _Used()
    requests: _Count = 0
    cost_usd: Decimal = Field(default=Decimal(0), ge=0)
    unpriced: str | None = None


class _Window(_Part):
    tokens: _Count = 0
    turns: _Count = 0
    per_token: float = Field(default=CHARACTERS_PER_TOKEN, ge=1, le=8)


class _Container(_Part):
    id: str = Field(min_length=1)
    expires_at: AwareDatetime | None = None


class _Flags(_Part):
    pinned: bool = False
    paused: bool = False
    left_out: _Count = 0


class _Saved(_Part):
    penstock_conversation: Literal[1]
    id: str = Field(min_length=1)
    options: ConversationOptions
    params: dict[str, Any] = {}
    tools: list[dict[str, Any]] = []
    tool_options: ToolOptions | None = None
    system: _System | None = None
    container: _Container | None = None
    turns: list[dict[str, Any]] = []
    spent: _Spent = _Spent()
    window: _Window = _Window()

    def history(self) -> tuple[Turn, ...]:
        flags: list[_Flags] = []
        for index, turn in enumerate(self.turns):
            given = {name: turn[name] for name in _FLAGS if name in turn}
            flags.append(_checked(_Flags, given, f"turns.{index}."))
        plain = [{name: value for name, value in turn.items() if name not in _FLAGS} for turn in self.turns]
        return tuple(
            Turn(role=turn.role, content=turn.content, **dict(flag))
            for turn, flag in zip(turns_of(plain, "turns"), flags, strict=True)
        )


def write(session: Session) -> str:
    """Return a conversation as text, always the same for the same."""
    requests, estimate, functions = session.requests, session.estimate, session.functions
    spending, system = requests.spending, requests.system
    found = {
        _KEY: VERSION,
        "id": requests.session,
        "options": requests.options.model_dump(mode="json"),
        "params": {name: value for name, value in requests.params.items() if name not in NOT_SAVED},
        "tools": requests.tools,
        "tool_options": functions and functions.options.model_dump(mode="json"),
        "system": system and {"text": system.text, "name": system.name, "version": system.version},
        "spent": {
            "usage": {each.name: getattr(spending.usage, each.name) for each in fields(Usage)},
            "requests": spending.requests,
            "cost_usd": str(spending.priced_usd),
            "unpriced": spending.unpriced,
        },
        "window": {"tokens": estimate.tokens, "turns": estimate.turns, "per_token": estimate.per_token},
        **_container(requests.container),
        "turns": [_turn(turn) for turn in session.turns_to_save],
    }
    return json.dumps(found, separators=(",", ":"), allow_nan=False)


def _container(container: tuple[str, datetime | None] | None) -> dict[str, object]:
    if container is None:
        return {}
    identity, until = container
    return {"container": {"id": identity, "expires_at": until and until.isoformat()}}


def _turn(turn: Turn) -> dict[str, object]:
    flags = {name: value for name in _FLAGS if (value := getattr(turn, name))}
    return {"role": turn.role, "content": list(turn.content), **flags}


def read(
    text: str | bytes,
    sdk: AsyncAnthropic,
    *,
    model: str | None,
    system: SystemPrompt | None,
    tools: Iterable[AnyTool] | None,
    migrate: Collection[str],
    params: Mapping[str, Any],
) -> Session:
    """Return the conversation that `write` wrote, as code has it now.

    Args:
        text: What was written.
        sdk: Sends its requests.
        model: Who answers now; `None` for who did.
        system: The prompt now; `None` for the same.
        tools: The tools now; `None` for the same, if those were no functions.
        migrate: What may be something else.
        params: What was not saved, and bounds and parameters as they are now.

    Raises:
        InvalidHistory: It is something else, or damaged, or had functions that are not given.
        ConversationChanged: Something is something else now that may not be.
        SystemPromptChanged: Only the system prompt is.
        TypeError: There is no such parameter, or a tool can't be used.
        ValueError: A bound is out of its range, or the model takes no system turns.
    """
    given = _checked(_Saved, _fields(text), "")
    if given.tool_options is not None and tools is None:
        raise InvalidHistory("tools", "were functions, which can't be saved: give them again, tools=[…]")
    told = {name: params[name] for name in ConversationOptions.model_fields.keys() & params.keys()}
    chosen = {} if model is None else {"model": model}
    options = ConversationOptions.model_validate({**dict(given.options), **told, **chosen})
    entries, functions = _tools(given, tools, params, keep_marks=options.cache_ttl is None)
    others = _params(params, told.keys() | ({"max_iterations"} if functions is None else OF_LOOP))
    unsaved = {name: params[name] for name in NOT_SAVED & params.keys()}
    prompt = None if given.system is None else SystemPrompt(**dict(given.system))
    changes = {
        "model": _differ(given.options.model, options.model),
        "params": ", ".join(sorted(name for name in others.keys() - IN_PASSING if _is_new(given, name, others[name]))),
        "system": "" if system is None or same_text(prompt, system) else f"{told_of(prompt)}, now {told_of(system)}",
        "tools": _tools_differ(given.tools, entries),
    }
    changes = {name: how for name, how in changes.items() if how}
    _check_allowed(changes, migrate, prompt, system)
    if "system" in changes:
        prompt = system
    turns = given.history()
    if changes:
        check_roles(turns, options.model)
        turns = without_thinking(turns)
    try:
        session = Session.of(
            sdk, options, id=given.id, system=prompt, tools=entries, params={**given.params, **others}, turns=turns
        )
    except (TypeError, ValueError) as error:
        raise InvalidHistory("tools or params", str(error)) from None
    session.with_unsaved(functions, unsaved)
    spent, window = given.spent, given.window
    usage = Usage(**dict(spent.usage))
    session.requests.spending.restore(usage, spent.requests, spent.cost_usd, spent.unpriced)
    if given.container is not None:
        session.requests.container = (given.container.id, given.container.expires_at)
    session.estimate.per_token = window.per_token
    if window.turns <= len(given.turns) and not changes:
        session.estimate.tokens, session.estimate.turns = window.tokens, window.turns
    return session


# What has become something else


def _check_allowed(
    changes: Mapping[str, str], migrate: Collection[str], saved: SystemPrompt | None, now: SystemPrompt | None
) -> None:
    if isinstance(migrate, str) or not _MAY_CHANGE.issuperset(migrate):
        raise ValueError(f"migrate must be a set of {', '.join(sorted(_MAY_CHANGE))}, not {migrate!r}")
    refused = {name: how for name, how in changes.items() if name not in migrate}
    if refused.keys() == {"system"}:
        same_prompt(saved, now)
    if refused:
        raise ConversationChanged(refused)


def _differ(saved: str, now: str) -> str:
    return "" if saved == now else f"{saved}, now {now}"


def _is_new(given: _Saved, name: str, value: object) -> bool:
    return name not in given.params or given.params[name] != value


def _tools_differ(saved: Sequence[Block], now: Sequence[Block]) -> str:
    """Return which tools were added, removed or changed; the order counts for the prompt cache."""
    before, after = ({_name(entry): entry for entry in entries} for entries in (saved, now))
    found = [f"{name} was removed" for name in before if name not in after]
    found += [f"{name} was added" for name in after if name not in before]
    found += [f"{name} was changed" for name in after if name in before and before[name] != after[name]]
    return ", ".join(found) or ("" if saved == now else "their order was changed")


def _name(entry: Block) -> str:
    return str(entry.get("name") or entry.get("mcp_server_name") or entry.get("type"))


def _tools(
    given: _Saved, tools: Iterable[AnyTool] | None, params: Mapping[str, Any], *, keep_marks: bool
) -> tuple[list[Block], Functions | None]:
    if tools is None:
        return given.tools, None
    saved = {} if given.tool_options is None else given.tool_options.model_dump()
    return offered(tools, {**saved, **{name: params[name] for name in OF_LOOP & params.keys()}}, keep_marks=keep_marks)


def _params(params: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """Return the parameters of requests among what is given."""
    left = params.keys() - taken - NOT_SAVED
    return checked_params({name: params[name] for name in left})


def _fields(text: str | bytes) -> dict[str, object]:
    try:
        found: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidHistory(f"line {error.lineno} column {error.colno}", f"no JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        # No text, an endless number, endless brackets.
        raise InvalidHistory("the whole", f"no JSON ({type(error).__name__})") from None
    found_fields = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    if _KEY not in found_fields:
        raise InvalidHistory("the whole", f"no saved conversation: it has no {_KEY!r}")
    if found_fields[_KEY] != VERSION:
        raise InvalidHistory(_KEY, "is of a version that this penstock can't read; use the one that wrote it")
    return found_fields


def _checked(kind: type[PartT], found: object, place: str) -> PartT:
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        at = ".".join(str(part) for part in first["loc"]) or "options"
        raise InvalidHistory(f"{place}{at}", first["msg"]) from None
