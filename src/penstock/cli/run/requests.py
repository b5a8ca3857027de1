"""Requests out of lines: JSON Lines, CSV, or plain prompts, one a line.

The rule here: every line becomes a request that Message Batches would take, or is refused by its number with what to
do. Each request is known by its `custom_id`; without one it is the place in the input, counted from 0, as in `fan_out`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias, cast, get_args

from penstock._core.context import Priority
from penstock.batch.items import Placed
from penstock.batch.journal.digests import DigestSet
from penstock.cli.run.lines import LONGEST, BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from penstock.cli.run.template import Template

__all__ = ["Format", "Reading", "Request", "requests"]

Format = Literal["auto", "jsonl", "csv", "text"]
Lines: TypeAlias = "Iterator[tuple[int, str]]"
_Fields: TypeAlias = Mapping[str, Any]

_SUFFIXES: Final[Mapping[str, Format]] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv", ".txt": "text",
}  # fmt: skip
_CUSTOM_ID: Final = "custom_id"
_TEXT: Final = "text"
_PROMPT: Final = "prompt"
_HUGE: Final = re.compile(r"\d[eE]\+?\d{3}|\d{200}")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How lines are to be read.

    Attributes:
        format: `"auto"` goes by the suffix of the name, else by how the first line begins.
        suffix: Of the input's name, e.g. `.csv`.
        template: Makes prompts of columns.
        custom_id_field: The column or key that names an item; `custom_id` by default, where there is one.
        delimiter: Of CSV; a comma by default, or a tab in `.tsv`.
        has_model: Whether requests may lack a model, because one is given for all.
    """

    format: Format = "auto"
    suffix: str = ""
    template: Template | None = None
    custom_id_field: str | None = None
    delimiter: str | None = None
    has_model: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request, and where it stands.

    Attributes:
        line: Number of the line that it begins on.
        custom_id: Its name.
        fields: `custom_id`, `params`, and `labels` if it has any.
    """

    line: int
    custom_id: str
    fields: dict[str, Any]


def requests(lines: Lines, reading: Reading) -> Iterator[Request]:
    """Give the requests of an input, in order, each `custom_id` once; blank lines are passed over.

    Args:
        lines: Numbered.
        reading: How to read them.

    Raises:
        BadInput: A line is no request; it tells which and why.

    Example:
        >>> [request.fields for request in requests(iter([(1, "Hello")]), Reading())]
        [{'params': {'messages': [{'role': 'user', 'content': 'Hello'}]}, 'custom_id': '0'}]
    """
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    kind = reading.format
    if kind == "auto":
        kind = _SUFFIXES.get(reading.suffix) or ("jsonl" if first[1].lstrip().startswith("{") else "text")
    items = _READERS[kind](chain([first], lines), reading)
    seen = DigestSet()
    for index, (number, found) in enumerate(items):
        fields = found if _CUSTOM_ID in found else Placed(found, custom_id=str(index))
        if not seen.add(fields[_CUSTOM_ID]):
            raise BadInput(f"an earlier line has the same custom_id, {fields[_CUSTOM_ID][:64]!r}", line=number)
        if not reading.has_model and not fields["params"].get("model"):
            raise BadInput("no model: give one with --model", line=number)
        yield Request(line=number, custom_id=fields[_CUSTOM_ID], fields=fields)


# Plain prompts


def _text(lines: Lines, reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines:
        if text := line.strip():
            yield number, _asked(_prompt({_TEXT: text}, reading, number))


def _prompt(columns: Mapping[str, str], reading: Reading, number: int) -> str:
    """Return the prompt that the template makes of columns, or the one that stands there."""
    if reading.template is not None:
        try:
            prompt = reading.template.fill(columns)
        except KeyError as missing:
            _no_column(str(missing.args[0]), columns, number)
    else:
        names = [_PROMPT, _TEXT, *(columns if len(columns) == 1 else ())]
        found = next((columns[name] for name in names if name in columns), None)
        if found is None:
            raise BadInput(
                f"nothing is called {_PROMPT!r} or {_TEXT!r}: give a --template, as 'Summarize: {{{_last(columns)}}}'",
                line=number,
            )
        prompt = found
    if not prompt.strip():
        raise BadInput("the prompt is empty", line=number)
    return prompt


def _last(columns: Mapping[str, str]) -> str:
    return list(columns)[-1] if columns else "column"


def _no_column(name: str, columns: Mapping[str, str], number: int) -> NoReturn:
    there = ", ".join(repr(column) for column in columns) or "none"
    raise BadInput(f"there is no column {name!r}; there are: {there}", line=number) from None


def _asked(prompt: str) -> dict[str, Any]:
    return {"params": {"messages": [{"role": "user", "content": prompt}]}}


# CSV


def _csv(lines: Lines, reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    records = _records(lines, reading.delimiter or ("\t" if reading.suffix == ".tsv" else ","))
    first, names = next(records, (1, [""]))
    header = [name.strip() for name in names]
    _check_header(header, reading, first)
    for number, record in records:
        if len(record) != len(header):
            raise BadInput(f"{len(record)} columns, but the header has {len(header)}", line=number)
        yield number, _of_columns(dict(zip(header, record, strict=True)), reading, number)


def _records(lines: Lines, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Give each record and the line that it begins on."""
    # It is the csv module's own bound, and far too low for prompts.
    csv.field_size_limit(LONGEST)
    last = [0]

    def texts() -> Iterator[str]:
        for last[0], line in lines:
            # The csv module wants the ends of lines, which may stand within quotes.
            yield f"{line}\n"

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        begins_after = last[0]
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise BadInput(f"not CSV: {error}", line=begins_after + 1) from None
        if record is None:
            return
        if record and (len(record) > 1 or record[0].strip()):
            yield begins_after + 1, record


def _check_header(header: list[str], reading: Reading, number: int) -> None:
    if len(set(header)) < len(header) or "" in header:
        raise BadInput("the first line must name every column, each by a name of its own", line=number)
    columns = dict.fromkeys(header, "")
    if len(header) == 1 and reading.delimiter is None and (found := re.search(r"[;\t|]", header[0])):
        raise BadInput(f"only one column: if {found.group()!r} separates columns, give it as --delimiter", line=number)
    for name in (*(reading.template.columns if reading.template else ()), reading.custom_id_field):
        if name is not None and name not in columns:
            _no_column(name, columns, number)


def _of_columns(columns: Mapping[str, str], reading: Reading, number: int) -> dict[str, Any]:
    """Return the request that columns, or the parts of an object, make."""
    named = reading.custom_id_field or _CUSTOM_ID
    # What names an item is no prompt; a template may hold it all the same.
    rest = {name: value for name, value in columns.items() if reading.template is not None or name != named}
    fields = _asked(_prompt(rest, reading, number))
    if named in columns or reading.custom_id_field is not None:
        fields[_CUSTOM_ID] = _checked_id(columns.get(named), named, number)
    return fields


# JSON Lines


def _jsonl(lines: Lines, reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines:
        if not line.strip():
            continue
        value = _json(line, number)
        if isinstance(value, str):
            yield number, _asked(_prompt({_TEXT: value}, reading, number))
        elif isinstance(value, dict):
            yield number, _of_object(cast("_Fields", value), reading, number)
        elif isinstance(value, list):
            raise BadInput("a JSON array: write one request a line, as `jq -c '.[]'` does", line=number)
        else:
            raise BadInput("neither a request nor a prompt", line=number)


def _json(line: str, number: int) -> object:
    try:
        value: object = json.loads(line, parse_constant=_refuse)
        if _SURROGATE.search(line):
            json.dumps(value, ensure_ascii=False).encode()
        if _HUGE.search(line):
            json.dumps(value, allow_nan=False)
    except json.JSONDecodeError as error:
        raise BadInput(
            f"not JSON: {error.msg} at character {error.colno}; for plain prompts, give --format text", line=number
        ) from None
    except UnicodeEncodeError:
        raise BadInput("holds half of a surrogate pair, which can't be sent", line=number) from None
    except RecursionError:
        raise BadInput("nested too deeply", line=number) from None
    except ValueError as error:
        raise BadInput(f"not JSON: {error}", line=number) from None
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _of_object(value: _Fields, reading: Reading, number: int) -> dict[str, Any]:
    whole = "params" in value
    if whole and reading.template is not None:
        raise BadInput("a whole request, of which no --template makes a prompt", line=number)
    if not (whole or (_CUSTOM_ID in value and reading.template is None and value.keys().isdisjoint((_PROMPT, _TEXT)))):
        return _of_columns({name: _as_text(part) for name, part in value.items()}, reading, number)
    fields: dict[str, Any] = {"params": _checked_params(value, number)}
    if "labels" in value:
        fields["labels"] = _checked_labels(value["labels"], number)
    named = reading.custom_id_field or _CUSTOM_ID
    fields[_CUSTOM_ID] = _checked_id(value.get(named), named, number)
    return fields


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _checked_params(value: _Fields, number: int) -> dict[str, Any]:
    params: object = value.get("params")
    if not isinstance(params, dict):
        problem = "has no params" if params is None else "has params that are no object"
        raise BadInput(f'{problem}: a request is {{"custom_id": …, "params": {{"messages": […]}}}}', line=number)
    found = cast("dict[str, Any]", params)
    messages: object = found.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadInput("its params have no messages", line=number)
    if found.get("stream"):
        raise BadInput("asks for a stream; results are whole messages, so leave it out", line=number)
    return found


def _checked_labels(labels: object, number: int) -> dict[str, str]:
    found = cast("dict[str, object]", labels) if isinstance(labels, dict) else {"": None}
    if not all(isinstance(value, str) for value in found.values()):
        raise BadInput("its labels are no object of texts", line=number)
    if found.get("priority", "batch") not in get_args(Priority):
        raise BadInput(f"its priority must be one of {', '.join(get_args(Priority))}", line=number)
    return cast("dict[str, str]", found)


def _checked_id(value: object, name: str, number: int) -> str:
    if not isinstance(value, str) or not value.strip():
        problem = "has no" if value is None or value == "" else "has a bad"
        raise BadInput(f"{problem} {name}: it must be a text that names the request", line=number)
    return value


_READERS: Final[Mapping[str, Callable[[Lines, Reading], Iterator[tuple[int, dict[str, Any]]]]]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "text": _text,
}
