"""Requests out of lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from penstock.cli.run.lines import BadInput
from penstock.cli.run.requests import Reading, requests
from penstock.cli.run.template import Template

if TYPE_CHECKING:
    from collections.abc import Iterator

PARAMS = {"max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}


def lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text, numbered."""
    return iter(list(enumerate(text.split("\n"), 1)))


def read(text: str, **options: Any) -> list[dict[str, Any]]:
    """The requests of a text."""
    return [request.fields for request in requests(lines(text), Reading(**options))]


def prompts(text: str, **options: Any) -> dict[str, str]:
    """The prompts of a text, by `custom_id`."""
    return {fields["custom_id"]: fields["params"]["messages"][0]["content"] for fields in read(text, **options)}


def problem(text: str, **options: Any) -> str:
    """What is said of a bad input."""
    with pytest.raises(BadInput) as bad:
        read(text, **options)
    return str(bad.value)


# Formats


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".txt", "Hello"),
        ("", "\n  Hello\r"),
        ("", '"Hello" is what it says'),
        (".jsonl", '"Hello"'),
        (".json", '{"prompt": "Hello"}'),
        (".ndjson", '\n{"text": "Hello"}\n'),
        ("", '\n {"prompt": "Hello"}'),
        (".csv", "prompt\nHello"),
        (".tsv", "text\tother\nHello\tx"),
    ],
)
def test_the_format_goes_by_the_name_or_the_first_line(suffix: str, text: str) -> None:
    """A suffix tells the format; without one a first line that begins with a brace is JSON, any other a prompt."""
    (prompt,) = prompts(text, suffix=suffix).values()
    assert prompt == ('"Hello" is what it says' if "says" in text else "Hello")


def test_a_given_format_wins() -> None:
    """A format that is given counts for more than the name and the content."""
    assert prompts('{"prompt": "Hello"}', suffix=".jsonl", format="text") == {"0": '{"prompt": "Hello"}'}


@pytest.mark.parametrize("kind", ["auto", "jsonl", "csv", "text"])
@pytest.mark.parametrize("text", ["", "\n", " \r\n\t\n"])
def test_blank_lines_are_no_requests(kind: str, text: str) -> None:
    """An input of nothing but blank lines has no requests."""
    assert read(text, format=kind) == []


def test_items_are_named_by_their_place() -> None:
    """Without a name of its own, a request is called by its place in the input, blank lines not counted."""
    assert prompts("one\n\ntwo\nthree") == {"0": "one", "1": "two", "2": "three"}


def test_lines_are_told_beside_requests() -> None:
    """Each request knows the line that it stands on."""
    assert [request.line for request in requests(lines("\none\n\ntwo"), Reading())] == [2, 4]


def test_each_name_comes_once() -> None:
    """A `custom_id` that an earlier request has, of whatever kind, is refused by its line."""
    text = f'"one"\n{json.dumps({"custom_id": "0", "params": PARAMS})}'
    assert problem(text, format="jsonl") == "line 2: an earlier line has the same custom_id, '0'"


def test_a_model_is_needed() -> None:
    """If none is given for all, a request without a model is refused by its line."""
    with_model = json.dumps({"custom_id": "a", "params": {**PARAMS, "model": "claude-haiku-5-5"}})
    assert len(read(with_model, has_model=False)) == 1
    assert problem(f'{with_model}\n{{"prompt": "x"}}', has_model=False) == "line 2: no model: give one with --model"


# Plain prompts


def test_a_template_holds_the_line() -> None:
    """In plain text the template's `{text}` is the line."""
    assert prompts("eins\nzwei", template=Template("Translate: {text}!")) == {
        "0": "Translate: eins!",
        "1": "Translate: zwei!",
    }


def test_another_column_of_plain_text_is_unknown() -> None:
    """A template that asks for anything else is refused by line and column."""
    assert problem("\neins", template=Template("{word}")) == "line 2: there is no column 'word'; there are: 'text'"


# JSON Lines


def test_requests_pass_as_they_are() -> None:
    """A Message Batches request keeps its name, its params and its labels."""
    request = {"custom_id": "a", "params": PARAMS, "labels": {"user": "u1"}}
    assert read(json.dumps(request)) == [request]


def test_objects_are_columns() -> None:
    """Of any other object a template takes what it needs: texts as they are, the rest as JSON, null as nothing."""
    text = json.dumps({"custom_id": "a", "n": 1.5, "list": [1, "ż"], "none": None, "yes": True, "word": "żółw"})
    template = Template("{word} {n} {list} {yes} [{none}] {custom_id}")
    assert prompts(text, template=template) == {"a": 'żółw 1.5 [1, "ż"] true [] a'}


def test_an_object_may_name_its_prompt() -> None:
    """Without a template, `prompt`, else `text`, else the only part that there is, is the prompt."""
    objects = [{"text": "no", "prompt": "one"}, {"text": "two", "x": 1}, {"question": "three"}]
    objects.append({"custom_id": "d", "text": "four"})
    assert prompts("\n".join(map(json.dumps, objects))) == {"0": "one", "1": "two", "2": "three", "d": "four"}


def test_a_key_may_name_requests() -> None:
    """With a key for the name, its value is the `custom_id`, and no prompt."""
    assert prompts('{"id": 7, "question": "one"}', custom_id_field="id") == {"7": "one"}
    assert read(json.dumps({"name": "x", "params": PARAMS}), custom_id_field="name")[0]["custom_id"] == "x"
    assert problem('{"prompt": "one"}', custom_id_field="id") == (
        "line 1: has no id: it must be a text that names the request"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes at character 2"),
        ("Hello", "not JSON: Expecting value at character 1; for plain prompts, give --format text"),
        ('{"a": NaN}', "not JSON: NaN is no JSON"),
        (f'{{"a": {"9" * 5000}}}', "not JSON: Exceeds the limit"),
        ('{"a": 1e400}', "not JSON: Out of range float values"),
        (f'{{"a": {"9" * 250}e99}}', "not JSON: Out of range float values"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": "\\ud83d"}', "holds half of a surrogate pair"),
        ('[{"prompt": "a"}]', "a JSON array: write one request a line, as `jq -c '.[]'` does"),
        ("7", "neither a request nor a prompt"),
        ('""', "the prompt is empty"),
        ('{"prompt": " "}', "the prompt is empty"),
        ("{}", "nothing is called 'prompt' or 'text': give a --template, as 'Summarize: {column}'"),
        ('{"a": "x", "b": "y"}', "nothing is called 'prompt' or 'text': give a --template, as 'Summarize: {b}'"),
        ('{"custom_id": "a"}', 'has no params: a request is {"custom_id": …, "params": {"messages": […]}}'),
        ('{"custom_id": "a", "params": []}', "has params that are no object"),
        ('{"custom_id": "a", "params": {}}', "its params have no messages"),
        ('{"custom_id": "a", "params": {"messages": "Hello"}}', "its params have no messages"),
        (json.dumps({"params": PARAMS}), "has no custom_id: it must be a text that names the request"),
        (json.dumps({"custom_id": "", "params": PARAMS}), "has no custom_id"),
        (json.dumps({"custom_id": " ", "params": PARAMS}), "has a bad custom_id"),
        (json.dumps({"custom_id": 7, "params": PARAMS}), "has a bad custom_id"),
        (json.dumps({"custom_id": "a", "params": {**PARAMS, "stream": True}}), "asks for a stream"),
        (json.dumps({"custom_id": "a", "params": PARAMS, "labels": {"a": 1}}), "its labels are no object of texts"),
        (json.dumps({"custom_id": "a", "params": PARAMS, "labels": "b"}), "its labels are no object of texts"),
        (json.dumps({"custom_id": "a", "params": PARAMS, "labels": {"priority": "high"}}), "its priority must be one"),
    ],
)
def test_a_line_that_is_no_request_is_refused(line: str, said: str) -> None:
    """Whatever is wrong with a line is told with its number and what to do."""
    text = problem(f'{{"prompt": "good"}}\n\n{line}', format="jsonl")
    assert text.startswith(f"line 3: {said}")


def test_a_whole_surrogate_pair_is_a_character() -> None:
    """What JSON writes as two escapes arrives as one character."""
    assert prompts('{"prompt": "\\ud83d\\ude00"}') == {"0": "😀"}


def test_a_template_makes_nothing_of_whole_requests() -> None:
    """A template that would have no effect is refused."""
    said = problem(json.dumps({"custom_id": "a", "params": PARAMS}), template=Template("{a}"))
    assert said == "line 1: a whole request, of which no --template makes a prompt"


# CSV


def test_columns_fill_the_template() -> None:
    """Each record makes a prompt; quoted fields may hold separators, quotes and line ends; blank lines don't count."""
    text = 'custom_id,city,note\r\n\r\na,Paris,"one\r\ntwo, ""three"""\r\nb,Rome,x\r\n'
    assert prompts(text, suffix=".csv", template=Template("{city}: {note}")) == {
        "a": 'Paris: one\r\ntwo, "three"',
        "b": "Rome: x",
    }


def test_a_record_stands_on_the_line_that_it_begins_on() -> None:
    """Lines are counted as an editor does, also after a field of several lines."""
    text = 'prompt,x\n"one\nstill one",1\ntwo,2\nthree'
    assert [request.line for request in requests(lines(text[: text.index("\nthree")]), Reading(format="csv"))] == [2, 4]
    assert problem(text, format="csv") == "line 5: 1 columns, but the header has 2"


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("id,question\n7,one", {"custom_id_field": "id"}, {"7": "one"}),
        ("custom_id,question\na,one", {}, {"a": "one"}),
        ("prompt;x\none;2", {"delimiter": ";"}, {"0": "one"}),
        ("prompt\tx\none\t2", {"suffix": ".tsv"}, {"0": "one"}),
    ],
)
def test_columns_have_their_parts(text: str, options: dict[str, str], expected: dict[str, str]) -> None:
    """A column may name the request, and what separates columns may be told."""
    assert prompts(text, **{"format": "csv", **options}) == expected


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("a,b\n1,2", {"template": Template("{c}")}, "line 1: there is no column 'c'; there are: 'a', 'b'"),
        ("a,b\n1,2", {"custom_id_field": "id"}, "line 1: there is no column 'id'; there are: 'a', 'b'"),
        ("a,b\n1,2", {}, "line 2: nothing is called 'prompt' or 'text': give a --template, as 'Summarize: {b}'"),
        ("a,a\n1,2", {}, "line 1: the first line must name every column, each by a name of its own"),
        ("a,\n1,2", {}, "line 1: the first line must name every column"),
        ('""', {}, "line 1: the first line must name every column"),
        ("prompt\n1,2", {}, "line 2: 2 columns, but the header has 1"),
        ("prompt;x\n1;2", {}, "line 1: only one column: if ';' separates columns, give it as --delimiter"),
        ('prompt,x\na,1\n"b,1\n\n', {}, "line 3: not CSV: unexpected end of data"),
        ('prompt\n"a"b', {}, "line 2: not CSV: "),
        ("custom_id,prompt\n,a", {}, "line 2: has no custom_id"),
        ("custom_id,prompt\na,", {}, "line 2: the prompt is empty"),
    ],
)
def test_a_bad_table_is_refused(text: str, options: dict[str, Any], said: str) -> None:
    """What is wrong with a table is told by line and column."""
    assert problem(text, format="csv", **options).startswith(said)


def test_fields_may_be_long() -> None:
    """A field has no other bound than a line has."""
    (prompt,) = prompts(f"prompt\n{'x' * 1_000_000}", format="csv").values()
    assert len(prompt) == 1_000_000


def test_great_numbers_are_numbers() -> None:
    """What a number that overflows looks like may be a text, or a whole number."""
    text = '{"prompt": "1e400", "seed": ' + "9" * 250 + "}"
    (found,) = requests(iter([(1, text)]), Reading(format="jsonl"))
    assert found.fields["params"]["messages"][0]["content"] == "1e400"
