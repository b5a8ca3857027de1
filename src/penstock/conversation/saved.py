"""A conversation as text: everything that it is, and nothing of the client it is held with.

The rule here: the same conversation gives the same bytes, in the order in which everything was said: the order of keys
in the input of a tool counts for the prompt cache. What is read is checked as if it came from anywhere, and what
is wrong with it is told with its place.
"""

from __future__ import annotations

import json
from dataclasses import fields
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from penstock._core.size import CHARACTERS_PER_TOKEN
from penstock._core.usage import Usage
from penstock.conversation.functions import offered
from penstock.conversation.options import NOT_SAVED, ConversationOptions
from penstock.conversation.session import Session
from penstock.conversation.system_prompt import SystemPrompt
from penstock.errors import InvalidHistory
from penstock.messages.blocks import Turn
from penstock.messages.history import turns_of
from penstock.tools.state import ToolOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from anthropic import AsyncAnthropic

    from penstock.conversation.functions import Functions
    from penstock.tools.events import Approve
    from penstock.tools.registry import AnyTool

__all__ = ["read", "write"]

VERSION: Final = 1
_KEY: Final = "penstock_conversation"
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
        "turns": [_turn(turn) for turn in session.turns],
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
    text: str | bytes, sdk: AsyncAnthropic, *, tools: Iterable[AnyTool] | None, params: Mapping[str, Any]
) -> Session:
    """Return the conversation that `write` wrote.

    Args:
        text: What was written.
        sdk: Sends its requests.
        tools: The functions that were its tools; `None` if they were none.
        params: What was not saved.

    Raises:
        InvalidHistory: It is something else, or damaged, or had other tools.
        TypeError: One of `params` is saved.
    """
    again = NOT_SAVED if tools is None else NOT_SAVED | {"approve"}
    if saved := sorted(params.keys() - again):
        raise TypeError(f"only {', '.join(sorted(again))} can be given again, not {', '.join(saved)}")
    given = _checked(_Saved, _fields(text), "")
    if given.tool_options is not None and tools is None:
        raise InvalidHistory("tools", "were functions, which can't be saved: give them again, tools=[…]")
    session = _session(given, sdk)
    functions = None if tools is None else _functions(session, given.tool_options, tools, params.get("approve"))
    session.with_unsaved(functions, {name: value for name, value in params.items() if name in NOT_SAVED})
    spent, window = given.spent, given.window
    usage = Usage(**dict(spent.usage))
    session.requests.spending.restore(usage, spent.requests, spent.cost_usd, spent.unpriced)
    if given.container is not None:
        session.requests.container = (given.container.id, given.container.expires_at)
    session.estimate.per_token = window.per_token
    if window.turns <= len(given.turns):
        session.estimate.tokens, session.estimate.turns = window.tokens, window.turns
    return session


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


def _session(given: _Saved, sdk: AsyncAnthropic) -> Session:
    system = None if given.system is None else SystemPrompt(**dict(given.system))
    turns = given.history()
    try:
        return Session.of(
            sdk, given.options, id=given.id, system=system, tools=given.tools, params=given.params, turns=turns
        )
    except (TypeError, ValueError) as error:
        raise InvalidHistory("tools or params", str(error)) from None


def _functions(
    session: Session, options: ToolOptions | None, tools: Iterable[AnyTool], approve: Approve | None
) -> Functions | None:
    """Return what runs the tools, which must be those that were saved."""
    told = {**({} if options is None else options.model_dump()), "approve": approve}
    entries, functions = offered(tools, told, keep_marks=session.requests.options.cache_ttl is None)
    if entries != session.requests.tools:
        raise InvalidHistory("tools", "are not those that it was saved with, to which its history belongs")
    return functions


def _checked(kind: type[PartT], found: object, place: str) -> PartT:
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        at = ".".join(str(part) for part in first["loc"]) or "options"
        raise InvalidHistory(f"{place}{at}", first["msg"]) from None
