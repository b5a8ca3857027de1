"""What broken and hostile gateways cost: how long they hold the loop, whether time grows with length, what is held.

For each kind of answer: the longest time between two turns of the event loop while it is read (target: 20 ms), the
CPU of twice the length against that of the length (linear: 2), and the most memory that it takes. Each kind runs in a
process of its own (but for `--quick`), which is ended after a while, so that one that hangs is told as one.
At last, how long a reader waits for the end of an answer whose connection stays open.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Final

import anthropic
import anyio
import anyio.lowlevel
import httpx2

from _harness import machine, quick, settle_environment, table, verdict
from penstock import Client, RetryOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from anthropic.types import MessageParam

MIB: Final = 1024 * 1024
HOLD_MS: Final = 20.0
LINEAR: Final = 2.6
HELD_MB: Final = 160.0
GIVEN_UP_S: Final = 60
MESSAGES: Final[list[MessageParam]] = [{"role": "user", "content": "Hello"}]
PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'
START: Final = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant",'
    b'"model":"claude-sonnet-5-5","content":[],"usage":{"input_tokens":25,"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n'
)
WORD: Final = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"word "}}\n\n'
)
END: Final = (
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":15}}\n\n'
)
STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def blocks(filling: bytes, size: int) -> tuple[bytes, ...]:
    """About `size` bytes, in blocks of 64 kB that are one object in memory."""
    block = filling * max(1, 65_536 // len(filling))
    return (block,) * max(1, size // len(block))


def single(body: bytes) -> tuple[bytes, ...]:
    """Chunks of one byte."""
    return tuple(body[place : place + 1] for place in range(len(body)))


def packed(parts: Sequence[bytes]) -> bytes:
    """One chunk of gzip; never held inflated."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([*(packer.compress(part) for part in parts), packer.flush()])


def _pings(parts: Sequence[bytes]) -> tuple[bytes, ...]:
    return (START + WORD, *parts, END + STOP)


# Each for a length: its chunks, their encoding, and whether it is a stream. At length 1 it is what was once reported.
KINDS: Final[dict[str, Callable[[float], tuple[Sequence[bytes], str, bool]]]] = {
    "8,000 pings in one-byte chunks": lambda n: (_pings(single(PING * int(8_000 * n))), "identity", True),
    "4 MB of pings in one chunk of gzip": lambda n: (
        (packed(_pings(blocks(PING, int(4 * MIB * n)))),),
        "gzip",
        True,
    ),
    "32 MB of pings after the usage": lambda n: (
        (START + WORD + END, *blocks(PING, int(32 * MIB * n)), STOP),
        "identity",
        True,
    ),
    "8 MB of comments": lambda n: (_pings(blocks(b": keep-alive\n\n", int(8 * MIB * n))), "identity", True),
    "4 MB of blank lines": lambda n: (_pings(blocks(b"\n", int(4 * MIB * n))), "identity", True),
    "4 MB of pings with CR": lambda n: (
        _pings(blocks(PING.replace(b"\n", b"\r"), int(4 * MIB * n))),
        "identity",
        True,
    ),
    "an event of 16 MB, one line": lambda n: (
        (START, b'data: {"type":"x","x":"', *blocks(b"x", int(16 * MIB * n)), b'"}\n\n', WORD, END, STOP),
        "identity",
        True,
    ),
    "an event of 100,000 data lines": lambda n: (
        (START, b'data: {"type":"x","x":[\n', b"data: 1,\n" * int(100_000 * n), b"data: 1]}\n\n", WORD, END, STOP),
        "identity",
        True,
    ),
    "an event of 256 kB in one-byte chunks": lambda n: (
        (START, *single(b'data: {"type":"x","x":"' + b"x" * int(262_144 * n) + b'"}\n\n'), WORD, END, STOP),
        "identity",
        True,
    ),
    "40,000 deltas in one chunk": lambda n: ((START + WORD * int(40_000 * n) + END + STOP,), "identity", True),
    "a whole answer that inflates to 256 MB": lambda n: (
        (packed((b"{", *blocks(b" " * 1_024, int(256 * MIB * n)))),),
        "gzip",
        False,
    ),
    "pings that inflate to 256 MB": lambda n: ((packed((START, *blocks(PING, int(256 * MIB * n)))),), "gzip", True),
}


class Body(httpx2.AsyncByteStream):
    """Chunks that need no waiting: only the reader can give others their turn."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


class Canned(httpx2.AsyncBaseTransport):
    """Answers every request with the same chunks."""

    chunks: Sequence[bytes] = ()
    encoding = "identity"
    stream = True

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer."""
        kind = "text/event-stream" if self.stream else "application/json"
        headers = {"content-type": kind, "content-encoding": self.encoding}
        return httpx2.Response(200, headers=headers, stream=Body(self.chunks), request=request)


async def ask(claude: Client, *, stream: bool) -> None:
    """Read one answer; that it is refused is an answer too."""
    try:
        if stream:
            async with claude.stream(model="claude-sonnet-5-5", max_tokens=100, messages=MESSAGES) as answer:
                await answer.get_final_message()
        else:
            await claude.messages.create(
                model="claude-sonnet-5-5", max_tokens=100, messages=[{"role": "user", "content": "Hello"}]
            )
    except anthropic.AnthropicError:
        return


async def longest_hold_s(claude: Client, *, stream: bool) -> float:
    """Read one answer, and return the longest time between two turns of the loop.

    It is the CPU of the loop's own thread: nothing here waits, and what else the machine does is not counted.
    """
    longest = 0.0

    async def turn() -> None:
        nonlocal longest
        last = time.thread_time()
        while True:
            await anyio.lowlevel.checkpoint()
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    async with anyio.create_task_group() as group:
        group.start_soon(turn)
        await anyio.lowlevel.checkpoint()
        await ask(claude, stream=stream)
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    return longest


async def measure(name: str, scale: float) -> dict[str, float]:
    """Measure one kind: hold, growth, memory."""
    canned = Canned()
    sdk = anthropic.AsyncAnthropic(
        api_key="sk-ant-bench", max_retries=0, open_telemetry=False, http_client=httpx2.AsyncClient(transport=canned)
    )
    async with Client(sdk=sdk, log=False, retry=RetryOptions(max_attempts=1)) as claude:
        cpu: list[float] = []
        hold = 0.0
        canned.chunks = (START, WORD, END, STOP)
        await ask(claude, stream=True)
        for length in (scale / 2, scale):
            canned.chunks, canned.encoding, canned.stream = KINDS[name](length)
            began = time.process_time()
            hold = await longest_hold_s(claude, stream=canned.stream)
            cpu.append(time.process_time() - began)
        tracemalloc.start()
        await ask(claude, stream=canned.stream)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    growth = cpu[1] / max(cpu[0], 1e-4)
    return {"hold_ms": hold * 1e3, "growth": growth, "half_s": cpu[0], "cpu_s": cpu[1], "held_mb": held / 1e6}


def measured(name: str) -> dict[str, float] | None:
    """The same, in a process of its own; no figures if it was given up."""
    command = [sys.executable, __file__, "--kind", name]
    try:
        printed = subprocess.run(command, check=True, capture_output=True, timeout=GIVEN_UP_S).stdout
    except subprocess.TimeoutExpired:
        return None
    return dict(json.loads(printed))


async def wait_for_end_ms() -> float:
    """How long a reader waits after `message_stop` where the connection stays open."""
    stays = anyio.Event()
    sent_at = 0.0

    class Open(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            nonlocal sent_at
            sent_at = time.perf_counter()
            yield START + WORD + END + STOP
            await stays.wait()

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Open(), request=request)

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    sdk = anthropic.AsyncAnthropic(api_key="sk-ant-bench", max_retries=0, open_telemetry=False, http_client=http)
    async with Client(sdk=sdk, log=False) as claude:
        with anyio.move_on_after(5):
            await ask(claude, stream=True)
        ended_at = time.perf_counter()
        stays.set()
    return (ended_at - sent_at) * 1e3


def main() -> None:
    """Measure all kinds, and print what came out."""
    settle_environment()
    if sys.argv[1:2] == ["--kind"]:
        print(json.dumps(anyio.run(measure, sys.argv[2], 1.0)))
        return
    print(machine())
    figures: dict[str, dict[str, float] | None]
    if quick(__doc__):
        figures = {name: anyio.run(measure, name, 0.005) for name in KINDS}
    else:
        figures = {name: measured(name) for name in KINDS}
    rows: list[list[str]] = []
    target = f"≤ {HOLD_MS:.0f} ms, ≤ {LINEAR}, ≤ {HELD_MB:.0f} MB"
    for name in KINDS:
        found = figures[name]
        if found is None:
            rows.append([name, "given up", "", "", "", "", target, "✗"])
            continue
        good = found["hold_ms"] <= HOLD_MS and found["growth"] <= LINEAR and found["held_mb"] <= HELD_MB
        rows.append(
            [
                name,
                f"{found['hold_ms']:.1f}",
                f"{found['half_s']:.2f}",
                f"{found['cpu_s']:.2f}",
                f"{found['growth']:.1f}",
                f"{found['held_mb']:.1f}",
                target,
                "✓" if good else "✗",
            ]
        )
    header = ["Answer", "longest hold, ms", "CPU of half, s", "CPU, s", "ratio", "held, MB", "target", ""]
    table("Hostile answers", header, rows)
    waited = anyio.run(wait_for_end_ms)
    table(
        "The end of an answer whose connection stays open",
        ["What", "measured, ms", "target", ""],
        [["from its last event to the reader", f"{waited:.1f}", "≤ 50 ms", verdict(waited, 50)]],
    )


if __name__ == "__main__":
    main()
