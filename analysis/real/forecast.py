"""Energies that a calibrated linear model foretells, with prediction intervals.

Clients return `s = a x + b`, drawn anew every round with the calibrated moments and normal; the
server does with them what its rule declares (`direction_weights`, `space`, `empty_partition`),
direction by direction in a basis that stays. In product space

    E[x'] = (g E[x] + c) E[sum w],
    E[x'^2] = (g^2 E[(sum w)^2] + nu^2 E[sum w^2]) E[x^2] + 2 g c E[(sum w)^2] E[x]
              + tau^2 E[sum w^2] + c^2 E[(sum w)^2],

and the Monte Carlo of this file has these means; it knows every rule's amplitudes, though, and the
spread of one run besides. Layers share their cohorts, as they do in a run. A direction keeps its
number, where an SVD would sort amplitudes that cross.

Reference: Wu et al., arXiv 2602.13486, App. B; the moments: our derivation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from analysis.real.calibration import Calibration, Draws
from analysis.real.updates import by_partition, slot_ranks, slot_weights
from fedlora_sim.engines.draws import leading_directions
from fedlora_sim.engines.spectral import Cohorts, run_clients
from fedlora_sim.errors import check_positive_int, check_share, expected
from fedlora_sim.federation import Federation, cohort_slots, draw_cohorts
from fedlora_sim.randomness import stream
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.scenario import Scenario

Array = NDArray[np.float64]

STATISTICS = ("mean", "median", "low", "high")


@dataclass(frozen=True, eq=False)
class LinearClients:
    """Clients who bring the amplitude x to `a x + b`, normal and drawn anew every round.

    Args:
        rng: source of their draws.
        gain_mean, gain_std, drift_mean, drift_std: g, nu, c and tau, each (samples, 1, r_max).
    """

    rng: np.random.Generator
    gain_mean: Tensor
    gain_std: Tensor
    drift_mean: Tensor
    drift_std: Tensor

    def __call__(self, t: int, runs: Tensor, clients: Tensor, total: Tensor) -> Tensor:
        """Amplitudes (samples, m, r_max) that the cohort of round t reaches from the total's."""
        spread = torch.hypot(self.gain_std * total, self.drift_std)
        size = (len(total), clients.shape[-1], total.shape[-1])
        normal = torch.from_numpy(self.rng.standard_normal(size))
        return self.gain_mean * total + self.drift_mean + spread * normal


def forecast(
    calibration: Calibration,
    start: xr.DataArray,
    rule: str | AggregationRule,
    federation: Federation,
    rounds: int,
    *,
    empty_partition: str = "carry",
    cohorts: Cohorts | None = None,
    samples: int = 400,
    confidence: float = 0.9,
    certain: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Energies of every layer and partition in the rounds to come.

    Args:
        calibration: law of one run's clients, without the dimension `seed`.
        start: amplitudes sigma of the global update at the start, (layer, direction), with the
            coordinate `partition`.
        rule: the server rule.
        federation: the clients and the cohort law.
        rounds: how many rounds to foretell.
        empty_partition: what rules with such a policy do without a contributor.
        cohorts: the cohorts, where they are known (`actual_cohorts`); drawn at random when None.
        samples: runs of the Monte Carlo.
        confidence: of the central prediction intervals, each for itself, in (0, 1).
        certain: take the estimates for the truth, in place of draws from their distribution.
        seed: of all draws.

    Returns:
        `energy` (layer, partition, horizon, statistic) and `total` (partition, horizon,
        statistic), the sum over layers; horizons count from 1, statistics are `mean`, `median`,
        `low` and `high` of the energy of one run. All NaN, and `attrs["reason"]` says why, under a
        rule whose amplitudes do not follow from what clients return; NaN for a layer and pool
        without calibration.

    Raises:
        ValueError: on a bad argument, or if a direction stays without a contributor under
            `empty_partition="error"`.
    """
    chosen, horizon = get_rule(rule), check_positive_int("rounds", rounds)
    count, level = check_positive_int("samples", samples), check_share("confidence", confidence)
    x = _checked_start(start, calibration)
    reason = no_recursion(chosen)
    r_max = x.shape[1]
    if reason:
        energy = np.full((len(x), 1, horizon, r_max), np.nan)
    else:
        if cohorts is None:
            rng = stream(seed, "cohorts")
            cohorts = random_cohorts(federation, horizon, count, r_max, rng)
        laws = calibration.draw(count, None if certain else stream(seed, "calibration"))
        scenario = Scenario(federation.ranks, rounds=horizon, empty_partition=empty_partition)
        runs = [
            _run_layer(scenario, chosen, x[j], cohorts, laws, j, stream(seed, "clients", j))
            for j in range(len(x))
        ]
        energy = np.stack(runs)
    return _labelled(energy, start, (1 - level) / 2).assign_attrs(
        rule=chosen.label, reason=reason or "", confidence=level, samples=count
    )


def no_recursion(rule: AggregationRule) -> str | None:
    """Why the amplitudes of a rule do not follow from what clients return; None if they do.

    Of rules that average factors (`zero_pad`, `rbla`, `hetlora`, `ffa`) rank positions are taken
    for singular directions, as everywhere in the theory.
    """
    if not rule.has_spectral_form:
        return f"{rule.label} is more than weights on amplitudes"
    if rule.residual_in_base and rule.space != "none":
        return f"how much of an amplitude {rule.label} holds in the base is not recorded"
    return None


def random_cohorts(
    federation: Federation, rounds: int, samples: int, r_max: int, rng: np.random.Generator
) -> Cohorts:
    """Cohorts drawn by the federation's law, `samples` runs of some rounds.

    Args:
        federation: the clients and the cohort law.
        rounds: rounds of each run.
        samples: runs.
        r_max: directions of the global update.
        rng: source of randomness.
    """
    if federation.sampling == "full":
        samples = rounds = 1  # one row stands for all
    counts = draw_cohorts(federation, samples * rounds, rng)
    slots, drawn = cohort_slots(counts.reshape(samples, rounds, -1), federation.max_cohort)
    ranks = np.asarray(federation.ranks)
    return _cohorts(slots, federation.cohort_weights(slots, drawn), ranks[slots], ranks, r_max)


def actual_cohorts(dataset: xr.Dataset, rounds: slice) -> Cohorts:
    """The cohorts of one run, with the weights and ranks that they had.

    Args:
        dataset: a training run, dimension `seed` of length 1.
        rounds: labels of the rounds, both ends included.

    Raises:
        ValueError: if nobody returned anything in one of the rounds.
    """
    run = dataset.sel(round=rounds)
    weights = slot_weights(run).values
    empty = np.flatnonzero(weights.sum((0, -1)) == 0)
    if empty.size:
        t = int(run["round"].values[empty[0]])
        raise expected("cohorts", "actual", f"a client in every round; round {t} has none")
    last_ranks = run.client_rank.values[0, -1]
    slots = run.cohort.values.clip(min=0)
    return _cohorts(slots, weights, slot_ranks(run).values, last_ranks, run.sizes["direction"])


def _cohorts(slots: Array, weights: Array, held: Array, ranks: Array, r_max: int) -> Cohorts:
    return Cohorts(
        torch.as_tensor(slots.astype(np.int64)),
        torch.as_tensor(weights.astype(np.float64)),
        torch.as_tensor(ranks),
        torch.arange(r_max),
        leading_directions(torch.as_tensor(held), r_max),
    )


def _run_layer(
    scenario: Scenario,
    rule: AggregationRule,
    start: Array,
    cohorts: Cohorts,
    laws: Draws,
    layer: int,
    rng: np.random.Generator,
) -> Array:
    """Energies (samples, rounds, r_max) of one layer."""
    chosen = (laws.gain_mean, laws.gain_std, laws.drift_mean, laws.drift_std)
    values = [torch.as_tensor(law[:, None, layer]) for law in chosen]
    initial = torch.as_tensor(start).expand(len(values[0]), -1)
    path = run_clients(scenario, rule, initial, cohorts, LinearClients(rng, *values))
    return np.asarray(path[:, 1:].square().numpy())


def _checked_start(start: xr.DataArray, calibration: Calibration) -> Array:
    layers = calibration.estimates.layer.values
    shape = (len(layers), len(calibration.cells))
    if dict(start.sizes) != dict(zip(("layer", "direction"), shape, strict=True)):
        raise expected("start", dict(start.sizes), f"amplitudes (layer, direction) of {shape}")
    if list(start.layer.values) != list(layers):
        raise expected("start", list(start.layer.values), f"the calibration's layers {layers}")
    x = start.transpose("layer", "direction").values.astype(np.float64)
    if not (np.isfinite(x) & (x >= 0)).all():
        raise expected("start", x.tolist(), "finite amplitudes of at least 0")
    return x


def _labelled(energy: Array, start: xr.DataArray, tail: float) -> xr.Dataset:
    """Statistics of energies (layer, samples, horizon, direction)."""
    coords = {"layer": start.layer, "direction": start.direction, "partition": start.partition}
    dims = ("layer", "sample", "horizon", "direction")
    parts = by_partition(xr.DataArray(energy, coords, dims)).assign_coords(
        horizon=np.arange(1, energy.shape[2] + 1)
    )
    total = parts.sum("layer", skipna=False)
    return xr.Dataset({"energy": _statistics(parts, tail), "total": _statistics(total, tail)})


def _statistics(energy: xr.DataArray, tail: float) -> xr.DataArray:
    """Mean and quantiles over samples, along the last dimension `statistic`."""
    values = energy.transpose("sample", "layer", "partition", "horizon", missing_dims="ignore")
    ends = np.quantile(values.values, [0.5, tail, 1 - tail], axis=0)
    found = np.concatenate([values.values.mean(0)[None], ends])
    labels = values.isel(sample=0).expand_dims(statistic=list(STATISTICS))
    return labels.copy(data=found).transpose(..., "statistic")
