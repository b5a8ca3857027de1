"""What comes of a tool loop: the last reply, the transcript, what it took.

The rule here: every reply is counted, also one that broke off; a price is looked up only when somebody asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.errors import UnknownPrice

if TYPE_CHECKING:
    from decimal import Decimal

    from anthropic.types import MessageParam

    from penstock._core.usage import Usage
    from penstock.costs.spending import Spending
    from penstock.streaming.accumulate import AnyMessage
    from penstock.tools.events import ToolCall

__all__ = ["ToolRun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRun:
    """A finished run.

    Attributes:
        message: The last reply. Its `stop_reason` tells how it ended: `end_turn`, but also `refusal` or `max_tokens`.
        transcript: All messages, the prompt and the last reply included, ready to go on from. A refusal is not in it,
            because it would be refused again.
        pending: Calls that `approve` has put off (`Later`): the transcript ends with them unanswered, and whoever goes
            on from it, by `run_tools` or `tool_loop`, is asked about them again.
        iterations: Replies of the model.
        tool_calls: Calls of tools that were answered by a tool, by the hook, or because they could not run.
        usage: Tokens of all replies together.
    """

    message: AnyMessage = field(repr=False)
    transcript: list[MessageParam] = field(repr=False)
    pending: tuple[ToolCall, ...] = field(default=(), repr=False)
    iterations: int
    tool_calls: int
    usage: Usage = field(repr=False)
    _spending: Spending = field(repr=False, compare=False)

    @property
    def container(self) -> str | None:
        """Id of the container of code execution that the transcript goes on in; `None` if there is none.

        The transcript knows it as long as it is not copied; else give it along, `container=run.container`.
        """
        return getattr(self.transcript, "container", None)

    @property
    def text(self) -> str:
        """The text of the last reply; empty if it has none."""
        return "".join(block.text for block in self.message.content if block.type == "text")

    @property
    def cost_usd(self) -> Decimal | None:
        """What all replies cost, in USD; `None` where no price is known for the model."""
        try:
            return self._spending.cost_usd
        except UnknownPrice:
            return None
