"""Small data files of all figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from figure_cases import coarse_figures  # noqa: F401 - a fixture
from paper_cases import small_recipe

from analysis.claims.base import RunContext
from analysis.paper.catalogue import RECIPES
from analysis.paper.store import make


@pytest.fixture(scope="session")
def paper_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of data files, as `python -m analysis.paper` writes it."""
    folder = tmp_path_factory.mktemp("paper")
    for name in RECIPES:
        recipe = small_recipe(name)
        make(recipe, folder, RunContext(seed=recipe.base_seed))
    return folder
