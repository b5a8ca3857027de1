"""The door: one object that governs an SDK client and owns the lifetime of everything behind it.

The rule here: the client wires parts together and does none of their work. Creating it does no I/O; whatever it starts
runs in one supervised task, so that it may be entered and left in different tasks, and closing finishes even if the one
who closes is cancelled.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from anthropic import AsyncAnthropic

from penstock._core.background import Background
from penstock._core.chance import CHANCE
from penstock.chain import Chain, build_chain
from penstock.events import Observer, Observers
from penstock.governed import SDK, governed_copy, own_sdk, sends_nothing_else
from penstock.keys.environment import as_secret, keys_of_environment
from penstock.lifetime import Lifetime
from penstock.settings import Settings, SettingsFields, check_base_url
from penstock.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from anthropic.resources import AsyncBeta, AsyncMessages, AsyncModels

    from penstock._core.secret import Secret
    from penstock.guards.admit.statistics import AdmitStatistics
    from penstock.guards.breaker import CircuitBreakerStatistics
    from penstock.guards.meter import MeterStatistics
    from penstock.guards.record import RecordStatistics
    from penstock.guards.retry import RetryStatistics
    from penstock.guards.sanitize import SanitizeStatistics

__all__ = ["SDK", "Client", "ClientStatistics"]

# How long what is left in the background may take once every call has ended, or been cancelled.
_DRAIN_S = 5.0
_CANCELLED_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStatistics:
    """Everything that the guards count, at one moment.

    Attributes:
        calls: Calls, successes, latencies and tokens as the caller saw them.
        retry: The retry quota, and retries so far.
        breaker: The state of each model class.
        admission: The line, the slots, the keys, bucket levels and learned limits of every quota.
        attempts: Attempts as the wire saw them, by model.
        sanitize: What was found in input; `None` where nobody looks.
    """

    calls: RecordStatistics
    retry: RetryStatistics
    breaker: CircuitBreakerStatistics
    admission: AdmitStatistics
    attempts: MeterStatistics
    sanitize: SanitizeStatistics | None = None


class Client(Verbs):
    """Governs the official SDK client: every request it sends passes the same guards.

    Args:
        settings: Validated settings; read from the environment (`PENSTOCK_…`) if not given.
        sdk: An SDK client to govern in place of our own: Bedrock, Vertex, Foundry, AWS, Google Cloud, or one with an
            `http_client` of yours. A copy gets the guards, after your own middleware; the original is neither changed
            nor closed. Its own credentials count as one key.
        observers: Functions that are told every event (`penstock.events`); synchronous, they must not block.
        **fields: Any field of `Settings` by name; wins over `settings`.

    Raises:
        pydantic.ValidationError: A bad or unknown setting.
        TypeError: `api_keys` with an `sdk` that is not a plain `AsyncAnthropic`: an Anthropic key must not reach a
            third party.

    Example:
        >>> async def main() -> None:
        ...     async with Client(concurrency=16) as claude:
        ...         message = await claude.messages.create(
        ...             model="claude-sonnet-5-5", max_tokens=200, messages=[{"role": "user", "content": "Hello"}]
        ...         )
        ...         print(message.stop_reason)
        >>> import anyio
        >>> anyio.run(main)
        end_turn
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        sdk: SDK | None = None,
        observers: Iterable[Observer] = (),
        **fields: Unpack[SettingsFields],
    ) -> None:
        given = cast("dict[str, Any]", fields)
        if not isinstance(cast("object", settings), Settings | None):
            kind = type(settings).__name__
            del settings
            raise TypeError(f"settings must be Settings, not {kind}; keys are given by name: Client(api_keys=[…])")
        try:
            self._settings = _settings(settings, sdk, given)
        except ValueError:
            # Some tracebacks show local variables; these may hold keys.
            given.clear()
            raise
        self._given_sdk = cast("AsyncAnthropic | None", sdk)
        if sdk is not None and self.settings.api_keys and type(sdk) is not AsyncAnthropic:
            given.clear()
            raise TypeError(
                f"api_keys can't be used with {type(sdk).__name__}: it brings credentials of its own. "
                "Leave api_keys out."
            )
        if sdk is None:
            check_base_url(self._base_url, allow_http=self.settings.allow_http)
        self._observers = Observers((*_log_observers(self.settings), *observers))
        self._background = Background(self._observers)
        self._lifetime = Lifetime(self._background, close_timeout_s=self.settings.close_timeout_s)
        self._chain: Chain = build_chain(
            self.settings,
            observers=self._observers,
            background=self._background,
            gate=self._lifetime.check_open,
            rng=CHANCE,
        )

    def __repr__(self) -> str:
        if "_chain" not in self.__dict__:
            # Tracebacks that show local variables show one whose settings were refused, too.
            return "<Client not made>"
        return f"<Client {self._lifetime.state}, {len(self._chain.record.live)} calls under way>"

    @property
    def _base_url(self) -> str:
        return self.settings.base_url or os.environ.get("ANTHROPIC_BASE_URL") or "https://api.anthropic.com"

    # What it governs

    @property
    def settings(self) -> Settings:
        """What it was told, validated."""
        return self._settings

    @property
    def sdk(self) -> AsyncAnthropic:
        """The governed SDK client; hand it to whatever takes an `AsyncAnthropic`.

        Its own retries are off, because two retry loops multiply.
        """
        return self._sdk

    @cached_property
    def _sdk(self) -> AsyncAnthropic:
        if self._given_sdk is None:
            return own_sdk(self.settings, self._base_url, self._chain)
        return governed_copy(self._given_sdk, self._chain)

    @property
    def messages(self) -> AsyncMessages:
        """The SDK's own `messages`, governed."""
        return self.sdk.messages

    @property
    def beta(self) -> AsyncBeta:
        """The SDK's own `beta`, governed."""
        return self.sdk.beta

    @property
    def models(self) -> AsyncModels:
        """The SDK's own `models`, governed."""
        return self.sdk.models

    def add_key(self, key: str | Secret) -> str:
        """Use one more API key from now on, or one that was quarantined or retired again.

        Returns:
            The name by which logs and statistics call it.

        Raises:
            TypeError: The governed client brings credentials of its own.
            ValueError: It can't be a key.
            ClientClosed: The client is not open here.
        """
        if self._given_sdk is not None and not self.settings.api_keys:
            raise TypeError("this client uses the credentials of its sdk; keys can't be added to them")
        self._lifetime.check_open()
        name = self._chain.admit.pool.add(as_secret(key)).name
        self._chain.admit.line.wake()
        return name

    def retire_key(self, name: str) -> bool:
        """Use a key no more; what is under way with it goes on.

        Args:
            name: As in logs and statistics (`key-…`).

        Returns:
            Whether there was such a key.
        """
        return self._chain.admit.pool.retire(name)

    # What it tells

    def statistics(self) -> ClientStatistics:
        """Return one frozen snapshot of everything that the guards count."""
        chain = self._chain
        return ClientStatistics(
            calls=chain.record.statistics(),
            retry=chain.retry.statistics(),
            breaker=chain.breaker.statistics(),
            admission=chain.admit.statistics(),
            attempts=chain.meter.statistics(),
            sanitize=None if chain.sanitize is None else chain.sanitize.statistics(),
        )

    # Its life

    def _check_open(self) -> None:
        self._lifetime.check_open()

    async def __aenter__(self) -> Self:
        """Open it, as `open` does."""
        return await self.open()

    async def open(self) -> Self:
        """Find the keys and start; from here on it belongs to this event loop.

        For notebooks and whatever else has no block to put `async with` around: `close` ends it, and is yours to call.

        Returns:
            The client itself: `claude = await Client().open()`.

        Raises:
            KeyNotFound: There is no key anywhere.
            ClientClosed: It was entered before.
        """
        self._lifetime.check_new()
        if self._given_sdk is None or self.settings.api_keys:
            keys = self.settings.api_keys or keys_of_environment()
            carried = None
            if self._given_sdk is None:
                # Also for a copy whose middleware the caller has replaced.
                self.sdk.api_key = keys[0].reveal()
                carried = keys[0] if sends_nothing_else(self.sdk) else None
            self._chain.admit.use_keys(keys, carried=carried)
        await self._lifetime.begin(self._chain.record, close=self.sdk.close if self._given_sdk is None else None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; an exception of the block leaves as it is."""
        await self.close()

    async def close(self) -> None:
        """Refuse new calls, let those under way end for `close_timeout_s`, cancel the rest, and write what is left.

        Closing goes on in the background if the one who waits for it is cancelled. Closing again waits for the same
        end.

        Raises:
            ClientClosed: It is called in another event loop than the client's.
        """
        await self._lifetime.close()


def _settings(settings: Settings | None, sdk: SDK | None, fields: dict[str, Any]) -> Settings:
    if settings is not None:
        return Settings(**{**dict(settings), **fields}) if fields else settings
    if sdk is not None:
        # Keys in the environment are meant for our own client, not for one that brings its credentials.
        fields.setdefault("api_keys", ())
    return Settings(**fields)


def _log_observers(settings: Settings) -> tuple[Observer, ...]:
    if not settings.log:
        return ()
    from penstock.observe.logs import LogObserver  # noqa: PLC0415 - structlog is not loaded where nothing is logged

    return (LogObserver(),)
