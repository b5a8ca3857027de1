"""Work in threads: in threads of our own, because pools that others share may be full for as long as they like."""

from __future__ import annotations

import ast
import asyncio
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

import penstock
from penstock.batch import FanOut, Journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from penstock.simulator import Simulator

SOURCES = sorted(Path(penstock.__file__).parent.rglob("*.py"))


@asynccontextmanager
async def full_pools() -> AsyncIterator[None]:
    """Have every thread of asyncio's and of anyio's pool wait."""
    go_on = threading.Event()
    loop = asyncio.get_running_loop()
    async with anyio.create_task_group() as group:
        try:
            for _ in range(64):
                loop.run_in_executor(None, go_on.wait, 60)
            for _ in range(int(anyio.to_thread.current_default_thread_limiter().total_tokens)):
                group.start_soon(anyio.to_thread.run_sync, lambda: go_on.wait(60))
            await anyio.wait_all_tasks_blocked()
            yield
        finally:
            go_on.set()


async def test_a_run_with_a_journal_needs_no_shared_pool(simulator: Simulator, tmp_path: Path) -> None:
    """It opens its file, writes, syncs and closes while all threads that others share are taken."""
    async with simulator.client() as sdk:
        # The SDK asks for its platform in asyncio's pool, once.
        await sdk.messages.create(model="claude-haiku-5-5", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
        async with full_pools():
            with anyio.fail_after(5):
                async with (
                    Journal(tmp_path / "a", fsync_s=0.001) as journal,
                    FanOut(sdk, ["a", "b"], model="claude-haiku-5-5", max_tokens=9, journal=journal) as results,
                ):
                    assert len([result async for result in results if result.ok]) == 2
                    await journal.sync()
                async with Journal(tmp_path / "a") as journal:
                    assert journal.answered == 2


async def test_content_needs_no_shared_pool(tmp_path: Path) -> None:
    """Images and documents are prepared, too."""
    (tmp_path / "a.txt").write_text("Some text")
    async with full_pools():
        with anyio.fail_after(5):
            block = await penstock.document(tmp_path / "a.txt")
    assert block["type"] == "document"


def faults(source: Path) -> Iterator[str]:
    """Calls that go to a thread and don't say to which."""
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        shared = name in {"asyncio.to_thread", "anyio.Path", "anyio.open_file", "anyio.run_process"}
        unlimited = name.endswith("to_thread.run_sync") and all(each.arg != "limiter" for each in node.keywords)
        if shared or unlimited or (name.endswith(".run_in_executor") and ast.unparse(node.args[0]) == "None"):
            yield f"{source}:{node.lineno}: {name}"


@pytest.mark.lengthy
def test_no_shared_pool_is_used() -> None:
    """Neither by name nor by default."""
    assert [fault for source in SOURCES for fault in faults(source)] == []


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    """Each way there is."""
    (tmp_path / "a.py").write_text(
        "anyio.to_thread.run_sync(work)\nloop.run_in_executor(None, work)\nasyncio.to_thread(work)\nanyio.Path('a')\n"
        "to_thread.run_sync(work, limiter=ours)\nloop.run_in_executor(ours, work)\n"
    )
    assert len(list(faults(tmp_path / "a.py"))) == 4
