"""Forecast the energies of real runs by drift laws, combined by their earlier errors.

Every law of `amplitude_laws` continues each earlier round of the calibration (a rolling origin).
The forecast is the geometric mean of all laws, weighted by the inverse square of their errors
there. Its own earlier errors, where each used the weights known at its time, calibrate the
prediction intervals: split conformal prediction (Vovk et al. 2005), without its guarantee, because
the errors depend on each other. They are pooled over the layers of a partition, over origins and
over horizons, and scale with the horizon over the number of past rounds. Later cohorts are drawn by
the federation's law.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from analysis.studies.amplitude_laws import LAWS, Law, Past, constant_drift, continued
from analysis.studies.updates import by_partition, check_has, rule_of, slot_ranks, slot_weights
from fedlora_sim.errors import check_positive_int, check_share, expected
from fedlora_sim.federation import Federation, draw_cohorts
from fedlora_sim.randomness import stream
from fedlora_sim.rules import AggregationRule

Array = NDArray[np.float64]

STATISTICS = ("median", "low", "high")

FIRST_ORIGIN = 4
"""First round from which laws are tried: each needs a few rounds to be estimated."""
LEAST_CALIBRATION = FIRST_ORIGIN + 2
LEAST_ERROR = 0.005
"""Added to errors in decades, so that none is zero."""
SHARPNESS = 2.0
"""Weights are errors to the power of minus this."""
LEAST_AMPLITUDE = 1e-8
"""Amplitudes below this count as this in errors."""
NORM_ROUNDS = 3
"""Rounds from which the norms of updates are taken, for rules whose weights depend on them."""

USED = ("layer_energy", "client_rank", "cohort", "dropped", "client_weight", "update_energy")
"""Variables of a training run that a forecast uses."""


# Past rounds of a run


def past_of(dataset: xr.Dataset, last: int) -> Past:
    """Return amplitudes and multipliers of rounds 0 to `last` of one run.

    Args:
        dataset: a training run, dimension `seed` of length 1.
        last: the last round that is used.
    """
    run = dataset.sel(round=slice(0, last))
    energy = by_partition(run.layer_energy.isel(seed=0))
    amplitude = energy.transpose("round", "layer", "partition").values ** 0.5
    rule = rule_of(dataset)
    weights = _slot_weights(run, rule)
    carriers = slot_ranks(run).values[0][..., None] >= dataset.level.values
    carried = (weights[..., None] * carriers[:, None]).sum(2)
    total = weights.sum(2)[..., None]
    coverage = np.where(total > 0, carried / np.where(total > 0, total, 1.0), 0.0)
    in_base = rule.space == "none" or rule.residual_in_base
    carried = rule.has_empty_partition_policy and dataset.attrs["empty_partition"] == "carry"
    return Past(amplitude, multipliers(rule, coverage)[1:], in_base, carried)


def multipliers(rule: AggregationRule, coverage: Array) -> Array:
    """Return the rule's factor on a direction of each coverage."""
    return np.asarray(rule.multiplier(torch.from_numpy(np.ascontiguousarray(coverage))).numpy())


def _slot_weights(run: xr.Dataset, rule: AggregationRule) -> Array:
    """Return the weight of each slot, (round, layer, slot)."""
    shares = slot_weights(run).transpose("seed", "round", "slot").values[0]
    norms = run.update_energy.transpose("seed", "round", "layer", "slot").values[0] ** 0.5
    norms = np.nan_to_num(norms)
    if not rule.weights_from_norms:
        norms = np.ones_like(norms)
    elif not rule.options.get("data_weighted", False):
        shares = (shares > 0).astype(np.float64)
    return np.asarray(shares[:, None] * norms)


def federation_of(run: xr.Dataset, last: int) -> Federation:
    """Return the federation of a run with the ranks of its clients after a round."""
    ranks = run.client_rank.sel(round=last).values[0].tolist()
    samples = run.split_counts.sum("class").values[0].tolist() if "split_counts" in run else None
    size, sampling = (
        None if (value := run.attrs[name]) == "none" else value
        for name in ("cohort_size", "sampling")
    )
    return Federation(ranks, samples, None if size is None else int(size), sampling)


def future_multipliers(
    dataset: xr.Dataset, last: int, rounds: int, samples: int, rng: np.random.Generator
) -> Array:
    """Return multipliers of later rounds for cohorts drawn by the federation's law.

    Clients are weighted as in the average; under rules whose weights depend on the norms of the
    updates, each by the mean norm of its rank in the last rounds.

    Args:
        dataset: a training run, dimension `seed` of length 1.
        last: the last round that is used.
        rounds: number T of later rounds.
        samples: number S of draws; one with full participation.
        rng: source of randomness.

    Returns:
        Multipliers (S, T, L, H).
    """
    federation, rule = federation_of(dataset, last), rule_of(dataset)
    if federation.sampling == "full":
        samples = 1
    counts = draw_cohorts(federation, samples * rounds, rng)
    clients = np.arange(federation.num_clients)
    weights = federation.cohort_weights(np.broadcast_to(clients, counts.shape), counts)
    norms = np.ones((dataset.sizes["layer"], federation.num_clients))
    if rule.weights_from_norms:
        norms = _norms_by_client(dataset, last, federation)
        if not rule.options.get("data_weighted", False):
            weights = (weights > 0).astype(np.float64)
    each = weights[:, None] * norms
    carriers = np.asarray(federation.ranks)[:, None] >= dataset.level.values
    coverage = (each @ carriers) / each.sum(-1, keepdims=True)
    return multipliers(rule, coverage).reshape(samples, rounds, *coverage.shape[1:])


def _norms_by_client(dataset: xr.Dataset, last: int, federation: Federation) -> Array:
    """Return the mean norm of the last updates of clients of the same rank, (L, K)."""
    run = dataset.sel(round=slice(max(1, last - NORM_ROUNDS + 1), last))
    norms = run.update_energy.transpose("seed", "round", "layer", "slot").values[0] ** 0.5
    held = np.broadcast_to(slot_ranks(run).values[0][:, None], norms.shape)
    known = np.isfinite(norms)
    overall = np.nanmean(norms, axis=(0, 2))
    found = np.empty((norms.shape[1], federation.num_clients))
    for k, rank in enumerate(federation.ranks):
        own = known & (held == rank)
        count, total = own.sum((0, 2)), np.where(own, norms, 0.0).sum((0, 2))
        found[:, k] = np.where(count > 0, total / np.maximum(count, 1), overall)
    return found


# Rolling origins


def rolling_errors(past: Past, laws: Mapping[str, Law]) -> Array:
    """Return the error of each law from each earlier round.

    Args:
        past: the calibration's rounds, C of them.
        laws: the laws.

    Returns:
        `log10(measured / predicted)` of energies, (laws, origins, horizons, L, H), origins
        FIRST_ORIGIN to C - 1, horizons 1 to C - FIRST_ORIGIN; NaN beyond round C.
    """
    count = past.rounds - FIRST_ORIGIN
    shape = (len(laws), count, count, *past.amplitude.shape[1:])
    errors = np.full(shape, np.nan)
    for j, origin in enumerate(range(FIRST_ORIGIN, past.rounds)):
        early, later = past.until(origin), past.multiplier[None, origin:]
        measured = log_energy(past.amplitude[origin + 1 :])
        for i, law in enumerate(laws.values()):
            path = continued(law(early), early.amplitude[-1], later, early.round)[0]
            errors[i, j, : len(measured)] = measured - log_energy(path)
    return errors


def log_energy(amplitude: Array) -> Array:
    """Return log10 of the energy."""
    return np.asarray(2 * np.log10(np.maximum(amplitude, LEAST_AMPLITUDE)))


def law_weights(errors: Array, known: int | None = None) -> Array:
    """Return the weight of each law, (laws, L, H), which add up to 1.

    Errors are averaged over origins and horizons, in proportion to the horizon. That of a layer
    counts half, and the mean over layers half.

    Args:
        errors: result of `rolling_errors`.
        known: number of rounds after the first origin that are known; None for all.
    """
    count = errors.shape[1]
    known = count if known is None else known
    origins, horizons = np.nonzero(np.add.outer(np.arange(count), np.arange(1, count + 1)) <= known)
    if not len(horizons):
        return np.full((len(errors), *errors.shape[3:]), 1 / len(errors))
    size = np.average(np.abs(errors[:, origins, horizons]), axis=1, weights=horizons + 1)
    size = (size + size.mean(1, keepdims=True)) / 2
    weight = (size + LEAST_ERROR) ** -SHARPNESS
    return np.asarray(weight / weight.sum(0))


def combined_errors(errors: Array) -> Array:
    """Return the errors of the combination from each origin, with the weights known there.

    The logarithm of a geometric mean is the mean of the logarithms, and so is its error.

    Args:
        errors: result of `rolling_errors`.

    Returns:
        Errors (origins, horizons, L, H), NaN beyond the calibration.
    """
    weights = [law_weights(errors, known) for known in range(errors.shape[1])]
    return np.stack([(w[:, None] * errors[:, j]).sum(0) for j, w in enumerate(weights)])


def conformity_scores(errors: Array) -> Array:
    """Return absolute errors of the combination over their horizon per past round, (scores, H).

    The error of a rate that is estimated from t rounds and continued over h grows as h / t. The
    first origin has no weights yet and is left out.

    Args:
        errors: result of `combined_errors`.
    """
    origins = FIRST_ORIGIN + np.arange(len(errors))[:, None]
    scale = np.arange(1, errors.shape[1] + 1) / origins
    scores = (np.abs(errors) / scale[:, :, None, None])[1:]
    seen = np.isfinite(scores).all((2, 3))
    return np.asarray(scores[seen].reshape(-1, errors.shape[-1]))


# Calibration, and forecasts from it


@dataclass(frozen=True, eq=False)
class DriftCalibration:
    """What the first rounds of some runs say about the later ones.

    Args:
        rounds: number C of rounds.
        pasts: rounds 0 to C of each run.
        weights: weight of each law, (seed, law, layer, partition).
        drift: mean drift of the last rounds in units of the amplitude, (seed, layer, partition).
        scores: errors of earlier forecasts in decades of energy, over their horizon per past round,
            (seed, score, partition).
    """

    rounds: int
    pasts: tuple[Past, ...]
    weights: xr.DataArray
    drift: xr.DataArray
    scores: xr.DataArray


def calibrate(dataset: xr.Dataset, rounds: int) -> DriftCalibration:
    """Estimate the drift laws of a training run from its first rounds.

    Args:
        dataset: a training run, any number of seeds. Later rounds are not used.
        rounds: number C of rounds that calibrate, at least 6.

    Returns:
        The calibration of each run.

    Raises:
        InputError: for a dataset without the clients' updates, an allocation other than `svd`, or
            too few rounds.
    """
    count = check_positive_int("rounds", rounds)
    last = int(dataset["round"].values[-1])
    if not LEAST_CALIBRATION <= count <= last:
        raise expected("rounds", count, f"from {LEAST_CALIBRATION} to the run's {last} rounds")
    check_has(dataset, USED)
    allocation = dataset.attrs.get("allocation", "svd")
    if allocation != "svd":
        raise expected("allocation", allocation, "svd: of others it is not known who holds what")
    pasts = tuple(past_of(dataset.sel(seed=[seed]), count) for seed in dataset.seed.values)
    errors = [rolling_errors(past, LAWS) for past in pasts]
    coords = {
        "seed": dataset.seed.values,
        "law": list(LAWS),
        "layer": dataset.layer.values,
        "partition": np.unique(dataset.partition),
    }

    def labelled(values: list[Array], *dims: str) -> xr.DataArray:
        own = {name: coords[name] for name in ("seed", *dims) if name in coords}
        return xr.DataArray(np.stack(values), own, ("seed", *dims))

    drifts = [constant_drift(past)(0, past.amplitude[-1], past.multiplier[-1]) for past in pasts]
    return DriftCalibration(
        count,
        pasts,
        labelled([law_weights(e) for e in errors], "law", "layer", "partition"),
        labelled(drifts, "layer", "partition"),
        labelled([conformity_scores(combined_errors(e)) for e in errors], "score", "partition"),
    )


def forecast(
    calibration: DriftCalibration,
    dataset: xr.Dataset,
    rounds: int,
    *,
    samples: int = 400,
    confidence: float = 0.9,
    seed: int = 0,
) -> xr.Dataset:
    """Return forecasts of the energies of each layer and partition after the calibration.

    Args:
        calibration: calibration of the same run, or of a run of another rule with the same seeds
            and layers: what this rule would do with clients that train alike.
        dataset: the run to continue. Rounds after the calibration's are not used.
        rounds: number of rounds to forecast.
        samples: number of draws of later cohorts and of errors.
        confidence: confidence of each single central prediction interval, in (0, 1).
        seed: seed of all draws.

    Returns:
        `energy` (seed, layer, partition, horizon, statistic) and `total`, its sum over layers,
        (seed, partition, horizon, statistic). Horizons count from 1; statistics are `median`, `low`
        and `high`.

    Raises:
        InputError: if an argument is invalid, or the dataset has other seeds, layers or partitions
            than the calibration.
    """
    horizon = check_positive_int("rounds", rounds)
    count, level = check_positive_int("samples", samples), check_share("confidence", confidence)
    _check_same(calibration, dataset)
    found = []
    for j, number in enumerate(dataset.seed.values):
        draws = stream(seed, "forecast", int(number))
        past, later = _continuation(calibration, dataset, j, horizon, count, draws)
        weights = dict(zip(LAWS.values(), calibration.weights.values[j], strict=True))
        paths = _combined(weights, calibration.pasts[j], past, later)
        found.append(
            _summary(paths, calibration.scores.values[j], calibration, count, level, draws)
        )
    coords = {
        "seed": dataset.seed.values,
        "layer": dataset.layer.values,
        "partition": np.unique(dataset.partition),
        "horizon": np.arange(1, horizon + 1),
        "statistic": list(STATISTICS),
    }
    together = ("seed", "statistic", "horizon", "layer", "partition")
    energy = xr.DataArray(
        np.stack([e for e, _ in found]), {d: coords[d] for d in together}, together
    )
    dims = tuple(d for d in together if d != "layer")
    total = xr.DataArray(np.stack([t for _, t in found]), {d: coords[d] for d in dims}, dims)
    predicted = xr.Dataset({"energy": energy, "total": total})
    order = ("seed", "layer", "partition", "horizon", "statistic")
    return predicted.transpose(*order).assign_attrs(
        rule=rule_of(dataset).label,
        calibration_rounds=calibration.rounds,
        confidence=level,
        samples=count,
    )


def _check_same(calibration: DriftCalibration, dataset: xr.Dataset) -> None:
    check_has(dataset, USED)
    for name in ("seed", "layer"):
        known, given = calibration.weights[name].values, dataset[name].values
        if list(known) != list(given):
            raise expected("dataset", list(given), f"the {name}s of the calibration: {list(known)}")
    known, given = calibration.weights.partition.values, np.unique(dataset.partition)
    if list(known) != list(given):
        raise expected("dataset", list(given), f"the calibration's partitions: {list(known)}")
    last = int(dataset["round"].values[-1])
    if last < calibration.rounds:
        raise expected("dataset", f"{last} rounds", f"the calibration's {calibration.rounds}")


def forecast_by_law(
    calibration: DriftCalibration,
    dataset: xr.Dataset,
    rounds: int,
    law: Law,
    *,
    samples: int = 400,
    seed: int = 0,
) -> Array:
    """Return log10 of the median energies of a single law, (seed, T, L, H); see `forecast`."""
    _check_same(calibration, dataset)
    found = []
    for j, number in enumerate(dataset.seed.values):
        draws = stream(seed, "forecast", int(number))
        past, later = _continuation(calibration, dataset, j, rounds, samples, draws)
        paths = _combined(
            {law: np.ones(past.amplitude.shape[1:])}, calibration.pasts[j], past, later
        )
        found.append(np.median(paths, axis=0))
    return np.stack(found)


def _continuation(
    calibration: DriftCalibration,
    dataset: xr.Dataset,
    j: int,
    rounds: int,
    samples: int,
    rng: np.random.Generator,
) -> tuple[Past, Array]:
    """Return the past of run j, and multipliers of its later rounds (S, T, L, H)."""
    count = calibration.rounds
    run = dataset.isel(seed=[j]).sel(round=slice(0, count))
    return past_of(run, count), future_multipliers(run, count, rounds, samples, rng)


def _combined(weights: Mapping[Law, Array], calibrating: Past, past: Past, later: Array) -> Array:
    """Return log10 of the energies of a run's continuations, (S, T, L, H).

    Args:
        weights: laws with their weights (L, H).
        calibrating: the run from which the laws are estimated.
        past: the run that is continued, the same or one of another rule.
        later: multipliers of later rounds (S, T, L, H).
    """
    total = np.zeros(later.shape)
    for law, weight in weights.items():
        path = continued(law(calibrating), past.amplitude[-1], later, past.round)
        total += weight * log_energy(path)
    return total


def _summary(
    paths: Array,
    scores: Array,
    calibration: DriftCalibration,
    count: int,
    confidence: float,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Return statistics of each layer's energies (statistic, T, L, H), and of their sum."""
    scale = np.arange(1, paths.shape[1] + 1)[:, None, None] / calibration.rounds
    sign = rng.choice([-1.0, 1.0], size=(count, 1))
    error = sign * scores[rng.integers(len(scores), size=count)]
    drawn = paths[rng.integers(len(paths), size=count)] + error[:, None, None] * scale
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]

    def statistics(central: Array, spread: Array) -> Array:
        return np.concatenate([np.median(central, axis=0)[None], np.quantile(spread, ends, axis=0)])

    central, spread = 10.0**paths, 10.0**drawn
    return statistics(central, spread), statistics(central.sum(2), spread.sum(2))
