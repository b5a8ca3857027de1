"""Other libraries' streams beside penstock's: CPU of a delta, time to the first one, and what each does when it breaks.

Client and server are in processes of their own, and all clients take turns in one process. Each is set up as its own
documentation does. Needs the dependency group `peers`; who is not installed is left out, and said to be.
"""

from __future__ import annotations

import itertools
import os
import sys
import urllib.request
import warnings
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import anyio

from _harness import machine, quick, server, settle_environment, table, take_turns
from _stream_peers import OURS, PEERS
from _stream_server import text_of

if TYPE_CHECKING:
    from _harness import Ask
    from _stream_peers import OnText, Peer, Read

DELTAS, STREAMS, AT_ONCE = 300, 60, 200


# CPU


async def cpu_us(peers: list[Peer], url: str, pause_ms: int, *, brief: bool) -> dict[str, float]:
    """Return the CPU of a delta, median of interleaved rounds."""
    deltas = 30 if brief else DELTAS
    wanted = text_of(deltas)
    rounds, streams = (1, 5) if brief else (5, STREAMS)
    async with AsyncExitStack() as stack:
        asks: dict[str, Ask] = {}
        for peer in peers:
            read = await stack.enter_async_context(peer.made(f"{url}/{deltas}/{pause_ms}"))
            asks[peer.name] = _whole(read, wanted)
        found = await take_turns(asks, rounds=rounds, requests=streams, concurrency=streams, warm_up=streams)
        return {name: measured.us / deltas for name, measured in found.items()}


def _into(pieces: list[str]) -> OnText:
    """Return what keeps each piece, and reads on."""

    def on_text(text: str) -> bool:
        pieces.append(text)
        return False

    return on_text


def _whole(read: Read, wanted: str) -> Ask:
    async def ask() -> None:
        pieces: list[str] = []
        await read(_into(pieces))
        assert "".join(pieces) == wanted

    return ask


# Time to first token


async def first_tokens_ms(peers: list[Peer], url: str, *, brief: bool) -> dict[str, tuple[float, float]]:
    """Return p50 and p90 of the time to the first text of streams that begin at once, medians of interleaved runs."""
    streams, runs = (10, 1) if brief else (AT_ONCE, 5)
    found: dict[str, list[tuple[float, float]]] = {peer.name: [] for peer in peers}
    for run in range(runs):
        start = run % len(peers)
        for peer in peers[start:] + peers[:start]:
            tenths = quantiles(await _first_tokens_ms(peer, f"{url}/20/50", streams), n=10)
            found[peer.name].append((tenths[4], tenths[8]))
    return {name: (median(p50 for p50, _ in each), median(p90 for _, p90 in each)) for name, each in found.items()}


async def _first_tokens_ms(peer: Peer, url: str, streams: int) -> list[float]:
    times: list[float] = []

    async def one(read: Read) -> None:
        began, first = anyio.current_time(), 0.0

        def on_text(_text: str) -> bool:
            nonlocal first
            first = first or anyio.current_time()
            return False

        await read(on_text)
        times.append((first - began) * 1000)

    async with peer.made(url) as read:
        # One goes first: what is loaded once is not what is measured.
        await one(read)
        times.clear()
        async with anyio.create_task_group() as group:
            for _ in range(streams):
                group.start_soon(one, read)
    return times


# When it breaks


async def broken(peer: Peer, url: str) -> tuple[str, str, str]:
    """Tell what a peer does with an overload before content, with a dropped connection, and when its reader leaves."""
    name = f"{peer.name.replace(' ', '').replace(',', '')}-{next(_numbers)}"
    overload = await _outcome(peer, f"{url}/20/0/overload-{name}", 20)
    dropped = await _outcome(peer, f"{url}/20/0/drop-{name}", 20)
    return overload, dropped, await _leaves(peer, url)


_numbers = itertools.count()


async def _outcome(peer: Peer, url: str, deltas: int) -> str:
    wanted, pieces = text_of(deltas), list[str]()
    error = ""
    async with peer.made(url) as read:
        with anyio.move_on_after(30) as waiting:
            try:
                await read(_into(pieces))
            except Exception as raised:  # noqa: BLE001 - each peer raises its own
                error = type(raised).__name__
    came = "".join(pieces)
    if waiting.cancelled_caught:
        return "hangs"
    if came == wanted and not error:
        return "repeated, whole"
    share = "all that came" if came == text_of(deltas // 2) else "nothing" if not came else f"{len(came)} characters"
    return f"`{error}`, after {share}" if error else f"silently cut short, after {share}"


async def _leaves(peer: Peer, url: str) -> str:
    """Leave a stream of ten seconds after its fifth piece, and see when the server is told."""
    async with peer.made(f"{url}/1000/10") as read:
        left_before, count, left_at = await _told(url, "left"), 0, 0.0

        def on_text(_text: str) -> bool:
            nonlocal count, left_at
            count, left_at = count + 1, anyio.current_time()
            return count == 5

        with anyio.move_on_after(15):
            await read(on_text)
        returned_s = anyio.current_time() - left_at
        with anyio.move_on_after(2):
            while await _told(url, "left") == left_before:  # noqa: ASYNC110 - another process tells of it
                await anyio.sleep(0.01)
            return f"ended after {(anyio.current_time() - left_at) * 1000:.0f} ms"
    return f"read to its end, {returned_s:.0f} s" if returned_s > 1 else "goes on"


async def _told(url: str, what: str) -> int:
    return await anyio.to_thread.run_sync(lambda: int(urllib.request.urlopen(f"{url}/{what}").read()))  # noqa: S310 - a server of ours


async def main(*, brief: bool) -> None:
    """Measure everything."""
    peers = [peer for peer in PEERS if peer.installed]
    with server(str(Path(__file__).with_name("_stream_server.py")), announces="stdout") as port:
        url = f"http://127.0.0.1:{int(port)}"
        paced = await cpu_us(peers, url, 10, brief=brief)
        burst = await cpu_us(peers, url, 0, brief=brief)
        first = await first_tokens_ms(peers, url, brief=brief)
        ends = {peer.name: await broken(peer, url) for peer in peers}
    missing = [peer.name for peer in PEERS if not peer.installed]
    of_cpu = ("client", "CPU of a delta, paced, µs", "÷ penstock", "at once, µs", "÷ penstock")
    rows = [
        [n, f"{paced[n]:.0f}", f"{paced[n] / paced[OURS]:.1f}", f"{burst[n]:.1f}", f"{burst[n] / burst[OURS]:.1f}"]
        for n in paced
    ]
    rows += [[name, "not installed", "", "", ""] for name in missing]
    table(f"Streams beside others' ({machine()})", of_cpu, rows)
    rows = [[n, f"{first[n][0]:.0f}", f"{first[n][1]:.0f}", *ends[n]] for n in paced]
    rows += [[name, "not installed", "", "", "", ""] for name in missing]
    of_ends = ("client", "first token, p50, ms", "p90", "overload first", "connection lost", "reader leaves")
    table("First tokens of 200 streams at once, and what becomes of streams that break", of_ends, rows)
    packages = dict.fromkeys(package for peer in peers for package in peer.packages)
    print(", ".join(f"{package} {version(package)}" for package in packages))
    if missing:
        print(f"Not installed: {', '.join(missing)}. They are in the dependency group `peers`.")


if __name__ == "__main__":
    settle_environment()
    # Nothing is fetched: prices have no part in this.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    # Of what others leave open, their tables tell.
    warnings.simplefilter("ignore", ResourceWarning)
    brief = quick(__doc__)
    anyio.run(lambda: main(brief=brief))
    sys.stdout.flush()
    # Peers leave threads and sessions behind.
    os._exit(0)
