"""Tables of the documents on the checks: conformance, calibration, guarantees, planted faults."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from analysis.formats import NONE, Lines, markdown_table, number, percent

# The conformance suite: results for each rule, and the faults that it finds


def conformance_line(record: dict[str, Any]) -> str:
    """Return one sentence with the number of laws, cases and detected faulty rules.

    Args:
        record: written by `tests/conformance/record.py`.
    """
    broken, rules = record["broken"], record["rules"]
    caught = sum(one["as_named"] for one in broken.values())
    failed = sum(own.get("failed", 0) for own in rules.values())
    return (
        f"{record['laws']} laws, {record['tried']:,} cases tried. Of {len(broken)} deliberately "
        f"broken rules, bugs of public code among them, {caught} fail exactly the checks named for "
        f"their bug; {len(rules)} healthy ones fail {failed or 'none'}. Repeat: "
        f"`{record['command']}`."
    )


def suite_table(record: dict[str, Any]) -> str:
    """Return one row per built-in rule: numbers of laws by result."""
    head = ("rule", "laws kept", "declared absent, seen to break", "failed", "untested", "cases")
    lines: Lines = []
    for name, own in record["rules"].items():
        if own["own"]:
            counts = (own.get(s, 0) for s in ("passed", "expected", "failed", "skipped"))
            lines.append([f"`{name}`", *map(str, counts), f"{own['examples']:,}"])
    return markdown_table(head, lines)


def broken_table(record: dict[str, Any]) -> str:
    """Return one row per faulty rule: its fault, and the checks that it fails."""
    head = ("bug", "fails")
    lines: Lines = []
    for one in record["broken"].values():
        checks = ", ".join(one["fails"]) + ("" if one["as_named"] else " (not as named)")
        lines.append((one["bug"], checks))
    return markdown_table(head, lines)


# The examples of other frameworks


def frameworks_table(record: dict[str, Any]) -> str:
    """Return the share of energy above the lowest rank after each round.

    Args:
        record: written by `examples/record.py`.
    """
    rounds = sorted({int(t) for row in record["rows"] for t in row["shares"]})
    names = {"flwr": "Flower", "nvflare": "NVFlare"}
    lines: Lines = [
        (
            f"{names[row['framework']]} {row['version']}",
            f"`{row['rule']}`",
            *(f"{row['shares'][str(t)]:.4f}" if str(t) in row["shares"] else NONE for t in rounds),
        )
        for row in record["rows"]
    ]
    return markdown_table(("framework", "rule", *(f"round {t}" for t in rounds)), lines)


# Tables of the recorded calibration of estimators and verdicts

Record = Mapping[str, Any]
DIGITS = 2


def coverage_table(record: Record) -> str:
    """Return the rate of misses relative to the nominal one, by estimator, distribution and runs.

    A dash means that too few misses are expected.
    """
    errors = sorted({row["error"] for row in record["coverage"]}, reverse=True)
    head = ["estimator", "data", "runs", "samples", *(f"at {error:g}" for error in errors)]
    rows: dict[tuple[Any, ...], dict[float, str]] = {}
    for row in record["coverage"]:
        key = (row["estimator"], row["law"], f"{row['runs']:,}", f"{row['replicates']:,}")
        rows.setdefault(key, {})[row["error"]] = _ratio(row)
    lines = [[*key, *(own.get(error, NONE) for error in errors)] for key, own in rows.items()]
    return markdown_table(head, lines)


def margin_table(record: Record) -> str:
    """Return how often a claim at the end of its margin is supported, over all looks."""
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
    return markdown_table(head, lines)


def family_line(record: Record) -> str:
    """Return one sentence on the repetitions of the fast claims in which an interval missed."""
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
    """Return the skewness of the fast claims' data, and the size of Hall's correction."""
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
    return markdown_table(head, lines)


def ranks_table(record: Record) -> str:
    """Return the rank histograms: counts of true values by rank, and whether they are uniform."""
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
    return markdown_table(head, lines)


def _ratio(row: Record) -> str:
    """Return the rate over the nominal one, marked if it is significantly more than allowed."""
    if not row["resolved"]:
        return NONE
    return f"{number(row['ratio'], DIGITS)}{'' if row['calibrated'] else ' ✗'}"


# Guarantees: how they are tested, and findings


def faults_table(record: dict[str, Any]) -> str:
    """Return one row per guarantee.

    Args:
        record: written by `tests/faults/record.py`.
    """
    head = ("promise", "tested in `tests` by", "tried", "result")
    lines: Lines = []
    by_promise: dict[str, list[dict[str, Any]]] = {}
    for row in record["rows"]:
        by_promise.setdefault(row["promise"], []).append(row)
    for promise, rows in by_promise.items():
        tests = dict.fromkeys(f"`{row['test'].partition('::')[0]}`" for row in rows)
        counts: dict[str, int] = {}
        for row in rows:
            counts[row["kind"]] = counts.get(row["kind"], 0) + row["count"]
        tried = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        broken = sum(not row["passed"] for row in rows)
        result = f"broken in {broken} of {len(rows)} tests" if broken else "kept in all"
        lines.append((promise, ", ".join(tests), tried, result))
    return f"{markdown_table(head, lines)}\n\nRepeat: `{record['command']}`."


# Planted faults: number per part of the code, and how many were detected


def mutation_table(record: Record) -> str:
    """Return the counts of planted faults by folder, the survivors and the command.

    Args:
        record: written by `tests/mutation/plant.py`.
    """
    by_folder: dict[str, list[Record]] = defaultdict(list)
    for row in record["faults"]:
        by_folder[row["path"].rpartition("/")[0]].append(row)
    head = ("faults in", "planted", "caught", "among the failed tests the expected one")
    lines: Lines = []
    for folder, rows in sorted(by_folder.items()):
        lines.append([f"`{folder}`", *_counts(rows)])
    lines.append(["all", *_counts(record["faults"])])
    survived = [row["fault"] for row in record["faults"] if row["result"] == "survived"]
    names = "none" if not survived else "; ".join(survived)
    table = markdown_table(head, lines)
    return f"{table}\n\nSurvivors: {names}. Repeat: `{record['command']}`."


def _counts(rows: list[Record]) -> tuple[str, str, str]:
    caught = sum(row["result"] == "caught" for row in rows)
    return str(len(rows)), str(caught), str(sum(row["as_expected"] for row in rows))
