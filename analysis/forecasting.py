"""Forecast the later rounds of real runs from their first ones, under every rule, and score it.

`python -m analysis.forecasting digits` fine-tunes under all rules of a study and writes the scores
of forecasts and baselines. A stopped run continues with the next (rule, seed).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from analysis.studies.amplitude_laws import BASELINES, LAWS, OTHER_LAWS
from analysis.studies.findings import SHARE
from analysis.studies.forecast import (
    STATISTICS,
    calibrate,
    forecast,
    forecast_by_law,
    log_energy,
    past_of,
)
from analysis.studies.study import PATHS, Study, load_study
from analysis.studies.updates import by_partition
from fedlora_sim import Scenario, simulate
from fedlora_sim.storage import load_dataset, save_dataset, write_text
from fedlora_sim.version import versions

HETEROGENEITY = "dirichlet 0.5"
CALIBRATION_ROUNDS, HORIZONS = 10, 15
SEEDS = {"digits": tuple(range(5001, 5007)), "agnews": tuple(range(5101, 5104))}
"""Seeds of the record; laws and settings were chosen on runs with other seeds."""
MODEL, DATA, TEST_DATA = "model", "data", "test_data"
SECONDS = ("seconds", "cpu_seconds")
"""What each run took: on the clock, and of the processor."""


@dataclass(frozen=True)
class ForecastRun:
    """One run.

    Args:
        scenario: the scenario.
        rule: the server rule.
        seed: seed of the run and of its task.
    """

    scenario: Scenario
    rule: str
    seed: int

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.rule.replace(':', '-').replace('=', '-')}_{self.seed}.nc"


def forecast_runs(study: Study, seeds: Sequence[int]) -> Iterator[ForecastRun]:
    """Yield the runs of a record, all rules of a seed before the next seed.

    Only energies are forecast, so the model is evaluated once, at the end.
    """
    split = study.heterogeneity[HETEROGENEITY]
    for seed in seeds:
        own = {"task_seed": seed, "evaluate_every": study.scenario.rounds, **split}
        scenario = Scenario.from_mapping(asdict(study.scenario) | own)
        for rule in study.rules:
            yield ForecastRun(scenario, rule, seed)


def make_runs(runs: Sequence[ForecastRun], out: Path) -> None:
    """Make the missing runs, one file each with the seconds that it took."""
    for number, run in enumerate(runs, 1):
        path = out / run.file
        if path.exists():
            continue
        started, cpu = time.perf_counter(), time.process_time()
        dataset = simulate(run.scenario, rule=run.rule, seed=run.seed)
        took = (time.perf_counter() - started, time.process_time() - cpu)
        save_dataset(dataset.assign_attrs(dict(zip(SECONDS, took, strict=True))), path)
        line = f"run {number} of {len(runs)}: {run.rule}, seed {run.seed}"
        print(f"{line}, {took[0]:.0f} s", file=sys.stderr, flush=True)


def load_runs(
    runs: Sequence[ForecastRun], out: Path
) -> tuple[dict[str, xr.Dataset], dict[str, float]]:
    """Return the runs of each rule, together along `seed`, and the seconds that all took."""
    by_rule: dict[str, list[xr.Dataset]] = {}
    for run in runs:
        by_rule.setdefault(run.rule, []).append(load_dataset(out / run.file))
    every = [dataset for own in by_rule.values() for dataset in own]
    took = {name: sum(float(one.attrs[name]) for one in every) for name in SECONDS}
    together = {
        rule: xr.concat(own, "seed", combine_attrs="override") for rule, own in by_rule.items()
    }
    return together, took


# Scores: errors of forecasts in decades of energy, for each layer and partition

DRIFT = "drift laws"
FORECASTS = (DRIFT, *LAWS, *OTHER_LAWS, *BASELINES)
CELLS = ("seed", "layer", "partition", "horizon")
COUNTERFACTUAL = ("fedavg", "raflora")
"""Rules of which each is also forecast from the other's calibration."""


def score(
    dataset: xr.Dataset, horizons: int, *, calibrating: xr.Dataset | None = None
) -> xr.Dataset:
    """Return the errors of all forecasts of a rule's runs.

    Args:
        dataset: training runs.
        horizons: rounds after the calibration.
        calibrating: runs of another rule with the same seeds, whose first rounds calibrate the
            laws; None for the runs' own.

    Returns:
        `error`, `log10(measured / predicted)` of energies, (forecast, seed, layer, partition,
        horizon), and whether the interval of the drift laws `covered` the measured energy.
    """
    count = CALIBRATION_ROUNDS
    calibration = calibrate(dataset if calibrating is None else calibrating, count)
    pasts = [past_of(dataset.sel(seed=[s]), count + horizons) for s in dataset.seed.values]
    measured = np.stack([log_energy(past.amplitude[count + 1 :]) for past in pasts])
    told = forecast(calibration, dataset, horizons)
    order = ("seed", "horizon", "layer", "partition")
    middle, low, high = (
        np.log10(told.energy.sel(statistic=name).transpose(*order).values) for name in STATISTICS
    )
    predicted = [middle]
    laws = (*LAWS.values(), *OTHER_LAWS.values())
    predicted += [forecast_by_law(calibration, dataset, horizons, law) for law in laws]
    for baseline in BASELINES.values():
        own = [log_energy(baseline(past.until(count), horizons)) for past in pasts]
        predicted.append(np.stack(own))
    coords = {**{name: told[name].values for name in CELLS}, "forecast": list(FORECASTS)}
    dims = ("forecast", *order)
    error = xr.DataArray(measured - np.stack(predicted), {d: coords[d] for d in dims}, dims)
    inside = (measured >= low) & (measured <= high)
    covered = xr.DataArray(inside, {d: coords[d] for d in order}, order)
    found = xr.Dataset({"error": error, "covered": covered})
    return found.transpose("forecast", *CELLS).assign_attrs(told.attrs)


# Summaries with intervals over seeds, and the bars of the record

CONFIDENCE = 0.95
"""Of each interval over seeds."""
MOST_OF_PERSISTENCE = 0.5
LEAST_RULES = 7
COVERAGE = (0.85, 0.95)
"""Wanted share of measurements in the intervals of the forecasts, which are nominally 90%."""
Record = dict[str, Any]


def over_seeds(values: np.ndarray, limits: tuple[float, float] = (-np.inf, np.inf)) -> Record:
    """Return the mean over seeds with Student's interval, cut to what is possible.

    Args:
        values: one value per seed; a single one has no interval, None.
        limits: least and greatest possible value.
    """
    count = len(values)
    if count < 2:
        return {"value": float(values.mean()), "low": None, "high": None}
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * values.std(ddof=1) / count**0.5
    return {
        "value": float(values.mean()),
        "low": max(float(values.mean() - reach), limits[0]),
        "high": min(float(values.mean() + reach), limits[1]),
    }


def ratio_over_seeds(above: np.ndarray, below: np.ndarray) -> Record:
    """Return the geometric mean over seeds of the ratio of two errors, with its interval."""
    found = over_seeds(np.log(above) - np.log(below))
    return {name: None if v is None else float(np.exp(v)) for name, v in found.items()}


def summary(scores: xr.Dataset) -> Record:
    """Return the summary of a rule.

    Args:
        scores: result of `score`.

    Returns:
        `errors`: for each forecast the median absolute `error` over all cells, the same
        `by_partition`, and `each_seed`; `ratios` of the drift laws' error to each baseline's;
        `coverage` of their intervals and the same `by_partition`.
    """
    size = abs(scores.error)
    cells = [name for name in CELLS if name != "seed"]
    by_seed = size.median(cells)
    errors = {
        name: {
            "error": float(size.sel(forecast=name).median()),
            "by_partition": size.sel(forecast=name)
            .median(["seed", "layer", "horizon"])
            .values.tolist(),
            "each_seed": by_seed.sel(forecast=name).values.tolist(),
        }
        for name in FORECASTS
    }
    own = by_seed.sel(forecast=DRIFT).values
    ratios = {name: ratio_over_seeds(own, by_seed.sel(forecast=name).values) for name in BASELINES}
    covered = scores.covered
    return {
        "runs": scores.sizes["seed"],
        "errors": errors,
        "ratios": ratios,
        "coverage": over_seeds(covered.mean(cells).values, SHARE),
        "coverage_by_partition": covered.mean(["seed", "layer", "horizon"]).values.tolist(),
    }


def counterfactual_rows(runs: Mapping[str, xr.Dataset], horizons: int) -> list[Record]:
    """Return the summaries of forecasts of each rule from the calibration of the other one."""
    if not set(COUNTERFACTUAL) <= set(runs):
        return []
    pairs = (COUNTERFACTUAL, COUNTERFACTUAL[::-1])
    return [
        {
            "calibrated": calibrated,
            "rule": rule,
            **summary(score(runs[rule], horizons, calibrating=runs[calibrated])),
        }
        for calibrated, rule in pairs
    ]


def coverage_by_partition(scores: Mapping[str, xr.Dataset]) -> list[Record]:
    """Return the coverage in each partition, all rules together, with intervals over seeds."""
    covered = xr.concat([of.covered for of in scores.values()], "rule")
    share = covered.mean(["rule", "layer", "horizon"])
    return [
        {"partition": int(h), **over_seeds(share.sel(partition=h).values, SHARE)}
        for h in share.partition
    ]


def bars(rows: Sequence[Record], by_partition: Sequence[Record], other: Sequence[Record]) -> list:
    """Return what was wanted of the forecasts before the runs, and what was measured."""

    def error(row: Record, name: str) -> float:
        return float(row["errors"][name]["error"])

    half = [
        row["rule"]
        for row in rows
        if error(row, DRIFT) <= MOST_OF_PERSISTENCE * error(row, "persistence")
    ]
    best = [
        row["rule"] for row in rows if all(error(row, DRIFT) < error(row, b) for b in BASELINES)
    ]
    both = [rule for rule in half if rule in best]
    low, high = COVERAGE
    wanted = f"at least {LEAST_RULES} of 9 rules"
    found = [
        _bar("median error at most half of persistence's", wanted, half, len(half) >= LEAST_RULES),
        _bar("median error below every baseline's", wanted, best, len(best) >= LEAST_RULES),
        _bar("both", wanted, both, len(both) >= LEAST_RULES),
    ]
    for row in by_partition:
        inside = f"{100 * low:g} to {100 * high:g}% of the measurements"
        text = f"90% intervals in partition {row['partition']}"
        found.append(_bar(text, inside, row["value"], low <= row["value"] <= high))
    for row in other:
        text = f"{row['rule']} from the calibration of {row['calibrated']}"
        measured = error(row, DRIFT) / error(row, "persistence")
        found.append(_bar(text, "error below persistence's", measured, measured < 1))
    return found


def _bar(bar: str, wanted: str, measured: object, met: bool) -> Record:
    return {"bar": bar, "wanted": wanted, "measured": measured, "met": bool(met)}


def drawn(runs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Return measured and predicted energies of FedAvg and raFLoRA, layers together.

    Returns:
        `measured` (rule, seed, partition, round) and `predicted` (rule, seed, partition, round,
        statistic).
    """
    count, found = CALIBRATION_ROUNDS, []
    for rule in COUNTERFACTUAL:
        dataset = runs[rule]
        measured = by_partition(dataset.layer_energy).sum("layer")
        later = int(dataset["round"].values[-1]) - count
        told = forecast(calibrate(dataset, count), dataset, later).total.rename(horizon="round")
        told = told.assign_coords(round=told["round"] + count)
        found.append(xr.Dataset({"measured": measured, "predicted": told}))
    together = xr.concat(found, "rule").assign_coords(rule=list(COUNTERFACTUAL))
    dims = ("rule", "seed", "partition", "round", "statistic")
    return together.transpose(*dims).drop_attrs().reset_coords(drop=True)


def record(study: Study, runs: Mapping[str, xr.Dataset], took: Mapping[str, float]) -> Record:
    """Return the record of all runs of a study.

    Args:
        study: the study.
        runs: its runs by rule.
        took: what all runs took, one after the other, see `SECONDS`.
    """
    scores = {rule: score(dataset, HORIZONS) for rule, dataset in runs.items()}
    rows = [{"rule": rule, **summary(of)} for rule, of in scores.items()]
    partitions, other = coverage_by_partition(scores), counterfactual_rows(runs, HORIZONS)
    seeds = next(iter(runs.values())).seed.values.tolist()
    part = "" if len(seeds) == len(SEEDS[study.name]) else f" --seeds {len(seeds)}"
    fields = {name: value for name, value in asdict(study.scenario).items() if name not in PATHS}
    return {
        "study": study.name,
        "heterogeneity": HETEROGENEITY,
        "scenario": fields,
        "seeds": seeds,
        "calibration_rounds": CALIBRATION_ROUNDS,
        "horizons": HORIZONS,
        "forecasts": list(FORECASTS),
        "confidence": scores[rows[0]["rule"]].attrs["confidence"],
        "rows": rows,
        "coverage_by_partition": partitions,
        "counterfactual": other,
        "bars": bars(rows, partitions, other),
        **took,
        "command": f"python -m analysis.forecasting {study.name}{part}",
        "environment": versions(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a record from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.forecasting", description=__doc__.splitlines()[0]
    )
    parser.add_argument("study", choices=sorted(SEEDS))
    parser.add_argument("--out", type=Path, default=Path("results/forecasts"))
    parser.add_argument("--seeds", type=int, help="number of first seeds; all by default")
    for name in (MODEL, DATA, TEST_DATA):
        parser.add_argument(f"--{name.replace('_', '-')}", help="of the study on text")
    asked = parser.parse_args(arguments)
    given = {name: getattr(asked, name) for name in (MODEL, DATA, TEST_DATA)}
    study = load_study(asked.study, {name: value for name, value in given.items() if value})
    runs = list(forecast_runs(study, SEEDS[asked.study][: asked.seeds]))
    folder = asked.out / asked.study
    folder.mkdir(parents=True, exist_ok=True)
    make_runs(runs, folder)
    made, took = load_runs(runs, folder)
    found = record(study, made, took)
    text = json.dumps(found, indent=1, allow_nan=False, default=list)
    write_text(asked.out / f"{study.name}.json", text + "\n")
    save_dataset(drawn(made), asked.out / f"{study.name}.nc")
    for bar in found["bars"]:
        print("met   " if bar["met"] else "missed", bar["bar"], bar["measured"])


if __name__ == "__main__":
    main()
