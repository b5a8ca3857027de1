from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anthropic
import anyio
import httpx2
import pytest

from penstock.conversation import limits
from penstock.conversation.limits import asked_limits, known_limits, takes_system_turns
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anthropic import AsyncAnthropic

    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
numbers = count()


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the process has been told before is forgotten."""
    limits._answers.clear()
    yield
    limits._answers.clear()


def test_the_table_agrees_with_what_the_api_says() -> None:
    """For every model of the simulated API, but one that is not named by a version."""
    from penstock.simulator.models import MODELS

    for name, model in MODELS.items():
        known = known_limits(name)
        if name != "claude-mythos-preview":
            assert (known.window_tokens, known.max_output_tokens) == (model.window, model.max_output), name
        assert takes_system_turns(name) == model.system_turns, name


def test_a_model_that_is_not_known_gets_the_least() -> None:
    """Old and unknown ones are treated with care."""
    for name in ("claude-opus-4-1", "claude-next"):
        assert known_limits(name).window_tokens == 200_000
        assert not known_limits(name).compacts
        assert not takes_system_turns(name)


async def test_the_api_is_asked_once(simulator: Simulator) -> None:
    """In the life of the process, for each model and address."""
    async with simulator.client() as sdk:
        first = await asked_limits(sdk, MODEL)
        assert await asked_limits(sdk, MODEL) == first
        assert (first.window_tokens, first.max_output_tokens, first.compacts) == (1_000_000, 128_000, True)
    assert [entry.path for entry in simulator.journal] == [f"/v1/models/{MODEL}"]


@pytest.mark.parametrize(("fault", "asked"), [("not_found", 1), ("overloaded", 2), ("reset", 2), ("rate_limited", 2)])
async def test_a_failure_is_answered_by_the_table(simulator: Simulator, fault: str, asked: int) -> None:
    """What may pass is asked again another time; what won't is not."""
    simulator.inject(fault)
    async with simulator.client(max_retries=0) as sdk:
        assert await asked_limits(sdk, MODEL) == known_limits(MODEL)
        assert await asked_limits(sdk, MODEL) == known_limits(MODEL)
    assert len(simulator.journal) == asked


async def test_nobody_waits_long_for_it(virtual_time: VirtualTime) -> None:
    """An API that doesn't answer is left after five seconds."""
    simulator = Simulator()
    simulator.inject("stall_before_headers")
    async with simulator.client() as sdk:
        assert await asked_limits(sdk, MODEL) == known_limits(MODEL)
    assert virtual_time.now() == pytest.approx(5, abs=0.1)


async def test_a_client_without_a_list_of_models_is_not_asked() -> None:
    """Those of clouds have none."""
    sdk = cast("AsyncAnthropic", SimpleNamespace(base_url="https://cloud.example"))
    assert await asked_limits(sdk, MODEL) == known_limits(MODEL)


async def test_what_the_api_leaves_out_is_the_tables() -> None:
    """Also a model whose capabilities are not told; one that doesn't compact is believed."""

    def client(**told: Any) -> AsyncAnthropic:
        async def retrieve(model: str) -> SimpleNamespace:
            await anyio.lowlevel.checkpoint()
            return SimpleNamespace(**{"capabilities": None, "max_input_tokens": None, "max_tokens": None, **told})

        models = SimpleNamespace(retrieve=retrieve)
        return cast("AsyncAnthropic", SimpleNamespace(base_url=f"https://{next(numbers)}", models=models))

    assert await asked_limits(client(), MODEL) == known_limits(MODEL)
    managed = SimpleNamespace(context_management=SimpleNamespace(compact_20260112=None))
    found = await asked_limits(client(capabilities=managed, max_input_tokens=5000), MODEL)
    assert (found.window_tokens, found.compacts) == (5000, False)


class Gateway(httpx2.AsyncBaseTransport):
    """Something between that answers for the API, with anything."""

    def __init__(self, kind: str, body: bytes) -> None:
        self.kind, self.body = kind, body

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await anyio.lowlevel.checkpoint()
        return httpx2.Response(200, headers={"content-type": self.kind}, content=self.body, request=request)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<html>Sign in</html>"),
        ("application/json", b"{"),
        ("application/json", b"null"),
        ("application/json", b"[1]"),
        ("application/json", b'{"data": []}'),
        ("application/json", b'{"max_input_tokens": "many", "max_tokens": -1, "capabilities": [1]}'),
    ],
)
async def test_what_is_no_answer_is_answered_by_the_table(kind: str, body: bytes) -> None:
    """A gateway that knows no list of models says all kinds of things."""
    client = anthropic.DefaultAsyncHttpxClient(transport=Gateway(kind, body))
    url = f"https://{next(numbers)}.invalid"
    async with anthropic.AsyncAnthropic(api_key="x", base_url=url, http_client=client, max_retries=0) as sdk:
        assert await asked_limits(sdk, MODEL) == known_limits(MODEL)


async def test_what_is_remembered_is_bounded(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that was asked about longest ago is forgotten."""
    monkeypatch.setattr(limits, "_MOST_MODELS", 2)
    async with simulator.client() as sdk:
        for model in (MODEL, "claude-opus-5-5", MODEL, "claude-haiku-5-5"):
            await asked_limits(sdk, model)
    assert [model for _, model in limits._answers] == [MODEL, "claude-haiku-5-5"]
