"""Check equality, then time all lanes on the same run in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rivals.exchange import Adapters, Exchange, Outcome, Settings
from benchmarks.rivals.lanes import PLAIN, Lane, LaneError, disagreement
from benchmarks.rivals.task import draw_exchange
from fedlora_sim.tolerances import relative

TIMED, EXACT = "float32", "float64"
Row = dict[str, Any]
Runner = Callable[[Lane, Exchange, int], Outcome]
"""Function that runs a lane on an exchange with a number of threads; raises `LaneError`."""


@dataclass(frozen=True)
class Case:
    """A comparison: width of the transformer, number of clients, number of rounds."""

    d_model: int
    cohort: int
    rounds: int

    def draw(self, dtype: str) -> Exchange:
        """Return the run in this dtype."""
        settings = Settings(d_model=self.d_model, dtype=dtype)
        return draw_exchange(settings, cohort=self.cohort, rounds=self.rounds)


def compare(
    case: Case, lanes: Sequence[Lane], threads: Sequence[int], repeats: int, run: Runner
) -> list[Row]:
    """Compare all lanes with plain PyTorch in float64; time those that agree, in float32.

    Args:
        case: the comparison.
        lanes: the lanes that take part.
        threads: numbers of threads, and of cores, to use.
        repeats: timed runs of every lane; lanes take turns, so that a busy moment affects all.
        run: function that runs a lane.

    Returns:
        One row per number of threads and lane: its times, or in `problem` why it has none.
    """
    exact, timed = case.draw(EXACT), case.draw(TIMED)
    reference = run(PLAIN, exact, 1).adapters
    records = []
    for lane in lanes:
        record = _Record(lane, reference, exact.adapters)
        record.attempt(exact if lane.float64 else timed, 1, run)
        records.append(record)
    rows = []
    for count in threads:
        again = [record.fresh() for record in records]
        for _ in range(repeats):
            for record in again:
                record.attempt(timed, count, run)
        shared = {"d_model": case.d_model, "cohort": case.cohort, "threads": count}
        rows += [{**shared, **record.row()} for record in again]
    return rows


class _Record:
    """The runs of one lane, each compared with the reference; it stops at the first failure.

    Args:
        lane: the lane.
        reference: final adapters of plain PyTorch in float64.
        start: initial adapters.
    """

    def __init__(self, lane: Lane, reference: Adapters, start: Adapters) -> None:
        self.lane, self.reference, self.start = lane, reference, start
        self.problem: str | None = None
        self.differences: dict[str, float] = {}
        self.runs: list[Outcome] = []

    def fresh(self) -> _Record:
        """Return the verdict so far, without the runs."""
        other = _Record(self.lane, self.reference, self.start)
        other.problem, other.differences = self.problem, dict(self.differences)
        return other

    def attempt(self, exchange: Exchange, threads: int, run: Runner) -> None:
        """Run the lane once more; keep the run if it agrees, otherwise the reason."""
        if self.problem is not None:
            return
        try:
            outcome = run(self.lane, exchange, threads)
        except LaneError as error:
            self.problem = str(error)
            return
        dtype = exchange.settings.dtype
        off = disagreement(outcome.adapters, self.reference, self.start)
        self.differences[dtype] = max(off, self.differences.get(dtype, 0.0))
        if off > relative("training", dtype):
            self.problem = f"disagrees: off by {off:.1e}, {relative('training', dtype):.0e} allowed"
        else:
            self.runs.append(outcome)

    def row(self) -> Row:
        """Return the record of the lane."""
        row: Row = {"lane": self.lane.name, "problem": self.problem}
        row |= {"relative_difference": self.differences}
        if self.problem is not None:
            return row
        later = np.concatenate([outcome.seconds[1:] for outcome in self.runs])
        return {
            **row,
            **_summary("first_round", np.array([x.seconds[0] for x in self.runs])),
            **_summary("round", later),
            "how": self.runs[-1].how,
            "versions": dict(self.runs[-1].versions),
        }


def _summary(kind: str, seconds: NDArray[np.float64]) -> dict[str, float]:
    """Return median and range of wall seconds."""
    return {
        f"{kind}_median": statistics.median(seconds.tolist()),
        f"{kind}_min": float(seconds.min()),
        f"{kind}_max": float(seconds.max()),
        f"{kind}s": len(seconds),
    }
