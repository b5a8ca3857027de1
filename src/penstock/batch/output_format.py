"""Structured output: the schema that a request asks for, and what becomes of the answer.

The rule here: the same as the SDK's `messages.parse`, except that the schema is made once for all requests, and that an
answer which doesn't fit is told without quoting it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anthropic
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from penstock._core.options import is_given
from penstock.batch.result import texts_of
from penstock.errors import InvalidOutput

if TYPE_CHECKING:
    from anthropic.types import Message

__all__ = ["OutputFormat"]


class OutputFormat:
    """Asks for JSON that fits a type, and reads it.

    Args:
        wanted: A pydantic model, a dataclass, a `TypedDict`: whatever `pydantic.TypeAdapter` takes.

    Raises:
        TypeError: There is no JSON schema for it.

    Example:
        >>> OutputFormat(int).config["format"]["schema"]
        {'type': 'integer'}
    """

    __slots__ = ("_adapter", "config")

    def __init__(self, wanted: Any) -> None:
        if isinstance(wanted, Mapping):
            raise TypeError("output_format must be a type; give a schema as output_config={'format': …} instead")
        try:
            self._adapter = TypeAdapter[Any](wanted)
            schema = self._adapter.json_schema()
        except PydanticSchemaGenerationError as error:
            raise TypeError(f"no JSON schema can be made for the output_format {wanted!r}") from error
        self.config: dict[str, Any] = {
            "format": {"type": "json_schema", "schema": anthropic.transform_schema(schema)},
        }

    @classmethod
    def of(cls, wanted: Any) -> OutputFormat | None:
        """Return what asks for it; `None` where the caller has given none."""
        return cls(wanted) if is_given(wanted) and wanted is not None else None

    def __repr__(self) -> str:
        return f"<OutputFormat {self._adapter!r}>"

    def asked(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return params that ask for it; the rest of an `output_config` stays."""
        given = params.get("output_config")
        return {**params, "output_config": {**given, **self.config} if isinstance(given, Mapping) else self.config}

    def parsed(self, message: Message) -> Any:
        """Return what the first text of an answer says.

        Raises:
            InvalidOutput: The answer has no text, or one that doesn't fit.
        """
        text = next(texts_of(message), None)
        if text is None:
            raise InvalidOutput(stop_reason=message.stop_reason, problems=("no text",))
        return self.read(text, message.stop_reason)

    def read(self, text: str, stop_reason: str | None) -> Any:
        """Return what a text says.

        Raises:
            InvalidOutput: It doesn't fit.
        """
        problems: tuple[str, ...]
        try:
            return self._adapter.validate_json(text)
        except ValidationError as error:
            problems = tuple(dict.fromkeys(each["type"] for each in error.errors(include_input=False)))
        # Out here, because the error of pydantic, which quotes the answer, would go along as the context.
        raise InvalidOutput(stop_reason=stop_reason, problems=problems)
