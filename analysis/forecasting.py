"""Forecast the later rounds of real runs from their first ones, under every rule, and score it.

`python -m analysis.forecasting digits` fine-tunes under all rules of a study and writes the scores
of forecasts and baselines. A stopped run continues with the next (rule, seed).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import xarray as xr

from analysis.studies.study import Study, load_study
from fedlora_sim import Scenario, simulate
from fedlora_sim.storage import load_dataset, save_dataset

HETEROGENEITY = "dirichlet 0.5"
CALIBRATION_ROUNDS, HORIZONS = 10, 15
SEEDS = {"digits": tuple(range(5001, 5007)), "agnews": tuple(range(5101, 5104))}
"""Seeds of the record; laws and settings were chosen on runs with other seeds."""
MODEL, DATA, TEST_DATA = "model", "data", "test_data"


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
        seconds = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
        }
        save_dataset(dataset.assign_attrs(seconds), path)
        line = f"run {number} of {len(runs)}: {run.rule}, seed {run.seed}"
        print(f"{line}, {seconds['seconds']:.0f} s", file=sys.stderr, flush=True)


def load_runs(runs: Sequence[ForecastRun], out: Path) -> dict[str, xr.Dataset]:
    """Return the runs of each rule, together along `seed`."""
    by_rule: dict[str, list[xr.Dataset]] = {}
    for run in runs:
        by_rule.setdefault(run.rule, []).append(load_dataset(out / run.file))
    return {rule: xr.concat(own, "seed", combine_attrs="override") for rule, own in by_rule.items()}


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


if __name__ == "__main__":
    main()
