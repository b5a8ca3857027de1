"""The items of a run through message batches, as the API gets to know them.

The rule here: nothing goes into a batch that could spoil it for the others, and its name in there says what is asked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from anthropic import NotGiven, Omit
from pydantic import BaseModel

from penstock.batch.intake import Intake
from penstock.batch.items import Item

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.batch.result import FanOutResult

__all__ = ["BatchIntake", "encoded", "wire_id"]

_FITS: Final = re.compile(r"[a-zA-Z0-9_-]{1,47}")
_NOT_SENT: Final = frozenset({"timeout", "extra_headers", "extra_query", "extra_body", "stream"})


def wire_id(custom_id: str, digest: str) -> str:
    """Return the name under which the API gets to know an item: its own, if that will do, and what is asked.

    So a batch that is found again proves by the names in it that it holds these very requests.

    Args:
        custom_id: Of the item.
        digest: Of its request.

    Example:
        >>> wire_id("row-7", "0123456789abcdef"), len(wire_id("a text of any kind", "0123456789abcdef"))
        ('row-7-0123456789abcdef', 49)
    """
    if _FITS.fullmatch(custom_id) is None:
        custom_id = hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{custom_id}-{digest}"


def encoded(params: Mapping[str, Any]) -> bytes:
    """Return params as the API gets them, in one line of JSON; what is for the SDK alone stays out.

    Raises:
        TypeError: They are nothing that JSON can hold.
        ValueError: They hold a number or a text that JSON in UTF-8 can't, which would spoil the whole batch.
    """
    sent = {
        name: value
        for name, value in params.items()
        if name not in _NOT_SENT and not isinstance(value, NotGiven | Omit)
    }
    more = params.get("extra_body")
    body: Mapping[str, Any] = {**sent, **more} if isinstance(more, Mapping) else sent
    return json.dumps(body, default=_plain, allow_nan=False, ensure_ascii=False).encode()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings=False)
    raise TypeError(f"params must be what JSON can hold, and {type(value).__name__} is not")


class BatchIntake(Intake):
    """Reads items that are to go into batches: each with the digest of its request.

    Attributes:
        on_known: Told of each item that an earlier run had finished, by its wire id.
    """

    on_known: Callable[[str], object] = str

    def _prepared(self, item: Item) -> Item | FanOutResult | None:
        ready = super()._prepared(item)
        if isinstance(ready, Item):
            return ready if ready.request is not None else replace(ready, request=self._digest(item.params))
        own = item.params
        if self._output is not None and "output_config" in own:
            own = self._output.asked(own)
        self.on_known(wire_id(item.custom_id, self._digest(own)))
        return ready
