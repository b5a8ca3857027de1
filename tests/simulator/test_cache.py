from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.simulator import Simulator
from penstock.simulator.cache import PromptCache, Reading
from penstock.simulator.models import MODELS
from penstock.simulator.tokens import count_input

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

MARK: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}
HOUR: dict[str, Any] = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
MODEL = "claude-opus-4-8"


def text(tokens: int, letter: str = "x", **more: Any) -> dict[str, Any]:
    """A text block of so many tokens."""
    return {"type": "text", "text": letter * 4 * tokens, **more}


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": list(blocks)}


def talk(*blocks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A request whose user says these blocks."""
    return {"messages": [user(*blocks)], **fields}


def send(
    cache: PromptCache, body: dict[str, Any], now: float = 0.0, *, model: str = MODEL, organization: str = "org"
) -> Reading:
    """What reading a request took whose response began at once."""
    found = cache.read(body, MODELS[model], organization, tokens=count_input(body, MODELS[model]), now=now)
    cache.keep(found, now, now)
    cache.begun(found)
    return found


def split(reading: Reading) -> tuple[int, int, int]:
    """(read, written, the rest)."""
    written = reading.written_5m + reading.written_1h
    return reading.read, written, reading.tokens - reading.read - written


def test_a_marked_prefix_is_written_once_and_then_read() -> None:
    """`input_tokens` is what follows the mark; the fields add up to all input."""
    cache = PromptCache()
    body = talk(text(2000, **MARK), text(100, "y"))
    assert split(send(cache, body)) == (0, 2003, 100)
    assert split(send(cache, body)) == (2003, 0, 100)
    assert send(cache, body).usage() == {
        "input_tokens": 100,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 2003,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    }
    assert repr(cache) == "PromptCache(1 of at most 10000 entries)"


def test_without_a_mark_nothing_is_read_or_written() -> None:
    """Even where the prefix is cached."""
    cache = PromptCache()
    send(cache, talk(text(2000, **MARK)))
    assert split(send(cache, talk(text(2000)))) == (0, 0, 2003)


MINIMUM = {
    512: [
        "claude-fable-5", "claude-fable-5-1", "claude-fable-5-2", "claude-mythos-5", "claude-mythos-5-1",
        "claude-mythos-5-2", "claude-opus-5", "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5",
    ],
    1024: ["claude-opus-4-8", "claude-sonnet-5", "claude-sonnet-4-6", "claude-sonnet-4-5"],
    2048: ["claude-opus-4-7", "claude-mythos-preview"],
    4096: ["claude-opus-4-6", "claude-opus-4-5", "claude-haiku-4-5"],
}  # fmt: skip


@pytest.mark.parametrize(("model", "least"), [(model, least) for least, models in MINIMUM.items() for model in models])
def test_a_prefix_must_be_long_enough(model: str, least: int) -> None:
    """Shorter ones are silently not cached; what counts is the whole prefix of a mark."""
    for tokens, cached in ((least - 1, 0), (least, least)):
        body = talk(text(1), system=[text(tokens, **MARK)])
        assert split(send(PromptCache(), body, model=model))[1] == cached


def growing(blocks: int, *marks: int) -> dict[str, Any]:
    """A user who said so many blocks of 200 tokens, some of them marked."""
    return talk(*(text(200, chr(64 + at), **(MARK if at in marks else {})) for at in range(1, blocks + 1)))


def test_reading_looks_back_over_twenty_blocks() -> None:
    """The mark's own block is the first: of 35 blocks, those from 16 on are seen."""
    cache = PromptCache()
    send(cache, growing(10, 10))
    assert split(send(cache, growing(15, 15))) == (2003, 1000, 0)
    assert split(send(cache, growing(35, 35))) == (0, 7003, 0)
    cache = PromptCache()
    send(cache, growing(15, 15))
    assert split(send(cache, growing(34, 34))) == (3003, 3800, 0)
    cache = PromptCache()
    send(cache, growing(15, 15))
    assert split(send(cache, growing(35, 15, 35))) == (3003, 4000, 0)


@pytest.mark.parametrize(("kind", "found"), [("tool_use", True), ("server_tool_use", False)])
def test_a_run_of_calls_or_results_is_one_position(kind: str, found: bool) -> None:
    """Twenty-five parallel calls and their results don't push an entry out of sight."""
    cache = PromptCache()
    calls = [{"type": kind, "id": f"t{at}", "name": "f", "input": {"n": at}} for at in range(25)]
    results = [{"type": "tool_result", "tool_use_id": f"t{at}", "content": "done"} for at in range(25)]
    send(cache, talk(text(2000, **MARK)))
    later = [user(text(2000)), {"role": "assistant", "content": calls}, user(*results, text(1, **MARK))]
    assert (send(cache, {"messages": later}).read == 2003) == found


@pytest.mark.parametrize(("turns", "found"), [(9, True), (10, False)])
def test_calls_and_results_in_turn_are_a_position_each(turns: int, found: bool) -> None:
    """A loop of tool calls leaves the entry behind that was written before it."""
    cache = PromptCache()
    send(cache, talk(text(2000, **MARK)))
    later = [user(text(2000))]
    for at in range(turns):
        call = {"type": "tool_use", "id": f"t{at}", "name": "f", "input": {}}
        later += [{"role": "assistant", "content": [call]}, user({"type": "tool_result", "tool_use_id": f"t{at}"})]
    later.append(user(text(1, **MARK)))
    assert (send(cache, {"messages": later}).read == 2003) == found


def test_only_marks_are_written() -> None:
    """A shorter request that shares the beginning finds nothing, though it was read."""
    cache = PromptCache()
    send(cache, growing(15, 15))
    assert split(send(cache, growing(14, 14)))[0] == 0


def test_a_changed_block_loses_all_that_follows() -> None:
    """What comes before it is still read at its own mark."""
    cache = PromptCache()
    send(cache, talk(text(2000, "a", **MARK), text(2000, "b", **MARK)))
    assert split(send(cache, talk(text(2000, "a", **MARK), text(2000, "c", **MARK)))) == (2003, 2000, 0)


def test_marks_and_the_way_of_writing_are_no_part_of_the_prefix() -> None:
    """Marks may move; a text is a list of one block; null is nothing."""
    cache = PromptCache()
    send(cache, talk(text(2000, **MARK), system=[text(10, citations=None)]))
    plain = {"messages": [{"role": "user", "content": "x" * 8000}, {"role": "assistant", "content": "Hi"}]}
    body = {**plain, "system": "x" * 40, **MARK}
    assert split(send(cache, body))[0] == 2013


def test_entries_last_five_minutes_or_an_hour_from_their_last_use() -> None:
    """Use refreshes them, for as long as they were written for."""
    for mark, ttl_s in ((MARK, 300), (HOUR, 3600)):
        cache = PromptCache()
        body = talk(text(2000, **mark))
        times = [0.0, ttl_s - 1.0, 2 * ttl_s - 2.0, 3 * ttl_s - 2.0]
        assert [bool(send(cache, body, now).read) for now in times] == [False, True, True, False]


def test_what_is_written_is_told_by_its_time_to_live() -> None:
    """Up to the last mark for an hour all is written for an hour, the rest for five minutes."""
    cache = PromptCache()
    body = talk(text(2000, **HOUR), text(1000, **MARK), text(5), system=[text(1500, **HOUR)])
    first = send(cache, body)
    assert (first.written_1h, first.written_5m, first.charged) == (3503, 1000, 4508)
    later = send(cache, body, 400.0)
    assert (later.read, later.written_1h, later.written_5m, later.charged) == (3503, 0, 1000, 1005)


def test_a_mark_within_what_is_read_is_written_for_nothing() -> None:
    """From then on it is an entry of its own."""
    cache = PromptCache()
    send(cache, talk(text(2000), text(100, **MARK)))
    assert split(send(cache, talk(text(2000, **MARK), text(100, **MARK)))) == (2103, 0, 0)
    assert split(send(cache, talk(text(2000, **MARK), text(100, "z")))) == (2003, 0, 100)


def test_an_entry_can_be_read_once_its_response_began() -> None:
    """Not while the request that writes it waits for its first byte; then, or when that was due."""
    for when, begins in ((0.0, False), (1.0, False), (1.1, True)):
        cache = PromptCache()
        body = talk(text(2000, **MARK))
        first = cache.read(body, MODELS[MODEL], "org", tokens=2003, now=0.0)
        cache.keep(first, 0.0, 1.0)
        assert bool(cache.read(body, MODELS[MODEL], "org", tokens=2003, now=when).read) == begins
        second = send(cache, body, when)
        assert split(second)[1] == (0 if begins else 2003)
        assert split(send(cache, body, when)) == (2003, 0, 0)


def test_organizations_and_models_share_nothing() -> None:
    """Each has its own entries."""
    cache = PromptCache()
    body = talk(text(2000, **MARK))
    send(cache, body)
    assert send(cache, body, organization="other").read == 0
    assert send(cache, body, model="claude-opus-5").read == 0


def test_thinking_is_part_of_the_prefix() -> None:
    """With another thinking block, or none, what follows is another prefix; automatic marks go past it."""

    def said(thought: str, **fields: Any) -> dict[str, Any]:
        block = {"type": "thinking", "thinking": thought, "signature": "s"}
        answer = {"role": "assistant", "content": [text(1500, "b"), block]}
        return {"messages": [user(text(2000)), answer], **fields}

    cache = PromptCache()
    send(cache, {"messages": [*said("hm")["messages"], user(text(1, **MARK))]})
    assert send(cache, {"messages": [*said("hm")["messages"], user(text(1, **MARK))]}).read == 3510
    assert send(cache, {"messages": [*said("oh")["messages"], user(text(1, **MARK))]}).read == 0
    assert split(send(cache, said("hm", **MARK))) == (0, 3506, 0)
    assert split(send(cache, {"messages": [{"role": "user", "content": []}], **MARK})) == (0, 0, 3)


TOOL: dict[str, Any] = {"name": "look", "description": "x" * 4000, "input_schema": {"type": "object"}}
PLAIN: dict[str, Any] = {"type": "text", "media_type": "text/plain", "data": "x"}
CITED: dict[str, Any] = {"type": "document", "source": PLAIN, "citations": {"enabled": True}}
IMAGE: dict[str, Any] = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}


def levels(*, said: tuple[dict[str, Any], ...] = (), tools: tuple[dict[str, Any], ...] = (), **fields: Any) -> Any:
    """A request with a mark on each level, and what is said after the last one."""
    return {
        "tools": [{**TOOL, **MARK}, *tools],
        "system": [text(2000, **MARK)],
        "messages": [user(text(3000, **MARK)), *said],
        **fields,
    }


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (levels(), "messages"),
        (levels(said=({"role": "system", "content": "Be terse."},)), "messages"),
        (levels(tools=({"name": "more", "input_schema": {"type": "object"}},)), "tools"),
        ({**levels(), "tools": [{**TOOL, "description": "other", **MARK}]}, "nothing"),
        (levels(tools=({"type": "web_search_20250305", "name": "web_search"},)), "tools"),
        (levels(said=(user(CITED),)), "tools"),
        (levels(speed="fast"), "tools"),
        ({**levels(), "system": [text(2000, "y", **MARK)]}, "tools"),
        (levels(tool_choice={"type": "none"}), "system"),
        (levels(tool_choice={"type": "auto"}), "messages"),
        (levels(said=(user(IMAGE),)), "system"),
        (levels(said=(user({"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}),)), "system"),
        (levels(thinking={"type": "adaptive"}), "system"),
        (levels(thinking={"type": "disabled"}), "messages"),
        (levels(output_config={"effort": "low"}), "system"),
        (levels(stop_sequences=["x"], max_tokens=3, metadata={"user_id": "u"}), "messages"),
    ],
)
def test_each_change_loses_what_depends_on_it(change: dict[str, Any], kept: str) -> None:
    """As in the API's table: tools, system prompt and messages each have settings that they depend on."""
    cache = PromptCache()
    prefixes = {"nothing": 0}
    bare = {"tools": [TOOL], "system": [text(2000)], "messages": [user(text(3000))]}
    for level in bare:
        prefixes[level] = send(PromptCache(), {**bare, level: levels()[level]}).written_5m
    send(cache, levels())
    assert prefixes["tools"] > 1024
    assert send(cache, change).read == prefixes[kept]


def test_the_oldest_entries_give_way() -> None:
    """Expired ones first, then those used longest ago."""
    cache = PromptCache(most=10)
    bodies = [talk(text(2000, chr(97 + at), **(HOUR if at < 5 else MARK))) for at in range(12)]
    for body in bodies[:10]:
        send(cache, body)
    send(cache, bodies[0], 1.0)
    send(cache, bodies[10], 2.0)
    assert repr(cache) == "PromptCache(9 of at most 10 entries)"
    assert [bool(send(cache, body, 3.0).read) for body in (bodies[0], bodies[10])] == [True, True]
    assert [bool(send(cache, bodies[at], 4.0).read) for at in (3, 1)] == [True, False]
    cache = PromptCache(most=10)
    for at, body in enumerate(bodies[:11]):
        send(cache, body, 0.0 if at < 10 else 400.0)
    assert repr(cache) == "PromptCache(6 of at most 10 entries)"


def test_an_entry_that_gave_way_before_it_began_is_gone() -> None:
    """Nothing is marked as begun that isn't there."""
    cache = PromptCache(most=1)
    first = cache.read(talk(text(2000, **MARK)), MODELS[MODEL], "org", tokens=2003, now=0.0)
    cache.keep(first, 0.0, 9.0)
    send(cache, talk(text(2000, "y", **MARK)))
    cache.begun(first)
    assert send(cache, talk(text(2000, **MARK))).read == 0


BLOCKS = st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(1, 900)), min_size=1, max_size=8)


@pytest.mark.lengthy
@given(st.lists(st.tuples(BLOCKS, st.booleans(), st.integers(0, 400)), min_size=1, max_size=6))
@settings(max_examples=60)
def test_the_fields_always_add_up(requests: list[tuple[list[tuple[str, bool, int]], bool, int]]) -> None:
    """Whatever is marked and cached, no token is counted twice or lost, and none is negative."""
    cache, now = PromptCache(), 0.0
    for blocks, automatic, wait in requests:
        now += wait
        said = [text(size, letter, **(MARK if mark else {})) for letter, mark, size in blocks]
        usage = send(cache, talk(*said, **(MARK if automatic else {})), now).usage()
        parts = [usage[f"{name}input_tokens"] for name in ("", "cache_creation_", "cache_read_")]
        assert sum(parts) == count_input(talk(*said), MODELS[MODEL])
        assert min(parts) >= 0
        assert sum(usage["cache_creation"].values()) == usage["cache_creation_input_tokens"]


ASK: Any = {"model": "claude-sonnet-5-5", "max_tokens": 50}
LONG: Any = {"role": "user", "content": "word " * 2000}


async def test_automatic_caching_follows_the_conversation(virtual_time: VirtualTime) -> None:
    """Each turn reads all before it and writes the new blocks, plain and streamed."""
    simulator = Simulator()
    messages: list[Any] = [LONG]
    seen: list[anthropic.types.Usage] = []
    async with simulator.client() as claude:
        for at in range(4):
            fields = {**ASK, "messages": messages, "cache_control": {"type": "ephemeral"}}
            if at % 2:
                async with claude.messages.stream(**fields) as stream:
                    message = await stream.get_final_message()
            else:
                message = await claude.messages.create(**fields)
            seen.append(message.usage)
            messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": "And now?"}]
    assert (seen[0].cache_read_input_tokens, seen[0].cache_creation_input_tokens) == (0, 2503)
    for before, usage in pairwise(seen):
        wrote = before.cache_creation_input_tokens
        assert wrote is not None
        assert before.cache_read_input_tokens is not None
        assert usage.cache_read_input_tokens == before.cache_read_input_tokens + wrote
        assert usage.input_tokens == 0


async def test_what_is_read_from_the_cache_does_not_count_against_the_limit(virtual_time: VirtualTime) -> None:
    """Written and other input does, also when it is decided whether there is room."""
    simulator = Simulator(input_tokens_per_minute=3000)
    fields: Any = {**ASK, "messages": [LONG], "cache_control": {"type": "ephemeral"}}
    async with simulator.client(max_retries=0) as claude:
        for _ in range(3):
            await claude.messages.create(**fields)
        with pytest.raises(anthropic.RateLimitError):
            await claude.messages.create(**{**fields, "messages": [{"role": "user", "content": "other " * 2000}]})
    assert simulator.organization("sk-sim-1").quotas["sonnet-5-5"].input_tokens.taken == 2503
    assert [entry.input_tokens for entry in simulator.journal] == [2503, 0, 0, 0]


async def test_a_cache_can_be_warmed_before_it_is_needed(virtual_time: VirtualTime) -> None:
    """`max_tokens` of 0 writes and says nothing."""
    simulator = Simulator()
    fields: Any = {**ASK, "messages": [LONG], "cache_control": {"type": "ephemeral"}}
    async with simulator.client() as claude:
        warm = await claude.messages.create(**{**fields, "max_tokens": 0})
        message = await claude.messages.create(**fields)
    assert (warm.content, warm.stop_reason, warm.usage.cache_creation_input_tokens) == ([], "max_tokens", 2503)
    assert message.usage.cache_read_input_tokens == 2503


@pytest.mark.parametrize("latency_s", [0.0, 2.0])
async def test_requests_sent_together_all_write(virtual_time: VirtualTime, latency_s: float) -> None:
    """None of them reads what another writes; one sent first spares the others that."""
    simulator = Simulator(latency_s=latency_s)
    read: list[int] = []
    fields: Any = {**ASK, "messages": [LONG], "cache_control": {"type": "ephemeral"}}

    async with simulator.client() as claude:

        async def ask() -> None:
            read.append((await claude.messages.create(**fields)).usage.cache_read_input_tokens or 0)

        for _ in range(2):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(ask)
    assert read == [0, 0, 0, 2503, 2503, 2503]


async def test_a_plain_reply_begins_when_generation_does(virtual_time: VirtualTime) -> None:
    """Others read its prefix while it is still generated."""
    simulator = Simulator(latency_s=1, tokens_per_s=1, output_tokens=30)
    fields: Any = {**ASK, "messages": [LONG], "cache_control": {"type": "ephemeral"}}
    async with simulator.client() as claude, anyio.create_task_group() as group:
        group.start_soon(lambda: claude.messages.create(**fields))
        await anyio.sleep(1.5)
        warm = await claude.messages.create(**{**fields, "max_tokens": 0})
    assert warm.usage.cache_read_input_tokens == 2503


async def test_a_request_that_fails_writes_nothing(virtual_time: VirtualTime) -> None:
    """What took its place was no reply."""
    simulator = Simulator()
    simulator.inject("overloaded")
    fields: Any = {**ASK, "messages": [LONG], "cache_control": {"type": "ephemeral"}}
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(anthropic.InternalServerError):
            await claude.messages.create(**fields)
        message = await claude.messages.create(**fields)
    assert message.usage.cache_read_input_tokens == 0


async def test_two_organizations_share_no_cache(virtual_time: VirtualTime) -> None:
    """Two keys of one do."""
    simulator = Simulator(keys={"a": "org-1", "b": "org-1", "c": "org-2"})
    fields: Any = {**ASK, "messages": [LONG], "cache_control": {"type": "ephemeral"}}
    read = []
    for key in "abc":
        async with simulator.client(key) as claude:
            read.append((await claude.messages.create(**fields)).usage.cache_read_input_tokens)
    assert read == [0, 2503, 0]
