"""What decoding server-sent events costs, and that it grows no faster than the stream.

Prints a Markdown table: microseconds for each event, and how four times as many single bytes compare with as many.
"""

from __future__ import annotations

from time import process_time
from typing import TYPE_CHECKING

from penstock._core.body.scanner import Scanner
from penstock._core.body.sse import Splitter, data_of, decode

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}\n\n'
)
ROUNDS = 5


def cutting() -> Callable[[bytes], object]:
    """Cut a stream into events, and look into none of them."""
    return Splitter().feed


def decoding() -> Callable[[bytes], object]:
    """Cut a stream into events, and decode each, with its data as text."""
    splitter = Splitter()
    return lambda chunk: [decode(raw) for raw in splitter.feed(chunk)]


def reading() -> Callable[[bytes], object]:
    """Cut a stream into events, and decode the data of each."""
    splitter = Splitter()
    return lambda chunk: [data_of(raw) for raw in splitter.feed(chunk)]


def watching() -> Callable[[bytes], object]:
    """Watch an answer that has begun for what it tells about itself."""
    scanner = Scanner()
    scanner.see(EVENT)
    return scanner.see


WAYS = {"cut": cutting, "cut and decoded": decoding, "cut, its data decoded": reading, "watched": watching}


def seconds(way: Callable[[], Callable[[bytes], object]], body: bytes, size: int) -> float:
    """CPU seconds to take in `body` in chunks of `size`, the best of several rounds."""

    def once() -> float:
        take = way()
        began = process_time()
        for place in range(0, len(body), size):
            take(body[place : place + size])
        return process_time() - began

    return min(once() for _ in range(ROUNDS))


def main() -> None:
    """Measure and print."""
    events = 5_000
    body = EVENT * events
    print("| What | Measured |")
    print("|---|---|")
    for name, way in WAYS.items():
        print(f"| an event for each chunk, {name} | {seconds(way, body, len(EVENT)) / events * 1e6:.2f} µs an event |")
        print(f"| chunks of 16 kB, {name} | {seconds(way, body, 16_384) / events * 1e6:.2f} µs an event |")
    for name, piece in (("events", EVENT), ("a line without end", b"x"), ("empty comments", b":\r\n")):
        small, large = (piece * (size // len(piece)) for size in (40_000, 160_000))
        growth = seconds(decoding, large, 1) / seconds(decoding, small, 1)
        print(f"| four times as many single bytes, {name} | {growth:.1f} times as long (linear: 4) |")


if __name__ == "__main__":
    main()
