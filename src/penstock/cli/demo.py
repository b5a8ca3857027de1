"""`penstock demo`: the main job, on real text, against the simulator as a real server, or the real API.

The rule here: it uses the public client as any program would; what is measured comes from the client's events and the
server's own books.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
from pydantic import ValidationError

from penstock._core.usage import Usage
from penstock.cli.corpus import collect
from penstock.cli.display import Display
from penstock.cli.local_server import LocalServer, ServerFailed, ServerOptions
from penstock.cli.report import Report, rows
from penstock.cli.tally import ServerStatistics, Tally, quota_used
from penstock.client import Client
from penstock.costs.prices import price_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anthropic.types import Message

    from penstock.cli.corpus import Docstring

__all__ = ["DemoOptions", "demo"]

_MODEL = "claude-haiku-5-5"
_MAX_TOKENS = 100
_SYSTEM = "Summarize this piece of Python's documentation in one line."
_KEYS = {"sk-demo-north": "org-north", "sk-demo-south": "org-south"}
_TOKENS_A_REQUEST = 100
_BURST_S = 6.0
_CLOSE_WITHIN_S = 1.0
# Real text has about four; fewer keep the estimate on the safe side.
_CHARACTERS_A_TOKEN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the demo shall do.

    Attributes:
        n: Number of prompts, 1 or more.
        seed: Fixes which docstrings are taken, and which requests get a fault.
        faults: Share of requests that get a fault, 0 to 1.
        rpm: Requests a minute that each of the two organizations is allowed.
        live: Number of prompts to send to the real API instead.
        log: Whether to log each call to standard error.
    """

    n: int = 2000
    seed: int = 0
    faults: float = 0.1
    rpm: float = 2000.0
    live: int | None = None
    log: bool = False


def demo(options: DemoOptions) -> int:
    """Run it.

    Args:
        options: What it shall do.

    Returns:
        The exit code: 0 if all were answered, 1 if some weren't, 2 if it could not start, 130 after Ctrl-C.
    """
    # Lines of the log would tear what is redrawn.
    display = Display(animated=False if options.log and sys.stderr.isatty() else None)
    tally = Tally()
    try:
        return _live(options, display, tally) if options.live else _simulated(options, display, tally)
    except (ServerFailed, ValidationError) as error:
        sys.stderr.write(f"penstock demo: {error}\n")
        return 2
    except KeyboardInterrupt:
        display.line(f"Interrupted: {tally.answered:,} answered.")
        return 130


def _simulated(options: DemoOptions, display: Display, tally: Tally) -> int:
    server_options = ServerOptions(
        keys=_KEYS,
        requests_per_minute=options.rpm,
        input_tokens_per_minute=options.rpm * _TOKENS_A_REQUEST,
        burst_s=_BURST_S,
        faults=options.faults,
        seed=options.seed,
    )
    with LocalServer(server_options) as server:
        docstrings = collect(options.n, seed=options.seed)
        url = server.url()
        display.facts(
            [
                *_about(docstrings, options.n),
                ("API", f"simulator at {url}, which fails {options.faults:.0%} of all requests"),
                ("Limits", _limits(server_options)),
            ]
        )
        _reach_directly()
        client = Client(
            api_keys=list(_KEYS),
            base_url=url,
            close_timeout_s=_CLOSE_WITHIN_S,
            log=options.log,
            observers=[tally],
        )
        return anyio.run(_run, client, docstrings, display, tally, url)


def _live(options: DemoOptions, display: Display, tally: Tally) -> int:
    count = options.live or 0
    client = Client(log=options.log, observers=[tally])
    docstrings = collect(count, seed=options.seed)
    cost = f"at most about ${_most_usd(docstrings):.4f}"
    display.facts([*_about(docstrings, count), ("API", "the real one"), ("Cost", cost)])
    return anyio.run(_run, client, docstrings, display, tally, None)


def _about(docstrings: Sequence[Docstring], wanted: int) -> list[tuple[str, str]]:
    prompts = f"{len(docstrings):,} docstrings of the standard library of Python {platform.python_version()}"
    if len(docstrings) < wanted:
        prompts += f" (there are no more; {wanted:,} were asked for)"
    return [("Task", "summarize each in one line"), ("Prompts", prompts), ("Model", _MODEL)]


def _limits(options: ServerOptions) -> str:
    return (
        f"{len(options.keys)} organizations, each {options.requests_per_minute:,.0f} requests and "
        f"{options.input_tokens_per_minute:,.0f} input tokens a minute, bursts of {options.burst_s:g} s"
    )


def _most_usd(docstrings: Sequence[Docstring]) -> float:
    """What summaries cost at most: every reply as long as allowed, and twice the tokens that text usually has."""
    characters = sum(len(_SYSTEM) + len(docstring.text) for docstring in docstrings)
    usage = Usage(input_tokens=math.ceil(characters / _CHARACTERS_A_TOKEN), output_tokens=_MAX_TOKENS * len(docstrings))
    return float(price_of(usage, _MODEL))


def _reach_directly() -> None:
    """Keep a proxy of the environment away from requests to this machine."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))


async def _run(client: Client, docstrings: Sequence[Docstring], display: Display, tally: Tally, url: str | None) -> int:
    async with client as claude:
        began = anyio.current_time()
        streamed = await _stream(claude, docstrings[0], display, tally)
        before = await _statistics(url)
        await _fan_out(claude, docstrings[1:] if streamed else docstrings, display, tally)
        elapsed_s = anyio.current_time() - began
        used = quota_used(before, await _statistics(url))
    good = tally.answered == len(docstrings)
    report = Report(tally=tally, asked=len(docstrings), elapsed_s=elapsed_s, quota_used=used)
    display.line()
    display.table(rows(report), good=good)
    return 0 if good else 1


async def _stream(claude: Client, docstring: Docstring, display: Display, tally: Tally) -> bool:
    """Show one reply as it comes; returns whether it came whole."""
    display.line(f"\n{docstring.name}, streamed:", "bold")
    prompt: list[Any] = [{"role": "user", "content": docstring.text}]
    try:
        async with claude.messages.stream(
            model=_MODEL, max_tokens=_MAX_TOKENS, system=_SYSTEM, messages=prompt
        ) as stream:
            with display.growing() as grow:
                async for piece in stream.text_stream:
                    grow(piece)
            _count(claude, await stream.get_final_message(), tally)
    except (anthropic.AnthropicError, httpx2.HTTPError) as error:
        display.line(f"It broke off ({type(error).__name__}), and is asked for again with the others.")
        return False
    return True


async def _fan_out(claude: Client, docstrings: Sequence[Docstring], display: Display, tally: Tally) -> None:
    """Ask for all of them at once, and count what comes."""
    texts = [docstring.text for docstring in docstrings]
    display.line("\nThe others, all at once:", "bold")
    # Where lines of the log go to the same terminal, they would tear the bar.
    shows = display.animated or not sys.stderr.isatty()
    async with claude.fan_out(texts, model=_MODEL, max_tokens=_MAX_TOKENS, system=_SYSTEM, progress=shows) as results:
        async for result in results:
            if result.message is not None:
                _count(claude, result.message, tally)
            else:
                tally.errors[type(result.error).__name__] += 1


def _count(claude: Client, message: Message, tally: Tally) -> None:
    tally.answered += 1
    tally.cost_usd += claude.cost(message)


async def _statistics(url: str | None) -> ServerStatistics:
    """Read the simulator's books; the real API shows none."""
    if url is None:
        return ServerStatistics(organizations={})
    async with httpx2.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{url}/_simulator/statistics")
        return ServerStatistics.model_validate_json(answer.raise_for_status().content)
