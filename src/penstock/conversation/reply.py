"""A reply, and what is decided between the requests that it takes.

The rule here: everything is decided from what came, without waiting: whether to ask again, with what, and what the
history is once the reply is there. What is sent back is what came, less what the API refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Generic, Self

from anthropic.types import RefusalStopDetails, ToolUseBlock
from anthropic.types.beta import BetaToolUseBlock

from penstock.messages.blocks import CALLS, CONTINUE, Turn, answer_blocks, ids_of, whole
from penstock.messages.history import open_calls
from penstock.tools.state import message_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from decimal import Decimal

    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage

    # The default is for those who name the class alone. Only checkers know defaults before Python 3.13.
    from typing_extensions import TypeVar

    from penstock._core.usage import Usage
    from penstock.conversation.options import OnTruncation
    from penstock.messages.blocks import Block
    from penstock.tools.events import ToolCall

    Parsed_co = TypeVar("Parsed_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    Parsed_co = TypeVar("Parsed_co", covariant=True)

__all__ = ["TRUNCATED", "Draft", "Reply"]

TRUNCATED: Final = frozenset({"max_tokens", "model_context_window_exceeded"})
# What an answer calls that ended so is not to be answered: it is cut off, or goes on by itself.
_NOT_TO_ANSWER: Final = TRUNCATED | {"refusal", "pause_turn"}
_THINKING: Final = frozenset({"thinking", "redacted_thinking"})
_MOST_PAUSES: Final = 10
_MOST_RETRIES: Final = 3
_MOST_PARTS: Final = 8


def _nothing(text: str, stop_reason: str | None) -> Any:
    """Read a text that was asked for in no format."""
    del text, stop_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Generic[Parsed_co]):
    """What the model answered to one `send`, or, as a `Reply[City]`, to one `ask` for a `City`.

    Attributes:
        message: The SDK's message. Where several requests made the reply, the last one, with the content of all. Of an
            answer that was stopped, what was read of it: its `stop_reason` is `None`.
        usage: Tokens of all those requests, of discarded and interrupted ones too.
        requests: How many there were.
    """

    message: Message | BetaMessage = field(repr=False)
    usage: Usage
    requests: int = 1
    _cost: Callable[[], Decimal] = field(repr=False, compare=False)
    _waiting: frozenset[str] = field(default=frozenset(), repr=False)
    _read: Callable[[str, str | None], Parsed_co] = field(default=_nothing, repr=False, compare=False)

    def __repr__(self) -> str:
        return f"<Reply {self.stop_reason}, {self.usage.output_tokens} output tokens, {self.requests} requests>"

    @property
    def text(self) -> str:
        """The text of all its text blocks."""
        return "".join(block.text for block in self.message.content if block.type == "text")

    @property
    def parsed(self) -> Parsed_co:
        """What the `output_format` of `ask` makes of its text; `None` where none was asked for.

        Raises:
            InvalidOutput: The text doesn't fit: the model refused, or the answer was cut off.
        """
        return self._read(self.text, self.stop_reason)

    @property
    def stop_reason(self) -> str | None:
        """Why it ended, as the API gave it: `end_turn`, `tool_use`, `max_tokens`, `refusal`, …."""
        return self.message.stop_reason

    @property
    def truncated(self) -> bool:
        """Whether it is cut off."""
        return self.stop_reason in TRUNCATED

    @property
    def refusal(self) -> RefusalStopDetails | None:
        """Why the model refused, with its `category` and `explanation`; `None` unless `stop_reason` is `refusal`."""
        if self.stop_reason != "refusal":
            return None
        details = self.message.stop_details
        if getattr(details, "type", None) != "refusal":
            details = None
        return RefusalStopDetails.construct(
            type="refusal",
            category=getattr(details, "category", None),
            explanation=getattr(details, "explanation", None),
        )

    @property
    def tool_calls(self) -> list[ToolUseBlock | BetaToolUseBlock]:
        """The tool calls to be answered by the next `send`, or those that wait for approval (`Later`)."""
        if self.stop_reason in _NOT_TO_ANSWER:
            return []
        calls = [block for block in self.message.content if isinstance(block, ToolUseBlock | BetaToolUseBlock)]
        return [call for call in calls if call.id in self._waiting] if self._waiting else calls

    @property
    def cost_usd(self) -> Decimal:
        """What it cost, in USD.

        Raises:
            UnknownPrice: The price of the model isn't known.
        """
        return self._cost()


class Draft:
    """A reply in the making.

    Args:
        turns: The history with the user's new turn, or with an answer that was paused.
        on_truncation: What to do about an answer that is cut off.
        max_tokens: Of the first request.
        most_tokens: What the model can write at most.
        pinned: Whether the answer is kept whatever is trimmed.

    Attributes:
        turns: What is to be sent next.
        sent: What was sent last, and `answer` what came.
        max_tokens: The same of its `max_tokens`.
        at_least: A budget that has less than that left stops it; 0 for no such bound.
        outcome: The history as it is if nothing more is asked; `None` if it stays as it was.
        message: The reply as it is then.
        pinned: Whether the answer is kept whatever is trimmed.
        waiting: Ids of calls that are decided about later.
    """

    __slots__ = (
        "_content", "_counts", "_mode", "_most", "answer", "at_least", "max_tokens", "message", "outcome", "pinned",
        "sent", "turns", "waiting",
    )  # fmt: skip

    def __init__(
        self, turns: tuple[Turn, ...], *, on_truncation: OnTruncation, max_tokens: int, most_tokens: int, pinned: bool
    ) -> None:
        self.turns = self.sent = turns
        self.max_tokens = max_tokens
        self.at_least = 0
        self.answer: Message | BetaMessage | None = None
        self.outcome: tuple[Turn, ...] | None = None
        self.message: Message | BetaMessage | None = None
        self._mode: OnTruncation = on_truncation
        self._most = most_tokens
        self.pinned = pinned
        self.waiting: frozenset[str] = frozenset()
        self._content: list[object] = []
        self._counts = {"pauses": 0, "retries": 0, "parts": 0}

    def __repr__(self) -> str:
        return f"<Draft of {len(self.turns)} turns, {self._counts}>"

    @classmethod
    def of_calls(cls, turns: tuple[Turn, ...]) -> Self:
        """Return what an earlier answer has come to, whose calls are still to be run."""
        draft = cls(turns, on_truncation="return", max_tokens=1, most_tokens=1, pinned=turns[-1].pinned)
        draft.message, draft.outcome = message_of(turns[-1]), turns
        return draft

    def wait(self, outcome: tuple[Turn, ...], pending: Iterable[ToolCall]) -> None:
        """Note that some calls are decided about later, and the history with the results of the others."""
        self.outcome, self.waiting = outcome, frozenset(call.id for call in pending)

    @property
    def whole(self) -> Message | BetaMessage:
        """The reply, which has come."""
        assert self.message is not None  # noqa: S101 - nobody asks before
        return self.message

    @property
    def calls(self) -> tuple[str, ...]:
        """The ids of the tool calls that must be answered before it goes on."""
        return () if self.whole.stop_reason in _NOT_TO_ANSWER else open_calls(self.outcome or ())

    def take(self, message: Message | BetaMessage) -> bool:
        """Take an answer, and return whether to ask again."""
        message = whole(message, ids_of(self.turns[-1].content, "tool_use") if self._resumes else ())
        content = [*self._content, *message.content]
        self.sent, self.answer = self.turns, message
        self.message = message.model_copy(update={"content": content})
        blocks = answer_blocks(message.content)
        self.at_least = 0
        if message.stop_reason == "refusal":
            self.outcome = None
            return False
        if message.stop_reason == "pause_turn":
            if not (blocks or self._resumes):
                self.outcome = self.turns
                return False
            self.outcome = self.turns = self._with(blocks, paused=True)
            self._content = content
            return self._may("pauses", _MOST_PAUSES)
        if message.stop_reason in TRUNCATED:
            return self._take_truncated(message, blocks, content)
        self.outcome = self._with(blocks) if _says_something(blocks) or self._resumes else self.turns
        return False

    def take_partial(self, message: Message | BetaMessage) -> bool:
        """Take what was read of an answer that was stopped; returns whether that says anything.

        It becomes a turn that can be sent back: without calls that nothing answers, without thinking that isn't signed,
        without space at its end.
        """
        message = whole(message)
        before = self.turns[-1].content if self._resumes else ()
        blocks = _without_halves((*before, *answer_blocks(message.content)))
        if not _says_something(blocks):
            return False
        answered = {block.get("tool_use_id") for block in blocks}
        content = [each for each in message.content if each.type not in CALLS or getattr(each, "id", "") in answered]
        self.message = message.model_copy(update={"content": [*self._content, *content], "stop_reason": None})
        turns = self.turns[:-1] if self._resumes else self.turns
        self.outcome = (*turns, Turn(role="assistant", content=blocks, pinned=self.pinned))
        return True

    def _take_truncated(self, message: Message | BetaMessage, blocks: tuple[Block, ...], content: list[object]) -> bool:
        # A call that may be cut off can't be answered, and one that isn't the last can't be answered alone.
        usable = tuple(block for block in blocks if not _is_open(block, blocks))
        whole = len(usable) == len(blocks) and _says_something(usable)
        self.outcome = self._with(usable) if _says_something(usable) else None
        if message.stop_reason != "max_tokens" or self._mode == "return":
            return False
        if self._mode == "continue" and whole:
            if not self._may("parts", _MOST_PARTS):
                return False
            self.turns = (*self._with(usable), replace(CONTINUE, pinned=self.pinned))
            self._content = content
            return True
        if self.max_tokens >= self._most or not self._may("retries", _MOST_RETRIES):
            return False
        self.at_least = self.max_tokens + 1
        self.max_tokens = min(2 * self.max_tokens, self._most)
        return True

    def _may(self, what: str, most: int) -> bool:
        self._counts[what] += 1
        return self._counts[what] <= most

    @property
    def _resumes(self) -> bool:
        return self.turns[-1].role == "assistant"

    def _with(self, blocks: tuple[Block, ...], *, paused: bool = False) -> tuple[Turn, ...]:
        """Return the turns with an answer; one that was paused before is the beginning of the same turn."""
        if self._resumes:
            last = self.turns[-1]
            return (*self.turns[:-1], replace(last, content=(*last.content, *blocks), paused=paused))
        return (*self.turns, Turn(role="assistant", content=blocks, pinned=self.pinned, paused=paused))


def _without_halves(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """Return the blocks of an answer that was stopped which can be sent back."""
    kept = [block for block in blocks if not _is_open(block, blocks)]
    kept = [block for block in kept if block["type"] != "thinking" or block.get("signature")]
    while kept and kept[-1]["type"] in {"text", "compaction"}:
        text = kept[-1].get("text", "").rstrip() if kept[-1]["type"] == "text" else ""
        kept[-1:] = [{**kept[-1], "text": text}] if text else []
        if text:
            break
    return tuple(kept)


def _is_open(block: Block, blocks: tuple[Block, ...]) -> bool:
    """Whether a block calls a tool that has not answered within the same message."""
    if block["type"] in {"server_tool_use", "mcp_tool_use"}:
        return all(each.get("tool_use_id") != block["id"] for each in blocks)
    return bool(block["type"] == "tool_use")


def _says_something(blocks: tuple[Block, ...]) -> bool:
    return any(block["type"] not in _THINKING for block in blocks)
