"""What a stream of AWS event frames tells: Bedrock's classic client gets those in place of server-sent events.

The rule here: a frame is an event in another wrapping; what it means is the scanner's matter. Frames are decoded by
botocore, which that client needs itself; where it is missing nothing is known, and usage is estimated.
"""

from __future__ import annotations

import base64
import importlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json

from penstock._core.body.scanner import Scanner, written_in
from penstock._core.body.sse import field_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AWS_STREAM", "AWSScanner", "can_decode_aws"]

AWS_STREAM: Final = "application/vnd.amazon.eventstream"

# AWS's names for what the Messages API calls otherwise.
_ERROR_TYPES: Final = {
    "accessDeniedException": "permission_error",
    "internalServerException": "api_error",
    "modelStreamErrorException": "api_error",
    "modelTimeoutException": "timeout_error",
    "resourceNotFoundException": "not_found_error",
    "serviceUnavailableException": "overloaded_error",
    "throttlingException": "rate_limit_error",
    "validationException": "invalid_request_error",
}


@lru_cache(maxsize=1)
def _botocore() -> Any:
    try:
        return importlib.import_module("botocore.eventstream")
    except ImportError:
        return None


def can_decode_aws() -> bool:
    """Return whether botocore is there."""
    return _botocore() is not None


class AWSScanner(Scanner):
    """Watches a body of AWS event frames, each of which holds one event of the Messages API.

    Args:
        writes_for_an_hour: As for `Scanner`.
    """

    __slots__ = ("_frames",)

    def __init__(self, *, writes_for_an_hour: Callable[[], bool] = bool) -> None:
        super().__init__(writes_for_an_hour=writes_for_an_hour)
        self._frames: Any = _botocore().EventStreamBuffer()

    def see(self, chunk: bytes) -> None:
        """Decode the frames that are complete."""
        if self._frames is None or self.over:
            return
        try:
            self._frames.add_data(chunk)
            for frame in self._frames:
                self._see_frame(frame.headers, frame.payload)
        except Exception:  # noqa: BLE001 - whatever botocore makes of damaged frames, the SDK will tell the reader
            self._frames = None
            self.begun = True

    def finish(self) -> None:
        """Everything was taken in as it came."""

    def _see_frame(self, headers: dict[str, object], payload: bytes) -> None:
        if self.over:
            return
        if headers.get(":message-type") in {"error", "exception"}:
            name = str(headers.get(":exception-type") or headers.get(":error-code"))
            # Some services write them with a capital letter.
            name = name[:1].lower() + name[1:]
            self.take("error", {"type": "error", "error": {"type": _ERROR_TYPES.get(name, name)}})
            # What older releases of the SDK make of such a frame is no error of theirs.
            self.unheard = True
            return
        event = from_json(base64.b64decode(from_json(payload)["bytes"]))
        name = str(field_of(event, "type"))
        self._written += written_in(name, event)
        self.take(name, event)
