"""What may be in a history: roles, blocks, and tool calls that are answered.

The rule here: what the API would refuse is refused before it is sent, with its place and what to do, and without
quoting it. Block types that are not known pass: the API may have learned them since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from anthropic.types.beta import BetaMessage
from pydantic import BaseModel

from penstock.errors import InvalidHistory
from penstock.messages.blocks import Block, Role, Turn, ids_of, plain_block

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Content", "check_pairs", "open_calls", "turns_of", "user_blocks"]

Content: TypeAlias = "str | Mapping[str, Any] | BaseModel | Iterable[Mapping[str, Any] | BaseModel]"

# No request takes more.
_MOST_MESSAGES: Final = 100_000
# What an answer of the SDK's that was stored whole has besides; it is left out.
_OF_ANSWERS: Final = frozenset(BetaMessage.model_fields)
_ROLES: Final = {
    "system": "a conversation can't begin with role 'system': give the system prompt as `system=`",
    "developer": "role 'developer' is not Claude's: give the system prompt as `system=`",
    "tool": "role 'tool': Claude takes tool results as tool_result blocks of a user message",
    "function": "role 'function': Claude takes tool results as tool_result blocks of a user message",
    "model": "role 'model' is not Claude's: its answers have role 'assistant'",
}
_FIELDS: Final = {
    "tool_calls": "'tool_calls': Claude's tool calls are tool_use blocks of the content",
    "function_call": "'function_call': Claude's tool calls are tool_use blocks of the content",
    "tool_call_id": "'tool_call_id': Claude takes tool results as tool_result blocks of a user message",
    "parts": "'parts': a message of Claude's has 'role' and 'content'",
}
_KINDS: Final = {
    "image_url": "Claude takes an image as a block of type 'image' with a source; `penstock.image` makes one",
    "input_image": "Claude takes an image as a block of type 'image' with a source; `penstock.image` makes one",
    "input_text": "Claude's texts have type 'text'",
    "output_text": "Claude's texts have type 'text'",
    "input_file": "Claude takes a document as a block of type 'document' with a source",
    "file": "Claude takes a document as a block of type 'document' with a source",
    "input_audio": "Claude takes no audio",
    "function_call": "Claude's tool calls have type 'tool_use'",
    "function_call_output": "Claude takes tool results as blocks of type 'tool_result'",
    "tool_call": "Claude's tool calls have type 'tool_use'",
}
# Blocks that only one role may have; the texts that blocks must have.
_OF_USER: Final = frozenset({"tool_result", "search_result", "document"})
_OF_ASSISTANT: Final = frozenset({"tool_use", "server_tool_use", "thinking", "redacted_thinking"})
_TEXTS: Final[dict[str, tuple[str, ...]]] = {
    "text": ("text",),
    "tool_use": ("id", "name"),
    "tool_result": ("tool_use_id",),
    "thinking": ("thinking", "signature"),
    "redacted_thinking": ("data",),
}
_MAY_BE_EMPTY: Final = frozenset({"thinking", "redacted_thinking"})


def turns_of(messages: Iterable[object], place: str = "messages") -> tuple[Turn, ...]:
    """Return the turns of a history that the caller brings; it may end with tool calls that wait for their results.

    Raises:
        InvalidHistory: The API would not take it.
    """
    given = cast("object", messages)
    if isinstance(given, str | bytes | dict) or not isinstance(given, Iterable):
        raise InvalidHistory(place, f"must be a list of messages, not {type(messages).__name__}")
    listed = list(cast("Iterable[object]", given))
    if len(listed) > _MOST_MESSAGES:
        raise InvalidHistory(place, f"are more than {_MOST_MESSAGES:,}, which no request can hold")
    turns = tuple(_turn(message, f"{place}.{index}") for index, message in enumerate(listed))
    if turns and turns[0].role != "user":
        hint = _ROLES["system"] if turns[0].role == "system" else "the first message must be the user's"
        raise InvalidHistory(f"{place}.0", hint)
    check_pairs(turns, place)
    return turns


def user_blocks(content: Content, *, images: Iterable[object], documents: Iterable[object]) -> tuple[Block, ...]:
    """Return what the user says next: results of tools first, then documents and images, then the rest.

    Raises:
        InvalidHistory: The API would not take it.
    """
    given = _blocks(content, "user", "content")
    media = [*_media(documents, "document"), *_media(images, "image")]
    results = [block for block in given if block["type"] == "tool_result"]
    others = [block for block in given if block["type"] != "tool_result"]
    return (*results, *media, *others)


def open_calls(turns: Sequence[Turn]) -> tuple[str, ...]:
    """Return the ids of the tool calls at the end of a history, which wait for their results."""
    calls: list[str] = []
    for turn in reversed(turns):
        if turn.role != "assistant":
            break
        calls = ids_of(turn.content, "tool_use") + calls
    return tuple(calls)


def check_pairs(turns: Sequence[Turn], place: str) -> None:
    """Check that each tool call is answered once, in the next message, before anything else.

    Raises:
        InvalidHistory: One is not.
    """
    calls: list[str] = []
    for role, run in _runs(turns):
        at = f"{place}.{run[0][0]}"
        blocks = [block for _, turn in run for block in turn.content]
        _check_answers(calls, blocks, at)
        calls = ids_of(blocks, "tool_use") if role == "assistant" else []
        if len(set(calls)) < len(calls):
            raise InvalidHistory(at, "two tool calls have the same id")


def _runs(turns: Sequence[Turn]) -> Iterator[tuple[Role, list[tuple[int, Turn]]]]:
    """Messages of one role that follow each other count as one."""
    for _, run in groupby(enumerate(turns), key=lambda item: item[1].role):
        found = list(run)
        yield found[0][1].role, found


def _check_answers(calls: Sequence[str], blocks: Sequence[Block], at: str) -> None:
    leading = next((index for index, block in enumerate(blocks) if block["type"] != "tool_result"), len(blocks))
    answered = set(ids_of(blocks[:leading], "tool_result"))
    missing = [call for call in calls if call not in answered]
    if missing:
        raise InvalidHistory(
            at,
            f"the tool calls {', '.join(missing)} are not answered: each needs a tool_result in the next user message, "
            "all in one, before any other block",
        )
    results, called = ids_of(blocks, "tool_result"), set(calls)
    for result in results:
        if result not in called:
            raise InvalidHistory(at, f"has a tool_result for {result}, which is no tool call of the message before")
    if len(set(results)) < len(results):
        raise InvalidHistory(at, "answers a tool call twice")


def _turn(message: object, at: str) -> Turn:
    if isinstance(message, BaseModel):
        # An answer of the SDK's, as it came.
        content: object = getattr(message, "content", None)
        return Turn(role=_role(getattr(message, "role", None), at), content=_turn_blocks(content, "assistant", at))
    if not isinstance(message, Mapping):
        raise InvalidHistory(at, f"must be a message (a dict with 'role' and 'content'), not {type(message).__name__}")
    fields = cast("Mapping[object, object]", message)
    role = _role(fields.get("role"), at)
    for name in fields:
        if name not in _OF_ANSWERS:
            raise InvalidHistory(at, f"has the field {_FIELDS.get(str(name), repr(str(name)[:40]))}")
    return Turn(role=role, content=_turn_blocks(fields.get("content"), role, at))


def _role(role: object, at: str) -> Role:
    known: tuple[Role, ...] = ("user", "assistant") if at.endswith(".0") else ("user", "assistant", "system")
    for each in known:
        if role == each:
            return each
    unknown = "has no role" if role is None else "its role must be 'user' or 'assistant'"
    raise InvalidHistory(at, _ROLES.get(str(role), unknown))


def _turn_blocks(content: object, role: Role, at: str) -> tuple[Block, ...]:
    if content is None:
        raise InvalidHistory(f"{at}.content", "is null: leave out messages without content")
    blocks = _blocks(cast("Content", content), role, f"{at}.content")
    if not blocks:
        raise InvalidHistory(f"{at}.content", "is empty")
    return tuple(blocks)


def _blocks(content: Content, role: Role, at: str) -> list[Block]:
    if isinstance(content, str):
        if content and not content.strip():
            raise InvalidHistory(at, "is nothing but space")
        return [{"type": "text", "text": content}] if content else []
    given = cast("object", content)
    if isinstance(given, dict | BaseModel):
        given = [cast("object", given)]
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise InvalidHistory(at, f"must be a text or a list of content blocks, not {type(given).__name__}")
    blocks = [plain_block(block, f"{at}.{index}") for index, block in enumerate(cast("Iterable[object]", given))]
    for index, block in enumerate(blocks):
        _check_block(block, role, f"{at}.{index}")
    return blocks


def _media(given: Iterable[object], kind: str) -> list[Block]:
    at = f"{kind}s"
    if isinstance(given, Mapping | str | bytes) or not isinstance(cast("object", given), Iterable):
        raise InvalidHistory(at, f"must be a list of {kind} blocks; `penstock.{kind}` makes them")
    blocks = [plain_block(block, f"{at}.{index}") for index, block in enumerate(given)]
    for index, block in enumerate(blocks):
        if block.get("type") != kind:
            raise InvalidHistory(f"{at}.{index}", f"must be a block of type {kind!r}; `penstock.{kind}` makes one")
    return blocks


def _check_block(block: Block, role: Role, at: str) -> None:
    kind: object = block.get("type")
    if not isinstance(kind, str):
        raise InvalidHistory(at, "has no 'type'")
    if kind in _KINDS:
        raise InvalidHistory(at, f"has type {kind!r}: {_KINDS[kind]}")
    wrong = _OF_USER if role == "assistant" else _OF_ASSISTANT
    if kind in wrong or (role == "system" and kind != "text"):
        raise InvalidHistory(at, f"has type {kind!r}, which a message of role {role!r} can't have")
    for name in _TEXTS.get(kind, ()):
        if not isinstance(block.get(name), str):
            raise InvalidHistory(f"{at}.{name}", "must be a text")
        if not block[name].strip() and kind not in _MAY_BE_EMPTY:
            raise InvalidHistory(f"{at}.{name}", "is empty")
    if kind == "tool_use" and not isinstance(block.get("input"), dict):
        raise InvalidHistory(f"{at}.input", "must be an object")
    if kind == "tool_result":
        _check_result(block.get("content"), f"{at}.content")


def _check_result(content: object, at: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InvalidHistory(at, "must be a text or a list of content blocks")
    for index, block in enumerate(cast("list[Block]", content)):
        _check_block(block, "user", f"{at}.{index}")
