"""Real text that every machine has: the docstrings of Python's standard library.

The rule here: sources are parsed, never imported, and the same Python and seed give the same texts in the same order.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import random
import sys
import sysconfig
import warnings
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Docstring", "builtin_docstrings", "collect", "file_docstrings"]

# So many times more than are wanted to choose from.
_CHOICE = 1.5
# "Return self." needs no summary.
_SHORTEST = 40
_SKIPPED = frozenset({
    "__pycache__", "_bundled", "dist-packages", "idle_test", "lib2to3", "site-packages", "test", "tests",
})  # fmt: skip
_BLOCKS = ("body", "orelse", "finalbody", "handlers")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True, kw_only=True)
class Docstring:
    """What the standard library says about one of its parts, e.g. `json.decoder.JSONDecoder`."""

    name: str
    text: str = field(repr=False)


def collect(count: int, *, seed: int = 0, root: Path | None = None) -> list[Docstring]:
    """Choose docstrings of all sizes; where sources are missing, those of built-in modules stand in.

    Args:
        count: How many, 1 or more; fewer come back if there are no more.
        seed: Fixes which, and their order.
        root: Folder of the sources; this Python's standard library by default.

    Example:
        >>> collect(2, seed=1) == collect(2, seed=1)
        True
    """
    chance = random.Random(seed)
    found: dict[str, Docstring] = {}
    for docstrings in chain(_sources(root or Path(sysconfig.get_path("stdlib")), chance), [builtin_docstrings()]):
        for docstring in docstrings:
            if _is_useful(docstring.text):
                found.setdefault(docstring.text, docstring)
        if len(found) >= _CHOICE * count:
            break
    return chance.sample(list(found.values()), min(count, len(found)))


def _sources(root: Path, chance: random.Random) -> Iterator[Iterator[Docstring]]:
    """Give the docstrings of each file, files in an order by chance: reading all of them takes seconds."""
    paths = sorted(path for path in root.rglob("*.py") if _SKIPPED.isdisjoint(path.relative_to(root).parts))
    chance.shuffle(paths)
    for path in paths:
        place = path.relative_to(root).with_suffix("").parts
        module = ".".join(part for part in place if part != "__init__")
        yield file_docstrings(path, module or root.name)


def file_docstrings(path: Path, module: str) -> Iterator[Docstring]:
    """Find the docstrings in a Python file; what can't be read or parsed has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            # Templates and samples of broken code are no reason to stop.
            return
    yield from _node_docstrings(tree, module)


def _node_docstrings(node: ast.AST, name: str) -> Iterator[Docstring]:
    if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
        yield Docstring(name=name, text=text)
    for block in _BLOCKS:
        for child in getattr(node, block, ()):
            own = getattr(child, "name", None)
            inner = f"{name}.{own}" if isinstance(child, _DOCUMENTED) and own else name
            yield from _node_docstrings(child, inner)


def builtin_docstrings() -> Iterator[Docstring]:
    """Find the docstrings of the modules that are compiled into the interpreter, which needs no files."""
    for module_name in sorted(sys.builtin_module_names):
        module = importlib.import_module(module_name)
        yield from _object_docstrings(module, module_name)
        for name, member in sorted(vars(module).items()):
            yield from _object_docstrings(member, f"{module_name}.{name}")
            if inspect.isclass(member):
                for inner in sorted(vars(member)):
                    yield from _object_docstrings(getattr(member, inner, None), f"{module_name}.{name}.{inner}")


def _object_docstrings(thing: object, name: str) -> Iterator[Docstring]:
    if (inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing)) and (
        text := inspect.getdoc(thing)
    ):
        yield Docstring(name=name, text=text)


def _is_useful(text: str) -> bool:
    """Whether a text is worth a summary, and valid Unicode."""
    if len(text) < _SHORTEST:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
