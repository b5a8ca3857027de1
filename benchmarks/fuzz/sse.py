"""A fuzz target for the grammar of event streams: run with atheris, for as long as there is patience.

What holds for all bytes, however they are cut: nothing but `InvalidStream` is raised; chunks never show; the short cuts
say what the grammar says; no more is held back than was given; the scanner raises nothing. Run it with the dependency
group `fuzz`: `python benchmarks/fuzz/sse.py -max_total_time=60`, and a folder to keep what it finds.
"""

from __future__ import annotations

import sys
from itertools import pairwise

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports(include=["penstock"]):
    from penstock._core.body.scanner import Scanner
    from penstock._core.body.sse import Splitter, data_of, decode, kind_of, name_of
    from penstock.errors import InvalidStream

SEED = b'event: message_start\ndata: {"type": "x"}\n\nevent: ping\r\ndata: {}\r\n\r\n: c\n\nid: 1\rdata: x\r\r'


def cut(chunks: list[bytes]) -> tuple[list[tuple[int, bytes]], int]:
    """All raw events of a body with where they stand, and where it ends."""
    splitter, events, given = Splitter(), list[tuple[int, bytes]](), 0
    for chunk in chunks:
        raws = splitter.feed(chunk)
        events += zip(splitter.starts, raws, strict=True)
        given += len(chunk)
        assert splitter.position + splitter.pending_bytes == given
    last = splitter.finish()
    events += zip(splitter.starts, last, strict=True)
    return events, splitter.position


def plainly(raw: bytes) -> tuple[object, ...]:
    """Name and data of a raw event by the grammar alone: a comment before it takes the short cuts away."""
    try:
        event = decode(b": comment\n" + raw)
    except InvalidStream as error:
        return (error.reason,)
    if event is None:
        return "", None
    try:
        data = event.json() if event.data else None
    except InvalidStream as error:
        return kind_of(event.name, None), error.reason
    return kind_of(event.name, data), data


def quickly(raw: bytes) -> tuple[object, ...]:
    """The same by the short cuts."""
    try:
        decode(raw)
    except InvalidStream as error:
        return (error.reason,)
    try:
        return name_of(raw), data_of(raw)
    except InvalidStream as error:
        return name_of(raw), error.reason


def told(chunks: list[bytes]) -> tuple[object, ...]:
    """What the scanner tells of a body, up to where it is over."""
    scanner, kept = Scanner(), 0
    for chunk in chunks:
        scanner.see(chunk)
        kept += len(chunk) - scanner.trailing
        if scanner.over:
            break
    scanner.finish()
    assert 0 <= kept <= sum(map(len, chunks))
    return scanner.usage, scanner.stop_reason, scanner.begun, scanner.complete, scanner.failure


def check(data: bytes) -> None:
    """Try one input: a body, and where it is cut."""
    source = atheris.FuzzedDataProvider(data)
    cuts = sorted(source.ConsumeIntListInRange(source.ConsumeIntInRange(0, 8), 0, 4096))
    body = source.ConsumeBytes(4096)
    edges = [0, *(min(at, len(body)) for at in cuts), len(body)]
    chunks, crumbs = [body[start:end] for start, end in pairwise(edges)], [body[at : at + 1] for at in range(len(body))]
    whole = cut([body])
    assert cut(chunks) == cut(crumbs) == whole
    # A not-a-number is not equal to itself; as text it is.
    for _, raw in whole[0]:
        assert repr(quickly(raw)) == repr(plainly(raw))
    assert told(chunks) == told(crumbs) == told([body])


def main() -> None:
    """Fuzz until told to stop."""
    check(bytes(2) + SEED)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
