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
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Corpus", "Docstring", "builtin_docstrings", "collect", "source_docstrings"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The docstrings chosen, and how many there were to choose from."""

    docstrings: tuple[Docstring, ...] = field(repr=False)
    found: int


def collect(count: int, *, seed: int = 0, root: Path | None = None) -> Corpus:
    """Choose docstrings of all sizes; where sources are missing, those of built-in modules stand in.

    Args:
        count: How many, 1 or more; fewer come back if there are no more.
        seed: Fixes which, and their order.
        root: Folder of the sources; this Python's standard library by default.

    Example:
        >>> [docstring.text for docstring in collect(2, seed=1).docstrings] == [
        ...     docstring.text for docstring in collect(2, seed=1).docstrings
        ... ]
        True
    """
    found = _distinct(source_docstrings(root or Path(sysconfig.get_path("stdlib"))))
    if len(found) < count:
        found = _distinct([*found, *builtin_docstrings()])
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    return Corpus(docstrings=tuple(chosen), found=len(found))


def source_docstrings(root: Path) -> Iterator[Docstring]:
    """Find the docstrings in the Python files below `root`, tests and installed packages left out."""
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root).with_suffix("").parts
        if _SKIPPED.isdisjoint(place):
            module = ".".join(part for part in place if part != "__init__") or root.name
            yield from _file_docstrings(path, module)


def _file_docstrings(path: Path, module: str) -> Iterator[Docstring]:
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


def _distinct(docstrings: Iterable[Docstring]) -> list[Docstring]:
    """Leave out texts that are too short, that came before, or that are no valid Unicode."""
    seen: dict[str, Docstring] = {}
    for docstring in docstrings:
        if len(docstring.text) >= _SHORTEST and _is_unicode(docstring.text):
            seen.setdefault(docstring.text, docstring)
    return list(seen.values())


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
