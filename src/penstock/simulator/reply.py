"""What the simulated model answers: derived from the prompt alone, or taken from a script; never from chance.

The words of the prompt come back in the answer, so that a test can tell whose answer it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, TypeAlias

from penstock.simulator.binding import sign
from penstock.simulator.calls import ToolCalls, make_calls
from penstock.simulator.sample import sample
from penstock.simulator.script import completed
from penstock.simulator.tokens import CHARACTERS, count_text, plain_text
from penstock.simulator.wire import Json, dump, is_list, is_object

if TYPE_CHECKING:
    from penstock.simulator.cache import Reading
    from penstock.simulator.models import Model
    from penstock.simulator.script import ScriptedReply

__all__ = ["Manner", "OutputTokens", "Reply", "compose"]

OutputTokens: TypeAlias = int | Callable[[Json], int] | None

_SUMMARY_WORDS = 24
_THINKING = "Let me look at what is asked, and answer it."


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How the simulated model answers where no script says it.

    Attributes:
        output_tokens: length of the replies, or a function of the request body; None: a summary.
        thinking: True: models that think by default do; False: never; None: where the request asks for it.
        tool_calls: how many tools it calls in answer to a question; a function of the request body is asked each time.
    """

    output_tokens: OutputTokens = None
    thinking: bool | None = None
    tool_calls: ToolCalls = None

    def thinks(self, body: Json, model: Model) -> bool:
        """Whether the reply to `body` begins with a thinking block."""
        asked, choice = body.get("thinking"), body.get("tool_choice")
        if is_object(choice) and choice["type"] in ("any", "tool"):
            return False
        if asked is None:
            return self.thinking is True and model.thinks
        return self.thinking is not False and asked["type"] in ("adaptive", "enabled", "between_tools")


@dataclass(kw_only=True, slots=True)
class Reply:
    """A complete answer: content blocks, why it stopped, and what it used."""

    content: list[Json] = field(repr=False)
    stop_reason: str
    stop_sequence: str | None = None
    stop_details: Json | None = None
    usage: Json

    @property
    def output_tokens(self) -> int:
        """Tokens of the answer."""
        return int(self.usage["output_tokens"])

    @property
    def generated(self) -> int:
        """All tokens generated, those of a compaction included."""
        runs = self.usage.get("iterations")
        return sum(int(run["output_tokens"]) for run in runs) if runs else self.output_tokens

    @property
    def charged(self) -> int:
        """Input tokens that count against limits: all but those read from the cache."""
        runs: list[Json] = self.usage.get("iterations") or [self.usage]
        return sum(int(run["input_tokens"]) + int(run["cache_creation_input_tokens"]) for run in runs)

    def message(self, identity: str, model: str) -> Json:
        """The `Message` object that a plain request gets."""
        return {
            "id": identity,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self.content,
            "stop_reason": self.stop_reason,
            "stop_sequence": self.stop_sequence,
            "stop_details": self.stop_details,
            "container": None,
            "usage": self.usage,
        }


def compose(
    body: Json,
    model: Model,
    scripted: ScriptedReply | None,
    *,
    reading: Reading,
    manner: Manner,
    salt: str,
    lead: Sequence[Json] = (),
) -> Reply:
    """The answer to a valid request.

    Args:
        body: the request.
        model: which answers.
        scripted: what it answers, where a test says it.
        reading: what it takes to read the prompt.
        manner: how it answers otherwise.
        salt: makes the ids of its tool calls unique.
        lead: blocks that come before the answer.
    """
    reply = _from_script(scripted, reading, salt) if scripted else _composed(body, model, reading, manner, salt)
    reply.content[:0] = lead
    sign(reply.content, body, model)
    return reply


def _composed(body: Json, model: Model, reading: Reading, manner: Manner, salt: str) -> Reply:
    limit = min(int(body["max_tokens"]), max(0, model.window - reading.tokens))
    thoughts = _thinking(body, model, limit) if manner.thinks(body, model) else []
    spent = count_text(_THINKING[: limit * 2]) if thoughts else 0
    content, stop_reason, stop_sequence = _answer(body, limit - spent, manner, salt)
    if stop_reason == "max_tokens" and limit < int(body["max_tokens"]):
        stop_reason = "model_context_window_exceeded"
    made = spent + sum(_block_tokens(block) for block in content)
    return Reply(
        content=thoughts + content,
        stop_reason=stop_reason,
        stop_sequence=stop_sequence,
        usage=_usage(reading, made, spent),
    )


def _from_script(scripted: ScriptedReply, reading: Reading, salt: str) -> Reply:
    content = completed(scripted, salt)
    calls = any(block["type"] == "tool_use" for block in content)
    thought = sum(_block_tokens(block) for block in content if block["type"] == "thinking")
    made = sum(_block_tokens(block) for block in content)
    return Reply(
        content=content,
        stop_reason=scripted.stop_reason or ("tool_use" if calls else "end_turn"),
        stop_details=scripted.stop_details,
        usage={**_usage(reading, made, thought), **scripted.usage},
    )


def _usage(reading: Reading, made: int, thinking: int) -> Json:
    return {
        **reading.usage(),
        "output_tokens": made,
        "output_tokens_details": {"thinking_tokens": thinking},
        "server_tool_use": None,
        "service_tier": "standard",
    }


def _block_tokens(block: Json) -> int:
    if block["type"] == "text":
        return count_text(str(block.get("text", "")))
    return count_text(dump(block.get("input", block.get("thinking", ""))).decode())


def _thinking(body: Json, model: Model, limit: int) -> list[Json]:
    asked = body.get("thinking")
    display = asked.get("display") if is_object(asked) else None
    shown = model.shows_thinking if display is None else display == "summarized"
    text = _THINKING[: limit * 2]
    if not text:
        return []
    return [{"type": "thinking", "thinking": text if shown else ""}]


def _answer(body: Json, limit: int, manner: Manner, salt: str) -> tuple[list[Json], str, str | None]:
    """(content, stop_reason, stop_sequence) within `limit` tokens."""
    if limit <= 0:
        return [], "max_tokens", None
    prompt = _prompt(body)
    calls = make_calls(body, manner.tool_calls, prompt, salt)
    if calls:
        return calls, "tool_use", None
    text, sequence = _until_stop_sequence(_text(body, prompt, manner.output_tokens), body.get("stop_sequences"))
    if count_text(text) > limit:
        return [_text_block(text[: limit * CHARACTERS])], "max_tokens", None
    content = [_text_block(text)] if text else []
    return content, "end_turn" if sequence is None else "stop_sequence", sequence


def _text_block(text: str) -> Json:
    return {"type": "text", "text": text, "citations": None}


def _text(body: Json, prompt: str, output_tokens: OutputTokens) -> str:
    schema = _output_schema(body)
    if schema is not None:
        return dump(sample(schema)).decode()
    wanted = output_tokens(body) if callable(output_tokens) else output_tokens
    if wanted is None:
        return "Summary: " + " ".join(prompt.split()[:_SUMMARY_WORDS])
    size = max(0, wanted) * CHARACTERS
    words = prompt.split() or ["nothing"]
    return " ".join(islice(cycle(words), size // 2 + 1))[:size]


def _output_schema(body: Json) -> Json | None:
    config = body.get("output_config")
    chosen = config.get("format") if is_object(config) else None
    schema = chosen.get("schema") if is_object(chosen) else None
    return schema if is_object(schema) else None


def _prompt(body: Json) -> str:
    messages = body.get("messages")
    if not is_list(messages):
        return ""
    turns = (plain_text(message["content"]) for message in reversed(messages) if message["role"] == "user")
    return next((turn for turn in turns if turn.strip()), "")


def _until_stop_sequence(text: str, sequences: object) -> tuple[str, str | None]:
    found = [(text.find(each), each) for each in sequences if each in text] if is_list(sequences) else []
    if not found:
        return text, None
    at, sequence = min(found)
    return text[:at], sequence
