"""The package as it is shipped: what is in it, what its public names promise, what importing it costs."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import inspect
import json
import subprocess
import sys
import tomllib
import traceback
from pathlib import Path

import pytest

import penstock

ROOT = Path(__file__).parent.parent
PACKAGE = Path(penstock.__file__).parent
EXPORTED: list[str] = vars(penstock)["__all__"]
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
LATE = {
    "asyncpg",
    "cryptography",
    "dbos",
    "genai_prices",
    "keyring",
    "PIL",
    "prometheus_client",
    "pytest",
    "redis",
    "rich",
    "starlette",
    "uvicorn",
}


def test_type_information_is_shipped() -> None:
    """A user's type checker finds the package's types."""
    assert importlib.resources.files("penstock").joinpath("py.typed").is_file()


def test_version_is_that_of_the_project() -> None:
    """The installed version is the one that the tree declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert importlib.metadata.version("penstock") == project["version"]


def test_the_extra_all_is_every_extra() -> None:
    """`penstock[all]` leaves no extra out."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = extras.pop("all")
    assert everything == f"penstock[{','.join(sorted(extras))}]"


def test_pytest_plugin_is_found() -> None:
    """A test run loads the fixtures of `penstock.testing` without being told."""
    (plugin,) = importlib.metadata.entry_points(group="pytest11", name="penstock")
    assert inspect.ismodule(plugin.load())


def names_for_checkers() -> dict[str, str]:
    """What `penstock/__init__.py` tells type checkers that it exports, each with where it comes from."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told: dict[str, str] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            # Without `as`, it would be an import of the module's own, and no export.
            assert alias.asname == alias.name
            assert alias.name not in told
            told[alias.name] = node.module or ""
    return told


def test_checkers_are_told_the_names_that_are_there() -> None:
    """Every export is told to type checkers, is there when it is run, and is the same thing from the same place."""
    told = names_for_checkers()
    names = {name: module for name, module in told.items() if module != "penstock"}
    assert set(EXPORTED) == names.keys()
    assert len(EXPORTED) == len(names)
    for name, module in names.items():
        assert getattr(penstock, name) is getattr(importlib.import_module(module), name)
    for name in told.keys() - names.keys():
        assert getattr(penstock, name) is importlib.import_module(f"penstock.{name}")


def test_dir_lists_what_is_public_and_nothing_else() -> None:
    """Completion in a shell offers the exports and the public packages."""
    assert {name for name in dir(penstock) if not name.startswith("__")} == names_for_checkers().keys()


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("import penstock; penstock.Clinet", "Client"),
        ("import penstock; penstock.streeming", "streaming"),
        ("from penstock import Clinet", "Client"),
    ],
)
def test_a_misspelt_name_is_an_error_that_says_what_is_meant(line: str, meant: str) -> None:
    """An `AttributeError` or an `ImportError`, to which Python adds the name that is nearest."""
    with pytest.raises((AttributeError, ImportError)) as error:
        exec(line, {})
    # Before, hints are made where the interpreter prints an error that nobody caught, and for attributes only.
    if sys.version_info >= (3, 12):
        assert f"Did you mean: '{meant}'?" in "".join(traceback.format_exception(error.value))


def test_public_names_exist_and_are_documented() -> None:
    """Every name of `penstock.__all__` can be imported, and `help()` says what it is."""
    objects = {name: getattr(penstock, name) for name in EXPORTED}
    undocumented = [name for name, thing in objects.items() if callable(thing) and not inspect.getdoc(thing)]
    assert not undocumented


@pytest.mark.lengthy
@pytest.mark.parametrize("module", MODULES)
def test_every_module_opens_with_its_rule(module: str) -> None:
    """Every module says at its top what holds in it."""
    assert ast.get_docstring(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))


@pytest.mark.slow
def test_public_names_are_loaded_when_they_are_asked_for() -> None:
    """Help and version of the command need neither the SDK nor pydantic, nor do tests that use no fixture of ours."""
    script = (
        "import sys, penstock, penstock.testing.plugin; assert not {'anthropic', 'httpx2'} & sys.modules.keys(); "
        "penstock.Client; penstock.testing.ScriptedTransport"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_import_loads_nothing_optional() -> None:
    """`import penstock` loads no extra, no price table and no test tool."""
    script = "import json, sys, penstock; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert not LATE.intersection(json.loads(output))
