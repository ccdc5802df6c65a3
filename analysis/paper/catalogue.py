"""All recipes, in the order of the paper's figures."""

from __future__ import annotations

from analysis.paper import (
    allocation,
    digits,
    energy_ratio,
    exhibits,
    floors,
    ranks,
    scaling,
    spectrum,
    staircase,
    text,
)
from analysis.paper.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        spectrum.RECIPE,
        exhibits.ENERGIES,
        staircase.RECIPE,
        energy_ratio.RECIPE,
        exhibits.SETTLED,
        floors.RECIPE,
        exhibits.PARTICIPATION,
        exhibits.PHASE,
        exhibits.BREAKDOWN,
        allocation.RECIPE,
        ranks.RECIPE,
        digits.RECIPE,
        text.TEXT,
        text.CALIBRATED,
        scaling.RECIPE,
    )
}
