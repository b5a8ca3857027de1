from __future__ import annotations

import json

import pytest

from penstock._core.usage import Usage
from penstock.streaming import ErrorFrame, FinalFrame, TextFrame
from penstock.web.frames import CloseCode, encoded


@pytest.mark.parametrize("text", ["Grüezi", "\0\n\u2028", "\ud83d", "😀", '"}'])
def test_any_text_can_be_sent(text: str) -> None:
    """Half of a surrogate pair too, which a model's tokens may be cut into; both halves make one character again."""
    frame = encoded(TextFrame(text=text))
    assert json.loads(frame.encode()) == {"type": "text", "text": text}


def test_text_is_sent_as_short_as_it_is() -> None:
    """Letters beyond ASCII are not escaped."""
    assert encoded(TextFrame(text="Grüezi")) == '{"type":"text","text":"Grüezi"}'


def test_what_is_estimated_is_marked() -> None:
    """Usage is a guess if either the stream or its end says so."""
    for usage, estimated in ((Usage(estimated=True), False), (Usage(), True)):
        final = FinalFrame(stop_reason=None, usage=usage, text_length=0)
        assert json.loads(encoded(final, estimated=estimated))["usage"]["estimated"] is True


def test_an_answer_that_broke_off_reads_otherwise_than_one_that_never_began() -> None:
    """The sentence fits what the browser has seen."""
    sentences = {
        json.loads(encoded(ErrorFrame(type="ReadError", message="secret", text_length=length)))["error"]["message"]
        for length in (0, 5)
    }
    assert sentences == {"The request failed. Please try again.", "The answer broke off. Please try again."}


def test_close_codes_are_those_of_the_registry() -> None:
    """1008 policy violation, 1011 internal error, 1012 service restart, 1013 try again later."""
    assert [(code.name, code.value) for code in CloseCode] == [
        ("POLICY", 1008),
        ("FAILED", 1011),
        ("RESTART", 1012),
        ("TRY_LATER", 1013),
    ]
