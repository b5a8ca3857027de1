"""What an attempt came to, and how it is left behind: closed before the next attempt, or given to the caller.

The rule here: nothing of a failed attempt stays open, and its error reaches the caller as the SDK's own.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import httpx2

from penstock._core.attempt import http_response_of

if TYPE_CHECKING:
    import anthropic

    from penstock._core.attempt import Attempt, Response
    from penstock._core.failure import Failure

__all__ = ["Outcome"]


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
            note: Added to the error that is raised.

        Returns:
            The response, if it brings no error, or one that the SDK raises itself where there is no note to add.

        Raises:
            Exception: The error of the attempt.
        """
        http = http_response_of(self.response)
        if self.error is None and http is not None and not http.is_success:
            # Else the SDK's own retries, if they are on, would begin all over.
            http.headers["x-should-retry"] = "false"
            self.error = _status_error(self.response, http) if note else None
        if self.error is None:
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


def _status_error(response: Response, http: httpx2.Response) -> anthropic.APIStatusError | None:
    """Return the error that the SDK would raise for an answer after the chain, where it can get no note."""
    make = getattr(getattr(response, "_client", None), "_make_status_error_from_response", None)
    if make is None:
        return None
    error: anthropic.APIStatusError = make(http)
    # As `raise … from None` does.
    error.__cause__ = None
    return error
