"""What chance decides differs in every process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, anyio, httpx2
from penstock import Client
from penstock._core.call import Call, open_call
from penstock._core.chance import CHANCE
from penstock.guards.admit import Admit
from penstock.guards.retry import Retry

claude = Client(api_keys=("sk-1", "sk-2"), balance="random", log=False)
guards = [claude._chain.retry, claude._chain.admit, Retry(), Admit()]
numbers = [lambda rng=guard._rng: rng.random() for guard in guards]
numbers.append(lambda: claude._chain.admit.pool._rng.choices(range(1_000_000))[0])

def tell():
    from penstock._core import call
    print(*[number() for number in numbers], call._prefix, flush=True)

for each in range(3):
    if os.fork() == 0:
        tell()
        os._exit(0)
    os.wait()
tell()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there")
def test_forked_processes_share_no_chance() -> None:
    """Jitter, the choice of keys and the ids of calls, of a client and of guards alone: in parent and children."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    told = [line.split() for line in ran.stdout.splitlines()]
    assert [len(each) for each in told] == [6] * 4
    for column in zip(*told, strict=True):
        assert len(set(column)) == 4
