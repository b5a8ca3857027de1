"""Results on the standard output."""

from __future__ import annotations

import json
import os
import sys
import threading

import pytest

from penstock import FanOutResult
from penstock.cli.run.output import Output, OutputFailed

RESULT = FanOutResult(custom_id="ż", index=0, error=ValueError("no" * 100_000))


async def test_a_result_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result is a line of a Message Batches result file, whole, also where a pipe takes it in pieces."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:60_000]))
    reader, writer = os.pipe()
    found: list[bytes] = []
    with os.fdopen(reader, "rb") as source:
        listener = threading.Thread(target=lambda: found.append(source.read()))
        listener.start()
        with os.fdopen(writer, "w") as sink:
            monkeypatch.setattr(sys, "stdout", sink)
            output = Output()
            assert repr(output) == f"<Output to {sink.fileno()}>"
            await output.write(RESULT)
            output.close()
        listener.join()
    (line,) = found
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    told = json.loads(line)
    assert told["custom_id"] == "ż"
    assert told["result"]["type"] == "errored"


@pytest.mark.parametrize(("left", "said"), [(True, "Broken pipe"), (False, "Bad file descriptor")])
async def test_what_can_t_be_written_is_told(left: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has left is told apart from other failures."""
    reader, writer = os.pipe()

    class Sink:
        def fileno(self) -> int:
            return writer if left else reader

    monkeypatch.setattr(sys, "stdout", Sink())
    output = Output()
    if left:
        os.close(reader)
    with pytest.raises(OutputFailed, match=f"the standard output can't be written: {said}") as failed:
        await output.write(RESULT)
    assert failed.value.left is left
    output.close()
    os.close(writer)
    if not left:
        os.close(reader)
