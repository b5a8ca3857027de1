"""Answers that a test writes itself, in place of a network: `ScriptedTransport`.

The rule here: a request is kept, and the script answers; nothing is added and nothing is checked. Whoever wants a
server that behaves like the API takes the simulator.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeAlias

import anthropic
import anyio
import httpx2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Answer", "ScriptedTransport"]

Answer: TypeAlias = (
    "httpx2.Response | Exception | Callable[[httpx2.Request], httpx2.Response | Awaitable[httpx2.Response]]"
)


class ScriptedTransport(httpx2.AsyncBaseTransport):
    """Gives answers in turn, and the last one for ever.

    Args:
        *answers: Each a response, an exception to raise, or a function that is given the request and returns, or
            raises, what comes of it; it may be a coroutine function, such as the method of another transport.

    Attributes:
        answers: Those that are left; the last one stays.
        requests: That came, their bodies read.
        times: When they came, by the event loop.

    Example:
        >>> message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
        >>> transport = ScriptedTransport(httpx2.ConnectError("refused"), httpx2.Response(200, json=message))
        >>> async def main() -> None:
        ...     async with transport.client(max_retries=1) as sdk:
        ...         answer = await sdk.messages.create(model="m", max_tokens=9, messages=[])
        ...         print(answer.id, len(transport.requests))
        >>> anyio.run(main)
        msg_1 2
    """

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []
        self.times: list[float] = []

    def __repr__(self) -> str:
        return f"<ScriptedTransport {len(self.requests)} requests, {len(self.answers)} answers left>"

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer by the script."""
        await request.aread()
        self.requests.append(request)
        self.times.append(anyio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx2.Response):
            return answer
        found = answer(request)
        return await found if inspect.isawaitable(found) else found

    def client(self, **options: Any) -> anthropic.AsyncAnthropic:
        """Make a client of the SDK whose requests are answered by the script.

        Args:
            **options: Of the client; by default it retries nothing.
        """
        given: dict[str, Any] = {"api_key": "sk-example", "base_url": "http://api.example", "max_retries": 0, **options}
        return anthropic.AsyncAnthropic(http_client=httpx2.AsyncClient(transport=self), **given)
