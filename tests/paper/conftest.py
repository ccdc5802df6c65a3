"""Small data files of all figures; figures with few pixels, which are closed again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from paper_cases import small_recipe

from analysis.claims.base import RunContext
from analysis.paper.catalogue import RECIPES
from analysis.paper.store import make
from paper_figs import style


@pytest.fixture(scope="session")
def paper_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of data files, as `python -m analysis.paper` writes it."""
    folder = tmp_path_factory.mktemp("paper")
    for name in RECIPES:
        recipe = small_recipe(name)
        make(recipe, folder, RunContext(seed=recipe.base_seed))
    return folder


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draw with few pixels, and close all figures afterwards."""
    monkeypatch.setitem(style.RC, "savefig.dpi", 40)
    style.apply()
    yield
    plt.close("all")
