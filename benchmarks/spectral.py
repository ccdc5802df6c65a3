"""Check and time the spectral fidelity at 1,000 seeds x 200 rounds x 100 clients.

Run as `python -m benchmarks.spectral`; writes results/bench/spectral.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.bars import Bar, decided
from benchmarks.timing import Times, hardware, side_by_side
from fedlora_sim import Scenario, parse_ranks, simulate
from fedlora_sim.reference.simulators import spectral_reference
from fedlora_sim.storage import result_file
from fedlora_sim.tolerances import relative
from fedlora_sim.version import versions

OUT = Path("results/bench/spectral.json")
SCENARIO = Scenario(parse_ranks("4x40,8x30,16x30"), cohort_size=10, rounds=200)
RULES = ("fedavg", "raflora", "zero_pad")
NOISE = {"gain_std": 0.1, "drift_std": 0.02}
SEEDS, REPEATS = 1_000, 7

# Lanes of the targets, with noise: name, changes of the scenario, and most normal draws per number.
LANES = {
    "all clients": ({"cohort_size": None}, 3.0),
    "10 of 100 clients, equal samples": ({}, 4.0),
    "10 of 100 clients, unequal samples": ({"num_samples": [1 + k % 7 for k in range(100)]}, 8.0),
}
DRAW = "PCG64 normal draw"

# What the cost grows with: quantity, its values, the run of a value, and the largest slope.
SLOPE_SEEDS, SLOPE_REPEATS = 400, 5
LINEAR, CONSTANT = 1.1, 0.15


def federation(clients: int) -> dict[str, object]:
    """Return clients of three ranks and unequal sample numbers."""
    return {
        "ranks": [(4, 8, 16)[k % 3] for k in range(clients)],
        "num_samples": [1 + k % 7 for k in range(clients)],
    }


def slope_run(quantity: str, value: int) -> Callable[[], object]:
    """Return a run in which one quantity has this value."""
    scenario, seeds = SCENARIO.replace(**NOISE, **federation(100), rounds=100), SLOPE_SEEDS
    if quantity == "seeds":
        seeds = value
    elif quantity == "rounds":
        scenario = scenario.replace(rounds=value)
    elif quantity == "clients of a cohort":
        # The rule whose clients are computed one by one.
        scenario = scenario.replace(cohort_size=value)
        return partial(simulate, scenario, rule="hetlora", seed=range(seeds // 4))
    else:
        scenario = scenario.replace(**federation(value))
    return partial(simulate, scenario, rule="raflora", seed=range(seeds))


SLOPES: Mapping[str, tuple[Sequence[int], float]] = {
    "seeds": ((200, 400, 800, 1600), LINEAR),
    "rounds": ((50, 100, 200, 400), LINEAR),
    "clients of a cohort": ((10, 20, 40, 80), LINEAR),
    "clients outside the cohort": ((50, 200, 800, 3200), CONSTANT),
}


def largest_difference(scenario: Scenario, rule: str) -> float:
    """Return the relative difference in norm from the reference, on one noise-free run."""
    fast = simulate(scenario, rule=rule, seed=0).energy.values[0]
    slow = spectral_reference(scenario, rule, seed=0) ** 2
    return float(np.linalg.norm(fast - slow) / np.linalg.norm(slow))


def check(scenario: Scenario, rule: str) -> None:
    """End the program if a run differs from the reference."""
    if (difference := largest_difference(scenario, rule)) > relative("reduction"):
        raise SystemExit(f"{rule}: differs from the reference by {difference:.2e}; not timed")


def measure(scenario: Scenario, rule: str) -> Times:
    """Return wall and CPU seconds: median, minimum and maximum of the repeats."""
    run = {rule: lambda: simulate(scenario, rule=rule, seed=range(SEEDS))}
    return side_by_side(run, REPEATS)[rule]


def lanes() -> list[dict[str, object]]:
    """Return the CPU time per run, round and direction of each lane, and that of a normal draw."""
    numbers = SEEDS * SCENARIO.rounds * SCENARIO.federation.r_max
    generator = np.random.default_rng(0)
    runs: dict[str, Callable[[], object]] = {DRAW: partial(generator.standard_normal, numbers)}
    for name, (changes, _) in LANES.items():
        scenario = SCENARIO.replace(**changes)
        check(scenario.replace(rounds=20), "raflora")
        runs[name] = partial(simulate, scenario.replace(**NOISE), rule="raflora", seed=range(SEEDS))
    found = side_by_side(runs, REPEATS)
    keys = ("cpu_median", "cpu_min", "cpu_max")
    return [
        {"lane": name, **{key: times[key] / numbers for key in keys}}
        for name, times in found.items()
    ]


def slopes() -> list[dict[str, object]]:
    """Return the CPU time for each value of a quantity, and the slope between their logarithms."""
    rows = []
    for quantity, (values, _) in SLOPES.items():
        runs = {str(value): slope_run(quantity, value) for value in values}
        times = side_by_side(runs, SLOPE_REPEATS)
        seconds = [times[name]["cpu_median"] for name in runs]
        slope = float(np.polyfit(np.log(values), np.log(seconds), 1)[0])
        rows.append({"quantity": quantity, "values": values, "seconds": seconds, "slope": slope})
    return rows


def bars(record: Mapping[str, list[dict[str, float]]]) -> list[dict[str, object]]:
    """Return the targets: time over that of a normal draw, and slopes."""
    times = {str(row["lane"]): row["cpu_median"] for row in record["lanes"]}
    found: list[Bar] = [
        (f"{name} / {DRAW}", "<=", most, times[name] / times[DRAW])
        for name, (_, most) in LANES.items()
    ]
    for row in record["slopes"]:
        quantity = str(row["quantity"])
        found.append((f"log-log slope in {quantity}", "<=", SLOPES[quantity][1], row["slope"]))
    return decided(found)


def main() -> None:
    """Check equality, then measure the times of all rules with one and two threads."""
    write, rows = result_file(OUT, "benchmarks.spectral"), []
    torch.set_num_threads(1)
    record: dict[str, object] = {"lanes": lanes(), "slopes": slopes()}
    record["bars"] = bars(record)  # type: ignore[arg-type]
    for bar in record["bars"]:  # type: ignore[attr-defined]
        print(bar)
    for rule in RULES:
        check(SCENARIO, rule)
        for noise in ({}, NOISE):
            if noise and rule == "zero_pad":
                continue  # no shortcut for different clients: takes minutes instead of seconds
            for threads in (1, 2):
                torch.set_num_threads(threads)
                times = measure(SCENARIO.replace(**noise), rule)
                rows.append({"rule": rule, "noise": bool(noise), "threads": threads, **times})
                spread = f"{times['wall_min']:.2f} to {times['wall_max']:.2f}"
                print(f"{rows[-1]}  ({spread} s)")
    record |= {
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
