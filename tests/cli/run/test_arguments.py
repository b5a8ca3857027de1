"""The arguments of `penstock run`."""

from __future__ import annotations

import argparse

import pytest

from penstock.cli import main
from penstock.cli.run.arguments import RunOptions, add_run, run_options


def options(*arguments: str) -> RunOptions:
    """What arguments come to."""
    parser = argparse.ArgumentParser()
    add_run(parser)
    return run_options(parser.parse_args(arguments))


def test_nothing_has_to_be_given() -> None:
    """Without arguments everything is as the options' defaults say."""
    assert options() == RunOptions()


def test_everything_can_be_given() -> None:
    """Every option arrives, under its own name, as a value of its own type."""
    given = options(
        *("in.csv", "-o", "out.jsonl", "--resume", "--retry-failed", "--keep-params", "--format", "csv"),
        *("--template", "{a}", "--custom-id-field", "id", "--delimiter", r"\t", "--model", "m", "--max-tokens", "5"),
        *("--system", "Be terse.", "--via", "batches", "--concurrency", "9", "--rpm", "1.5", "--itpm", "2"),
        *(
            "--deadline-s",
            "60",
            "--poll-s",
            "0.5",
            "--otpm",
            "3",
            "--priority",
            "interactive",
            "--max-failures",
            "7",
            "--base-url",
            "http://localhost",
        ),
        *("--no-progress", "--quiet", "--log"),
    )
    assert given.template is not None
    assert given.template.columns == ("a",)
    assert given == RunOptions(
        input="in.csv",
        output="out.jsonl",
        resume=True,
        retry_failed=True,
        keep_params=True,
        format="csv",
        template=given.template,
        custom_id_field="id",
        delimiter="\t",
        model="m",
        max_tokens=5,
        system="Be terse.",
        via="batches",
        deadline_s=60,
        poll_s=0.5,
        concurrency=9,
        rpm=1.5,
        itpm=2,
        otpm=3,
        priority="interactive",
        max_failures=7,
        base_url="http://localhost",
        progress=False,
        quiet=True,
        log=True,
    )


@pytest.mark.parametrize(("text", "limit"), [("0", 0), ("20", 20), ("0.05", 0.05), ("5%", 0.05), ("0.5%", 0.005)])
def test_failures_are_limited_by_a_count_or_a_share(text: str, limit: float) -> None:
    """A whole number is a count, anything between 0 and 1, or with a percent sign, a share."""
    given = options("--max-failures", text).max_failures
    assert given == pytest.approx(limit)
    assert isinstance(given, int) is isinstance(limit, int)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-failures", "1.0"],
        ["--max-failures", "100%"],
        ["--max-failures", "some"],
        ["--max-failures", "-1"],
        ["--concurrency", "0"],
        ["--max-tokens", "1.5"],
        ["--rpm", "0"],
        ["--rpm", "inf"],
        ["--itpm", "nan"],
        ["--otpm", "many"],
        ["--deadline-s", "-1"],
        ["--delimiter", ";;"],
        ["--delimiter", '"'],
        ["--format", "xml"],
        ["--via", "post"],
        ["--priority", "high"],
    ],
)
def test_a_bad_argument_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What can't be used is refused with 2, by the option's name and the value."""
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert arguments[0] in error
    assert arguments[1] in error


def test_a_bad_template_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """A template that can't be read is refused with the place."""
    with pytest.raises(SystemExit) as ended:
        main(["run", "--template", "a } b"])
    assert ended.value.code == 2
    assert "argument --template: '}' at character 3 stands alone; write it twice" in capsys.readouterr().err


def test_the_help_fits_and_tells_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`penstock run --help` has no line over 80 columns, and tells every option, format and exit code."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    names = {name for name in RunOptions.__slots__ if name != "input"}
    assert all(f"--{name.replace('_', '-')}" in text for name in names)
    assert all(f"\n  {kind} " in text for kind in ("jsonl", "csv", "text"))
    for code in ("0", "1", "2", "130", "141", "143"):
        assert f"{code}  " in text
