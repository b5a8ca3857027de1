"""What decoding server-sent events costs, and that it grows no faster than the stream.

Prints a Markdown table: microseconds for each event, and how four times as many single bytes compare with as many.
"""

from __future__ import annotations

from time import process_time

from penstock._core.body.sse import SSEDecoder

EVENT = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}\n\n'
)
ROUNDS = 5


def seconds(body: bytes, size: int) -> float:
    """CPU seconds to decode `body` in chunks of `size`, the best of several rounds."""

    def once() -> float:
        decoder = SSEDecoder()
        began = process_time()
        for place in range(0, len(body), size):
            decoder.feed(body[place : place + size])
        return process_time() - began

    return min(once() for _ in range(ROUNDS))


def main() -> None:
    """Measure and print."""
    events = 5_000
    body = EVENT * events
    print("| What | Measured |")
    print("|---|---|")
    print(f"| an event for each chunk | {seconds(body, len(EVENT)) / events * 1e6:.2f} µs an event |")
    print(f"| chunks of 16 kB | {seconds(body, 16_384) / events * 1e6:.2f} µs an event |")
    for name, piece in (("events", EVENT), ("a line without end", b"x"), ("empty comments", b":\r\n")):
        small, large = (piece * (size // len(piece)) for size in (40_000, 160_000))
        growth = seconds(large, 1) / seconds(small, 1)
        print(f"| four times as many single bytes, {name} | {growth:.1f} times as long (linear: 4) |")


if __name__ == "__main__":
    main()
