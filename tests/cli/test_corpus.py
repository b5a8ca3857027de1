"""The docstrings that the demo asks about."""

from __future__ import annotations

import encodings
from itertools import pairwise
from pathlib import Path

import pytest

from penstock.cli.corpus import Corpus, builtin_docstrings, collect, source_docstrings

ENCODINGS = Path(encodings.__path__[0])
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
def corpus() -> Corpus:
    """What the demo takes."""
    return collect(2000)


@pytest.mark.slow
def test_every_machine_has_two_thousand(corpus: Corpus) -> None:
    """This Python's standard library has the 2,000 different docstrings that the demo wants."""
    assert len({docstring.text for docstring in corpus.docstrings}) == 2000
    assert corpus.found >= 2000


@pytest.mark.slow
def test_sizes_are_mixed(corpus: Corpus) -> None:
    """Among them are one-liners and pages: the longest tenth is over ten times as long as the shortest."""
    sizes = sorted(len(docstring.text) for docstring in corpus.docstrings)
    assert sizes[0] >= 40
    assert sizes[1800] > 10 * sizes[200]


@pytest.mark.slow
def test_the_seed_fixes_the_choice(corpus: Corpus) -> None:
    """The same seed gives the same docstrings in the same order, another seed others."""
    assert collect(2000).docstrings == corpus.docstrings
    assert len({collect(1, seed=seed, root=ENCODINGS).docstrings for seed in range(10)}) > 1


@pytest.mark.slow
def test_tests_are_left_out(corpus: Corpus) -> None:
    """Nothing comes from the standard library's own tests."""
    assert not [docstring.name for docstring in corpus.docstrings if ".test." in f".{docstring.name}."]


def test_every_kind_of_definition_counts_under_its_own_name(tmp_path: Path) -> None:
    """Modules, classes, functions within functions and within conditions are found, each by its full name."""
    (tmp_path / "water").mkdir()
    (tmp_path / "water" / "__init__.py").write_text(MODULE)
    names = [docstring.name for docstring in source_docstrings(tmp_path)]
    assert names == ["water", "water.Gate", "water.Gate.open", "water.Gate.open.inner", "water.close"]


@pytest.mark.parametrize("broken", ["def (:\n", "\x00", "# coding: klingon\n"])
def test_what_is_no_python_is_passed_over(tmp_path: Path, broken: str) -> None:
    """Files that can't be parsed or decoded don't stop the search."""
    (tmp_path / "a_broken.py").write_text(broken)
    (tmp_path / "b_water.py").write_text(MODULE)
    assert len(list(source_docstrings(tmp_path))) == 5


def test_odd_escapes_in_sources_raise_no_warning(tmp_path: Path) -> None:
    """What the compiler has to say about somebody else's code doesn't reach the user."""
    (tmp_path / "odd.py").write_text('"""Says what a module is for, with an odd escape: \\d."""\n')
    assert len(list(source_docstrings(tmp_path))) == 1


def test_short_and_repeated_and_undecodable_texts_are_left_out(tmp_path: Path) -> None:
    """A text must be worth a summary, come only once, and be valid Unicode."""
    (tmp_path / "a.py").write_text(MODULE)
    (tmp_path / "b.py").write_text(MODULE.replace("A gate", "\\udc80 gate"))
    texts = [docstring.text for docstring in collect(4, root=tmp_path).docstrings]
    assert len(texts) == 4
    assert all(len(text) >= 40 and text.encode() for text in texts)


def test_built_in_modules_stand_in_for_missing_sources(tmp_path: Path) -> None:
    """Where a distribution ships no sources, there are docstrings still, and fewer are said to be fewer."""
    corpus = collect(100_000, root=tmp_path)
    assert 300 < len(corpus.docstrings) == corpus.found


def test_built_in_docstrings_come_in_a_fixed_order() -> None:
    """The interpreter's own docstrings are those of functions, classes and methods, sorted by module."""
    names = [docstring.name for docstring in builtin_docstrings()]
    assert {"builtins.str", "builtins.str.split", "builtins.len"} <= set(names)
    modules = [name.partition(".")[0] for name in names]
    assert all(first <= second for first, second in pairwise(modules))
