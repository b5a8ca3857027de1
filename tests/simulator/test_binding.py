from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from penstock.simulator import Simulator
from penstock.simulator.binding import check_thoughts, sign
from penstock.simulator.models import MODELS
from penstock.simulator.wire import ApiError

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
BINDING = {"claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5", "claude-fable-5-1", "claude-fable-5-2"}
TOOL: dict[str, Any] = {"name": "look", "input_schema": {"type": "object"}}
MARK: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}


def user(text: str) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": text}


def thought(text: str = "hm") -> dict[str, Any]:
    """A thinking block that is to be signed."""
    return {"type": "thinking", "thinking": text}


def answer(body: dict[str, Any], *blocks: dict[str, Any], model: str = MODEL) -> dict[str, Any]:
    """The assistant's message to a request, as the model would sign it."""
    content = list(blocks) or [thought(), {"type": "text", "text": "Well."}]
    sign(content, body, MODELS[model])
    return {"role": "assistant", "content": content}


def conversation(turns: int = 3, model: str = MODEL) -> dict[str, Any]:
    """A conversation of so many turns with thinking in each."""
    body: dict[str, Any] = {"system": "Be terse.", "tools": [TOOL], "messages": []}
    for turn in range(turns):
        body["messages"].append(user(f"Question {turn}"))
        body["messages"].append(answer(body, model=model))
    body["messages"].append(user("And?"))
    return body


def refusal(body: dict[str, Any], model: str = MODEL) -> str:
    """The message of the 400 that a request gets; empty where it is accepted."""
    try:
        check_thoughts(body, MODELS[model])
    except ApiError as error:
        return f"{error.message}" if (error.status, error.kind) == (400, "invalid_request_error") else f"{error!r}"
    return ""


def moved(at: str, what: str) -> str:
    """The API's words for a block in a conversation that isn't its own."""
    return (
        f"{at}: Invalid `signature` in `thinking` block. The block is bound to a different conversation. Remove the "
        'block, or set `thinking.block_binding.prefix_mismatch_behavior` to "drop_block". That setting requires the '
        f"`thinking-binding-controls-2026-08-01` value in the `anthropic-beta` header. {what}"
    )


MODIFIED = (
    "messages.5.content.0: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be "
    "modified. These blocks must remain as they were in the original response."
)
SYSTEM = "The `system` prompt differs from the one this block was created with."
TOOLS = "The `tools` list differs from the one this block was created with."
MESSAGES = "The `messages` before this block differ from those it was created with."
GAP = "The `thinking` block that preceded this one when it was created is missing from this request."


def test_an_unchanged_conversation_is_accepted() -> None:
    """However it is written down: marks, texts as blocks, null for absent."""
    body = conversation()
    assert refusal(body) == ""
    body["system"] = [{"type": "text", "text": "Be terse.", "citations": None, **MARK}]
    body["tools"] = [{**TOOL, **MARK}]
    body["messages"][2]["content"] = [{"type": "text", "text": "Question 1", **MARK}]
    assert refusal(body) == ""


def test_a_changed_prefix_is_refused_at_the_first_block_after_it() -> None:
    """The message says where, and what changed."""
    for fields, what in (
        ({"system": "Be verbose."}, SYSTEM),
        ({"system": None}, SYSTEM),
        ({"tools": [TOOL, {**TOOL, "name": "more"}]}, TOOLS),
        ({"tools": None}, TOOLS),
    ):
        assert refusal({**conversation(), **fields}) == moved("messages.1.content.0", what)
    for role, text in (("user", "Another question"), ("system", "Question 1")):
        body = conversation()
        body["messages"][2] = {"role": role, "content": text}
        assert refusal(body) == moved("messages.3.content.0", MESSAGES)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_only_some_models_bind_thinking(model: str) -> None:
    """The others let a conversation be trimmed."""
    body = conversation(model=model)
    del body["messages"][:2]
    assert bool(refusal(body, model)) == (model in BINDING)


def test_a_trimmed_history_needs_its_thinking_dropped() -> None:
    """Thinking that comes after what was cut is refused; without any thinking all is well."""
    body = conversation()
    del body["messages"][:2]
    assert refusal(body) == moved("messages.1.content.0", MESSAGES)
    for message in body["messages"]:
        if message["role"] == "assistant":
            message["content"] = [block for block in message["content"] if block["type"] != "thinking"]
    assert refusal(body) == ""


def without_thinking(body: dict[str, Any], *turns: int) -> dict[str, Any]:
    """The conversation without the thinking of these turns."""
    found = deepcopy(body)
    for turn in turns:
        del found["messages"][2 * turn + 1]["content"][0]
    return found


def test_thinking_may_be_dropped_from_either_end() -> None:
    """What stays must be a run: a gap is refused, and so is a block that is put back."""
    body = conversation(4)
    for turns in ((0,), (0, 1), (3,), (2, 3), (0, 3), (0, 1, 2, 3)):
        assert refusal(without_thinking(body, *turns)) == ""
    assert refusal(without_thinking(body, 1)) == moved("messages.5.content.0", GAP)
    back = without_thinking(body, 0, 1, 2, 3)
    back["messages"].append(answer(back))
    back["messages"][1]["content"].insert(0, body["messages"][1]["content"][0])
    assert refusal(back) == moved("messages.9.content.0", GAP)


def test_thinking_comes_back_as_it_was() -> None:
    """In the last turn of the assistant and before it, empty thinking included; each has its own words for it."""
    for model in (MODEL, "claude-opus-4-8"):
        body = conversation(model=model)
        for at, message in ((5, MODIFIED), (3, "messages.3.content.0: Invalid `signature` in `thinking` block")):
            changed = deepcopy(body)
            changed["messages"][at]["content"][0]["thinking"] = "oh"
            assert refusal(changed, model) == message


def test_signatures_of_others_pass() -> None:
    """Those that weren't made here, and those of other models, which can't read them."""
    body = conversation()
    body["messages"][1]["content"][0]["signature"] = "EqoBCkgIARABGAIiQL"
    body["system"] = "Other."
    assert refusal(without_thinking(body, 1, 2)) == ""
    assert refusal(body, "claude-opus-5-5") == ""


def test_thinking_between_calls_is_bound_to_what_was_said_before() -> None:
    """Also within one reply, and in a turn that is continued."""
    body: dict[str, Any] = {"messages": [user("Look")]}
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    turn = answer(body, thought("a"), {"type": "text", "text": "So"}, thought("b"), call)
    signatures = {block["signature"] for block in turn["content"] if block["type"] == "thinking"}
    assert len(signatures) == 2
    body["messages"] += [turn, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]
    body["messages"].append(answer(body))
    assert refusal(body) == ""
    body["messages"][1]["content"][1]["text"] = "Not so"
    assert refusal(body) == moved("messages.1.content.2", MESSAGES)


def test_a_compaction_starts_the_conversation_anew() -> None:
    """Nothing before it counts, sent or not; what follows is bound to it."""
    body = conversation()
    compaction = {"type": "compaction", "content": "They talked."}
    body["messages"].append(answer(body, dict(compaction), thought(), {"type": "text", "text": "Yes."}))
    body["messages"].append(user("Well?"))
    assert refusal(body) == ""
    body["messages"][0] = user("Changed")
    assert refusal(body) == ""
    body["messages"] = body["messages"][-2:]
    assert refusal(body) == ""
    body["messages"][0]["content"][0]["content"] = "They fought."
    assert refusal(body) == moved("messages.0.content.1", MESSAGES)
    failed = conversation()
    failed["messages"].append({"role": "assistant", "content": [{"type": "compaction", "content": None}]})
    failed["messages"][0] = user("Changed")
    assert refusal(failed) == moved("messages.1.content.0", MESSAGES)


def test_a_signature_that_is_there_stays() -> None:
    """A scripted block may bring its own."""
    content = [{**thought(), "signature": "mine"}, {"type": "redacted_thinking", "data": "x"}, thought("b")]
    body = conversation()
    sign(content, body, MODELS[MODEL])
    assert content[0]["signature"] == "mine"
    assert refusal({**body, "messages": [*body["messages"], {"role": "assistant", "content": content}]}) == ""


async def test_the_same_holds_over_the_wire(virtual_time: VirtualTime) -> None:
    """A reply that is sent back as it came is accepted, with a changed system prompt it isn't, nor counted."""
    fields: Any = {"model": MODEL, "max_tokens": 200, "thinking": {"type": "adaptive", "display": "summarized"}}
    messages: list[Any] = [user("Hello")]
    async with Simulator().client() as claude:
        for stream in (False, True):
            if stream:
                async with claude.messages.stream(**fields, messages=messages, system="Be terse.") as found:
                    message = await found.get_final_message()
            else:
                message = await claude.messages.create(**fields, messages=messages, system="Be terse.")
            assert [block.type for block in message.content] == ["thinking", "text"]
            messages += [{"role": "assistant", "content": message.content}, user("And?")]
        marked: Any = [{"type": "text", "text": "Be terse.", **MARK}]
        await claude.messages.create(**fields, messages=messages, system=marked)
        with pytest.raises(anthropic.BadRequestError, match=r"messages\.1\.content\.0: .* The `system` prompt differs"):
            await claude.messages.create(**fields, messages=messages, system="Be verbose.")
        with pytest.raises(anthropic.BadRequestError, match="different conversation"):
            await claude.messages.count_tokens(model=MODEL, messages=messages, system="Be verbose.")
