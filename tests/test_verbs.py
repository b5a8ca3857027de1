from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from anthropic.resources import AsyncMessages
from anthropic.resources.beta import AsyncMessages as AsyncBetaMessages

from penstock import Client, ClientClosed
from penstock._core.params import ItemParams, MoreParams, RequestParams, StreamParams
from penstock.batch import FanOut, MessageBatches, ask_all
from penstock.conversation import Conversation
from penstock.conversation.functions import OF_LOOP
from penstock.conversation.options import ConversationParams
from penstock.streaming import stream
from penstock.tools import ToolLoop, ToolOptions, run_tools
from penstock.tools.params import BoundParams, LoopParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.simulator import Simulator

MODEL = "claude-haiku-5-5"
VERBS: dict[str, Callable[..., Any]] = {
    "batch": MessageBatches,
    "conversation": Conversation,
    "fan_out": FanOut,
    "map": ask_all,
    "run_tools": run_tools,
    "stream": stream,
    "tool_loop": ToolLoop,
}
each_verb = pytest.mark.parametrize(("name", "work"), VERBS.items())


def governed(simulator: Simulator, **settings: Any) -> Client:
    """A client of the simulator with settings of its own."""
    return Client(sdk=simulator.client(max_retries=0), log=False, **settings)


def asked(simulator: Simulator) -> list[tuple[str, int]]:
    """Which models were asked, for how many tokens."""
    return [(entry.body["model"], entry.body["max_tokens"]) for entry in simulator.journal if entry.body]


@each_verb
def test_a_verb_has_the_signature_of_what_does_its_work(name: str, work: Callable[..., Any]) -> None:
    """Names, kinds and annotations, `self` in the place of the SDK client; bound, nothing in its place."""
    verb = inspect.signature(getattr(Client, name))
    own, *others = verb.parameters.values()
    _, *theirs = inspect.signature(work).parameters.values()
    assert own.name == "self"
    assert [(one.name, one.kind, one.annotation) for one in others] == [
        (one.name, one.kind, one.annotation) for one in theirs
    ]
    bound = inspect.signature(getattr(Client(api_keys=["sk-ant-1"]), name))
    assert list(bound.parameters.values()) == others
    assert verb.return_annotation == bound.return_annotation
    assert verb.return_annotation == (
        work.__name__ if isinstance(work, type) else inspect.signature(work).return_annotation
    )


@each_verb
def test_a_verb_has_the_docstring_of_what_does_its_work(name: str, work: Callable[..., Any]) -> None:
    """All of it but the line about the SDK client; `help()` shows it under the verb's own name."""
    verb = getattr(Client, name)
    told, lines = (verb.__doc__ or "").splitlines(), (inspect.getdoc(work) or "").splitlines()
    (left_out,) = set(lines) - set(told)
    assert left_out.strip().startswith(("sdk: ", "client: ", "*args: "))
    assert [line for line in lines if line != left_out] == told
    assert (verb.__name__, verb.__qualname__) == (name, f"Client.{name}")
    assert pydoc.plain(pydoc.render_doc(verb)).startswith(f"Python Library Documentation: function {name}")
    methods = pydoc.plain(pydoc.render_doc(Client))
    assert re.search(rf"^ \|  (async )?{name}\(", methods, re.MULTILINE)


@each_verb
def test_a_verb_is_a_coroutine_function_where_its_work_is(name: str, work: Callable[..., Any]) -> None:
    """Frameworks ask before they call."""
    assert inspect.iscoroutinefunction(getattr(Client, name)) == inspect.iscoroutinefunction(work)


@pytest.mark.lengthy
def test_what_does_the_work_is_loaded_when_it_is_asked_for() -> None:
    """A client that only sends messages loads none of it."""
    script = (
        "import sys; from penstock import Client; Client(api_keys=['sk-ant-1'], log=False);"
        "print(sorted({'penstock.batch', 'penstock.conversation', 'penstock.tools'} & sys.modules.keys()));"
        "Client.fan_out; print('penstock.batch' in sys.modules, 'penstock.conversation' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert output == "[]\nTrue False\n"


@pytest.mark.parametrize("left_out", [{}, {"model": None}, {"model": anthropic.omit}])
async def test_what_a_caller_leaves_out_is_the_clients(simulator: Simulator, left_out: dict[str, Any]) -> None:
    """Not given, `None` and the SDK's `omit` are the same: the client's settings stand in."""
    settings = {"model": MODEL, "max_tokens": 77, "system": "Be terse.", "token_budget": 5_000}
    more = {name: next(iter(left_out.values())) for name in ("max_tokens", "max_iterations")} if left_out else {}
    async with governed(simulator, **settings, max_tool_iterations=3) as claude:
        chat = claude.conversation(**left_out, **more)
        await claude.map(["One?"], **left_out)
        run = await claude.run_tools("Hi", tools=[], **left_out, **more)
    assert (chat.model, chat.options.max_tokens, chat.options.token_budget) == (MODEL, 77, 5_000)
    assert str(chat.system and chat.system.text) == "Be terse."
    assert run.message.model == MODEL
    assert asked(simulator) == [(MODEL, 77), (MODEL, 77)]


async def test_what_a_caller_gives_is_taken(simulator: Simulator) -> None:
    """It wins over the client's settings, wherever it is given."""
    async with governed(simulator, model=MODEL, max_tokens=77, system="Be terse.") as claude:
        chat = claude.conversation(model="claude-opus-5-5", max_tokens=5, system="Be kind.")
        await claude.map(["One?"], model="claude-opus-5-5", max_tokens=6)
    assert (chat.model, chat.options.max_tokens) == ("claude-opus-5-5", 5)
    assert asked(simulator) == [("claude-opus-5-5", 6)]


@pytest.mark.parametrize("name", sorted(VERBS.keys() - {"conversation", "stream"}))
async def test_a_verb_that_runs_requests_wants_an_open_client(simulator: Simulator, name: str) -> None:
    """Before anything is made, so that nothing fails item by item."""
    arguments: tuple[Any, ...] = ("Hi",) if name in {"run_tools", "tool_loop"} else (["One?"],)
    params: dict[str, Any] = {"tools": []} if name in {"run_tools", "tool_loop"} else {}

    async def ask() -> None:
        made = getattr(governed(simulator, model=MODEL), name)(*arguments, **params)
        if inspect.isawaitable(made):
            await made

    with pytest.raises(ClientClosed):
        await ask()
    assert not simulator.journal


def test_what_sends_nothing_by_itself_may_be_made_before(simulator: Simulator) -> None:
    """A conversation and a stream find out with their first request."""
    claude = governed(simulator, model=MODEL)
    assert claude.conversation().model == MODEL
    assert "not entered" in repr(claude.stream(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "Hi"}]))


async def test_a_list_of_results_may_come_as_they_come(simulator: Simulator) -> None:
    """`map` is a fan-out, and takes all that one takes; it keeps the order unless told otherwise."""
    async with governed(simulator, model=MODEL) as claude:
        kept = await claude.map(["One?", "Two?", "Three?"])
        any_order = await claude.map(["One?", "Two?", "Three?"], order="completed")
    assert [result.custom_id for result in kept] == ["0", "1", "2"]
    assert {result.custom_id for result in any_order} == {"0", "1", "2"}


# What checkers are told of parameters


def keys(*kinds: Any) -> set[str]:
    """The names in TypedDicts."""
    return {name for kind in kinds for name in kind.__annotations__}


def of_sdk(*methods: Callable[..., Any]) -> set[str]:
    """What methods of the SDK take, but whether to stream."""
    return {name for method in methods for name in inspect.signature(method).parameters} - {"self", "stream"}


def test_a_stream_takes_whatever_the_sdks_streams_take() -> None:
    """Of `messages` and of `beta.messages`: each is known to checkers, and nothing else is."""
    theirs = of_sdk(AsyncMessages.stream, AsyncBetaMessages.stream)
    assert keys(StreamParams, RequestParams, MoreParams) == theirs


def test_a_run_takes_what_the_sdk_takes_for_each_request() -> None:
    """All but messages, which are the items'."""
    theirs = of_sdk(AsyncMessages.create, AsyncBetaMessages.create)
    assert keys(ItemParams, RequestParams, MoreParams) == theirs - {"messages"}


def test_a_loop_takes_its_options_and_what_the_sdk_takes() -> None:
    """All but messages, which are the prompt, and tools, which it asks for."""
    theirs = of_sdk(AsyncMessages.create, AsyncBetaMessages.create)
    options = set(ToolOptions.model_fields)
    assert keys(LoopParams, BoundParams, RequestParams, MoreParams) == options | theirs - {"messages", "tools"}


def test_a_conversation_takes_what_it_hands_on() -> None:
    """By name what it decides about; the rest as keywords, and no name twice."""
    handed_on = keys(ConversationParams, BoundParams, MoreParams)
    named = inspect.signature(Conversation).parameters.keys()
    theirs = of_sdk(AsyncMessages.create, AsyncBetaMessages.create)
    assert not handed_on & named
    # The cache is the conversation's own matter.
    assert handed_on == (theirs | OF_LOOP | {"stream_idle_timeout_s"}) - named - {"cache_control"}
