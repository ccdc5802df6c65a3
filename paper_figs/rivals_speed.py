"""The table of federated frameworks side by side, from the record of the bench."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

OURS = "fedlora-sim"


def rivals_block(bench: dict[str, Any]) -> str:
    """A round in every framework as a multiple of ours; then who they are, and how far off."""
    rows: list[Row] = bench["rows"]
    lanes = list(dict.fromkeys(row["lane"] for row in rows))
    rivals = [lane for lane in lanes if lane != OURS]
    lines = [
        f"| model | clients a round | threads | {OURS}, a round | {' | '.join(rivals)} |",
        "|---|" + "---|" * (len(rivals) + 3),
    ]
    cases = dict.fromkeys((row["d_model"], row["cohort"], row["threads"]) for row in rows)
    for d, cohort, threads in cases:
        found = {
            row["lane"]: row
            for row in rows
            if (row["d_model"], row["cohort"], row["threads"]) == (d, cohort, threads)
        }
        own = found[OURS]
        cells = [f"d = {d}", str(cohort), str(threads), _seconds(own)]
        cells += [_multiple(found[lane], own) for lane in rivals]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_lanes(rows, lanes), "", f"Measured on: {bench['hardware']}."])


def _lanes(rows: list[Row], lanes: list[str]) -> list[str]:
    """Every lane's libraries, the way it ran, and its largest difference from plain PyTorch."""
    lines = [
        "| lane | how it runs | libraries | first round | off, float64 | off, float32 |",
        "|---|---|---|---|---|---|",
    ]
    for lane in lanes:
        own = [row for row in rows if row["lane"] == lane and row["problem"] is None]
        if not own:
            continue
        last = own[-1]
        libraries = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
        first = [row["first_round_median"] for row in own]
        start = f"{min(first):.2g} to {max(first):.2g} s"
        off = [_largest(own, dtype) for dtype in ("float64", "float32")]
        lines.append(f"| {' | '.join([lane, last['how'], libraries, start, *off])} |")
    return lines


def _largest(rows: list[Row], dtype: str) -> str:
    """A lane that does not compute in a dtype has a dash."""
    found = [row["relative_difference"].get(dtype) for row in rows]
    values = [value for value in found if value is not None]
    if not values:
        return "–"
    return f"{max(values):.0e}" if max(values) else "0"


def _seconds(row: Row) -> str:
    if row["problem"] is not None:
        return str(row["problem"])
    low, median, high = (row[f"round_{kind}"] for kind in ("min", "median", "max"))
    return f"{median:.3g} s [{low:.3g}, {high:.3g}]"


def _multiple(row: Row, own: Row) -> str:
    """A rival's median over ours, and its range over our median; below 1 it is the faster one."""
    if row["problem"] is not None or own["problem"] is not None:
        return str(row["problem"] or "–")
    low, median, high = (
        row[f"round_{kind}"] / own["round_median"] for kind in ("min", "median", "max")
    )
    return f"{median:.2g}x [{low:.2g}, {high:.2g}]"
