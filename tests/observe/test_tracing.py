from __future__ import annotations

import os
import subprocess
import sys

import pytest
from opentelemetry import trace

from penstock.observe.tracing import tracing_configured


def asked_in_a_process(code: str, **environment: str) -> bool:
    """What a process of its own says, because a tracer provider is set once for a process."""
    asking = f"{code}\nfrom penstock.observe.tracing import tracing_configured\nprint(tracing_configured())"
    ran = subprocess.run(
        [sys.executable, "-c", asking], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return ran.stdout.strip() == "True"


def test_nothing_is_configured_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's own stand-in is no provider, and asking sets none."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    assert tracing_configured() is False
    assert trace._TRACER_PROVIDER is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "configured"),
    [
        ("", False),
        ("from opentelemetry import trace; trace.set_tracer_provider(trace.NoOpTracerProvider())", True),
        ("from opentelemetry import trace; trace.get_tracer('mine').start_span('x')", False),
    ],
)
def test_a_provider_set_in_code_counts(code: str, configured: bool) -> None:
    """Whoever sets one wants the SDK's spans; using tracers without one changes nothing."""
    assert asked_in_a_process(code) is configured


@pytest.mark.slow
def test_a_provider_named_in_the_environment_counts() -> None:
    """As OpenTelemetry's own launcher names it."""
    assert asked_in_a_process("", OTEL_PYTHON_TRACER_PROVIDER="default_tracer_provider") is True
