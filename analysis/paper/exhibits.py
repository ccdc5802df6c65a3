"""Figures that a verification has too: the same datasets, with the paper's seeds."""

from __future__ import annotations

from analysis.claims import breakdown as breakdown_claims
from analysis.claims import settling as settling_claims
from analysis.claims.breakdown import AFFINE, FIGURE_ERROR, FITTING
from analysis.claims.participation import LONG_WALK
from analysis.claims.settling import SETTLING
from analysis.exhibits import energies, participation, phase
from analysis.paper.recipe import Recipe, described

ENERGY = "squared amplitude of the update"
FACTOR = "factor per round"
RULE, DIRECTION = {"rule": "name"}, {"direction": "number, largest first"}
PARTITION = {"partition": "number, shared by all clients first"}
COVERAGE = {"coverage": "share of the clients' weight"}

ENERGIES = Recipe(
    name="energies",
    about="Energy of every direction over rounds under three rules, measured and predicted.",
    make=energies.gather,
    settings=described(energies.ENERGIES) | {"rules": list(energies.RULES)},
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
)
PARTICIPATION = Recipe(
    name="participation",
    about="Factors of the mean energy, of a typical run and of survival over the cohort's size.",
    make=participation.gather,
    settings=described(LONG_WALK)
    | {
        "sizes": list(participation.SIZES),
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
)
PHASE = Recipe(
    name="phase",
    about="Floor of a direction over its coverage and the local training time.",
    make=phase.gather,
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
)
BREAKDOWN = Recipe(
    name="breakdown",
    about="Deviation of measured rates from predicted ones as assumptions are given up.",
    make=breakdown_claims.gather,
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
    runs=range(breakdown_claims.FIGURE_RUNS),
)
SETTLED = Recipe(
    name="settling",
    about="Fractions of the energy in successive singular values over rounds, and speeds.",
    make=settling_claims.gather,
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
    runs=range(settling_claims.FIRST),
)
RECIPES = (ENERGIES, PARTICIPATION, PHASE, BREAKDOWN, SETTLED)
