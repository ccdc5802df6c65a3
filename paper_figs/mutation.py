"""Planted faults in the documents: how many each part of the code has, and how many were caught."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Record = dict[str, Any]


def mutation_table(record: Record) -> str:
    """Return the counts of planted faults by folder, the survivors and the command.

    Args:
        record: what `tests/mutation/plant.py` wrote.
    """
    by_folder: dict[str, list[Record]] = defaultdict(list)
    for row in record["faults"]:
        by_folder[row["path"].rpartition("/")[0]].append(row)
    lines = [
        "| faults in | planted | caught | among the failed tests the expected one |",
        "|---|---|---|---|",
    ]
    for folder, rows in sorted(by_folder.items()):
        lines.append(f"| `{folder}` | {_counts(rows)} |")
    lines.append(f"| all | {_counts(record['faults'])} |")
    survived = [row["fault"] for row in record["faults"] if row["result"] == "survived"]
    names = "none" if not survived else "; ".join(survived)
    return "\n".join([*lines, "", f"Survivors: {names}. Repeat: `{record['command']}`."])


def _counts(rows: list[Record]) -> str:
    caught = sum(row["result"] == "caught" for row in rows)
    return f"{len(rows)} | {caught} | {sum(row['as_expected'] for row in rows)}"
