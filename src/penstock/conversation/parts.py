"""What a conversation is made of.

The rule here: all that never changes stands in one frozen object, checked and copied, from which the working parts are
made anew: for a new conversation, for a fork, for one that was saved.
"""

from __future__ import annotations

import copy
import functools
import inspect
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

import anthropic
from anthropic.resources import AsyncMessages
from anthropic.resources.beta import AsyncMessages as AsyncBetaMessages

from penstock.conversation.functions import OF_LOOP, offered
from penstock.conversation.requests import Requests
from penstock.conversation.session import Session
from penstock.conversation.token_estimate import TokenEstimate
from penstock.conversation.window import Window
from penstock.costs.spending import Spending
from penstock.messages.blocks import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anthropic import AsyncAnthropic

    from penstock.conversation.functions import Functions
    from penstock.conversation.options import ConversationOptions
    from penstock.conversation.system_prompt import SystemPrompt
    from penstock.messages.blocks import Block, Turn
    from penstock.tools.registry import AnyTool

__all__ = ["NOT_SAVED", "AnyClient", "HasSDK", "Parts", "checked_id", "sdk_of"]

NOT_SAVED: Final = frozenset({"extra_body", "extra_headers", "extra_query", "mcp_servers", "timeout"})
"""What may hold credentials, or belongs to a connection, is not saved; it is given again."""

# What the conversation itself decides.
_OWN: Final = frozenset({
    "background", "cache_control", "max_tokens", "messages", "model", "on_abandon", "output_format", "stream", "system",
    "tools",
})  # fmt: skip
_OF_STREAM: Final = frozenset({"stream_idle_timeout_s"})


class HasSDK(Protocol):
    """A `Client`, or anything else with an SDK client."""

    # To type checkers, the client's cached property is not what it gives.
    @property
    def sdk(self) -> Any:
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
        functions: Run them; `None` if the caller does.
        params: More parameters of each request.
    """

    sdk: AsyncAnthropic = field(repr=False)
    options: ConversationOptions
    id: str
    system: SystemPrompt | None
    tools: Sequence[Block] = field(repr=False)
    functions: Functions | None
    params: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(
        cls,
        sdk: AsyncAnthropic,
        options: ConversationOptions,
        *,
        id: str,  # noqa: A002 - the name of the attribute
        system: SystemPrompt | None,
        tools: Iterable[AnyTool],
        params: Mapping[str, Any],
    ) -> Parts:
        """Return what a caller gives, checked.

        Args:
            sdk: See above.
            options: See above.
            id: See above.
            system: See above.
            tools: Functions, or entries as the SDK takes them.
            params: More parameters of each request, and how far functions may go.

        Raises:
            TypeError: There is no such parameter, or the conversation itself decides about it; or a bad tool.
            ValueError: Two tools have the same name, or a bound is out of its range.
            InvalidHistory: Something holds what can't be saved.
        """
        told = {name: params[name] for name in OF_LOOP & params.keys()}
        entries, functions = offered(tools, told, keep_marks=options.cache_ttl is None)
        # It has a default, so it is there also where nothing needs it.
        taken = {"max_iterations"} if functions is None else OF_LOOP
        checked = _checked({name: value for name, value in params.items() if name not in taken})
        return cls(sdk=sdk, options=options, id=id, system=system, tools=entries, functions=functions, params=checked)

    def __post_init__(self) -> None:
        choice: object = self.params.get("tool_choice")
        forced = isinstance(choice, dict) and cast("Block", choice).get("type") in {"any", "tool"}
        if forced and self.functions is not None:
            raise TypeError("a forced tool_choice would force a call in every reply: it can't be given with functions")

    def session(self, turns: tuple[Turn, ...], spending: Spending | None = None) -> Session:
        """Return what works with them."""
        options = self.options
        if spending is None:
            spending = Spending(options.token_budget, options.cost_budget_usd, cache_ttl=options.cache_ttl)
        requests = Requests(
            self.sdk,
            options,
            session=self.id,
            system=self.system,
            tools=self.tools,
            params=self.params,
            spending=spending,
        )
        estimate = TokenEstimate(options.model, requests.fixed, has_tools=bool(self.tools))
        return Session(turns, requests, Window(self.sdk, options), estimate, self.functions)

    def fork(self, session: Session, id: str) -> tuple[Parts, Session]:  # noqa: A002 - the name of the attribute
        """Return the same under another id, and what goes on by itself from where `session` is."""
        parts = replace(self, id=id)
        forked = parts.session(session.turns, session.requests.spending.copy())
        forked.estimate = session.estimate.copy()
        return parts, forked


def sdk_of(client: AnyClient) -> AsyncAnthropic:
    """Return the SDK client of what a caller gives as his client.

    Raises:
        TypeError: It has none, and is none; or it is a synchronous one.
    """
    sdk = cast("object", getattr(client, "sdk", client))
    if not hasattr(sdk, "messages") or isinstance(sdk, anthropic.Anthropic):
        raise TypeError(f"a conversation needs a Client or an AsyncAnthropic, not {type(sdk).__name__}")
    return cast("AsyncAnthropic", sdk)


def checked_id(given: object) -> str:
    """Return the id that a caller gives; a random one for none.

    Raises:
        TypeError: It is no text, or an empty one.
    """
    if given is None:
        return uuid.uuid4().hex
    if not isinstance(given, str) or not given:
        raise TypeError("the id of a conversation must be a text that is not empty")
    return given


def _checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the parameters that a caller gives for every request."""
    if own := sorted(_OWN & params.keys()):
        raise TypeError(f"{', '.join(own)} can't be given: the conversation itself decides about it")
    if unknown := sorted(params.keys() - _known()):
        raise TypeError(f"{', '.join(unknown)}: neither an option of a conversation nor a parameter of messages.create")
    return {
        name: copy.deepcopy(value) if name in NOT_SAVED else plain(value, f"params.{name}")
        for name, value in params.items()
    }


@functools.cache
def _known() -> frozenset[str]:
    """What the SDK takes for each request."""
    creates = (AsyncMessages.create, AsyncBetaMessages.create)
    return frozenset(name for create in creates for name in inspect.signature(create).parameters) | _OF_STREAM
