"""`penstock run`, from its arguments to its exit code."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import shlex
import signal
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from penstock.cli import main
from penstock.simulator import BatchOptions, Simulator
from penstock.simulator.server import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HAIKU = ("--model", "claude-haiku-5-5")


class Api:
    """A simulated API behind a socket, and what runs against it say.

    Attributes:
        simulator: The API.
        url: Where it is.
    """

    def __init__(self, simulator: Simulator, url: str, capture: pytest.CaptureFixture[str]) -> None:
        self.simulator = simulator
        self.url = url
        self._capture = capture

    def run(self, *arguments: str | Path) -> tuple[int, list[dict[str, Any]], str]:
        """Run the command; returns the exit code, the lines of the standard output, and the standard error."""
        code = main(["run", *map(str, arguments), "--base-url", self.url])
        captured = self._capture.readouterr()
        return code, [json.loads(line) for line in captured.out.splitlines()], captured.err

    def bodies(self) -> list[dict[str, Any]]:
        """What it was asked for messages, in order."""
        asked = [entry for entry in self.simulator.journal if entry.path == "/v1/messages" and entry.status != 401]
        return [dict(entry.body or {}) for entry in asked]

    def prompts(self) -> list[str]:
        """The prompts that it was asked, in order."""
        return [body["messages"][0]["content"] for body in self.bodies()]


class Switch:
    """Whichever API is the present test's, behind one server."""

    present: Simulator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.present, name)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Switch, str]]:
    """One server for all tests: ending one takes a while."""
    switch = Switch()
    with serving(cast("Any", switch)) as url:
        yield switch, url


@pytest.fixture
def api(
    server: tuple[Switch, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Api:
    """An API that knows one key, which is in the environment."""
    switch, url = server
    # A key of its own, so that what an interrupted test has left on the way counts for nothing here.
    key = f"sk-run-{tmp_path.name}"
    switch.present = Simulator(keys={key: "org"}, batch=BatchOptions(duration_s=0.01))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    monkeypatch.delenv("PENSTOCK_API_KEYS", raising=False)
    return Api(switch.present, url, capfd)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three prompts, one a line."""
    path = tmp_path / "prompts.txt"
    path.write_text("Name a river.\nName a mountain.\n\nName a lake.\n")
    return path


def results(path: Path) -> dict[str, str]:
    """What stands in a file of results: the type of each result by `custom_id`."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["custom_id"]: line["result"]["type"] for line in lines}
    assert len(found) == len(lines)
    return found


def text_of(line: dict[str, Any]) -> str:
    """The text of an answer."""
    return str(line["result"]["message"]["content"][0]["text"])


# From a file into a file


def test_every_prompt_is_answered(api: Api, prompts: Path, tmp_path: Path) -> None:
    """Each prompt's answer is in the file, which only its owner may read; one line tells what it came to."""
    output = tmp_path / "results.jsonl"
    code, out, err = api.run(prompts, "-o", output, *HAIKU)
    assert (code, out) == (0, [])
    assert results(output) == dict.fromkeys("012", "succeeded")
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert err.startswith("3 answered, 0 failed in ")
    assert err.count("\n") == 1
    assert sorted(api.prompts()) == ["Name a lake.", "Name a mountain.", "Name a river."]


def test_what_is_given_for_all_reaches_every_request(api: Api, prompts: Path) -> None:
    """Model, max_tokens and the system prompt of the arguments are those of every request that has none."""
    own = {"custom_id": "own", "params": {"max_tokens": 7, "messages": [{"role": "user", "content": "Own?"}]}}
    prompts.write_text(f'{{"prompt": "Common?"}}\n{json.dumps(own)}')
    assert api.run(prompts, "--format", "jsonl", *HAIKU, "--max-tokens", "50", "--system", "Be terse.")[0] == 0
    bodies = api.bodies()
    assert {(body["model"], body["system"]) for body in bodies} == {("claude-haiku-5-5", "Be terse.")}
    assert {body["messages"][0]["content"]: body["max_tokens"] for body in bodies} == {"Common?": 50, "Own?": 7}


def test_the_environment_counts_too(api: Api, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is no argument is taken from the environment."""
    monkeypatch.setenv("PENSTOCK_MODEL", "claude-haiku-5-5")
    assert api.run(prompts)[0] == 0


def test_a_table_fills_a_template(api: Api, tmp_path: Path) -> None:
    """CSV with a template: columns make prompts, one of them the name."""
    table = tmp_path / "cities.csv"
    table.write_text("\ufeffid;city\n7;Paris\n8;Rome\n")
    options = ("--template", "Where is {city}?", "--custom-id-field", "id", "--delimiter", ";")
    code, out, _ = api.run(table, *options, *HAIKU)
    assert code == 0
    assert {line["custom_id"]: text_of(line) for line in out} == {
        "7": "Summary: Where is Paris?",
        "8": "Summary: Where is Rome?",
    }


def test_limits_and_priority_are_kept(api: Api, prompts: Path) -> None:
    """Requests keep to the given limits; with the log on, every call tells its priority, and afterwards it is off."""
    options = ("--rpm", "60000", "--priority", "interactive", "--concurrency", "1", "--log")
    code, _, err = api.run(prompts, *HAIKU, *options)
    assert code == 0
    calls = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [call["labels"]["priority"] for call in calls if "labels" in call] == ["interactive"] * 3
    assert not logging.getLogger("penstock").isEnabledFor(logging.INFO)


@pytest.mark.lengthy
def test_batches_give_the_same(api: Api, prompts: Path, tmp_path: Path) -> None:
    """Through message batches the same input gives the same results, in the same kind of file."""
    output = tmp_path / "results.jsonl"
    code, _, err = api.run(prompts, "-o", output, *HAIKU, "--via", "batches", "--poll-s", "0.05")
    assert code == 0
    assert results(output) == dict.fromkeys("012", "succeeded")
    assert err.startswith("3 answered, 0 failed in ")
    assert api.prompts() == []


# Out of a pipe, into a pipe


def test_results_go_to_the_standard_output(api: Api, prompts: Path) -> None:
    """Without a file of results they are lines of the standard output, and nothing else is."""
    code, out, err = api.run(prompts, *HAIKU)
    assert code == 0
    assert {line["custom_id"]: line["result"]["type"] for line in out} == dict.fromkeys("012", "succeeded")
    assert "3 answered" in err
    assert list(prompts.parent.iterdir()) == [prompts]


@pytest.mark.lengthy
@pytest.mark.parametrize("arguments", [(), ("-",), ("-", "-o", "-")])
def test_requests_come_from_the_standard_input(
    arguments: tuple[str, ...], api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `-`, or nothing, a pipe is read."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as source:
        monkeypatch.setattr(sys, "stdin", source)
        os.write(writer, b'{"custom_id": "a", "prompt": "Hello"}\n"two"')
        os.close(writer)
        code, out, _ = api.run(*arguments, *HAIKU)
    assert code == 0
    assert sorted(line["custom_id"] for line in out) == ["1", "a"]


def test_the_standard_input_may_be_a_file(api: Api, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redirected from a file, the input is checked as a whole, as a file is."""
    prompts.write_bytes(b"one\n\xff\n")
    with prompts.open() as source:
        monkeypatch.setattr(sys, "stdin", source)
        code, out, err = api.run(*HAIKU)
    assert (code, out) == (2, [])
    assert "standard input, line 2: not UTF-8" in err
    assert api.prompts() == []


@pytest.mark.lengthy
def test_a_bad_line_of_a_pipe_lets_the_others_finish(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came before the bad line is answered and kept, nothing after it is asked; mended, the run goes on."""
    output = tmp_path / "results.jsonl"
    reader, writer = os.pipe()
    with os.fdopen(reader) as source:
        monkeypatch.setattr(sys, "stdin", source)
        os.write(writer, b"one\ntwo\n\xff\nfour\n")
        os.close(writer)
        code, _, err = api.run("-o", output, *HAIKU)
    assert code == 2
    assert err.startswith("penstock run: standard input, line 3: not UTF-8")
    assert f"Once that is mended, go on with: penstock run -o {output}" in err
    assert results(output) == {"0": "succeeded", "1": "succeeded"}
    mended = tmp_path / "mended.txt"
    mended.write_text("one\ntwo\nthree\nfour\n")
    assert api.run(mended, "-o", output, *HAIKU, "--resume")[0] == 0
    assert sorted(api.prompts()) == ["four", "one", "three", "two"]


def test_an_empty_pipe_makes_nothing(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe without requests is an error, and no file is made."""
    with Path(os.devnull).open() as source:
        monkeypatch.setattr(sys, "stdin", source)
        code, _, err = api.run("-o", tmp_path / "results.jsonl", *HAIKU)
    assert (code, err) == (2, "penstock run: standard input: there are no requests in it\n")
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_is_not_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an input, in a terminal, it says what to give."""
    first, second = os.openpty()
    with os.fdopen(second) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        code, _, err = api.run(*HAIKU)
    os.close(first)
    assert code == 2
    assert err.startswith("penstock run: no input: name a file, or pipe")


def test_a_reader_that_has_left_ends_it_quietly(api: Api, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When whoever reads the results has left, as `head` does, it ends with 141 and says nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as sink:
        monkeypatch.setattr(sys, "stdout", sink)
        code, _, err = api.run(prompts, *HAIKU)
        monkeypatch.undo()
    assert (code, err) == (141, "")


def test_a_full_disk_behind_the_standard_output_is_told(
    api: Api, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If results can't be written, it ends with 1 and says why."""
    with Path("/dev/full").open("w") as sink, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", sink)
        code, _, err = api.run(prompts, *HAIKU)
    assert code == 1
    assert err.startswith("penstock run: the standard output can't be written: No space left on device\n")


# Going on


@pytest.mark.lengthy
def test_a_file_that_is_there_is_not_touched(api: Api, prompts: Path, tmp_path: Path) -> None:
    """An output that exists is refused without `--resume`, and stays as it is; an empty one is as good as none."""
    output = tmp_path / "results.jsonl"
    output.write_text("mine")
    code, _, err = api.run(prompts, "-o", output, *HAIKU)
    assert (code, output.read_text()) == (2, "mine")
    assert err == f"penstock run: {output} exists: go on with it by --resume, or give another name\n"
    output.write_text("")
    assert api.run(prompts, "-o", output, *HAIKU)[0] == 0


def test_what_is_left_of_a_journal_is_noticed(api: Api, prompts: Path, tmp_path: Path) -> None:
    """If only the file beside the results is left, another run's batches are not taken for this one's."""
    beside = tmp_path / "results.jsonl.state"
    beside.write_text("{}\n")
    code, _, err = api.run(prompts, "-o", tmp_path / "results.jsonl", *HAIKU)
    assert code == 2
    assert f"{beside} exists" in err


@pytest.mark.lengthy
def test_a_run_goes_on_where_it_ended(api: Api, prompts: Path, tmp_path: Path) -> None:
    """With `--resume` nothing answered is asked again, and new requests are."""
    output = tmp_path / "results.jsonl"
    assert api.run(prompts, "-o", output, *HAIKU, "--resume")[0] == 0
    prompts.write_text(prompts.read_text() + "Name a sea.")
    code, _, err = api.run(prompts, "-o", output, *HAIKU, "--resume")
    assert code == 0
    assert err.startswith("1 answered, 0 failed, 3 there before in ")
    assert api.prompts()[3:] == ["Name a sea."]
    assert results(output) == dict.fromkeys("0123", "succeeded")


@pytest.mark.lengthy
def test_failures_can_be_asked_again(api: Api, prompts: Path, tmp_path: Path) -> None:
    """What failed is told with the command that asks it again; `--retry-failed` does, `--resume` alone does not."""
    output = tmp_path / "results.jsonl"
    api.simulator.inject("not_found")
    code, _, err = api.run(prompts, "-o", output, *HAIKU, "--keep-params")
    assert code == 1
    assert "2 answered, 1 failed" in err
    assert "Failed: NotFoundError 1; the first was '" in err
    again = err.rpartition("Ask again with: penstock run ")[2]
    assert "--retry-failed" in again
    (dead,) = [line for line in output.read_text().splitlines() if '"errored"' in line]
    assert "Name a" in json.loads(dead)["penstock"]["params"]["messages"][0]["content"]

    code, _, err = api.run(prompts, "-o", output, *HAIKU, "--resume")
    assert code == 1
    assert "0 answered, 0 failed, 3 there before" in err
    assert len(api.prompts()) == 3
    assert main(["run", *shlex.split(again)]) == 0
    assert results(output) == dict.fromkeys("012", "succeeded")
    assert len(api.prompts()) == 4


@pytest.mark.lengthy
def test_another_run_s_file_is_refused(api: Api, prompts: Path, tmp_path: Path) -> None:
    """If prompts have changed, or the requests are others, that is told; another model asks nothing again."""
    output = tmp_path / "results.jsonl"
    assert api.run(prompts, "-o", output, *HAIKU)[0] == 0
    assert api.run(prompts, "-o", output, "--resume", "--model", "claude-sonnet-5-5")[0] == 0
    text = prompts.read_text()
    prompts.write_text("Name another sea.\n" + text)
    code, _, err = api.run(prompts, "-o", output, "--resume", *HAIKU)
    assert code == 2
    assert "item 0 was another prompt" in err
    prompts.write_text('{"custom_id": "x", "prompt": "Name a sea."}')
    code, _, err = api.run(prompts, "-o", output, "--resume", *HAIKU, "--format", "jsonl")
    assert code == 2
    assert "none of these requests is in the file of results" in err
    assert len(api.prompts()) == 3


def test_the_input_is_no_output(api: Api, tmp_path: Path) -> None:
    """The same file for both is refused, and stays as it is."""
    requests = tmp_path / "requests.jsonl"
    text = '{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "Hello"}]}}\n'
    requests.write_text(text)
    code, _, err = api.run(requests, "-o", requests, "--resume", *HAIKU)
    assert (code, requests.read_text()) == (2, text)
    assert "is a request, not a result: give the journal a file of its own" in err


def test_a_torn_line_is_mended_and_told(api: Api, prompts: Path, tmp_path: Path) -> None:
    """A last line that a crash cut off is asked again; the log's warning says so."""
    output = tmp_path / "results.jsonl"
    assert api.run(prompts, "-o", output, *HAIKU)[0] == 0
    output.write_bytes(output.read_bytes()[:-20])
    code, _, err = api.run(prompts, "-o", output, *HAIKU, "--resume")
    assert code == 0
    assert "cut off a torn last line" in err
    assert len(api.prompts()) == 4


def test_damaged_lines_are_told_and_asked_again(api: Api, prompts: Path, tmp_path: Path) -> None:
    """By their number; with one that was cut off, each costs its own answer."""
    output = tmp_path / "out.jsonl"
    assert api.run(prompts, "-o", output, *HAIKU)[0] == 0
    output.write_bytes(output.read_bytes().replace(b"succeeded", b"succeedet", 1)[:-9])
    code, _, err = api.run(prompts, "-o", output, *HAIKU, "--resume")
    assert code == 0
    assert f"2 lines of {output} are damaged or cut off. What they held is asked again.\n" in err
    assert len(api.prompts()) == 5
    assert set(results(output).values()) == {"succeeded"}


@pytest.mark.parametrize("flag", ["--resume", "--retry-failed", "--keep-params"])
def test_what_needs_a_file_says_so(flag: str, api: Api, prompts: Path) -> None:
    """Options that concern a file of results are refused without one."""
    code, _, err = api.run(prompts, *HAIKU, flag)
    assert (code, err) == (2, f"penstock run: {flag} needs a file of results: give one with -o\n")


@pytest.mark.parametrize(
    "flags", [("--deadline-s", "5"), ("--poll-s", "5"), ("--max-failures", "5", "--via", "batches")]
)
def test_what_would_have_no_effect_says_so(flags: tuple[str, ...], api: Api, prompts: Path) -> None:
    """Options of the other way to ask are refused, rather than taken and ignored."""
    code, _, err = api.run(prompts, *HAIKU, *flags)
    assert code == 2
    assert err.startswith(f"penstock run: {flags[0]} has no effect with --via ")


# What can't be done


def test_an_input_is_checked_before_anything_is_sent(api: Api, tmp_path: Path) -> None:
    """A bad line far down in a file is told by its number; nothing is sent and no file made."""
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"prompt": "Hello"}\n' * 1000 + '{"prompt": ')
    output = tmp_path / "results.jsonl"
    code, _, err = api.run(requests, "-o", output, *HAIKU)
    assert code == 2
    assert err.startswith(f"penstock run: {requests}, line 1001: not JSON: ")
    assert err.count("\n") == 1
    assert not output.exists()
    assert api.prompts() == []


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_a_missing_input_is_told(name: str, api: Api, tmp_path: Path) -> None:
    """A file that can't be opened is an error in one line."""
    code, _, err = api.run(tmp_path / name, *HAIKU)
    assert code == 2
    assert err.startswith(f"penstock run: {tmp_path / name} can't be read: ")
    assert err.count("\n") == 1


def test_a_missing_standard_input_is_told(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process has no standard input, that is said."""
    monkeypatch.setattr(sys, "stdin", None)
    assert api.run(*HAIKU)[::2] == (2, "penstock run: the standard input can't be read: there is none\n")


def test_a_missing_model_is_told(api: Api, prompts: Path) -> None:
    """Without any model nothing is sent."""
    code, _, err = api.run(prompts)
    assert (code, err) == (2, f"penstock run: {prompts}, line 1: no model: give one with --model\n")


def test_a_missing_key_is_told(api: Api, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key it names the variables, and makes no file."""
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    code, _, err = api.run(prompts, "-o", tmp_path / "results.jsonl", *HAIKU)
    assert (code, err) == (2, "penstock run: no API key found: set ANTHROPIC_API_KEY or PENSTOCK_API_KEYS\n")
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize("via", ["live", "batches"])
def test_a_refused_key_ends_it(
    via: str, api: Api, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the API refuses the key, the others are not tried, and nothing counts as failed for good."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-wrong")
    output = tmp_path / "results.jsonl"
    code, _, err = api.run(prompts, "-o", output, *HAIKU, "--concurrency", "1", "--via", via)
    assert code == 3
    assert "401 authentication_error: " in err
    assert "sk-wrong" not in err
    assert "--resume" in err
    assert "--retry-failed" not in err


def test_bad_settings_are_named(api: Api, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that can't be used is named in one line, wherever it comes from."""
    assert main(["run", str(prompts), *HAIKU, "--base-url", "http://example.com"]) == 2
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "ftp://example.com")
    assert main(["run", str(prompts), *HAIKU]) == 2
    monkeypatch.setenv("PENSTOCK_CONCURRENCY", "0")
    code, _, err = api.run(prompts, *HAIKU)
    assert code == 2
    plain, ftp, concurrency = err.splitlines()
    assert plain.startswith("penstock run: base_url: base_url is plain http to another machine")
    assert plain.endswith("use https, or set PENSTOCK_ALLOW_HTTP=true")
    assert ftp == "penstock run: base_url must be an http(s) URL"
    assert "concurrency must be 1 or more" in concurrency


def test_an_output_that_can_t_be_made_is_told(api: Api, prompts: Path, tmp_path: Path) -> None:
    """A folder that does not exist, or a folder in place of a file, is told before anything is sent."""
    code, _, err = api.run(prompts, "-o", tmp_path / "missing" / "results.jsonl", *HAIKU)
    assert code == 2
    assert "its folder does not exist. Make it first" in err
    code, _, err = api.run(prompts, "-o", tmp_path, *HAIKU)
    assert code == 2
    assert "it is a folder. Give the path of a file" in err
    assert api.prompts() == []


@pytest.mark.lengthy
def test_a_disk_that_fills_up_ends_it(api: Api, prompts: Path, tmp_path: Path) -> None:
    """When results can't be kept any more, it stops with 1, and says why and how to go on."""
    output = tmp_path / "results.jsonl"
    for _ in range(3):
        api.simulator.reply("x" * 50_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, before[1]))
    try:
        code, _, err = api.run(prompts, "-o", output, *HAIKU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert f"penstock run: journal {output}: there is no room for more" in err
    assert "Once that is mended, go on with: penstock run " in err
    assert list(results(output).values()) == ["succeeded"]
    assert api.run(prompts, "-o", output, *HAIKU, "--resume")[0] == 0
    assert results(output) == dict.fromkeys("012", "succeeded")


def test_too_many_failures_end_it(api: Api, prompts: Path, tmp_path: Path) -> None:
    """With `--max-failures` it stops when more have failed."""
    api.simulator.inject("not_found", times=2)
    code, _, err = api.run(prompts, "-o", tmp_path / "out", *HAIKU, "--max-failures", "0", "--concurrency", "1")
    assert code == 1
    assert err.startswith("penstock run: 1 of 1 items failed, more than max_failures allows")


# What is shown


@pytest.mark.lengthy
def test_quiet_is_quiet(api: Api, prompts: Path, tmp_path: Path) -> None:
    """With `--quiet` nothing is said unless it stops the run; the exit code tells."""
    api.simulator.inject("not_found")
    assert api.run(prompts, "-o", tmp_path / "out", *HAIKU, "--quiet", "--progress")[::2] == (1, "")
    api.simulator.inject("not_found")
    code, _, err = api.run(prompts, "-o", tmp_path / "new", *HAIKU, "--quiet", "--max-failures", "0")
    assert code == 1
    stopped, last, go_on = err.splitlines()
    assert stopped.startswith("penstock run: 1 of ")
    assert last.startswith("The last error: 404 not_found_error: ")
    assert go_on.startswith("What came is in ")


def test_progress_is_shown_when_asked_for(api: Api, prompts: Path) -> None:
    """Where the standard error is no terminal, progress is lines, and only with `--progress`."""
    _, _, err = api.run(prompts, *HAIKU, "--progress")
    assert "3 of 3 done" in err


@pytest.fixture
def in_a_terminal(api: Api, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the command in a terminal, and returns what that shows."""

    def run(*arguments: str | Path) -> str:
        main_end, terminal_end = os.openpty()
        said: list[bytes] = []

        def listen() -> None:
            while b"3 answered" not in b"".join(said):
                said.append(os.read(main_end, 65536))

        listener = threading.Thread(target=listen)
        listener.start()
        with os.fdopen(terminal_end, "w") as terminal, monkeypatch.context() as patch:
            patch.setenv("TERM", "xterm-256color")
            patch.setattr(sys, "stderr", terminal)
            patch.setattr(sys, "stdout", terminal)
            assert main(["run", *map(str, arguments), *HAIKU, "--base-url", api.url]) == 0
            listener.join()
        os.close(main_end)
        return b"".join(said).decode()

    return run


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(("-o", "out"), True), ((), False), (("--progress",), True), (("-o", "out", "--no-progress"), False)],
)
def test_a_terminal_shows_a_bar(
    arguments: tuple[str, ...], shown: bool, in_a_terminal: Callable[..., str], prompts: Path
) -> None:
    """In a terminal there is a bar, unless results go to the same terminal, or it is switched off."""
    placed = [str(prompts.with_name(part)) if part == "out" else part for part in arguments]
    assert ("3/3" in in_a_terminal(prompts, *placed)) is shown


# Interrupted


@pytest.mark.lengthy
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(
    number: signal.Signals, code: int, api: Api, prompts: Path, tmp_path: Path
) -> None:
    """The first signal ends a run within moments; what came is kept, and the command that goes on asks the rest."""
    output = tmp_path / "results.jsonl"
    prompts.write_text("".join(f"Name number {index}.\n" for index in range(40)))
    signalled = threading.Event()

    def send() -> None:
        while len(api.simulator.journal) < 10:
            signalled.wait(0.005)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    found, _, err = api.run(prompts, "-o", output, *HAIKU, "--concurrency", "1")
    sender.join()
    assert found == code
    assert err.startswith("Interrupted.\n")
    answered = len(results(output))
    assert 9 <= answered < 40
    before = len(api.prompts())
    again = shlex.split(err.rpartition("Go on with: penstock run ")[2])
    assert main(["run", *again]) == 0
    assert results(output) == {str(index): "succeeded" for index in range(40)}
    assert len(api.prompts()) - before == 40 - answered


@pytest.mark.lengthy
def test_interrupted_batches_go_on(api: Api, prompts: Path, tmp_path: Path) -> None:
    """Batches that are under way at an interrupt are collected by the next run, and not submitted again."""
    output = tmp_path / "results.jsonl"
    api.simulator.batches.options = BatchOptions(duration_s=1.0)

    def submitted() -> int:
        return sum(entry.path == "/v1/messages/batches" for entry in api.simulator.journal if entry.body)

    def send() -> None:
        while (
            not (tmp_path / "results.jsonl.state").exists()
            or "made" not in (tmp_path / "results.jsonl.state").read_text()
        ):
            signalled.wait(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    signalled = threading.Event()
    sender = threading.Thread(target=send)
    sender.start()
    code, _, err = api.run(prompts, "-o", output, *HAIKU, "--via", "batches", "--poll-s", "0.2")
    sender.join()
    assert code == 130
    told, _, again = err.rpartition("Go on with: penstock run ")
    assert "and batches that were submitted go on." in told
    assert main(["run", *shlex.split(again)]) == 0
    assert results(output) == dict.fromkeys("012", "succeeded")
    assert submitted() == 1


@pytest.mark.lengthy
def test_a_mistyped_model_can_be_mended(api: Api, prompts: Path, tmp_path: Path) -> None:
    """All fail; with the right model and `--retry-failed` the same file holds the answers."""
    out = tmp_path / "results.jsonl"
    assert api.run(prompts, "-o", out, "--model", "claude-hiku")[0] == 1
    code, _, err = api.run(prompts, "-o", out, *HAIKU, "--resume")
    assert code == 1
    assert "--retry-failed" in err
    assert api.run(prompts, "-o", out, *HAIKU, "--retry-failed")[0] == 0
    assert set(results(out).values()) == {"succeeded"}


@pytest.mark.parametrize("name", [".", "/", ""])
def test_an_output_without_a_name_is_refused(name: str, api: Api, prompts: Path) -> None:
    """A folder has no file beside it that could hold a run's notes."""
    code, _, err = api.run(prompts, "-o", name, *HAIKU)
    assert code == 2
    assert "it is a folder. Give the path of a file" in err


def test_an_output_with_a_bad_name_is_refused(api: Api, prompts: Path, tmp_path: Path) -> None:
    """A name that no file can have."""
    code, _, err = api.run(prompts, "-o", tmp_path / ("x" * 300), *HAIKU)
    assert code == 2
    assert "can't be used: File name too long" in err
    assert not api.bodies()


def test_without_a_standard_output_a_file_is_asked_for(
    api: Api, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed one would lose answers that were paid for."""
    monkeypatch.setattr(sys, "stdout", None)
    code, _, err = api.run(prompts, *HAIKU)
    assert code == 2
    assert "the standard output is closed: give a file of results with -o" in err
    assert not api.bodies()


class Gone(io.StringIO):
    """A standard error whose reader has left."""

    def write(self, text: str, /) -> int:
        raise BrokenPipeError(32, text)


@pytest.mark.lengthy
@pytest.mark.parametrize("stderr", [None, Gone()], ids=["closed", "broken"])
@pytest.mark.parametrize("flags", [(), ("--progress",)], ids=["plain", "progress"])
def test_it_runs_without_a_standard_error(
    stderr: object, flags: tuple[str, ...], api: Api, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told, and everything is asked; the exit code is that of the run."""
    monkeypatch.setattr(sys, "stderr", stderr)
    out = prompts.with_name("results.jsonl")
    assert api.run(prompts, "-o", out, *HAIKU, *flags)[0] == 0
    assert len(results(out)) == 3


def test_a_schema_is_asked_for(api: Api, prompts: Path, tmp_path: Path) -> None:
    """Of every request that says nothing else; a file that holds none is refused before anything is sent."""
    schema = tmp_path / "schema.json"
    wanted = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    schema.write_text(json.dumps(wanted))
    assert api.run(prompts, *HAIKU, "--schema", schema)[0] == 0
    asked = [body["output_config"]["format"] for body in api.bodies()]
    assert asked == [{"type": "json_schema", "schema": wanted}] * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "can't be read"), ("{", "is not JSON"), ("[1]", "is no JSON schema: it must be an object")],
)
def test_what_is_no_schema_is_refused(text: str | None, said: str, api: Api, prompts: Path, tmp_path: Path) -> None:
    """By name, with exit code 2."""
    schema = tmp_path / "schema.json"
    if text is not None:
        schema.write_text(text)
    code, _, err = api.run(prompts, *HAIKU, "--schema", schema)
    assert code == 2
    assert f"{schema} {said}" in err
    assert api.bodies() == []
