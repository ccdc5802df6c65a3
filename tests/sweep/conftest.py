"""What tests of sweeps share as fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return a folder for a sweep, not made yet."""
    return tmp_path / "sweep"
