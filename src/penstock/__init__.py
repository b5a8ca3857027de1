"""Govern the official `anthropic` SDK: the public names, and no logic."""

from __future__ import annotations

__all__: list[str] = []
