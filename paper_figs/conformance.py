"""The conformance suite in the documents: what it says of every rule, and what it catches."""

from __future__ import annotations

from typing import Any


def conformance_line(record: dict[str, Any]) -> str:
    """Laws, cases tried and broken rules caught, in a sentence.

    Args:
        record: what `tests/conformance/record.py` wrote.
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
    """One row per rule of ours: laws kept, seen to break, failed, untested."""
    lines = [
        "| rule | laws kept | declared absent, seen to break | failed | untested | cases |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in record["rules"].items():
        if own["own"]:
            counts = (own.get(s, 0) for s in ("passed", "expected", "failed", "skipped"))
            lines.append(f"| `{name}` | {' | '.join(map(str, counts))} | {own['examples']:,} |")
    return "\n".join(lines)


def broken_table(record: dict[str, Any]) -> str:
    """One row per broken rule: its bug, and the checks that it fails."""
    lines = ["| bug | fails |", "|---|---|"]
    for one in record["broken"].values():
        checks = ", ".join(one["fails"]) + ("" if one["as_named"] else " (not as named)")
        lines.append(f"| {one['bug'].replace('|', chr(92) + '|')} | {checks} |")
    return "\n".join(lines)
