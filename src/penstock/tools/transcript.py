"""The messages of a conversation with tools, which can be sent at any moment.

The rule here: messages are only ever added, never changed; and whatever has happened, the transcript that is given out
has every `tool_use` answered, by one `tool_result`, in the next message, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import BaseModel

from penstock.errors import InvalidHistory
from penstock.tools.call import Result, ToolCall, call_of, result_block
from penstock.tools.content import failed

if TYPE_CHECKING:
    from anthropic.types import MessageParam

__all__ = ["Prompt", "Transcript", "message_params"]

Prompt = str | Iterable[Any]

_ROLES: Final = ("user", "assistant", "system")
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
        for message in reversed(self._messages):
            if message["role"] != "assistant":
                break
            self._calls = {**_calls_in(message), **self._calls}

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
        return [call_of(block) for identity, block in self._calls.items() if identity not in self._results]

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

    def _answer_message(self) -> dict[str, Any]:
        calls = [call_of(block) for block in self._calls.values()]
        return {"role": "user", "content": [result_block(call, self._result_of(call)) for call in calls]}

    def _result_of(self, call: ToolCall) -> Result:
        found = self._results.get(call.id)
        return found or failed(_BEGUN if call.id in self._begun else self.not_run)


def _calls_in(message: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    content = message["content"]
    blocks = cast("list[Mapping[str, Any]]", content) if isinstance(content, list) else []
    return {str(block.get("id")): block for block in blocks if block["type"] == "tool_use"}


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
    if isinstance(content, str):
        return {"role": role, "content": content}
    if not isinstance(content, Iterable) or isinstance(content, bytes | Mapping):
        raise InvalidHistory(f"{place}.content", "must be a text or content blocks")
    blocks = enumerate(cast("Iterable[object]", content))
    return {"role": role, "content": [_block_param(block, f"{place}.content.{index}") for index, block in blocks]}


def _block_param(block: object, place: str) -> dict[str, Any]:
    """Return a content block as the API takes it back: with the fields that came, and no others."""
    if isinstance(block, BaseModel):
        block = block.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings=False)
    if not isinstance(block, Mapping) or not isinstance(cast("Mapping[str, Any]", block).get("type"), str):
        raise InvalidHistory(place, "must be a content block, a dict with a type")
    return dict(cast("Mapping[str, Any]", block))


def _field(item: object, name: str) -> object:
    if isinstance(item, Mapping):
        return cast("Mapping[str, object]", item).get(name)
    return getattr(item, name, None) if isinstance(item, BaseModel) else None
