"""What the pages say is there, is there: modules, paths, links, tests, and every public package."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

import penstock

ROOT = Path(__file__).parent.parent
PACKAGE = Path(penstock.__file__).parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
# What has changed its name stands in the history under its old one.
TOLD_OF_TODAY = [page for page in PAGES if page != "CHANGELOG.md"]
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
DOTTED = re.compile(r"(?<![\w/.-])penstock(?:\.[A-Za-z_]\w*)+")
# What the text itself says is not there: a guard and a verb that the reader builds, files that a user names.
BUILT_BY_THE_READER = (
    "src/penstock/guards/restrict_models.py",
    "tests/guards/test_restrict_models.py",
    "src/penstock/messages/count.py",
    "tests/messages/test_count.py",
)
NO_MODULES = frozenset({"penstock.toml", "penstock.guards.restrict_models", "penstock.messages.count"})
# What a page shows to explain how it works, saying that it is internal.
SHOWN_TO_EXPLAIN = {"docs/admission.md": {"penstock.guards.admit.fair_queue"}}
PATHS = re.compile(r"(?<![\w/])((?:src/penstock|tests|benchmarks|docs)/[\w./-]*\w/?)")
# Within the package, as pages for its developers write it.
ROOMS = re.compile(r"`((?:\w+/)*\w+(?:\.py|/))`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
TEST_NAME = re.compile(r"`((?:test_|Test)\w+…?)`")


def text_of(page: str) -> str:
    """A page as it stands."""
    return (ROOT / page).read_text(encoding="utf-8")


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    thing: object = penstock
    found = "penstock"
    for part in dotted.split(".")[1:]:
        found += f".{part}"
        if not hasattr(thing, part):
            try:
                importlib.import_module(found)
            except ImportError:
                return False
        thing = getattr(thing, part)
    return True


def anchors(page: Path) -> set[str]:
    """What can be linked to on a page, as GitHub makes it of headings."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower().strip()) for heading in HEADING.findall(text))
    return {slug.replace(" ", "-") for slug in slugs}


@pytest.mark.parametrize("page", TOLD_OF_TODAY)
def test_every_name_of_the_package_exists(page: str) -> None:
    """`penstock.…` is a module, or something in one."""
    named = set(DOTTED.findall(text_of(page))) - NO_MODULES
    assert [name for name in sorted(named) if not exists(name)] == []


@pytest.mark.lengthy
def test_every_name_in_a_docstring_exists() -> None:
    """What a docstring sends its reader to is there."""
    wrong: list[str] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Expr(value=ast.Constant(value=str() as text)):
                    wrong += [f"{file.name}: {name}" for name in DOTTED.findall(text) if not exists(name)]
    assert wrong == []


@pytest.mark.parametrize("page", TOLD_OF_TODAY)
def test_every_path_of_the_tree_exists(page: str) -> None:
    """A file or folder that a page speaks of is there."""
    named = {path for path in PATHS.findall(text_of(page)) if path not in BUILT_BY_THE_READER}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/design.md"])
def test_every_room_that_developers_are_sent_to_exists(page: str) -> None:
    """A file or folder in backticks stands in the package, or in the tree."""
    named = {name for name in ROOMS.findall(text_of(page)) if f"src/penstock/{name}" not in BUILT_BY_THE_READER}
    assert named
    assert [name for name in sorted(named) if not ((PACKAGE / name).exists() or (ROOT / name).exists())] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_pages_leads_somewhere(page: str) -> None:
    """To a file that is there, and to a heading of it."""
    dead = []
    for target in LINK.findall(FENCED.sub("", text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert dead == []


def test_every_test_that_proves_something_exists() -> None:
    """Each row names a file or a folder, and tests that stand in one of them."""
    for row in text_of("docs/coverage.md").splitlines():
        if not re.match(r"\| [SN]\d", row):
            continue
        named = [ROOT / path for path in PATHS.findall(row) if path.startswith("tests/")]
        assert named or "not built yet" in row, row
        files = [file for path in named for file in (path.glob("**/test_*.py") if path.is_dir() else [path])]
        written = " ".join(file.read_text(encoding="utf-8") for file in files)
        for name in TEST_NAME.findall(row):
            end = r"\w*" if name.endswith("…") else r"\b"
            assert re.search(rf"\b(?:def|class) {name.rstrip('…')}{end}", written), f"{name} of {row[:8]}"


def test_every_requirement_has_its_row() -> None:
    """Whether it is built or not, in their order."""
    rows = re.findall(r"^\| ([SN]\d+) \|", text_of("docs/coverage.md"), re.MULTILINE)
    assert rows == [*(f"S{number}" for number in range(1, 26)), "N7", "N13", "N14", "N15", "N16"]


def test_every_public_package_is_listed() -> None:
    """What stands at the top without an underscore is public, and the page of the design says what it is for."""
    section = text_of("docs/design.md").partition("## What is public")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `penstock\.(\w+)", section, re.MULTILINE)
    found = [module.name for module in pkgutil.iter_modules([str(PACKAGE)]) if not module.name.startswith("_")]
    assert sorted(listed) == sorted(found)


def public_paths() -> set[str]:
    """The modules that the page of the design says one imports from; in `guards`, each guard's."""
    section = text_of("docs/design.md").partition("## What is public")[2].partition("\nThe other names at the top")[0]
    rows = re.findall(r"^\| `penstock.*$", section, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(penstock(?:\.\w+)*)`", row)}
    guards = {f"penstock.guards.{guard.name}" for guard in pkgutil.iter_modules([str(PACKAGE / "guards")])}
    return guards | {name for name in named if importlib.util.find_spec(name)}


def imports_of(page: str) -> set[str]:
    """The modules of the package from which a page's examples import."""
    lines = re.findall(r"^ *(?:from (penstock[\w.]*) import|import (penstock[\w.]*))", text_of(page), re.MULTILINE)
    return {one or other for one, other in lines}


@pytest.mark.parametrize("page", [page for page in TOLD_OF_TODAY if page != "CONTRIBUTING.md"])
def test_examples_import_from_what_is_public(page: str) -> None:
    """Nothing that a user copies leans on a file that may move: the page of the design lists what is kept."""
    assert imports_of(page) <= public_paths() | SHOWN_TO_EXPLAIN.get(page, set())


def test_what_is_public_lists_what_it_offers() -> None:
    """Each public module names in `__all__` what is kept, and each can be loaded."""
    for path in public_paths() - {"penstock.costs", "penstock.observe", "penstock.content", "penstock.guards"}:
        assert vars(importlib.import_module(path))["__all__"], path


def test_the_attributes_of_the_package_are_public() -> None:
    """`penstock.streaming` needs no import of its own; what is not on the list does."""
    parts = {name for name in dir(penstock) if inspect.ismodule(getattr(penstock, name))}
    assert {f"penstock.{part}" for part in parts} == {path for path in public_paths() if path.count(".") == 1}
