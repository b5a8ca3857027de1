"""What one does with a client: stream, fan out, converse, run tools.

The rule here: a verb is a line. The work is done by a package that needs nothing but an `AsyncAnthropic`, and there
stand its signature and its docstring, once; a verb hands it the client's SDK client, and what the client knows of the
arguments that a caller leaves out. It is loaded when it is first used.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from functools import cached_property
from importlib import import_module
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from penstock._core.options import is_given

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from anthropic import AsyncAnthropic
    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage

    from penstock import batch, conversation, streaming, tools
    from penstock._core.background import Background
    from penstock.batch.progress import Waits
    from penstock.events import Observers
    from penstock.settings import Settings
else:

    class _Late:
        """A package that is loaded when something of it is needed; `_Late("batch").FanOut` tells how to get it."""

        def __init__(self, package: str) -> None:
            self._package = package

        def __getattr__(self, name: str) -> Callable[[], Callable[..., Any]]:
            return lambda: getattr(import_module(f"penstock.{self._package}"), name)

    batch, conversation, streaming, tools = map(_Late, ("batch", "conversation", "streaming", "tools"))

__all__ = ["Verbs"]

P = ParamSpec("P")
R = TypeVar("R")

_FIRST_OF_ARGS = re.compile(r"(?<=Args:\n) +(sdk|client|\*args): .*\n")


def verb(
    work: Callable[Concatenate[AsyncAnthropic, P], R], *known: str, when_open: bool = True
) -> Callable[Concatenate[Verbs, P], R]:
    """Return what `work` does as a method of a client.

    Args:
        work: Takes the SDK client, and arguments.
        *known: Arguments that are the client's own where a caller leaves them out, or gives `None`: of those in
            `Verbs._completed`.
        when_open: Whether it refuses a client that is not open; else its first request does.
    """
    return cast("Callable[Concatenate[Verbs, P], R]", _Verb(cast("Any", work), known, when_open=when_open))


class _Verb:
    """A method that is made, and what does its work loaded, when somebody asks for it."""

    def __init__(self, load: Callable[[], Callable[..., Any]], known: tuple[str, ...], *, when_open: bool) -> None:
        self._load = load
        self._known = known
        self._when_open = when_open
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, client: Verbs | None, owner: type | None = None) -> object:
        return self._method if client is None else MethodType(self._method, client)

    @cached_property
    def _method(self) -> FunctionType:
        work, known, when_open = self._load(), self._known, self._when_open

        def method(self: Any, *args: Any, **params: Any) -> Any:
            return work(self.sdk, *args, **self._completed(params, known, when_open=when_open))

        async def async_method(self: Any, *args: Any, **params: Any) -> Any:
            return await work(self.sdk, *args, **self._completed(params, known, when_open=when_open))

        made = cast("FunctionType", async_method if inspect.iscoroutinefunction(work) else method)
        made.__name__, made.__qualname__ = self._name, f"Client.{self._name}"
        made.__doc__ = _FIRST_OF_ARGS.sub("", inspect.getdoc(work) or "")
        cast("Any", made).__signature__ = _as_method(work, known)
        return made


def _as_method(work: Callable[..., Any], known: tuple[str, ...]) -> inspect.Signature:
    """Return the signature of `work` with `self` in the place of the SDK client, which has defaults of its own."""
    signature = inspect.signature(work)
    first, *others = signature.parameters.values()
    others = [one.replace(default=None) if one.name in known else one for one in others]
    returns = work.__name__ if inspect.isclass(work) else signature.return_annotation
    own = first.replace(name="self", annotation=inspect.Parameter.empty)
    return signature.replace(parameters=[own, *others], return_annotation=returns)


class Verbs(ABC):
    """The verbs of a `Client`."""

    _background: Background
    _observers: Observers

    @property
    @abstractmethod
    def sdk(self) -> AsyncAnthropic:
        """The governed SDK client."""

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """What the client was told, validated."""

    @abstractmethod
    def statistics(self) -> Any:
        """Return one frozen snapshot of everything that the guards count."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise `ClientClosed` unless the client is open, here."""

    stream = verb(streaming.stream, "background", when_open=False)
    fan_out = verb(batch.FanOut, "model", "max_tokens", "concurrency", "waits")
    map = verb(batch.ask_all, "model", "max_tokens", "concurrency", "waits")
    run_tools = verb(tools.run_tools, "model", "max_tokens", "max_iterations")
    tool_loop = verb(tools.ToolLoop, "model", "max_tokens", "max_iterations")
    # These two last: from here on, their names are those of the verbs.
    conversation = verb(
        conversation.Conversation,
        "model", "max_tokens", "max_iterations", "system", "token_budget",
        when_open=False,
    )  # fmt: skip
    batch = verb(batch.MessageBatches, "model", "max_tokens", "concurrency", "waits")

    def cost(self, message: Message | BetaMessage) -> Decimal:
        """Return what a message cost, in USD, cache and server tools included.

        Raises:
            UnknownPrice: No price is known for its model.
        """
        from penstock.costs.prices import cost  # noqa: PLC0415 - who asks for no cost loads no prices

        return cost(message)

    def _completed(self, params: dict[str, Any], names: tuple[str, ...], *, when_open: bool) -> dict[str, Any]:
        """Return arguments of a verb, with what the client knows of those that are left out."""
        if when_open:
            self._check_open()
        settings = self.settings
        known: dict[str, Any] = {
            "background": self._background,
            "concurrency": settings.most_at_once,
            "max_iterations": settings.max_tool_iterations,
            "max_tokens": settings.max_tokens,
            "model": settings.model,
            "system": settings.system,
            "token_budget": settings.token_budget,
            "waits": self._waits,
        }
        given = {
            name: value
            for name, value in params.items()
            if name not in names or (value is not None and is_given(value))
        }
        return {**{name: known[name] for name in names if known[name] is not None}, **given}

    def _waits(self, now: float) -> Waits:
        from penstock.batch.progress import Waits  # noqa: PLC0415 - only runs of many ask for it

        known = self.statistics()
        return Waits.of(known.admission, known.retry, known.breaker, known.attempts, now=now)
