"""Streams into browsers, for Starlette and FastAPI: WebSocket, server-sent events, labels for each web request.

What lives here knows web frameworks, and needs the extra `web`. It adds no judgement of its own about requests: it
hands on what `penstock.streaming` gives, in JSON, and ends the request when the browser has left.
"""

try:
    import sse_starlette as _sse_starlette
    import starlette as _starlette
except ImportError as missing:
    raise ImportError(f"penstock.web needs {missing.name}: pip install 'penstock[web]'", name=missing.name) from missing

from penstock.web.frames import CloseCode
from penstock.web.http import http_error
from penstock.web.labels import LabelsMiddleware
from penstock.web.origin import check_origin
from penstock.web.sse import EventStreamResponse, event_stream
from penstock.web.websocket import forward

__all__ = [
    "CloseCode",
    "EventStreamResponse",
    "LabelsMiddleware",
    "check_origin",
    "event_stream",
    "forward",
    "http_error",
]

del _sse_starlette, _starlette
