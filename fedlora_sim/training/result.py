"""What a federated fine-tuning run leaves behind, and its labelled form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_sim.training.measures import Row

PER_ROUND: dict[str, tuple[str, ...]] = {
    "accuracy": (),
    "loss": (),
    "client_rank": ("client",),
    "cohort": ("slot",),
    "dropped": ("slot",),
    "client_weight": ("slot",),
    "amplitude": ("layer", "slot", "direction"),
    "update_energy": ("layer", "slot"),
    "client_preservation": ("layer", "slot"),
    "preservation": ("layer",),
    "angle": ("layer", "side", "level", "direction"),
    "counterfactual_energy": ("compared_rule", "layer", "direction"),
    "counterfactual_accuracy": ("compared_rule",),
}
"""Measures of a round by name, with their dimensions."""


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """One run, round 0 being the untouched model.

    Args:
        layers: names of the adapted modules, L of them.
        shapes: their (d_out, d_in).
        singular_values: of the global update, (T + 1, L, r_max).
        measures: everything else that is measured every round, (T + 1, ...); see `PER_ROUND`.
        coverage: data coverage of every direction under this run's split, (r_max,).
        levels: rank levels, ascending.
        compared: rules of the counterfactuals; empty without.
        split_counts: samples of every client and class, (K, C).
        class_names: of the classes.
    """

    layers: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    singular_values: NDArray[np.float64]
    measures: Mapping[str, NDArray[Any]]
    coverage: NDArray[np.float64]
    levels: tuple[int, ...]
    compared: tuple[str, ...]
    split_counts: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __getattr__(self, name: str) -> NDArray[Any]:
        """A measure by its name."""
        if name in PER_ROUND:
            return self.measures[name]
        raise AttributeError(name)


def stacked_rows(rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
    """Measures of all rounds, first axis the round; the cohort's mean preservation among them."""
    measures = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    for name in rows[-1].keys() - measures.keys():  # the start has no counterfactuals
        later = np.stack([row[name] for row in rows[1:]])
        measures[name] = np.concatenate([np.full_like(later[:1], np.nan), later])
    share = measures["client_preservation"]
    known = ~np.isnan(share)
    total = np.where(known, share, 0.0).sum(-1)
    measures["preservation"] = np.where(known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan)
    return measures


def labelled(
    results: Sequence[TrainingResult],
) -> tuple[dict[str, tuple[tuple[str, ...], NDArray[Any]]], dict[str, Any]]:
    """Variables and coordinates of several runs, beside the energies.

    Args:
        results: one per seed.

    Returns:
        Variables as (dims, values), dims beginning with (seed, round), and coordinates.
    """
    first = results[0]
    variables: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {
        name: (("seed", "round", *PER_ROUND[name]), np.stack([r.measures[name] for r in results]))
        for name in PER_ROUND
        if name in first.measures
    }
    energy = np.stack([r.singular_values for r in results]) ** 2
    variables["layer_energy"] = (("seed", "round", "layer", "direction"), energy)
    counts = np.stack([r.split_counts for r in results])
    variables["split_counts"] = (("seed", "client", "class"), counts)
    coords: dict[str, Any] = {
        "layer": list(first.layers),
        "d_out": ("layer", [d_out for d_out, _ in first.shapes]),
        "d_in": ("layer", [d_in for _, d_in in first.shapes]),
        "side": ["left", "right"],
        "level": list(first.levels),
        "coverage": (("seed", "direction"), np.stack([r.coverage for r in results])),
        "class": list(first.class_names),
    }
    if first.compared:
        coords["compared_rule"] = list(first.compared)
    return variables, coords
