"""Many prompts as one call: all results in a list, `ask_all`.

The rule here: it is a fan-out that is read to its end, with the fan-out's own arguments.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, cast

from penstock.batch.fan_out import FanOut

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from penstock.batch.result import Result
    from penstock.batch.run import Model

__all__ = ["ask_all"]

P = ParamSpec("P")


def _read_to_its_end(run: Callable[P, FanOut[Model]]) -> Callable[P, Coroutine[Any, Any, list[Result[Model]]]]:
    async def ask_all(*args: P.args, **options: P.kwargs) -> list[Result[Model]]:
        """Ask many prompts at once and return all results, in the order of the input.

        Args:
            *args: The client that sends them, governed or not, and the requests, as for a fan-out.
            **options: As for a fan-out; with a `journal`, the list has what stands there as well (`replay`).

        Raises:
            Exception: What a fan-out raises.

        Example:
            >>> from penstock import Client
            >>> async def main() -> None:
            ...     async with Client() as claude:
            ...         print([result.ok for result in await claude.map(["One?", "Two?"], model="claude-haiku-5-5")])
            >>> import anyio
            >>> anyio.run(main)
            [True, True]
        """
        options.setdefault("order", "input")
        options.setdefault("replay", options.get("journal") is not None)
        async with run(*args, **options) as results:
            return [result async for result in results]

    signature = inspect.signature(run).replace(return_annotation="list[Result[Model]]")
    cast("Any", ask_all).__signature__ = signature
    return ask_all


ask_all = _read_to_its_end(FanOut)
