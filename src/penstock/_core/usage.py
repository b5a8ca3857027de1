"""What a request used, in tokens, as one value type for responses, streams and estimates.

The rule here: a `Usage` never raises on what a server sends. A count that is missing, null, negative or not an integer
is zero, an unknown field is ignored, and every derived number (what counts against a rate limit, what is a total) is
computed in this file and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, cast

from pydantic import BaseModel

from penstock._core.size import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage

__all__ = ["NOTHING", "Usage", "fields_of", "steps_of", "writes_for_an_hour"]

_Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens and server-tool requests that a request used; the default is nothing at all.

    Args:
        input_tokens: Input tokens after the last cache breakpoint; neither read from nor written to the prompt cache.
        output_tokens: Generated tokens, thinking included.
        cache_creation_input_tokens: Input tokens written to the prompt cache, for five minutes and one hour together.
        cache_read_input_tokens: Input tokens read from the prompt cache.
        cache_creation_1h_input_tokens: The part of `cache_creation_input_tokens` that was written for one hour.
        thinking_tokens: The part of `output_tokens` that is thinking.
        web_search_requests: Searches that the server-side tool made.
        web_fetch_requests: Pages that the server-side tool fetched.
        service_tier: `standard`, `priority` or `batch`, as the API reports it.
        speed: `standard` or `fast`, as the API reports it.
        estimated: Whether any of it is a guess rather than what the API reported.

    Example:
        >>> usage = Usage(input_tokens=10, cache_creation_input_tokens=20, cache_read_input_tokens=70, output_tokens=5)
        >>> usage.total_input_tokens, usage.rate_limited_input_tokens, usage.total_tokens
        (100, 30, 105)
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    thinking_tokens: int = 0
    web_search_requests: int = 0
    web_fetch_requests: int = 0
    service_tier: str | None = None
    speed: str | None = None
    estimated: bool = False

    @property
    def total_input_tokens(self) -> int:
        """All input tokens: fresh, written to the cache and read from it."""
        return self.input_tokens + self.cache_creation_input_tokens + self.cache_read_input_tokens

    @property
    def rate_limited_input_tokens(self) -> int:
        """What counts against the input tokens per minute: fresh input and cache writes, but not cache reads."""
        return self.input_tokens + self.cache_creation_input_tokens

    @property
    def total_tokens(self) -> int:
        """All input tokens and all output tokens."""
        return self.total_input_tokens + self.output_tokens

    @classmethod
    def from_mapping(cls, usage: Mapping[str, object]) -> Usage:
        """Read the `usage` object of the API's JSON.

        Where the beta field `iterations` has entries, tokens are their sum: what compaction and fallbacks cost can be
        only there. Source: https://platform.claude.com/docs/en/build-with-claude/compaction

        A fallback credit that was redeemed is in the counts already, as cache reads in place of cache writes: see
        `steps_of`.

        Args:
            usage: The object as it was decoded. Unknown fields are ignored; a count that isn't a positive integer is 0.

        Returns:
            The same as a `Usage`.

        Example:
            >>> Usage.from_mapping({"input_tokens": 25, "output_tokens": 12, "speed": None}).total_tokens
            37
        """
        return NOTHING.updated(usage)

    @classmethod
    def from_message(cls, message: Message | BetaMessage) -> Usage:
        """Read the usage of a message that the SDK parsed.

        Args:
            message: A `Message` or `BetaMessage`. One without usage, as a compatible server may send it, used nothing.

        Returns:
            Its usage.
        """
        usage: object = getattr(message, "usage", None)
        if not isinstance(usage, BaseModel):
            return NOTHING
        fields = usage.__dict__
        get = fields.get
        created, details = get("cache_creation"), get("output_tokens_details")
        if (
            get("server_tool_use")
            or get("iterations")
            or usage.model_extra
            or not isinstance(get("cache_creation_input_tokens"), int)
        ):
            return cls.from_mapping(fields_of(usage))
        # What nearly every answer looks like, without the detours of what it might look like.
        written = _positive(get("cache_creation_input_tokens"))
        for_an_hour = _positive(getattr(created, "ephemeral_1h_input_tokens", 0))
        return cls(
            input_tokens=_positive(get("input_tokens")),
            output_tokens=_positive(get("output_tokens")),
            cache_creation_input_tokens=written,
            cache_read_input_tokens=_positive(get("cache_read_input_tokens")),
            cache_creation_1h_input_tokens=min(for_an_hour, written),
            thinking_tokens=_positive(getattr(details, "thinking_tokens", 0)),
            service_tier=_text(fields, "service_tier"),
            speed=_text(fields, "speed"),
        )

    def updated(self, delta: Mapping[str, object], *, for_an_hour: Callable[[], bool] = bool) -> Usage:
        """Apply the usage of a `message_delta` event, whose counts are cumulative.

        Args:
            delta: The event's `usage` object.
            for_an_hour: Tells whether the request asked the cache to keep what it writes for an hour: the last event
                has more cache writes than the first (those of server-side tools), and does not say for how long.

        Returns:
            A new usage: what `delta` names is replaced, what it doesn't name (or names as null) is kept.

        Example:
            >>> Usage(input_tokens=25, output_tokens=1).updated({"output_tokens": 15}).total_tokens
            40
        """
        named = _counts(delta)
        if "iterations" in delta and (steps := [step for _, step in steps_of(delta) if step != NOTHING]):
            whole = sum(steps, NOTHING)
            named |= {name: getattr(whole, name) for name in _IN_STEPS}
        get = named.get
        written = get("cache_creation_input_tokens", self.cache_creation_input_tokens)
        hour = get("cache_creation_1h_input_tokens", self.cache_creation_1h_input_tokens)
        more = written - self.cache_creation_input_tokens
        if more > 0 and "cache_creation_1h_input_tokens" not in named and for_an_hour():
            hour += more
        return Usage(
            input_tokens=get("input_tokens", self.input_tokens),
            output_tokens=get("output_tokens", self.output_tokens),
            cache_creation_input_tokens=written,
            cache_read_input_tokens=get("cache_read_input_tokens", self.cache_read_input_tokens),
            # A later total without its breakdown may be smaller than what an earlier event said of it.
            cache_creation_1h_input_tokens=min(hour, written) if hour else 0,
            thinking_tokens=get("thinking_tokens", self.thinking_tokens),
            web_search_requests=get("web_search_requests", self.web_search_requests),
            web_fetch_requests=get("web_fetch_requests", self.web_fetch_requests),
            service_tier=_text(delta, "service_tier") or self.service_tier,
            speed=_text(delta, "speed") or self.speed,
            estimated=self.estimated,
        )

    def left_early(self, characters: float) -> Usage:
        """Return what an answer has used that did not come to its end: nobody tells what was generated by then.

        This is the one estimate of it: of streams, of events, of conversations and tool loops.

        Args:
            characters: Of text, thinking and tool input that came, 0 or more.

        Example:
            >>> Usage(input_tokens=25, output_tokens=1).left_early(320).output_tokens
            100
        """
        written = round(characters / CHARACTERS_PER_TOKEN)
        return replace(self, output_tokens=max(self.output_tokens, written), estimated=True)

    def __add__(self, other: Usage) -> Usage:
        """Add two usages. Tier and speed stay only where both sides agree; the sum is an estimate if either side is.

        Example:
            >>> sum([Usage(input_tokens=1), Usage(input_tokens=2)], Usage()).input_tokens
            3
        """
        if self is NOTHING or self == NOTHING:
            return other
        if other is NOTHING or other == NOTHING:
            return self
        return Usage(
            **{name: getattr(self, name) + getattr(other, name) for name in _COUNTS},
            service_tier=self.service_tier if self.service_tier == other.service_tier else None,
            speed=self.speed if self.speed == other.speed else None,
            estimated=self.estimated or other.estimated,
        )


NOTHING: Final = Usage()

_TOKENS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_SERVER_TOOLS = ("web_search_requests", "web_fetch_requests")
_IN_STEPS = (*_TOKENS, "cache_creation_1h_input_tokens")
_NESTED = ("cache_creation", "output_tokens_details", "server_tool_use", "fallback_credit", "status")
_COUNTS = (*_IN_STEPS, "thinking_tokens", *_SERVER_TOOLS)
# Steps that the totals leave out.
_APART: Final = frozenset({"compaction", "advisor_message"})


def steps_of(usage: Mapping[str, object]) -> list[tuple[str | None, Usage]]:
    """Read each sampling step that the beta field `iterations` names.

    Where a fallback credit was redeemed, the totals tell tokens as cache reads that were written to the cache: what is
    billed. Source: https://platform.claude.com/docs/en/build-with-claude/fallback-credit ("Checking that the credit
    applied"). Where the steps that answered still tell them as written, they are moved here, by the totals.

    Args:
        usage: The `usage` object of the API's JSON.

    Returns:
        The model of each step, if it is named, and what is billed for it. Empty if no step is named.

    Example:
        >>> steps_of({"iterations": [{"type": "compaction", "input_tokens": 9}]})[0][1].input_tokens
        9
    """
    iterations = usage.get("iterations")
    if not isinstance(iterations, list):
        return []
    named = [cast("_Fields", each) for each in cast("list[object]", iterations) if isinstance(each, dict)]
    steps = [(_text(each, "model"), NOTHING.updated(each)) for each in named]
    if _redeemed(usage):
        answering = [at for at, each in enumerate(named) if each.get("type") == "fallback_message"]
        _move(
            steps, answering or [at for at, each in enumerate(named) if each.get("type") not in _APART], _counts(usage)
        )
    return steps


def _redeemed(usage: _Fields) -> bool:
    credit = _object(usage, "fallback_credit")
    status = _object(credit, "status") if credit else None
    return status is not None and status.get("type") == "redeemed"


def _move(steps: list[tuple[str | None, Usage]], answering: list[int], totals: Mapping[str, int]) -> None:
    """Have the steps that answered tell as much as read from the cache as the totals do, if those are of the same."""
    whole = sum((steps[at][1] for at in answering), NOTHING)
    left = whole.cache_creation_input_tokens - totals.get("cache_creation_input_tokens", 0)
    if left != totals.get("cache_read_input_tokens", 0) - whole.cache_read_input_tokens:
        return
    for at in answering:
        model, step = steps[at]
        moved = max(min(left, step.cache_creation_input_tokens), 0)
        left -= moved
        written = step.cache_creation_input_tokens - moved
        steps[at] = (
            model,
            replace(
                step,
                cache_creation_input_tokens=written,
                cache_read_input_tokens=step.cache_read_input_tokens + moved,
                cache_creation_1h_input_tokens=min(step.cache_creation_1h_input_tokens, written),
            ),
        )


def _counts(fields: _Fields) -> dict[str, int]:
    """The counts that `fields` names with a valid value, under the names of `Usage`."""
    counts = _named(fields, _TOKENS)
    if written := _object(fields, "cache_creation"):
        for_an_hour = _count(written.get("ephemeral_1h_input_tokens")) or 0
        for_5_minutes = _count(written.get("ephemeral_5m_input_tokens")) or 0
        counts["cache_creation_1h_input_tokens"] = for_an_hour
        counts.setdefault("cache_creation_input_tokens", for_an_hour + for_5_minutes)
    if details := _object(fields, "output_tokens_details"):
        counts |= _named(details, ("thinking_tokens",))
    if server_tools := _object(fields, "server_tool_use"):
        counts |= _named(server_tools, _SERVER_TOOLS)
    return counts


def _named(fields: _Fields, names: tuple[str, ...]) -> dict[str, int]:
    # JSON's true is an `int` in Python, but no count.
    get = fields.get
    return {name: count for name in names if type(count := get(name)) is int and count >= 0}


def _positive(value: object) -> int:
    """The same of what was parsed, with 0 for what is no count."""
    return value if type(value) is int and value > 0 else 0


def _count(value: object) -> int | None:
    """A count as the API means it, or `None`: JSON's true is an `int` in Python, but no count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def fields_of(usage: BaseModel) -> dict[str, object]:
    """Return the fields of a usage, and of the models in it, without the dump that would check every type."""
    fields: dict[str, object] = {**(usage.model_extra or {}), **usage.__dict__}
    for name in _NESTED:
        if isinstance(value := fields.get(name), BaseModel):
            fields[name] = fields_of(value)
    if iterations := fields.get("iterations"):
        fields["iterations"] = _listed(iterations)
    return fields


def _listed(iterations: object) -> object:
    if not isinstance(iterations, list):
        return None
    entries = cast("list[object]", iterations)
    return [fields_of(entry) if isinstance(entry, BaseModel) else entry for entry in entries]


def _text(fields: _Fields, name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) else None


def _object(fields: _Fields, name: str) -> _Fields | None:
    value = fields.get(name)
    # A dict, as everything decoded from JSON is: the abstract Mapping takes three times as long to check.
    return cast("_Fields", value) if isinstance(value, dict) else None


def writes_for_an_hour(request: object) -> bool:
    """Return whether a request asks the prompt cache to keep for an hour what is written last.

    What is written last is what the whole request's `cache_control` says, else that of its last marked block.
    Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching

    Args:
        request: The body of the request.

    Example:
        >>> writes_for_an_hour({"cache_control": {"type": "ephemeral", "ttl": "1h"}})
        True
    """
    fields: _Fields = cast("_Fields", request) if isinstance(request, dict) else {}
    mark = fields.get("cache_control")
    for part in ("messages", "system", "tools"):
        if mark is None:
            mark = _last_mark(fields.get(part))
    return isinstance(mark, dict) and cast("_Fields", mark).get("ttl") == "1h"


def _last_mark(blocks: object) -> object:
    """The mark of the last block that has one, in blocks and in what they hold."""
    if not isinstance(blocks, list | tuple):
        return None
    for block in reversed(cast("Sequence[object]", blocks)):
        if isinstance(block, dict):
            fields = cast("_Fields", block)
            mark = fields.get("cache_control") or _last_mark(fields.get("content"))
            if mark is not None:
                return mark
    return None
