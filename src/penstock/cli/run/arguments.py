"""The arguments of `penstock run`.

The rule here: what is wrong with an argument is found before anything is loaded, read or sent, and a key is never an
argument, because others on the machine can see those.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Literal

from penstock.cli.run.template import Template

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock._core.context import Priority
    from penstock.cli.run.requests import Format

__all__ = ["RunOptions", "add_run", "run_options"]

Via = Literal["live", "batches"]

_DESCRIPTION: Final = """\
Ask many prompts, from a file or a pipe. Results come as Message Batches
result lines: into a file that can be gone on with after any end of the
process, or to the standard output.
"""
_EPILOG: Final = """\
input formats:
  jsonl  a Message Batches request a line: {"custom_id": …, "params": {…}};
         or {"prompt": …}, or any object with --template; or a JSON text
  csv    a header, then a request a line: --template fills columns in,
         else the column "prompt" or "text" is the prompt
  text   a prompt a line; --template may hold it as {text}
  The column or key "custom_id" names a request; without one it is its place,
  counted from 0. In templates, literal braces are doubled.

exit codes:
  0  all were answered              130  interrupted by Ctrl-C
  1  some failed                    141  whoever read the output has left
  2  bad input: nothing is sent     143  ended by SIGTERM
  3  the key, or its organization, was refused

examples:
  penstock run requests.jsonl -o results.jsonl --model claude-haiku-5-5
  penstock run requests.jsonl -o results.jsonl --model claude-haiku-5-5 --resume
  penstock run cities.csv --template 'Where is {city}?' --model claude-haiku-5-5
  cat prompts.txt | penstock run --model claude-haiku-5-5 > results.jsonl

The key is read from ANTHROPIC_API_KEY, or several from PENSTOCK_API_KEYS.
Every setting can be given as a variable PENSTOCK_… as well.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a run shall do; see `penstock run --help`."""

    input: str | None = None
    output: str | None = None
    resume: bool = False
    retry_failed: bool = False
    keep_params: bool = False
    format: Format = "auto"
    template: Template | None = None
    custom_id_field: str | None = None
    delimiter: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    system: str | None = None
    schema: str | None = None
    via: Via = "live"
    deadline_s: float | None = None
    poll_s: float | None = None
    concurrency: int | None = None
    rpm: float | None = None
    itpm: float | None = None
    otpm: float | None = None
    priority: Priority | None = None
    max_failures: float | None = None
    base_url: str | None = None
    progress: bool | None = None
    quiet: bool = False
    log: bool = False


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to the command's parser."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "penstock run [INPUT] [-o OUTPUT] [--model MODEL] [options]"
    _add_files(parser)
    _add_reading(parser.add_argument_group("reading").add_argument)
    _add_asking(parser.add_argument_group("asking").add_argument)
    _add_showing(parser.add_argument_group("showing").add_argument)


def run_options(namespace: argparse.Namespace) -> RunOptions:
    """Return what was given."""
    return RunOptions(**{field.name: getattr(namespace, field.name) for field in fields(RunOptions)})


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("input", nargs="?", metavar="INPUT", help="file of requests or prompts; - or nothing: the standard input")
    add("-o", "--output", metavar="OUTPUT", help="file of results, and journal; - or nothing: the standard output")
    add("--resume", action="store_true", help="go on with OUTPUT: what is answered in it isn't asked again")
    add("--retry-failed", action="store_true", help="with --resume, ask again what failed")
    add("--keep-params", action="store_true", help="keep the params of failed requests in OUTPUT")


def _add_reading(add: Callable[..., object]) -> None:
    formats = ("auto", "jsonl", "csv", "text")
    add("--format", choices=formats, default="auto", help="of INPUT; by its name, else its first line (default: auto)")
    add("--template", type=_template, metavar="TEXT", help="prompt with {columns}, e.g. 'Translate: {text}'")
    add("--custom-id-field", metavar="NAME", help="column or key that names a request (default: custom_id)")
    add("--delimiter", type=_character, metavar="CHAR", help="of CSV (default: a comma, or a tab in .tsv)")


def _add_asking(add: Callable[..., object]) -> None:
    add("--model", metavar="MODEL", help="for requests that name none")
    add("--max-tokens", type=_count, metavar="N", help="of an answer, for requests that say none (default: 8192)")
    add("--system", metavar="TEXT", help="system prompt, for requests that have none")
    add("--schema", metavar="FILE", help="JSON schema that answers are to fit, for requests that say none")
    add(
        "--via",
        choices=("live", "batches"),
        default="live",
        help="batches: half the price, within a day (default: live)",
    )
    add("--deadline-s", type=_above_0, metavar="S", help="with batches, ask live in time what they haven't done")
    add("--poll-s", type=_above_0, metavar="S", help="with batches, seconds until the first look (default: 5)")
    add("--concurrency", type=_count, metavar="N", help="requests at once (default: 64)")
    add("--rpm", type=_above_0, metavar="N", help="requests a minute; learned from the API if not given")
    add("--itpm", type=_above_0, metavar="N", help="input tokens a minute; likewise")
    add("--otpm", type=_above_0, metavar="N", help="output tokens a minute; likewise")
    add("--priority", choices=("interactive", "default", "batch"), help="place in the line (default: batch)")
    add(
        "--max-failures", type=_limit, metavar="N|SHARE", help="stop when more fail: a count, or a share as 0.05 or 5%%"
    )
    add("--base-url", metavar="URL", help="of the API, e.g. http://127.0.0.1:8080 of `penstock simulate`")


def _add_showing(add: Callable[..., object]) -> None:
    add(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="how far it is, on the standard error (default: in a terminal)",
    )
    add("-q", "--quiet", action="store_true", help="say nothing but errors")
    add("--log", action="store_true", help="log a line for each call to the standard error")


def _count(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, not {text!r}")
    return number


def _above_0(text: str) -> float:
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _limit(text: str) -> float:
    """Return a count, or a share between 0 and 1."""
    if text.isascii() and text.isdecimal():
        return int(text)
    share = _number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"expected a count from 0 up, or a share as 0.05 or 5%, not {text!r}")
    return share


def _character(text: str) -> str:
    character = "\t" if text == r"\t" else text
    if len(character) != 1 or character in '"\r\n':
        raise argparse.ArgumentTypeError(f"expected one character, or \\t for a tab, not {text!r}")
    return character


def _template(text: str) -> Template:
    try:
        return Template(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
