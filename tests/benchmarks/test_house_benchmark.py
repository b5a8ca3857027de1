"""The figures of the house: what a module entered, a crossing and a line of code are, and that all are told."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from penstock.testing import VirtualLoop

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SOURCE = '''\
"""A docstring.

Of two paragraphs.
"""

NUMBERS = [
    1,
    # a comment
    2,
]


class Thing:
    """Documented."""

    def act(self) -> str:
        """Documented too."""
        return """not
        a docstring"""
'''


@pytest.fixture(scope="module")
def house() -> ModuleType:
    """The script, loaded as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("house", BENCHMARKS / "house.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "house", module)
        spec.loader.exec_module(module)
    return module


def package(folder: Path, **sources: str) -> dict[str, dict[str, object]]:
    """Modules of a package in `folder`, each with the others' names in its own."""
    names: dict[str, dict[str, object]] = {name: {} for name in sources}
    for name, source in sources.items():
        names[name].update({other: namespace for other, namespace in names.items() if other != name})
        exec(compile(source, str(folder / f"{name}.py"), "exec"), names[name])
    return names


@pytest.mark.slow
def test_a_run_tells_every_figure_and_judges_every_target(
    house: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Modules and crossings of a create, a send and a tool call, and the lines of the code, beside their targets."""
    house.main()
    printed = capsys.readouterr().out
    judged = [line for line in printed.splitlines() if "≤" in line]
    assert len(judged) == 3 * 2 + 2
    assert all(line.endswith(("| ✓ |", "| ✗ |")) for line in judged)
    assert len(re.findall(r"(?:entered|crossings|from module to module) \| [1-9][\d,]+ ", printed)) == 3 * 3
    for told in ("hold code", "code lines of a file: median", "public module paths"):
        assert told in printed


@pytest.mark.slow
def test_the_same_request_is_told_the_same_each_time(house: ModuleType) -> None:
    """Nothing of the machine is in the figures: neither its speed nor the moment."""
    first, second = (anyio.run(house.walks, backend_options={"loop_factory": VirtualLoop}) for _ in range(2))
    assert [(way.modules, way.crossings, way.calls) for way in first] == [
        (way.modules, way.crossings, way.calls) for way in second
    ]


def test_a_crossing_is_a_frame_in_another_module_than_the_one_before(house: ModuleType, tmp_path: Path) -> None:
    """A call within a module is none, nor is coming back; what is called is counted beside it."""
    names = package(
        tmp_path,
        one="def begin():\n    inner()\n    two['help_out']()\n    two['help_more']()\n\ndef inner():\n    pass",
        two="def help_out():\n    pass\n\ndef help_more():\n    pass",
    )
    walk = house.Walk(package=tmp_path)
    before = sys.getprofile()
    sys.setprofile(walk.see)
    names["one"]["begin"]()  # type: ignore[operator]
    sys.setprofile(before)
    assert walk.modules == {"one.py", "two.py"}
    assert walk.crossings == 2  # into one, and into two, which is still there when its second function begins
    assert walk.calls == 2


def test_a_coroutine_that_goes_on_is_a_crossing(house: ModuleType, tmp_path: Path) -> None:
    """What waits and is resumed is read a second time."""
    names = package(tmp_path, one="def count():\n    yield 1\n    yield 2", two="def other():\n    pass")
    walk = house.Walk(package=tmp_path)
    before = sys.getprofile()
    sys.setprofile(walk.see)
    numbers = names["one"]["count"]()  # type: ignore[operator]
    next(numbers)
    names["two"]["other"]()  # type: ignore[operator]
    next(numbers)
    sys.setprofile(before)
    assert walk.crossings == 3
    assert walk.calls == 0


def test_the_other_side_of_the_wire_is_left_out(house: ModuleType, tmp_path: Path) -> None:
    """The simulator and the test tools are no part of what a request passes, nor is code that is not ours."""
    names = package(tmp_path / "simulator", core="def answer():\n    pass")
    names |= package(tmp_path / "testing", virtual="def turn():\n    pass")
    walk = house.Walk(package=tmp_path)
    before = sys.getprofile()
    sys.setprofile(walk.see)
    names["core"]["answer"]()  # type: ignore[operator]
    names["virtual"]["turn"]()  # type: ignore[operator]
    sys.setprofile(before)
    assert (walk.modules, walk.crossings) == (set(), 0)


def test_lines_of_code_are_those_without_blanks_comments_and_docstrings(house: ModuleType) -> None:
    """Every line of a text that is no docstring counts, and every line of an expression that holds a token."""
    assert house.code_lines(SOURCE) == 8
    assert house.code_lines("") == 0


def test_one_underscore_makes_a_path_private(house: ModuleType) -> None:
    """On a module, or on a folder above it."""
    assert house.is_public(Path("guards/breaker.py"))
    assert not house.is_public(Path("_core/body/sse.py"))
    assert not house.is_public(Path("guards/__init__.py"))
