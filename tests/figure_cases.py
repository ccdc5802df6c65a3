"""Shared by the tests of figures."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest

from paper_figs import style


@pytest.fixture
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draw with few pixels, and close all figures afterwards."""
    monkeypatch.setitem(style.RC, "savefig.dpi", 40)
    style.apply()
    yield
    plt.close("all")
