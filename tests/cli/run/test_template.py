"""Templates of prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.run.template import Template


def test_columns_are_filled_in() -> None:
    """Each placeholder becomes the value of its column, as often as it stands there, spaces around it aside."""
    template = Template("{city} in { country }: {city}?")
    assert template.columns == ("city", "country")
    assert template.fill({"city": "Paris", "country": "France", "other": ""}) == "Paris in France: Paris?"


def test_doubled_braces_are_braces() -> None:
    """`{{` and `}}` stand for one brace each, also right beside a placeholder."""
    assert Template('{{"word": "{word}"}} {{{word}}}').fill({"word": "a"}) == '{"word": "a"} {a}'


@pytest.mark.parametrize("name", ["text.__class__", "text[0]", "text!r", "text:>10", "0"])
def test_a_placeholder_is_a_name_and_nothing_else(name: str) -> None:
    """Attributes, indexing, conversions and formats are not evaluated: they are part of a name, which no column has."""
    template = Template(f"{{{name}}}")
    assert template.columns == (name,)
    with pytest.raises(KeyError, match=r"text|0"):
        template.fill({"text": "value"})
    assert template.fill({name: "value"}) == "value"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a { b", "'{' at character 3 stands alone; write it twice"),
        ("a } b", "'}' at character 3 stands alone"),
        ("{a}}", "'}' at character 4 stands alone"),
        ("{}", "'{}' at character 1 names no column"),
        ("x{ }", "'{ }' at character 2 names no column"),
        ("{a{b}}", "'{' at character 1 stands alone"),
    ],
)
def test_a_bad_template_is_refused_with_the_place(text: str, problem: str) -> None:
    """A brace that stands alone, or a placeholder without a name, is an error that tells where."""
    with pytest.raises(ValueError, match=r".") as refused:
        Template(text)
    assert problem in str(refused.value)


@given(st.text())
def test_any_text_can_be_written(text: str) -> None:
    """With its braces doubled, any text comes out as it is, and values are never looked at for placeholders."""
    escaped = text.replace("{", "{{").replace("}", "}}")
    assert Template(f"{escaped}{{x}}").fill({"x": "{x}{{"}) == f"{text}{{x}}{{{{"


def test_it_tells_what_it_needs() -> None:
    """Its `repr` names the columns, not the text."""
    assert repr(Template("secret {a} {b}")) == "<Template of a, b>"
    assert repr(Template("secret")) == "<Template of no columns>"
