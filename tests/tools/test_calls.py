from __future__ import annotations

import asyncio
import functools
import sys
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import anyio.from_thread
import pytest

from penstock import Allow, Answer, Deny, ToolCall, ToolError, tool
from penstock.tools import ToolDenied, ToolEvent, ToolFinished, ToolOptions, Tools, ToolStarted
from penstock.tools.calls import Calls
from penstock.tools.state import LoopState

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

REQUEST: ContextVar[str] = ContextVar("request", default="none")


def use(name: str, **given: Any) -> dict[str, Any]:
    """A call of a tool."""
    return {"type": "tool_use", "name": name, "input": given}


class Turn:
    """One turn of calls: what was told, and how each was answered."""

    def __init__(self, tools: list[Any], *uses: dict[str, Any], approve: Any = None, **options: Any) -> None:
        blocks = [{**block, "id": f"toolu_{place}"} for place, block in enumerate(uses)]
        messages: Any = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": blocks}]
        chosen = ToolOptions(**options)
        registry = Tools(tools)
        self.state = LoopState(messages, registry, chosen)
        self.events: list[ToolEvent] = []
        self.calls = Calls(registry, chosen, approve=approve, emit=self.events.append)

    async def run(self) -> list[Any]:
        """Run them; gives the content of each result, marked if it failed."""
        await self.calls.run(self.state.transcript.unanswered, self.state)
        return self.results()

    def results(self) -> list[Any]:
        """What stands in the transcript."""
        content: Any = self.state.transcript.valid[-1]["content"]
        return [("error", block["content"]) if block.get("is_error") else block.get("content") for block in content]


async def one(fn: Any, approve: Any = None, result: Any = None, /, **options: Any) -> Any:
    """How a single call of a tool without arguments is answered."""
    given = fn if result is None else tool(fn, result=result)
    name = getattr(fn, "name", None) or fn.__name__
    return (await Turn([given], use(name), approve=approve, **options).run())[0]


async def give() -> str:
    """Give something."""
    return "given"


async def hang() -> None:
    """Never end."""
    await anyio.sleep_forever()


class TestAtOnce:
    async def test_all_calls_of_a_turn_run_at_the_same_time(self, virtual_time: VirtualTime) -> None:
        """Four tools of half a second take half a second; results keep the order of the calls."""

        async def wait(seconds: float) -> float:
            await anyio.sleep(seconds)
            return seconds

        turn = Turn([wait], *[use("wait", seconds=seconds) for seconds in (0.5, 0.4, 0.3, 0.5)])
        assert await turn.run() == ["0.5", "0.4", "0.3", "0.5"]
        assert virtual_time.now() < 0.51
        finished = [event for event in turn.events if isinstance(event, ToolFinished)]
        assert [event.id for event in finished] == ["toolu_2", "toolu_1", "toolu_0", "toolu_3"]
        assert [round(event.seconds, 2) for event in finished] == [0.3, 0.4, 0.5, 0.5]

    async def test_no_more_than_allowed(self, virtual_time: VirtualTime) -> None:
        """The others wait, and their time-out does not run meanwhile."""
        running, most = 0, 0

        async def count() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await anyio.sleep(1)
            running -= 1

        turn = Turn([count], *[use("count")] * 9, max_parallel_tools=2, tool_timeout_s=1.5)
        assert await turn.run() == [None] * 9
        assert most == 2
        assert 5 <= virtual_time.now() < 5.1

    async def test_sync_functions_run_in_threads_with_the_callers_context(self) -> None:
        """They run at the same time, and don't block the loop."""
        together = threading.Barrier(2, timeout=10)

        def meet() -> str:
            together.wait()
            return f"{REQUEST.get()} {threading.current_thread() is threading.main_thread()}"

        REQUEST.set("r1")
        assert await Turn([meet], use("meet"), use("meet")).run() == ["r1 False"] * 2

    async def test_a_wrapped_async_function_is_awaited(self) -> None:
        """A decorator that hides what it wraps makes no difference."""

        @functools.wraps(give)
        def wrapped() -> Any:
            return give()

        assert not tool(wrapped).is_async
        assert await one(wrapped) == "given"

    async def test_what_a_tool_sets_stays_its_own(self) -> None:
        """Each runs in a context of its own."""

        async def change() -> str:
            before = REQUEST.get()
            REQUEST.set("changed")
            return before

        REQUEST.set("r1")
        assert await Turn([change], use("change"), use("change")).run() == ["r1", "r1"]
        assert REQUEST.get() == "r1"


class TestAnswers:
    async def test_every_call_is_told_of_once(self) -> None:
        """As started, unless it can't run, and as finished."""
        turn = Turn([give], use("give"), use("unheard_of"), use("give", x=1))
        assert await turn.run() == [
            "given",
            ("error", "there is no tool named 'unheard_of'"),
            ("error", "invalid arguments: x: Unexpected keyword argument"),
        ]
        started = [event.id for event in turn.events if isinstance(event, ToolStarted)]
        finished = [event.id for event in turn.events if isinstance(event, ToolFinished)]
        assert (started, sorted(finished)) == (["toolu_0"], ["toolu_0", "toolu_1", "toolu_2"])
        assert turn.state.tool_calls == 3
        assert repr(turn.calls) == "<Calls of <Tools give>>"

    async def test_a_tool_that_hangs_is_stopped(self, virtual_time: VirtualTime) -> None:
        """After the loop's time, or its own; the others are not disturbed."""
        mine = tool(hang, name="mine", timeout_s=90)
        turn = Turn([hang, give, mine], use("hang"), use("give"), use("mine"))
        assert await turn.run() == [
            ("error", "the tool took longer than 60 s and was stopped"),
            "given",
            ("error", "the tool took longer than 90 s and was stopped"),
        ]
        assert 90 <= virtual_time.now() < 91

    async def test_without_a_time_a_tool_may_take_any(self, virtual_time: VirtualTime) -> None:
        """An hour, if that is what it takes."""

        async def work() -> str:
            await anyio.sleep(3600)
            return "done"

        assert await one(work, tool_timeout_s=None) == "done"

    async def test_a_thread_that_hangs_is_left_behind(self) -> None:
        """It can't be stopped; the call ends in time all the same, and the next one finds a thread."""
        release = threading.Event()
        try:
            stopped = await one(_waiting(release), tool_timeout_s=0.02)
            assert stopped == ("error", "the tool took longer than 0.02 s and was stopped")
        finally:
            release.set()

    async def test_a_call_that_is_cancelled_by_itself_is_answered_and_disturbs_no_other(self) -> None:
        """A cancellation that nobody here asked for, of a tool or of the hook, is a failure like any other."""

        async def cancelled() -> None:
            raise asyncio.CancelledError

        async def cancels_itself() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await anyio.sleep(1)

        def cancelled_sync() -> None:
            raise asyncio.CancelledError

        async def slow() -> str:
            await anyio.sleep(0.02)
            return "done"

        async def approve(call: ToolCall) -> bool:
            if call.name == "give":
                raise asyncio.CancelledError
            return True

        uses = [use(name) for name in ("cancelled", "cancels_itself", "cancelled_sync", "give", "slow")]
        turn = Turn([cancelled, cancels_itself, cancelled_sync, give, slow], *uses, approve=approve)
        assert await turn.run() == [*[("error", "the call was cancelled")] * 4, "done"]
        assert sum(isinstance(event, ToolFinished) for event in turn.events) == 5

    async def test_a_sync_tool_does_not_end_the_program(self) -> None:
        """In a thread, `sys.exit()` ends nothing but the thread."""

        def leave() -> None:
            sys.exit(2)

        assert await one(leave) == ("error", "the tool called sys.exit(2)")

    async def test_an_awaitable_result_is_awaited(self) -> None:
        """Of a sync function that wraps an async one, and of an async one that returns what it should have awaited."""

        def wrapped() -> Any:
            return give()

        async def forgetful() -> Any:
            return give()

        assert [await one(wrapped), await one(forgetful)] == ["given", "given"]

    async def test_results_are_validated_where_a_type_is_given(self) -> None:
        """What a tool must not return never reaches the model."""
        assert await one(give, None, int) == (
            "error",
            (
                "the tool returned what it should not: Input should be a valid integer, unable to parse string as an "
                "integer"
            ),
        )
        assert await one(give, None, str) == "given"

    async def test_results_are_cut(self) -> None:
        """Fifty megabytes are no answer."""

        async def large() -> str:
            return "x" * 50_000_000

        def large_sync() -> bytes:
            return b"x" * 50_000_000

        assert len(await one(large)) < 100_100
        assert (await one(large_sync))[0] == "error"

    async def test_tools_of_the_sdk_run_as_they_are(self) -> None:
        """Async ones here, sync ones in threads."""

        @anthropic.beta_tool
        def add(a: int, b: int) -> str:
            return str(a + b)

        @anthropic.beta_async_tool
        async def look() -> Any:
            return [{"type": "text", "text": "seen"}]

        turn = Turn([add, look], use("add", a=1, b=2), use("add", a=1), use("look"))
        assert await turn.run() == [
            "3",
            ("error", "invalid arguments: b: Missing required argument"),
            [{"type": "text", "text": "seen"}],
        ]


def _waiting(release: threading.Event) -> Any:
    def wait() -> None:
        release.wait(10)

    return wait


class Failing:
    """A tool that fails a few times, or always."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.called = 0

    async def act(self, items: list[int]) -> str:
        """Change what it was given, and fail."""
        self.called += 1
        assert items == [1]
        items.append(2)
        if self.errors:
            raise self.errors.pop(0)
        return "done"


class TestRetries:
    async def test_a_tool_that_is_safe_is_called_again(self, virtual_time: VirtualTime) -> None:
        """Twice more, after a short wait, each time with what the model gave."""
        failing = Failing(OSError("one"), OSError("two"))
        assert await Turn([tool(failing.act, safe_to_retry=True)], use("act", items=[1])).run() == ["done"]
        assert failing.called == 3
        assert 0.3 <= virtual_time.now() < 0.31

    async def test_its_last_failure_is_told(self, virtual_time: VirtualTime) -> None:
        """Three attempts are enough."""
        failing = Failing(*[OSError(str(number)) for number in range(9)])
        turn = Turn([tool(failing.act, safe_to_retry=True)], use("act", items=[1]))
        assert await turn.run() == [("error", "OSError: 2")]

    async def test_each_attempt_gets_what_the_model_gave(self, virtual_time: VirtualTime) -> None:
        """Also where nothing copies it on the way."""
        seen: list[Any] = []

        async def change(data: Any) -> None:
            seen.append(list(data))
            data.append(2)
            raise OSError

        turn = Turn([tool(change, safe_to_retry=True)], use("change", data=[1]))
        await turn.run()
        assert seen == [[1], [1], [1]]
        assert isinstance(turn.events[0], ToolStarted)
        assert turn.events[0].input == {"data": [1]}

    async def test_others_are_called_once(self) -> None:
        """What has been done can't be undone."""
        failing = Failing(OSError("one"))
        assert await Turn([failing.act], use("act", items=[1])).run() == [("error", "OSError: one")]
        assert failing.called == 1

    async def test_what_a_tool_says_itself_is_no_reason_to_try_again(self) -> None:
        """A `ToolError` is an answer."""
        failing = Failing(ToolError("there is none"))
        turn = Turn([tool(failing.act, safe_to_retry=True)], use("act", items=[1]))
        assert await turn.run() == [("error", "there is none")]
        assert failing.called == 1

    async def test_all_attempts_together_have_the_tools_time(self, virtual_time: VirtualTime) -> None:
        """A time-out ends them."""
        turn = Turn([tool(hang, safe_to_retry=True, timeout_s=2)], use("hang"))
        assert (await turn.run())[0][0] == "error"
        assert virtual_time.now() < 2.01


class TestApproval:
    @pytest.mark.parametrize(
        ("decision", "answer"),
        [
            (True, "got 1"),
            (Allow(), "got 1"),
            (Allow({"number": 2}), "got 2"),
            (Allow({"number": "x"}), ("error", "invalid arguments: number: Input should be a valid integer, unable")),
            (False, ("error", "Denied: The user does not allow this call.")),
            (Deny("not today"), ("error", "Denied: not today")),
            (Answer("by hand"), "by hand"),
            (Answer({"a": 1}), '{"a":1}'),
            (Answer("no such thing", is_error=True), ("error", "no such thing")),
            (Answer([{"type": "text", "text": "no"}], is_error=True), ("error", "no")),
            (Answer(b"bytes"), ("error", "the tool returned bytes")),
        ],
    )
    async def test_a_hook_allows_edits_denies_or_answers(self, decision: Any, answer: Any) -> None:
        """It is given the call; what was edited is validated like any input."""
        asked: list[ToolCall] = []

        async def approve(call: ToolCall) -> Any:
            asked.append(call)
            return decision

        async def get(number: int) -> str:
            return f"got {number}"

        turn = Turn([get], use("get", number=1), approve=approve)
        (given,) = await turn.run()
        if isinstance(answer, tuple):
            assert given[0] == "error"
            assert given[1].startswith(answer[1])
        else:
            assert given == answer
        assert [(call.name, call.input) for call in asked] == [("get", {"number": 1})]
        assert isinstance(turn.events[-1], ToolFinished | ToolDenied)
        assert turn.state.tool_calls == 1

    async def test_it_is_asked_about_all_calls_of_a_turn_at_once(self, virtual_time: VirtualTime) -> None:
        """A person's time is no tool's time; what was allowed runs meanwhile."""

        async def approve(call: ToolCall) -> bool:
            await anyio.sleep(100 if call.input["number"] else 0)
            return True

        async def get(number: int) -> int:
            return number

        turn = Turn([get], *[use("get", number=number) for number in (0, 1, 2)], approve=approve, tool_timeout_s=1)
        assert await turn.run() == ["0", "1", "2"]
        assert virtual_time.now() < 101

    async def test_it_is_not_asked_about_what_needs_none(self) -> None:
        """Nor about what can't run anyway."""

        async def approve(call: ToolCall) -> bool:
            raise NotImplementedError(call)

        free = tool(give, needs_approval=False)
        assert (await Turn([free], use("give"), use("give", x=1), use("unheard_of"), approve=approve).run())[
            0
        ] == "given"

    @pytest.mark.parametrize("decision", [None, "yes", 1])
    async def test_a_hook_that_returns_something_else_is_a_mistake(self, decision: Any) -> None:
        """Nothing is taken for a permission."""

        async def approve(call: ToolCall) -> Any:
            return decision

        with pytest.raises(
            TypeError, match=r"approve must return a bool, Allow, Deny, Answer or Later, not .* \(tool 'give'\)"
        ):
            await one(give, approve)

    async def test_a_hook_that_is_not_async_is_a_mistake(self) -> None:
        """Whatever it returns."""

        def approve(call: ToolCall) -> bool:
            return bool(call)

        with pytest.raises(TypeError, match="approve must be an async function that takes a ToolCall"):
            await one(give, approve)

    async def test_what_a_hook_raises_comes_out_as_it_is_and_stops_the_others(self) -> None:
        """Not in a group; the transcript says what had begun."""
        stopped = False

        async def approve(call: ToolCall) -> bool:
            if call.name == "give":
                await anyio.sleep(0.01)
                raise PermissionError("mine")
            return True

        async def busy() -> None:
            nonlocal stopped
            try:
                await anyio.sleep_forever()
            finally:
                stopped = True

        turn = Turn([give, busy], use("busy"), use("give"), approve=approve)
        with pytest.raises(PermissionError, match=r"^mine$") as caught:
            await turn.run()
        assert stopped
        assert caught.value.__context__ is None
        assert turn.results() == [
            ("error", "Interrupted: the tool had begun, and whether it has done its work is not known."),
            ("error", "Not run: the conversation was interrupted."),
        ]


class TestLeaving:
    async def test_cancelled_tools_leave_what_was_done(self, virtual_time: VirtualTime) -> None:
        """Finished calls keep their results."""
        turn = Turn([give, hang], use("give"), use("hang"))
        with anyio.move_on_after(1):
            await turn.run()
        assert turn.results()[0] == "given"
        assert turn.results()[1][1].startswith("Interrupted")

    async def test_a_sync_tool_may_come_back_to_the_loop(self) -> None:
        """Its thread belongs to this event loop."""

        def call_back() -> str:
            return anyio.from_thread.run(give)

        assert await one(call_back) == "given"
