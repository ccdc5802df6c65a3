"""Scope of the closed forms: the fields of a scenario that each one covers.

No field is ignored silently. A field either has no effect in the scenario (`unused_fields` gives
the reason), or is covered by the form, or the form refuses the scenario and names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import ArrayLike

from analysis.cohorts.shares import empty_probability
from fedlora_sim.errors import check_choice, check_numbers, expected
from fedlora_sim.scenario import LOCAL_LOSSES, Scenario, TrainingFields

VALUES = ("gain_mean", "gain_std", "drift_mean", "drift_std", "initial_amplitude", "target")
"""Values that can replace a field: one per direction, targets also per client and direction."""

# Fields that every form covers: participants, the content of a round, and the start.
COMMON = (
    *("ranks", "num_samples", "cohort_size", "sampling", "allocation", "empty_partition"),
    *("rounds", "initial_amplitude", "spectrum_decay", "d_in", "d_out"),
)

# The value with which a field has no effect, and why other values require a form that covers them.
_NEUTRAL: dict[str, tuple[object, str]] = {
    "fidelity": ("spectral", "plain steps are finite; the flow is their limit of many small ones"),
    "gain_mean": (1.0, "clients change the amplitude"),
    "gain_std": (0.0, "the form holds for one gain that all clients share"),
    "drift_mean": (0.0, "the form holds without drift"),
    "drift_std": (0.0, "the form holds without drift"),
    "drift_levels": (None, "the form holds without drift"),
    "learning_rate_schedule": (
        "constant",
        "training, and with it the round, then changes over time",
    ),
    "heterogeneity": ("fresh", "rounds are then not independent"),
    "local_time": (None, ""),
    "target_amplitude": (None, ""),
    "target_decay": (None, ""),
    "target_std": (0.0, "targets that are drawn per client have no closed form; give target=..."),
    "target_angle": (0.0, "the targets leave the common basis: no closed form"),
    "subspace_noise": (0.0, "directions of a client's subspace mix: no closed form"),
    "basis_drift": (0.0, "directions turn away from the common basis: no closed form"),
}
_CLIENTS = frozenset(("gain_mean", "gain_std", "drift_mean", "drift_std", "drift_levels"))
_FLOW = frozenset(("local_time", "target_amplitude", "target_decay"))

# What a form of one kind of local training alone expects instead of another one.
_WANTED = {
    ("quadratic",): "'quadratic': the form is one of clients that descend to a target",
    ("drift",): "'drift': the form is one of the drift law",
    ("none", "drift"): "'none' or 'drift' (clients descend a loss instead of returning a x + b)",
}


@dataclass(frozen=True)
class Scope:
    """What one closed form covers in addition to the fields that every form covers.

    Args:
        covers: fields of the scenario that may have any value.
        losses: values of `local_loss` that the form covers.
        reasons: reasons for refusing other fields, if not the usual one.
    """

    covers: frozenset[str]
    losses: tuple[str, ...] = ("none", "drift")
    reasons: Mapping[str, str] = field(default_factory=dict)


_MATRIX, _SCHEDULE = frozenset(("fidelity",)), frozenset(("learning_rate_schedule",))
_NO_RANDOM_WALK = "with drift the log energy is no random walk: no closed form"
_BACK = "drift brings back what a cohort without contributor has lost"
_LOGARITHM = "the mean logarithm of a weighted sum of different gains has no closed form"
_SIGNAL = "the signal of the form is what is left of the amplitude"
_DRIFTS = ("drift_mean", "drift_std", "drift_levels")
_TYPICAL = Scope(
    _MATRIX | {"gain_mean"},
    reasons={"gain_std": _LOGARITHM} | dict.fromkeys(_DRIFTS, _NO_RANDOM_WALK),
)
_MOMENTS = Scope(_MATRIX | _CLIENTS | {"heterogeneity"})
_PATHS = Scope(_MOMENTS.covers | _SCHEDULE)
_TRAINING = Scope(_FLOW, losses=("quadratic",))
_DRIFT = Scope(_MOMENTS.covers, losses=("drift",))
_DRIFT_PATHS = Scope(_PATHS.covers, losses=("drift",))
# participation does not depend on the clients' training
_FEDERATION = Scope(frozenset(_NEUTRAL), losses=LOCAL_LOSSES)

SCOPES: dict[str, Scope] = {
    "coverage": _FEDERATION,
    "extinction_probability": _FEDERATION,
    "communication": _FEDERATION,
    "energy_rate": _MOMENTS,
    "energy_floor": _MOMENTS,
    "energy_trajectory": _PATHS,
    "mean_trajectory": _PATHS,
    "noise_gain": _PATHS,
    # the first round, in which a schedule is at its start
    "noise_to_signal": Scope(
        _PATHS.covers - {"drift_mean", "drift_levels"},
        reasons={"drift_mean": _SIGNAL, "drift_levels": _SIGNAL},
    ),
    "critical_gain_std": _MOMENTS,
    "sensitivities": _MOMENTS,
    "typical_rate": _TYPICAL,
    "log_energy_std": _TYPICAL,
    "survival": Scope(
        _MATRIX | _FLOW | {"gain_mean", "gain_std", "heterogeneity", "target_std"},
        losses=LOCAL_LOSSES,
        reasons=dict.fromkeys(_DRIFTS, _BACK),
    ),
    "collapse_bound": Scope(
        _MATRIX | {"gain_mean"},
        reasons={"gain_std": "the bound is one on FedAvg with a common gain"},
    ),
    "drift_floor": _DRIFT,
    "drift_growth": _DRIFT,
    "drift_interval": _DRIFT_PATHS,
    "drift_settling": _DRIFT,
    "drift_std": _DRIFT_PATHS,
    "drift_trajectory": _DRIFT_PATHS,
    "collapse_threshold": _TRAINING,
    "flow_floor": _TRAINING,
    "flow_rate": _TRAINING,
    "flow_trajectory": _TRAINING,
}
"""Scope of each closed form of a federation, by its name."""


def check_scope(form: str, scenario: object, values: Mapping[str, ArrayLike]) -> Scenario:
    """Return the scenario if the form covers every field that has an effect in it.

    Args:
        form: name of the closed form.
        scenario: the argument that should be a scenario.
        values: values per direction, by name.

    Raises:
        InputError: names the argument that is not a scenario, the unknown value (with the closest
            name) or the field that the form does not cover.
    """
    if not isinstance(scenario, Scenario):
        raise expected("scenario", scenario, "a Scenario")
    for name in values:
        check_choice("value per direction", name, VALUES)
    scope = SCOPES[form]
    if scenario.fidelity == "training":
        wanted = "'spectral' or 'matrix': fine-tuning a model has no closed form"
        raise expected("fidelity", "training", wanted)
    if scenario.local_loss not in scope.losses:
        raise expected("local_loss", scenario.local_loss, _WANTED[scope.losses])
    if "target" in values and "target_amplitude" not in scope.covers:
        raise expected("target", values["target"], "no target: the form is one of clients without")
    unused = unused_fields(scenario)
    if "target" in values:
        unused["target_std"] = "targets are given"
    if "drift_mean" in values:
        unused["drift_levels"] = "mean drifts are given"
    for name, (neutral, why) in _NEUTRAL.items():
        value = values.get(name, getattr(scenario, name))
        if name in scope.covers or (name in unused and name not in values):
            continue
        if name in values:
            value = check_numbers(name, value, "numbers, a scalar or one per direction")
        if np.any(np.asarray(value) != neutral):
            reason = scope.reasons.get(name, why)
            shown = f"{neutral:g}" if isinstance(neutral, float) else repr(neutral)
            raise expected(name, value, f"{shown} ({reason})")
    return scenario


# Reasons why a field has no effect in a scenario

_STORAGE = "how and where numbers are stored: a prediction is exact"
_SHAPE = "energies do not depend on the shape of the layer; `communication` does"
_OF_TRAINING = "only fidelity='training' reads it"
_OF_STEPS = "only plain steps at fidelity='matrix' with local_loss='quadratic' read it"
_OF_MATRIX = "only fidelity='matrix' reads it"
_OF_LOSS = "only local_loss='quadratic' reads it"
_OF_SPREAD = "clients that do not differ are fresh and persistent at once"
_OF_COHORTS = "all clients take part, each once"
_OF_EMPTY = "every cohort has a client that carries each direction"
_STEPS = ("optimizer", "local_steps")


def unused_fields(scenario: Scenario) -> dict[str, str]:
    """Return the fields that have no effect in a scenario, each with the reason.

    Changing one of them alone changes neither the distribution of a simulation nor a prediction.

    Args:
        scenario: the scenario.
    """
    unused = dict.fromkeys(("dtype", "device"), _STORAGE)
    if scenario.fidelity == "training":
        return unused
    matrix, trains = scenario.fidelity == "matrix", scenario.local_loss == "quadratic"
    unused |= dict.fromkeys(("d_in", "d_out"), _SHAPE)
    unused |= {f.name: _OF_TRAINING for f in fields(TrainingFields) if f.name not in _STEPS}
    if not (matrix and trains):
        unused |= dict.fromkeys(_STEPS, _OF_STEPS)
    if not matrix:
        unused |= dict.fromkeys(("subspace_noise", "basis_drift"), _OF_MATRIX)
    if not trains:
        targets = ("local_time", "target_amplitude", "target_decay", "target_std", "target_angle")
        unused |= dict.fromkeys(targets, _OF_LOSS)
    if not (scenario.gain_std or scenario.drift_std):
        unused["heterogeneity"] = _OF_SPREAD
    federation = scenario.federation
    once = federation.sampling in ("full", "without_replacement", "bernoulli")
    if once and federation.cohort_size == federation.num_clients:
        unused["sampling"] = _OF_COHORTS
    known = scenario.allocation != "importance"
    if known and not empty_probability(federation, scenario.allocation).any():
        unused["empty_partition"] = _OF_EMPTY
    return unused
