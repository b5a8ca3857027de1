"""The simulator as its users hold it: options, scripts, journal and front ends around one simulated API."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.simulator.api import Api
from penstock.simulator.batches import Batches, BatchOptions
from penstock.simulator.clock import Clock
from penstock.simulator.decide import Decision
from penstock.simulator.exchange import Exchange
from penstock.simulator.faults import Faults
from penstock.simulator.journal import Journal, JournalEntry
from penstock.simulator.limits import Limit, Limits
from penstock.simulator.reply import Manner
from penstock.simulator.respond import Pace
from penstock.simulator.script import Script
from penstock.simulator.statistics import Counts, SimulatorStatistics
from penstock.simulator.wire import identifier

if TYPE_CHECKING:
    from collections.abc import Mapping

    import anthropic
    import httpx2
    from starlette.applications import Starlette

    from penstock.simulator.calls import ToolCalls
    from penstock.simulator.limits import OrganizationState
    from penstock.simulator.reply import OutputTokens
    from penstock.simulator.script import Content
    from penstock.simulator.wire import Json, Request

__all__ = ["Simulator"]


class Simulator:
    """A local Messages API with quotas, faults, a pace and a memory of what it was asked.

    Args:
        requests_per_minute: limit of each organization and model class, above 0; a `Limit` brings its own burst.
            None: unlimited.
        input_tokens_per_minute: the same for input tokens.
        output_tokens_per_minute: the same for generated tokens.
        count_tokens_per_minute: requests to `count_tokens`, which have a limit of their own.
        burst_s: capacity of the buckets, in seconds of refill, above 0.
        keys: API key to organization id; several keys may share one. None: every key is accepted, and is its own
            organization.
        faults: fault name to its probability for each request that would succeed, 0 to 1, together at most 1.
        seed: fixes the faults that are drawn, and the ids.
        latency_s: time to the first byte, 0 or more.
        tokens_per_s: speed of generation, above 0. None: instantly.
        output_tokens: length of the replies, or a function of the request body that gives it. None: replies are a
            summary made of the prompt's first words.
        thinking: True: models that think by default do; False: no reply has a thinking block; None: those whose
            request asks for one.
        tool_calls: how many tools of the client the model calls by itself in answer to a question, in the order they
            are offered and over again; it answers their results with words. A function of the request body is asked
            each time, results or not. None: none.
        batch: how message batches go.
        journal_size: entries kept, 0 or more.
        keep_bodies: whether journal entries hold the request's parsed body.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> import anyio
        >>> from penstock.simulator import Simulator
        >>> async def main() -> str:
        ...     simulator = Simulator(requests_per_minute=60)
        ...     async with simulator.client() as claude:
        ...         message = await claude.messages.create(
        ...             model="claude-sonnet-5-5", max_tokens=100, messages=[{"role": "user", "content": "Hello there"}]
        ...         )
        ...     return message.content[0].text
        >>> anyio.run(main)
        'Summary: Hello there'
    """

    def __init__(
        self,
        *,
        requests_per_minute: float | Limit | None = None,
        input_tokens_per_minute: float | Limit | None = None,
        output_tokens_per_minute: float | Limit | None = None,
        count_tokens_per_minute: float | Limit | None = None,
        burst_s: float = 60.0,
        keys: Mapping[str, str] | None = None,
        faults: Mapping[str, float] | None = None,
        seed: int = 0,
        latency_s: float = 0.0,
        tokens_per_s: float | None = None,
        output_tokens: OutputTokens = None,
        thinking: bool | None = None,
        tool_calls: ToolCalls = None,
        batch: BatchOptions | None = None,
        journal_size: int = 100_000,
        keep_bodies: bool = True,
    ) -> None:
        limit = partial(_limit, burst_s=burst_s)
        self._api = Api(
            limits=Limits(
                requests=limit(requests_per_minute),
                input_tokens=limit(input_tokens_per_minute),
                output_tokens=limit(output_tokens_per_minute),
                count_tokens=limit(count_tokens_per_minute),
            ),
            keys=None if keys is None else dict(keys),
            faults=Faults(faults or {}, seed),
            seed=seed,
            pace=Pace(latency_s, tokens_per_s),
            manner=Manner(output_tokens=output_tokens, thinking=thinking, tool_calls=tool_calls),
            keep_bodies=keep_bodies,
            clock=Clock(),
            script=Script(),
            batches=Batches(batch or BatchOptions(), seed),
        )
        self._journal = Journal(journal_size)
        self._counts = Counts()

    def __repr__(self) -> str:
        return f"Simulator(requests={self._counts.requests}, in_flight={self.in_flight}, {self._api.faults!r})"

    @property
    def journal(self) -> list[JournalEntry]:
        """One entry for each request, oldest first; the newest `journal_size` are kept."""
        return self._journal.entries

    def journal_after(self, number: int) -> list[JournalEntry]:
        """The entries kept whose number is larger than `number`."""
        return self._journal.after(number)

    def clear_journal(self) -> None:
        """Forget all entries; numbers go on."""
        self._journal.entries.clear()

    @property
    def in_flight(self) -> int:
        """Requests whose response is neither finished nor closed."""
        return self._counts.in_flight

    def statistics(self) -> SimulatorStatistics:
        """Counts since the start, and what each organization has left."""
        now = self._api.clock.now()
        states = {name: organization.state(now) for name, organization in self._api.organizations.items()}
        return self._counts.statistics(states)

    def organization(self, key: str) -> OrganizationState:
        """What the organization of `key` has left.

        Raises:
            ValueError: the key is not one of `keys`.
        """
        now = self._api.clock.now()
        return self._api.organization(self._api.organization_id(key), now).state(now)

    def inject(self, name: str, times: int = 1, after: int = 0, **params: Any) -> None:
        """Let the next requests that would succeed get a fault, in order, before any random one.

        Args:
            name: one of `FAULTS`.
            times: how many requests get it, 1 or more.
            after: how many requests pass unharmed first, 0 or more.
            params: `delay_s` (time before the fault shows), and what the fault takes; see the documentation. For
                `error`: `status`, `type`, `message`, `error_code`, `details`, `retry_after_s`, `should_retry`.

        Raises:
            ValueError: no such fault or parameter.
        """
        self._api.faults.inject(name, times=times, after=after, params=params)

    @property
    def batches(self) -> Batches:
        """The message batches of all organizations; its `options` may be changed, for those made from then on."""
        return self._api.batches

    def reply(
        self,
        content: Content,
        stop_reason: str | None = None,
        times: int = 1,
        usage: Json | None = None,
        *,
        stop_details: Json | None = None,
    ) -> None:
        """Let the next requests that succeed get this reply, in order, in place of a summary.

        Args:
            content: a text, a content block, or a list of blocks; calls of tools need no id.
            stop_reason: None: `tool_use` where there is a tool call, else `end_turn`.
            times: how many requests get it, 1 or more.
            usage: fields of `usage` that differ from the computed ones.
            stop_details: `stop_details` of the message, for a refusal: `{"type": "refusal", "category": "cyber",
                "explanation": "…"}`.

        Raises:
            ValueError: a block without a type.
        """
        self._api.script.add(content, stop_reason=stop_reason, stop_details=stop_details, times=times, usage=usage)

    def transport(self) -> httpx2.AsyncBaseTransport:
        """An in-process transport for `httpx2.AsyncClient`; any number of them share this simulator."""
        from penstock.simulator.transport import SimulatorTransport  # noqa: PLC0415 - the server has no use for it

        return SimulatorTransport(self)

    def client(self, api_key: str = "sk-sim-1", **anthropic_kwargs: Any) -> anthropic.AsyncAnthropic:
        """An `AsyncAnthropic` whose requests come here, in process; keywords are the SDK's own."""
        import anthropic  # noqa: PLC0415 - the server has no use for it

        options: dict[str, Any] = {"base_url": "http://simulator.invalid", **anthropic_kwargs}
        if "http_client" not in options:
            options["http_client"] = anthropic.DefaultAsyncHttpxClient(transport=self.transport())
        return anthropic.AsyncAnthropic(api_key=api_key, **options)

    def app(self) -> Starlette:
        """This API as a Starlette application.

        Raises:
            ImportError: the extra `simulator` is not installed.
        """
        from penstock.simulator.server import application  # noqa: PLC0415 - needs an extra

        return application(self)

    def open(self, request: Request) -> Exchange:
        """Decide how `request` is answered; the front end that calls this closes what it returns."""
        now = self._api.clock.now()
        number = self._counts.arrived()
        entry = JournalEntry(
            number=number,
            request_id=identifier("req", f"{self._api.seed}-{number}"),
            path=request.path,
            method=request.method,
            headers=request.headers,
            started_at=now,
        )
        self._journal.add(entry)
        decision = Decision(self._api, entry, now)
        return Exchange(
            entry,
            decision.answer(request),
            now=self._api.clock.now,
            charge=decision.charge,
            on_close=self._counts.ended,
        )


def _limit(given: float | Limit | None, *, burst_s: float) -> Limit | None:
    return given if given is None or isinstance(given, Limit) else Limit(given, burst_s)
