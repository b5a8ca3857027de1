"""A summary of what was left out, written by a cheaper model.

The rule here: the older part goes to the summarizer as text, piece by piece where it is longer than its window; each
summary takes in the one before. What it cost is counted as everything else is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from penstock._core.models import known
from penstock.messages.blocks import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from penstock.conversation.options import ConversationOptions
    from penstock.conversation.requests import Requests
    from penstock.messages.blocks import Block, Turn

__all__ = ["summarize"]

_NAMES: Final = {"user": "User", "assistant": "Assistant", "system": "Operator"}
# A share of the summarizer's window for each piece, at a rate of characters that no text exceeds by much.
_SHARE: Final = 0.5
_PER_TOKEN: Final = 2.5


async def summarize(requests: Requests, options: ConversationOptions, turns: Sequence[Turn]) -> str:
    """Return a summary of turns; empty if the model gave none.

    Raises:
        BudgetExceeded: The conversation's budgets don't pay for it.
        anthropic.AnthropicError: The request failed.
    """
    most = int(known(options.summary_model).window_tokens * _SHARE * _PER_TOKEN)
    summary = ""
    for piece in _pieces([_told(turn) for turn in turns], most):
        prompt = f"<summary_so_far>\n{summary}\n</summary_so_far>\n\n{piece}" if summary else piece
        message = await requests.ask_other(
            options.summary_model,
            prompt,
            system=options.summary_prompt,
            max_tokens=options.summary_max_tokens,
            input_tokens=int(len(prompt) / _PER_TOKEN),
        )
        if message.stop_reason == "refusal":
            return ""
        summary = "".join(block.text for block in message.content if block.type == "text").strip() or summary
    return summary


def _pieces(texts: Iterable[str], most: int) -> Iterator[str]:
    piece = ""
    for text in texts:
        if piece and len(piece) + len(text) > most:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{text}" if piece else text
        while len(piece) > most:
            yield piece[:most]
            piece = piece[most:]
    if piece.strip():
        yield piece


def _told(turn: Turn) -> str:
    if turn.left_out:
        return text_of(turn.content)
    return "\n".join(f"{_NAMES[turn.role]}: {_block(block)}" for block in turn.content)


def _block(block: Block) -> str:
    match block["type"]:
        case "text":
            return str(block["text"])
        case "tool_use":
            return f"[calls {block['name']} with {json.dumps(block['input'], ensure_ascii=False)}]"
        case "tool_result":
            return f"[result: {_result(block.get('content'))}]"
        case kind:
            return f"[{kind}]"


def _result(content: str | list[Block] | None) -> str:
    return content if isinstance(content, str) else " ".join(_block(block) for block in content or ())
