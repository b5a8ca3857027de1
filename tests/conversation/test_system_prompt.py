from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest

from penstock import SystemPrompt, SystemPromptChanged
from penstock.conversation.system_prompt import as_system_prompt, same_prompt

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("file", "name", "version"),
    [
        ("support.v3.md", "support", "v3"),
        ("support.2026-11.txt", "support", "2026-11"),
        ("support.md", "support", None),
        ("a.b.md", "a.b", None),
    ],
)
def test_a_files_name_gives_name_and_version(tmp_path: Path, file: str, name: str, version: str | None) -> None:
    """`support.v3.md` is v3 of support; what is no version belongs to the name."""
    (tmp_path / file).write_text("\ufeff You are terse.\r\n", encoding="utf-8")
    prompt = SystemPrompt.from_file(tmp_path / file)
    assert (prompt.name, prompt.version, prompt.text) == (name, version, "You are terse.")
    assert prompt.hash == SystemPrompt("You are terse.").hash


def test_its_text_is_shown_nowhere() -> None:
    """Labels and `repr` hold name, version and hash only."""
    prompt = SystemPrompt("You are terse.", name="support", version="v3")
    assert repr(prompt) == f"SystemPrompt(support.v3, {prompt.hash})"
    assert prompt.labels == {"system_prompt": "support.v3", "system_prompt_hash": prompt.hash}
    assert SystemPrompt("You are terse.").labels == {"system_prompt_hash": prompt.hash}
    assert pickle.loads(pickle.dumps(prompt)) == prompt


def test_a_file_that_changed_under_its_version_is_noticed(tmp_path: Path) -> None:
    """With the hash that it must have, another text raises."""
    path = tmp_path / "support.v3.md"
    path.write_text("You are terse.")
    known = SystemPrompt.from_file(path).hash
    assert SystemPrompt.from_file(path, hash=known).version == "v3"
    path.write_text("You are kind.")
    with pytest.raises(SystemPromptChanged, match=known) as raised:
        SystemPrompt.from_file(path, hash=known)
    assert "kind" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "  \n", None, 7])
def test_an_empty_prompt_is_refused(text: Any) -> None:
    """There is nothing to send."""
    with pytest.raises(ValueError, match="not empty"):
        SystemPrompt(text)


def test_a_prompt_may_be_given_as_a_text_or_not_at_all() -> None:
    """What is one already stays as it is."""
    prompt = SystemPrompt("Be kind.")
    assert as_system_prompt(prompt) is prompt
    assert as_system_prompt("Be kind.") == prompt
    assert as_system_prompt(None) is None


def test_prompts_are_told_apart_by_their_text() -> None:
    """Another name for the same text is no change; another text is, and so is none."""
    same_prompt(SystemPrompt("a", name="x"), SystemPrompt("a", name="y"))
    same_prompt(None, None)
    with pytest.raises(SystemPromptChanged, match=r"no system prompt .* under x \("):
        same_prompt(None, SystemPrompt("a", name="x"))
    with pytest.raises(SystemPromptChanged, match="a system prompt"):
        same_prompt(SystemPrompt("b"), SystemPrompt("a"))
