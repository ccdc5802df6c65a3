"""Federated LoRA rounds in Flower, FedJAX, pfl-research and plain PyTorch, compared with ours.

Run as `python -m benchmarks.rivals --environments DIR` after
`python -m benchmarks.rivals.install --environments DIR`; writes results/bench/rivals.json. Every
framework runs in a separate virtual environment and is not a dependency. All do the same rounds:
same weights, initial adapters, batches, order of samples, SGD, and averages of A and of B. A lane
is timed only if its final adapters equal the reference. A lane that is not installed, fails or
disagrees is shown with the reason.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rivals.compare import EXACT, TIMED, Case, Row, Runner, compare
from benchmarks.rivals.exchange import Exchange, Outcome
from benchmarks.rivals.install import ENVIRONMENTS
from benchmarks.rivals.lanes import LANES, OURS, Lane, run_lane
from benchmarks.timing import hardware
from fedlora_sim.errors import expected
from fedlora_sim.storage import result_file
from fedlora_sim.version import versions

OUT = Path("results/bench/rivals.json")
SIZES, COHORTS, THREADS = (64, 256), (1, 10, 100), (1, 2)
ROUNDS, REPEATS = 6, 3
COLUMNS = ("threads", "lane", "off, f64 / f32", "first round, s", "later rounds, s", "/ ours")


def runner(environments: Path, folder: Path) -> Runner:
    """Return a function that runs lanes in separate processes, with their files in `folder`."""

    def run(lane: Lane, exchange: Exchange, threads: int) -> Outcome:
        given, out = folder / "exchange.npz", folder / "outcome.npz"
        exchange.save(given)
        return run_lane(lane, given, out, threads=threads, environments=environments)

    return run


def table(rows: Sequence[Row]) -> Table:
    """Print one line per row of a case; a lane below 1 in the last column is faster than ours."""
    shown = Table(title="d = {d_model}, {cohort} client(s) a round".format(**rows[0]))
    for name in COLUMNS:
        shown.add_column(name, justify="left" if name == "lane" else "right")
    ours = {row["threads"]: row.get("round_median") for row in rows if row["lane"] == OURS.name}
    for row in rows:
        start = [str(row["threads"]), row["lane"]]
        if row["problem"] is None:
            shown.add_row(*start, *_times(row, ours.get(row["threads"])))
        else:
            shown.add_row(*start, row["problem"])
    return shown


def _times(row: Row, ours: float | None) -> list[str]:
    off = (row["relative_difference"].get(dtype) for dtype in (EXACT, TIMED))
    low, middle, high = (row[f"round_{which}"] for which in ("min", "median", "max"))
    return [
        " / ".join("-" if value is None else f"{value:.0e}" for value in off),
        f"{row['first_round_median']:.2f}",
        f"{middle:.3f} [{low:.3f}, {high:.3f}]",
        f"{middle / ours:.2f}" if ours else "",
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Run the command line.

    Raises:
        InputError: if there is nothing to time.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    parser.add_argument("--lanes", nargs="+", choices=[lane.name for lane in LANES])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="d of the model")
    parser.add_argument("--cohorts", type=int, nargs="+", default=list(COHORTS))
    parser.add_argument("--threads", type=int, nargs="+", default=list(THREADS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(words)
    for name, least in (("rounds", 2), ("repeats", 1)):
        if getattr(given, name) < least:
            raise expected(name, getattr(given, name), f"at least {least}")
    return given


def main(words: Sequence[str] | None = None) -> None:
    """Run all cases and write the record."""
    given, console = parse(words), Console()
    write = result_file(given.out, "benchmarks.rivals")
    lanes = [lane for lane in LANES if given.lanes is None or lane.name in given.lanes]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        run = runner(given.environments, Path(folder))
        for d in given.sizes:
            for cohort in given.cohorts:
                case = Case(d, cohort, given.rounds)
                found = compare(case, lanes, given.threads, given.repeats, run)
                console.print(table(found))
                rows += found
    record: dict[str, Any] = {"hardware": hardware(), "rounds": given.rounds, "rows": rows}
    write(json.dumps({**record, **versions()}, indent=1) + "\n")
    console.print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
