"""A report in brief: verdicts by theme, for a page that is read before the report itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from analysis.report import Record, verdict_table


def by_theme(report: Record) -> Iterator[tuple[str, dict[str, Any]]]:
    """The report cut into themes, in its order: name, and a report of that theme's claims alone."""
    names = dict.fromkeys(claim["theme"] for claim in report["claims"])
    for name in names:
        yield name, {**report, "claims": [c for c in report["claims"] if c["theme"] == name]}


def theme_table(report: Record) -> str:
    """One row per theme: the verdicts of its theorems, conjectures and controls."""
    lines = [
        "| theme | theorems | conjectures | negative controls | near controls |",
        "|---|---|---|---|---|",
    ]
    for name, part in by_theme(report):
        kinds = (_verdicts(part, kind) for kind in ("theorem", "conjecture"))
        controls = (_refuted(part, control) for control in ("negative_control", "near_control"))
        lines.append(f"| {name} | {' | '.join((*kinds, *controls))} |")
    return "\n".join(lines)


def _refuted(part: Record, control: str) -> str:
    """How many controls of one sort were refuted; a dash where there are none."""
    verdicts = [claim[control]["verdict"] for claim in part["claims"] if control in claim]
    return f"{verdicts.count('refuted')} of {len(verdicts)} refuted" if verdicts else "–"


def _verdicts(part: Record, kind: str) -> str:
    """How many claims of a kind got which verdict; a dash where there are none."""
    verdicts = [claim["verdict"] for claim in part["claims"] if claim["kind"] == kind]
    counts = [
        f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(sorted(verdicts)[::-1])
    ]
    return ", ".join(counts) if counts else "–"


def conjecture_table(report: Record) -> str:
    """The claims that may fall, whole."""
    chosen = [claim for claim in report["claims"] if claim["kind"] == "conjecture"]
    return verdict_table({**report, "claims": chosen})


def claim_tables(report: Record) -> str:
    """Every claim, in one table per theme."""
    return "\n\n".join(f"### {name}\n\n{verdict_table(part)}" for name, part in by_theme(report))
