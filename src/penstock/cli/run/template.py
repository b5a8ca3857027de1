"""Templates of prompts: `Translate into {language}: {text}`.

The rule here: a placeholder is the name of a column and nothing else: no attributes, no indexing, no conversions. What
is filled in is never looked at for placeholders again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Template"]

_PART: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Template:
    """A text with `{column}` placeholders; literal braces are doubled.

    Args:
        text: The template.

    Attributes:
        columns: Those that it needs, each once, in order.

    Raises:
        ValueError: A brace stands alone, or a placeholder has no name.

    Example:
        >>> Template("{{{word}}} in {language}").fill({"word": "{text}", "language": "French"})
        '{{text}} in French'
    """

    __slots__ = ("_pieces", "columns")

    def __init__(self, text: str) -> None:
        # Literal text and names take turns.
        self._pieces: list[str] = [""]
        end = 0
        for part in _PART.finditer(text):
            self._pieces[-1] += text[end : part.start()]
            end = part.end()
            found, name = part.group(), part.group(1)
            if found in {"{{", "}}"}:
                self._pieces[-1] += found[0]
            elif name and name.strip():
                self._pieces += [name.strip(), ""]
            else:
                problem = "stands alone; write it twice" if len(found) == 1 else "names no column"
                raise ValueError(f"{found!r} at character {part.start() + 1} {problem}")
        self._pieces[-1] += text[end:]
        self.columns = tuple(dict.fromkeys(self._pieces[1::2]))

    def __repr__(self) -> str:
        return f"<Template of {', '.join(self.columns) or 'no columns'}>"

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the prompt.

        Args:
            values: One for each column.

        Raises:
            KeyError: There is none for a column; it names the column.
        """
        return "".join(values[piece] if number % 2 else piece for number, piece in enumerate(self._pieces))
