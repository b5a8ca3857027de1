"""Every example is run: the Python blocks of the README and the docs, and the `>>>` lines of docstrings.

An example is written as a user would write it. A page's blocks run top to bottom in one namespace and on one event
loop, and may await at top level. A bare `Client()` or `AsyncAnthropic()` finds a key and a server, a simulator, in the
environment.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import importlib
import inspect
import io
import re
import socket
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING

import pytest

import penstock

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = Path(penstock.__file__).parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
START_S = 30


class Reader:
    """Someone who types examples in, one after another, at a prompt that can await."""

    def __init__(self, namespace: dict[str, object], loop: asyncio.Runner) -> None:
        self.namespace = namespace
        self.loop = loop

    def type_in(self, source: str, place: str, mode: str = "exec") -> None:
        code: CodeType = compile(source, place, mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        if code.co_flags & inspect.CO_COROUTINE:
            self.loop.run(FunctionType(code, self.namespace)())
        else:
            exec(code, self.namespace)

    def answer_to(self, example: doctest.Example, place: str) -> str:
        """What the prompt shows: output, or the last line of a traceback."""
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            try:
                self.type_in(example.source, place, "single")
            except Exception as error:
                if example.exc_msg is None:
                    raise
                return traceback.format_exception_only(error)[-1]
        return shown.getvalue()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(port: int) -> bool:
    """Whether somebody listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A simulator as a user starts it; gives its address."""
    port = free_port()
    command = [sys.executable, "-m", "penstock.simulator", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(START_S * 20):
                if answers(port):
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pytest.fail(f"the simulator ended at once, with status {process.wait(0.05)}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def reader(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader in an empty folder, with a key and a server in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-example")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server)
    monkeypatch.setenv("PENSTOCK_BASE_URL", server)
    with asyncio.Runner() as loop:
        yield Reader({"__name__": "__main__"}, loop)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_examples_of_pages_run(page: str, reader: Reader) -> None:
    """Every Python block of a page runs, in order, as it stands."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        lines_above = text.count("\n", 0, block.start("code"))
        reader.type_in("\n" * lines_above + textwrap.dedent(block["code"]), str(ROOT / page))


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings_show_what_they_say(module: str, reader: Reader) -> None:
    """Every `>>>` line of a docstring runs and shows what stands under it."""
    checker = doctest.OutputChecker()
    for test in doctest.DocTestFinder().find(importlib.import_module(module)):
        reader.namespace = {**test.globs, "__name__": "__main__"}
        for example in test.examples:
            shown = reader.answer_to(example, f"<{test.name}>")
            wanted = example.exc_msg or example.want
            assert checker.check_output(wanted, shown, doctest.ELLIPSIS), f"{test.name}: {example.source}\n{shown}"
