from __future__ import annotations

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("missing", ["starlette", "sse_starlette"])
def test_without_the_extra_the_error_names_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a web framework is missing, importing says what to install."""
    monkeypatch.delitem(sys.modules, "penstock.web")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"penstock.web needs {missing}: pip install 'penstock\[web\]'$") as caught:
        importlib.import_module("penstock.web")
    assert caught.value.name == missing


@pytest.mark.slow
def test_nobody_else_loads_a_web_framework() -> None:
    """Importing penstock and its streams loads neither Starlette nor sse-starlette."""
    code = (
        "import penstock, penstock.streaming, sys; print({'starlette', 'sse_starlette', 'fastapi'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
