"""Making SDK clients governed: one of our own, or a copy of one that the caller built.

The rule here: a governed client is the SDK's own in everything but its middleware and its retries, which are off,
because two retry loops multiply. What the caller built is never changed and never closed.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import anthropic
import httpx2
from anthropic import AsyncAnthropic

from penstock._core.attempt import read_whole
from penstock.events import make_harmless
from penstock.observe.tracing import tracing_configured

if TYPE_CHECKING:
    from anthropic.lib.bedrock import AsyncAnthropicBedrock, AsyncAnthropicBedrockMantle
    from anthropic.lib.vertex import AsyncAnthropicVertex

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
    # Never fewer connections than slots, or requests that were let in would wait a second time, unseen.
    limits = httpx2.Limits(
        max_connections=max(1000, settings.most_at_once),
        max_keepalive_connections=max(100, settings.most_at_once),
        keepalive_expiry=30.0,
    )
    transport = anthropic.DefaultAioHttpClient if settings.transport == "aiohttp" else anthropic.DefaultAsyncHttpxClient
    options: dict[str, Any] = {} if settings.timeout_s is None else {"timeout": settings.timeout_s}
    if not tracing_configured():
        options["open_telemetry"] = False
    sdk = AsyncAnthropic(
        api_key=_PLACEHOLDER,
        base_url=base_url,
        max_retries=0,
        middleware=chain.middleware,
        http_client=_bounded(transport(limits=limits)),
        **options,
    )
    _warn_of_retries(sdk)
    _make_logs_harmless()
    return sdk


def sends_nothing_else(sdk: AsyncAnthropic) -> bool:
    """Whether a client sends no credential but its own key; `ANTHROPIC_CUSTOM_HEADERS` may add one."""
    return not any(name.lower() == "x-api-key" for name in sdk.default_headers)


def governed_copy(sdk: AsyncAnthropic, chain: Chain) -> AsyncAnthropic:
    """Return a copy of `sdk` with our guards after its own middleware.

    The copy shares the `http_client`; closing the copy would close that, so nobody must.
    """
    http_client = _bounded(sdk._client)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - a canary test watches it
    governed = sdk.copy(middleware=(*sdk.middleware, *chain.middleware), max_retries=0, http_client=http_client)
    _warn_of_retries(governed)
    _make_logs_harmless()
    return governed


def _make_logs_harmless() -> None:
    """Have no log handler of the application fail a call: those who carry it log once it is sent, and answered."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in _CARRIERS:
            make_harmless(logger)


def _bounded(http_client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """Return a client that is `http_client` in everything, but reads whole answers no further than they may go.

    A guard can't: where nothing is streamed, the client has read the answer before any of them sees it.
    """
    kind: Any = type(http_client)

    class Bounded(kind):  # type: ignore[misc] # it stays whatever it is
        async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
            response = cast("httpx2.Response", await super().send(request, stream=True, **options))  # pyright: ignore[reportUnknownMemberType]
            if stream:
                return response
            try:
                await read_whole(response)
            except BaseException:
                await response.aclose()
                raise
            return response

        def __del__(self) -> None:
            """Close nothing: it is the other's."""

    bounded: httpx2.AsyncClient = Bounded.__new__(Bounded)
    # All that it has and opens is the other's; so closing one closes both.
    bounded.__dict__ = http_client.__dict__
    return bounded


def _warn_of_retries(sdk: AsyncAnthropic) -> None:
    """Have copies, and copies of copies, that switch the SDK's own retries on warned about."""
    copy = sdk.copy

    def with_options(**options: Any) -> AsyncAnthropic:
        if options.get("max_retries"):
            warnings.warn(
                "max_retries on a governed client adds a second retry loop; "
                "set retry=RetryOptions(max_attempts=…) on the Client instead",
                UserWarning,
                stacklevel=2,
            )
        copied = copy(**options)
        _warn_of_retries(copied)
        return copied

    sdk.copy = sdk.with_options = with_options  # type: ignore[method-assign]
