"""Debian's Coq, to compile the proofs."""

from __future__ import annotations

import os
import shutil

import pytest

from analysis.proofs.coq import INSTALL


@pytest.fixture(scope="session")
def coq() -> str:
    """Return the path of Coq's compiler; skipped where it is missing, but never in the gate."""
    found = shutil.which("coqc")
    if found is None:
        message = f"no coqc: {INSTALL}"
        if os.environ.get("FEDLORA_SIM_NEEDS_COQ") or os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found
