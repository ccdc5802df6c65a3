"""Forecast energies by the calibrated linear model with prediction intervals, and score forecasts.

Clients return `s = a x + b`, drawn every round from normal distributions with the calibrated
moments. The server applies the rule as declared (`direction_weights`, `space`, `empty_partition`),
direction by direction in a fixed basis. In product space

    E[x'] = (g E[x] + c) E[sum w],
    E[x'^2] = (g^2 E[(sum w)^2] + nu^2 E[sum w^2]) E[x^2] + 2 g c E[(sum w)^2] E[x]
              + tau^2 E[sum w^2] + c^2 E[(sum w)^2],

and the Monte Carlo simulation of this module has these means. It also supports all other rules with
an amplitude recursion, and gives the spread of a single run. Layers share their cohorts, as in a
run. A direction keeps its number, whereas an SVD would sort amplitudes that cross.

Reference: Wu et al., arXiv 2602.13486, App. B; the moments: our derivation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from analysis.studies.calibrate import (
    Calibration,
    Draws,
    amplitudes,
    by_partition,
    calibrate,
    describe_updates,
    mean_leakage,
    pure_suppression,
    rounding_floor,
    rule_of,
    slot_ranks,
    slot_weights,
)
from fedlora_sim.engines.draws import leading_directions
from fedlora_sim.engines.spectral import Cohorts, run_clients
from fedlora_sim.errors import check_choice, check_positive_int, check_share, expected
from fedlora_sim.federation import Federation, cohort_slots, draw_cohorts
from fedlora_sim.randomness import stream
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.scenario import Scenario
from fedlora_sim.tolerances import relative

Array = NDArray[np.float64]

STATISTICS = ("mean", "median", "low", "high")


@dataclass(frozen=True, eq=False)
class LinearClients:
    """Clients that change the amplitude x to `a x + b`, normal and drawn every round.

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
        """Return the amplitudes that the cohort of round t returns, (samples, m, r_max)."""
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
    """Return forecasts of the energies of each layer and partition in future rounds.

    Args:
        calibration: calibration of one run's clients, without the dimension `seed`.
        start: amplitudes sigma of the global update at the start, (layer, direction), with the
            coordinate `partition`.
        rule: the server rule.
        federation: the clients and the cohort law.
        rounds: number of rounds to forecast.
        empty_partition: `zero | carry | error`, for rules with such a policy.
        cohorts: the cohorts, if known (`actual_cohorts`); drawn at random when None.
        samples: number of Monte Carlo runs.
        confidence: confidence of each single central prediction interval, in (0, 1).
        certain: use the estimates as if exact, instead of draws from their distribution.
        seed: seed of all draws.

    Returns:
        `energy` (layer, partition, horizon, statistic) and `total` (partition, horizon, statistic),
        the sum over layers. Horizons count from 1; statistics are `mean`, `median`, `low` and
        `high` of the energy of one run. All NaN under a rule whose amplitudes do not follow from
        what clients return, with the reason in `attrs["reason"]`; NaN for a layer and pool without
        calibration.

    Raises:
        InputError: if an argument is invalid, or a direction has no contributor under
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
    return _labeled(energy, start, (1 - level) / 2).assign_attrs(
        rule=chosen.label, reason=reason or "", confidence=level, samples=count
    )


def no_recursion(rule: AggregationRule) -> str | None:
    """Return why a rule has no amplitude recursion; None if it has one.

    For rules that average factors (`zero_pad`, `rbla`, `hetlora`, `ffa`) rank positions are
    identified with singular directions, as everywhere in the theory.
    """
    if not rule.has_spectral_form:
        return f"{rule.label} is more than weights on amplitudes"
    if rule.residual_in_base and rule.space != "none":
        return f"how much of an amplitude {rule.label} holds in the base is not recorded"
    return None


def random_cohorts(
    federation: Federation, rounds: int, samples: int, r_max: int, rng: np.random.Generator
) -> Cohorts:
    """Return cohorts drawn by the federation's law: `samples` runs of some rounds.

    Args:
        federation: the clients and the cohort law.
        rounds: rounds per run.
        samples: number of runs.
        r_max: directions of the global update.
        rng: source of randomness.
    """
    if federation.sampling == "full":
        samples = rounds = 1  # one row represents all
    counts = draw_cohorts(federation, samples * rounds, rng)
    slots, drawn = cohort_slots(counts.reshape(samples, rounds, -1), federation.max_cohort)
    ranks = np.asarray(federation.ranks)
    return _cohorts(slots, federation.cohort_weights(slots, drawn), ranks[slots], ranks, r_max)


def actual_cohorts(dataset: xr.Dataset, rounds: slice) -> Cohorts:
    """Return the cohorts of one run, with their weights and ranks.

    Args:
        dataset: a training run, dimension `seed` of length 1.
        rounds: labels of the rounds, both ends included.

    Raises:
        InputError: if a round has no update.
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
    """Return the energies (samples, rounds, r_max) of one layer."""
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


def _labeled(energy: Array, start: xr.DataArray, tail: float) -> xr.Dataset:
    """Statistics of energies (layer, samples, horizon, direction)."""
    coords = {"layer": start.layer, "direction": start.direction, "partition": start.partition}
    dims = ("layer", "sample", "horizon", "direction")
    parts = by_partition(xr.DataArray(energy, coords, dims)).assign_coords(
        horizon=np.arange(1, energy.shape[2] + 1)
    )
    total = parts.sum("layer", skipna=False)
    return xr.Dataset({"energy": _statistics(parts, tail), "total": _statistics(total, tail)})


def _statistics(energy: xr.DataArray, tail: float) -> xr.DataArray:
    """Return the mean and quantiles over samples, along the last dimension `statistic`."""
    values = energy.transpose("sample", "layer", "partition", "horizon", missing_dims="ignore")
    ends = np.quantile(values.values, [0.5, tail, 1 - tail], axis=0)
    found = np.concatenate([values.values.mean(0)[None], ends])
    labels = values.isel(sample=0).expand_dims(statistic=list(STATISTICS))
    return labels.copy(data=found).transpose(..., "statistic")


# Scores: the error of calibrated forecasts on the later rounds of a run.
#
# The error of a forecast is `log10(measured / predicted)` of a partition's energy in a layer, or in
# all layers together; the prediction is the median, the best guess for one run. Energies below the
# resolution of the run's arithmetic count as that resolution. Three forecasts are scored:
#
# - theory: the linear model with the moments of the first rounds
# - persistence: energies keep their values at the end of the calibration
# - pure: clients return what they received, g = 1 and c = nu = tau = 0: suppression only

FORECASTS = ("theory", "persistence", "pure")
COHORTS = ("random", "actual")
SCORE_DIMS = ("seed", "forecast", "layer", "partition", "horizon", "statistic")


def score(
    dataset: xr.Dataset,
    calibration_rounds: int,
    *,
    calibration: Calibration | None = None,
    pool: str = "partition",
    cohorts: str = "random",
    samples: int = 400,
    confidence: float = 0.9,
    seed: int = 0,
) -> xr.Dataset:
    """Calibrate on the first rounds of each run, forecast the others, and compare.

    Args:
        dataset: a training run.
        calibration_rounds: C: rounds 1 to C calibrate, and forecasts start from row C.
        calibration: moments from other data for the same seeds and layers; None estimates them
            here.
        pool: directions that share moments, see `calibrate`.
        cohorts: forecasts for `random` cohorts, or for the `actual` ones of the run.
        samples: number of Monte Carlo runs.
        confidence: confidence of each single prediction interval.
        seed: seed of all draws.

    Returns:
        `measured` energies (seed, layer, partition, horizon); for each `forecast` the `predicted`
        values with their `statistic`, the `error`, and whether the interval `covered` the measured
        value, NaN without an interval; `total_...`, the same for all layers together; `leakage`
        (seed, layer, horizon) of the round's cohort; `outside` (seed, layer, partition, horizon),
        the share of directions whose amplitudes are outside the calibrated range; and where
        recorded `angle`, same dimensions, the largest rotation of the partition's leading subspace
        in the round.

    Raises:
        InputError: if an argument is invalid, or nothing can be calibrated.
    """
    first = check_positive_int("calibration_rounds", calibration_rounds)
    choice, last = check_choice("cohorts", cohorts, COHORTS), int(dataset["round"].values[-1])
    if first >= last:
        raise expected("calibration_rounds", first, f"fewer than the {last} rounds of the run")
    if calibration is None:
        calibration = calibrate(dataset, slice(1, first), pool)
    _check_seeds(dataset, calibration)
    predictions = []
    for number in dataset.seed.values:
        run = dataset.sel(seed=[number])
        known = actual_cohorts(run, slice(first + 1, last)) if choice == "actual" else None
        draws = int(stream(seed, "score", int(number)).integers(2**62))
        options: dict[str, Any] = {"cohorts": known, "confidence": confidence, "seed": draws}
        predictions.append(
            _predict(run, calibration.of_run(number), first, last - first, samples, options)
        )
    predicted = xr.concat(predictions, dim="seed").assign_coords(seed=dataset.seed)
    digits = relative("iteration", str(dataset.attrs["dtype"]))
    scores = _compare(predicted, *_measured(dataset, first), digits)
    found = _circumstances(dataset, first, calibration)
    scores = scores.assign(found).transpose(*SCORE_DIMS)
    return scores.assign_attrs(
        rule=rule_of(dataset).label,
        reason=predictions[0].attrs["reason"],
        calibration_rounds=first,
        cohorts=choice,
        confidence=confidence,
    )


def predict_every_rule(
    calibrating: xr.Dataset,
    by_rule: Mapping[str, xr.Dataset],
    calibration_rounds: int,
    *,
    pool: str = "partition",
    **options: Any,
) -> dict[str, xr.Dataset]:
    """Calibrate on one rule's first rounds, and forecast each rule from its own state at that time.

    Args:
        calibrating: run of the rule that calibrates.
        by_rule: runs of the rules to forecast, with the same seeds and layers.
        calibration_rounds: as for `score`.
        pool: as for `score`.
        **options: further arguments of `score`.

    Returns:
        Results of `score` by rule.
    """
    calibration = calibrate(calibrating, slice(1, calibration_rounds), pool)
    return {
        name: score(dataset, calibration_rounds, calibration=calibration, **options)
        for name, dataset in by_rule.items()
    }


def _predict(
    run: xr.Dataset,
    calibration: Calibration,
    first: int,
    rounds: int,
    samples: int,
    options: dict[str, Any],
) -> xr.Dataset:
    """Return all forecasts of one run."""
    state = amplitudes(run).sel(round=first, drop=True).isel(seed=0, drop=True)

    def told(law: Calibration, samples: int) -> xr.Dataset:
        federation, policy = _federation(run, first), run.attrs["empty_partition"]
        given = {"empty_partition": policy, "samples": samples, **options}
        return forecast(law, state, rule_of(run), federation, rounds, **given)

    theory = told(calibration, samples)
    # With known cohorts nothing is random if all clients return what they received.
    pure = told(pure_suppression(calibration), samples if options["cohorts"] is None else 1)
    now = by_partition(state**2)
    exact = xr.DataArray([1.0, 1.0, np.nan, np.nan], {"statistic": list(STATISTICS)}, ["statistic"])
    stays = xr.Dataset({"energy": now * exact, "total": now.sum("layer") * exact})
    stays = stays.expand_dims(horizon=theory.horizon)
    told_by = xr.concat(
        [theory, stays, pure],
        dim=xr.Variable("forecast", list(FORECASTS)),
        coords="minimal",
        compat="override",
    )
    return told_by.assign_attrs(reason=theory.attrs["reason"])


def _federation(run: xr.Dataset, row: int) -> Federation:
    """Return the federation of a run with the ranks of its clients after a round."""
    ranks = run.client_rank.sel(round=row).values[0].tolist()
    samples = run.split_counts.sum("class").values[0].tolist() if "split_counts" in run else None
    size, sampling = (
        None if (value := run.attrs[name]) == "none" else value
        for name in ("cohort_size", "sampling")
    )
    return Federation(ranks, samples, None if size is None else int(size), sampling)


def _measured(dataset: xr.Dataset, first: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Return energies after the calibration, and each layer's rounding level."""
    energy = dataset.layer_energy.sel(round=slice(first + 1, None))
    energy = energy.rename(round="horizon")
    energy = energy.assign_coords(horizon=np.arange(1, energy.sizes["horizon"] + 1))
    return by_partition(energy), rounding_floor(energy, dataset)


def _compare(
    predicted: xr.Dataset, measured: xr.DataArray, floor: xr.DataArray, digits: float
) -> xr.Dataset:
    pairs = {
        "": (predicted.energy, measured, floor),
        "total_": (predicted.total, measured.sum("layer"), floor.max("layer")),
    }
    scores = xr.Dataset()
    for prefix, (told, seen, lowest) in pairs.items():
        law, fact = (energy.clip(min=lowest) for energy in (told, seen))
        low, high = (law.sel(statistic=end, drop=True) for end in ("low", "high"))
        # An interval of zero width, of a run without randomness, contains its value up to rounding.
        held = (fact >= low * (1 - digits)) & (fact <= high * (1 + digits))
        held = held.where(low.notnull() & fact.notnull())
        median = law.sel(statistic="median", drop=True)
        scores[f"{prefix}measured"], scores[f"{prefix}predicted"] = seen, told
        with np.errstate(divide="ignore", invalid="ignore"):
            error = xr.apply_ufunc(np.log10, fact) - xr.apply_ufunc(np.log10, median)
        # An update of zero that was predicted as zero has no error, and no logarithm either.
        scores[f"{prefix}error"] = error.where((fact > 0) | (median != 0), 0.0)
        scores[f"{prefix}covered"] = held
    return scores


def _circumstances(
    dataset: xr.Dataset, first: int, calibration: Calibration
) -> dict[str, xr.DataArray]:
    """Return leakage, amplitudes outside the calibration, and rotation of subspaces if recorded."""
    after = {"round": slice(first + 1, None)}
    sigma = amplitudes(dataset).sel(after)
    least, greatest = (
        calibration.per_direction(calibration.estimates[name]) for name in ("least", "greatest")
    )
    strange = (sigma < least) | (sigma > greatest)
    found = {
        "leakage": mean_leakage(describe_updates(dataset).sel(after)),
        "outside": by_partition(strange) / by_partition(xr.ones_like(strange, dtype=float)),
    }
    if "angle" in dataset:
        angle = dataset.angle.sel(after).max(["side", "direction"])
        partitions = np.unique(dataset.partition)
        found["angle"] = angle.rename(level="partition").assign_coords(partition=partitions)
    return {
        name: values.rename(round="horizon").assign_coords(
            horizon=np.arange(1, values.sizes["round"] + 1)
        )
        for name, values in found.items()
    }


def _check_seeds(dataset: xr.Dataset, calibration: Calibration) -> None:
    given, known = (np.atleast_1d(x.seed).tolist() for x in (dataset, calibration.estimates))
    if given != known:
        raise expected("calibration", known, f"moments of the runs of seeds {given}")


# Summaries of scores over many runs

CIRCUMSTANCES = ("leakage", "angle", "outside")


def failures(scores: xr.Dataset) -> xr.Dataset:
    """Return the errors of forecasts by partition and horizon.

    Args:
        scores: results of `score`, of any number of runs.

    Returns:
        `error`, the median absolute `error` over runs and layers, and `coverage`, the share of
        intervals that contain the measured value, both (forecast, partition, horizon); `leakage`,
        `angle` and `outside` in the horizon's rounds, means over runs and layers.
    """
    over = ["seed", "layer"]
    table = {"error": abs(scores.error).median(over), "coverage": scores.covered.mean(over)}
    table |= {name: scores[name].mean(over) for name in CIRCUMSTANCES if name in scores}
    return xr.Dataset(table, attrs=scores.attrs)


def summarize(scores: xr.Dataset) -> dict[str, Any]:
    """Return a summary over all runs of a rule.

    Args:
        scores: results of `score`, of any number of runs.

    Returns:
        `runs`, their number, and the `reason` if the theory makes no prediction; for each forecast
        `error`, the median absolute log10 error over runs, layers, partitions and horizons, and
        `coverage` of the intervals, both with their range over runs, `error_range` and
        `coverage_range`; `by_partition`, the theory's coverage in each; `worst`, the partition and
        horizon of the theory's largest median error, with that error; None if it has no error. NaN
        where there is none.
    """
    row: dict[str, Any] = {"runs": scores.sizes["seed"], "reason": scores.attrs["reason"]}
    cells = ("layer", "partition", "horizon")
    for name in FORECASTS:
        one = scores.sel(forecast=name)
        row[name] = {
            "error": float(abs(one.error).median()),
            "error_range": _range(abs(one.error).median(cells)),
            "coverage": float(one.covered.mean()),
            "coverage_range": _range(one.covered.mean(cells)),
        }
    covered = scores.covered.sel(forecast="theory")
    row["by_partition"] = [
        {"partition": int(h), "coverage": float(covered.sel(partition=h).mean())}
        for h in covered.partition
    ]
    return row | {"worst": _worst(failures(scores).error.sel(forecast="theory"))}


def _range(values: xr.DataArray) -> list[float]:
    return [float(values.min()), float(values.max())]


def _worst(error: xr.DataArray) -> dict[str, Any] | None:
    """Return the cell (partition, horizon) of the largest error."""
    if not bool(error.notnull().any()):
        return None
    cell = error.isel(error.argmax(["partition", "horizon"]))
    place = {name: int(cell[name]) for name in ("partition", "horizon")}
    return place | {"error": float(cell)}
