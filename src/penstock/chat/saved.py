"""A conversation as text: everything that it is, and nothing of the client it is held with.

The rule here: the same conversation gives the same bytes, in the order in which everything was said: the order of keys
in the input of a tool counts for the prompt cache. What is read is checked as if it came from anywhere, and what
is wrong with it is told with its place.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from penstock.chat.history import turns_of
from penstock.chat.options import ConversationOptions
from penstock.chat.system_prompt import SystemPrompt
from penstock.chat.turn import Turn
from penstock.core.usage import Usage
from penstock.errors import InvalidHistory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Saved", "read", "write"]

VERSION: Final = 1
_KEY: Final = "penstock_conversation"
_FLAGS: Final = ("pinned", "paused", "left_out")

PartT = TypeVar("PartT", bound=BaseModel)
_Count = Annotated[int, Field(ge=0, strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class _System(_Part):
    text: str = Field(min_length=1)
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
    per_token: float = Field(default=3.2, ge=1, le=8)


class _Flags(_Part):
    pinned: bool = False
    paused: bool = False
    left_out: _Count = 0


class Saved(_Part):
    """What a saved conversation says of itself, apart from its turns."""

    penstock_conversation: Literal[1]
    id: str = Field(min_length=1)
    options: ConversationOptions
    params: dict[str, Any] = {}
    tools: list[dict[str, Any]] = []
    system: _System | None = None
    turns: list[dict[str, Any]] = []
    spent: _Spent = _Spent()
    window: _Window = _Window()

    @property
    def system_prompt(self) -> SystemPrompt | None:
        """Its system prompt."""
        return None if self.system is None else SystemPrompt(**dict(self.system))

    @property
    def usage(self) -> Usage:
        """What it has used."""
        return Usage(**dict(self.spent.usage))

    def history(self) -> tuple[Turn, ...]:
        """Return its turns.

        Raises:
            InvalidHistory: The API would not take them.
        """
        flags: list[_Flags] = []
        for index, turn in enumerate(self.turns):
            given = {name: turn[name] for name in _FLAGS if name in turn}
            flags.append(_checked(_Flags, given, f"turns.{index}."))
        plain = [{name: value for name, value in turn.items() if name not in _FLAGS} for turn in self.turns]
        return tuple(
            Turn(role=turn.role, content=turn.content, **dict(flag))
            for turn, flag in zip(turns_of(plain, "turns"), flags, strict=True)
        )


def write(fields: Mapping[str, object], turns: Sequence[Turn]) -> str:
    """Return a conversation as text, always the same for the same."""
    saved = {_KEY: VERSION, **fields, "turns": [_turn(turn) for turn in turns]}
    return json.dumps(saved, separators=(",", ":"), allow_nan=False)


def _turn(turn: Turn) -> dict[str, object]:
    flags = {name: value for name in _FLAGS if (value := getattr(turn, name))}
    return {"role": turn.role, "content": list(turn.content), **flags}


def read(text: str | bytes) -> Saved:
    """Read what `write` wrote.

    Raises:
        InvalidHistory: It is something else, or damaged.
    """
    try:
        found: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidHistory(f"line {error.lineno} column {error.colno}", f"no JSON: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise InvalidHistory("the whole", f"no JSON ({type(error).__name__})") from None
    fields = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    if _KEY not in fields:
        raise InvalidHistory("the whole", f"no saved conversation: it has no {_KEY!r}")
    if fields[_KEY] != VERSION:
        raise InvalidHistory(_KEY, "is of a version that this penstock can't read; use the one that wrote it")
    return _checked(Saved, fields, "")


def _checked(kind: type[PartT], found: object, place: str) -> PartT:
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        at = ".".join(str(part) for part in first["loc"]) or "options"
        raise InvalidHistory(f"{place}{at}", first["msg"]) from None
