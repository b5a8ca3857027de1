"""The input of tool calls as it is streamed: what can be accumulated of it, and what becomes of the rest.

The rule here: nothing is accumulated that is not the beginning of some JSON, so that nothing raises, and no error
quotes it. A call whose input turns out to be no JSON gets one that says so, and is answered like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from pydantic_core import from_json

from penstock.messages.blocks import mended, wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ToolInputs"]

# An answer that ended so may have been cut off within its input; `None`: it has not ended.
_CUT_OFF: Final = frozenset({None, "max_tokens", "model_context_window_exceeded", "refusal"})


class ToolInputs:
    """The input of one streamed answer's calls, as it comes.

    What has been accumulated is always the beginning of some JSON: pieces after which it would be none are held back,
    until those that follow mend it, as the second half of a character does, or the answer ends.
    """

    __slots__ = ("_held", "_texts")

    def __init__(self) -> None:
        self._texts: dict[object, str] = {}
        self._held: dict[object, str] = {}

    def __repr__(self) -> str:
        return f"<ToolInputs of {len(self._texts)} calls>"

    @property
    def written(self) -> int:
        """Characters of all input that has come."""
        return sum(map(len, self._texts.values()))

    def taken(self, event: dict[str, object]) -> dict[str, object] | None:
        """Return what is to be accumulated of a decoded event: any other as it is; `None` for nothing yet."""
        delta = event.get("delta")
        if event.get("type") != "content_block_delta" or not isinstance(delta, dict):
            return event
        piece = cast("dict[str, object]", delta).get("partial_json")
        if not isinstance(piece, str):
            return event
        index = event.get("index")
        self._texts[index] = text = _joined(self._texts.get(index, ""), piece)
        held = _joined(self._held.pop(index, ""), piece)
        if text and not _begins_json(text):
            self._held[index] = held
            return None
        return (
            event if held == piece else {**event, "delta": {**cast("dict[str, object]", delta), "partial_json": held}}
        )

    def mend(self, content: Sequence[Any], stop_reason: str | None = None) -> None:
        """Give calls whose input is no JSON one that says so, when a block or the answer ends.

        Args:
            content: The blocks as the SDK has accumulated them; changed in place.
            stop_reason: Why the answer ended. Input that may be cut off stays as it is.
        """
        for index, text in self._texts.items():
            if not text.strip() or _is_json(text) or (stop_reason in _CUT_OFF and index not in self._held):
                continue
            if isinstance(index, int) and index < len(content):
                content[index].input = wrapped(mended(text))


def _joined(before: str, piece: str) -> str:
    return before + piece if piece.isascii() else mended(before + piece, lone="surrogatepass")


def _begins_json(text: str) -> bool:
    try:
        from_json(text, allow_partial=True)
    except (TypeError, ValueError):
        return False
    return True


def _is_json(text: str) -> bool:
    try:
        from_json(text, allow_inf_nan=False)
    except (TypeError, ValueError):
        return False
    return True
