"""Tables of the recorded calibration of estimators and verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.claims.report import number, percent, table_row

Record = Mapping[str, Any]
DIGITS = 2
NONE = "–"


def coverage_table(record: Record) -> str:
    """Return the rate of misses over the nominal one: a row per estimator, law and runs.

    A dash stands where too few misses are expected to tell.
    """
    errors = sorted({row["error"] for row in record["coverage"]}, reverse=True)
    head = ["estimator", "data", "runs", "samples", *(f"at {error:g}" for error in errors)]
    rows: dict[tuple[Any, ...], dict[float, str]] = {}
    for row in record["coverage"]:
        key = (row["estimator"], row["law"], f"{row['runs']:,}", f"{row['replicates']:,}")
        rows.setdefault(key, {})[row["error"]] = _ratio(row)
    lines = [[*key, *(own.get(error, NONE) for error in errors)] for key, own in rows.items()]
    return _table(head, lines)


def margin_table(record: Record) -> str:
    """Return how often a claim on the end of its margin is supported, over all its looks."""
    head = ("estimator", "data", "runs", "looks", "repetitions", "supported", "over e / 2")
    lines = [
        (
            row["estimator"],
            row["law"],
            f"{row['first']:,} to {row['cap']:,}",
            str(row["looks"]),
            f"{row['replicates']:,}",
            percent(round(row["supported"] / row["replicates"], 4)),
            _ratio(row),
        )
        for row in record["margin"]
    ]
    return _table(head, lines)


def family_line(record: Record) -> str:
    """Return in how many repetitions of the fast claims any interval missed, in a sentence."""
    found = record["family"]
    low, high = (percent(round(end * found["error"], 4)) for end in found["ratio_interval"])
    share = percent(found["missed"] / found["repetitions"])
    names = ", ".join(f"`{claim['claim']}` ({claim['runs']})" for claim in found["claims"])
    allowed = percent(round(found["error"], 6))
    return (
        f"In {found['missed']} of {found['repetitions']} repetitions ({share}, 95% interval {low} "
        f"to {high}) any interval of these claims missed its predicted value, where {allowed} are "
        f"allowed. Claims, with the runs of a repetition: {names}."
    )


def reach_table(record: Record) -> str:
    """Return the skewness of the fast claims' data, and how far Hall's correction has to go."""
    head = ("claim", "skewness", "runs of its first look", "error of an interval", "reach")
    lines = [
        (
            f"`{claim['claim']}`",
            number(claim["skewness"], DIGITS),
            f"{claim['first']:,}",
            f"{claim['each']:.1g}",
            number(claim["reach"], DIGITS),
        )
        for claim in record["family"]["claims"]
        if claim["skewness"] is not None
    ]
    return _table(head, lines)


def ranks_table(record: Record) -> str:
    """Return the rank histograms: counts of truths by place, and whether they are flat."""
    head = ("estimator", "data", "runs", "truths by place, 20 equal bins", "outer bins", "p, flat")
    lines = [
        (
            row["estimator"],
            row["law"],
            f"{row['runs']:,}",
            " ".join(map(str, row["counts"])),
            _ratio(row),
            f"{row['p_uniform']:.2g}",
        )
        for row in record["ranks"]
    ]
    return _table(head, lines)


def _ratio(row: Record) -> str:
    """Return the rate over the nominal one; marked where it is surely more than is allowed."""
    if not row["resolved"]:
        return NONE
    return f"{number(row['ratio'], DIGITS)}{'' if row['calibrated'] else ' ✗'}"


def _table(head: Any, rows: Any) -> str:
    return "\n".join([table_row(head), "|" + "---|" * len(head), *map(table_row, rows)])
