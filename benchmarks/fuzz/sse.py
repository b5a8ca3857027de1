"""A fuzz target for the decoders of event streams: run with atheris, for as long as there is patience.

What holds for all bytes, however they are cut: the decoder raises nothing but `InvalidStream`; chunks never show;
the splitter finds what the decoder finds; what either holds back is bounded by what it was given. Run it with the
dependency group `fuzz`: `python benchmarks/fuzz/sse.py -max_total_time=60`, and a folder to keep what it finds.
"""

from __future__ import annotations

import contextlib
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

if TYPE_CHECKING:
    from penstock._core.body.sse import ServerSentEvent
    from penstock.streaming.split import Raw

with atheris.instrument_imports(include=["penstock"]):
    from penstock._core.body.sse import SSEDecoder
    from penstock.errors import InvalidStream
    from penstock.streaming.split import Splitter, data_of, name_of, text_of

SEED = b'event: message_start\ndata: {"type": "x"}\n\nevent: ping\r\ndata: {}\r\n\r\n: c\n\nid: 1\rdata: x\r\r'


def decoded(chunks: list[bytes]) -> tuple[list[tuple[str, str]], int | None]:
    """Name and data of all events, and where the stream broke the protocol."""
    decoder = SSEDecoder()
    seen: list[ServerSentEvent] = []
    try:
        for chunk in chunks:
            seen += decoder.feed(chunk)
        seen += decoder.finish()
    except InvalidStream as error:
        return [(event.name, event.data) for event in seen], error.position
    assert decoder.pending_bytes <= sum(map(len, chunks))
    return [(event.name, event.data) for event in seen], None


def cut_up(chunks: list[bytes]) -> list[tuple[str, str]] | None:
    """The same of the splitter, without events that have neither name nor data; `None` if it can't be decoded."""
    splitter = Splitter()
    seen: list[Raw] = []
    try:
        for chunk in chunks:
            seen += splitter.feed(chunk)
        seen += splitter.finish()
        named = [(name_of(raw), text_of(raw)) for raw in seen]
    except InvalidStream:
        return None
    return [event for event in named if event != ("message", "")]


def decode(chunks: list[bytes]) -> None:
    """Decode the data of all events, as far as it is JSON."""
    splitter = Splitter()
    with contextlib.suppress(InvalidStream):
        for chunk in chunks:
            for raw in splitter.feed(chunk):
                with contextlib.suppress(InvalidStream):
                    data_of(raw)


def check(data: bytes) -> None:
    """Try one input: a body, and where it is cut."""
    source = atheris.FuzzedDataProvider(data)
    cuts = sorted(source.ConsumeIntListInRange(source.ConsumeIntInRange(0, 8), 0, 4096))
    body = source.ConsumeBytes(4096)
    edges = [0, *(min(cut, len(body)) for cut in cuts), len(body)]
    chunks = [body[start:end] for start, end in pairwise(edges)]
    whole = decoded([body])
    assert decoded(chunks) == whole
    assert decoded([body[at : at + 1] for at in range(len(body))]) == whole
    decode(chunks)
    split = cut_up(chunks)
    if whole[1] is None:
        assert split == [event for event in whole[0] if event != ("message", "")]


def main() -> None:
    """Fuzz until told to stop."""
    check(bytes(2) + SEED)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
