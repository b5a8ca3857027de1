"""Generated conversations, sent to the simulator's validator: none may be refused by the protocol.

Target: 0 refused of 2,500 with tools, under failing, hanging, unknown and denied tools, bounds, faults of the service,
cancellation, leaving early, and resume from whatever transcript was left.
"""

from __future__ import annotations

import random
import time
from collections import Counter

import anyio

from _harness import machine, quick, settle_environment, table, verdict
from _tool_runs import ToolRuns
from penstock.testing import VirtualLoop

TOOL_RUNS = 2_500
SEED = 20261120


async def with_tools(number: int) -> list[str]:
    """Run conversations with tools; returns a row of the table.

    Raises:
        AssertionError: A transcript is not valid; a note says of which conversation.
    """
    exits: Counter[str] = Counter()
    requests = refused = 0
    for place in range(number):
        runs = ToolRuns(random.Random(SEED + place))
        try:
            await runs.run()
        except AssertionError as error:
            error.add_note(f"conversation {place}")
            raise
        requests += len(runs.simulator.journal)
        refused += runs.refused
        exits.update(runs.exits)
    told = ", ".join(f"{name} {times}" for name, times in exits.most_common())
    return ["with tools", str(number), str(requests), told, str(refused), "≤ 0", verdict(refused, 0)]


async def main(*, brief: bool) -> None:
    """Run all, and tell."""
    rows = [await with_tools(15 if brief else TOOL_RUNS)]
    header = ("conversations", "number", "requests", "how runs ended", "refused", "target", "")
    table(f"Refused by the protocol ({machine()})", header, rows)


if __name__ == "__main__":
    settle_environment()
    began = time.perf_counter()
    brief = quick(__doc__)
    anyio.run(lambda: main(brief=brief), backend_options={"loop_factory": VirtualLoop})
    print(f"{time.perf_counter() - began:.0f} s")
