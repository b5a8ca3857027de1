from __future__ import annotations

import copy
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest

import penstock
from penstock import (
    BudgetExceeded,
    Client,
    Conversation,
    InvalidHistory,
    StreamInterrupted,
    SystemPrompt,
    SystemPromptChanged,
    UnknownPrice,
)
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from pathlib import Path

    from anthropic.types import ThinkingConfigEnabledParam

    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
TOOL = {"name": "get_weather", "input_schema": {"type": "object"}}
CALL = {"type": "tool_use", "name": "get_weather", "input": {"city": "Rome", "at": None}}
THOUGHT = {"type": "thinking", "thinking": ""}
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}


def bodies(simulator: Simulator) -> list[dict[str, Any]]:
    """What was asked."""
    return [entry.body or {} for entry in simulator.journal]


def said(chat: Conversation) -> list[tuple[str, str]]:
    """Who said what, by the first block of each turn."""
    found: list[tuple[str, str]] = []
    for message in chat.messages:
        block: Any = next(iter(message["content"]))
        found.append((message["role"], block.get("text", block["type"])))
    return found


async def send_often(chat: Conversation, text: str) -> None:
    """Send the same a hundred times."""
    for _ in range(100):
        await chat.send(text)


class TestSend:
    async def test_question_and_answer_enter_the_history_together(self, simulator: Simulator) -> None:
        """The next request sends both again."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, system="You are terse.", max_tokens=100)
            reply = await chat.send("Hello")
            assert (reply.text, reply.stop_reason, reply.requests) == ("Summary: Hello", "end_turn", 1)
            assert isinstance(reply.message, anthropic.types.Message)
            assert reply.usage == chat.usage
            assert reply.cost_usd == chat.cost_usd > 0
            await chat.send("Again")
        assert said(chat) == [
            ("user", "Hello"), ("assistant", "Summary: Hello"), ("user", "Again"), ("assistant", "Summary: Again"),
        ]  # fmt: skip
        sent = bodies(simulator)[1]
        assert (sent["model"], sent["max_tokens"], sent["stream"], len(sent["messages"])) == (MODEL, 100, True, 3)

    async def test_what_fails_leaves_the_history_as_it_was(self, simulator: Simulator) -> None:
        """An error of the API, one midway, and a refusal."""
        async with simulator.client(max_retries=0) as sdk:
            chat = Conversation(sdk, model=MODEL)
            await chat.send("Hello")
            before = chat.messages
            simulator.inject("overloaded")
            with pytest.raises(anthropic.APIStatusError):
                await chat.send("One")
            simulator.inject("stream_drop_after_content", times=2)
            with pytest.raises(StreamInterrupted):
                await chat.send("Two " * 40)
            simulator.reply("No", stop_reason="refusal", stop_details={"type": "refusal", "category": "bio"})
            reply = await chat.send("Three")
            assert reply.refusal is not None
            assert reply.refusal.category == "bio"
            assert chat.messages == before
            await chat.send("Four")
        assert len(chat.messages) == 4

    async def test_an_answer_that_breaks_off_is_asked_for_once_more(self, simulator: Simulator) -> None:
        """Nobody has seen it; what it used is counted, as an estimate."""
        simulator.inject("stream_error_after_content")
        async with simulator.client(max_retries=0) as sdk:
            chat = Conversation(sdk, model=MODEL)
            reply = await chat.send("Hello, who are you?")
        assert reply.text == "Summary: Hello, who are you?"
        assert (reply.requests, reply.usage.estimated) == (2, True)
        assert reply.usage.input_tokens == 2 * simulator.journal[1].input_tokens
        assert reply.usage.output_tokens > simulator.journal[1].output_tokens

    async def test_others_wait_in_order(self, virtual_time: VirtualTime) -> None:
        """Ten at once are answered one after the other, as they came."""
        simulator = Simulator(latency_s=1)
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL)
            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(chat.send, f"Q{number}")
                    await anyio.sleep(0.01)
        assert [text for role, text in said(chat) if role == "user"] == [f"Q{number}" for number in range(10)]
        assert virtual_time.now() == pytest.approx(10, abs=0.1)

    async def test_a_deadline_holds_for_the_whole_answer(self, virtual_time: VirtualTime) -> None:
        """The wait for one's turn, and an answer that is longer in coming; the history stays as it was."""
        simulator = Simulator(latency_s=1, tokens_per_s=10, output_tokens=300)
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL)
            with penstock.deadline(5), pytest.raises(anthropic.APITimeoutError) as raised:
                await chat.send("Hello")
            assert "deadline" in raised.value.__notes__[0]
            assert virtual_time.now() == pytest.approx(5, abs=0.1)
            assert (chat.messages, chat.usage.estimated, simulator.in_flight) == ([], True, 0)
            async with anyio.create_task_group() as group:
                group.start_soon(chat.send, "First")
                await anyio.sleep(0.1)
                with penstock.deadline(5), pytest.raises(anthropic.APITimeoutError):
                    await chat.send("Second")
                assert virtual_time.now() == pytest.approx(10.1, abs=0.1)
                with penstock.deadline(5), pytest.raises(anthropic.APITimeoutError):
                    async with chat.stream("Third"):
                        pass
                assert virtual_time.now() == pytest.approx(15.1, abs=0.1)
            assert len(chat.messages) == 2
            with penstock.deadline(5):
                async with chat.stream("Fourth") as stream:
                    await stream.until_done()
            assert len(chat.messages) == 4

    async def test_what_is_asked_does_not_change_while_it_waits(self, virtual_time: VirtualTime) -> None:
        """Whoever waits for his turn asks what he asked."""
        simulator = Simulator(latency_s=1)
        question = [{"type": "text", "text": "Q"}]
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL)
            stream = chat.stream(question)
            async with anyio.create_task_group() as group:
                group.start_soon(chat.send, "First")
                await anyio.sleep(0.1)
                group.start_soon(chat.send, question)
                await anyio.sleep(0.1)
                question[0]["text"] = "changed"
            async with stream as answer:
                await answer.until_done()
        assert [text for role, text in said(chat) if role == "user"] == ["First", "Q", "Q"]
        assert virtual_time.now() == pytest.approx(3, abs=0.1)

    async def test_images_and_documents_stand_before_the_question(self, simulator: Simulator) -> None:
        """As `penstock.image` and `penstock.document` make them."""
        document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL)
            await chat.send("Look at this", images=[IMAGE], documents=[document])
        content = bodies(simulator)[0]["messages"][0]["content"]
        assert [block["type"] for block in content] == ["document", "image", "text"]

    async def test_a_history_can_be_brought_along(self, simulator: Simulator) -> None:
        """One that ends with a question is answered without another one."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, messages=[{"role": "user", "content": "Hello"}])
            reply = await chat.send()
            assert reply.text == "Summary: Hello"
            with pytest.raises(InvalidHistory, match="content: is empty"):
                await chat.send()

    async def test_max_tokens_of_one_reply(self, simulator: Simulator) -> None:
        """Each task may have its own; the session's holds elsewhere."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, max_tokens=50_000)
            await chat.send("Hello", max_tokens=17)
            await chat.send("Hello")
            for bad in (0, -1, 5.5, True, "5"):
                with pytest.raises(ValueError, match="max_tokens must be a whole number"):
                    await chat.send("Hello", max_tokens=bad)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="'retry', not 'again'"):
                await chat.send("Hello", on_truncation="again")  # type: ignore[arg-type]
        assert [body["max_tokens"] for body in bodies(simulator)] == [17, 50_000]

    async def test_a_cut_answer_can_be_retried_or_continued(self, simulator: Simulator) -> None:
        """By the conversation's choice, or this send's."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, max_tokens=10, on_truncation="retry")
            simulator.reply("cut", stop_reason="max_tokens")
            retried = await chat.send("One")
            simulator.reply("first, ", stop_reason="max_tokens")
            simulator.reply("second")
            continued = await chat.send("Two", on_truncation="continue")
            simulator.reply("cut", stop_reason="max_tokens")
            returned = await chat.send("Three", on_truncation="return")
        assert (retried.text, retried.requests) == ("Summary: One", 2)
        assert (continued.text, continued.requests, continued.truncated) == ("first, second", 2, False)
        assert (returned.text, returned.truncated) == ("cut", True)
        assert [body["max_tokens"] for body in bodies(simulator)] == [10, 20, 10, 10, 10]
        assert len(chat.messages) == 8

    async def test_a_pause_goes_on_by_itself(self, simulator: Simulator) -> None:
        """The search of the server is joined with what follows it."""
        simulator.reply([THOUGHT, SEARCH], stop_reason="pause_turn")
        simulator.reply([THOUGHT, {"type": "text", "text": "Found."}])
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL)
            reply = await chat.send("Search")
            await chat.send("More")
        assert reply.text == "Found."
        assert bodies(simulator)[1]["messages"][-1]["role"] == "assistant"
        assert len(chat.messages) == 4

    async def test_a_pause_that_lasts_is_left_to_the_caller(self, simulator: Simulator) -> None:
        """Nothing else can be asked until it has gone on."""
        simulator.reply(SEARCH, stop_reason="pause_turn", times=11)
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL)
            assert (await chat.send("Search")).stop_reason == "pause_turn"
            chat = Conversation.from_json(chat.to_json(), sdk)
            with pytest.raises(InvalidHistory, match=r"without content lets it go on"):
                await chat.send("More")
            with pytest.raises(InvalidHistory, match="an answer that is done"):
                chat.add_system_turn("x")
            simulator.reply("Found.")
            assert (await chat.send()).text == "Found."
        assert len(chat.messages) == 2


class TestTools:
    async def test_calls_are_answered_by_the_next_send(self, simulator: Simulator) -> None:
        """All of them, in one message, in any order; thinking goes back as it came."""
        simulator.reply([THOUGHT, CALL, CALL])
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, tools=[TOOL], thinking={"type": "adaptive"})
            reply = await chat.send("Weather?")
            first, second = reply.tool_calls
            assert list(chat.pending_tool_calls) == [first.id, second.id]
            result = {"type": "tool_result", "tool_use_id": first.id, "content": "sunny"}
            for bad in ("Go on", [result]):
                with pytest.raises(InvalidHistory, match="are not answered"):
                    await chat.send(bad)
            with pytest.raises(InvalidHistory, match="no tool call"):
                await chat.send([result, {**result, "tool_use_id": "toolu_x"}, {**result, "tool_use_id": second.id}])
            await chat.send([{**result, "tool_use_id": second.id}, result])
            assert not chat.pending_tool_calls
        sent = bodies(simulator)[1]["messages"][1]["content"]
        assert [block["type"] for block in sent] == ["thinking", "tool_use", "tool_use"]
        assert sent[1]["input"] == {"city": "Rome", "at": None}
        assert bodies(simulator)[1]["tools"] == [TOOL]

    async def test_results_without_calls_are_refused(self, simulator: Simulator) -> None:
        """Before anything is sent."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL)
            with pytest.raises(InvalidHistory, match="no tool call"):
                await chat.send([{"type": "tool_result", "tool_use_id": "toolu_1"}])
        assert not simulator.journal


class TestBudgets:
    async def test_a_budget_of_tokens_holds(self, simulator: Simulator) -> None:
        """Answers get shorter at its end, and then nothing is sent any more."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, token_budget=5_000, max_tokens=2_000)
            with pytest.raises(BudgetExceeded) as raised:
                await send_often(chat, "Hello " * 50)
        sent = bodies(simulator)
        assert sent[0]["max_tokens"] == 2_000
        assert sent[-1]["max_tokens"] < 2_000
        assert raised.value.spent_tokens == chat.spent_tokens
        assert chat.spent_tokens <= 5_000
        assert (raised.value.needed_tokens or 0) + chat.spent_tokens > 5_000
        assert len(chat.messages) == 2 * len(sent)

    async def test_a_budget_of_money_holds(self, simulator: Simulator) -> None:
        """In USD."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, cost_budget_usd=0.05, max_tokens=2_000)
            with pytest.raises(BudgetExceeded) as raised:
                await send_often(chat, "Hello " * 500)
        assert raised.value.spent_usd == chat.cost_usd
        assert Decimal("0.02") < chat.cost_usd <= Decimal("0.05")

    async def test_what_a_user_profile_pays_for_is_in_no_budget(self, simulator: Simulator) -> None:
        """It costs what it costs, and somebody else pays."""
        theirs: dict[str, Any] = {
            "billing_policy": {"type": "billing_policy", "bill_to": "user_profile"},
            "user_profile_id": "uprof_1",
            "betas": ["user-profiles-2026-03-24"],
        }
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, cost_budget_usd=0.000_001, max_tokens=2_000, **theirs)
            await chat.send("Hello")
            assert chat.cost_usd > Decimal("0.000001")

    async def test_what_is_there_is_returned_when_the_budget_ends(self, simulator: Simulator) -> None:
        """A retry or continuation that can't be paid ends the reply; what came is paid for."""
        simulator.reply("cut", stop_reason="max_tokens", times=2, usage={"output_tokens": 900})
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, token_budget=1_000, max_tokens=900, on_truncation="retry")
            reply = await chat.send("Hello")
            assert (reply.text, reply.truncated, reply.requests) == ("cut", True, 1)
            assert len(chat.messages) == 2

    async def test_thinking_that_is_asked_for_needs_its_tokens(self, simulator: Simulator) -> None:
        """`max_tokens` is never lowered to what leaves no window for an answer after it."""
        thinking: ThinkingConfigEnabledParam = {"type": "enabled", "budget_tokens": 1024}
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model="claude-haiku-4-5", token_budget=1_300, max_tokens=2_000, thinking=thinking)
            await chat.send("x")
            with pytest.raises(BudgetExceeded):
                await chat.send("Hello " * 20)
        assert 1280 <= bodies(simulator)[0]["max_tokens"] < 1300

    async def test_what_a_cancelled_send_has_used_counts(self, virtual_time: VirtualTime) -> None:
        """As far as it is known: input, and the output that came."""
        simulator = Simulator(tokens_per_s=10, output_tokens=100)
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL)
            with anyio.move_on_after(5):
                await chat.send("Hello")
            assert chat.messages == []
            assert chat.usage.estimated
            assert chat.usage.input_tokens == simulator.journal[0].input_tokens
            assert 20 < chat.usage.output_tokens <= 80

    async def test_a_price_that_is_not_known_is_an_error_only_where_it_matters(self, simulator: Simulator) -> None:
        """Without a budget in USD, nothing needs it until it is asked for."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model="claude-mythos-preview")
            with pytest.warns(DeprecationWarning, match="mythos-preview"):
                reply = await chat.send("Hello")
            for priced in (reply, Conversation.from_json(chat.to_json(), sdk)):
                with pytest.raises(UnknownPrice):
                    _ = priced.cost_usd


class TestSystemPrompt:
    async def test_it_is_cached_and_in_the_labels(self, simulator: Simulator, tmp_path: Path) -> None:
        """Name, version and hash go into the log; a session label of the caller's stays."""
        path = tmp_path / "support.v3.md"
        path.write_text("You are terse.")
        prompt = SystemPrompt.from_file(path)
        events: list[Any] = []
        async with Client(sdk=simulator.client(), log=False, observers=[events.append]) as claude:
            chat = claude.conversation(model=MODEL, system=prompt, id="s1")
            await chat.send("Hello")
            with penstock.labels(session="mine", user="u1"):
                async with chat.stream("Hello") as stream:
                    await stream.until_done()
        labels = [dict(event.labels) for event in events if type(event).__name__ == "CallEnded"]
        told = {"system_prompt": "support.v3", "system_prompt_hash": prompt.hash}
        assert labels == [{"session": "s1", **told}, {"session": "mine", "user": "u1", **told}]
        assert bodies(simulator)[0]["system"] == [
            {"type": "text", "text": "You are terse.", "cache_control": {"type": "ephemeral"}}
        ]

    async def test_a_system_turn_speaks_from_here_on(self, simulator: Simulator) -> None:
        """Where the model takes one; the prompt stays as it is."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, system="You are terse.")
            with pytest.raises(InvalidHistory, match="can only follow an answer"):
                chat.add_system_turn("Answer in French.")
            simulator.reply([])
            await chat.send("Hello")
            with pytest.raises(InvalidHistory, match="can only follow an answer"):
                chat.add_system_turn("Answer in French.")
            await chat.send()
            chat.add_system_turn("Answer in French.")
            await chat.send("Bonjour")
            with pytest.raises(ValueError, match="not empty"):
                chat.add_system_turn(" ")
            simulator.reply(CALL)
            await chat.send("Weather?")
            with pytest.raises(InvalidHistory, match="can only follow"):
                chat.add_system_turn("x")
            other = Conversation(sdk, model="claude-sonnet-5")
            with pytest.raises(ValueError, match="takes no system turns"):
                other.add_system_turn("x")
            with pytest.raises(ValueError, match="takes no system turns"):
                Conversation(sdk, model="claude-sonnet-5", messages=chat.messages[:4])
        assert [role for role, _ in said(chat)][:5] == ["user", "assistant", "system", "user", "assistant"]
        assert Conversation(sdk, model=MODEL, messages=chat.messages[:4]).messages == chat.messages[:4]

    async def test_no_system_turn_while_an_answer_is_under_way(self, simulator: Simulator) -> None:
        """It would stand in the middle of it."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL)
            async with chat.stream("Hello") as stream:
                with pytest.raises(RuntimeError, match="under way"):
                    chat.add_system_turn("x")
                await stream.until_done()


class TestCopies:
    async def test_a_fork_goes_on_by_itself(self, simulator: Simulator) -> None:
        """With the same beginning and what was spent so far."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, system="You are terse.", token_budget=2_000, tools=[TOOL])
            await chat.send("Hello")
            fork = chat.fork(id="f1")
            assert (fork.id, fork.spent_tokens, fork.messages) == ("f1", chat.spent_tokens, chat.messages)
            assert fork.statistics() == chat.statistics()
            await fork.send("On")
            assert (len(fork.messages), len(chat.messages)) == (4, 2)
            assert fork.spent_tokens > chat.spent_tokens
            assert chat.fork().id != chat.id

    async def test_what_was_saved_goes_on(self, simulator: Simulator) -> None:
        """The same requests come of it, to the byte; saving changes nothing."""
        simulator.reply([THOUGHT, {**CALL, "input": {"z": 1, "a": {"y": None, "b": 2}}}])
        async with simulator.client() as sdk:
            prompt = SystemPrompt("You are terse.", name="support", version="v3")
            chat = Conversation(
                sdk, model=MODEL, system=prompt, tools=[TOOL], thinking={"type": "adaptive"}, token_budget=90_000
            )
            await chat.send("Hello", images=[IMAGE], pin=True)
            text = chat.to_json()
            assert chat.to_json() == text
            again = Conversation.from_json(text, sdk, system="You are terse.")
            assert again.to_json() == text
            assert (again.id, again.model, again.system, again.options) == (chat.id, MODEL, prompt, chat.options)
            assert again.statistics() == chat.statistics()
            assert again.cost_usd == chat.cost_usd
            for one in (chat, again):
                results = [{"type": "tool_result", "tool_use_id": call} for call in one.pending_tool_calls]
                await one.send(results)
        _, first, second = bodies(simulator)
        assert json.dumps(first) == json.dumps(second)

    async def test_another_system_prompt_is_noticed(self, simulator: Simulator) -> None:
        """A conversation never goes on under another one."""
        async with simulator.client() as sdk:
            text = Conversation(sdk, model=MODEL, system=SystemPrompt("a", name="x", version="v1")).to_json()
            with pytest.raises(SystemPromptChanged) as raised:
                Conversation.from_json(text, sdk, system=SystemPrompt("b", name="x", version="v2"))
        assert raised.value.expected.startswith("x.v1 (")
        assert raised.value.found.startswith("x.v2 (")

    async def test_what_may_be_secret_is_not_saved(self, simulator: Simulator) -> None:
        """It is used, and given again."""
        async with simulator.client() as sdk:
            secret = {"x-secret": "s3cret"}
            chat = Conversation(sdk, model=MODEL, extra_headers=secret, metadata={"user_id": "u1"})
            secret.clear()
            await chat.send("Hello")
            assert "s3cret" not in chat.to_json()
            again = Conversation.from_json(chat.to_json(), sdk, extra_headers={"x-secret": "s3cret"})
            await again.send("Hello")
            with pytest.raises(TypeError, match="metadat: neither an option"):
                Conversation.from_json(chat.to_json(), sdk, metadat={})  # type: ignore[call-arg]
        assert [entry.headers["x-secret"] for entry in simulator.journal] == ["s3cret"] * 2
        assert [body["metadata"] for body in bodies(simulator)] == [{"user_id": "u1"}] * 2

    async def test_a_saved_size_that_cannot_be_is_forgotten(self, simulator: Simulator) -> None:
        """It is measured again."""
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL)
            await chat.send("Hello")
            given = json.loads(chat.to_json())
            given["window"]["turns"] = 99
            again = Conversation.from_json(json.dumps(given), sdk)
            assert 0 < again.statistics().context_tokens < 100

    async def test_what_it_shows_can_be_changed_without_harm(self, simulator: Simulator) -> None:
        """What comes in is copied too."""
        content = [{"type": "text", "text": "Hello"}]
        tools = [copy.deepcopy(TOOL)]
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, tools=tools)
            await chat.send(content)
            content[0]["text"] = "x"
            tools[0]["name"] = "x"
            shown: Any = chat.messages
            shown[0]["content"][0]["text"] = "x"
            assert said(chat)[0] == ("user", "Hello")
            assert bodies(simulator)[0]["tools"] == [TOOL]


class TestMaking:
    async def test_the_client_fills_in_its_settings(self, simulator: Simulator) -> None:
        """What is given to the conversation wins."""
        fields: dict[str, Any] = {"model": MODEL, "max_tokens": 99, "system": "You are terse.", "token_budget": 2_000}
        async with Client(sdk=simulator.client(), log=False, **fields) as claude:
            chat = claude.conversation()
            assert chat.options.max_tokens == 99
            assert chat.options.token_budget == 2_000
            assert (chat.model, chat.system) == (MODEL, SystemPrompt("You are terse."))
            other = claude.conversation(
                model="claude-opus-5-5", max_tokens=5, system="x", token_budget=3_000, overflow="summary"
            )
            assert (other.model, other.options.max_tokens, other.options.token_budget) == ("claude-opus-5-5", 5, 3_000)
            assert (await chat.send("Hello")).text == "Summary: Hello"
            assert Conversation.from_json(chat.to_json(), claude).messages == chat.messages

    async def test_a_conversation_needs_a_model(self, simulator: Simulator) -> None:
        """It is told where to say so."""
        async with Client(sdk=simulator.client(), log=False) as claude:
            with pytest.raises(ValueError, match="needs a model"):
                claude.conversation()

    async def test_what_is_no_client_is_refused(self) -> None:
        """At once."""
        with pytest.raises(TypeError, match="needs a Client or an AsyncAnthropic, not str"):
            Conversation("sk-…", model=MODEL)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="not Anthropic"):
            Conversation(anthropic.Anthropic(api_key="x"), model=MODEL)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("options", "error", "said"),
        [
            ({"model": ""}, ValueError, "model"),
            ({"max_tokens": 0}, ValueError, "max_tokens"),
            ({"token_budget": 999}, ValueError, "token_budget"),
            ({"cost_budget_usd": 0}, ValueError, "cost_budget_usd"),
            ({"cost_budget_usd": float("inf")}, ValueError, "cost_budget_usd"),
            ({"trim_at": 0.99}, ValueError, "trim_at"),
            ({"trim_at": 0.3}, ValueError, "must be below"),
            ({"window_tokens": 10}, ValueError, "window_tokens"),
            ({"overflow": "forget"}, ValueError, "overflow"),
            ({"cache_ttl": "1d"}, ValueError, "cache_ttl"),
            ({"system": ""}, ValueError, "not empty"),
            ({"messages": [{"role": "tool"}]}, InvalidHistory, "messages.0"),
            ({"stream": True}, TypeError, "stream can't be given"),
            ({"token_bugdet": 5}, TypeError, "token_bugdet: neither an option"),
            ({"temperature": 0.5}, TypeError, "temperature: neither an option"),
            ({"cost_budget_usd": "much"}, ValueError, "cost_budget_usd"),
            ({"id": ""}, TypeError, "the id of a conversation"),
            ({"id": 7}, TypeError, "the id of a conversation"),
            ({"tools": [{"input_schema": object}]}, InvalidHistory, "tools.0.input_schema"),
            ({"metadata": {"user_id": object()}}, InvalidHistory, "params.metadata.user_id"),
        ],
    )
    async def test_a_bad_option_is_refused(
        self, simulator: Simulator, options: Any, error: type[Exception], said: str
    ) -> None:
        """When it is made, naming it."""
        async with simulator.client() as sdk:
            with pytest.raises(error, match=said):
                Conversation(sdk, **{"model": MODEL, **options})

    async def test_it_shows_what_it_is_and_no_content(self, simulator: Simulator) -> None:
        """In `repr`, its own and that of its parts."""
        async with simulator.client() as sdk:
            chat = Conversation(
                sdk, model=MODEL, id="s1", system="You are terse.", messages=[{"role": "user", "content": "Hello"}]
            )
            assert repr(chat) == "<Conversation s1, claude-sonnet-5-5, 1 turns, 0 tokens>"
            session = chat._session
            for part in (session, session.requests, session.window, session.requests.spending):
                assert "Hello" not in repr(part)
                assert "terse" not in repr(part)
