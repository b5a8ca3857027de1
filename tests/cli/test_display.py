"""What a run looks like."""

from __future__ import annotations

import io

import pytest

from penstock.cli.display import Display, clean


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same terminal for every test."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "30")


def shown(file: io.StringIO) -> list[str]:
    """What was written, by line."""
    return file.getvalue().splitlines()


def test_text_from_outside_cannot_steer_the_terminal() -> None:
    """Escape sequences, line breaks and bells become spaces; letters of any script stay."""
    assert clean("a\x1b[2Jb\r\n\x07c żółw 日本") == "a [2Jb   c żółw 日本"


def test_values_are_wrapped_below_themselves() -> None:
    """A value longer than the line goes on under its own beginning, with nothing trailing."""
    file = io.StringIO()
    Display(file).facts([("Model", "x"), ("A", " ".join(["word"] * 20))])
    lines = shown(file)
    assert lines[0] == "Model  x"
    assert lines[1].startswith("A      word word")
    assert lines[2].startswith("       word")
    assert all(len(line) <= 60 and line == line.rstrip() for line in lines)


def test_the_table_holds_every_row() -> None:
    """Names and values stand side by side, within the width."""
    file = io.StringIO()
    Display(file).table([("Answered", "1 of 2"), ("Failed", "1")], good=False)
    assert "Answered" in shown(file)[1]
    assert "1 of 2" in shown(file)[1]
    assert len(shown(file)) == 4


@pytest.mark.parametrize(("good", "colour"), [(True, "32"), (False, "31")])
def test_news_has_a_colour(good: bool, colour: str) -> None:
    """In a terminal, good news are green and bad news red."""
    file = Terminal()
    Display(file).table([("Answered", "2 of 2"), ("Failed", "0")], good=good)
    assert f"\x1b[1;{colour}m2 of 2" in file.getvalue()


def test_a_file_gets_the_text_piece_by_piece_and_nothing_else() -> None:
    """What grows is written as it comes, on one line, even where colours are forced."""
    file = io.StringIO()
    display = Display(file)
    with display.growing() as grow:
        grow("Hello ")
        assert file.getvalue() == "Hello "
        grow("wor\nld [bold]\x1b[0m")
    assert file.getvalue() == "Hello wor ld [bold] [0m\n"


def test_a_text_that_breaks_off_ends_its_line() -> None:
    """Whatever is said next begins on a line of its own."""
    file = io.StringIO()
    display = Display(file)

    def interrupted() -> None:
        with display.growing() as grow:
            grow("Hel")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    display.line("Interrupted.")
    assert shown(file) == ["Hel", "Interrupted."]


def test_colours_cannot_be_forced_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stays free of control characters, whatever the environment says."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    display = Display(file)
    display.line("bold", "bold")
    display.table([("Answered", "2 of 2")], good=True)
    assert "\x1b" not in file.getvalue()
    assert repr(display) == "<Display plain, 60 columns>"


def test_a_terminal_shows_the_text_growing() -> None:
    """In a terminal the text is redrawn as it comes, and stays."""
    file = Terminal()
    with Display(file).growing() as grow:
        grow("Hello ")
        grow("world")
    assert "Hello world\n" in file.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that can't redraw isn't asked to."""
    monkeypatch.setenv("TERM", "dumb")
    assert repr(Display(Terminal())) == "<Display plain, 60 columns>"
