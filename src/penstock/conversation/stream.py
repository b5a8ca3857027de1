"""A streamed answer within a conversation.

The rule here: it is whole if its reader has come to its end. What it was is decided when the block is left, before
anything is awaited, so that no cancellation can lose an answer that came, or keep half of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from penstock._core.context import current_deadline
from penstock.conversation.session import too_late

if TYPE_CHECKING:
    from types import TracebackType

    from penstock.conversation.reply import Draft, Reply
    from penstock.conversation.session import Question, Session
    from penstock.conversation.window import TokenEstimate
    from penstock.streaming.opening import StreamManager
    from penstock.streaming.stream import Stream

__all__ = ["ConversationStream"]


class ConversationStream:
    """Asks when it is entered, once those before it are done; gives the `Stream`; made by `Conversation.stream`.

    Attributes:
        reply: The reply, once the block is left, if the answer was whole, or what was read of it is kept.
    """

    def __init__(self, session: Session, question: Question) -> None:
        self._session = session
        self._question = question
        self._entered = False
        self._asked: tuple[Draft, TokenEstimate, StreamManager] | None = None
        self._stream: Stream | None = None
        self.reply: Reply | None = None

    def __repr__(self) -> str:
        return f"<ConversationStream {self._stream or 'not entered'}>"

    async def __aenter__(self) -> Stream:
        """Wait for one's turn, send the request, and wait for the answer to begin.

        Raises:
            RuntimeError: It was entered before.
            Exception: As for `Conversation.send`.
        """
        if self._entered:
            raise RuntimeError("a stream runs once; make a new one")
        self._entered = True
        with anyio.CancelScope(deadline=current_deadline()):
            await self._session.turn_lock.enter()
            try:
                self._asked = await self._session.open(self._question)
                with self._session.requests.labelled():
                    self._stream = stream = await self._asked[2].__aenter__()
            finally:
                if self._stream is None:
                    self._session.turn_lock.leave()
            return stream
        raise too_late()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave it; the history has the answer if it was whole, or what was read, if that is to be kept.

        An exception of the block leaves as it is.

        Raises:
            InvalidStream: It was read to its end, but parts of it can't be understood.
        """
        if self._stream is None or self._asked is None:
            return
        draft, estimate, manager = self._asked
        try:
            message = self._session.requests.count(self._stream)
            if isinstance(message, Exception):
                # Who read only the text has not been told of it.
                if error is None:
                    raise message
            elif message is not None:
                draft.take(message)
                self.reply = self._session.close(draft, estimate, self._question)
            else:
                self.reply = self._session.close_early(draft, estimate, self._question)
        finally:
            try:
                await manager.__aexit__(kind, error, trace)
            finally:
                self._session.turn_lock.leave()
