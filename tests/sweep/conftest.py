"""Shared fixtures of the tests of sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return a folder for a sweep that does not exist yet."""
    return tmp_path / "sweep"
