"""`penstock run` as a process: pipes, signals, and an end at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from penstock.cli import main
from penstock.simulator import BatchOptions, Simulator
from penstock.simulator.server import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-c", "import sys; from penstock.cli import main; sys.exit(main())")
PAGE = Path(__file__).parents[3] / "docs" / "command-line.md"
HAIKU = ("--model", "claude-haiku-5-5")
WITHIN_S = 60
SLOW_TO_CLOSE = """
import sys
import anyio
import penstock.cli.run.command
from penstock.cli import main

class Slow(penstock.cli.run.command.Client):
    async def close(self):
        print("stopping", flush=True)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)

penstock.cli.run.command.Client = Slow
sys.exit(main())
"""


@pytest.fixture
def simulator() -> Simulator:
    """An API that takes its time."""
    return Simulator(latency_s=0.02, batch=BatchOptions(duration_s=0.01))


@pytest.fixture
def environment(simulator: Simulator) -> Iterator[dict[str, str]]:
    """Where that API is, and a key."""
    with serving(simulator) as url:
        yield {
            **{name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")},
            "ANTHROPIC_API_KEY": "sk-run",
            "ANTHROPIC_BASE_URL": url,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


@pytest.fixture
def started(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the command with its arguments; whatever still runs after the test is killed."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = [*COMMAND, "run", *map(str, arguments), *HAIKU]
        processes.append(subprocess.Popen(command, env=environment, **given))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_until(reached: Callable[[], bool]) -> None:
    """Wait for something that other processes do."""
    end = time.perf_counter() + WITHIN_S
    while not reached():
        assert time.perf_counter() < end, "it took too long"
        threading.Event().wait(0.01)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of results."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_it_stands_between_pipes(started: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Lines go in and results come out, each as soon as it is there, while the input is still open."""
    process = started(stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for name in ("0", "1"):
        process.stdin.write(f"Name river {name}.\n".encode())
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["custom_id"] == name
    out, err = process.communicate(timeout=WITHIN_S)
    assert (process.returncode, out) == (0, b"")
    assert err.startswith(b"2 answered, 0 failed in ")


def test_what_can_be_no_input_ends_it_at_once(started: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """A folder in the place of the standard input, and a line of 33 MB through a pipe: a sentence and an exit code."""
    folder = os.open(tmp_path, os.O_RDONLY)
    process = started(stdin=folder)
    os.close(folder)
    out, err = process.communicate(timeout=WITHIN_S)
    assert (process.returncode, out) == (1, b"")
    assert b"<stdin> is a directory" in err
    process = started("-o", tmp_path / "out.jsonl", stdin=subprocess.PIPE)
    _, err = process.communicate(b"Name a river.\n" + b"x" * (33 * 1024 * 1024), timeout=WITHIN_S)
    assert process.returncode == 2
    assert b"standard input, line 2: longer than the 32 MB that the API takes for a request" in err
    assert len(lines_of(tmp_path / "out.jsonl")) == 1


def test_results_are_for_their_owner_alone_under_any_umask(
    started: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """One of 0, too: the results, and what is noted beside them."""
    process = started("-o", tmp_path / "out.jsonl", "--via", "batches", stdin=subprocess.PIPE, umask=0)
    process.communicate(b"Name a river.\n", timeout=WITHIN_S)
    assert process.returncode == 0
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"out.jsonl": 0o600, "out.jsonl.state": 0o600}


def test_pipes_that_do_not_wait_are_waited_for(
    started: Callable[..., subprocess.Popen[bytes]], simulator: Simulator
) -> None:
    """All are asked and answered whole, though input, output and messages say 'not now' whenever they would wait."""
    text = "long " * 4_000
    simulator.reply(text, times=66)
    pipes = [os.pipe() for _ in range(3)]
    for pipe in pipes:
        for end in pipe:
            os.set_blocking(end, False)
    (source, prompts), (results, sink), (messages, told) = pipes
    full = os.write(told, b"." * 1_000_000)
    process = started("--progress", "--log", stdin=source, stdout=sink, stderr=told)
    for each in (source, sink, told):
        os.close(each)
    found: dict[int, bytearray] = {results: bytearray(), messages: bytearray()}

    def read(descriptor: int) -> bool:
        """Read some; return whether that was all."""
        with contextlib.suppress(BlockingIOError):
            piece = os.read(descriptor, 30_000)
            found[descriptor] += piece
            return not piece
        return False

    for number in range(6):
        os.write(prompts, b"Name river %d.\n" % number)
        threading.Event().wait(0.02)
    os.write(prompts, b"Name another.\n" * 60)
    os.close(prompts)
    # Until then, nobody reads what is told.
    wait_until(lambda: len(simulator.journal) > 0)
    threading.Event().wait(0.05)
    wait_until(lambda: all([read(results), read(messages)]))
    for descriptor in found:
        os.close(descriptor)
    assert process.wait(WITHIN_S) == 0
    answers = [json.loads(line) for line in found[results].splitlines()]
    assert sorted(answer["custom_id"] for answer in answers) == sorted(map(str, range(66)))
    assert all(answer["result"]["message"]["content"][0]["text"] == text for answer in answers)
    said = found[messages][full:].decode().splitlines()
    assert sum(line.startswith("{") for line in said) == 66
    assert [line for line in said if "66 answered, 0 failed in " in line] == said[-1:]
    assert not any("Logging error" in line for line in said)


def test_it_ends_when_its_reader_does(started: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """After `head` has what it wanted, nothing more is asked and nothing said."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Name a river.\n" * 100_000)
    process = started(prompts)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(WITHIN_S) == 141
    assert process.stderr.read() == b""


def test_ctrl_c_ends_it_whatever_it_waits_for(
    started: Callable[..., subprocess.Popen[bytes]], simulator: Simulator
) -> None:
    """Neither an input that never comes nor an output that nobody reads keeps it from ending within moments."""
    process = started(stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    simulator.reply("x" * 200_000)
    process.stdin.write(b"Name a river.\n")
    process.stdin.flush()
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 130
    assert process.stderr.read().startswith(b"Interrupted.\n1 answered")


def test_a_second_ctrl_c_ends_it_at_once(environment: dict[str, str], tmp_path: Path, simulator: Simulator) -> None:
    """If stopping in order takes long, a second interrupt ends the process; what was answered is in the file."""
    output = tmp_path / "results.jsonl"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"Name river {number}.\n" for number in range(400)))
    command = [
        sys.executable,
        "-c",
        SLOW_TO_CLOSE,
        "run",
        str(prompts),
        "-o",
        str(output),
        "--concurrency",
        "1",
        *HAIKU,
    ]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        wait_until(lambda: len(lines_of(output)) >= 5)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"stopping\n"

        def ended() -> bool:
            process.send_signal(signal.SIGINT)
            return process.poll() is not None

        wait_until(ended)
    assert process.returncode == 130
    assert 5 <= len(lines_of(output)) <= len(simulator.journal) < 400


def test_a_killed_run_loses_nothing(
    started: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    simulator: Simulator,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed and gone on with, every request has one answer, and only what was under way is asked twice."""
    output = tmp_path / "results.jsonl"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"Name river {number}.\n" for number in range(120)))
    arguments = (str(prompts), "-o", str(output), "--concurrency", "4")
    process = started(*arguments)
    wait_until(lambda: len(lines_of(output)) >= 30)
    process.kill()
    process.communicate()
    monkeypatch.setattr(os, "environ", environment)
    assert main(["run", *arguments, *HAIKU, "--resume"]) == 0
    found = [line["custom_id"] for line in lines_of(output)]
    assert sorted(found, key=int) == list(map(str, range(120)))
    assert 120 <= len(simulator.journal) <= 120 + 4


def commands() -> list[str]:
    """Every command of the page that runs something."""
    found = re.findall(r"^\$ (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [command for command in found if not command.startswith("penstock simulate")]


def in_a_shell(command: str, environment: dict[str, str]) -> int:
    """Run a command as a shell does."""
    script = f'penstock() {{ {shlex.join(COMMAND)} "$@"; }}\n{command}'
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, check=False).returncode


def test_the_page_s_commands_work(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every command of the documentation does what it says, with files as it tells of."""
    (tmp_path / "prompts.txt").write_text("Name a river.\nName a mountain.\nName a lake.\n")
    (tmp_path / "cities.csv").write_text("id,city,language\n1,Paris,French\n2,Rome,Italian\n")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "Hello"}\n{"prompt": "Hello" x}\n')
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.chdir(tmp_path)
    ended: dict[str, int] = {}
    for command in commands():
        here = re.sub(r"--base-url \S+", f"--base-url {environment['ANTHROPIC_BASE_URL']}", command)
        here = here.replace("--via batches", "--via batches --poll-s 0.1")
        needs_a_shell = set("|<>").intersection(here)
        ended[command] = in_a_shell(here, environment) if needs_a_shell else main(shlex.split(here)[1:])
    assert ended == {command: 2 if "broken" in command else 0 for command in commands()}
    assert "broken.jsonl, line 2: not JSON: Expecting ',' delimiter at character 20" in capfd.readouterr().err
    lines = {path.name: len(path.read_text().splitlines()) for path in tmp_path.glob("*.jsonl")}
    assert lines == {
        "all.jsonl": 3,
        "broken.jsonl": 2,
        "cities.jsonl": 2,
        "first.jsonl": 1,
        "half.jsonl": 3,
        "results.jsonl": 3,
    }
