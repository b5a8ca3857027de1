"""What may be in a history: roles, blocks, and tool calls that are answered. The one verdict, for all who keep one.

The rule here: what the API would refuse is refused before it is sent, with its place and what to do, and without
quoting it; what an answer had that can't go back is made good as for one that has just come. Block types that are not
known pass: the API may have learned them since.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from anthropic.types.beta import BetaMessage
from pydantic import BaseModel

from penstock._core.models import check_system_turns, known
from penstock.errors import InvalidHistory
from penstock.messages.blocks import Block, Role, Turn, answer_block, ids_of, mended, plain_block, says_nothing

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

__all__ = [
    "Content",
    "check_can_be_sent",
    "check_pairs",
    "check_roles",
    "container_in",
    "container_param",
    "given_blocks",
    "last_calls",
    "open_calls",
    "told_of_halves",
    "turns_of",
    "user_blocks",
]

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


def turns_of(messages: Iterable[object], place: str = "messages", *, as_given: bool = False) -> tuple[Turn, ...]:
    """Return the turns of a history that the caller brings; it may end with tool calls that wait for their results.

    Args:
        messages: Dicts, messages of the SDK, or both.
        place: What errors call them.
        as_given: Whether marks of the prompt cache and texts stay as they are, because the caller sends them himself.

    Raises:
        InvalidHistory: The API would not take it.
    """
    given = cast("object", messages)
    if isinstance(given, str | bytes | dict) or not isinstance(given, Iterable):
        raise InvalidHistory(place, f"must be a list of messages, not {type(messages).__name__}")
    listed = list(cast("Iterable[object]", given))
    if len(listed) > _MOST_MESSAGES:
        raise InvalidHistory(place, f"are more than {_MOST_MESSAGES:,}, which no request can hold")
    turns = tuple(_turn(message, f"{place}.{index}", as_given=as_given) for index, message in enumerate(listed))
    if turns and turns[0].role != "user":
        raise InvalidHistory(f"{place}.0", "the first message must be the user's")
    check_pairs(turns, place, may_end_open=True)
    return turns


def given_blocks(content: Iterable[object], place: str) -> tuple[Block, ...]:
    """Return the blocks of a user's message, as they are given.

    Raises:
        InvalidHistory: The API would not take them.
    """
    return tuple(_blocks(cast("Content", content), "user", place, marks=True))


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


def last_calls(turns: Sequence[Turn]) -> tuple[list[Block], list[Block]]:
    """Return the tool calls at the end of a history, and the results of some of them, if others wait for theirs."""
    left = list(turns)
    results: list[Block] = []
    while left and left[-1].role == "user" and _only_results(left[-1].content):
        results[:0] = left.pop().content
    calls: list[Block] = []
    while left and left[-1].role == "assistant":
        calls[:0] = [block for block in left.pop().content if block["type"] == "tool_use"]
    answered = set(ids_of(results, "tool_result"))
    return ([], []) if all(call["id"] in answered for call in calls) else (calls, results)


def open_calls(turns: Sequence[Turn]) -> tuple[str, ...]:
    """Return the ids of the tool calls at the end of a history, which wait for their results."""
    calls, results = last_calls(turns)
    answered = ids_of(results, "tool_result")
    return tuple(call["id"] for call in calls if call["id"] not in answered)


def _only_results(blocks: Iterable[Block]) -> bool:
    return all(block["type"] == "tool_result" for block in blocks)


def check_pairs(turns: Sequence[Turn], place: str, *, may_end_open: bool = False) -> None:
    """Check that each tool call is answered once, in the next message, before anything else.

    Args:
        turns: The history.
        place: What errors call it.
        may_end_open: Whether results may be missing at its end, to be added.

    Raises:
        InvalidHistory: One is not.
    """
    calls: list[str] = []
    end = 0
    for role, run in _runs(turns):
        at = f"{place}.{run[0][0]}"
        end += len(run)
        blocks = [block for _, turn in run for block in turn.content]
        may_miss = may_end_open and end == len(turns) and role == "user" and _only_results(blocks)
        _check_answers(calls, blocks, at, may_miss=may_miss)
        calls = ids_of(blocks, "tool_use") if role == "assistant" else []
        if len(set(calls)) < len(calls):
            raise InvalidHistory(at, "two tool calls have the same id")


def check_roles(turns: Iterable[Turn], model: str) -> None:
    """Check that a model takes the roles of a history.

    Raises:
        ValueError: It takes no system turns.
    """
    if any(turn.role == "system" for turn in turns):
        check_system_turns(model)


def check_can_be_sent(turns: Sequence[Turn], model: str, place: str = "messages") -> None:
    """Check that a history ends with what a model answers, if no tool calls wait for their results.

    Raises:
        InvalidHistory: It ends with a whole answer.
    """
    if turns[-1].role != "assistant" or known(model).prefill or open_calls(turns):
        return
    last = list(_runs(turns))[-1][1]
    kinds = {block["type"] for _, turn in last for block in turn.content}
    if "server_tool_use" not in kinds and turns[-1].content[-1]["type"] != "compaction":
        raise InvalidHistory(f"{place}.{len(turns) - 1}", "is an answer, the last message: add what the user says next")


@contextlib.contextmanager
def told_of_halves(place: str) -> Generator[None]:
    """Say what is wrong where a request can't be written.

    Raises:
        InvalidHistory: There are characters in it that can't be sent.
    """
    try:
        yield
    except UnicodeEncodeError:
        # Not told before, because a guard may take them out.
        half = "has half of a surrogate pair, which can't be sent; the guard Sanitize takes them out"
        raise InvalidHistory(place, half) from None


def _runs(turns: Sequence[Turn]) -> Iterator[tuple[Role, list[tuple[int, Turn]]]]:
    """Messages of one role that follow each other count as one."""
    for _, run in groupby(enumerate(turns), key=lambda item: item[1].role):
        found = list(run)
        yield found[0][1].role, found


def _check_answers(calls: Sequence[str], blocks: Sequence[Block], at: str, *, may_miss: bool) -> None:
    leading = next((index for index, block in enumerate(blocks) if block["type"] != "tool_result"), len(blocks))
    answered = set(ids_of(blocks[:leading], "tool_result"))
    missing = [call for call in calls if call not in answered]
    if missing and not may_miss:
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


def _turn(message: object, at: str, *, as_given: bool) -> Turn:
    if isinstance(message, BaseModel):
        # An answer of the SDK's, as it came.
        role = _role(getattr(message, "role", None), at)
        return _turn_with(getattr(message, "content", None), role, at, as_given=as_given)
    if not isinstance(message, Mapping):
        raise InvalidHistory(at, f"must be a message (a dict with 'role' and 'content'), not {type(message).__name__}")
    fields = cast("Mapping[object, object]", message)
    role = _role(fields.get("role"), at)
    for name in fields:
        if name not in _OF_ANSWERS:
            raise InvalidHistory(at, f"has the field {_FIELDS.get(str(name), repr(str(name)[:40]))}")
    return _turn_with(fields.get("content"), role, at, as_given=as_given)


def _role(role: object, at: str) -> Role:
    known: tuple[Role, ...] = ("user", "assistant") if at.endswith(".0") else ("user", "assistant", "system")
    for each in known:
        if role == each:
            return each
    unknown = "has no role" if role is None else "its role must be 'user' or 'assistant'"
    raise InvalidHistory(at, _ROLES.get(str(role), unknown))


def _turn_with(content: object, role: Role, at: str, *, as_given: bool) -> Turn:
    if content is None:
        raise InvalidHistory(f"{at}.content", "is null: leave out messages without content")
    blocks = _blocks(cast("Content", content), role, f"{at}.content", marks=as_given)
    if not blocks:
        raise InvalidHistory(f"{at}.content", "is empty; leave the message out")
    return Turn(role=role, content=tuple(blocks), as_text=as_given and isinstance(content, str))


def _blocks(content: Content, role: Role, at: str, *, marks: bool = False) -> list[Block]:
    of_answer = role == "assistant"
    if isinstance(content, str):
        if content and not content.strip():
            raise InvalidHistory(at, "is nothing but space")
        text = mended(content, lone="replace" if of_answer else "surrogatepass")
        return [{"type": "text", "text": text}] if content else []
    given = cast("object", content)
    if isinstance(given, dict | BaseModel):
        given = [cast("object", given)]
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise InvalidHistory(at, f"must be a text or a list of content blocks, not {type(given).__name__}")
    blocks: list[Block] = []
    for index, each in enumerate(cast("Iterable[object]", given)):
        place = f"{at}.{index}"
        block = plain_block(each, place, marks=marks, lone="replace" if of_answer else "surrogatepass")
        if of_answer:
            block = answer_block(block)
            if says_nothing(block):
                continue
        _check_block(block, role, place)
        blocks.append(block)
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
    if kind == "tool_result":
        _check_result(block.get("content"), f"{at}.content")


def _check_result(content: object, at: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InvalidHistory(at, "must be a text or a list of content blocks")
    for index, block in enumerate(cast("list[Block]", content)):
        _check_block(block, "user", f"{at}.{index}")


# The container of code execution


def container_in(messages: Iterable[object]) -> str | None:
    """Return the container that a history goes on in: of its last answer that names one, or the transcript's own."""
    found: str | None = getattr(messages, "container", None)
    for message in messages:
        if isinstance(message, BaseModel):
            found = getattr(getattr(message, "container", None), "id", None) or found
    return found


def container_param(wanted: object, found: str | None) -> object:
    """Return the parameter `container` of a request.

    Args:
        wanted: What the caller gives: an id, skills without one, or `None`.
        found: Where the code of the answers before goes on, if it does anywhere.
    """
    if found is None:
        return wanted
    skills = wanted
    if isinstance(skills, Mapping) and not cast("Mapping[str, object]", skills).get("id"):
        return {**cast("Mapping[str, object]", skills), "id": found}
    return found if wanted is None else wanted
