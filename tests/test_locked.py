"""What the sessions of nox install: `requirements/*.txt` say what `uv.lock` says, which is what the project asks for.

Neither the network nor uv is needed here. Whatever fails: `python -m nox -s lock`.
"""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "requirements"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
INSTALLED: dict[str, dict[str, Any]] = PROJECT["tool"]["penstock"]["requirements"]
LINE = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>[^\s;]+)( ; [^\\]+)?(?P<hashes>( \\\n    --hash=sha256:[0-9a-f]{64})*)\n"
)


@functools.cache
def lock() -> list[dict[str, Any]]:
    """All locked packages."""
    packages: list[dict[str, Any]] = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    return packages


def lock_of_the_project() -> dict[str, Any]:
    """What the lock remembers of `pyproject.toml`."""
    (ours,) = (package for package in lock() if package["source"] == {"editable": "."})
    metadata: dict[str, Any] = ours["metadata"]
    return metadata


def listed(name: str) -> dict[tuple[str, str], set[str]]:
    """What a file lists: names and versions with their hashes; not a line of it is anything else."""
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert not LINE.sub("", text)
    return {
        (line["name"], line["version"]): set(re.findall(r"sha256:\w+", line["hashes"])) for line in LINE.finditer(text)
    }


def group(name: str) -> list[Requirement]:
    """What a dependency group asks for, with the groups that it includes."""
    asked: list[Requirement] = []
    for entry in PROJECT["dependency-groups"][name]:
        asked += [Requirement(entry)] if isinstance(entry, str) else group(entry["include-group"])
    return asked


def asked_for(*, groups: Iterable[str] = (), extras: Iterable[str] = (), project: bool = True) -> list[Requirement]:
    """What an entry of `tool.penstock.requirements` asks for by itself."""
    asked = list(PROJECT["project"]["dependencies"]) if project else []
    for extra in extras:
        asked += PROJECT["project"]["optional-dependencies"][extra]
    return [*map(Requirement, asked), *(entry for name in groups for entry in group(name))]


def locked(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The locked packages that an entry of the lock means: one, but for packages that differ between Pythons."""
    return [
        package
        for package in lock()
        if package["name"] == entry["name"] and package["version"] == entry.get("version", package["version"])
    ]


def needed(asked: list[Requirement]) -> set[tuple[str, str]]:
    """The locked packages that these requirements need, on any system and any Python."""
    seen: set[tuple[str, str, str]] = set()
    left: list[dict[str, Any]] = [{"name": canonicalize_name(entry.name), "extra": entry.extras} for entry in asked]
    while left:
        entry = left.pop()
        for package in locked(entry):
            for extra in {"", *entry.get("extra", ())}:
                one = (package["name"], package["version"], extra)
                if one not in seen:
                    seen.add(one)
                    left += package["optional-dependencies"][extra] if extra else package.get("dependencies", ())
    return {(name, version) for name, version, _ in seen}


def remembered(entry: dict[str, Any]) -> str:
    """A requirement as the lock remembers it."""
    marker = f"; {entry['marker']}" if "marker" in entry else ""
    return str(Requirement(f"{entry['name']}[{','.join(entry.get('extras', ()))}]{entry.get('specifier', '')}{marker}"))


@pytest.mark.lengthy
@pytest.mark.parametrize("name", sorted(PROJECT["dependency-groups"]))
def test_the_lock_knows_what_a_group_asks_for(name: str) -> None:
    """A requirement that was changed, and not locked, would not be what is installed."""
    assert set(map(remembered, lock_of_the_project()["requires-dev"][name])) == {str(entry) for entry in group(name)}


def test_the_lock_knows_what_the_project_asks_for() -> None:
    """Its own dependencies and its extras, as they stand in `pyproject.toml`."""
    asked = {str(Requirement(entry)) for entry in PROJECT["project"]["dependencies"]}
    for extra, entries in PROJECT["project"]["optional-dependencies"].items():
        asked |= {str(Requirement(f"{entry}; extra == '{extra}'")) for entry in entries}
    assert set(map(remembered, lock_of_the_project()["requires-dist"])) == asked


def test_there_is_a_file_for_each_entry_and_no_other() -> None:
    """A file that nothing writes any more would grow old unseen."""
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.txt" for name in INSTALLED}


@pytest.mark.parametrize("name", sorted(INSTALLED))
def test_a_file_lists_what_the_lock_says(name: str) -> None:
    """Every package that is needed and no other, in its locked version, with all its hashes."""
    pins = listed(name)
    assert pins.keys() == needed(asked_for(**INSTALLED[name]))
    for package in lock():
        files = [*package.get("wheels", ()), *filter(None, [package.get("sdist")])]
        hashes = pins.get((package["name"], package["version"]))
        assert hashes is None or hashes == {file["hash"] for file in files}, package["name"]


@pytest.mark.parametrize("name", sorted(INSTALLED))
def test_what_is_asked_for_is_listed_in_a_version_that_will_do(name: str) -> None:
    """Whatever the lock says."""
    pins = listed(name)
    for entry in asked_for(**INSTALLED[name]):
        versions = [version for package, version in pins if package == canonicalize_name(entry.name)]
        assert versions, entry
        assert all(entry.specifier.contains(Version(version)) for version in versions), entry
