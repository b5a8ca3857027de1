from __future__ import annotations

from typing import Any

import anthropic

from penstock.tools.drive import Drive
from penstock.tools.state import Ask

ASK = Ask(iteration=2, messages=[])


def drive(**params: Any) -> Drive:
    """A run that sends nothing."""
    sdk = anthropic.AsyncAnthropic(api_key="sk-1", base_url="http://nowhere.invalid")
    return Drive(sdk, "Hello", tools=[], approve=None, params={"model": "m", **params})


def test_code_on_the_server_goes_on_in_its_container() -> None:
    """The API refuses a follow-up without it; one that the caller names stays."""
    run = drive()
    assert "container" not in run._params_of(ASK)
    run._state.container = "container_1"
    assert run._params_of(ASK)["container"] == "container_1"
    named = drive(container="container_2")
    named._state.container = "container_1"
    assert named._params_of(ASK)["container"] == "container_2"


def test_options_of_the_loop_are_not_sent() -> None:
    """What remains is a request's."""
    assert drive(max_iterations=2, system="Be brief.")._params_of(ASK) == {"model": "m", "system": "Be brief."}


def test_its_repr_shows_where_it_stands() -> None:
    """And no content."""
    assert repr(drive()) == (
        "<Drive of 'm', <LoopState 0 replies, 0 calls, <Transcript of 1 messages, 0 calls unanswered>>>"
    )
