"""Making SDK clients governed: one of our own, or a copy of one that the caller built.

The rule here: a governed client is the SDK's own in everything but its middleware and its retries, which are off,
because two retry loops multiply. What the caller built is never changed and never closed.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, TypeAlias

from anthropic import AsyncAnthropic

from penstock.observe.tracing import tracing_configured
from penstock.transport import held, own_http_client

if TYPE_CHECKING:
    from anthropic.lib.bedrock import AsyncAnthropicBedrock, AsyncAnthropicBedrockMantle
    from anthropic.lib.vertex import AsyncAnthropicVertex

    from penstock.chain import Chain
    from penstock.settings import Settings

__all__ = ["SDK", "governed_copy", "own_sdk", "sends_nothing_else"]

# Foundry's, AWS's and Google Cloud's clients are subclasses of the first.
SDK: TypeAlias = "AsyncAnthropic | AsyncAnthropicBedrock | AsyncAnthropicBedrockMantle | AsyncAnthropicVertex"

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
    _warn_of_retries(sdk)
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
    _warn_of_retries(governed)
    return governed


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
