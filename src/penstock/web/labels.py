"""Labels for each web request, so that logs, statistics and the waiting line know whose it is.

The rule here: a label is worth less than an answer. A request whose labels can't be made goes on without any.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from penstock._core.context import labels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["LabelsMiddleware"]

_logger = logging.getLogger("penstock")


class LabelsMiddleware:
    """ASGI middleware that labels everything a web request or WebSocket asks of the API, as `penstock.labels` does.

    Args:
        app: The application.
        labels_from: Called with the ASGI scope of each HTTP request and WebSocket; returns labels, `priority` among
            them if wanted, or `None`. What it raises is logged by its type.

    Example:
        >>> from starlette.applications import Starlette
        >>> from starlette.middleware import Middleware
        >>> def labels_from(scope):
        ...     return {"feature": scope["path"].strip("/") or "home", "priority": "interactive"}
        >>> app = Starlette(middleware=[Middleware(LabelsMiddleware, labels_from=labels_from)])
    """

    def __init__(self, app: ASGIApp, labels_from: Callable[[Scope], Mapping[str, Any] | None]) -> None:
        self.app = app
        self.labels_from = labels_from

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as an ASGI application does."""
        with self._labels(scope):
            await self.app(scope, receive, send)

    def _labels(self, scope: Scope) -> AbstractContextManager[None]:
        if scope["type"] in {"http", "websocket"}:
            try:
                return labels(**(self.labels_from(scope) or {}))
            except Exception as error:  # noqa: BLE001 - the caller's function may raise anything
                _logger.warning("labels_from raised %s; the request goes on without labels", type(error).__name__)
        return contextlib.nullcontext()
