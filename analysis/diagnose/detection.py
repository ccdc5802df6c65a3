"""How often a diagnosis is right: simulated runs that collapse, and runs that do not.

`python -m analysis.diagnose.detection --out results/recorded/diagnose.json` records, for each
scenario, the number of FedAvg runs that are detected and of raFLoRA runs that give a false alarm
after any round up to round 10, and up to round 30.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.collapse.measure import Collapse
from analysis.diagnose.diagnosis import verdict_of
from analysis.formats import markdown_table
from analysis.stats.intervals import proportion_interval
from fedlora_sim import Scenario, simulate
from fedlora_sim.storage import write_json
from fedlora_sim.version import versions

RUNS = 200
FIRST_SEED = 1000
"""The thresholds of a diagnosis were chosen on the seeds 0 to 199; the record uses others."""
ROUNDS = (10, 30)
FIRST = 4
"""The first round after which a run is diagnosed."""
COLLAPSING, HEALTHY = "fedavg", "raflora"
DRIFT: Mapping[str, Any] = {
    "local_loss": "drift",
    "initial_amplitude": 0.001,
    "drift_mean": 0.02,
    "drift_std": 0.01,
    "gain_std": 0.05,
}
SCENARIOS: Mapping[str, Mapping[str, Any]] = {
    "cohorts of 4, direction-preserving clients": {"cohort_size": 4, "gain_std": 0.1},
    "cohorts of 4, noisy clients": {"cohort_size": 4, "gain_std": 0.3},
    "full participation, matrices": {
        "fidelity": "matrix",
        "gain_std": 0.1,
        "d_in": 24,
        "d_out": 24,
    },
    "full participation, Adam's drift from zero": DRIFT,
    "cohorts of 4, Adam's drift from zero": {**DRIFT, "cohort_size": 4},
}
"""Scenarios of 15 clients of ranks 4, 8 and 16, with the fields that they set."""
CONFIDENCE = 0.95

Row = dict[str, Any]


def alarms(scenario: Scenario, rule: str, seeds: Sequence[int]) -> list[int]:
    """Return the first round after which each run is said to collapse; 0: never."""
    energy = simulate(scenario, rule, seed=seeds).energy
    levels = scenario.federation.levels
    values = energy.transpose("seed", "round", "direction").values
    parts = np.add.reduceat(values, [0, *levels[:-1]], axis=-1)
    rounds = np.arange(scenario.rounds + 1)
    found = []
    for own in parts:
        first = 0
        for t in range(FIRST, scenario.rounds + 1):
            if verdict_of(rounds[: t + 1], own[: t + 1]) == Collapse.COLLAPSES:
                first = t
                break
        found.append(first)
    return found


def rows(runs: int = RUNS, names: Sequence[str] = tuple(SCENARIOS)) -> list[Row]:
    """Return detections and false alarms of each scenario."""
    found = []
    for name in names:
        fields = {"ranks": "4x5,8x5,16x5", "rounds": max(ROUNDS), **SCENARIOS[name]}
        scenario = Scenario.from_mapping(fields)
        row: Row = {"scenario": name, "runs": runs, "fields": dict(SCENARIOS[name])}
        row["first_seed"] = FIRST_SEED
        for rule, what in ((COLLAPSING, "detected"), (HEALTHY, "false_alarms")):
            first = np.array(alarms(scenario, rule, range(FIRST_SEED, FIRST_SEED + runs)))
            for last in ROUNDS:
                hit = ((first > 0) & (first <= last)).astype(np.float64)
                ends = proportion_interval(hit[:, None], 1 - CONFIDENCE)
                row[f"{what}_by_{last}"] = int(hit.sum())
                row[f"{what}_by_{last}_interval"] = [float(ends.low[0]), float(ends.high[0])]
        found.append(row)
    return found


def detection_table(found: Sequence[Row]) -> str:
    """Return the recorded rates as a Markdown table."""
    head = ("scenario", *(f"{x}, round {t}" for x in ("detected", "false alarms") for t in ROUNDS))
    return markdown_table(
        head,
        (
            [
                row["scenario"],
                *(
                    f"{row[f'{what}_by_{t}']} of {row['runs']}"
                    for what in ("detected", "false_alarms")
                    for t in ROUNDS
                ),
            ]
            for row in found
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Record the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file to write, in JSON")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each rule and scenario")
    asked = parser.parse_args(arguments)
    found = rows(asked.runs)
    print(detection_table(found))
    if asked.out is not None:
        write_json(asked.out, {"rows": json.loads(json.dumps(found)), "versions": versions()})


if __name__ == "__main__":
    main()
