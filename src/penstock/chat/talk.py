"""What happens between a question and its answer: the history is made to fit, asked with, and replaced.

The rule here: the history, and what is known of its size, are replaced together, after a whole answer, without
waiting in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.chat.history import check_pairs, open_calls, user_turn
from penstock.chat.reply import Draft, Reply
from penstock.chat.turnstile import Turnstile
from penstock.errors import BudgetExceeded, InvalidHistory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.chat.gauge import Gauge
    from penstock.chat.history import Content
    from penstock.chat.options import OnTruncation
    from penstock.chat.requester import Requester
    from penstock.chat.room import Room
    from penstock.chat.turn import Turn
    from penstock.core.usage import Usage
    from penstock.streaming.opening import StreamManager

__all__ = ["ConversationStatistics", "Question", "Talk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationStatistics:
    """A conversation in numbers.

    Attributes:
        turns: Messages in its history.
        requests: Requests that were answered, wholly or in part.
        usage: Their tokens.
        context_tokens: What the history takes of the window, as far as known.
        window_tokens: The window.
    """

    turns: int
    requests: int
    usage: Usage
    context_tokens: int
    window_tokens: int


class Question:
    """What the user asks next.

    Args:
        content: As for `Conversation.send`.
        images: The same.
        documents: The same.
        pin: The same.
        max_tokens: The same.
    """

    __slots__ = ("content", "documents", "images", "max_tokens", "pin")

    def __init__(
        self, content: Content, images: Iterable[object], documents: Iterable[object], *, pin: bool, max_tokens: int
    ) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be 1 or more, not {max_tokens!r}")
        self.content = content
        self.images = images
        self.documents = documents
        self.pin = pin
        self.max_tokens = max_tokens

    def added_to(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """Return the history with the question as its last turn; as it is where there is none, and it can go on.

        Raises:
            InvalidHistory: The API would not take it.
        """
        place = f"turns.{len(turns)}"
        images, documents = _listed(self.images), _listed(self.documents)
        paused = bool(turns) and turns[-1].paused
        unanswered = bool(turns) and turns[-1].role == "user"
        if (paused or unanswered) and not (self.content or images or documents):
            return turns
        if paused:
            raise InvalidHistory(place, "the last answer is paused: `send()` without content lets it go on")
        turn = user_turn(self.content, images=images, documents=documents, place=place, pinned=self.pin)
        added = (*turns, turn)
        if open_calls(turns) or any(block["type"] == "tool_result" for block in turn.content):
            check_pairs(added, "turns")
        return added


class Talk:
    """One conversation at work.

    Args:
        turns: Its history.
        requester: Sends its requests.
        room: Makes them fit.
        gauge: Knows how much they take.

    Attributes:
        turns: Its history, replaced as a whole.
        gauge: What is known of its size, replaced with it.
        turnstile: Where one waits for one's turn.
    """

    __slots__ = ("gauge", "requester", "room", "turns", "turnstile")

    def __init__(self, turns: tuple[Turn, ...], requester: Requester, room: Room, gauge: Gauge) -> None:
        self.turns = turns
        self.requester = requester
        self.room = room
        self.gauge = gauge
        self.turnstile = Turnstile()

    def __repr__(self) -> str:
        return f"<Talk of {len(self.turns)} turns, {self.turnstile!r}>"

    def statistics(self) -> ConversationStatistics:
        """Return its numbers at this moment."""
        spending = self.requester.spending
        return ConversationStatistics(
            turns=len(self.turns),
            requests=spending.requests,
            usage=spending.usage,
            context_tokens=self.gauge.measure(self.turns),
            window_tokens=self.room.window_tokens,
        )

    async def send(self, question: Question, on_truncation: OnTruncation) -> Reply:
        """Ask, and return the whole reply."""
        await self.turnstile.enter()
        try:
            draft, gauge = await self._begin(question, on_truncation)
            while True:
                try:
                    message = await self.requester.ask(draft.turns, **self._params(draft, gauge))
                except BudgetExceeded:
                    if draft.message is None:
                        raise
                    # What is there is paid for.
                    break
                if not draft.take(message) or self.room.overflows(draft.turns, gauge):
                    break
            return self.commit(draft, gauge)
        finally:
            self.turnstile.leave()

    async def open(self, question: Question) -> tuple[Draft, Gauge, StreamManager]:
        """Prepare a streamed answer, for whoever has entered the turnstile."""
        draft, gauge = await self._begin(question, "return")
        return draft, gauge, self.requester.open(draft.turns, **self._params(draft, gauge))

    def commit(self, draft: Draft, gauge: Gauge) -> Reply:
        """Take over what a draft has come to."""
        assert draft.message is not None  # noqa: S101 - nobody commits what was not answered
        assert draft.answer is not None  # noqa: S101
        if draft.outcome is not None:
            gauge.learn(draft.sent, draft.answer, turns=len(draft.outcome))
            self.turns, self.gauge = draft.outcome, gauge
        used = self.requester.of_reply
        return Reply(message=draft.message, usage=used.usage, requests=used.requests, _cost=lambda: used.cost_usd)

    async def _begin(self, question: Question, on_truncation: OnTruncation) -> tuple[Draft, Gauge]:
        self.requester.begin()
        gauge = self.gauge.copy()
        asked = question.added_to(self.turns)
        turns = await self.room.fit(asked, gauge, self.requester, max_tokens=question.max_tokens)
        draft = Draft(
            turns,
            on_truncation=on_truncation,
            max_tokens=question.max_tokens,
            most_tokens=self.room.limits.max_output_tokens,
            pinned=question.pin,
        )
        return draft, gauge

    def _params(self, draft: Draft, gauge: Gauge) -> dict[str, Any]:
        return {
            "input_tokens": gauge.measure(draft.turns),
            "max_tokens": draft.max_tokens,
            "at_least": draft.at_least,
            **self.room.more(self.requester.params),
        }


def _listed(given: Iterable[object]) -> Iterable[object]:
    """What may be iterated over once may be asked whether it is empty."""
    return given if hasattr(given, "__len__") else list(given)
