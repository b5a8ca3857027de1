"""Answers as exact bytes: over a real socket, or in this process, chunk for chunk; and what a client makes of them.

The rule here: tests of this folder know public names only. What must hold is said by the bytes that were sent, and by
the SDK's own decoder. Waits end by what happens; their limits only keep a test that fails from hanging.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import threading
import tracemalloc
import zlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import anthropic
import anyio
import anyio.lowlevel
import httpx2
import pytest

from penstock import BreakerOptions, Client, RetryOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
ASK: Final[dict[str, Any]] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hello"}],
}
# Every wait of these tests ends long before, unless what is tested never happens.
WATCHDOG_S: Final = 5.0
PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'

# What is sent


def start(**usage: object) -> dict[str, Any]:
    """How a message begins; 25 tokens of input, unless told otherwise."""
    counted = {"input_tokens": 25, "cache_read_input_tokens": 3, "output_tokens": 1, **usage}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5", "content": []}
    return {
        "type": "message_start",
        "message": {**message, "stop_reason": None, "stop_sequence": None, "usage": counted},
    }


def opening(index: int, **block: object) -> dict[str, Any]:
    """The start of a block."""
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, **fields: object) -> dict[str, Any]:
    """A part of a block."""
    return {"type": "content_block_delta", "index": index, "delta": fields}


def words(index: int, *parts: str) -> list[dict[str, Any]]:
    """A whole block of text."""
    deltas = [delta(index, type="text_delta", text=part) for part in parts]
    return [opening(index, type="text", text=""), *deltas, {"type": "content_block_stop", "index": index}]


def end(stop_reason: str = "end_turn", **usage: object) -> list[dict[str, Any]]:
    """How a message ends; 15 tokens of output, unless told otherwise."""
    stopped = {"stop_reason": stop_reason, "stop_sequence": None}
    return [
        {"type": "message_delta", "delta": stopped, "usage": {"output_tokens": 15, **usage}},
        {"type": "message_stop"},
    ]


def sse(*events: dict[str, Any]) -> bytes:
    """Events as the API writes them."""
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def message(text: str = "Hello", **fields: object) -> dict[str, Any]:
    """A whole answer, as it is given without streaming."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5-5",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 25, "cache_read_input_tokens": 3, "output_tokens": 15},
        **fields,
    }


def cut(body: bytes, *places: int) -> tuple[bytes, ...]:
    """The same bytes in chunks that end at `places`."""
    return tuple(body[first:last] for first, last in pairwise((0, *places, len(body))))


def compressed(encoding: str, chunks: Sequence[bytes]) -> tuple[bytes, ...]:
    """Chunks as `content-encoding` has them, each flushed, so that it can be read when it comes."""
    if encoding == "identity":
        return tuple(chunks)
    window = {"gzip": 31, "deflate": 15}[encoding]
    packer = zlib.compressobj(wbits=window)
    packed = [packer.compress(chunk) + packer.flush(zlib.Z_SYNC_FLUSH) for chunk in chunks]
    return (*packed, packer.flush())


@dataclass(frozen=True)
class Answer:
    """One answer of the server.

    Attributes:
        parts: Chunks of its body, sent one by one.
        content_type: `None` for none.
        headers: Others.
        status: Of the answer.
        framing: How the client finds the end of the body.
        then: What the server does after the last part: end the body, leave the connection open and silent, leave it
            open and send pings, close it without ending the body, or reset it.
        after: What is waited for before that.
    """

    parts: Sequence[bytes] = ()
    content_type: str | None = EVENT_STREAM
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    status: int = 200
    framing: Literal["chunked", "length", "close"] = "chunked"
    then: Literal["end", "stay", "ping", "cut", "reset"] = "end"
    after: threading.Event | None = None

    def head(self) -> bytes:
        """Status line and headers."""
        lines = [f"HTTP/1.1 {self.status} Told", "request-id: req_1", *(f"{n}: {v}" for n, v in self.headers.items())]
        if self.content_type is not None:
            lines.append(f"content-type: {self.content_type}")
        if self.framing == "chunked":
            lines.append("transfer-encoding: chunked")
        elif self.framing == "length":
            missing = 0 if self.then == "end" else 1_000
            lines.append(f"content-length: {sum(map(len, self.parts)) + missing}")
        else:
            lines.append("connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def framed(self, part: bytes) -> bytes:
        """A part as it goes over the wire."""
        return b"%x\r\n%b\r\n" % (len(part), part) if self.framing == "chunked" else part


async def until(holds: Callable[[], bool], within_s: float = WATCHDOG_S) -> bool:
    """Whether `holds` comes true; waits for it."""
    with anyio.move_on_after(within_s):
        while not holds():  # noqa: ASYNC110 - it comes true in a thread, which can set no event of the loop
            await anyio.sleep(0.005)
    return holds()


# Over a socket


class Connection:
    """One connection, as the server sees it; `left` once the client has closed it, or neither has it any more."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.left = False

    def receive(self) -> bytes:
        """Wait for bytes; none if the client has closed."""
        try:
            data = self.socket.recv(65_536)
        except OSError:
            data = b""
        self.left = self.left or not data
        return data

    def send(self, data: bytes) -> None:
        """Send all of it, unless the client has closed."""
        try:
            self.socket.sendall(data)
        except OSError:
            self.left = True

    def request(self) -> dict[str, Any] | None:
        """The body of the next request; `None` if there is none."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := self.receive()):
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        named = [line.partition(b":") for line in head.lower().split(b"\r\n")]
        length = next((int(value) for name, _, value in named if name == b"content-length"), 0)
        while len(body) < length and (more := self.receive()):
            body += more
        return dict(json.loads(body))

    def serve(self, answer: Answer) -> bool:
        """Send an answer; whether another request may follow."""
        self.send(answer.head())
        for part in answer.parts:
            self.send(answer.framed(part))
        if answer.after is not None:
            answer.after.wait(WATCHDOG_S)
        if answer.then == "end":
            self.send(b"0\r\n\r\n" if answer.framing == "chunked" else b"")
            return answer.framing != "close"
        if answer.then == "reset":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.left = True
        while answer.then in {"stay", "ping"} and not self.left:
            if select.select([self.socket], [], [], 0.005)[0]:
                self.receive()
            elif answer.then == "ping":
                self.send(answer.framed(PING))
        return False

    def end(self) -> None:
        """Send no more, and wait until the client has closed its side too."""
        with contextlib.suppress(OSError):
            if not self.left:
                self.socket.shutdown(socket.SHUT_WR)
        while not self.left:
            self.receive()


class Server:
    """Answers requests in turn with what it was told; the last answer serves all that follow.

    Attributes:
        url: Where it listens.
        answers: What is sent, in order.
        requests: The bodies of all requests.
        connections: All that were ever opened.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.answers: list[Answer] = []
        self.requests: list[dict[str, Any]] = []
        self.connections: list[Connection] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()

    def answer(self, *answers: Answer) -> None:
        """Forget what was, and say what comes next."""
        self.answers = list(answers)
        self.requests.clear()

    def _listen(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock)
            self.connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: Connection) -> None:
        with connection.socket:
            goes_on = True
            while goes_on and (request := connection.request()) is not None:
                with self._lock:
                    self.requests.append(request)
                    answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
                goes_on = connection.serve(answer)
            connection.end()

    @property
    def open_connections(self) -> int:
        """How many connections no client has closed."""
        return sum(not connection.left for connection in self.connections)

    async def all_left(self, within_s: float = WATCHDOG_S) -> bool:
        """Whether the client closes every connection; waits for it."""
        return await until(lambda: not self.open_connections, within_s)

    def close(self) -> None:
        """End all connections."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WATCHDOG_S)


# In this process

Chunk: TypeAlias = "bytes | Exception | anyio.Event"


class Body(httpx2.AsyncByteStream):
    """Gives chunks as they are; an exception is raised; an event is waited for."""

    def __init__(self, chunks: Sequence[Chunk], left: list[bool]) -> None:
        self._chunks = chunks
        self._left = left

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, Exception):
                raise chunk
            if isinstance(chunk, bytes):
                yield chunk
            else:
                await chunk.wait()

    async def aclose(self) -> None:
        self._left.append(True)


class Canned(httpx2.AsyncBaseTransport):
    """A transport that answers requests in turn; the last answer serves all that follow."""

    def __init__(self) -> None:
        self.answers: list[tuple[Sequence[Chunk], dict[str, str]]] = []
        self.asked = 0
        self.left: list[bool] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        self.asked += 1
        chunks, headers = self.answers[min(self.asked, len(self.answers)) - 1]
        return httpx2.Response(200, headers=headers, stream=Body(chunks, self.left), request=request)


# What a client makes of it


@dataclass(kw_only=True)
class Outcome:
    """What a reader has been given, and what ended it."""

    texts: list[str] = field(default_factory=list[str])
    error: Exception | None = None
    message: Any = None
    usage: Any = None
    complete: bool | None = None

    @property
    def text(self) -> str:
        """All that was given out."""
        return "".join(self.texts)

    @property
    def partial(self) -> list[str]:
        """The texts of the blocks that the error holds; none where it holds no message."""
        message: Any = getattr(self.error, "partial", None)
        return [] if message is None else [block.text for block in message.content if block.type == "text"]


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the statistics of a client say."""

    attempts: int
    successes: int
    failures: dict[str, int]
    tokens: tuple[int, int, int]
    first_tokens: int
    retries: int
    slots_used: int
    breakers: frozenset[str]

    def since(self, before: Told) -> Told:
        """What was counted since; slots and breakers are as they are now."""
        failures = {kind: count - before.failures.get(kind, 0) for kind, count in self.failures.items()}
        earlier = before.tokens
        return Told(
            attempts=self.attempts - before.attempts,
            successes=self.successes - before.successes,
            failures={kind: count for kind, count in failures.items() if count},
            tokens=(self.tokens[0] - earlier[0], self.tokens[1] - earlier[1], self.tokens[2] - earlier[2]),
            first_tokens=self.first_tokens - before.first_tokens,
            retries=self.retries - before.retries,
            slots_used=self.slots_used,
            breakers=self.breakers,
        )


def _text_of(answer: Any) -> list[str]:
    return ["".join(block.text for block in answer.content if block.type == "text")]


async def _ours(claude: Any, outcome: Outcome, how: str, ask: dict[str, Any]) -> None:
    async with claude.stream(**ask) as answer:
        try:
            if how == "text":
                async for text in answer.text_stream:
                    outcome.texts.append(text)
            elif how == "events":
                async for event in answer:
                    if event.type == "text":
                        outcome.texts.append(event.text)
            outcome.message = await answer.get_final_message()
            if how == "final":
                outcome.texts += _text_of(outcome.message)
        finally:
            outcome.usage, outcome.complete = answer.usage, answer.complete


async def _helper_of_sdk(claude: Any, outcome: Outcome, ask: dict[str, Any]) -> None:
    async with claude.messages.stream(**ask) as answer:
        async for text in answer.text_stream:
            outcome.texts.append(text)
        outcome.message = await answer.get_final_message()


async def _events_of_sdk(claude: Any, outcome: Outcome, ask: dict[str, Any]) -> None:
    async with await claude.messages.create(**ask, stream=True) as events:
        async for event in events:
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                outcome.texts.append(event.delta.text)


class Wire:
    """What tests of this folder need; see the module."""

    ask = ASK
    ping = PING
    watchdog_s = WATCHDOG_S
    event_stream = EVENT_STREAM
    Answer = Answer
    start = staticmethod(start)
    opening = staticmethod(opening)
    delta = staticmethod(delta)
    words = staticmethod(words)
    end = staticmethod(end)
    sse = staticmethod(sse)
    message = staticmethod(message)
    cut = staticmethod(cut)
    compressed = staticmethod(compressed)
    until = staticmethod(until)
    ours = ("text", "events", "final")
    """Ways to read `claude.stream`."""

    def __init__(self) -> None:
        self.canned = Canned()
        self._sdk = anthropic.AsyncAnthropic(
            api_key="sk-ant-test",
            max_retries=0,
            open_telemetry=False,
            http_client=httpx2.AsyncClient(transport=self.canned),
        )

    @property
    def hello(self) -> list[dict[str, Any]]:
        """The events of a stream whose text is `Hello, world`."""
        return [start(), *words(0, "Hello", ", ", "world"), *end()]

    @property
    def bare(self) -> anthropic.AsyncAnthropic:
        """The SDK's client, ungoverned, whose answers are `answer`'s."""
        return self._sdk

    def answer(
        self,
        *bodies: Sequence[Chunk] | bytes,
        content_type: str | None = EVENT_STREAM,
        content_types: Sequence[str] | None = None,
        **headers: str,
    ) -> None:
        """Say what is answered in this process, with one body after the other; the last serves all that follow."""
        named = {name.replace("_", "-"): value for name, value in headers.items()} | {"request-id": "req_1"}
        self.canned.answers = []
        for body, kind in zip(bodies, content_types or (content_type,) * len(bodies), strict=True):
            chunks = (body,) if isinstance(body, bytes) else body
            self.canned.answers.append((chunks, named if kind is None else {**named, "content-type": kind}))
        self.canned.asked = 0
        self.canned.left.clear()

    def governed(self, **settings: Any) -> Client:
        """A client whose answers are `answer`'s."""
        return Client(sdk=settings.pop("sdk", self._sdk), **self._settings(settings))

    def connected(self, server: Server, **settings: Any) -> Client:
        """A client of a server."""
        return Client(api_keys=["sk-ant-test-0123456789"], base_url=server.url, **self._settings(settings))

    @staticmethod
    def _settings(settings: dict[str, Any]) -> dict[str, Any]:
        attempts, hold_s = settings.pop("max_attempts", 2), settings.pop("hold_s", 10.0)
        retry = RetryOptions(max_attempts=attempts, base_s=0.001, cap_s=0.001, hold_s=hold_s)
        # Where the breaker is not what is tested, it doesn't end the test.
        breaker = BreakerOptions(minimum=10_000, window=10_000)
        return {"log": False, "close_timeout_s": 0.1, "retry": retry, "breaker": breaker, **settings}

    async def read(self, claude: Any, how: str = "text", **ask: Any) -> Outcome:
        """Ask, and read the answer to its end: by `claude.stream`, or one of the SDK's two ways."""
        outcome = Outcome()
        asked = ASK | ask
        try:
            with anyio.fail_after(WATCHDOG_S):
                if how == "sdk stream":
                    await _helper_of_sdk(claude, outcome, asked)
                elif how == "sdk events":
                    await _events_of_sdk(claude, outcome, asked)
                else:
                    await _ours(claude, outcome, how, asked)
        except Exception as error:  # noqa: BLE001 - returned
            outcome.error = error
        return outcome

    async def create(self, claude: Any, **ask: Any) -> Outcome:
        """Ask without streaming."""
        outcome = Outcome()
        try:
            with anyio.fail_after(WATCHDOG_S):
                outcome.message = await claude.messages.create(**ASK | ask)
        except Exception as error:  # noqa: BLE001 - returned
            outcome.error = error
        return outcome

    @staticmethod
    def told(claude: Any) -> Told:
        """What the statistics say now."""
        statistics = claude.statistics()
        total = statistics.attempts.total
        return Told(
            attempts=total.attempts,
            successes=total.successes,
            failures=dict(total.failures),
            tokens=(total.input_tokens, total.cache_read_tokens, total.output_tokens),
            first_tokens=total.first_token.count,
            retries=statistics.retry.retries,
            slots_used=statistics.admission.slots_used,
            breakers=frozenset(breaker.state for breaker in statistics.breaker.classes.values()),
        )

    @staticmethod
    def bomb(parts: Iterable[bytes], encoding: str = "gzip") -> bytes:
        """What inflates to all the parts; never held inflated."""
        packer = zlib.compressobj(9, wbits={"gzip": 31, "deflate": 15}[encoding])
        return b"".join([*(packer.compress(part) for part in parts), packer.flush()])

    @staticmethod
    async def turns_while(reading: Awaitable[Outcome]) -> tuple[Outcome, int]:
        """What was read, and how often the loop turned meanwhile, so that others had their turn."""
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        async with anyio.create_task_group() as group:
            group.start_soon(turn)
            outcome = await reading
            group.cancel_scope.cancel()
        return outcome, turns

    @staticmethod
    async def peak_of(reading: Awaitable[Outcome]) -> tuple[Outcome, int]:
        """What was read, and the most bytes that were allocated meanwhile."""
        tracemalloc.start()
        try:
            outcome = await reading
            return outcome, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def pytest_configure(config: pytest.Config) -> None:
    """Tell of the mark of this folder."""
    config.addinivalue_line("markers", "in_turn(**lists): a case for each member of the longest list; see this folder")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each member of the longest list a case; the members of the others take turns.

    So each member of each list is tried, without trying all with all. A list is a mapping of names, or of strings.
    """
    for mark in metafunc.definition.iter_markers("in_turn"):
        lists = [
            [*members.items()] if isinstance(members, dict) else [(str(member), member) for member in members]
            for members in mark.kwargs.values()
        ]
        cases = [[members[number % len(members)] for members in lists] for number in range(max(map(len, lists)))]
        metafunc.parametrize(
            list(mark.kwargs),
            [[value for _, value in case] for case in cases],
            ids=["-".join(name for name, _ in case) for case in cases],
        )


@pytest.fixture(scope="session")
def wire() -> Wire:
    """Streams, and clients that they are answered to."""
    return Wire()


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that sends what a test says, byte for byte."""
    running = Server()
    yield running
    running.close()
