"""All recipes, in the order of the paper's figures, including those that a verification makes."""

from __future__ import annotations

from analysis.claims import breakdown, flow, settling
from analysis.claims.breakdown import AFFINE, FIGURE_ERROR, FITTING
from analysis.claims.participation import LONG_RANDOM_WALK, PARTICIPATION_CLAIMS, TYPICAL_CLAIMS
from analysis.claims.settling import SETTLING
from analysis.paper import energies, forecasts, participation, phase, scaling, training
from analysis.paper.recipe import Recipe, described

# Figures that a verification also makes: the same datasets, with the paper's seeds

ENERGY = "squared amplitude of the update"
FACTOR = "factor per round"
RULE, DIRECTION = {"rule": "name"}, {"direction": "number, largest first"}
PARTITION = {"partition": "number, shared by all clients first"}
COVERAGE = {"coverage": "share of the clients' weight"}

ENERGIES = Recipe(
    name="energies",
    about="Energy of every direction over rounds under three rules, measured and predicted.",
    make=energies.gather_energies,
    settings=described(energies.ENERGIES) | {"rules": list(energies.ENERGY_RULES)},
    units={
        **dict.fromkeys(("energy", "projected_energy", "predicted_energy"), ENERGY),
        "rho": "share of the energy within the lowest rank",
        "effective_rank": "directions",
        "seed": "seed of the run",
        "round": "rounds",
        **RULE,
        **DIRECTION,
        **PARTITION,
        **COVERAGE,
    },
    runs=range(energies.ENERGY_RUNS),
    claims=(),
)
PARTICIPATION = Recipe(
    name="participation",
    about="Factors of the mean energy, of a typical run and of survival over the cohort's size.",
    make=participation.gather_participation,
    settings=described(LONG_RANDOM_WALK)
    | {
        "sizes": list(participation.COHORT_SIZES),
        "factor_rounds": participation.ROUNDS,
        "confidence": 1 - participation.ERROR,
    },
    units={
        **dict.fromkeys(("predicted", "measured", "low", "high"), FACTOR),
        "log_energy": "natural logarithm of the energy left; empty where the direction is lost",
        "factor": "name",
        "every_size": "clients a round, predicted",
        "cohort_size": "clients a round, measured",
        "run": "number of the run",
    },
    runs=range(participation.RUNS),
    claims=(*TYPICAL_CLAIMS, *PARTICIPATION_CLAIMS),
)
PHASE = Recipe(
    name="phase",
    about="Floor of a direction over its coverage and the local training time.",
    make=phase.gather_phase,
    settings=described(phase.PHASE)
    | {"measured_times": phase.MEASURED_TIMES.tolist(), "rules": list(phase.RULES)},
    units={
        **dict.fromkeys(("floor", "measured"), "amplitude over that of the target"),
        **dict.fromkeys(("threshold", "local_time", "measured_time"), "local time times target"),
        "measured_coverage": "share of the clients' weight",
        **RULE,
        **COVERAGE,
    },
    runs=range(1),
    claims=(*flow.FLOW_CLAIMS, *flow.THRESHOLD_CLAIMS),
)
BREAKDOWN = Recipe(
    name="breakdown",
    about="Deviation of measured rates from predicted ones as assumptions are given up.",
    make=breakdown.gather,
    settings={
        "affine": described(AFFINE),
        "fitting": described(FITTING),
        "confidence": 1 - FIGURE_ERROR,
    },
    units={
        **dict.fromkeys(("deviation", "low", "high"), "|measured / predicted - 1|"),
        "value": "of what varies; its name has the unit",
        "point": "number of the value, from 0",
        "inside": "points of the region stated before the run",
        "label": "what varies",
        "sweep": "name",
        **PARTITION,
    },
    runs=range(breakdown.FIGURE_RUNS),
    claims=breakdown.CLAIMS,
)
SETTLED = Recipe(
    name="settling",
    about="Fractions of the energy in successive singular values over rounds, and speeds.",
    make=settling.gather,
    settings=described(SETTLING),
    units={
        **dict.fromkeys(("fraction", "predicted", "homogeneous"), "share of the energy"),
        **dict.fromkeys(("speed", "speed_low", "speed_high"), FACTOR),
        **dict.fromkeys(("speed_predicted", "speed_homogeneous"), FACTOR),
        "round": "rounds",
        "level": "highest direction of the partition",
        **DIRECTION,
        **PARTITION,
    },
    runs=range(settling.FIRST),
    claims=settling.CLAIMS,
)
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        energies.SPECTRUM,
        ENERGIES,
        energies.STAIRCASE,
        energies.ENERGY_RATIO,
        SETTLED,
        phase.FLOORS,
        PARTICIPATION,
        PHASE,
        BREAKDOWN,
        participation.ALLOCATION,
        participation.RANK_CONFIGURATIONS,
        training.DIGITS,
        training.LEDGER,
        training.TEXT,
        forecasts.RECIPE,
        scaling.RECIPE,
    )
}

VERIFIED = tuple(recipe for recipe in RECIPES.values() if recipe.claims is not None)
"""Recipes whose numbers a verification also makes, with its own seeds."""
