"""The messages together: tool calls and their results belong to each other, and the conversation ends with the user.

Consecutive messages of one role count as one turn, as in the API.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.simulator.wire import invalid, is_list

if TYPE_CHECKING:
    from penstock.simulator.models import Model
    from penstock.simulator.wire import Json

__all__ = ["check_turns"]

_PREFILL = "This model does not support assistant message prefill. The conversation must end with a user message."

_UNANSWERED = (
    "messages.{at}: `tool_use` ids were found without `tool_result` blocks immediately after: {calls}. "
    "Each `tool_use` block must have a corresponding `tool_result` block in the next message."
)
_UNEXPECTED = (
    "messages.{at}.content: unexpected `tool_use_id` found in `tool_result` blocks: {result}. "
    "Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
)


@dataclass(kw_only=True, slots=True)
class _Turn:
    role: str
    first: int
    blocks: list[Json] = field(default_factory=list["Json"])

    def values(self, kind: str, name: str) -> list[str]:
        return [block[name] for block in self.blocks if block["type"] == kind]


def check_turns(messages: list[Json], model: Model) -> None:
    """Raise where the API would refuse the conversation as a whole."""
    turns = _turns(messages)
    before = _Turn(role="", first=0)
    for turn in turns:
        _check_results(before, turn)
        before = turn
    last = turns[-1]
    if last.role == "assistant":
        _check_end(last, model)


def _turns(messages: list[Json]) -> list[_Turn]:
    turns: list[_Turn] = []
    for index, message in enumerate(messages):
        if not turns or turns[-1].role != message["role"]:
            turns.append(_Turn(role=message["role"], first=index))
        content = message["content"]
        turns[-1].blocks.extend(content if is_list(content) else [{"type": "text", "text": content}])
    return turns


def _check_results(before: _Turn, turn: _Turn) -> None:
    calls = before.values("tool_use", "id")
    results = turn.values("tool_result", "tool_use_id")
    if len(set(calls)) < len(calls):
        raise invalid(f"messages.{before.first}.content: `tool_use` ids must be unique")
    answered = {block["tool_use_id"] for block in _leading_results(turn)}
    missing = [call for call in calls if call not in answered]
    if missing:
        raise invalid(_UNANSWERED.format(at=before.first, calls=", ".join(missing)))
    for result, count in Counter(results).items():
        if result not in calls:
            raise invalid(_UNEXPECTED.format(at=turn.first, result=result))
        if count > 1:
            raise invalid(
                f"messages.{turn.first}.content: each tool_use must have a single result. Found multiple `tool_result` "
                f"blocks with id: {result}"
            )


def _leading_results(turn: _Turn) -> list[Json]:
    """Results come first: those after another block don't count as being immediately after the calls."""
    other = next((at for at, block in enumerate(turn.blocks) if block["type"] != "tool_result"), len(turn.blocks))
    return turn.blocks[:other]


def _check_end(last: _Turn, model: Model) -> None:
    kinds = {block["type"] for block in last.blocks}
    if "server_tool_use" in kinds or (last.blocks and last.blocks[-1]["type"] == "compaction"):
        return  # a paused turn, sent back to be continued
    if not model.prefill:
        raise invalid(_PREFILL)
    calls = last.values("tool_use", "id")
    if calls:
        raise invalid(_UNANSWERED.format(at=last.first, calls=", ".join(calls)))
    texts = last.values("text", "text")
    if texts and texts[-1] != texts[-1].rstrip():
        raise invalid("messages: final assistant content cannot end with trailing whitespace")
