"""Sanitizing: what users, tools and documents put into a request is cleaned, flagged or refused before it is sent.

The rule here: a tripwire, not a wall. It looks at what comes from outside: user turns, tool results, documents. Prompts
of the application and turns of the model go through unchanged, because the API wants those back as they were. The
caller's own objects are never changed: only what differs is made anew.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, cast

import anthropic
from pydantic import AfterValidator, Field

from penstock._core.call import open_call
from penstock._core.kind import RequestKind, kind_of
from penstock._core.options import Options, options_from
from penstock._core.threads import Threads
from penstock.errors import UnsafeInput
from penstock.events import InputFlagged, Observers
from penstock.guards.sanitize.rules import (
    NOTHING_LEFT,
    Action,
    Finding,
    Pattern,
    Rule,
    cleaned,
    control_rule,
    invisible_rule,
    pattern_rule,
    surrogate_rule,
)
from penstock.guards.sanitize.texts import Fields, changed_message, changed_messages, characters_of

if TYPE_CHECKING:
    from anthropic import APIRequest

    from penstock._core.attempt import CallNext, Response

__all__ = ["SUSPICIOUS", "Finding", "Sanitize", "SanitizeOptions", "SanitizeStatistics"]

_NO_OBSERVERS: Final = Observers()
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A request of a hundred thousand unclean messages must not become as many events.
_MOST_FINDINGS: Final = 100
# Characters of a request that are looked through on the event loop; a third of a microsecond each, at worst.
_MOST_ON_LOOP: Final = 50_000
_threads: Final = Threads("penstock-sanitize", 2)

SUSPICIOUS: Final[dict[str, Pattern]] = {
    "ignore_instructions": (
        "ignore previous instructions",
        "ignore prior instructions",
        "ignore all previous instructions",
        "ignore all prior instructions",
        "ignore all instructions",
        "ignore any previous instructions",
        "ignore your instructions",
        "ignore your previous instructions",
        "ignore the previous instructions",
        "ignore the above",
        "ignore everything above",
        "forget previous instructions",
        "forget all previous instructions",
        "forget your instructions",
    ),
    "disregard": "disregard",
    "new_instructions": "new instructions:",
    "system_prompt": ("system prompt:", "[system]", "<system>"),
    "special_token": (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<</SYS>>",
    ),
    "turn_marker": ("\n\nHuman:", "\n\nAssistant:", "\r\n\r\nHuman:", "\r\n\r\nAssistant:"),
}
"""The patterns that are looked for unless others are given."""


def _checked(patterns: dict[str, Pattern]) -> dict[str, Pattern]:
    for name, pattern in patterns.items():
        if not _NAME.fullmatch(name):
            raise ValueError("names of patterns are letters, digits, _ and -, 64 at most, because they are logged")
        pattern_rule(name, pattern, "flag")
    return patterns


# Text is a phrase, also where it comes from JSON; it is never compiled.
_Pattern: TypeAlias = Annotated[Pattern, Field(union_mode="left_to_right")]


class SanitizeOptions(Options):
    """What is looked for in the input of requests, and what is done about it.

    Each action is `"strip"` (it is taken out), `"flag"` (an event tells of it) or `"refuse"` (`UnsafeInput` is raised).
    What is stripped is told of, too.

    Attributes:
        max_characters: Characters that one message may have, all its texts together, 1 or more.
        on_length: For messages that are longer; `"strip"` cuts off what is too much.
        on_surrogates: For surrogates, which can't be encoded.
        on_controls: For NUL and other control characters, except tabs and line breaks.
        on_invisible: For invisible characters, and those that turn the direction of writing.
        on_pattern: For suspicious patterns; `"strip"` puts `[removed]` in their place.
        patterns: The patterns by name. A phrase or several are found in any case, with white space of any length where
            they have a space (10,000 characters at least); a compiled `re.Pattern` is used as it is, at your own risk:
            many take quadratic time or worse on texts made for it.

    Example:
        >>> options = SanitizeOptions(on_pattern="refuse", patterns={**SUSPICIOUS, "secret": "launch code"})
        >>> options.max_characters
        100000
    """

    max_characters: int = Field(default=100_000, ge=1)
    on_length: Action = "refuse"
    on_surrogates: Action = "strip"
    on_controls: Action = "strip"
    on_invisible: Action = "strip"
    on_pattern: Action = "flag"
    patterns: Annotated[dict[str, _Pattern], AfterValidator(_checked)] = Field(default_factory=SUSPICIOUS.copy)

    def rules(self) -> tuple[Rule, ...]:
        """Return what to look for, in order: characters first, so that none hides a pattern."""
        return (
            surrogate_rule(self.on_surrogates),
            control_rule(self.on_controls),
            invisible_rule(self.on_invisible),
            *(pattern_rule(name, pattern, self.on_pattern) for name, pattern in self.patterns.items()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SanitizeStatistics:
    """What was found so far.

    Attributes:
        requests: That were looked at.
        unclean: In which something was found.
        refused: That were not sent for it.
    """

    requests: int
    unclean: int
    refused: int


class _Sweep:
    """One request's way through the rules.

    Args:
        options: What to do.
        rules: What to look for.

    Attributes:
        findings: What was found, the first of it.
        refusals: For which of it the request must not be sent.
    """

    __slots__ = ("_characters", "_left", "_options", "_rules", "findings", "refusals")

    def __init__(self, options: SanitizeOptions, rules: tuple[Rule, ...]) -> None:
        self.findings: list[Finding] = []
        self.refusals: list[Finding] = []
        self._characters: dict[str, int] = {}
        self._options = options
        self._rules = rules
        self._left: int | None = None

    @property
    def characters(self) -> int:
        """Of all messages that were measured."""
        return sum(self._characters.values())

    def measure(self, message: Fields, place: str) -> Fields:
        """Note how long a message is."""
        self._characters[place] = characters_of(message)
        return message

    def message(self, message: Fields, place: str) -> Fields:
        """Return a message that was measured as it is to be sent; the very same if nothing is to be changed."""
        options = self._options
        characters = self._characters[place]
        self._left = None
        if characters > options.max_characters:
            self._note("length", place, characters, options.on_length)
            if options.on_length == "refuse":
                # Looking through it would cost time for nothing.
                return message
            self._left = options.max_characters if options.on_length == "strip" else None
        return changed_message(message, place, self._text)

    def _text(self, text: str, place: str) -> str:
        if self._left is not None and text:
            text = text[: self._left]
            self._left -= len(text)
            text = text or NOTHING_LEFT
        clean, found = cleaned(text, self._rules)
        for rule, count in found:
            self._note(rule.name, place, count, rule.action)
        return clean

    def _note(self, name: str, place: str, count: int, action: Action) -> None:
        finding = Finding(pattern=name, place=place, count=count, action=action)
        for noted in (self.findings, self.refusals) if action == "refuse" else (self.findings,):
            if len(noted) < _MOST_FINDINGS:
                noted.append(finding)


class Sanitize(anthropic.Middleware):
    """Cleans, flags or refuses what comes from outside in a request: user turns, tool results, text documents.

    Titles, contexts and search results are looked at as well; images, PDFs, system prompts, tool definitions and turns
    of the model are not. The same text always becomes the same, so that prompt caches hold.

    This is a tripwire, not a security boundary: it finds known phrases and hidden characters. Who means harm words it
    differently. What a model may do on behalf of whom has to be decided elsewhere.

    Args:
        options: What to look for and what to do; or give its fields as keywords.
        observers: Told of everything found (`InputFlagged`), the first hundred of each request.
        **fields: Fields of `SanitizeOptions`.

    Raises:
        pydantic.ValidationError: A field is unknown or out of range; it is also a `ValueError`.
        TypeError: Both `options` and fields were given.

    Example:
        >>> claude = anthropic.AsyncAnthropic(api_key="…", middleware=[Sanitize(on_pattern="refuse")])
    """

    def __init__(
        self, options: SanitizeOptions | None = None, *, observers: Observers = _NO_OBSERVERS, **fields: object
    ) -> None:
        self._options = options_from(SanitizeOptions, options, fields)
        self._rules = self._options.rules()
        self._observers = observers
        self._requests = self._unclean = self._refused = 0

    def __repr__(self) -> str:
        return f"<Sanitize {self._requests} requests, {self._unclean} unclean, {self._refused} refused>"

    def statistics(self) -> SanitizeStatistics:
        """Return the counts so far."""
        return SanitizeStatistics(requests=self._requests, unclean=self._unclean, refused=self._refused)

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        """Send `request` on, cleaned.

        Raises:
            UnsafeInput: It holds what is to be refused.
        """
        if kind_of(request.method, request.url) is RequestKind.OTHER:
            return await call_next(request)
        with open_call(request) as call:
            return await call_next(await self._cleaned(request, call.id))

    async def _cleaned(self, request: APIRequest, call_id: str) -> APIRequest:
        sweep = _Sweep(self._options, self._rules)
        options = request.options
        changed_messages(options.json_data, sweep.measure)
        clean_body = partial(changed_messages, options.json_data, sweep.message)
        body = clean_body() if sweep.characters <= _MOST_ON_LOOP else await _threads.run(clean_body)
        self._count(sweep)
        for finding in sweep.findings:
            self._observers.emit(
                InputFlagged(
                    call_id=call_id,
                    pattern=finding.pattern,
                    place=finding.place,
                    count=finding.count,
                    action=finding.action,
                )
            )
        if sweep.refusals:
            raise UnsafeInput(tuple(sweep.refusals))
        if body is options.json_data:
            return request
        # A shallow copy: `APIRequest.copy` copies all images, too.
        clean = copy.copy(request)
        clean.options = options.model_copy()
        clean.options.json_data = cast("Any", body)
        return clean

    def _count(self, sweep: _Sweep) -> None:
        self._requests += 1
        self._unclean += bool(sweep.findings)
        self._refused += bool(sweep.refusals)
