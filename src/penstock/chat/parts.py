"""What a conversation is made of, and how it becomes text and comes back.

The rule here: all that never changes stands in one frozen object, from which the working parts are made anew: for a new
conversation, for a fork, for one that was saved.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

from penstock.chat import saved
from penstock.chat.gauge import Gauge
from penstock.chat.requester import Requester
from penstock.chat.room import Room
from penstock.chat.spending import Spending
from penstock.chat.talk import Talk
from penstock.chat.turn import plain
from penstock.core.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anthropic import AsyncAnthropic

    from penstock.chat.options import ConversationOptions
    from penstock.chat.system_prompt import SystemPrompt
    from penstock.chat.turn import Block, Turn

__all__ = ["AnyClient", "HasSDK", "Parts", "checked_params", "sdk_of"]

# What the conversation itself decides.
_OWN: Final = frozenset({"background", "cache_control", "messages", "on_abandon", "output_format", "stream"})
# What may hold credentials, or belongs to a connection, is not saved; it is given again.
_NOT_SAVED: Final = frozenset({"extra_body", "extra_headers", "extra_query", "mcp_servers", "timeout"})


class HasSDK(Protocol):
    """A `Client`, or anything else with an SDK client."""

    @property
    def sdk(self) -> AsyncAnthropic:
        """The SDK client."""
        ...


AnyClient: TypeAlias = "HasSDK | AsyncAnthropic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All of a conversation that never changes.

    Attributes:
        sdk: Sends its requests.
        options: What it was told.
        id: Its id.
        system: Its system prompt.
        tools: Its tools, as the SDK takes them.
        params: More parameters of each request.
    """

    sdk: AsyncAnthropic = field(repr=False)
    options: ConversationOptions
    id: str
    system: SystemPrompt | None
    tools: Sequence[Block] = field(repr=False)
    params: Mapping[str, Any] = field(repr=False)

    def talk(self, turns: tuple[Turn, ...], spending: Spending | None = None) -> Talk:
        """Return what works with them."""
        options = self.options
        if spending is None:
            spending = Spending(options.token_budget, options.cost_budget_usd, cache_ttl=options.cache_ttl)
        requester = Requester(
            self.sdk,
            options,
            session=self.id,
            system=self.system,
            tools=self.tools,
            params=self.params,
            spending=spending,
        )
        gauge = Gauge(options.model, requester.fixed, has_tools=bool(self.tools))
        return Talk(turns, requester, Room(self.sdk, options), gauge)

    def fork(self, talk: Talk, id: str) -> tuple[Parts, Talk]:  # noqa: A002 - the name of the attribute
        """Return the same under another id, and what goes on by itself from where `talk` is."""
        parts = replace(self, id=id)
        forked = parts.talk(talk.turns, talk.requester.spending.copy())
        forked.gauge = talk.gauge.copy()
        return parts, forked

    def save(self, talk: Talk) -> str:
        """Return the conversation as text."""
        spending, gauge, system = talk.requester.spending, talk.gauge, self.system
        return saved.write(
            {
                "id": self.id,
                "options": self.options.model_dump(mode="json"),
                "params": {name: value for name, value in self.params.items() if name not in _NOT_SAVED},
                "tools": list(self.tools),
                "system": system and {"text": system.text, "name": system.name, "version": system.version},
                "spent": {
                    "usage": {each.name: getattr(spending.usage, each.name) for each in fields(Usage)},
                    "requests": spending.requests,
                    "cost_usd": str(spending.priced_usd),
                    "unpriced": spending.unpriced,
                },
                "window": {"tokens": gauge.tokens, "turns": gauge.turns, "per_token": gauge.per_token},
            },
            talk.turns,
        )

    @classmethod
    def load(cls, text: str | bytes, sdk: AsyncAnthropic, params: Mapping[str, Any]) -> tuple[Parts, Talk]:
        """Return what was saved.

        Raises:
            InvalidHistory: It is damaged, or something else.
            TypeError: One of `params` is saved.
        """
        if not params.keys() <= _NOT_SAVED:
            raise TypeError(f"only {', '.join(sorted(_NOT_SAVED))} can be given again, not {', '.join(sorted(params))}")
        given = saved.read(text)
        parts = cls(
            sdk=sdk,
            options=given.options,
            id=given.id,
            system=given.system_prompt,
            tools=given.tools,
            params={**checked_params(given.params), **params},
        )
        talk, spent, window = parts.talk(given.history()), given.spent, given.window
        talk.requester.spending.restore(given.usage, spent.requests, spent.cost_usd, spent.unpriced)
        talk.gauge.per_token = window.per_token
        if window.turns <= len(given.turns):
            talk.gauge.tokens, talk.gauge.turns = window.tokens, window.turns
        return parts, talk


def sdk_of(client: AnyClient) -> AsyncAnthropic:
    """Return the SDK client of what a caller gives as his client.

    Raises:
        TypeError: It has none, and is none.
    """
    sdk = getattr(client, "sdk", client)
    if not hasattr(sdk, "messages"):
        raise TypeError(f"a conversation needs a Client or an AsyncAnthropic, not {type(client).__name__}")
    return cast("AsyncAnthropic", sdk)


def checked_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the parameters that a caller gives for every request.

    Raises:
        TypeError: The conversation itself decides about one of them.
        InvalidHistory: One holds what can't be saved.
    """
    own = sorted(_OWN & params.keys())
    if own:
        raise TypeError(f"{', '.join(own)} can't be given: the conversation itself decides about it")
    return {name: value if name in _NOT_SAVED else plain(value, f"params.{name}") for name, value in params.items()}
