"""Opening a stream: which method of the SDK sends the request, and what it is given.

The rule here: the body of the request is the one that the SDK's own `messages.stream` sends, by the SDK's public
methods, so that whatever governs its client governs this too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, Unpack, get_args

import anthropic
from pydantic import TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from penstock._core.body.aws import AWS_STREAM
from penstock._core.usage import writes_for_an_hour
from penstock.streaming.source import DrainedSource, Source, as_sse
from penstock.streaming.stream import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    import httpx2
    from anthropic import AsyncAnthropic

    from penstock._core.background import Background
    from penstock._core.params import StreamParams

__all__ = ["OnAbandon", "StreamManager", "stream"]

OnAbandon: TypeAlias = Literal["close", "drain"]

_DRAIN_S: Final = 600.0
# Parameters that only `beta.messages` takes.
_BETA: Final = frozenset(
    {
        "betas",
        "billing_policy",
        "compaction",
        "context_management",
        "fallback_credit_token",
        "fallbacks",
        "mcp_servers",
        "thread",
    }
)


class StreamManager:
    """Sends the request when it is entered, gives the `Stream`, and leaves it with the block; made by `stream`."""

    def __init__(
        self,
        sdk: AsyncAnthropic,
        params: Mapping[str, Any],
        *,
        idle_timeout_s: float | None,
        on_abandon: OnAbandon,
        background: Background | None,
    ) -> None:
        self._sdk = sdk
        self._params: dict[str, Any] = dict(params)
        self._idle_timeout_s = idle_timeout_s
        self._background = background if on_abandon == "drain" else None
        named = _BETA.intersection(params)
        self._beta = any(_is_given(params[name]) for name in named)
        if not self._beta:
            for name in named:
                del self._params[name]
        self._output_format = self._take_output_format()
        self._stream: Stream | None = None

    def __repr__(self) -> str:
        return f"<StreamManager {self._params.get('model')!r}, {self._stream or 'not entered'}>"

    async def __aenter__(self) -> Stream:
        """Send the request and wait for the answer to begin.

        Raises:
            anthropic.APIStatusError: The API refused.
            anthropic.APIConnectionError: It could not be reached.
            RuntimeError: It was entered before.
        """
        if self._stream is not None:
            raise RuntimeError("a stream runs once; make a new one")
        messages: Any = self._sdk.beta.messages if self._beta else self._sdk.messages
        answer = await messages.with_streaming_response.create(**self._params, stream=True).__aenter__()
        response: httpx2.Response = answer.http_response
        source = self._source(response, as_sse(await answer.parse()) if _is_foreign(response) else None)
        self._stream = Stream(
            self._sdk,
            response,
            source,
            beta=self._beta,
            output_format=self._output_format,
            for_an_hour=partial(writes_for_an_hour, self._params),
        )
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the stream; an exception of the block leaves as it is."""
        if self._stream is not None:
            await self._stream.close()

    def _source(self, response: httpx2.Response, chunks: AsyncIterator[bytes] | None) -> Source:
        background, idle_timeout_s = self._background, self._idle_timeout_s
        if background is None or not background.running:
            return Source(response, idle_timeout_s=idle_timeout_s, chunks=chunks)
        drained = DrainedSource(response, idle_timeout_s=idle_timeout_s, drain_s=_DRAIN_S, chunks=chunks)
        background.put(drained.pump)
        return drained

    def _take_output_format(self) -> Any:
        """Put the schema of structured output in the place of its type, as the SDK does, and return the type."""
        wanted = self._params.pop("output_format", None)
        if wanted is None or not _is_given(wanted):
            return None
        if isinstance(wanted, Mapping):
            raise TypeError("output_format must be a type; give a schema as output_config={'format': …} instead")
        try:
            schema = TypeAdapter[Any](wanted).json_schema()
        except PydanticSchemaGenerationError as error:
            raise TypeError(f"no JSON schema can be made for the output_format {wanted!r}") from error
        config = self._params.get("output_config", anthropic.omit)
        given: Mapping[str, Any] = config if _is_given(config) and config is not None else {}
        self._params["output_config"] = {
            **given,
            "format": {"type": "json_schema", "schema": anthropic.transform_schema(schema)},
        }
        return wanted


def stream(
    sdk: AsyncAnthropic,
    *,
    stream_idle_timeout_s: float | None = 300.0,
    on_abandon: OnAbandon = "close",
    background: Background | None = None,
    **params: Unpack[StreamParams],
) -> StreamManager:
    """Stream a message: `async with` it, iterate over its text or its events, ask for the final message.

    Args:
        sdk: The client that sends the request, governed or not.
        stream_idle_timeout_s: Seconds that a reader waits for anything but pings, above 0; `None` for no bound. Hidden
            thinking and server-side tools can be silent for minutes.
        on_abandon: What happens to a stream that is left early: `"close"` ends the request, and its usage is an
            estimate; `"drain"` reads the rest in the background, for at most ten minutes, so that its usage is exact.
        background: Does the draining; without one, streams that are left early are closed.
        **params: Of the SDK's `messages.stream`, or of `beta.messages.stream`, which is used where one of its own
            parameters (`betas`, `mcp_servers`, …) is given.

    Raises:
        ValueError: A bad `stream_idle_timeout_s` or `on_abandon`.
        TypeError: An `output_format` that is not a type with a JSON schema.

    Example:
        >>> async def main() -> None:
        ...     async with anthropic.AsyncAnthropic() as claude:
        ...         params = {"model": "claude-sonnet-5-5", "max_tokens": 200}
        ...         messages = [{"role": "user", "content": "Hello"}]
        ...         async with stream(claude, messages=messages, **params) as answer:
        ...             text = "".join([text async for text in answer.text_stream])
        ...             message = await answer.get_final_message()
        ...         print(message.stop_reason, text == await answer.get_final_text())
        >>> import anyio
        >>> anyio.run(main)
        end_turn True
    """
    if stream_idle_timeout_s is not None and not 0 < stream_idle_timeout_s < math.inf:
        raise ValueError(f"stream_idle_timeout_s must be above 0, or None, not {stream_idle_timeout_s!r}")
    if on_abandon not in get_args(OnAbandon):
        raise ValueError(f"on_abandon must be one of {', '.join(get_args(OnAbandon))}, not {on_abandon!r}")
    return StreamManager(
        sdk, params, idle_timeout_s=stream_idle_timeout_s, on_abandon=on_abandon, background=background
    )


def _is_given(value: object) -> bool:
    return not isinstance(value, anthropic.Omit | anthropic.NotGiven)


def _is_foreign(response: httpx2.Response) -> bool:
    """Whether an answer streams in the format of Bedrock's older interface, which the SDK decodes."""
    return response.headers.get("content-type", "").strip().lower().startswith(AWS_STREAM)
