"""Computations of the notebooks: energies by partition, equations, a ledger, and the explorer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp
import xarray as xr
from numpy.typing import ArrayLike

from analysis.closed_form.setting import is_full
from analysis.cohorts.law import Array
from analysis.collapse.measure import Collapse, by_partition, together
from analysis.derivations.statement import MARK
from analysis.predict import (
    RulePrediction,
    directions_label,
    left_of_the_start,
    reasons,
    with_training,
)
from analysis.stats.intervals import Measurement, root_of_mean
from analysis.stats.verdicts import Prediction, judge
from fedlora_sim.errors import expected
from fedlora_sim.metrics import energy_ratio
from fedlora_sim.scenario import Scenario

if TYPE_CHECKING:
    import pandas as pd

# Energies by partition

ERROR = 0.05
"""Probability that any interval of one measurement misses."""


def partition_energy(run: xr.Dataset) -> Array:
    """Return the summed energies of each partition, (seed, round, partition)."""
    summed = run.energy.groupby("partition").sum()
    return np.asarray(summed.transpose("seed", "round", "partition").values)


def mean_rate(run: xr.Dataset, error: float = ERROR) -> Measurement:
    """Return the factor of the mean energy per round, of each partition above the shared one.

    The mean over runs after T rounds is the T-th power of the factor; intervals are simultaneous.
    """
    energy = partition_energy(run)[..., 1:]
    left = energy[:, -1] / energy[:, 0]
    return root_of_mean(run.sizes["round"] - 1)(left, error)


def side_by_side(runs: dict[str, xr.Dataset], predicted: dict[str, Array]) -> xr.Dataset:
    """Return the runs and their predictions in one dataset, in the form of the figures.

    Args:
        runs: runs by rule.
        predicted: energies (round, direction) by rule.

    Returns:
        `measured` (mean over seeds) and `predicted`, (rule, round, direction).
    """
    first = next(iter(runs.values()))
    dims = ("rule", "round", "direction")
    values = {
        "measured": (dims, np.stack([run.energy.mean("seed").values for run in runs.values()])),
        "predicted": (dims, np.stack([predicted[rule] for rule in runs])),
    }
    kept = {name: first[name] for name in ("round", "direction", "partition", "coverage")}
    return xr.Dataset(values, {"rule": list(runs), **kept}, attrs=first.attrs)


def above_shared(data: xr.Dataset, bound: Array) -> xr.Dataset:
    """Return the share `1 - rho` of the energy above the lowest rank, with its bound.

    Args:
        data: result of `side_by_side`.
        bound: upper bound on that share under FedAvg, (round,).

    Returns:
        `measured`, `predicted` (rule, round) and `bound` (round).
    """
    level = int(data.attrs["rho_level"])
    dims = ("rule", "round")
    shares = {name: (dims, _above(data[name].values, level)) for name in ("measured", "predicted")}
    kept = {name: data[name] for name in dims}
    return xr.Dataset({**shares, "bound": ("round", bound)}, kept, attrs={"level": level})


def _above(energy: Array, level: int) -> Array:
    """Return the share above a rank as a sum; one minus the rest would lose digits."""
    reverse = energy[..., ::-1]
    return energy_ratio(reverse, energy.shape[-1] - level)


# Equations


class Equations:
    """Derived equations, typeset by a notebook.

    Args:
        lines: LaTeX, a left and a right side each.
    """

    def __init__(self, lines: list[tuple[str, str]]) -> None:
        self.lines = lines

    def _repr_latex_(self) -> str:
        body = r" \\[4pt] ".join(f"{left} &= {right}" for left, right in self.lines)
        return rf"$\displaystyle \begin{{aligned}} {body} \end{{aligned}}$"


def equations(*derivations: Callable[..., Any]) -> Equations:
    """Return the results of derivations, solved now, each with its left side.

    Args:
        *derivations: functions of `analysis.derivations`.

    Raises:
        InputError: if a function is not a derivation.
    """
    lines: list[tuple[str, str]] = []
    for function in derivations:
        left = getattr(function, MARK, None)
        if left is None:
            name = getattr(function, "__name__", repr(function))
            raise expected("derivation", name, "a function of analysis.derivations")
        found = function()
        parts = [getattr(found, f.name) for f in fields(found)] if is_dataclass(found) else [found]
        lines += zip(left, map(sp.latex, parts), strict=True)
    return Equations(lines)


# A ledger of predictions and measurements: only predicted quantities can be measured


@dataclass(frozen=True, eq=False)
class Entry:
    """A prediction with its measurement, or None before it is measured."""

    prediction: Prediction
    measured: Measurement | None = None


class Ledger:
    """Predictions that are recorded before anything is run."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def predict(self, name: str, value: ArrayLike, within: float) -> None:
        """Record a prediction.

        Args:
            name: the predicted quantity.
            value: one number or several.
            within: relative margin of agreement.
        """
        self.entries[name] = Entry(Prediction.within(value, within))

    def measure(self, name: str, found: Measurement) -> None:
        """Record a measurement.

        Raises:
            InputError: if the quantity was not predicted, or was already measured.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise expected("name", name, "a prediction that was made before the measurement")
        if entry.measured is not None:
            raise expected("name", name, "a prediction that was not measured yet")
        self.entries[name] = Entry(entry.prediction, found)

    def table(self) -> pd.DataFrame:
        """Return one row per number: predicted, measured with its interval, and the verdict."""
        import pandas as pd  # only needed here

        return pd.DataFrame([row for name in self.entries for row in self._rows(name)])

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False, na_rep="", float_format="{:.4g}".format))

    def _rows(self, name: str) -> list[dict[str, Any]]:
        entry = self.entries[name]
        told, found = entry.prediction, entry.measured
        verdict = "" if found is None else str(judge(found, told))
        nothing = np.full(len(told.value), np.nan)
        value, low, high = (nothing,) * 3 if found is None else (found.value, found.low, found.high)
        return [
            {
                "what": name if i == 0 else "",
                "predicted": told.value[i],
                "margin": told.margin,
                "measured": value[i],
                "low": low[i],
                "high": high[i],
                "verdict": verdict if i == 0 else "",
            }
            for i in range(len(told.value))
        ]


# The explorer: one federation under one rule, fast enough for interactive controls
#
# Two kinds of clients are predicted: those that return `a x + b` (gain and drift), and those that
# train for a local time. Nothing is simulated. Verdicts are on the start: its remaining part in a
# typical run, or whether training holds it.

FIRST = 1  # partitions from here on may collapse: all clients share the previous one


@dataclass(frozen=True)
class PartitionVerdict:
    """The predictions for one partition; NaN without a closed form.

    Args:
        directions: the directions of the partition, from 1, as text.
        coverage: expected weight of the clients that carry it.
        empty: probability P0 per round that no client of the cohort does.
        rate: factor of its mean energy per round.
        typical: the same in a typical surviving run.
        half_life: rounds in which a typical run loses half of it; infinite if never.
        survival: probability that a run has not lost it after the last round.
        floor: mean energy at which drifts hold it.
        threshold: local time T* above which training holds it.
        held: amplitude at which training holds it.
        passive: verdict if clients return what they received, up to gain and drift.
        trained: verdict if they train; None without a local time.
    """

    directions: str
    coverage: float
    empty: float
    rate: float
    typical: float
    half_life: float
    survival: float
    floor: float
    threshold: float
    held: float
    passive: Collapse
    trained: Collapse | None


@dataclass(frozen=True, eq=False)
class Exploration:
    """A scenario under a rule.

    Args:
        scenario: the scenario.
        rule: the rule, with its policy.
        local_time: local time of the clients that train; None for none.
        rows: one per partition, the shared one first.
        energy: mean energy of each direction, (rounds + 1, r_max); None without a closed form.
        training: amplitude of each direction under training, (rounds + 1, r_max); None without a
            local time or a closed form.
        reasons: reasons for missing values.
    """

    scenario: Scenario
    rule: str
    local_time: float | None
    rows: tuple[PartitionVerdict, ...]
    energy: Array | None
    training: Array | None
    reasons: tuple[str, ...]

    @property
    def is_full(self) -> bool:
        """True if all rounds are equal."""
        return is_full(self.scenario)

    @property
    def passive(self) -> Collapse:
        """Verdict if clients return what they received, up to gain and drift."""
        return together(row.passive for row in self.rows[FIRST:])

    @property
    def trained(self) -> Collapse | None:
        """Verdict if clients train; None without a local time."""
        found = [row.trained for row in self.rows[FIRST:]]
        return None if None in found else together(v for v in found if v is not None)

    @property
    def has_levels(self) -> bool:
        """True if there are ranks above the shared one, which a verdict requires."""
        return len(self.rows) > FIRST

    @property
    def sentence(self) -> str:
        """The verdicts as text."""
        if not self.has_levels:
            return f"{self.rule}: all clients have one rank, which cannot collapse."
        told = f"{self.rule}: without training it {_word(self.passive)}"
        if self.trained is None:
            return f"{told}."
        return f"{told}; with local time {self.local_time:g} it {_word(self.trained)}."


def explore(
    scenario: Scenario, rule: str = "fedavg", *, local_time: float | None = None
) -> Exploration:
    """Predict a scenario under one rule, partition by partition, with verdicts.

    Args:
        scenario: clients that return `a x + b`, and the target of those that train.
        rule: any of `closed_form.RULES`.
        local_time: local training per round, in units of 1 / target; None for none.

    Returns:
        Numbers and verdicts; NaN or None without a closed form, with the reason.

    Raises:
        InputError: if an argument is invalid; names the argument, its value and what was expected.
    """
    own = with_training(scenario, rule, local_time=local_time)
    known = own.theory
    why = reasons(known)
    path = "flow_amplitude"
    return Exploration(
        scenario,
        own.label,
        local_time,
        _rows(scenario, own, local_time),
        None if "energy" in why else known["energy"].values,
        known[path].values if path in known and path not in why else None,
        tuple(dict.fromkeys([*why.values(), *json.loads(known.attrs["notes"])])),
    )


def _word(verdict: Collapse) -> str:
    return "is undecided" if verdict is Collapse.UNDECIDED else str(verdict)


COLUMNS = {
    "coverage": "coverage",
    "empty": "extinction_probability",
    "rate": "energy_rate",
    "typical": "typical_rate",
    "half_life": "typical_half_life",
    "survival": "survival",
    "floor": "energy_floor",
    "threshold": "collapse_threshold",
    "held": "flow_floor",
}
"""Variables of a prediction by column of the explorer."""


def _rows(
    scenario: Scenario, own: RulePrediction, local_time: float | None
) -> tuple[PartitionVerdict, ...]:
    federation = scenario.federation
    unknown = np.full(len(federation.levels), np.nan)
    columns = {}
    for column, name in COLUMNS.items():
        values = own.of(name) if name in own.theory.variables else None
        columns[column] = unknown if values is None else values
    first = [part.start for part in federation.partitions]
    start = left_of_the_start(scenario, own.rule).isel(direction=first)
    passive = _passive(scenario, start)
    trained = _trained(columns["threshold"], start, local_time)
    return tuple(
        PartitionVerdict(
            directions=directions_label(part),
            passive=passive[h],
            trained=trained[h],
            **{name: float(values[h]) for name, values in columns.items()},
        )
        for h, part in enumerate(federation.partitions)
    )


def _passive(scenario: Scenario, start: xr.Dataset) -> tuple[Collapse, ...]:
    """Judge the remaining start of a typical run by the criteria of `analysis.collapse`."""
    rate, survival = start.typical_rate.values, start.survival.values
    if np.isnan(rate).any():
        return (Collapse.UNDECIDED,) * len(rate)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = rate / rate[0]
    numbers = {
        "extinct": 1 - survival,
        "relative_late": relative,
        "left": relative**scenario.rounds,
    }
    exact = {name: Measurement(x, x, x, 1) for name, x in numbers.items()}
    return (Collapse.KEEPS, *by_partition(exact))


def _trained(
    threshold: Array, start: xr.Dataset, local_time: float | None
) -> tuple[Collapse | None, ...]:
    """Return `held` if training is above the threshold and most runs do not lose the partition."""
    survival = start.survival.values
    if local_time is None:
        return (None,) * len(survival)
    if np.isnan(threshold).any() or np.isnan(survival).any():
        return (Collapse.UNDECIDED,) * len(survival)
    held = (threshold < local_time) & (survival > 1 / 2)
    return tuple(Collapse.KEEPS if ok else Collapse.COLLAPSES for ok in held)
