"""Making SDK clients governed: one of our own, or a copy of one that the caller built.

The rule here: a governed client is the SDK's own in everything but its middleware and its retries, which are off,
because two retry loops multiply. What the caller built is never changed and never closed.
"""

from __future__ import annotations

import copy
import logging
import warnings
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeAlias

import anthropic
import httpx2
from anthropic import AsyncAnthropic

from penstock.events import make_harmless
from penstock.guards.retry import Retry
from penstock.observe.tracing import tracing_configured
from penstock.transport import held, own_http_client

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anthropic import APIRequest, MiddlewareInput
    from anthropic.lib.bedrock import AsyncAnthropicBedrock, AsyncAnthropicBedrockMantle
    from anthropic.lib.vertex import AsyncAnthropicVertex

    from penstock._core.attempt import CallNext, Response
    from penstock.chain import Chain
    from penstock.settings import Settings

__all__ = ["SDK", "governed_copy", "own_sdk", "sends_nothing_else"]

# Foundry's, AWS's and Google Cloud's clients are subclasses of the first.
SDK: TypeAlias = "AsyncAnthropic | AsyncAnthropicBedrock | AsyncAnthropicBedrockMantle | AsyncAnthropicVertex"

_CARRIERS = frozenset({"aiohttp", "anthropic", "httpcore2", "httpx2"})
# The SDK wants some key when it is made; every request gets its own from the pool.
_PLACEHOLDER = "set-by-penstock"


def own_sdk(settings: Settings, base_url: str, chain: Chain) -> AsyncAnthropic:
    """Make a governed client of our own, with the transport that the settings say.

    Args:
        settings: Of the client.
        base_url: Of the API.
        chain: The guards.
    """
    options: dict[str, Any] = {} if settings.timeout_s is None else {"timeout": settings.timeout_s}
    if not tracing_configured():
        options["open_telemetry"] = False
    sdk = AsyncAnthropic(
        api_key=_PLACEHOLDER,
        base_url=base_url,
        max_retries=0,
        middleware=chain.middleware,
        http_client=held(own_http_client(settings.transport, most_at_once=settings.most_at_once)),
        **options,
    )
    _govern_copies(sdk)
    _make_logs_harmless()
    return sdk


def sends_nothing_else(sdk: AsyncAnthropic) -> bool:
    """Whether a client sends no credential but its own key; `ANTHROPIC_CUSTOM_HEADERS` may add one."""
    return not any(name.lower() == "x-api-key" for name in sdk.default_headers)


def governed_copy(sdk: AsyncAnthropic, chain: Chain) -> AsyncAnthropic:
    """Return a copy of `sdk` with our guards after its own middleware.

    The copy shares the `http_client`; closing the copy would close that, so nobody must.
    """
    http_client = held(sdk._client)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - a canary test watches it
    governed = sdk.copy(middleware=(*sdk.middleware, *chain.middleware), max_retries=0, http_client=http_client)
    _govern_copies(governed)
    _make_logs_harmless()
    return governed


def _make_logs_harmless() -> None:
    """Have no log handler of the application fail a call: those who carry it log once it is sent, and answered."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in _CARRIERS:
            make_harmless(logger)


class _Tries(anthropic.Middleware):
    """Says how often the requests of one copy are repeated, where the guards will see it."""

    def __init__(self, max_retries: int) -> None:
        self._max_retries = max_retries

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        """Send `request` on with that number."""
        told = copy.copy(request)
        told.options = request.options.model_copy(update={"max_retries": self._max_retries})
        return await call_next(told)


def _govern_copies(sdk: AsyncAnthropic) -> None:
    """Have copies, and copies of copies, repeat what fails in our loop only, and as often as they say."""
    plain = sdk.copy

    @wraps(plain)
    def with_options(**options: Any) -> AsyncAnthropic:
        middleware, retries = _middleware_of(sdk, options), options.get("max_retries")
        if isinstance(retries, int) and any(isinstance(each, Retry) for each in middleware):
            if retries:
                warnings.warn(
                    f"max_retries={retries} on a governed client makes no second retry loop: its guards try each call "
                    f"of this copy up to {retries + 1} times. For all calls, set "
                    "retry=RetryOptions(max_attempts=…) on the Client",
                    UserWarning,
                    stacklevel=2,
                )
            others = (each for each in middleware if not isinstance(each, _Tries))
            options |= {"max_retries": 0, "middleware": (_Tries(retries), *others)}
        if isinstance(given := options.get("http_client"), httpx2.AsyncClient):
            options["http_client"] = held(given)
        copied = plain(**options)
        _govern_copies(copied)
        return copied

    sdk.copy = sdk.with_options = with_options  # type: ignore[method-assign]


def _middleware_of(sdk: AsyncAnthropic, options: Mapping[str, Any]) -> tuple[MiddlewareInput, ...]:
    given = options.get("middleware", anthropic.not_given)
    return sdk.middleware if isinstance(given, anthropic.NotGiven) else tuple(given or ())
