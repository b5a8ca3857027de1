from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anthropic
import anyio
import httpx2
import pytest
from anthropic.types import Message
from anthropic.types.beta import BetaCompactionBlock, BetaMessage

from penstock import BudgetExceeded, ContextOverflow, Conversation
from penstock._core.models import known
from penstock.conversation import window
from penstock.conversation.window import TokenEstimate, asked, context_tokens
from penstock.messages.blocks import Turn
from penstock.simulator import Simulator
from penstock.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anthropic import AsyncAnthropic

    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
WORDS = "The water of the upper lake drives the turbine below. " * 8
numbers = count()
TOOL = {"name": "search", "input_schema": {"type": "object"}}


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    """What the process has been told before is forgotten."""
    window._answers.clear()
    yield
    window._answers.clear()


def inputs(simulator: Simulator) -> list[int]:
    """What the messages of each request took, as the API counted it without its cache."""
    from penstock.simulator.models import MODELS
    from penstock.simulator.tokens import count_input

    return [count_input(entry.body, MODELS[entry.model or ""]) for entry in simulator.journal if entry.body]


def notes(chat: Conversation) -> list[str]:
    """What is said of messages that are missing."""
    texts = [str(block.get("text", "")) for turn in chat._session.turns if turn.left_out for block in turn.content]
    assert all("left out here" in text for text in texts)
    return texts


async def send_often(chat: Conversation, *, times: int, **options: Any) -> None:
    """Send different things of the same size."""
    for number in range(times):
        await chat.send(f"Question {number:2}: {WORDS}", **options)


@pytest.mark.lengthy
async def test_a_long_session_stays_within_its_share() -> None:
    """It is trimmed rarely and deep; the first question and pinned ones stay, thinking goes."""
    simulator = Simulator(thinking=True, output_tokens=100)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, window_tokens=4_000, max_tokens=500)
        await chat.send(f"First: {WORDS}")
        await chat.send(f"Pinned: {WORDS}", pin=True)
        for number in range(60):
            await chat.send(f"Question {number}: {WORDS}")
    sizes = inputs(simulator)
    drops = [size for size, before in zip(sizes[1:], sizes, strict=False) if size < before]
    assert max(sizes) <= 3_000
    assert max(sizes) > 2_500
    assert 3 <= len(drops) <= 15
    assert all(size <= 0.45 * 4_000 for size in drops)
    shown = str(chat.messages)
    assert "First: " in shown
    assert "Pinned: " in shown
    assert "Question 3:" not in shown
    (note,) = notes(chat)
    assert int(note.split()[0].strip("[")) + len(chat.messages) - 1 == 2 * 62
    assert all(entry.status == 200 for entry in simulator.journal)


@pytest.mark.lengthy
async def test_a_share_can_be_set() -> None:
    """Lower, and trimmed to less."""
    simulator = Simulator(output_tokens=50)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, window_tokens=10_000, max_tokens=500, trim_at=0.3, trim_to=0.1)
        for number in range(60):
            await chat.send(f"Question {number}: {WORDS}")
    assert 2_500 < max(inputs(simulator)) <= 3_000


@pytest.mark.lengthy
async def test_room_for_the_answer_is_kept() -> None:
    """A window that the answer could fill is trimmed before its share is reached."""
    simulator = Simulator(output_tokens=50)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, window_tokens=10_000, max_tokens=5_000)
        for number in range(80):
            await chat.send(f"Question {number}: {WORDS}")
    assert 4_500 < max(inputs(simulator)) <= 5_000


@pytest.mark.lengthy
async def test_nothing_is_trimmed_while_tools_are_called() -> None:
    """The thinking between calls must come back, and what stands before it; the next question is trimmed."""
    simulator = Simulator(thinking=True)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, window_tokens=4_000, max_tokens=500, tools=[TOOL])
        await send_often(chat, times=8)
        simulator.reply([{"type": "thinking", "thinking": ""}, {"type": "tool_use", "name": "search"}], times=8)
        await chat.send("Search")
        while calls := chat.pending_tool_calls:
            await chat.send([{"type": "tool_result", "tool_use_id": call, "content": WORDS * 2} for call in calls])
        assert inputs(simulator)[-1] > 3_000
        assert len(chat.messages) == 16 + 18
        await chat.send("And now?")
        assert len(chat.messages) < 16
    assert all(entry.status == 200 for entry in simulator.journal)


async def test_what_cannot_fit_is_not_sent(simulator: Simulator) -> None:
    """Not the last turn alone, and not what must stay with it; the history stays as it was."""
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, window_tokens=2_000, max_tokens=100)
        await chat.send("Hello")
        with pytest.raises(ContextOverflow) as raised:
            await chat.send(WORDS * 30)
        assert raised.value.needed_tokens > raised.value.window_tokens == 2_000
        assert len(chat.messages) == 2
        assert len(simulator.journal) == 1
        simulator.reply({"type": "tool_use", "name": "search"})
        await chat.send("Search")
        with pytest.raises(ContextOverflow):
            await chat.send([{"type": "tool_result", "tool_use_id": chat.pending_tool_calls[0], "content": WORDS * 30}])
        assert len(simulator.journal) == 2


async def test_a_history_that_is_all_pinned_is_left_alone() -> None:
    """To change it a little at every turn would only lose the cache; once it is too long, it says so."""
    simulator = Simulator(thinking=True)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, window_tokens=2_000, max_tokens=100)
        with pytest.raises(ContextOverflow):
            await send_often(chat, times=40, pin=True)
    sizes = inputs(simulator)
    assert sizes == sorted(sizes)
    assert sizes[-1] > 1_500
    assert notes(chat) == []
    first, second, *_ = (simulator.journal[-1].body or {})["messages"]
    assert (first["role"], second["content"][0]["type"]) == ("user", "thinking")


async def test_a_continuation_that_no_longer_fits_ends_the_reply(simulator: Simulator) -> None:
    """What is there is returned."""
    simulator.reply(WORDS * 14, stop_reason="max_tokens", times=9)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, window_tokens=3_000, max_tokens=100, on_truncation="continue")
        reply = await chat.send("Tell me all")
    assert reply.truncated
    assert 1 < reply.requests < 5
    assert len(chat.messages) == 2 * reply.requests


class TestSummary:
    @pytest.mark.lengthy
    async def test_what_is_left_out_is_summarized(self) -> None:
        """By the cheaper model, told what it is told; each summary takes in the one before; all of it is counted."""
        simulator = Simulator(output_tokens=lambda body: 40 if body["model"] == "claude-haiku-4-5" else 100)
        async with simulator.client() as sdk:
            chat = Conversation(
                sdk,
                model=MODEL,
                window_tokens=4_000,
                max_tokens=500,
                overflow="summary",
                summary_model="claude-haiku-4-5",
                summary_prompt="Summarize.",
                summary_max_tokens=300,
            )
            summed = 0
            for number in range(40):
                summed += (await chat.send(f"Question {number}: {WORDS}")).usage.total_tokens
            assert summed == chat.spent_tokens
        asked = [entry.body or {} for entry in simulator.journal if entry.model == "claude-haiku-4-5"]
        assert len(asked) > 2
        assert {(body["system"], body["max_tokens"]) for body in asked} == {("Summarize.", 300)}
        assert asked[0]["messages"][0]["content"].startswith("Assistant: Question 0: The water")
        assert "User: Question 1:" in asked[0]["messages"][0]["content"]
        assert "earlier messages are left out here" in asked[1]["messages"][0]["content"]
        (note,) = notes(chat)
        assert "What they said, in short:]\n" in note
        assert max(inputs(simulator)) <= 3_000

    async def test_a_summary_that_fails_is_put_off_while_there_is_room(
        self, simulator: Simulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The conversation goes on as it is, and the log says so; without window, the error comes out."""
        async with simulator.client(max_retries=0) as sdk:
            chat = Conversation(
                sdk, model=MODEL, window_tokens=2_000, max_tokens=300, overflow="summary", summary_max_tokens=300
            )
            while chat.statistics().context_tokens < 1_450:
                await chat.send(WORDS)
            before = chat.messages
            simulator.inject("api_error")
            await chat.send(WORDS)
            assert (chat.messages[: len(before)], len(chat.messages)) == (before, len(before) + 2)
            assert caplog.messages == ["no summary (InternalServerError): the conversation goes on untrimmed"]
            before = chat.messages
            simulator.inject("api_error")
            with pytest.raises(anthropic.InternalServerError):
                await chat.send(WORDS * 6)
            assert chat.messages == before
            await chat.send(WORDS)
            assert notes(chat)

    async def test_a_summary_is_paid_for_once(self, simulator: Simulator) -> None:
        """Though what is asked with it fails, again and again."""
        async with simulator.client(max_retries=0) as sdk:
            chat = Conversation(
                sdk, model=MODEL, window_tokens=2_000, max_tokens=300, overflow="summary", summary_max_tokens=300
            )
            while chat.statistics().context_tokens < 1_450:
                await chat.send(WORDS)
            before = chat.messages
            simulator.inject("overloaded", times=2, after=1)
            for _ in range(2):
                with pytest.raises(anthropic.APIStatusError):
                    await chat.send(WORDS)
                assert chat.messages == before
            await chat.send(WORDS)
            assert notes(chat)
        assert [entry.model for entry in simulator.journal].count("claude-haiku-5-5") == 1

    @pytest.mark.parametrize("reply", [{"content": "No.", "stop_reason": "refusal"}, {"content": []}])
    async def test_a_summary_that_is_refused_leaves_a_plain_note(self, simulator: Simulator, reply: Any) -> None:
        """The conversation goes on."""
        async with simulator.client() as sdk:
            chat = Conversation(
                sdk, model=MODEL, window_tokens=2_000, max_tokens=300, overflow="summary", summary_max_tokens=300
            )
            while chat.statistics().context_tokens < 1_450:
                await chat.send(WORDS)
            simulator.reply(**reply)
            await chat.send(WORDS)
            (note,) = notes(chat)
            assert note.endswith("earlier messages are left out here.]")

    async def test_a_summary_must_be_paid_for(self, simulator: Simulator) -> None:
        """Nothing is sent if the budget has no more."""
        async with simulator.client() as sdk:
            fields: dict[str, Any] = {"window_tokens": 2_000, "max_tokens": 300, "overflow": "summary"}
            chat = Conversation(sdk, model=MODEL, token_budget=12_000, **fields)
            with pytest.raises(BudgetExceeded):
                await send_often(chat, times=50)
            assert chat.spent_tokens <= 12_000


class TestLimits:
    async def test_the_api_is_asked_only_when_it_matters(self, simulator: Simulator) -> None:
        """A short conversation needs no answer; a long one asks once."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, max_tokens=100)
            await chat.send("Hello")
            assert [entry.method for entry in simulator.journal] == ["POST"]
            await chat.send(WORDS * 900)
            await chat.send("Hello")
        assert [entry.method for entry in simulator.journal] == ["POST", "GET", "POST", "POST"]
        assert repr(chat._session.window) == "<Window of 1000000 tokens>"

    async def test_an_own_window_needs_no_answer(self, simulator: Simulator) -> None:
        """It is what the caller says."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, max_tokens=100, window_tokens=500_000)
            await chat.send(WORDS * 900)
        assert [entry.method for entry in simulator.journal] == ["POST"]
        assert chat.statistics().window_tokens == 500_000


class TestCompaction:
    @pytest.mark.lengthy
    async def test_the_api_keeps_the_history_short_where_it_can(self) -> None:
        """It is asked to; nothing is trimmed here, and what follows is measured from there on."""
        simulator = Simulator(output_tokens=100, thinking=True)
        async with simulator.client() as sdk:
            chat = Conversation(
                sdk,
                model=MODEL,
                window_tokens=100_000,
                max_tokens=500,
                overflow="compaction",
                betas=["interleaved-thinking-2025-05-14"],
            )
            for number in range(30):
                await chat.send(f"Question {number}: {WORDS * 40}")
        body: Any = simulator.journal[-1].body
        (edit,) = body["context_management"]["edits"]
        assert edit == {"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": 75_000}}
        betas = simulator.journal[-1].headers["anthropic-beta"]
        assert "compact-2026-01-12" in betas
        assert "interleaved" in betas
        assert "compaction" in str(chat.messages)
        assert notes(chat) == []
        assert chat.statistics().context_tokens < 75_000
        assert all(entry.status == 200 for entry in simulator.journal)

    async def test_other_edits_of_the_context_stay(self, simulator: Simulator) -> None:
        """The compaction comes after them; the API takes no trigger below 50,000."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, window_tokens=50_000, overflow="compaction")
            edit = {"type": "clear_thinking_20251015"}
            more = chat._session.window.more({"context_management": {"edits": [edit], "x": 1}})
        assert more["betas"] == ["compact-2026-01-12"]
        assert more["context_management"]["x"] == 1
        assert more["context_management"]["edits"][0] == edit
        assert more["context_management"]["edits"][1]["trigger"]["value"] == 50_000

    @pytest.mark.lengthy
    async def test_a_model_that_does_not_compact_is_trimmed(self, simulator: Simulator) -> None:
        """By the sliding window."""
        async with simulator.client() as sdk:
            chat = Conversation(
                sdk, model="claude-haiku-4-5", window_tokens=2_000, max_tokens=300, overflow="compaction"
            )
            for _ in range(30):
                await chat.send(WORDS)
        assert notes(chat)
        assert "context_management" not in (simulator.journal[-1].body or {})


# The Models API


async def test_the_api_is_asked_once(simulator: Simulator) -> None:
    """In the life of the process, for each model and address."""
    async with simulator.client() as sdk:
        first = await asked(sdk, MODEL)
        assert await asked(sdk, MODEL) == first
        assert (first.window_tokens, first.max_output_tokens, first.compacts) == (1_000_000, 128_000, True)
    assert [entry.path for entry in simulator.journal] == [f"/v1/models/{MODEL}"]


@pytest.mark.parametrize(("fault", "times"), [("not_found", 1), ("overloaded", 2), ("reset", 2), ("rate_limited", 2)])
async def test_a_failure_is_answered_by_the_table(simulator: Simulator, fault: str, times: int) -> None:
    """What may pass is asked again another time; what won't is not."""
    simulator.inject(fault)
    async with simulator.client(max_retries=0) as sdk:
        assert await asked(sdk, MODEL) == known(MODEL)
        assert await asked(sdk, MODEL) == known(MODEL)
    assert len(simulator.journal) == times


async def test_nobody_waits_long_for_it(virtual_time: VirtualTime) -> None:
    """An API that doesn't answer is left after five seconds."""
    simulator = Simulator()
    simulator.inject("stall_before_headers")
    async with simulator.client() as sdk:
        assert await asked(sdk, MODEL) == known(MODEL)
    assert virtual_time.now() == pytest.approx(5, abs=0.1)


async def test_a_client_without_a_list_of_models_is_not_asked() -> None:
    """Those of clouds have none."""
    sdk = cast("AsyncAnthropic", SimpleNamespace(base_url="https://cloud.example"))
    assert await asked(sdk, MODEL) == known(MODEL)


async def test_what_the_api_leaves_out_is_the_tables() -> None:
    """Also a model whose capabilities are not told; one that doesn't compact is believed."""

    def client(**told: Any) -> AsyncAnthropic:
        async def retrieve(model: str) -> SimpleNamespace:
            await anyio.lowlevel.checkpoint()
            return SimpleNamespace(**{"capabilities": None, "max_input_tokens": None, "max_tokens": None, **told})

        models = SimpleNamespace(retrieve=retrieve)
        return cast("AsyncAnthropic", SimpleNamespace(base_url=f"https://{next(numbers)}", models=models))

    assert await asked(client(), MODEL) == known(MODEL)
    managed = SimpleNamespace(context_management=SimpleNamespace(compact_20260112=None))
    found = await asked(client(capabilities=managed, max_input_tokens=5000), MODEL)
    assert (found.window_tokens, found.compacts) == (5000, False)


def gateway(kind: str, body: bytes) -> ScriptedTransport:
    """Something between that answers for the API, with anything."""
    return ScriptedTransport(
        lambda request: httpx2.Response(200, headers={"content-type": kind}, content=body, request=request)
    )


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
    client = anthropic.DefaultAsyncHttpxClient(transport=gateway(kind, body))
    url = f"https://{next(numbers)}.invalid"
    async with anthropic.AsyncAnthropic(api_key="x", base_url=url, http_client=client, max_retries=0) as sdk:
        assert await asked(sdk, MODEL) == known(MODEL)


async def test_what_is_remembered_is_bounded(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that was asked about longest ago is forgotten."""
    monkeypatch.setattr(window, "_MOST_MODELS", 2)
    async with simulator.client() as sdk:
        for model in (MODEL, "claude-opus-5-5", MODEL, "claude-haiku-5-5"):
            await asked(sdk, model)
    assert [model for _, model in window._answers] == [MODEL, "claude-haiku-5-5"]


# What a history takes


def turn(words: str, *more: Any) -> Turn:
    """A turn of one text, and more blocks."""
    return Turn(role="user", content=({"type": "text", "text": words}, *more))


def answer(**usage: int) -> Message:
    """An answer with that usage."""
    return Message.construct(content=[], usage=None if not usage else _Usage(**usage))


class _Usage:
    def __init__(self, **counts: int | None) -> None:
        self.__dict__.update(counts)


def test_what_the_api_has_counted_is_not_guessed() -> None:
    """Only turns that came since are estimated, and a little too high."""
    estimate = TokenEstimate(MODEL, {}, has_tools=False)
    turns = [turn("x" * 4000)]
    assert estimate.measure(turns) == pytest.approx(4000 / 3.2 * 1.1, rel=0.02)
    estimate.learn(turns, answer(input_tokens=100, cache_read_input_tokens=900, output_tokens=50), turns=2)
    turns += [turn("ok")]
    assert estimate.measure(turns) == 1050
    longer = estimate.measure([*turns, turn("y" * 400)])
    assert longer - 1050 == pytest.approx(400 / estimate.per_token * 1.1, rel=0.15)
    assert estimate.measure([*turns, turn("y" * 400)], margin=1.0) < longer
    estimate.forget()
    assert estimate.measure(turns) == pytest.approx(1100, rel=0.1)


def test_it_learns_how_many_characters_a_token_has() -> None:
    """From texts that are long enough to tell, and within bounds."""
    for tokens, per_token in ((4000, 2.0), (2000, 4.0), (10, 8.0), (100_000, 1.0)):
        estimate = TokenEstimate(MODEL, {}, has_tools=False)
        estimate.learn([turn("x" * 8000)], answer(input_tokens=tokens, output_tokens=1), turns=2)
        assert estimate.per_token == pytest.approx(per_token, rel=0.05)
        assert repr(estimate).endswith(" characters a token>")
    estimate = TokenEstimate(MODEL, {}, has_tools=False)
    estimate.learn([turn("x" * 8000)], answer(input_tokens=100_000, output_tokens=1), turns=2)
    assert repr(estimate) == "<TokenEstimate 100001 tokens in 2 turns, 1.00 characters a token>"


def test_what_stands_before_the_turns_counts() -> None:
    """System prompt and tools, and what tools cost on top."""
    plain = TokenEstimate(MODEL, {}, has_tools=False)
    told = TokenEstimate(MODEL, {"system": "x" * 3200}, has_tools=True)
    assert plain.fixed == 0
    assert told.fixed == pytest.approx(1500)
    assert told.measure([turn("x")]) - plain.measure([turn("x")]) == pytest.approx(1650)


def test_an_answer_without_usage_teaches_nothing() -> None:
    """As compatible servers send it."""
    estimate = TokenEstimate(MODEL, {}, has_tools=False)
    estimate.learn([turn("x")], answer(), turns=2)
    estimate.learn([turn("x")], answer(input_tokens=0, output_tokens=4), turns=2)
    assert (estimate.tokens, estimate.per_token) == (0, 3.2)
    assert context_tokens(Message.construct()) == (0, 0)


def test_media_that_are_only_named_cost_what_they_can() -> None:
    """An image at most its model's most; a document some pages; also within the result of a tool."""
    image = {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}
    document = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image]}
    kept = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
    search = {"type": "search_result", "source": "https://example.org", "title": "x", "content": []}

    def cost(model: str, *blocks: Any) -> float:
        estimate = TokenEstimate(model, {}, has_tools=False)
        return estimate.of([turn("x", *blocks)]) - estimate.of([turn("x")])

    assert cost(MODEL, image) == pytest.approx(4784, rel=0.01)
    assert cost("claude-haiku-4-5", result) == pytest.approx(1568, rel=0.03)
    assert cost("claude-next", image) == pytest.approx(4784, rel=0.01)
    assert cost(MODEL, document) == pytest.approx(10_000, rel=0.01)
    assert cost(MODEL, kept, search) < 50


def test_signatures_of_thinking_do_not_count_as_text() -> None:
    """They are long and cost little; what they'd teach would make new texts look cheap."""
    estimate = TokenEstimate(MODEL, {}, has_tools=False)
    thought = {"type": "thinking", "thinking": "", "signature": "s" * 9000}
    assert estimate.of([turn("x", thought)]) < 20


def test_after_a_compaction_only_the_rest_counts() -> None:
    """What stands before it is not seen, and what it was made of teaches nothing about characters."""
    estimate = TokenEstimate(MODEL, {}, has_tools=False)
    old = turn("x" * 100_000)
    compaction = BetaCompactionBlock(type="compaction", content="short")
    message = BetaMessage.construct(content=[compaction], usage=_Usage(input_tokens=300, output_tokens=20))
    estimate.learn([old], message, turns=2)
    assert (estimate.tokens, estimate.per_token) == (320, 3.2)
    compacted = Turn(role="assistant", content=({"type": "compaction", "content": "short"},))
    estimate.forget()
    assert estimate.measure([old, compacted, turn("x" * 320)]) < 200
    estimate.learn([old, compacted, turn("x" * 3200)], answer(input_tokens=1000, output_tokens=1), turns=4)
    assert estimate.per_token == pytest.approx(3.2, rel=0.05)


def test_a_copy_learns_by_itself() -> None:
    """A send that fails leaves what was known."""
    estimate = TokenEstimate(MODEL, {}, has_tools=False)
    copied = estimate.copy()
    copied.learn([turn("x")], answer(input_tokens=10, output_tokens=1), turns=2)
    assert (estimate.tokens, copied.tokens) == (0, 11)
