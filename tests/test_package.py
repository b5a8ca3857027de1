"""The package as it is shipped: what is in it, what its public names promise, what importing it costs."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import penstock

ROOT = Path(__file__).parent.parent
PACKAGE = Path(penstock.__file__).parent
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


def test_public_names_are_listed_once() -> None:
    """`penstock.__all__` names nothing twice."""
    assert len(penstock.__all__) == len(set(penstock.__all__))


def test_public_names_exist_and_are_documented() -> None:
    """Every name of `penstock.__all__` can be imported, and `help()` says what it is."""
    objects = {name: getattr(penstock, name) for name in penstock.__all__}
    undocumented = [name for name, thing in objects.items() if callable(thing) and not inspect.getdoc(thing)]
    assert not undocumented


@pytest.mark.parametrize("module", MODULES)
def test_every_module_opens_with_its_rule(module: str) -> None:
    """Every module says at its top what holds in it."""
    assert ast.get_docstring(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))


@pytest.mark.slow
def test_public_names_are_loaded_when_they_are_asked_for() -> None:
    """Help and version of the command need neither the SDK nor pydantic; whatever is public is found all the same."""
    script = "import sys, penstock; assert not {'anthropic', 'pydantic'} & sys.modules.keys(); penstock.Client"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert set(penstock.__all__) <= set(dir(penstock))
    assert inspect.ismodule(penstock.streaming)
    with pytest.raises(AttributeError, match="module 'penstock' has no attribute 'Clinet'"):
        penstock.Clinet  # noqa: B018


def test_import_loads_nothing_optional() -> None:
    """`import penstock` loads no extra, no price table and no test tool."""
    script = "import json, sys, penstock; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert not LATE.intersection(json.loads(output))
