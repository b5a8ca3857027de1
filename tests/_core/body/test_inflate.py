from __future__ import annotations

import contextlib
import gzip
import zlib
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.body.inflate import PIECE_BYTES, Bounded, inflated, take_encodings
from penstock.errors import InvalidStream, ResponseTooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

TEXT = b"".join(b"event: ping\ndata: %d\n\n" % number for number in range(200))


def raw_deflate(data: bytes) -> bytes:
    """Deflate without its wrapping, as some servers send it."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def flushed(data: bytes, *, wbits: int) -> bytes:
    """Compressed with a flush after every few bytes, as a server does that streams."""
    packer = zlib.compressobj(wbits=wbits)
    parts = [packer.compress(data[at : at + 50]) + packer.flush(zlib.Z_SYNC_FLUSH) for at in range(0, len(data), 50)]
    return b"".join(parts) + packer.flush()


def members(data: bytes) -> bytes:
    """Several gzip files, one after the other."""
    return b"".join(gzip.compress(data[at : at + 700]) for at in range(0, len(data), 700))


WAYS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("gzip", members),
    ("gzip", lambda data: flushed(data, wbits=31)),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("deflate", lambda data: flushed(data, wbits=15)),
    ("deflate", lambda data: flushed(data, wbits=-15)),
]
IDS = ["gzip", "x-gzip", "members", "gzip flushed", "zlib", "raw deflate", "zlib flushed", "raw deflate flushed"]
each_way = pytest.mark.parametrize(("encoding", "compress"), WAYS, ids=IDS)


async def stream_of(*chunks: bytes) -> AsyncGenerator[bytes, None]:
    """A body in chunks."""
    for chunk in chunks:
        yield chunk


async def undone(encoding: str, *chunks: bytes) -> list[bytes]:
    """The pieces that come out, without the empty ones."""
    return [piece async for piece in inflated(stream_of(*chunks), [encoding]) if piece]


class Stream(httpx2.AsyncByteStream):
    """A transport's stream."""

    elapsed = timedelta(seconds=3)

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk

    async def aclose(self) -> None:
        self.closed += 1


def bounded(stream: httpx2.AsyncByteStream, limit: float, encoding: str = "identity") -> httpx2.Response:
    """A response that may have so many bytes."""
    http = httpx2.Response(200, headers={"content-encoding": encoding, "content-length": "7"}, stream=stream)
    http.stream = Bounded(http, limit)
    return http


# Which ones are undone.


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("gzip", ("gzip",)),
        (" GZIP ", ("gzip",)),
        ("x-gzip", ("x-gzip",)),
        ("deflate", ("deflate",)),
        ("deflate, gzip", ("gzip", "deflate")),
        ("identity, gzip,", ("gzip",)),
        ("", ()),
        ("identity", ()),
        ("br", None),
        ("zstd", None),
        ("gzip, br", None),
    ],
)
def test_only_what_can_be_undone_is_taken_off_the_headers(header: str, taken: tuple[str, ...] | None) -> None:
    """With it goes the length, which no longer holds; where one is unknown here, all stay for the reader."""
    headers = httpx2.Headers({"content-encoding": header, "content-length": "12"})
    assert take_encodings(headers) == taken
    assert ("content-encoding" in headers, "content-length" in headers) == ((False,) * 2 if taken else (True,) * 2)


def test_a_response_without_encoding_or_length_has_nothing_to_take() -> None:
    """Nor has a compressed one need of a length."""
    assert take_encodings(httpx2.Headers()) == ()
    assert take_encodings(httpx2.Headers({"content-encoding": "gzip"})) == ("gzip",)


# What comes out.


@pytest.mark.lengthy
@each_way
@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
async def test_what_was_compressed_comes_out(encoding: str, compress: Callable[[bytes], bytes], size: int) -> None:
    """Whole or one byte at a time, in one file or several, wrapped or not, flushed or not."""
    data = compress(TEXT)
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    assert b"".join(await undone(encoding, *chunks)) == TEXT


@given(text=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5), way=st.sampled_from(WAYS))
def test_how_it_was_cut_never_shows(text: bytes, cuts: list[int], way: tuple[str, Callable[[bytes], bytes]]) -> None:
    """Any bytes, cut anywhere, empty chunks among them."""
    encoding, compress = way
    data = compress(text)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[start:end] for start, end in pairwise(edges)]
    assert b"".join(anyio.run(undone, encoding, *chunks)) == text


@pytest.mark.parametrize("wbits", [31, 15, -15])
async def test_what_was_flushed_comes_out_at_once(wbits: int) -> None:
    """An event is not held back until the next one comes."""
    packer = zlib.compressobj(wbits=wbits)
    send, seen = [packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in (b"one", b"two")], list[bytes]()

    async def chunks() -> AsyncIterator[bytes]:
        for number, chunk in enumerate(send):
            assert len(seen) == number
            yield chunk

    async for piece in inflated(chunks(), ["gzip" if wbits == 31 else "deflate"]):
        seen += [piece] if piece else []
    assert seen == [b"one", b"two"]


@each_way
@pytest.mark.slow
async def test_a_bomb_comes_in_small_pieces(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """64 MB out of 64 kB are never held at once, nor is more made than is asked for."""
    del compress
    size = 64 * 1024 * 1024
    packer = zlib.compressobj(wbits=15 if encoding == "deflate" else 31)
    bomb = packer.compress(bytes(size)) + packer.flush()
    assert len(bomb) < 100_000
    sizes = [len(piece) async for piece in inflated(stream_of(bomb), [encoding])]
    assert sum(sizes) == size
    assert max(sizes) == PIECE_BYTES


@pytest.mark.lengthy
@pytest.mark.parametrize("more", [-1, 0, 1, 100, 300])
async def test_a_piece_that_is_just_full_hides_nothing(more: int) -> None:
    """What zlib still holds when it has taken all its input comes out as well, wherever that was cut."""
    text = bytes(PIECE_BYTES + more)
    data = gzip.compress(text)
    for cut in range(1, len(data)):
        so_far = zlib.decompressobj(31).decompress(data[:cut])
        assert b"".join(await undone("gzip", data[:cut])) == so_far
        assert b"".join(await undone("gzip", data[:cut], data[cut:])) == text


@pytest.mark.parametrize("padding", [b"\r\n", bytes(100), b"\x1f", b"trailing"], ids=repr)
@pytest.mark.parametrize("size", [1, 100_000])
async def test_padding_after_the_end_is_passed_over(padding: bytes, size: int) -> None:
    """As any other reader does it: the answer has come."""
    data = gzip.compress(TEXT) + padding
    assert b"".join(await undone("gzip", *(data[at : at + size] for at in range(0, len(data), size)))) == TEXT


@pytest.mark.parametrize("data", [b"", b"x"])
async def test_too_few_bytes_to_tell_come_to_nothing(data: bytes) -> None:
    """A body that ends before its first two bytes says nothing."""
    assert await undone("deflate", data) == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [1, 100])
async def test_what_cannot_be_undone_is_a_typed_error(encoding: str, size: int) -> None:
    """Bytes that were never compressed."""
    data = b"\xff\xff\xff\xff neither gzip nor deflate"
    with pytest.raises(InvalidStream, match="its compression can't be undone"):
        await undone(encoding, *(data[at : at + size] for at in range(0, len(data), size)))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_damage_in_the_middle_is_told_with_its_place(encoding: str) -> None:
    """Counted in the bytes that came; what came before was handed on, and the error does not hold the rest."""
    data = flushed(TEXT, wbits=31 if encoding == "gzip" else 15)
    # Where a flush ends, a new block begins; there is none of the kind that 255 would begin.
    half, seen = data.index(b"\x00\x00\xff\xff", len(data) // 2) + 4, list[bytes]()
    with pytest.raises(InvalidStream) as raised:  # noqa: PT012 - what came before counts
        async for piece in inflated(stream_of(data[:half], b"\xff" * 50), [encoding]):
            seen.append(piece)
    assert raised.value.position == half
    assert raised.value.__suppress_context__
    assert TEXT.startswith(b"".join(seen))
    assert seen


@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate"]))
def test_any_bytes_are_undone_or_refused(data: bytes, encoding: str) -> None:
    """Nothing else is raised."""
    with contextlib.suppress(InvalidStream):
        anyio.run(undone, encoding, data)


@pytest.mark.parametrize("size", [1, 100_000])
async def test_one_compression_in_another_is_undone(size: int) -> None:
    """The last that was done first, and a bomb in a bomb in small pieces."""
    for text in (TEXT, bytes(4_000_000)):
        data = gzip.compress(raw_deflate(text))
        chunks = [data[at : at + size] for at in range(0, len(data), size)]
        pieces = [piece async for piece in inflated(stream_of(*chunks), ["gzip", "deflate"])]
        assert b"".join(pieces) == text
        assert max(map(len, pieces)) <= PIECE_BYTES


@pytest.mark.parametrize("idle", [gzip.compress(b""), b"padding"], ids=["empty members", "padding"])
async def test_what_brings_nothing_is_told_and_not_kept(idle: bytes) -> None:
    """So that whoever reads can count turns, and an endless run of it takes no memory."""
    compressed = inflated(stream_of(gzip.compress(b"x"), *[idle] * 1000), ["gzip"])
    pieces = [piece async for piece in compressed]
    assert b"".join(pieces) == b"x"
    assert len(pieces) >= 1001


async def test_damage_after_a_full_piece_is_told_with_its_place() -> None:
    """What is taken in several goes is counted once, in a second file as well."""
    packer = zlib.compressobj(wbits=31)
    good = packer.compress(bytes(1_000_000)) + packer.flush(zlib.Z_FULL_FLUSH)
    before = gzip.compress(bytes(500_000))
    for data in (good, before + good):
        with pytest.raises(InvalidStream) as raised:
            await undone("gzip", data, b"\xff" * 50)
        assert raised.value.position == len(data)


# Bodies that are read whole.


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_body_within_its_bound_is_read(encoding: str) -> None:
    """Exactly so many bytes are allowed; they are counted as they come out."""
    stream = Stream(TEXT[:100], TEXT[100:]) if encoding == "identity" else Stream(gzip.compress(TEXT))
    http = bounded(stream, len(TEXT), encoding)
    assert await http.aread() == TEXT
    assert stream.closed == 1


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_body_beyond_its_bound_is_refused(encoding: str) -> None:
    """One byte more is too large, however small it was made."""
    stream = Stream(TEXT[:100], TEXT[100:]) if encoding == "identity" else Stream(gzip.compress(TEXT))
    with pytest.raises(ResponseTooLarge, match="is larger than 4,") as raised:
        await bounded(stream, len(TEXT) - 1, encoding).aread()
    assert raised.value.limit_bytes == len(TEXT) - 1


async def test_an_encoding_unknown_here_is_left_to_the_reader() -> None:
    """Its bytes are bounded as they came."""
    http = bounded(Stream(b"abc"), 3, "unheard-of")
    assert await http.aread() == b"abc"
    assert http.headers["content-encoding"] == "unheard-of"


async def test_a_bomb_is_refused_before_it_goes_off() -> None:
    """Its bound is found after as many bytes, not after all."""
    made = 0

    async def count(http: httpx2.Response) -> None:
        nonlocal made
        async for piece in http.aiter_raw():
            made += len(piece)

    with pytest.raises(ResponseTooLarge):
        await count(bounded(Stream(gzip.compress(bytes(4_000_000))), 1_000_000, "gzip"))
    assert made <= 1_000_000


async def test_others_get_their_turn_while_a_bomb_is_undone() -> None:
    """The event loop goes on between two pieces."""
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await bounded(Stream(gzip.compress(bytes(40 * PIECE_BYTES))), 1e9, "gzip").aread()
        group.cancel_scope.cancel()
    assert turns >= 40


async def test_httpx_reads_the_elapsed_time_through_it() -> None:
    """What the transport's stream knows stays visible; a stream without it has none."""
    http = httpx2.Response(200, stream=Stream())
    assert Bounded(http, 1).elapsed == timedelta(seconds=3)
    assert Bounded(httpx2.Response(200, content=b"x"), 1).elapsed is None


async def test_a_body_need_not_be_a_generator() -> None:
    """Whatever gives bytes one after the other is read, and there is nothing to finish."""

    class Chunks(httpx2.AsyncByteStream):
        def __init__(self) -> None:
            self._left = [b"a", b"b"]

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            if not self._left:
                raise StopAsyncIteration
            return self._left.pop(0)

        async def aclose(self) -> None:
            pass

    assert [piece async for piece in Bounded(httpx2.Response(200, stream=Chunks()), 10)] == [b"a", b"b"]
