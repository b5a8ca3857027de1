"""The docstrings that the demo asks about."""

from __future__ import annotations

import encodings
from itertools import pairwise
from pathlib import Path

import pytest

from penstock.cli.corpus import Docstring, builtin_docstrings, collect, file_docstrings

ENCODINGS = Path(encodings.__path__[0])
LONG = "What follows is long enough to be worth a summary of its own."
MODULE = '''
"""What the module is for."""

class Gate:
    """A gate that lets so much water through and no more than that."""

    async def open(self):
        """Open the gate as far as the pressure in the pipe allows it."""

        def inner():
            """Turn the wheel by hand, which takes two people and an hour."""

if True:
    def close():
        """Close the gate at once, whatever the pressure in the pipe is."""

def plain():
    return 1
'''


@pytest.fixture(scope="module")
def docstrings() -> list[Docstring]:
    """What the demo takes."""
    return collect(2000)


@pytest.mark.slow
def test_every_machine_has_two_thousand(docstrings: list[Docstring]) -> None:
    """This Python's standard library has the 2,000 different docstrings that the demo wants."""
    assert len({docstring.text for docstring in docstrings}) == 2000


@pytest.mark.slow
def test_sizes_are_mixed(docstrings: list[Docstring]) -> None:
    """Among them are one-liners and pages: one in ten is over eight times as long as another one in ten."""
    sizes = sorted(len(docstring.text) for docstring in docstrings)
    assert sizes[0] >= 40
    assert sizes[1800] > 8 * sizes[200]


@pytest.mark.slow
def test_tests_are_left_out(docstrings: list[Docstring]) -> None:
    """Nothing comes from the standard library's own tests; `cgi.test`, of Python 3.11, is a function."""
    homes = [docstring.name.rpartition(".")[0] for docstring in docstrings]
    assert not [home for home in homes if ".test." in f".{home}."]


def test_the_seed_fixes_the_choice() -> None:
    """The same seed gives the same docstrings in the same order, another seed others."""
    first, again, other = (collect(10, seed=seed, root=ENCODINGS) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_kind_of_definition_counts_under_its_own_name(tmp_path: Path) -> None:
    """Modules, classes, functions within functions and within conditions are found, each by its full name."""
    (tmp_path / "water.py").write_text(MODULE)
    names = [docstring.name for docstring in file_docstrings(tmp_path / "water.py", "water")]
    assert names == ["water", "water.Gate", "water.Gate.open", "water.Gate.open.inner", "water.close"]


def test_a_package_has_the_name_of_its_folder(tmp_path: Path) -> None:
    """`water/gate/__init__.py` is `water.gate`, and the top folder's own module is named for that folder."""
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "__init__.py").write_text(f'"""The gate. {LONG}"""')
    (tmp_path / "__init__.py").write_text(f'"""The top. {LONG}"""')
    names = {docstring.text[:8]: docstring.name for docstring in collect(10_000, root=tmp_path)}
    assert names["The gate"] == "gate"
    assert names["The top."] == tmp_path.name


@pytest.mark.parametrize("broken", ["def (:\n", "\x00", "# coding: klingon\n"])
def test_what_is_no_python_is_passed_over(tmp_path: Path, broken: str) -> None:
    """Files that can't be parsed or decoded have no docstrings, and stop nothing."""
    (tmp_path / "broken.py").write_text(broken)
    assert list(file_docstrings(tmp_path / "broken.py", "broken")) == []


def test_odd_escapes_in_sources_raise_no_warning(tmp_path: Path) -> None:
    """What the compiler has to say about somebody else's code doesn't reach the user."""
    (tmp_path / "odd.py").write_text('"""Says what a module is for, with an odd escape: \\d."""\n')
    assert len(list(file_docstrings(tmp_path / "odd.py", "odd"))) == 1


def test_short_and_repeated_and_undecodable_texts_are_left_out(tmp_path: Path) -> None:
    """A text must be worth a summary, come only once, and be valid Unicode."""
    (tmp_path / "a.py").write_text(MODULE)
    (tmp_path / "b.py").write_text(MODULE.replace("A gate", "\\udc80 gate"))
    names = [docstring.name for docstring in collect(10_000, root=tmp_path)]
    ours = sorted(name.partition(".")[2] for name in names if name.startswith(("a.", "b.")) or name in {"a", "b"})
    assert ours == ["Gate", "Gate.open", "Gate.open.inner", "close"]


def test_built_in_modules_stand_in_for_missing_sources(tmp_path: Path) -> None:
    """Where a distribution ships no sources, there are hundreds still."""
    assert 300 < len(collect(100_000, root=tmp_path)) < 100_000


def test_built_in_docstrings_come_in_a_fixed_order() -> None:
    """The interpreter's own docstrings are those of functions, classes and methods, sorted by module."""
    names = [docstring.name for docstring in builtin_docstrings()]
    assert {"builtins.str", "builtins.str.split", "builtins.len"} <= set(names)
    modules = [name.partition(".")[0] for name in names]
    assert all(first <= second for first, second in pairwise(modules))
