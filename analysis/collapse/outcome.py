"""The outcome of one rule in one scenario, compared with its prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import numpy as np
import xarray as xr

from analysis.collapse.measure import (
    EXTINCT,
    Collapse,
    Numbers,
    by_partition,
    extinct_round,
    measure,
    series_of,
    together,
)
from analysis.collapse.predict import CollapsePrediction, partition_sums
from analysis.collapse.scenarios import Standard
from analysis.stats.intervals import Array, Measurement
from analysis.stats.verdicts import Prediction as Region
from analysis.stats.verdicts import Verdict, judge
from fedlora_sim import simulate
from fedlora_sim.rules import AggregationRule

BAND = (0.1, 0.9)
"""Quantiles over runs of the band in figures."""
TURNED = 0.1
"""Above this share of energy off the initial directions, lost energy may have rotated away."""

Progress = Callable[[float], object]


class Agreement(StrEnum):
    """Agreement of a measured number with its prediction."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    UNDECIDED = "undecided"
    NOT_PREDICTED = "not predicted"
    NOT_MEASURED = "not measured"


_AGREEMENT = {
    Verdict.SUPPORTED: Agreement.AGREES,
    Verdict.REFUTED: Agreement.DISAGREES,
    Verdict.UNDECIDED: Agreement.UNDECIDED,
}


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of one rule.

    Args:
        energy: energies of the partitions on the initial directions, (S, T + 1, M); NaN from the
            round on in which a run diverges.
        turned: share of the last round's energy off those directions, mean over runs.
    """

    energy: Array
    turned: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """One rule in one scenario.

    Args:
        label: the rule, with its options.
        verdict: whether it collapses here.
        partitions: verdict on each partition above the shared one.
        numbers: measurements by kind, see `analysis.collapse.measure.KINDS`.
        extinct_rounds: round by which half of the runs lost each partition, infinite if never.
        prediction: the prediction, made before the run.
        agreement: agreement by kind, for each partition.
        curves: median and band of energies relative to their start, (3, T + 1, M).
        notes: notes for readers on the runs.
    """

    label: str
    verdict: Collapse
    partitions: tuple[Collapse, ...]
    numbers: Numbers
    extinct_rounds: tuple[float, ...]
    prediction: CollapsePrediction
    agreement: dict[str, tuple[Agreement, ...]]
    curves: Array
    notes: tuple[str, ...]


def run(
    rule: AggregationRule,
    standard: Standard,
    fidelity: str,
    seeds: list[int],
    on_progress: Progress,
) -> Runs:
    """Simulate a rule in a standard scenario."""
    with np.errstate(over="ignore", invalid="ignore"):  # divergence is reported in a note
        found = simulate(standard.at(fidelity), rule=rule, seed=seeds, on_progress=on_progress)
    on_basis = "projected_energy" in found
    energy = partition_sums(found["projected_energy" if on_basis else "energy"].values, standard)
    diverged = np.logical_or.accumulate(~np.isfinite(energy).all(-1, keepdims=True), axis=1)
    return Runs(np.where(diverged, np.nan, energy), _turned(found) if on_basis else 0.0)


def _turned(found: xr.Dataset) -> float:
    on, total = (found[name][:, -1].sum("direction") for name in ("projected_energy", "energy"))
    known = np.isfinite(on) & np.isfinite(total) & (total > 0)
    share = 1 - on.where(known, 1.0) / total.where(known, 1.0)
    return max(0.0, float(share.mean()))


def outcome(
    label: str,
    runs: Runs,
    standard: Standard,
    fidelity: str,
    prediction: CollapsePrediction,
    error: float,
    paired: dict[str, Measurement],
) -> Outcome:
    """Measure runs, decide by intervals, and compare with the prediction."""
    numbers = measure(runs.energy, standard, error) | paired
    doubts, partitions = _doubts(runs), by_partition(numbers)
    if doubts:  # energy outside the initial directions may not be lost
        doubtful = set(Collapse) if np.isnan(runs.energy).any() else {Collapse.COLLAPSES}
        partitions = tuple(Collapse.UNDECIDED if v in doubtful else v for v in partitions)
    return Outcome(
        label,
        together(partitions),
        partitions,
        numbers,
        extinct_round(runs.energy, standard),
        prediction,
        compare(numbers, prediction, standard, fidelity),
        _curves(runs.energy),
        doubts + _notes(runs),
    )


def compare(
    numbers: Numbers, prediction: CollapsePrediction, standard: Standard, fidelity: str
) -> dict[str, tuple[Agreement, ...]]:
    """Return the agreement of each number with its prediction, partition by partition."""
    return {
        name: tuple(
            _agreement(found, prediction.values.get(name), region_of(name, standard, fidelity), h)
            for h in range(len(found.value))
        )
        for name, found in numbers.items()
    }


def region_of(name: str, standard: Standard, fidelity: str) -> Callable[[float], Region]:
    """Return the region around a prediction of this kind of number."""
    width = standard.margins(fidelity)
    absolute = {"rho": width.ratio, "extinct": width.extinct}.get(name)
    if absolute is None:
        return partial(Region.within, relative=width.relative)
    return partial(Region.near, absolute=absolute)


def _agreement(
    found: Measurement,
    predicted: Array | None,
    region: Callable[[float], Region],
    partition: int,
) -> Agreement:
    if predicted is None or np.isnan(predicted[partition]):
        return Agreement.NOT_PREDICTED
    one = slice(partition, partition + 1)
    if np.isnan(found.value[partition]):
        return Agreement.NOT_MEASURED
    alone = Measurement(found.value[one], found.low[one], found.high[one], found.samples)
    return _AGREEMENT[judge(alone, region(float(predicted[partition])))]


def _curves(energy: Array) -> Array:
    series = series_of(energy, relative=False)
    quantiles = np.quantile(series, (0.5, *BAND), axis=0)
    return np.asarray(quantiles, dtype=np.float64)


def _doubts(runs: Runs) -> tuple[str, ...]:
    """Return reasons why a partition that seems lost may not be."""
    notes = []
    if np.isnan(runs.energy).any():
        notes.append("some energies are not finite: the runs diverge, and decide nothing")
    if runs.turned > TURNED:
        notes.append(
            f"{runs.turned:.0%} of the energy has left the initial directions: what is missing "
            "there is not known to be lost"
        )
    return tuple(notes)


def _notes(runs: Runs) -> tuple[str, ...]:
    last = series_of(runs.energy, relative=False)[:, -1, 0]
    lost = float((last < EXTINCT).mean())
    if not lost:
        return ()
    return (f"the shared partition is lost too, in {lost:.0%} of the runs: not its rank alone",)
