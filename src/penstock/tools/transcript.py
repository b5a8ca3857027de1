"""The messages of a conversation with tools, which can be sent at any moment.

The rule here: a history (`penstock.messages`), and the calls of its last turn that are not answered yet. Messages are
only ever added, never changed; and whatever has happened, the transcript that is given out has every `tool_use`
answered, by one `tool_result`, in the next message, in order. Only answers that a prompt leaves incomplete are taken
back, to be completed.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from pydantic import BaseModel

from penstock.errors import InvalidHistory
from penstock.messages.blocks import Turn, answer_blocks
from penstock.messages.history import container_in, given_blocks, last_calls, turns_of
from penstock.tools.content import Result, failed
from penstock.tools.events import ToolCall

if TYPE_CHECKING:
    from collections.abc import Generator

    from anthropic.types import MessageParam

    from penstock.messages.blocks import Block

__all__ = ["Messages", "Prompt", "Transcript", "prompt_turns"]

Prompt: TypeAlias = str | Iterable[Any]

_BEGUN = "Interrupted: the tool had begun, and whether it has done its work is not known."


class Messages(list["MessageParam"]):
    """The messages of a run: a list, which remembers what they need besides as long as it isn't copied.

    Attributes:
        container: The id of the container in which code goes on that the model ran on the server.
    """

    def __init__(self, messages: Iterable[MessageParam], container: str | None = None) -> None:
        super().__init__(messages)
        self.container = container


class Transcript:
    """The messages so far, and the calls of the last turn that are not answered yet.

    Args:
        prompt: A text, a list of content blocks, or messages: a transcript to go on from; or checked turns.

    Attributes:
        turns: The messages.
        container: Of the last answer that had one.
        not_run: Why calls that have not begun are not run, should nothing else be said.

    Raises:
        InvalidHistory: A message is not what the API takes.
    """

    def __init__(self, prompt: Prompt | tuple[Turn, ...]) -> None:
        self.turns, self.container = prompt_turns(prompt)
        self.not_run = "Not run: the conversation was interrupted."
        self._calls: dict[str, Block] = {}
        self._begun: set[str] = set()
        self._results: dict[str, Result] = {}
        self._asked: set[str] = set()
        self._put_off: set[str] = set()
        self._reopen()

    def __repr__(self) -> str:
        return f"<Transcript of {len(self.turns)} messages, {len(self.unanswered)} calls unanswered>"

    @property
    def to_send(self) -> list[MessageParam]:
        """The messages as they are. Calls without an answer are in them only where a paused turn is sent back."""
        return [turn.param() for turn in self.turns]

    @property
    def valid(self) -> Messages:
        """The messages, and an answer to every call: what it gave, else why it gave nothing."""
        answers = [self._answers().param()] if self._calls else []
        return Messages([*self.to_send, *answers], self.container)

    @property
    def resumable(self) -> Messages:
        """The messages, calls that have not begun left unanswered: whoever goes on from them runs those."""
        return Messages([turn.param() for turn in self.resumable_turns], self.container)

    @property
    def resumable_turns(self) -> list[Turn]:
        """The same as turns."""
        told = [identity for identity in self._calls if identity in self._results or identity in self._begun]
        return [*self.turns, *([self._answers(told)] if told else [])]

    @property
    def answered(self) -> Turn:
        """The answers to the last calls: what each gave, or why it gave nothing."""
        return self._answers() if self._calls else self.turns[-1]

    @property
    def waits(self) -> bool:
        """Whether somebody is being asked about a call, or has put one off."""
        return bool(self._asked or self._put_off)

    @property
    def pending(self) -> tuple[ToolCall, ...]:
        """Calls of the last turn that were put off, in order."""
        return tuple(_call_of(block) for identity, block in self._calls.items() if identity in self._put_off)

    @property
    def unanswered(self) -> list[ToolCall]:
        """Calls of the last turn that have no result and were not put off, in order."""
        left = self._calls.keys() - self._results.keys() - self._put_off
        return [_call_of(block) for identity, block in self._calls.items() if identity in left]

    @property
    def turn(self) -> list[tuple[object, object, Result | None]]:
        """The last turn's calls, by name and input, and what came of each."""
        calls = self._calls.items()
        return [(block["name"], block["input"], self._results.get(identity)) for identity, block in calls]

    def add_reply(self, content: Iterable[object]) -> None:
        """Add what the model said. Nothing said is not added: the API takes no empty message."""
        blocks = answer_blocks(content)
        if blocks:
            self.turns.append(Turn(role="assistant", content=blocks))
            # After a paused turn, which this one is the rest of, its calls are still there.
            self._calls |= {block["id"]: block for block in blocks if block["type"] == "tool_use"}

    @contextlib.contextmanager
    def asking(self, call: ToolCall) -> Generator[None]:
        """Note that somebody is being asked about a call, for a block."""
        self._asked.add(call.id)
        try:
            yield
        finally:
            self._asked.discard(call.id)

    def put_off(self, call: ToolCall) -> None:
        """Note that a call is decided about later."""
        self._put_off.add(call.id)

    def begin(self, call: ToolCall) -> None:
        """Note that a call is being run."""
        self._begun.add(call.id)

    def answer(self, call: ToolCall, result: Result) -> None:
        """Note the result of a call."""
        self._results[call.id] = result

    def close_turn(self) -> None:
        """Add the answers to the last turn's calls, as a message of their own."""
        if self._calls:
            self.turns.append(self._answers())
            self._calls, self._results, self._begun = {}, {}, set()

    def _reopen(self) -> None:
        """Take up the last turn, if calls of it stand unanswered: none of them is answered, or some."""
        calls, results = last_calls(self.turns)
        self._calls = {call["id"]: call for call in calls}
        self._results = {block["tool_use_id"]: _result_in(block) for block in results}
        while calls and self.turns[-1].role == "user":
            self.turns.pop()

    def _answers(self, told: Iterable[str] | None = None) -> Turn:
        identities = self._calls if told is None else told
        blocks = tuple(_result_block(self._calls[identity], self._result_of(identity)) for identity in identities)
        return Turn(role="user", content=blocks)

    def _result_of(self, identity: str) -> Result:
        found = self._results.get(identity)
        return found or failed(_BEGUN if identity in self._begun else self.not_run)


def prompt_turns(prompt: Prompt | tuple[Turn, ...]) -> tuple[list[Turn], str | None]:
    """Return the messages that a prompt stands for, and the container that they need.

    Raises:
        InvalidHistory: One is not what the API takes.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InvalidHistory("prompt", "must not be blank")
        return [Turn(role="user", content=({"type": "text", "text": prompt},), as_text=True)], None
    kind = type(cast("object", prompt))
    if issubclass(kind, bytes | Mapping | BaseModel) or not issubclass(kind, Iterable):
        raise InvalidHistory("prompt", f"must be a text, content blocks or messages, not {kind.__name__}")
    items: list[Any] = list(prompt)
    if items and isinstance(items[0], Turn):
        # A conversation's, checked already.
        return items, None
    if not items:
        raise InvalidHistory("prompt", "must not be empty")
    if not _is_message(items[0]):
        return [Turn(role="user", content=given_blocks(items, "prompt"))], None
    turns = turns_of(items, as_given=True)
    return list(turns), container_in(prompt if isinstance(prompt, list) else items)


def _is_message(item: object) -> bool:
    return "role" in cast("Mapping[str, object]", item) if isinstance(item, Mapping) else hasattr(item, "role")


def _call_of(block: Block) -> ToolCall:
    return ToolCall(
        id=block["id"],
        name=block["name"],
        input=copy.deepcopy(block["input"]),
        toolset_name=block.get("toolset_name"),
    )


def _result_block(call: Block, result: Result) -> Block:
    """Return the `tool_result` block that answers a call."""
    block: Block = {"type": "tool_result", "tool_use_id": call["id"]}
    if result.content:
        block["content"] = result.content
    if result.is_error:
        block["is_error"] = True
    if call.get("toolset_name"):
        block["toolset_name"] = call["toolset_name"]
    return block


def _result_in(block: Block) -> Result:
    return Result(content=block.get("content") or "", is_error=bool(block.get("is_error")))
