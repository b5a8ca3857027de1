"""What a stream of AWS event frames tells: Bedrock's classic client gets those in place of server-sent events.

The rule here: as in `scan`, look, never hold up, and raise on no bytes. The frames are decoded by botocore, which that
client needs itself; where it is missing nothing is known, and usage is estimated.
"""

from __future__ import annotations

import base64
import importlib
from functools import lru_cache
from typing import Any, Final

from pydantic_core import from_json

from penstock._core.body.scan import StreamScanner
from penstock._core.body.sse import ServerSentEvent
from penstock._core.failure import failure_of_error_event

__all__ = ["AWS_STREAM", "AWSStreamScanner", "scanner_of"]

AWS_STREAM: Final = "application/vnd.amazon.eventstream"

_CONTENT: Final = frozenset({"text_delta", "input_json_delta", "thinking_delta", "compaction_delta"})
# AWS's names for what the Messages API calls otherwise.
_ERROR_TYPES: Final = {
    "internalServerException": "api_error",
    "modelStreamErrorException": "api_error",
    "modelTimeoutException": "timeout_error",
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


def scanner_of(content_type: str) -> StreamScanner | None:
    """Return what watches a stream of this content type; `None` where nothing here can decode it."""
    if not content_type.startswith(AWS_STREAM):
        return StreamScanner()
    return None if _botocore() is None else AWSStreamScanner()


class AWSStreamScanner(StreamScanner):
    """Watches a body of AWS event frames, each of which holds one event of the Messages API."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        super().__init__()
        self._buffer: Any = _botocore().EventStreamBuffer()

    def see(self, chunk: bytes) -> None:
        """Decode the frames that are complete."""
        if self._buffer is None:
            return
        try:
            self._buffer.add_data(chunk)
            for frame in self._buffer:
                self._see_frame(frame.headers, frame.payload)
        except Exception:  # noqa: BLE001 - whatever botocore makes of damaged frames, the SDK will tell the reader
            self._buffer = None

    def finish(self) -> None:
        """Everything was taken in as it came."""

    def _see_frame(self, headers: dict[str, object], payload: bytes) -> None:
        if headers.get(":message-type") in {"error", "exception"}:
            name = str(headers.get(":exception-type") or headers.get(":error-code"))
            self.failure = failure_of_error_event({"error": {"type": _ERROR_TYPES.get(name, name)}})
            return
        data = base64.b64decode(from_json(payload)["bytes"])
        event = from_json(data)
        name = event["type"]
        if name == "content_block_delta":
            self.has_content = self.has_content or event["delta"]["type"] in _CONTENT
        else:
            self._take(ServerSentEvent(name, data.decode()))
