from __future__ import annotations

from importlib.util import find_spec

import pytest

pytest_plugins = ["pytester"]


def passes(pytester: pytest.Pytester, source: str, passed: int) -> None:
    """The tests in `source` run, and so many pass."""
    pytester.makepyfile(source)
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "--strict-markers")
    result.assert_outcomes(passed=passed)


@pytest.mark.lengthy
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


@pytest.mark.lengthy
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


@pytest.mark.lengthy
@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_what_pytest_asyncio_would_run_in_real_time_is_refused(pytester: pytest.Pytester, mode: str) -> None:
    """With a sentence that says what to do; what anyio's plugin runs goes on as without it, and so does the rest."""
    options: tuple[str, ...] = (f"--asyncio-mode={mode}",)
    if find_spec("pytest_asyncio") is None:
        # As its plugin does: it has this name, and marks what it runs.
        pytester.makeconftest(
            f"""
            import inspect, pytest

            def pytest_configure(config):
                config.pluginmanager.register(object(), "asyncio")
                config.addinivalue_line("markers", "asyncio: run by pytest-asyncio")

            def pytest_collection_modifyitems(items):
                for item in items:
                    if {mode == "auto"} and inspect.iscoroutinefunction(item.obj):
                        item.add_marker("asyncio")
            """
        )
        options = ()
    pytester.makepyfile(
        """
        import anyio, asyncio, pytest
        from penstock.testing import VirtualLoop

        @pytest.mark.asyncio
        async def test_marked_asyncio(virtual_time):
            await anyio.sleep(10_000)

        @pytest.mark.anyio
        async def test_marked_anyio(virtual_time):
            await anyio.sleep(10_000)
            assert isinstance(asyncio.get_running_loop(), VirtualLoop)

        @pytest.mark.asyncio
        def test_sync(virtual_time):
            pass
        """
    )
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-W", "ignore", *options)
    refused = 1 if mode == "strict" else 2
    result.assert_outcomes(passed=3 - refused, errors=refused)
    result.stdout.fnmatch_lines("virtual_time needs anyio's pytest plugin*pytest.mark.anyio*")
