"""The pytest plugin: fixtures `simulator` and `virtual_time`.

It imports the rest only inside its fixtures, so that tests which don't use them pay nothing.

`virtual_time` needs no further marker on a test: an `async def` test that asks for it is run on a `VirtualLoop` by the
pytest plugin that ships in anyio; `pytest.mark.anyio` does no harm. `simulator` takes its arguments from a marker:

    @pytest.mark.simulator(requests_per_minute=60)
    async def test_waits_for_quota(simulator, virtual_time):
        async with simulator.client() as claude:
            ...
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, cast

import pytest

if TYPE_CHECKING:
    from penstock.simulator import Simulator

__all__ = ["VirtualTime", "simulator", "virtual_time"]


class VirtualTime:
    """The clock of a test that runs in virtual time."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "VirtualTime()"

    def now(self) -> float:
        """Virtual seconds since the event loop of the test began."""
        import anyio  # noqa: PLC0415 - see the module's rule

        return anyio.current_time()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `simulator`."""
    config.addinivalue_line(
        "markers", "simulator(**options): arguments of the Simulator that the fixture `simulator` makes."
    )


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that uses `virtual_time` on a `VirtualLoop`, and on nothing else."""
    if "virtual_time" in metafunc.fixturenames:
        from penstock.testing.virtual import VirtualLoop  # noqa: PLC0415 - see the module's rule

        backend = pytest.param(("asyncio", {"loop_factory": VirtualLoop}), id="virtual")
        # A mark, because pytest gives way to it where the fixture has parameters of its own, as anyio's has.
        metafunc.definition.add_marker(pytest.mark.parametrize("anyio_backend", [backend]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a test that asks for `virtual_time` and that pytest-asyncio would run, in real time."""
    if isinstance(item, pytest.Function) and "virtual_time" in item.fixturenames and _is_of_pytest_asyncio(item):
        pytest.fail(
            "virtual_time needs anyio's pytest plugin, and pytest-asyncio would run this test, in real time: mark it "
            "pytest.mark.anyio and set asyncio_mode = strict, or switch pytest-asyncio off (-p no:asyncio)",
            pytrace=False,
        )


def _is_of_pytest_asyncio(item: pytest.Function) -> bool:
    """Whether it is pytest-asyncio that runs a test: one that is marked so, by itself in its auto mode."""
    return (
        item.config.pluginmanager.hasplugin("asyncio")
        and item.get_closest_marker("asyncio") is not None
        and inspect.iscoroutinefunction(item.obj)
    )


@pytest.fixture
def virtual_time(anyio_backend: object) -> VirtualTime:
    """Make the test's event loop one whose clock jumps to the next timer."""
    del anyio_backend
    return VirtualTime()


@pytest.fixture
def simulator(request: pytest.FixtureRequest) -> Simulator:
    """A fresh in-process Messages API; options come from `@pytest.mark.simulator(...)`."""
    from penstock.simulator import Simulator  # noqa: PLC0415 - see the module's rule

    node = cast("pytest.Item", request.node)
    options: dict[str, object] = {}
    for marker in reversed(list(node.iter_markers("simulator"))):
        options.update(marker.kwargs)
    return Simulator(**options)  # type: ignore[arg-type]
