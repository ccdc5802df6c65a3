"""Time one local step of a cohort: the package, one large batch, one client after the other.

Run as `python -m benchmarks.training [--device cuda]`; writes results/bench/training.json
(training-cuda.json). A two-layer transformer, LoRA of rank 16 on q, v and both maps of the MLP, 8
samples per client, Adam, float32. Before timing, each lane takes three steps, and its adapters are
compared with those of a loop over the clients, for small cohorts in float64 too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.prefix_lane import prefix_cases
from benchmarks.rank_groups import Grouped
from benchmarks.timing import hardware, side_by_side
from benchmarks.training_bars import training_bars
from benchmarks.training_lanes import (
    BATCH,
    Case,
    Lane,
    Limit,
    Loop,
    Stacked,
    difference,
    image_task,
    make_case,
    trained,
)
from fedlora_sim.storage import result_file
from fedlora_sim.tolerances import relative
from fedlora_sim.version import versions

OUT = Path("results/bench")
PATCHES = {64: (4, 4), 256: (2, 2)}
"""Width of the model -> height and width of a token in pixels: 4 and 16 tokens per image."""
REPEATS = {64: 21, 256: 5}
CLIENTS, THREADS = (8, 20, 50, 100), (1, 2)
RANK, MIXED_RANKS = 16, (4, 8, 16, 32)
STEPS = 3  # number of steps before adapters are compared
FLOAT64_UP_TO = 8  # number of clients; above, equality in float32 is enough
PREFIX_REPEATS = 7
LIBRARIES = ("scipy", "transformers")

Row = dict[str, Any]


def cases(d: int, clients: int, dtype: torch.dtype, device: str) -> tuple[Case, Case]:
    """Return cohorts of one rank and of four ranks."""
    task = image_task(d, PATCHES[d], dtype, device)
    mixed = sorted(MIXED_RANKS[i % len(MIXED_RANKS)] for i in range(clients))
    return make_case(task, (RANK,) * clients), make_case(task, tuple(mixed))


def errors(d: int, clients: int, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Return the relative differences in norm between the lanes' adapters and the loop's."""
    same, mixed = cases(d, clients, dtype, device)
    alone, alone_mixed = (trained(case, Loop(case), STEPS) for case in (same, mixed))
    found = {
        "stacked": difference(trained(same, Stacked(same), STEPS), alone),
        "padded": difference(trained(mixed, Stacked(mixed), STEPS), alone_mixed),
        "grouped": difference(trained(mixed, Grouped(mixed), STEPS), alone_mixed),
    }
    check(found, dtype)
    return found


def one_size(d: int, clients: int, device: str, repeats: int) -> list[Row]:
    """Time one step of each lane in float32."""
    same, mixed = cases(d, clients, torch.float32, device)
    lanes: dict[str, Lane] = {
        "stacked": Stacked(same),
        "limit": Limit(same),
        "loop": Loop(same),
        "padded": Stacked(mixed),
        "grouped": Grouped(mixed),
    }
    index = same.batches(1)[0]
    steps = {name: partial(lane.step, index) for name, lane in lanes.items()}
    times = side_by_side(steps, repeats, device)
    size = {"d": d, "clients": clients, **setting(device)}
    return [{**size, "lane": name, **times[name]} for name in lanes]


def prefix_rows(device: str, repeats: int) -> list[Row]:
    """Time a step on the whole encoder and on the part after its cached prefix."""
    found = prefix_cases(torch.float32, device)
    index = found["whole"].batches(1)[0]
    steps = {name: partial(Stacked(case).step, index) for name, case in found.items()}
    times = side_by_side(steps, repeats, device)
    size = {"samples": index.numel(), **setting(device)}
    return [{**size, "lane": name, **times[name]} for name in found]


def setting(device: str) -> Row:
    """Return numbers of threads and clocks; with several threads CPU time includes waiting."""
    threads = torch.get_num_threads()
    return {"threads": threads, "clock": "cpu" if device == "cpu" and threads == 1 else "wall"}


def prefix_error(dtype: torch.dtype, device: str) -> float:
    """Return the relative difference in norm of the adapters with and without a cached prefix."""
    found = prefix_cases(dtype, device)
    ends = {name: trained(case, Stacked(case), STEPS) for name, case in found.items()}
    apart = difference(ends["cached"], ends["whole"])
    check({"cached": apart}, dtype)
    return apart


def check(found: dict[str, float], dtype: torch.dtype) -> None:
    """Refuse to time a wrong result."""
    bound = relative("factorization", dtype)
    for name, error in found.items():
        if not error <= bound:
            raise SystemExit(f"{name}: off by {error:.1e}, {bound:.0e} allowed; not timed")


def show(rows: list[Row]) -> None:
    """Print one line per measurement."""
    for row in rows:
        size = f"d={row['d']} K={row['clients']}" if "d" in row else "BERT"
        wall = f"wall {row['wall_median']:.4f} [{row['wall_min']:.4f}, {row['wall_max']:.4f}] s"
        lane = f"{size:>12} {row['threads']} thread(s) {row['lane']:8}"
        print(f"{lane}{wall}  CPU {row['cpu_median']:.4f} s", flush=True)


def equal_first(sizes: list[int], clients: list[int], device: str) -> list[Row]:
    """Return the largest difference of each lane by dtype."""
    found: dict[tuple[str, str], float] = {}
    for dtype in (torch.float32, torch.float64):
        kind = str(dtype).removeprefix("torch.")
        found["cached", kind] = prefix_error(dtype, device)
        for d in sizes:
            for number in clients:
                if dtype == torch.float64 and number > FLOAT64_UP_TO:
                    continue
                for lane, error in errors(d, number, dtype, device).items():
                    found[lane, kind] = max(error, found.get((lane, kind), 0.0))
    return [{"lane": lane, "dtype": kind, "error": e} for (lane, kind), e in found.items()]


def measure(sizes: list[int], clients: list[int], device: str, repeats: int | None) -> Row:
    """Check equality, then measure times."""
    threads = THREADS if device == "cpu" else (1,)
    torch.set_num_threads(1)
    record: Row = {"device": device, "batch": BATCH, "rank": RANK, "rows": [], "prefix": []}
    record["errors"] = equal_first(sizes, clients, device)
    for number in threads:
        torch.set_num_threads(number)
        for d in sizes:
            for cohort in clients:
                show(rows := one_size(d, cohort, device, repeats or REPEATS[d]))
                record["rows"] += rows
        show(rows := prefix_rows(device, repeats or PREFIX_REPEATS))
        record["prefix"] += rows
    return record


def main() -> None:
    """Measure, compare with the targets, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", choices=list(PATCHES), default=[*PATCHES])
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--repeats", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    device = arguments.device
    out = arguments.out or OUT / ("training.json" if device == "cpu" else "training-cuda.json")
    write = result_file(out, "benchmarks.training")
    record = measure(arguments.sizes, arguments.clients, device, arguments.repeats)
    record |= {"hardware": hardware(device), "bars": training_bars(record)}
    for bar in record["bars"]:
        print(f"{bar['what']}: {bar['measured']:.3g}, wanted {bar['wanted']}: {bar['verdict']}")
    record |= {f"{name}_version": importlib.metadata.version(name) for name in LIBRARIES}
    write(json.dumps({**record, **versions()}, indent=1) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
