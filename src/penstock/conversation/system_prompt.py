"""System prompts: a text that never changes within a conversation, with a name and a version for the log.

The rule here: what was read is what is sent. Its hash tells apart two texts of the same name; the text itself is in no
`repr`, no label and no error.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from penstock.errors import SystemPromptChanged

__all__ = ["SystemPrompt", "as_system_prompt", "same_prompt"]

_VERSION = re.compile(r"v?\d[\w.-]*")


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """A system prompt.

    Args:
        text: What the model is told; not empty.
        name: What the log calls it.
        version: Its version.

    Raises:
        ValueError: The text is empty.

    Example:
        >>> SystemPrompt("You are terse.", name="support", version="v3")
        SystemPrompt(support.v3, 97dd3b60)
    """

    text: str = field(repr=False)
    name: str | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        given = cast("object", self.text)
        if not isinstance(given, str) or not given.strip():
            raise ValueError("a system prompt must be a text that is not empty")

    def __repr__(self) -> str:
        return f"SystemPrompt({', '.join(filter(None, (self.label, self.hash)))})"

    @property
    def hash(self) -> str:
        """8 hexadecimal digits of the text's SHA-256."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:8]

    @property
    def label(self) -> str:
        """Name and version, e.g. `support.v3`; empty for a prompt without a name."""
        return ".".join(part for part in (self.name, self.version) if part)

    @property
    def labels(self) -> dict[str, str]:
        """What its requests are labelled with: `system_prompt` (if it has a name) and `system_prompt_hash`."""
        named = {"system_prompt": self.label} if self.label else {}
        return {**named, "system_prompt_hash": self.hash}

    @classmethod
    def from_file(cls, path: str | Path, *, hash: str | None = None) -> SystemPrompt:  # noqa: A002 - the attribute's name
        """Read a prompt from a UTF-8 file, whose name gives name and version: `support.v3.md` is v3 of `support`.

        Space at both ends is left out. Files are read at once: do it where a program starts.

        Args:
            path: Of the file.
            hash: What the prompt's `hash` must be, to notice a file that was changed without a new version.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is empty, or no UTF-8.
            SystemPromptChanged: Its hash is another.

        Example:
            >>> path = Path("support.v3.md")
            >>> _ = path.write_text("You are terse.", encoding="utf-8")
            >>> SystemPrompt.from_file(path, hash="97dd3b60")
            SystemPrompt(support.v3, 97dd3b60)
        """
        path = Path(path)
        name, _, version = path.stem.partition(".")
        if not _VERSION.fullmatch(version):
            name, version = path.stem, ""
        prompt = cls(path.read_text(encoding="utf-8-sig").strip(), name=name, version=version or None)
        if hash is not None and hash != prompt.hash:
            raise SystemPromptChanged(expected=f"{prompt.label} ({hash})", found=f"{prompt.label} ({prompt.hash})")
        return prompt


def as_system_prompt(given: str | SystemPrompt | None) -> SystemPrompt | None:
    """Return a prompt for what a caller gives as one.

    Raises:
        ValueError: It is empty.
    """
    return given if given is None or isinstance(given, SystemPrompt) else SystemPrompt(given)


def same_prompt(expected: SystemPrompt | None, found: SystemPrompt | None) -> None:
    """Compare the texts of two prompts.

    Raises:
        SystemPromptChanged: They differ.
    """
    if not same_text(expected, found):
        raise SystemPromptChanged(expected=told_of(expected), found=told_of(found))


def same_text(one: SystemPrompt | None, other: SystemPrompt | None) -> bool:
    """Whether the model sees the same, whatever it is labelled with."""
    return (one and one.text) == (other and other.text)


def told_of(prompt: SystemPrompt | None) -> str:
    """Return a prompt's label and hash."""
    return "no system prompt" if prompt is None else f"{prompt.label or 'a system prompt'} ({prompt.hash})"
