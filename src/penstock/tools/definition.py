"""What a tool is: its entry in the request, and how a call of it is made ready and run.

The rule here: a function that can't be described to the model truly is refused when it becomes a tool, with its name
and what to do; nothing is left to be found out by a call. Schemas are made, and arguments validated, by the SDK's own
machinery.
"""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, cast, overload

from anthropic.lib.tools import BetaFunctionTool
from pydantic import PydanticUserError, TypeAdapter, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic_core import ErrorDetails

__all__ = ["InvalidArguments", "Tool", "checked_name", "reasons", "refused", "tool", "without_empty"]

P = ParamSpec("P")
R = TypeVar("R")

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}")
# What a refused argument is told by at most; the model needs no more to try again.
_REASONS: Final = 20
_STARS: Final[dict[object, str]] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_INVALID: Final = "invalid arguments: "


class InvalidArguments(ValueError):
    """What the model gave a tool is not what the tool takes; the message tells the model why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool(Generic[P, R]):
    """A tool: what the model is told of it, and how it is called. Made by `tool`; still callable as the function.

    Attributes:
        name: By which the model calls it.
        param: Its entry in the request's `tools`.
        function: What runs.
        bind: Validates an input and returns the call, ready to be made; raises `InvalidArguments`.
        is_async: Whether the call gives a coroutine; if not, it is made in a worker thread.
        safe_to_retry: Whether it may be called again after it failed.
        timeout_s: Seconds that a call may take; `None` for what the loop allows.
        result: Validates what it returns; `None` for no check.
        needs_approval: Whether each call is to be approved; `None`: if there is a hook that can.
    """

    name: str
    param: Mapping[str, Any] = field(repr=False)
    function: Callable[P, R] = field(repr=False)
    bind: Callable[[dict[str, Any]], Callable[[], object]] = field(repr=False)
    is_async: bool
    safe_to_retry: bool = False
    timeout_s: float | None = None
    result: TypeAdapter[Any] | None = field(default=None, repr=False)
    needs_approval: bool | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function as if it were no tool."""
        return self.function(*args, **kwargs)


@overload
def tool(
    function: Callable[P, R],
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    safe_to_retry: bool = False,
    timeout_s: float | None = None,
    result: Any = None,
    needs_approval: bool | None = None,
    extra_fields: Mapping[str, object] | None = None,
) -> Tool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    safe_to_retry: bool = False,
    timeout_s: float | None = None,
    result: Any = None,
    needs_approval: bool | None = None,
    extra_fields: Mapping[str, object] | None = None,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    safe_to_retry: bool = False,
    timeout_s: float | None = None,
    result: Any = None,
    needs_approval: bool | None = None,
    extra_fields: Mapping[str, object] | None = None,
) -> Any:
    """Make a tool of a function: as a decorator, with or without options, or called with the function.

    Plain functions can be given to `run_tools` as they are; this is for options, and makes the schema only once.

    Args:
        function: Async, or sync: then it runs in a worker thread. Every parameter has a type annotation, and none is
            `*args`, `**kwargs` or positional-only. Descriptions are taken from its docstring.
        name: By which the model calls it: 1 to 128 letters, digits, `_` and `-`; the function's by default.
        description: For the model; the docstring's by default, without the arguments.
        safe_to_retry: Whether a call that failed may be made again, twice more at most.
        timeout_s: Seconds that a call may take, retries included, above 0; the loop's `tool_timeout_s` by default.
        result: A type that what the function returns is validated against; what doesn't fit is told to the model as
            an error.
        needs_approval: Whether the hook `approve` is asked before each call; by default, if there is one. True makes
            a loop without a hook refuse the tool.
        extra_fields: Further fields of the tool's entry in the request, e.g. `{"strict": True}`.

    Raises:
        TypeError: The function can't be described to the model.
        ValueError: A bad `name` or `timeout_s`.

    Example:
        >>> @tool(safe_to_retry=True)
        ... async def get_weather(city: str) -> str:
        ...     '''Get the weather of a city.'''
        ...     return f"sunny in {city}"
        >>> get_weather
        Tool(name='get_weather', is_async=True, safe_to_retry=True, timeout_s=None, needs_approval=None)
        >>> get_weather.param["input_schema"]["required"]
        ['city']
    """
    if function is None:
        return partial(
            tool,
            name=name,
            description=description,
            safe_to_retry=safe_to_retry,
            timeout_s=timeout_s,
            result=result,
            needs_approval=needs_approval,
            extra_fields=extra_fields,
        )
    given = cast("object", function)
    if not (inspect.isfunction(given) or inspect.ismethod(given)):
        # Only its type: a partial, shown whole, may show a key.
        raise TypeError(f"a tool must be a function, not {type(given).__name__}; write a function that calls it")
    described = _described(function, checked_name(name or function.__name__), description)
    if timeout_s is not None and not timeout_s > 0:
        raise ValueError(f"timeout_s of tool {described.name!r} must be above 0, or None, not {timeout_s!r}")
    return Tool(
        name=described.name,
        param={**without_empty(cast("dict[str, Any]", described.to_dict())), **(extra_fields or {})},
        function=function,
        bind=partial(_bound, function, described),
        is_async=inspect.iscoroutinefunction(function),
        safe_to_retry=safe_to_retry,
        timeout_s=timeout_s,
        result=None if result is None else TypeAdapter(result),
        needs_approval=needs_approval,
    )


def reasons(error: ValidationError) -> str:
    """Return why a value is not valid, for people and models; never the value itself."""
    told = error.errors(include_url=False, include_context=False, include_input=False)
    texts = [_reason(detail) for detail in told[:_REASONS]]
    if len(told) > _REASONS:
        texts.append(f"and {len(told) - _REASONS} more")
    return "; ".join(texts)


def _reason(detail: ErrorDetails) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    return f"{place}: {detail['msg']}" if place else detail["msg"]


# Functions


def _described(function: Callable[..., Any], name: str, description: str | None) -> BetaFunctionTool[Any]:
    """Return the SDK's description of a function, which returns the arguments it validated instead of calling it."""
    _check_signature(function, name)

    @functools.wraps(function)
    def validated(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    # What it returns is nothing that the model is told, so it need not be a type that can be found.
    validated.__annotations__ = {key: value for key, value in function.__annotations__.items() if key != "return"}
    try:
        return BetaFunctionTool(validated, name=name, description=description)
    except NameError as error:
        raise TypeError(
            f"tool {name!r}: {error}; the types of its parameters must be importable where the function is defined, "
            "at run time and not only for type checkers"
        ) from error
    except PydanticUserError as error:
        first = str(error).partition("\n")[0]
        raise TypeError(f"tool {name!r}: no JSON schema can be made for its parameters: {first}") from error


def _check_signature(function: Callable[..., Any], name: str) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"tool {name!r} is a generator; a tool returns its result, all at once")
    for parameter in inspect.signature(function).parameters.values():
        stars = _STARS.get(parameter.kind)
        if stars is not None:
            raise TypeError(
                f"tool {name!r} takes {stars}{parameter.name}, which can't be described to the model; give each of "
                "its parameters a name and a type"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(f"tool {name!r} takes {parameter.name!r} by position only; the model gives names")
        if parameter.annotation is parameter.empty:
            raise TypeError(
                f"tool {name!r}: parameter {parameter.name!r} has no type annotation, from which its schema is made; "
                f"write e.g. `{parameter.name}: str`"
            )


def _bound(function: Callable[..., Any], described: BetaFunctionTool[Any], given: dict[str, Any]) -> Any:
    try:
        args, kwargs = cast("Any", described.call(given))
    except ValueError as error:
        raise refused(error) from None
    return partial(function, *args, **kwargs)


def refused(error: ValueError) -> InvalidArguments:
    """Return the SDK's refusal of arguments as ours, which tells the model the reasons."""
    cause = error.__cause__
    return InvalidArguments(_INVALID + (reasons(cause) if isinstance(cause, ValidationError) else str(error)))


def checked_name(name: str) -> str:
    """Return a name that the API takes.

    Raises:
        ValueError: It doesn't take this one.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} can't be the name of a tool: it must be 1 to 128 letters (a-z), digits, '_' and '-'; "
            "give another with penstock.tool(function, name=…)"
        )
    return name


def without_empty(param: dict[str, Any]) -> dict[str, Any]:
    """Return a tool's entry without a description that says nothing."""
    return {name: value for name, value in param.items() if not (name == "description" and not value)}
