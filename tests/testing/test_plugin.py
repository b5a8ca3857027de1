from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

pytest_plugins = ["pytester"]


def passes(pytester: pytest.Pytester, source: str, passed: int) -> None:
    """The tests in `source` run, and so many pass."""
    pytester.makepyfile(source)
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "--strict-markers")
    result.assert_outcomes(passed=passed)


def test_virtual_time_needs_no_marker(pytester: pytest.Pytester) -> None:
    """An async test that asks for `virtual_time` runs, on a loop whose clock jumps; others stay as they are."""
    passes(
        pytester,
        """
        import anyio, asyncio, pytest
        from penstock.testing import VirtualLoop

        async def test_bare(virtual_time):
            await anyio.sleep(10_000)
            assert 10_000 <= virtual_time.now() < 10_001
            assert isinstance(asyncio.get_running_loop(), VirtualLoop)

        @pytest.mark.anyio
        async def test_marked(virtual_time):
            await anyio.sleep(10_000)
            assert repr(virtual_time) == "VirtualTime()"

        @pytest.mark.parametrize("x", [1, 2])
        async def test_parametrized(x, virtual_time):
            await anyio.sleep(10_000)

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        async def test_real(anyio_backend):
            assert not isinstance(asyncio.get_running_loop(), VirtualLoop)
        """,
        5,
    )


def test_virtual_time_wins_over_the_backend_of_a_project(pytester: pytest.Pytester) -> None:
    """A project's own `anyio_backend` fixture, of any scope, gives way where virtual time is asked for."""
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session")
        def anyio_backend():
            return "asyncio"
        """
    )
    passes(
        pytester,
        """
        import anyio, pytest

        @pytest.fixture
        async def waited(virtual_time):
            await anyio.sleep(500)
            return virtual_time.now()

        async def test_it(waited, virtual_time):
            await anyio.sleep(500)
            assert waited < 501 < 1000 <= virtual_time.now() < 1001
        """,
        1,
    )


def test_the_simulator_takes_its_options_from_a_marker(pytester: pytest.Pytester) -> None:
    """Each test gets a fresh simulator; the nearest marker wins."""
    passes(
        pytester,
        """
        import anthropic, pytest
        from penstock.simulator import Simulator

        pytestmark = pytest.mark.simulator(requests_per_minute=1, latency_s=7)
        ASK = dict(model="claude-opus-5", max_tokens=5, messages=[{"role": "user", "content": "Hi"}])

        def test_sync(simulator):
            assert isinstance(simulator, Simulator)

        async def test_limited(simulator, virtual_time):
            async with simulator.client(max_retries=0) as claude:
                await claude.messages.create(**ASK)
                assert virtual_time.now() > 7
                with pytest.raises(anthropic.RateLimitError):
                    await claude.messages.create(**ASK)

        @pytest.mark.simulator(requests_per_minute=2)
        async def test_nearer(simulator, virtual_time):
            async with simulator.client(max_retries=0) as claude:
                await claude.messages.create(**ASK)
                await claude.messages.create(**ASK)
            assert len(simulator.journal) == 2
        """,
        3,
    )


async def test_the_fixtures_work_in_this_very_suite(simulator: object, virtual_time: object) -> None:
    """Both fixtures come from the installed plugin, without any import."""
    assert type(simulator).__name__ == "Simulator"
    assert type(virtual_time).__name__ == "VirtualTime"
