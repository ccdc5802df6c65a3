"""How far a calibrated forecast is from what the later rounds of a run measured.

Error of a forecast: `log10(measured / predicted)` of a partition's energy in a layer, or in all
layers together; of a law, the predicted energy is its median, the best guess of one run. Energies
below what the run's arithmetic resolves count as that. Three forecasts are scored:

    theory       the linear model with the moments that the first rounds gave
    persistence  energies stay as they were at the end of the calibration
    pure         clients return what they were given, g = 1 and c = nu = tau = 0: suppression alone
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from analysis.real.calibration import Calibration, calibrate, pure_suppression
from analysis.real.forecast import STATISTICS, actual_cohorts, forecast
from analysis.real.updates import (
    amplitudes,
    by_partition,
    describe_updates,
    mean_leakage,
    rounding_floor,
    rule_of,
)
from fedlora_sim.errors import check_choice, check_positive_int, expected
from fedlora_sim.federation import Federation
from fedlora_sim.randomness import stream
from fedlora_sim.tolerances import relative

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
    """Calibrate on the first rounds of every run, foretell the others, and compare.

    Args:
        dataset: a training run.
        calibration_rounds: C: rounds 1 to C calibrate, and forecasts start from row C.
        calibration: moments found elsewhere for the same seeds and layers; None finds them here.
        pool: directions that share moments, see `calibrate`.
        cohorts: forecasts for `random` cohorts, or for the `actual` ones of the run.
        samples: runs of the Monte Carlo.
        confidence: of the prediction intervals, each for itself.
        seed: of all draws.

    Returns:
        `measured` energies (seed, layer, partition, horizon); of every `forecast` what was
        `predicted`, with its `statistic`, the `error`, and whether the interval `covered` what was
        measured, NaN without one; `total_...`, the same of all layers together; `leakage` (seed,
        layer, horizon) of the round's cohort; `outside` (seed, layer, partition, horizon), the
        share of directions whose amplitudes were not met in the calibration; and where recorded
        `angle`, same dimensions, the largest that the partition's leading subspace turned by in
        the round.

    Raises:
        ValueError: on a bad argument, or where nothing can be calibrated.
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
    """Calibrate on one rule's first rounds, and foretell every rule from its own state then.

    Args:
        calibrating: run of the rule that calibrates.
        by_rule: runs of the rules to foretell, of the same seeds and layers.
        calibration_rounds: as for `score`.
        pool: as for `score`.
        **options: further arguments of `score`.

    Returns:
        What `score` returns, by rule.
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
    """All forecasts of one run."""
    state = amplitudes(run).sel(round=first, drop=True).isel(seed=0, drop=True)

    def told(law: Calibration, samples: int) -> xr.Dataset:
        federation, policy = _federation(run, first), run.attrs["empty_partition"]
        given = {"empty_partition": policy, "samples": samples, **options}
        return forecast(law, state, rule_of(run), federation, rounds, **given)

    theory = told(calibration, samples)
    # Between known cohorts nothing is left to chance when clients all return what they were given.
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
    """The federation of a run with the ranks that its clients have after a round."""
    ranks = run.client_rank.sel(round=row).values[0].tolist()
    samples = run.split_counts.sum("class").values[0].tolist() if "split_counts" in run else None
    size, sampling = (
        None if (value := run.attrs[name]) == "none" else value
        for name in ("cohort_size", "sampling")
    )
    return Federation(ranks, samples, None if size is None else int(size), sampling)


def _measured(dataset: xr.Dataset, first: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Energies after the calibration by layer and partition, and each layer's rounding."""
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
        # An interval of no width, of a run in which nothing is random, holds its value rounded.
        held = (fact >= low * (1 - digits)) & (fact <= high * (1 + digits))
        held = held.where(low.notnull() & fact.notnull())
        median = law.sel(statistic="median", drop=True)
        scores[f"{prefix}measured"], scores[f"{prefix}predicted"] = seen, told
        with np.errstate(divide="ignore", invalid="ignore"):
            error = xr.apply_ufunc(np.log10, fact) - xr.apply_ufunc(np.log10, median)
        # An update of zero that was foretold as zero has no error, and no logarithm either.
        scores[f"{prefix}error"] = error.where((fact > 0) | (median != 0), 0.0)
        scores[f"{prefix}covered"] = held
    return scores


def _circumstances(
    dataset: xr.Dataset, first: int, calibration: Calibration
) -> dict[str, xr.DataArray]:
    """Leakage, strange amplitudes, and where recorded the turning of subspaces."""
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
