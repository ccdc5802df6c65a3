"""What the notebooks compute again and again: energies by partition, equations, and a ledger.

The ledger keeps predictions apart from measurements: nothing can be measured in it that was not
predicted before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp
import xarray as xr
from numpy.typing import ArrayLike

from analysis.cohorts.law import Array
from analysis.derivations.statement import MARK
from analysis.stats.intervals import Measurement, root_of_mean
from analysis.stats.verdicts import Prediction, judge
from fedlora_sim.errors import expected
from fedlora_sim.metrics import energy_ratio

if TYPE_CHECKING:
    import pandas as pd

ERROR = 0.05
"""Chance that any of the intervals of one measurement misses."""


def partition_energy(run: xr.Dataset) -> Array:
    """Summed energies of every partition, (seed, round, partition)."""
    summed = run.energy.groupby("partition").sum()
    return np.asarray(summed.transpose("seed", "round", "partition").values)


def mean_rate(run: xr.Dataset, error: float = ERROR) -> Measurement:
    """Factor of the mean energy per round, of every partition above the shared one.

    The mean over runs after T rounds is the T-th power of the factor; intervals hold together.
    """
    energy = partition_energy(run)[..., 1:]
    left = energy[:, -1] / energy[:, 0]
    return root_of_mean(run.sizes["round"] - 1)(left, error)


def beside(runs: dict[str, xr.Dataset], predicted: dict[str, Array]) -> xr.Dataset:
    """Runs and their predictions in one dataset, as the figures take it.

    Args:
        runs: by rule.
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
    """Share `1 - rho` of the energy above the lowest rank, beside its bound.

    Args:
        data: of `beside`.
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
    """The share above a rank, summed as such: 1 less the rest would lose its digits."""
    reverse = energy[..., ::-1]
    return energy_ratio(reverse, energy.shape[-1] - level)


class Equations:
    """Derived equations, set by a notebook.

    Args:
        lines: LaTeX, a left and a right side each.
    """

    def __init__(self, lines: list[tuple[str, str]]) -> None:
        self.lines = lines

    def _repr_latex_(self) -> str:
        body = r" \\[4pt] ".join(f"{left} &= {right}" for left, right in self.lines)
        return rf"$\displaystyle \begin{{aligned}} {body} \end{{aligned}}$"


def equations(*derivations: Callable[..., Any]) -> Equations:
    """What derivations find, solved now, each with what it is of.

    Args:
        *derivations: functions of `analysis.derivations`.

    Raises:
        ValueError: on a function that derives nothing.
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


@dataclass(frozen=True, eq=False)
class Entry:
    """A prediction, and what came of it; None where it was not yet measured."""

    prediction: Prediction
    measured: Measurement | None = None


class Ledger:
    """Predictions that are written down before anything is run."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def predict(self, name: str, value: ArrayLike, within: float) -> None:
        """Write down a prediction.

        Args:
            name: what is predicted.
            value: one number or several.
            within: relative margin in which a measurement agrees.
        """
        self.entries[name] = Entry(Prediction.within(value, within))

    def measure(self, name: str, found: Measurement) -> None:
        """Write down what was measured.

        Raises:
            ValueError: on what was not predicted, or was measured already.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise expected("name", name, "a prediction that was made before the measurement")
        if entry.measured is not None:
            raise expected("name", name, "a prediction that was not measured yet")
        self.entries[name] = Entry(entry.prediction, found)

    def table(self) -> pd.DataFrame:
        """One row per number: predicted, measured with its interval, and the verdict."""
        import pandas as pd  # nothing else here needs it

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
