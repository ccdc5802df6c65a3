"""The tests of faults in the documents: promises, how they are tested, and what was found."""

from __future__ import annotations

from typing import Any


def faults_table(record: dict[str, Any]) -> str:
    """One row per promise.

    Args:
        record: what `tests/faults/record.py` wrote.
    """
    lines = ["| promise | tested in `tests/faults` by | tried | result |", "|---|---|---|---|"]
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
        lines.append(f"| {promise} | {', '.join(tests)} | {tried} | {result} |")
    return "\n".join([*lines, "", f"Repeat: `{record['command']}`."])
