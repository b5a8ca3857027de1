"""What was sent and saved before stays: bytes of requests, saved conversations, journals."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from penstock import Client, Conversation
from penstock.simulator import Simulator

GOLDEN = Path(__file__).parent / "golden"


def load() -> Any:
    """The scenarios, which are no part of a package."""
    spec = importlib.util.spec_from_file_location("_golden_scenarios", GOLDEN / "scenarios.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCENARIOS = load()
BODIES: dict[str, list[str]] = json.loads((GOLDEN / "bodies.json").read_text("utf-8"))


@pytest.mark.lengthy
@pytest.mark.parametrize("name", BODIES)
async def test_requests_are_the_same_bytes(name: str) -> None:
    """A changed beginning loses every user's prompt cache."""
    assert await SCENARIOS.bodies(getattr(SCENARIOS, name)) == BODIES[name]


async def test_a_conversation_that_was_saved_loads_and_is_saved_the_same() -> None:
    """Nobody loses a session to an update."""
    text = (GOLDEN / "conversation.json").read_text("utf-8")
    simulator = Simulator()
    async with simulator.client() as sdk:
        chat = Conversation.from_json(text, sdk)
        assert chat.to_json() == text
        assert (await chat.send("And now?")).stop_reason == "end_turn"
        assert len(chat.messages) == 6


async def test_a_journal_that_was_written_is_resumed(tmp_path: Path) -> None:
    """Nothing that was answered is asked again."""
    path = tmp_path / "journal.jsonl"
    shutil.copy(GOLDEN / "journal.jsonl", path)
    simulator = Simulator()
    prompts = ["One", "Two", "Three"]
    async with (
        Client(sdk=simulator.client()) as claude,
        claude.fan_out(prompts, model=SCENARIOS.MODEL, max_tokens=50, journal=path, replay=True) as results,
    ):
        found = [result async for result in results]
    assert sorted(result.index for result in found if result.ok) == [0, 1, 2]
    assert simulator.journal == []
