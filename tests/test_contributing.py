"""The newcomer's guide is true: its picture is the tree, and its verb and its guard can be built as it says."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "penstock"
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FENCED = re.compile(r'^```(?P<kind>python|diff) title="(?P<path>[^"]+)"\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)
# A room's own tests, and those that speak of all errors, all settings, all of the chain.
TESTS = (
    "tests/guards/test_restrict_models.py",
    "tests/test_errors.py",
    "tests/test_settings.py",
    "tests/test_chain.py",
)
TYPED_IN = """\
import ast, asyncio, types
code = compile(open({script!r}).read(), {script!r}, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
asyncio.run(types.FunctionType(code, {{"__name__": "__main__"}})())
"""


class Row(NamedTuple):
    """A line of the picture that names something."""

    name: str
    inner: bool
    layer: int


def picture() -> list[str]:
    """The lines of the picture."""
    section = GUIDE.partition("## The house in one picture")[2]
    return section.partition("```text\n")[2].partition("\n```")[0].splitlines()


def rows() -> list[Row]:
    """What the picture names, from top to bottom; a line of the picture divides layers."""
    found: list[Row] = []
    layer = 0
    for line in picture():
        layer += line.startswith(("─", "═"))
        if named := re.match(r"^( |   )(\w+/?)(?= )", line):
            found.append(Row(named[2], len(named[1]) > 1, layer))
    return found


def names_in(folder: Path) -> set[str]:
    """The modules and packages in a folder, packages with a slash."""
    modules = {path.stem for path in folder.glob("*.py") if path.stem != "__init__"}
    return modules | {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}


def test_the_picture_names_every_room_and_nothing_else() -> None:
    """Every module and package at the top of the tree, and every guard, with a slash where it is a package."""
    outer = {row.name for row in rows() if not row.inner}
    inner = {row.name for row in rows() if row.inner}
    assert outer == names_in(PACKAGE)
    assert names_in(PACKAGE / "guards") <= inner
    assert inner <= names_in(PACKAGE / "guards") | {"body/"}
    assert "body/" in names_in(PACKAGE / "_core")


def test_each_room_is_named_once_with_what_it_decides() -> None:
    """No name stands twice, and none without a word."""
    named = [row.name for row in rows()]
    assert len(named) == len(set(named))
    assert all(re.search(r"\w+/?  +\S.{10}", line) for line in picture() if re.match(r"^ {1,3}\w", line))


def test_the_picture_shows_which_way_imports_go() -> None:
    """Its layers are those that the contract checks, from top to bottom; then what imports nothing of the rest."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    contract = next(one for one in tool["importlinter"]["contracts"] if one["type"] == "layers")
    layers = [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]
    layers.append(set(contract["exhaustive_ignores"]))
    drawn: dict[int, set[str]] = {}
    for row in rows():
        if not row.inner:
            drawn.setdefault(row.layer, set()).add(row.name.strip("/"))
    assert list(drawn.values()) == layers


def test_the_picture_fits_a_terminal() -> None:
    """It can be read at 80 columns."""
    assert max(len(line) for line in picture()) <= 80


def blocks(heading: str = "Build a guard from nothing") -> list[tuple[str, str, str]]:
    """The blocks under a heading of the guide that change a file: kind, path and text."""
    section = GUIDE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [(block["kind"], block["path"], block["text"]) for block in FENCED.finditer(section)]


def changed(text: str, hunk: str) -> str:
    """A text with one hunk of a diff applied: the lines before, which must stand there once, become those after."""
    lines = hunk.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    assert text.count(before) == 1, f"{text.count(before)} places in the file are like this:\n{before}"
    return text.replace(before, after)


def follow(folder: Path, kind: str, path: str, text: str) -> None:
    """Do what a block of the guide says, in a copy of the tree."""
    target = folder / path
    if kind == "python":
        so_far = f"{target.read_text(encoding='utf-8')}\n\n" if target.exists() else ""
        target.write_text(so_far + text, encoding="utf-8")
        return
    changing = target.read_text(encoding="utf-8")
    for hunk in filter(None, text.split("@@\n")):
        changing = changed(changing, hunk)
    target.write_text(changing, encoding="utf-8")


def run(folder: Path, *arguments: str) -> str:
    """Run Python on the copy, and give what it prints; whoever measures the coverage of the tree looks away."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    environment |= {"PYTHONPATH": str(folder / "src"), "ANTHROPIC_API_KEY": "sk-ant-example"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of what the tutorial changes, and of the tests that speak of it."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("guards", "messages"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("conftest.py", "test_errors.py", "test_settings.py", "test_chain.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    return tmp_path


@pytest.mark.slow
def test_the_guard_that_is_built_works_alone(copied: Path) -> None:
    """The guide's blocks up to its use in a client of the SDK: its test passes, and a refusal is what it says."""
    for block in blocks():
        follow(copied, *block)
        if block[1] == "alone.py":
            break
    assert " passed" in run(copied, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS[0])
    assert run(copied, "-c", TYPED_IN.format(script="alone.py")) == "claude-opus-5-5 is none of ('claude-haiku-*',)\n"


@pytest.mark.slow
def test_the_guard_that_is_built_stands_in_the_chain(copied: Path) -> None:
    """All of the guide's blocks: the guard's tests pass, and so do those of all errors, all settings, and the chain."""
    for block in blocks():
        follow(copied, *block)
    assert " passed" in run(copied, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *TESTS)


def test_the_guard_touches_what_the_guide_says() -> None:
    """Its room, `errors.py`, `chain.py`, `settings.py`; everything else is a test, or the use of it."""
    touched = {path for _, path, _ in blocks()}
    source = {path.removeprefix("src/penstock/") for path in touched if path.startswith("src/")}
    assert source == {"guards/restrict_models.py", "errors.py", "chain.py", "settings.py"}
    assert touched - {f"src/penstock/{name}" for name in source} == {*TESTS[:3], "alone.py"}


@pytest.mark.slow
def test_the_verb_that_is_added_works(copied: Path) -> None:
    """The guide's blocks: it works alone and as a method of the client, with one signature and one docstring."""
    for block in blocks("Add a verb"):
        follow(copied, *block)
    assert " passed" in run(copied, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/messages/test_count.py")


def test_a_verb_touches_two_files() -> None:
    """The module that does the work, and `verbs.py`; everything else is a test."""
    touched = {path for _, path, _ in blocks("Add a verb")}
    assert {path for path in touched if path.startswith("src/")} == {
        "src/penstock/messages/count.py",
        "src/penstock/verbs.py",
    }
    assert {path for path in touched if not path.startswith("src/")} == {"tests/messages/test_count.py"}


def test_every_block_stands_under_one_of_the_two_headings() -> None:
    """None is left that nobody tries."""
    assert len(blocks()) + len(blocks("Add a verb")) == len(list(FENCED.finditer(GUIDE)))


def test_the_guards_code_is_written_as_ours_is() -> None:
    """Its module opens with its rule, and every public name of it is documented."""
    (room,) = (text for _, path, text in blocks() if path.endswith("/restrict_models.py"))
    tree = ast.parse(room)
    assert "The rule here:" in (ast.get_docstring(tree) or "")
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
