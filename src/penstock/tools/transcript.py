"""The messages of a conversation with tools, which can be sent at any moment.

The rule here: messages are only ever added, never changed; and whatever has happened, the transcript that is given out
has every `tool_use` answered, by one `tool_result`, in the next message, in order. Only answers that a prompt leaves
incomplete are taken back, to be completed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, cast

from anthropic.types.beta import BetaMessage
from pydantic import BaseModel

from penstock.errors import InvalidHistory
from penstock.tools.content import Result, failed
from penstock.tools.events import ToolCall

if TYPE_CHECKING:
    from anthropic.types import MessageParam

__all__ = ["Prompt", "Transcript", "message_params"]

Prompt = str | Iterable[Any]

_ROLES: Final = ("user", "assistant", "system")
# What a reply of the SDK's that was stored whole has besides; it is left out.
_OF_REPLIES: Final = frozenset(BetaMessage.model_fields)
_BEGUN: Final = "Interrupted: the tool had begun, and whether it has done its work is not known."


class Transcript:
    """The messages so far, and the calls of the last turn that are not answered yet.

    Args:
        prompt: A text, a list of content blocks, or messages: a transcript to go on from.

    Raises:
        InvalidHistory: A message is not what the API takes.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._messages = message_params(prompt)
        # Why calls that have not begun are not run, should nothing else be said.
        self.not_run = "Not run: the conversation was interrupted."
        self._calls: dict[str, Mapping[str, Any]] = {}
        self._begun: set[str] = set()
        self._results: dict[str, Result] = {}
        self._reopen()

    def __repr__(self) -> str:
        return f"<Transcript of {len(self._messages)} messages, {len(self.unanswered)} calls unanswered>"

    @property
    def to_send(self) -> list[dict[str, Any]]:
        """The messages as they are. Calls without an answer are in them only where a paused turn is sent back."""
        return list(self._messages)

    @property
    def valid(self) -> list[MessageParam]:
        """The messages, and an answer to every call: what it gave, else why it gave nothing."""
        answers = [self._answer_message()] if self._calls else []
        return cast("list[MessageParam]", [*self._messages, *answers])

    @property
    def unanswered(self) -> list[ToolCall]:
        """Calls of the last turn that have no result, in order."""
        return [_call_of(block) for identity, block in self._calls.items() if identity not in self._results]

    @property
    def turn(self) -> list[tuple[object, object, Result | None]]:
        """The last turn's calls, by name and input, and what came of each."""
        calls = self._calls.items()
        return [(block.get("name"), block.get("input"), self._results.get(identity)) for identity, block in calls]

    def add_reply(self, content: Iterable[Any]) -> None:
        """Add what the model said. Nothing said is not added: the API takes no empty message."""
        place = f"messages.{len(self._messages)}.content"
        blocks = [_block_param(block, f"{place}.{index}") for index, block in enumerate(content)]
        if blocks:
            message = {"role": "assistant", "content": blocks}
            self._messages.append(message)
            # After a paused turn, which this one is the rest of, its calls are still there.
            self._calls |= _calls_in(message)

    def begin(self, call: ToolCall) -> None:
        """Note that a call is being run."""
        self._begun.add(call.id)

    def answer(self, call: ToolCall, result: Result) -> None:
        """Note the result of a call."""
        self._results[call.id] = result

    def close_turn(self) -> None:
        """Add the answers to the last turn's calls, as a message of their own."""
        if self._calls:
            self._messages.append(self._answer_message())
            self._calls, self._results, self._begun = {}, {}, set()

    def _reopen(self) -> None:
        """Take up the last turn, if calls of it stand unanswered: none of them is answered, or some."""
        calls = _open_calls(self._messages)
        if not calls:
            return
        while self._messages[-1]["role"] == "user":
            for block in self._messages.pop()["content"]:
                self._results[str(block.get("tool_use_id"))] = _result_in(block)
        said = takewhile(lambda message: message["role"] == "assistant", reversed(self._messages))
        for message in reversed(list(said)):
            self._calls |= _calls_in(message)

    def _answer_message(self) -> dict[str, Any]:
        calls = [_call_of(block) for block in self._calls.values()]
        return {"role": "user", "content": [_result_block(call, self._result_of(call)) for call in calls]}

    def _result_of(self, call: ToolCall) -> Result:
        found = self._results.get(call.id)
        return found or failed(_BEGUN if call.id in self._begun else self.not_run)


# Calls and results


def _blocks_in(message: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    content = message["content"]
    blocks = cast("list[Mapping[str, Any]]", content) if isinstance(content, list) else []
    return [block for block in blocks if block["type"] == kind]


def _calls_in(message: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(block.get("id")): block for block in _blocks_in(message, "tool_use")}


def _call_of(block: Mapping[str, Any]) -> ToolCall:
    toolset = block.get("toolset_name")
    return ToolCall(
        id=str(block.get("id")),
        name=str(block.get("name")),
        input=_input_of(block),
        toolset_name=str(toolset) if toolset else None,
    )


def _input_of(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a call's input. One that is no object is wrapped in one, as the API asks for."""
    given = block.get("input")
    if isinstance(given, dict):
        return copy.deepcopy(cast("dict[str, Any]", given))
    return {} if given is None else {"INVALID_JSON": json.dumps(given)}


def _result_block(call: ToolCall, result: Result) -> dict[str, Any]:
    """Return the `tool_result` block that answers a call."""
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": call.id}
    if result.content:
        block["content"] = result.content
    if result.is_error:
        block["is_error"] = True
    if call.toolset_name is not None:
        block["toolset_name"] = call.toolset_name
    return block


def _result_in(block: Mapping[str, Any]) -> Result:
    return Result(content=block.get("content") or "", is_error=bool(block.get("is_error")))


def _open_calls(messages: list[dict[str, Any]]) -> list[str]:
    """Return the calls that nothing answers yet, at the end of messages.

    Raises:
        InvalidHistory: There are some before the end, where they can't be answered any more, or answers to none.
    """
    calls: list[str] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and (not calls or messages[index - 1]["role"] == "assistant"):
            calls += _calls_in(message)
            continue
        results = [str(block.get("tool_use_id")) for block in _blocks_in(message, "tool_result")]
        for result in results:
            if result not in calls:
                raise InvalidHistory(f"messages.{index}", f"answers {result}, which is no tool call that waits for it")
        calls = [call for call in calls if call not in results]
        if calls and len(results) < len(message["content"]):
            raise InvalidHistory(
                f"messages.{index}",
                f"the tool calls {', '.join(calls)} are not answered: each needs a tool_result in the next user "
                "message, before any other block",
            )
    return calls


# Messages


def message_params(prompt: Prompt) -> list[dict[str, Any]]:
    """Return the messages that a prompt stands for, as plain dicts.

    Raises:
        InvalidHistory: One is not what the API takes.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InvalidHistory("prompt", "must not be blank")
        return [{"role": "user", "content": prompt}]
    kind = type(cast("object", prompt))
    if issubclass(kind, bytes | Mapping | BaseModel) or not issubclass(kind, Iterable):
        raise InvalidHistory("prompt", f"must be a text, content blocks or messages, not {kind.__name__}")
    items: list[object] = list(prompt)
    if not items:
        raise InvalidHistory("prompt", "must not be empty")
    if _field(items[0], "role") is None:
        return [
            {"role": "user", "content": [_block_param(item, f"prompt.{index}") for index, item in enumerate(items)]}
        ]
    return [_message_param(item, f"messages.{index}") for index, item in enumerate(items)]


def _message_param(item: object, place: str) -> dict[str, Any]:
    role, content = _field(item, "role"), _field(item, "content")
    if role not in _ROLES:
        raise InvalidHistory(f"{place}.role", f"must be one of {', '.join(_ROLES)}")
    if isinstance(item, Mapping):
        for name in cast("Mapping[str, Any]", item).keys() - _OF_REPLIES:
            raise InvalidHistory(f"{place}.{name}", "is no field of a message; calls and results are content blocks")
    if not isinstance(content, str | Iterable) or isinstance(content, bytes | Mapping):
        raise InvalidHistory(f"{place}.content", "must be a text or content blocks")
    if not isinstance(content, str):
        blocks = enumerate(cast("Iterable[object]", content))
        content = [_block_param(block, f"{place}.content.{index}") for index, block in blocks]
    if not content:
        raise InvalidHistory(f"{place}.content", "is empty; leave the message out")
    return {"role": role, "content": content}


def _block_param(block: object, place: str) -> dict[str, Any]:
    """Return a content block as the API takes it back: with the fields that came, a call with an object as input."""
    if isinstance(block, BaseModel):
        block = block.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings=False)
    if not isinstance(block, Mapping) or not isinstance(cast("Mapping[str, Any]", block).get("type"), str):
        raise InvalidHistory(place, "must be a content block, a dict with a type")
    param = dict(cast("Mapping[str, Any]", block))
    if param["type"] == "tool_use" and not isinstance(param.get("input"), dict):
        param["input"] = _input_of(param)
    return param


def _field(item: object, name: str) -> object:
    if isinstance(item, Mapping):
        return cast("Mapping[str, object]", item).get(name)
    return getattr(item, name, None) if isinstance(item, BaseModel) else None
