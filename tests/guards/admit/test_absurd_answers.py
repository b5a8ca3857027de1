"""Whatever an answer says once, and whatever requests hold that they can't tell the size of: nobody is locked out."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest
from anthropic._models import FinalRequestOptions
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from penstock._core.size import Size, size_of
from penstock._core.usage import Usage
from penstock.events import Event, Observers, UsageDisbelieved
from penstock.guards.admit import Admit
from penstock.guards.admit.estimate import Estimator
from penstock.guards.admit.limits import Limits
from penstock.testing import VirtualLoop

if TYPE_CHECKING:
    from penstock._core.attempt import Response
    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
TEXT = [{"role": "user", "content": "word " * 400}]
LIMITS = {"requests": 4000, "input-tokens": 400_000, "output-tokens": 80_000}
NUMBERS = ("0", "-1", "-1e9", "0.5", "1e-300", "1", "3", "7.5", "1e9", "1e18", "1e400", "nan", "inf", "many", "")
TIMES = ("2100-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "2026-11-20T10:00:00Z", "2026-11-20T10:01:00Z", "soon", "")
WAITS = ("1e9", "86400", "3599", "3600", "-5", "nan", "soon", "Fri, 01 Jan 2100 00:00:00 GMT", "1")
COUNTS = (10**15, 9_000_000, 600_000, -5, 0, "many", None, 1.5, True)


def request(content: object = TEXT, **body: object) -> anthropic.APIRequest:
    """As the SDK's chain hands it on."""
    body = {"model": MODEL, "max_tokens": 300, "messages": content, **body}
    options = FinalRequestOptions.construct(method="post", url="/v1/messages", json_data=body)
    return anthropic.APIRequest(options=options, cast_to=object, stream=False)


def headers(**other: str) -> dict[str, str]:
    """What an ordinary answer's headers say."""
    told = {f"anthropic-ratelimit-{name}-limit": str(limit) for name, limit in LIMITS.items()}
    told |= {f"anthropic-ratelimit-{name}-remaining": str(limit - 2000) for name, limit in LIMITS.items()}
    told |= {f"anthropic-ratelimit-{name}-reset": "2026-11-20T10:00:01Z" for name in LIMITS}
    return {**told, "date": "Fri, 20 Nov 2026 10:00:00 GMT", **other}


def answer(status: int = 200, given: object = 640, made: object = 120, **other: str) -> httpx2.Response:
    """An answer, ordinary but for what is said."""
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Yes."}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": given, "output_tokens": made},
    }
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "This would exceed …"}}
    content = json.dumps(message if status == 200 else error)
    told = {"content-type": "application/json", **headers(**other)}
    return httpx2.Response(status, headers=told, content=content)


def absurd(chance: random.Random) -> httpx2.Response:
    """One answer of all the kinds."""
    kind = chance.choice(("limit", "remaining", "reset", "wait", "usage", "all"))
    name = chance.choice(list(LIMITS))
    status = chance.choice((200, 429))
    if kind == "wait":
        return answer(429, **{"retry-after": chance.choice(WAITS)})
    if kind == "usage":
        return answer(given=chance.choice(COUNTS), made=chance.choice(COUNTS))
    if kind == "reset":
        return answer(status, **{f"anthropic-ratelimit-{name}-reset": chance.choice(TIMES)})
    if kind == "all":
        number = chance.choice(NUMBERS)
        told = {f"anthropic-ratelimit-{name}-{what}": number for name in LIMITS for what in ("limit", "remaining")}
        return answer(status, **told, **{"retry-after": chance.choice(WAITS)})
    return answer(status, **{f"anthropic-ratelimit-{name}-{kind}": chance.choice(NUMBERS)})


ORDINARY, ASKED = answer(), request()


async def send(admit: Admit, response: httpx2.Response, asked: anthropic.APIRequest = ASKED) -> Response:
    """One request through the guard, answered so."""

    async def call_next(_: anthropic.APIRequest) -> Response:
        await anyio.lowlevel.checkpoint()
        return response

    return await admit.handle_async(asked, call_next)


async def one_absurd_among_ordinary(seed: int, calls: int) -> float:
    """Send some ordinary requests, the one with the absurd answer, and many more; return how long those took."""
    chance = random.Random(seed)
    configured = chance.choice((None, None, Limits(requests_per_minute=1000, input_tokens_per_minute=100_000)))
    admit = Admit(limits=configured, rng=chance)
    for _ in range(chance.choice((0, 1, 2, 10))):
        await send(admit, ORDINARY)
    await send(admit, absurd(chance))
    began_at = anyio.current_time()
    for _ in range(calls):
        assert (await send(admit, ORDINARY)).status_code == 200
    assert admit.statistics().slots_used == 0
    return anyio.current_time() - began_at


def longest(seeds: range, calls: int) -> float:
    """The longest that the calls after the absurd answer took, of all seeds."""

    async def main() -> float:
        return max([await one_absurd_among_ordinary(seed, calls) for seed in seeds])

    return anyio.run(main, backend_options={"loop_factory": VirtualLoop})


def test_one_absurd_answer_locks_nobody_out() -> None:
    """The next ordinary calls all succeed, within a probe's minute."""
    assert longest(range(30), 9) < 65


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_in_a_thousand_runs_one_absurd_answer_locks_nobody_out(first: int) -> None:
    """The next hundred each, within a probe's minute, and what it takes to refill as much."""
    assert longest(range(first, first + 250), 100) < 100


@pytest.mark.parametrize(("given", "made"), [(10**15, 10), (640, 10**15), (-5, 10), ("many", 10), (0, 0), (600_000, 5)])
async def test_usage_that_can_not_be_is_told_and_ignored(given: Any, made: Any, virtual_time: VirtualTime) -> None:
    """The estimate stands in its place, and the next is no other."""
    seen = list[Event]()
    admit = Admit(
        limits=Limits(requests_per_minute=1000, input_tokens_per_minute=100_000, output_tokens_per_minute=100_000),
        observers=Observers((seen.append,)),
    )
    await send(admit, answer())
    before = admit.estimator.cost(MODEL, Size(2000), 300)
    await send(admit, answer(given=given, made=made))
    (event,) = [event for event in seen if isinstance(event, UsageDisbelieved)]
    assert event.model == MODEL
    assert admit.estimator.cost(MODEL, Size(2000), 300) == before
    (quota,) = admit.statistics().quotas.values()
    assert quota["sonnet-5-5"]["input_tokens"].available > 90_000


# What a request can't tell.


def document(**source: str) -> list[Any]:
    """A short question about a document elsewhere."""
    return [{"role": "user", "content": [{"type": "document", "source": source}, {"type": "text", "text": "Sum up."}]}]


FILE = document(type="file", file_id="file_1")
ELSEWHERE: dict[str, dict[str, Any]] = {
    "file": {"messages": FILE},
    "url": {"messages": document(type="url", url="https://a.example/b.pdf")},
    "web_search": {"messages": TEXT, "tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    "code_execution": {"messages": TEXT, "tools": [{"type": "code_execution_20260120", "name": "code_execution"}]},
    "mcp": {"messages": TEXT, "mcp_servers": [{"type": "url", "url": "https://a.example", "name": "a"}]},
    "container": {"messages": TEXT, "container": "container_1"},
    "thread": {"messages": TEXT, "thread": {"type": "continue", "previous_message_id": "msg_1"}},
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_what_a_request_can_not_tell_is_named(kind: str) -> None:
    """By kind, whatever the date of a tool's version."""
    assert size_of(ELSEWHERE[kind]).unseen == (kind,)


def test_what_a_request_shows_is_not_unseen() -> None:
    """Text, tools of one's own, encoded media; and what is in a container is a file."""
    tools = [{"name": "look", "input_schema": {}}, {"type": "custom", "name": "see"}, "no tool"]
    assert size_of({"messages": TEXT, "tools": tools, "container": None}).unseen == ()
    uploaded = [{"role": "user", "content": [{"type": "container_upload", "file_id": "file_1"}]}]
    assert size_of({"messages": uploaded}).unseen == ("file",)


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_what_is_unseen_is_learned_by_its_kind_and_not_as_text(kind: str) -> None:
    """600,000 tokens for a short question change no estimate of ordinary prompts, and are no reason to refuse."""
    estimator, text = Estimator(), size_of({"messages": TEXT})
    before, size = estimator.cost(MODEL, text, 300), size_of(ELSEWHERE[kind])
    for _ in range(30):
        estimator.learn(MODEL, size, Usage(input_tokens=600_000, output_tokens=500))
    assert estimator.cost(MODEL, text, 300).input_tokens == before.input_tokens
    cost = estimator.cost(MODEL, size, 300)
    assert cost.input_tokens == pytest.approx(600_000, rel=0.1)
    assert cost.sure_input_tokens < 3000


def test_two_kinds_in_one_request_are_told_apart() -> None:
    """By those requests in which they stand alone."""
    estimator = Estimator()
    both = {**ELSEWHERE["web_search"], "messages": FILE}
    for _ in range(200):
        estimator.learn(MODEL, size_of(ELSEWHERE["file"]), Usage(input_tokens=50_000, output_tokens=5))
        estimator.learn(MODEL, size_of(both), Usage(input_tokens=80_000, output_tokens=5))
    assert estimator.cost(MODEL, size_of(ELSEWHERE["file"]), 5).input_tokens == pytest.approx(50_000, rel=0.1)
    assert estimator.cost(MODEL, size_of(both), 5).input_tokens == pytest.approx(80_000, rel=0.1)


def test_kinds_take_bounded_memory() -> None:
    """They are named by callers."""
    estimator = Estimator()
    for number in range(500):
        estimator.learn(MODEL, Size(10, 0, (f"tool{number}x",)), Usage(input_tokens=5000, output_tokens=5))
    assert len(estimator._of(MODEL).unseen) == 64


async def test_after_a_large_file_ordinary_prompts_go_on(virtual_time: VirtualTime) -> None:
    """Within configured limits that such a file exceeds by far; and the file itself was no reason to refuse."""
    admit = Admit(limits=Limits(input_tokens_per_minute=50_000))
    for _ in range(3):
        await send(admit, answer(given=600_000), request(FILE))
    for _ in range(20):
        await send(admit, answer())


class Estimates(RuleBasedStateMachine):
    """Adversarial and real requests and answers, in any mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.estimator = Estimator()

    def answer(self, size: Size, usage: Usage) -> None:
        if self.estimator.believes(size, usage):
            self.estimator.learn(MODEL, size, usage)

    @rule(
        characters=st.integers(min_value=0, max_value=10_000_000),
        media=st.floats(min_value=0, max_value=1e6),
        unseen=st.lists(st.sampled_from([*ELSEWHERE, "any"]), max_size=30),
        given=st.integers(min_value=0, max_value=10**18),
        made=st.integers(min_value=0, max_value=10**18),
    )
    def anything(self, characters: int, media: float, unseen: list[str], given: int, made: int) -> None:
        self.answer(Size(characters, media, tuple(unseen)), Usage(input_tokens=given, output_tokens=made))

    @rule(characters=st.integers(min_value=1, max_value=100_000), per_token=st.floats(min_value=1, max_value=5))
    def ordinary(self, characters: int, per_token: float) -> None:
        self.answer(Size(characters), Usage(input_tokens=int(characters / per_token) + 8, output_tokens=200))

    @invariant()
    def bounded(self) -> None:
        for characters in (0, 10, 100_000):
            cost = self.estimator.cost(MODEL, Size(characters), 4096)
            assert 0 <= cost.input_tokens <= 4 * characters
            assert cost.sure_input_tokens <= characters / 3.2 + 1e-6
            assert 0 <= cost.output_tokens <= 4096
            for kind in ELSEWHERE:
                cost = self.estimator.cost(MODEL, Size(characters, 0, (kind,)), 4096)
                assert 0 <= cost.input_tokens <= 4 * characters + 1e7
                assert cost.sure_input_tokens <= characters / 3.2 + 1e-6


Estimates.TestCase.settings = settings(max_examples=30, stateful_step_count=20)
TestEstimates = pytest.mark.lengthy(Estimates.TestCase)
