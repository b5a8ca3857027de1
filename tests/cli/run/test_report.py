"""What a run says of itself."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import TYPE_CHECKING

import anthropic
import anyio
import pytest

from penstock import Client, FanOutResult
from penstock.batch.progress import Tally
from penstock.cli.run.report import Failures, Watch, explained, shown, summary

if TYPE_CHECKING:
    from penstock.simulator import Simulator
    from penstock.testing.plugin import VirtualTime


def failed(custom_id: str, error: Exception) -> FanOutResult:
    """A result that is none."""
    return FanOutResult(custom_id=custom_id, index=0, error=error)


def test_what_is_shown_can_t_steer_the_terminal() -> None:
    """Text from outside is one line without control characters, and not too long."""
    assert shown("a\x1b[2J\nb") == "a [2J b"
    assert shown("x" * 500) == "x" * 300 + "…"


async def test_the_api_s_own_words_are_used(simulator: Simulator) -> None:
    """An error of the API is told by status, type and message, any other by its text, or at least its name."""
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(anthropic.NotFoundError) as wrong:
            await claude.messages.create(
                model="claude-9", max_tokens=5, messages=[{"role": "user", "content": "Hello"}]
            )
    assert explained(wrong.value) == "404 not_found_error: model: claude-9"
    response = wrong.value.response
    for body in (None, {}, {"error": "no"}, "no"):
        assert explained(anthropic.APIStatusError("a page", response=response, body=body)) == "a page"
    assert explained(TimeoutError()) == "TimeoutError"


def test_failures_are_counted_by_name() -> None:
    """All failures are counted, the most frequent first, and the first one's text is told."""
    failures = Failures()
    failures.add(FanOutResult(custom_id="good", index=0))
    failures.add(failed("a", ValueError("bad\nvalue")))
    failures.add(failed("b", OSError("gone")))
    failures.add(failed("c", OSError("gone")))
    assert len(failures) == 3
    assert repr(failures) == "<Failures 3>"
    assert failures.line() == "OSError 2, ValueError 1; the first was 'a': bad value"


@pytest.mark.parametrize(
    ("cost", "told"),
    [
        ("0", "0 out"),
        ("0.00001", "0 out, less than $0.0001"),
        ("0.0001", "0 out, $0.0001"),
        ("12.3", "0 out, $12.3000"),
    ],
)
def test_the_cost_is_told_if_there_is_one(cost: str, told: str) -> None:
    """A cost that is known is told, however small."""
    progress = dataclasses.replace(Tally(total=None, now=0.0).snapshot(now=75.0), cost_usd=Decimal(cost), resumed=1200)
    assert summary(progress) == f"0 answered, 0 failed, 1,200 there before in 1 min 15 s; 0 tokens in, {told}"


@pytest.mark.parametrize(("seconds", "told"), [(0.04, "0.0 s"), (60, "1 min 0 s"), (90_000, "25 h 0 min 0 s")])
def test_times_are_told_as_people_do(seconds: float, told: str) -> None:
    """Up to a minute there are tenths of seconds, from then on minutes, then hours."""
    assert f" in {told};" in summary(Tally(total=None, now=0.0).snapshot(now=seconds))


@pytest.mark.parametrize("shows", [True, False])
async def test_a_watch_shows_a_run(
    shows: bool,
    simulator: Simulator,
    virtual_time: VirtualTime,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While the block lasts it tells on the standard error how far it is, if it shall; in the end it knows the sum."""
    claude = Client(sdk=simulator.client())
    async with claude, Watch(total=2, claude=claude, shows=shows) as watch:
        watch.tally.start()
        watch.add(failed("a", ValueError("no")))
        await anyio.sleep(6)
    assert len(watch.failures) == 1
    assert watch.summary() == "0 answered, 1 failed in 6.0 s; 0 tokens in, 0 out"
    assert repr(watch).startswith("<Watch <Tally 0 answered, 1 failed")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == (["0:05  1 of 2 done", "0:06  1 of 2 done"] if shows else [])


async def test_an_exception_passes_a_watch_as_it_is(simulator: Simulator) -> None:
    """What the block raises comes out unwrapped."""
    claude = Client(sdk=simulator.client())
    watch = Watch(total=None, claude=claude, shows=True)
    async with claude:
        with pytest.raises(OSError, match="gone"):
            async with watch:
                raise OSError("gone")
