"""Each message for itself: its role, and the blocks of its content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.simulator.validate import checks
from penstock.simulator.validate.media import MediaCheck
from penstock.simulator.wire import invalid, is_list

if TYPE_CHECKING:
    from penstock.simulator.models import Model
    from penstock.simulator.wire import Json

__all__ = ["check_messages", "check_system"]

MAX_MESSAGES = 100_000
NEW_VERSION = "2026-10-21"

_FIELDS: dict[str, tuple[str, ...]] = {
    "text": ("text", "citations"),
    "image": ("source", "transformations"),
    "document": ("source", "citations", "context", "title"),
    "search_result": ("content", "source", "title", "citations"),
    "tool_result": ("tool_use_id", "content", "is_error", "toolset_name"),
    "tool_use": ("id", "input", "name", "caller", "toolset_name"),
    "thinking": ("signature", "thinking"),
    "redacted_thinking": ("data",),
    "compaction": ("content", "encrypted_content", "signature", "tool_changes"),
}
_ANYWHERE = ("container_upload", "mid_conv_system", "tool_reference", "browser_state")
_COMPACTED = (*_ANYWHERE, "compaction")
_OF_USER = ("text", "image", "document", "search_result", "tool_result")
_OF_ASSISTANT = ("text", "image", "document", "thinking", "redacted_thinking", "tool_use", "server_tool_use",
                 "mcp_tool_use", "mcp_tool_result", "fallback")  # fmt: skip
_IN_TOOL_RESULT = ("text", "image", "document", "search_result", "tool_reference", "browser_state")
_TEXTS = {
    "text": ("text",),
    "tool_result": ("tool_use_id",),
    "tool_use": ("id", "name"),
    "thinking": ("signature", "thinking"),
    "redacted_thinking": ("data",),
}
_EMPTY = "all messages must have non-empty content except for the optional final assistant message"


def check_system(body: Json) -> None:
    """A text, or text blocks."""
    system = body.get("system")
    if system is None or isinstance(system, str):
        return
    for index, block in enumerate(checks.listed(system, "system")):
        given = checks.mapping(block, f"system.{index}")
        checks.choice(given.get("type"), ("text",), f"system.{index}.type")
        _check_fields(given, "text", f"system.{index}")


def check_messages(body: Json, model: Model, version: str, betas: str) -> None:
    """At least one message, at most 100,000, each well formed."""
    anywhere = _COMPACTED if "compact-" in betas else _ANYWHERE
    messages = checks.listed(checks.required(body, "messages", "messages"), "messages")
    if not messages:
        raise invalid("messages: at least one message is required")
    if len(messages) > MAX_MESSAGES:
        raise invalid(f"messages: Too many messages: {len(messages)} > {MAX_MESSAGES} maximum")
    media = MediaCheck(model)
    for index, message in enumerate(messages):
        at = f"messages.{index}"
        check = _MessageCheck(checks.mapping(message, at), at, model, version, media, anywhere=anywhere)
        check.run(last=index == len(messages) - 1)
    media.check_count()


class _MessageCheck:
    """One message, with what its checks depend on."""

    __slots__ = ("anywhere", "at", "media", "message", "model", "role", "version")

    def __init__(
        self, message: Json, at: str, model: Model, version: str, media: MediaCheck, *, anywhere: tuple[str, ...]
    ) -> None:
        self.message = message
        self.at = at
        self.model = model
        self.version = version
        self.media = media
        self.anywhere = anywhere
        self.role = self._role()

    def _role(self) -> str:
        checks.known(self.message, {"role", "content"}, f"{self.at}.")
        role = checks.required(self.message, "role", f"{self.at}.role")
        if role == "system" and not self.model.system_turns:
            raise invalid(
                'messages: Unexpected role "system". The Messages API accepts a top-level `system` parameter, not '
                '"system" as an input message role.'
            )
        if role != "system":
            checks.choice(role, ("user", "assistant"), f"{self.at}.role")
        return str(role)

    def run(self, *, last: bool) -> None:
        """Raise where the API would refuse the message."""
        content = checks.required(self.message, "content", f"{self.at}.content")
        if not (isinstance(content, str) or is_list(content)):
            raise invalid(f"{self.at}.content: Input should be a valid list")
        if not content and not (last and self.role == "assistant"):
            raise invalid(f"{self.at}: {_EMPTY}")
        if is_list(content):
            self._blocks(content)
        elif content and not str(content).strip():
            raise invalid("messages: text content blocks must contain non-whitespace text")

    def _blocks(self, blocks: list[object]) -> None:
        allowed = _OF_ASSISTANT if self.role == "assistant" else _OF_USER if self.role == "user" else ("text",)
        for index, block in enumerate(blocks):
            self._block(block, f"{self.at}.content.{index}", allowed)

    def _block(self, block: object, at: str, allowed: tuple[str, ...]) -> None:
        given = checks.mapping(block, at)
        kind = checks.string(checks.required(given, "type", f"{at}.type"), f"{at}.type")
        server_result = kind.endswith("_tool_result") and kind != "mcp_tool_result"
        if kind not in allowed + self.anywhere and not (server_result and self.role == "assistant"):
            expected = ", ".join(f"'{name}'" for name in allowed)
            raise invalid(
                f"{at}: Input tag '{kind}' found using 'type' does not match any of the expected tags: {expected}"
            )
        _check_fields(given, kind, at)
        self._check_version(given, kind, at)
        if kind in ("image", "document"):
            self.media.check(given, kind, f"{at}.{kind}")
        elif kind == "tool_result":
            self._tool_result(given.get("content"), f"{at}.tool_result.content")

    def _check_version(self, block: Json, kind: str, at: str) -> None:
        if self.version != NEW_VERSION:
            return
        if kind == "document" and self.role == "assistant":
            raise invalid(f"{at}: `document` blocks are not permitted in `assistant` messages.")
        if kind == "text" and self.role == "user" and block.get("citations"):
            raise invalid(f"{at}.text.citations: Citations are not permitted on `text` blocks of `user` messages.")

    def _tool_result(self, content: object, at: str) -> None:
        if content is None or isinstance(content, str):
            return
        for index, block in enumerate(checks.listed(content, at)):
            self._block(block, f"{at}.{index}", _IN_TOOL_RESULT)


def _check_fields(block: Json, kind: str, at: str) -> None:
    names = _FIELDS.get(kind)
    if names is None:
        return
    checks.known(block, {"type", "cache_control", *names}, f"{at}.{kind}.")
    for name in _TEXTS.get(kind, ()):
        checks.string(checks.required(block, name, f"{at}.{kind}.{name}"), f"{at}.{kind}.{name}")
    if kind == "text" and not block["text"]:
        raise invalid("messages: text content blocks must be non-empty")
    if kind == "text" and not block["text"].strip():
        raise invalid("messages: text content blocks must contain non-whitespace text")
    if kind == "compaction" and block.get("content") is not None and not checks.string(block["content"], at):
        raise invalid(f"{at}.compaction.content: String should have at least 1 character")
    if kind == "tool_use":
        checks.mapping(checks.required(block, "input", f"{at}.tool_use.input"), f"{at}.tool_use.input")
    if kind in ("thinking", "redacted_thinking") and block.get("cache_control") is not None:
        raise invalid(f"{at}.{kind}.cache_control: Extra inputs are not permitted")
