"""What an attempt came to, and how it is left behind: closed before the next attempt, or given to the caller.

The rule here: nothing of a failed attempt stays open, and its error reaches the caller as the SDK's own.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Final

import httpx2

from penstock._core.attempt import http_response_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import anthropic

    from penstock._core.attempt import Attempt, Response
    from penstock._core.failure import Failure

__all__ = ["Outcome"]

_NOTE: Final = "penstock_note"
# The SDK makes the error of a failed status after the chain, where nothing of ours stands; a canary test watches it.
_MAKE_ERROR: Final = "_make_status_error_from_response"


class Outcome:
    """What an attempt came to: an answer, an error, or an answer whose body failed before its content.

    Attributes:
        attempt: The attempt.
        response: What the chain returned; `None` if it raised.
        failure: How it failed; `None` if it has not.
        error: What to raise; `None` if the response says it all.
    """

    __slots__ = ("attempt", "error", "failure", "response")

    def __init__(self, attempt: Attempt, response: Response, failure: Failure | None, error: Exception | None) -> None:
        self.attempt = attempt
        self.response = response
        self.failure = failure
        self.error = error

    def __repr__(self) -> str:
        return f"<Outcome of {self.attempt!r}, failure={self.failure and self.failure.kind.value}>"

    async def discard(self) -> None:
        """Close what is left of the attempt and end it, so that the next can follow."""
        attempt = self.attempt
        if attempt.failure is None:
            attempt.failure = self.failure
        http = http_response_of(self.response)
        try:
            # A transport that fails at closing has closed.
            with contextlib.suppress(httpx2.HTTPError):
                if http is not None:
                    await http.aclose()
                elif (body := attempt.body) is not None:
                    await body.aclose()
        finally:
            attempt.end()

    async def conclude(self, note: str | None) -> Response:
        """Give the caller the outcome of the last attempt.

        Args:
            note: Added to the error that is raised, here or by the SDK.

        Returns:
            The response, if it brings no error, or one that the SDK raises itself: a middleware further out may have
            another answer to a failed status.

        Raises:
            Exception: The error of the attempt.
        """
        if self.error is None:
            http = http_response_of(self.response)
            if http is not None and not http.is_success:
                # Else the SDK's own retries, if they are on, would begin all over.
                http.headers["x-should-retry"] = "false"
                if note:
                    _leave(note, http, self.response)
            return self.response
        await self.discard()
        if note:
            self.error.add_note(note)
        # Without the references, the error forms no cycle with its traceback, which would keep the request in memory.
        error, self.error = self.error, None
        try:
            raise error
        finally:
            del error


def _leave(note: str, http: httpx2.Response, response: Response) -> None:
    """Have a note added to the error that the SDK will raise for a failed status, if nobody answers otherwise."""
    http.extensions[_NOTE] = note
    client = getattr(response, "_client", None)
    make = getattr(client, _MAKE_ERROR, None)
    if make is not None and _MAKE_ERROR not in vars(client):
        setattr(client, _MAKE_ERROR, partial(_with_note, make))


def _with_note(
    make: Callable[[httpx2.Response], anthropic.APIStatusError], response: httpx2.Response
) -> anthropic.APIStatusError:
    error = make(response)
    if (note := response.extensions.get(_NOTE)) is not None:
        error.add_note(note)
    return error
