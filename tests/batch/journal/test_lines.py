from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message
from anthropic.types.messages import MessageBatchIndividualResponse
from hypothesis import given
from hypothesis import strategies as st

from penstock import FanOutResult, InvalidOutput
from penstock.batch.journal.lines import Line, State, is_torn, read_line, write_line


def message(text: str = "Hi") -> Message:
    """An answer."""
    return Message.construct(
        id="msg_1",
        type="message",
        role="assistant",
        model="claude-haiku-5-5",
        content=[{"type": "text", "text": text}],
        stop_reason="end_turn",
        usage={"input_tokens": 1, "output_tokens": 1},
    )


# Half a surrogate pair is what JSON can say and UTF-8 can't.
texts = st.text(max_size=20) | st.text('a\ud800\u2028\x00\n"\\', max_size=8)


@given(custom_id=texts, text=texts, labels=st.dictionaries(texts, texts, max_size=2), failed=st.booleans())
def test_what_is_written_is_read_again(custom_id: str, text: str, labels: dict[str, str], failed: bool) -> None:
    """Whatever the texts hold, it is one line, and the same result comes back."""
    outcome: dict[str, Any] = {"error": ValueError(text)} if failed else {"message": message(text)}
    result = FanOutResult(
        custom_id=custom_id, index=3, attempts=2, latency_s=1.5, queued_s=0.5, labels=labels, **outcome
    )
    raw = write_line(result, request="00000000000000ff", params=None)
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == 1
    state = State.FAILED if failed else State.ANSWERED
    assert read_line(raw) == Line(custom_id=custom_id, state=state, request=255)
    again = FanOutResult.from_line(json.loads(raw), index=3)
    assert (again.custom_id, again.labels, again.message) == (custom_id, labels, result.message)
    assert (again.attempts, again.latency_s, again.queued_s, again.replayed) == (2, 1.5, 0.5, True)
    assert again.to_dict() == result.to_dict()


# What `str.splitlines` takes for the end of a line; other readers of lines know some of it.
ENDS = "\n\x0b\x0c\r\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("half", ["", "\ud800"])
@pytest.mark.parametrize("failed", [False, True])
def test_every_reader_counts_the_same_lines(failed: bool, half: str) -> None:
    """Wherever an end of a line stands in a result, it is written as an escape, and comes back as it was."""
    text = f"ż{ENDS}{half}"
    outcome: dict[str, Any] = {"error": ValueError(text)} if failed else {"message": message(text)}
    result = FanOutResult(custom_id=text, index=0, labels={text: text}, **outcome)
    raw = write_line(result, request="00000000000000ff", params={"messages": [{"role": "user", "content": text}]})
    assert len(raw.decode().splitlines()) == 1
    again = FanOutResult.from_line(json.loads(raw), index=0)
    assert (again.custom_id, again.labels, again.to_dict()) == (text, {text: text}, result.to_dict())


def test_lines_that_were_written_without_escapes_are_read() -> None:
    """Journals of before, and result files of others."""
    raw = json.dumps({"custom_id": "a\u2028", "result": {"type": "canceled"}}, ensure_ascii=False).encode()
    assert read_line(raw) == Line(custom_id="a\u2028", state=State.UNASKED, request=0)


@pytest.mark.parametrize("outcome", [{"message": message()}, {"error": ValueError("no")}])
def test_a_line_is_one_of_message_batches(outcome: dict[str, Any]) -> None:
    """Who reads result files of the API reads these."""
    raw = write_line(FanOutResult(custom_id="a", index=0, **outcome), request="ff", params=None)
    read = MessageBatchIndividualResponse.model_validate_json(raw)
    assert (read.custom_id, read.result.type) == ("a", "succeeded" if "message" in outcome else "errored")


def test_nothing_is_noted_that_is_not_known() -> None:
    """An ungoverned client counts no attempts."""
    line = json.loads(write_line(FanOutResult(custom_id="a", index=0, message=message()), request=None, params=None))
    assert list(line["penstock"]) == ["crc32"]


@pytest.mark.parametrize(("request_", "keys"), [(None, ["params", "crc32"]), ("ff", ["asked", "params", "crc32"])])
def test_params_are_kept_where_they_are_to_be(request_: str | None, keys: list[str]) -> None:
    """As they would be sent, besides what else is noted."""
    result = FanOutResult(custom_id="a", index=0, error=ValueError("no"))
    line = json.loads(write_line(result, request=request_, params={"model": "m", "timeout": 3}))
    assert list(line["penstock"]) == keys
    assert line["penstock"]["params"] == {"model": "m"}


def test_an_answer_that_does_not_fit_counts_as_failed() -> None:
    """The line has the answer, which was paid for, and says that it is no good."""
    error = InvalidOutput(stop_reason="max_tokens", problems=("json_invalid",))
    raw = write_line(FanOutResult(custom_id="a", index=0, message=message(), error=error), request=None, params=None)
    read = read_line(raw)
    assert read is not None
    assert read.state is State.FAILED
    assert json.loads(raw)["result"]["type"] == "succeeded"
    assert json.loads(raw)["penstock"]["error"] == "InvalidOutput"


@pytest.mark.parametrize(
    ("raw", "state"),
    [
        (b'{"custom_id":"a","result":{"type":"succeeded","message":{}}}\n', State.ANSWERED),
        (b'\xef\xbb\xbf{"custom_id": "a", "result": {"type": "errored"}}\r\n', State.FAILED),
        (b'{"custom_id":"a","result":{"type":"expired"},"more":1}', State.UNASKED),
        (b'{"result":{"type":"canceled"},"custom_id":"a"}\n', State.UNASKED),
    ],
)
def test_result_files_of_others_are_read(raw: bytes, state: State) -> None:
    """The API's own, and what an editor has made of it."""
    assert read_line(raw) == Line(custom_id="a", state=state, request=0)


@pytest.mark.parametrize("raw", [b"\n", b"  \r\n", b""])
def test_a_blank_line_says_nothing(raw: bytes) -> None:
    """It is no line and no error."""
    assert read_line(raw) is None


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"hello\n", "is not JSON"),
        (b'{"custom_id":"a"\n', "is not JSON"),
        (b"[" * 100_000 + b"\n", "is not JSON"),
        ('{"custom_id":"é"}'.encode("latin-1"), "is not UTF-8"),
        ('{"custom_id":"a"}'.encode("utf-16"), "is not UTF-8"),
        (b"[]\n", "is no result"),
        (b'{"custom_id":7,"result":{}}\n', "is no result"),
        (b'{"custom_id":"a","result":"x"}\n', "is no result"),
        (b'{"custom_id":"a","params":{}}\n', "is a request, not a result"),
        (b'{"custom_id":"a","result":{"type":"succeeded"}}\n', "its type is none of"),
        (b'{"custom_id":"a","result":{"type":"other"}}\n', "its type is none of"),
        (b'{"custom_id":"a","result":{"type":"errored"},"penstock":{"asked":7}}\n', "has a digest that is none"),
        (b'{"custom_id":"a","result":{"type":"errored"},"penstock":{"asked":"xyz"}}\n', "has a digest that is none"),
        (b'{"custom_id":"a","result":{"type":"errored"},"penstock":{"asked":"-1"}}\n', "has a digest that is none"),
        (
            b'{"custom_id":"a","result":{"type":"errored"},"penstock":{"asked":"10000000000000000"}}\n',
            "has a digest that is none",
        ),
    ],
)
def test_what_is_no_result_is_told(raw: bytes, said: str) -> None:
    """In words that a user can act on, without quoting the line."""
    with pytest.raises(ValueError, match=said):
        read_line(raw)


def test_a_line_that_was_cut_off_anywhere_is_torn() -> None:
    """Its beginning is known; the zeros of a power failure are, too; other text is not ours to cut."""
    raw = write_line(FanOutResult(custom_id="a", index=0, message=message()), request="ff", params=None)
    assert all(is_torn(raw[:end]) for end in range(len(raw)))
    assert all(is_torn(raw[:end] + bytes(99)) for end in range(len(raw)))
    assert not is_torn(b"my notes")
    assert not is_torn(b'{"custom":1')


def test_an_answer_with_half_a_surrogate_pair_and_a_time_is_written() -> None:
    """Neither of the two ways of encoding a message takes both; the line holds what the API sent."""
    container = {"id": "c", "expires_at": "2026-01-01T00:00:00Z"}
    sent = Message.model_validate({**message("\ud800").to_dict(), "container": container})
    raw = write_line(FanOutResult(custom_id="a", index=0, message=sent), request="ff", params=None)
    written = json.loads(raw)["result"]["message"]
    assert (written["content"][0]["text"], written["container"]) == ("\ud800", container)
