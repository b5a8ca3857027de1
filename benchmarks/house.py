"""How far one has to walk in the code: modules entered and crossings of a request, and how much code there is.

The rule here: nothing is measured in seconds. A run counts on virtual time, against the in-process simulator and fixed
answers, so that the figures are the same on every machine.

A module is entered when a frame of one of its functions begins, or when a coroutine or generator of it goes on. A
crossing is a frame that begins or goes on in another module than the frame before it: what a reader who follows the
code as it runs feels as turning to another file. Calls straight from a frame of one module into another are told beside
it: they leave out what comes back by way of the SDK and the event loop.

Only files of `src/penstock` count, without the simulator and the test tools, and only what runs in the event loop's
thread. Each request is asked once to warm up (imports, what is made once), and watched the second time. Making a
conversation belongs to its first send.

Targets: at most 22 modules and 100 crossings for a create, 35 and 220 for a send, 42 and 480 with one tool call.
"""

from __future__ import annotations

import ast
import gc
import io
import os
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

import penstock
from _harness import quick, settle_environment, table, verdict
from penstock.simulator import Simulator
from penstock.testing import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType

PACKAGE: Final = Path(penstock.__file__).parent
# The other side of the wire, and what tests need: no part of what a request passes.
BESIDE: Final = frozenset({"simulator", "testing"})
MODEL: Final = "claude-sonnet-5-5"
ANSWER: Final = "Hello! How can I help you today?"
MOST_LINES: Final = 29_500
NO_CODE: Final = frozenset({
    tokenize.COMMENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.INDENT, tokenize.NEWLINE, tokenize.NL,
})  # fmt: skip


class Goal(NamedTuple):
    """What may be entered and crossed at most."""

    modules: int
    crossings: int


GOALS: Final = {
    '`messages.create("Hi")`': Goal(22, 100),
    '`conversation.send("Hi")`': Goal(35, 220),
    "… with one tool call": Goal(42, 480),
}


# What a request passes


@dataclass
class Walk:
    """One request's way through the modules; give its `see` to `sys.setprofile`, which watches one thread."""

    package: Path = PACKAGE
    modules: set[str] = field(default_factory=set[str])
    crossings: int = 0
    calls: int = 0
    _at: str | None = None

    def __post_init__(self) -> None:
        self._prefix = f"{self.package}{os.sep}"

    def see(self, frame: FrameType, event: str, _argument: object) -> None:
        """Take one event of the profiler."""
        module = self._module(frame) if event == "call" else None
        if module is None:
            return
        caller = self._module(frame.f_back) if frame.f_back is not None else None
        self.modules.add(module)
        self.crossings += module != self._at
        self.calls += caller is not None and caller != module
        self._at = module

    def _module(self, frame: FrameType) -> str | None:
        file = frame.f_code.co_filename
        if not file.startswith(self._prefix):
            return None
        module = file[len(self._prefix) :]
        return None if module.partition(os.sep)[0] in BESIDE else module


async def walk(ask: Callable[[], Awaitable[object]]) -> Walk:
    """Return the way of one request."""
    seen = Walk()
    # What it collects, it collects at any moment.
    gc.collect()
    gc.disable()
    sys.setprofile(seen.see)
    try:
        await ask()
    finally:
        sys.setprofile(None)
        gc.enable()
    return seen


async def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"sunny in {city}"


def requests(claude: penstock.Client, simulator: Simulator) -> Iterator[Callable[[], Awaitable[object]]]:
    """Give what is asked, each with the answers that it gets, in the order of `GOALS`."""

    async def create() -> None:
        simulator.reply(ANSWER)
        await claude.messages.create(model=MODEL, max_tokens=1024, messages=[{"role": "user", "content": "Hi"}])

    async def send() -> None:
        simulator.reply(ANSWER)
        reply = await claude.conversation(model=MODEL, max_tokens=1024).send("Hi")
        assert reply.text == ANSWER

    async def send_with_tool() -> None:
        call = {"type": "tool_use", "name": "get_weather", "input": {"city": "Rome"}}
        simulator.reply([{"type": "text", "text": "Let me look."}, call])
        simulator.reply("It is sunny.")
        reply = await claude.conversation(model=MODEL, max_tokens=1024, tools=[get_weather]).send("Hi")
        assert reply.text == "It is sunny."

    yield create
    yield send
    yield send_with_tool


async def walks() -> list[Walk]:
    """Return the way of every request."""
    simulator = Simulator()
    async with penstock.Client(sdk=simulator.client(), log=False) as claude:
        found: list[Walk] = []
        for ask in requests(claude, simulator):
            await ask()
            found.append(await walk(ask))
    return found


# How much code there is


def code_lines(source: str) -> int:
    """Return the lines of `source` that hold code: no blank lines, comments or docstrings."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            docstrings.update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def is_public(path: Path) -> bool:
    """Whether a module may be imported by users: no part of its path begins with an underscore."""
    return not any(part.startswith("_") for part in path.parts)


def files() -> dict[Path, str]:
    """Return the source of every module, by its path within the package."""
    return {path.relative_to(PACKAGE): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


# What is printed


def judged(name: str, figure: float, most: float) -> list[str]:
    """Judge one figure."""
    return [name, f"{figure:,.0f}", f"≤ {most:,.0f}", verdict(figure, most)]


def main() -> None:
    """Count everything."""
    found = anyio.run(walks, backend_options={"loop_factory": VirtualLoop})
    rows: list[list[str]] = []
    for (name, goal), way in zip(GOALS.items(), found, strict=True):
        rows.append(judged(f"{name}: modules entered", len(way.modules), goal.modules))
        rows.append(judged(f"{name}: crossings", way.crossings, goal.crossings))
        rows.append([f"{name}: calls from module to module", f"{way.calls:.0f}", "–", ""])
    table("What a request passes", ("measure", "result", "target", ""), rows)
    sources = files()
    code = sorted((code_lines(source), path.as_posix()) for path, source in sources.items())
    table(
        "How much code there is",
        ("measure", "result", "target", ""),
        [
            judged("lines of `src`, all", sum(source.count("\n") for source in sources.values()), MOST_LINES),
            ["lines of `src` that hold code", f"{sum(lines for lines, _ in code):,}", "–", ""],
            ["code lines of a file: median", f"{median(lines for lines, _ in code):.0f}", "–", ""],
            judged(f"code lines of a file: most (`{code[-1][1]}`)", code[-1][0], 300),
            ["public module paths", str(sum(is_public(path) for path in sources)), "–", ""],
        ],
    )


if __name__ == "__main__":
    settle_environment()
    quick(__doc__)  # takes a few seconds as it is
    main()
