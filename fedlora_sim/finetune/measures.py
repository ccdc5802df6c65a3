"""Metrics of each round, and the dataset of a run.

The theory assumes a fixed singular basis and direction-preserving client updates (Wu et al., arXiv
2602.13486, App. A). Both are measured: client k's update dW_k on the basis (U, V) of the global
update at the start of the round, `s_{k,i} = u_i^T dW_k v_i`, the share of its energy on that basis,
and the angles by which the basis turns from one round to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.account import Carriers
from fedlora_sim.datasets import ACCOUNT
from fedlora_sim.federation import Federation
from fedlora_sim.finetune.exchange import SVD, GlobalUpdate, Upload
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import pad_last
from fedlora_sim.metrics import direction_preservation, projected_amplitudes, subspace_angles
from fedlora_sim.rules import AggregationRule

Row = dict[str, NDArray[np.generic]]
"""Metrics of one round by name, of the same shapes in every round."""


def cohort_row(federation: Federation, upload: Upload) -> Row:
    """Return the participants: `cohort`, `dropped` and `client_weight`, each (M,).

    Slots without a client hold client -1 and weight 0.

    Args:
        federation: gives the number of slots M, the size of the largest possible cohort.
        upload: upload of the round.
    """
    share = upload.weights / max(upload.weights.sum(), np.finfo(float).tiny)
    slots = federation.max_cohort
    return {
        "cohort": _padded(upload.clients, slots, -1),
        "dropped": _padded(~upload.kept, slots, False),
        "client_weight": _padded(share, slots, 0.0),
    }


def update_row(bases: Mapping[str, SVD], upload: Upload, slots: int, r_max: int) -> Row:
    """Return the amplitudes, energies and preservation of the clients' updates.

    Args:
        bases: SVD of the global update at the start of the round, per layer.
        upload: upload of the round.
        slots: slots of a row, M.
        r_max: rank of the global update.

    Returns:
        `amplitude` (L, M, r_max), `update_energy` and `client_preservation` (L, M); NaN where there
        is no client, or no global update to project on.
    """
    place = np.flatnonzero(upload.kept)
    amplitude = np.full((len(bases), slots, r_max), np.nan)
    energy = np.full((len(bases), slots), np.nan)
    share = np.full((len(bases), slots), np.nan)
    for layer, (name, (u, s, vh)) in enumerate(bases.items()):
        if not len(place):
            break
        updates = _together(upload.updates[name])
        energy[layer, place] = updates.norm().square().cpu().double().numpy()
        if bool(s.any()):
            found = projected_amplitudes(u, vh, updates)
            amplitude[layer, place, : len(s)] = found.cpu().double().numpy()
            share[layer, place] = direction_preservation(u, vh, updates).cpu().double().numpy()
    return {"amplitude": amplitude, "update_energy": energy, "client_preservation": share}


def _together(updates: Sequence[LoRAFactors]) -> LoRAFactors:
    """Return the updates of clients as one batch at scaling 1, padded to their highest rank."""
    width = max(update.rank for update in updates)
    return LoRAFactors(
        torch.stack([pad_last(x.lora_A.mT, width).mT for x in updates]),
        torch.stack([pad_last(x.lora_B * x.scaling, width) for x in updates]),
    )


def account_row(
    rule: AggregationRule,
    empty_partition: str,
    before: GlobalUpdate,
    bases: Mapping[str, SVD],
    upload: Upload,
    after: GlobalUpdate,
    row: Row,
) -> Row:
    """Return the account of the round on the directions of the global update before it.

    Args:
        rule: the server rule.
        empty_partition: policy for directions without carriers.
        before: the global update before the round.
        bases: its SVD, per layer.
        upload: upload of the round.
        after: the global update after the round.
        row: `amplitude` and `update_energy` of the round, see `update_row`.

    Returns:
        The variables of `ACCOUNT`, each (L, r_max). Amplitudes are NaN in a layer without a global
        update, and beyond the number of its directions.
    """
    place, r_max = np.flatnonzero(upload.kept), row["amplitude"].shape[-1]
    weights = torch.from_numpy(upload.weights[place])
    found = {name: np.full((len(bases), r_max), np.nan) for name in ACCOUNT}
    for layer, (name, (u, s, vh)) in enumerate(bases.items()):
        members = torch.zeros(len(place), r_max, dtype=torch.bool)
        for k, held in enumerate(upload.positions[name]):
            members[k, held.cpu()] = True
        returned, energy = (
            torch.from_numpy(row[key][layer, place]) for key in ("amplitude", "update_energy")
        )
        carriers = Carriers.of(rule, empty_partition, weights, members, energy.sqrt())
        total, base, now = (
            pad_last(x.cpu().double(), r_max)
            for x in (s, before.base_on(name, u, vh), after.on(name, u, vh))
        )
        account = carriers.account_of_svd(total, base, returned, now, s.dtype)
        for key, values in account.items():
            found[key][layer] = values.numpy()
    return found


def angle_row(before: Mapping[str, SVD], after: Mapping[str, SVD], levels: Sequence[int]) -> Row:
    """Return the principal angles between the leading subspaces of two global updates.

    Args:
        before: SVD of each layer at the start of the round.
        after: SVD of each layer at its end.
        levels: rank levels l_1 < ... < l_M, the dimensions of the subspaces.

    Returns:
        `angle` (L, 2, M, r_max): layer, side (left, right), level; radians, ascending, NaN beyond
        the level and where an update has fewer directions.
    """
    angle = np.full((len(before), 2, len(levels), levels[-1]), np.nan)
    # Subspaces of one shape are compared in one batch.
    pairs: dict[tuple[int, int], list[tuple[tuple[int, int, int], Tensor, Tensor]]] = {}
    for layer, name in enumerate(before):
        first, second = _sides(before[name]), _sides(after[name])
        for h, level in enumerate(levels):
            if min(_rank(before[name][1]), _rank(after[name][1])) < level:
                break
            for side, (p, q) in enumerate(zip(first, second, strict=True)):
                one = ((layer, side, h), p[:, :level], q[:, :level])
                pairs.setdefault((len(p), level), []).append(one)
    for (_, level), alike in pairs.items():
        sides = (torch.stack([pair[side] for _, *pair in alike]) for side in range(2))
        found = subspace_angles(*sides).cpu().double().numpy()
        for ((layer, side, h), *_), own in zip(alike, found, strict=True):
            angle[layer, side, h, :level] = own
    return {"angle": angle}


def spectrum_row(bases: Mapping[str, SVD]) -> Row:
    """Return the singular values of the global update, `singular_values` (L, r_max)."""
    values = torch.stack([s for _, s, _ in bases.values()])
    return {"singular_values": values.cpu().double().numpy()}


def _sides(svd: SVD) -> tuple[Tensor, Tensor]:
    u, _, vh = svd
    return u, vh.mT


def _rank(s: Tensor) -> int:
    """Return the number of directions whose singular vectors are more than rounding."""
    return int((s > s[0] * len(s) * torch.finfo(s.dtype).eps).sum()) if s.numel() else 0


def _padded(values: NDArray[np.generic], slots: int, filler: object) -> NDArray[np.generic]:
    row = np.full(slots, filler, dtype=values.dtype)
    row[: len(values)] = values
    return row


# The result of a run and its labeled form

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
    **dict.fromkeys(ACCOUNT, ("layer", "direction")),
    "angle": ("layer", "side", "level", "direction"),
    "counterfactual_energy": ("compared_rule", "layer", "direction"),
    "counterfactual_accuracy": ("compared_rule",),
}
"""Metrics of a round by name, with their dimensions."""


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """Result of one run; round 0 is the pretrained model.

    Args:
        layers: names of the L adapted modules.
        shapes: their (d_out, d_in).
        singular_values: singular values of the global update, (T + 1, L, r_max).
        measures: all other metrics per round, (T + 1, ...); see `PER_ROUND`.
        coverage: coverage of each direction under this run's split, (r_max,).
        levels: rank levels, ascending.
        compared: rules of the counterfactuals; empty without.
        split_counts: samples of each client and class, (K, C).
        class_names: names of the classes.
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
        """Return a metric by its name."""
        if name in PER_ROUND:
            return self.measures[name]
        raise AttributeError(name)


def stacked_rows(rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
    """Return metrics of all rounds, first axis the round, with the cohort's mean preservation."""
    measures = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    for name in rows[-1].keys() - measures.keys():  # round 0 has no counterfactuals
        later = np.stack([row[name] for row in rows[1:]])
        measures[name] = np.concatenate([np.full_like(later[:1], np.nan), later])
    share = measures["client_preservation"]
    known = ~np.isnan(share)
    total = np.where(known, share, 0.0).sum(-1)
    measures["preservation"] = np.where(known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan)
    return measures


def labeled(
    results: Sequence[TrainingResult],
) -> tuple[dict[str, tuple[tuple[str, ...], NDArray[Any]]], dict[str, Any]]:
    """Return the variables and coordinates of several runs, without the energies.

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
