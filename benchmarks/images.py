"""What preparing photos costs: how long the event loop is blocked, and how much memory it takes.

Prints Markdown: for photos of 12 megapixels prepared one at a time and all at once, the time each takes, how late a
timer of the same event loop comes, and by how much the memory of the process grows. Each way runs in a process of its
own, from files, and keeps no picture. Beside it runs a process that only watches a timer, to tell how late the machine
itself makes one: what comes later than that was blocked.
"""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import anyio
import anyio.to_thread
from PIL import Image, ImageFilter

import penstock
from _harness import machine, table, verdict

PHOTOS, QUICK_PHOTOS = 200, 2
SIZE = (4000, 3000)
TICK_S = 0.001
LATE_MS = 10.0
# A photo of 12 megapixels takes 36 MB as it is; those that are under way may not take more than a few of them.
MEMORY_MB = 200.0
WAYS = {"one at a time": "one", "all at once": "all"}


def take(number: int) -> bytes:
    """Make a photo: large shapes, small detail, and noise as of a sensor."""
    rng = random.Random(number)
    picture = Image.frombytes("RGB", (16, 12), rng.randbytes(16 * 12 * 3)).resize(SIZE, Image.Resampling.BICUBIC)
    detail = Image.frombytes("L", (500, 375), rng.randbytes(500 * 375)).resize(SIZE, Image.Resampling.BILINEAR)
    picture = Image.blend(picture, Image.merge("RGB", (detail,) * 3), 0.15)
    if number % 3 == 0:
        picture = picture.filter(ImageFilter.BoxBlur(2))
    with tempfile.TemporaryFile() as file:
        picture.save(file, "JPEG", quality=92, progressive=number % 10 == 0)
        file.seek(0)
        return file.read()


def peak_mb() -> float:
    """Return the most memory that this process had so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not tell")


async def prepare(path: Path) -> None:
    """Prepare one photo as an application would."""
    block = await penstock.image(path)
    assert penstock.image_tokens(block, "claude-sonnet-5-5") == 1131, "1080 by 810 pixels"


async def watch(late_ms: list[float]) -> None:
    """Note how late each tick of a timer comes."""
    while True:
        asked = time.perf_counter()
        await anyio.sleep(TICK_S)
        late_ms.append((time.perf_counter() - asked - TICK_S) * 1e3)


async def measure(way: str, paths: list[Path]) -> dict[str, float]:
    """Prepare all photos one way, and watch the event loop meanwhile."""
    # Decoders and worker threads are there before anything is measured.
    await prepare(paths[0])
    # What was imported stays: the collector need not look through all modules, which alone takes tenths of a second.
    gc.collect()
    gc.freeze()
    late_ms: list[float] = []
    before_mb = peak_mb()
    began = time.perf_counter()
    async with anyio.create_task_group() as watching:
        watching.start_soon(watch, late_ms)
        if way == "one":
            for path in paths:
                await prepare(path)
        else:
            async with anyio.create_task_group() as group:
                for path in paths:
                    group.start_soon(prepare, path)
        watching.cancel_scope.cancel()
    each_ms = (time.perf_counter() - began) * 1e3 / len(paths)
    return {"each_ms": each_ms, "grown_mb": peak_mb() - before_mb, **lateness(late_ms)}


async def idle() -> dict[str, float]:
    """Watch a timer until standard input ends, and do nothing else."""
    late_ms: list[float] = []
    async with anyio.create_task_group() as watching:
        watching.start_soon(watch, late_ms)
        await anyio.to_thread.run_sync(sys.stdin.read)
        watching.cancel_scope.cancel()
    return lateness(late_ms)


def lateness(late_ms: list[float]) -> dict[str, float]:
    """Sum up how late the ticks of a timer came."""
    late_ms.sort()
    return {
        "late_ms": late_ms[-1],
        "late_999_ms": late_ms[int(len(late_ms) * 0.999)],
        "late_50_ms": median(late_ms),
        "over": float(sum(late > LATE_MS for late in late_ms)),
        "ticks": float(len(late_ms)),
    }


def run(way: str, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Measure one way in a process of its own, and the machine beside it."""
    itself = [sys.executable, __file__]
    with subprocess.Popen([*itself, "--idle"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as beside:
        ran = subprocess.run([*itself, "--way", way, str(folder)], check=True, capture_output=True, text=True)
        machine_s, _ = beside.communicate("")
    return json.loads(ran.stdout), json.loads(machine_s)


def main() -> None:
    """Make photos, measure, and print."""
    photos = QUICK_PHOTOS if "--quick" in sys.argv else PHOTOS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(photos):
            (folder / f"{number:03}.jpg").write_bytes(take(number))
        size_mb = sum(path.stat().st_size for path in folder.iterdir()) / photos / 1e6
        found = {title: run(way, folder) for title, way in WAYS.items()}
    print(f"{photos} photos of {SIZE[0]} × {SIZE[1]} pixels, {size_mb:.1f} MB each, on {machine()}")
    table(
        "The event loop, and an idle one beside it",
        ["prepared", "ms each", "ticks", "late: 50 %, ms", "99.9 %", "most", "> 10 ms", "idle: 99.9 %", "most", "", ""],
        [
            [
                title,
                f"{each['each_ms']:.1f}",
                f"{each['ticks']:.0f}",
                f"{each['late_50_ms']:.2f}",
                f"{each['late_999_ms']:.1f}",
                f"{each['late_ms']:.1f}",
                f"{each['over']:.0f}",
                f"{beside['late_999_ms']:.1f}",
                f"{beside['late_ms']:.1f}",
                f"≤ {LATE_MS:.0f} ms",
                verdict(each["late_ms"], LATE_MS),
            ]
            for title, (each, beside) in found.items()
        ],
    )
    table(
        "Memory",
        ["prepared", "grown by, MB", "target", ""],
        [
            [title, f"{each['grown_mb']:.0f}", f"≤ {MEMORY_MB:.0f}", verdict(each["grown_mb"], MEMORY_MB)]
            for title, (each, _) in found.items()
        ],
    )


if __name__ == "__main__":
    if "--way" in sys.argv:
        print(json.dumps(anyio.run(measure, sys.argv[-2], sorted(Path(sys.argv[-1]).iterdir()))))
    elif "--idle" in sys.argv:
        print(json.dumps(anyio.run(idle)))
    else:
        main()
