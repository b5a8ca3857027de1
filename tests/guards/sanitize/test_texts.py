from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.guards.sanitize.texts import changed_message, changed_messages, characters_of

TEXT = {"type": "text", "text": "t", "cache_control": {"type": "ephemeral"}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "i"}}
PLAIN = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}, "title": "n"}
BLOCKS = {"type": "document", "source": {"type": "content", "content": [TEXT, IMAGE]}, "context": "c"}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "p"}}
FOUND = {"type": "search_result", "title": "h", "source": "s", "content": [TEXT]}

# A message's content, and where its texts stand.
CONTENTS: list[tuple[Any, list[str]]] = [
    ("t", ["content"]),
    ([TEXT], ["content.0.text"]),
    ((TEXT, TEXT), ["content.0.text", "content.1.text"]),
    ([IMAGE, PDF], []),
    ([PLAIN], ["content.0.title", "content.0.source.data"]),
    ([BLOCKS], ["content.0.context", "content.0.source.content.0.text"]),
    ([FOUND], ["content.0.title", "content.0.source", "content.0.content.0.text"]),
    ([{"type": "tool_result", "tool_use_id": "u", "content": "t"}], ["content.0.content"]),
    (
        [{"type": "tool_result", "tool_use_id": "u", "content": [TEXT, PLAIN]}],
        ["content.0.content.0.text", "content.0.content.1.title", "content.0.content.1.source.data"],
    ),
    ([{"type": "tool_result", "tool_use_id": "u"}, TEXT], ["content.1.text"]),
    ([{"type": "some_new_block", "text": "t"}], []),
]
NONSENSE: list[Any] = [None, 7, {}, [None, 7, "x", []], [{"type": []}], [{"type": "document", "source": None}]]


@pytest.mark.parametrize(("content", "places"), CONTENTS)
def test_every_text_of_a_message_is_seen(content: Any, places: list[str]) -> None:
    """Its own, those of tool results, of documents and of search results; never images, PDFs or what is unknown."""
    seen: list[str] = []
    message = {"role": "user", "content": content}

    def see(text: str, place: str) -> str:
        seen.append(place)
        return text

    assert changed_message(message, "m", see) is message
    assert seen == [f"m.{place}" for place in places]
    assert characters_of(message) == len(places)


@pytest.mark.parametrize(("content", "places"), CONTENTS)
def test_what_differs_is_made_anew_and_nothing_else(content: Any, places: list[str]) -> None:
    """The caller's own objects stay as they were; all fields stay beside what was changed."""
    message = {"role": "user", "content": content}
    before = copy.deepcopy(message)
    changed = changed_message(message, "m", lambda text, _place: text * 2)
    assert message == before
    assert (changed is message) is not bool(places)
    assert characters_of(changed) == 2 * len(places)
    undone = changed_message(changed, "m", lambda text, _place: text[:1])
    assert undone == {**before, "content": list(content) if isinstance(content, tuple) else content}


@pytest.mark.parametrize("content", NONSENSE)
def test_nonsense_is_left_to_the_api(content: Any) -> None:
    """What is no message goes through as it is, and the API says what is wrong with it."""
    message = {"role": "user", "content": content}
    assert changed_message(message, "m", lambda text, _place: text + "!") is message
    for body in (content, {"messages": content}, {"messages": [message]}):
        assert changed_messages(body, lambda found, _place: found) is body


def test_only_turns_of_the_user_are_changed() -> None:
    """Those of the model must come back as they were, and the system's are the application's own."""
    messages = [{"role": role, "content": "t"} for role in ("user", "assistant", "system", "user")]
    body = {"model": "m", "messages": messages, "system": "t"}
    changed: Any = changed_messages(body, lambda message, place: {**message, "content": place})
    assert [message["content"] for message in changed["messages"]] == ["messages.0", "t", "t", "messages.3"]
    assert changed["messages"][1] is messages[1]
    assert {**changed, "messages": messages} == body


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "source", "text", "data", "messages"]), inner)
    ),
    max_leaves=20,
)


@given(json)
def test_no_body_raises_or_is_changed(body: object) -> None:
    """Whatever JSON it is."""
    before = copy.deepcopy(body)
    changed_messages(body, lambda message, place: changed_message(message, place, lambda text, _place: text + "!"))
    assert body == before
