"""What a run is given, made ready: its output, its input, its settings.

The rule here: nothing is made and nothing is sent; whatever can't do is refused in one line that says what would.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from penstock.cli.run.lines import Input
from penstock.cli.run.requests import Reading
from penstock.guards.admit.limits import Limits
from penstock.settings import Settings

if TYPE_CHECKING:
    from penstock.cli.run.arguments import RunOptions

__all__ = ["Refused", "check_options", "open_input", "output_of", "reading_of", "schema_of", "settings_of"]

_STANDARD: Final = "-"


class Refused(Exception):
    """The run can't begin, or can't go on until something is mended."""


def check_options(options: RunOptions) -> None:
    """Refuse options that don't go together, and an output that is there already.

    Raises:
        Refused: With what to do.
    """
    _check_effect(options)
    _check_output(options)


def _check_effect(options: RunOptions) -> None:
    """Refuse what would have no effect."""
    for flag in ("max_failures",) if options.via == "batches" else ("deadline_s", "poll_s"):
        if getattr(options, flag) is not None:
            raise Refused(f"--{flag.replace('_', '-')} has no effect with --via {options.via}: leave it out")


def _check_output(options: RunOptions) -> None:
    path = output_of(options)
    resumes = options.resume or options.retry_failed
    if path is None:
        for flag in ("resume", "retry_failed", "keep_params"):
            if getattr(options, flag):
                raise Refused(f"--{flag.replace('_', '-')} needs a file of results: give one with -o")
        if sys.stdout is None:
            raise Refused("the standard output is closed: give a file of results with -o")
        return
    try:
        if path.is_dir():
            raise Refused(f"{path} can't be used: it is a folder. Give the path of a file")
        for each in () if resumes else (path, _beside(path)):
            if each.is_file() and each.stat().st_size:
                raise Refused(f"{each} exists: go on with it by --resume, or give another name")
    except OSError as error:
        raise Refused(f"{path} can't be used: {error.strerror or error}") from None


def output_of(options: RunOptions) -> Path | None:
    """Return the file of results; `None` for the standard output."""
    return None if options.output in {None, _STANDARD} else Path(str(options.output))


def _beside(path: Path) -> Path:
    """Return where a journal keeps what is no result."""
    return path.with_name(f"{path.name}.state")


def open_input(path: str | None) -> Input:
    """Open the input; a terminal only if it is asked for.

    Raises:
        Refused: There is none, or it can't be read.
    """
    if path is None and sys.stdin is not None and sys.stdin.isatty():
        raise Refused("no input: name a file, or pipe requests or prompts into it (- reads the terminal)")
    try:
        return Input.open(path or _STANDARD)
    except OSError as error:
        name = "the standard input" if path in {None, _STANDARD} else path
        raise Refused(f"{name} can't be read: {error.strerror or error}") from None


def settings_of(options: RunOptions) -> Settings:
    """Return the client's settings: what was given, else what the environment says.

    Raises:
        Refused: One can't be used.
    """
    given: dict[str, Any] = {
        name: value
        for name in ("model", "max_tokens", "concurrency", "base_url")
        if (value := getattr(options, name)) is not None
    }
    limits = {
        "requests_per_minute": options.rpm,
        "input_tokens_per_minute": options.itpm,
        "output_tokens_per_minute": options.otpm,
    }
    if any(limits.values()):
        given["limits"] = Limits(**limits)
    try:
        return Settings(log=options.log, **given)
    except ValidationError as error:
        raise Refused("; ".join(_problem(line["loc"], line["msg"]) for line in error.errors())) from None


def _problem(place: tuple[int | str, ...], message: str) -> str:
    """Say what is wrong with a setting, in the words of a shell."""
    said = message.removeprefix("Value error, ").replace("allow_http=True", "PENSTOCK_ALLOW_HTTP=true")
    return f"{'.'.join(map(str, place))}: {said}"


def schema_of(options: RunOptions) -> dict[str, Any] | None:
    """Return the `output_config` that asks for answers which fit a schema; `None` if none was given.

    Raises:
        Refused: The file can't be read, or holds no schema.
    """
    if options.schema is None:
        return None
    try:
        schema: object = json.loads(Path(options.schema).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise Refused(f"{options.schema} can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise Refused(f"{options.schema} is not JSON") from None
    if not isinstance(schema, dict):
        raise Refused(f"{options.schema} is no JSON schema: it must be an object")
    return {"format": {"type": "json_schema", "schema": schema}}


def reading_of(options: RunOptions, source: Input, settings: Settings) -> Reading:
    """Return how the input is to be read."""
    return Reading(
        format=options.format,
        suffix=source.suffix,
        template=options.template,
        custom_id_field=options.custom_id_field,
        delimiter=options.delimiter,
        has_model=settings.model is not None,
    )
