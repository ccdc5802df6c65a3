"""Check and time the spectral fidelity at 1,000 seeds x 200 rounds x 100 clients.

Run as `python -m benchmarks.spectral`; writes results/bench/spectral.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import hardware, side_by_side
from fedlora_sim import Scenario, parse_ranks, simulate
from fedlora_sim.reference.simulators import spectral_reference
from fedlora_sim.storage import result_file
from fedlora_sim.tolerances import relative
from fedlora_sim.version import versions

OUT = Path("results/bench/spectral.json")
SCENARIO = Scenario(parse_ranks("4x40,8x30,16x30"), cohort_size=10, rounds=200)
RULES = ("fedavg", "raflora", "zero_pad")
NOISE = {"gain_std": 0.1, "drift_std": 0.02}
SEEDS, REPEATS = 1_000, 5


def largest_difference(rule: str) -> float:
    """Return the relative difference in norm from the reference, on one noise-free run."""
    fast = simulate(SCENARIO, rule=rule, seed=0).energy.values[0]
    slow = spectral_reference(SCENARIO, rule, seed=0) ** 2
    return float(np.linalg.norm(fast - slow) / np.linalg.norm(slow))


def measure(scenario: Scenario, rule: str) -> dict[str, float]:
    """Return wall and CPU seconds: median, minimum and maximum of the repeats."""
    run = {rule: lambda: simulate(scenario, rule=rule, seed=range(SEEDS))}
    return side_by_side(run, REPEATS)[rule]


def main() -> None:
    """Check equality, then measure the times of all rules with one and two threads."""
    write, rows = result_file(OUT, "benchmarks.spectral"), []
    for rule in RULES:
        difference = largest_difference(rule)
        if difference > relative("reduction"):
            raise SystemExit(f"{rule}: differs from the reference by {difference:.2e}; not timed")
        for noise in ({}, NOISE):
            if noise and rule == "zero_pad":
                continue  # no shortcut for different clients: takes minutes instead of seconds
            for threads in (1, 2):
                torch.set_num_threads(threads)
                times = measure(SCENARIO.replace(**noise), rule)
                rows.append({"rule": rule, "noise": bool(noise), "threads": threads, **times})
                spread = f"{times['wall_min']:.2f} to {times['wall_max']:.2f}"
                print(f"{rows[-1]}  ({spread} s)")
    record = {
        "seeds": SEEDS,
        "scenario": SCENARIO.to_attrs(),
        "rows": rows,
        "hardware": hardware(),
        **versions(),
    }
    write(json.dumps(record, indent=1, default=int) + "\n")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
