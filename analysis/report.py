"""A verification report as Markdown, from its JSON form alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

# A claim on many quantities shows the one that comes closest to leaving its region.
VERDICT_MARK = {"supported": "✓ supported", "refuted": "✗ refuted", "undecided": "? undecided"}


def verdict_table(report: Record) -> str:
    """One row per claim: statement, prediction, measurement, verdict, negative control."""
    lines = [
        "| claim | prediction | measured, 99% interval | verdict | negative control |",
        "|---|---|---|---|---|",
    ]
    for claim in report["claims"]:
        control = claim["negative_control"]
        lines.append(
            f"| **{claim['id']}** ({_nature(claim)}): {claim['statement']} "
            f"| {prediction_text(claim)} | {measurement_text(claim)} "
            f"| {VERDICT_MARK[claim['verdict']]} | {control['verdict']}: {control['description']} |"
        )
    return "\n".join(lines)


def _nature(claim: Record) -> str:
    """Fidelity of the check, and whether the claim is one that may fall."""
    suffix = ", conjecture" if claim["kind"] == "conjecture" else ""
    return f"{claim['fidelity']}{suffix}"


def worst(claim: Record) -> int:
    """Index of the quantity whose interval reaches furthest from its prediction, relatively."""
    reach = [
        max(abs(high - p), abs(p - low)) / max(abs(p), 1e-300)
        for p, (low, high) in zip(claim["prediction"], claim["interval"], strict=True)
    ]
    return reach.index(max(reach))


def shown(claim: Record) -> list[int]:
    """Quantities to show: all of a few, the worst of many."""
    count = len(claim["prediction"])
    return list(range(count)) if count <= 3 else [worst(claim)]


def prediction_text(claim: Record, indices: Sequence[int] | None = None) -> str:
    """Predicted values with their margin: `0.25, 0.04 (±2%)` or `at least 0.99`."""
    chosen = shown(claim) if indices is None else indices
    values = ", ".join(number(claim["prediction"][i]) for i in chosen)
    margin = claim["margin"]
    return f"{values} ({margin})" if margin.startswith("±") else f"{margin} {values}"


def measurement_text(claim: Record) -> str:
    """Measured values with their intervals, and the number of runs behind them."""
    parts = [
        f"{number(claim['measurement'][i])} {interval_text(claim['interval'][i])}"
        for i in shown(claim)
    ]
    count = len(claim["prediction"])
    of = f"; furthest of {count}: {claim['quantities'][worst(claim)]}" if count > 3 else ""
    return f"{', '.join(parts)}; {claim['runs']:,} runs{of}"


def interval_text(ends: Sequence[float], digits: int = 4) -> str:
    """An interval."""
    return f"[{number(ends[0], digits)}, {number(ends[1], digits)}]"


def number(value: float, digits: int = 4) -> str:
    """A number to this many significant digits; plain zero for what is zero."""
    return "0" if value == 0 else f"{value:.{digits}g}"


def digits_table(report: Record) -> str:
    """Accuracy, energy ratio and effective rank of the real runs, with 99% intervals."""
    lines = [
        "| run | client ranks | rule | learning rate | accuracy | rho | effective rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["digits"]:
        cells = [
            f"{number(row[name])} {interval_text(row[f'{name}_interval'])}"
            for name in ("accuracy", "rho", "effective_rank")
        ]
        name, rate = row["run"], f"{row['learning_rate']:g}"
        lines.append(f"| {name} | {row['ranks']} | {row['rule']} | {rate} | {' | '.join(cells)} |")
    return "\n".join(lines)


def to_markdown(report: Record) -> str:
    """The whole report."""
    claims = report["claims"]
    supported = sum(c["verdict"] == "supported" for c in claims)
    refuted = sum(c["negative_control"]["verdict"] == "refuted" for c in claims)
    parts = [
        "# Verification report",
        f"{supported} of {len(claims)} claims supported; {refuted} of {len(claims)} negative "
        "controls refuted, as they must be. Predictions were made before the runs; intervals hold "
        "together at 99% per claim, over all its quantities and all its looks at the data.",
        verdict_table(report),
    ]
    if report.get("digits"):
        row = report["digits"][0]
        effort = f"{row['runs']} seeds, {row['rounds']} rounds of {row['local_steps']} local steps"
        parts += [
            f"## Real fine-tuning on digits: {effort}",
            digits_table(report),
        ]
    parts += [
        "## Claims in full",
        *(_claim_section(claim, report["environment"]) for claim in claims),
    ]
    parts += ["## Environment", _environment(report["environment"])]
    return "\n\n".join(parts) + "\n"


def _claim_section(claim: Record, environment: Record) -> str:
    control = claim["negative_control"]
    rows = "\n".join(
        f"| {name} | {number(p)} | {number(m)} | {interval_text(i)} |"
        for name, p, m, i in zip(
            claim["quantities"],
            claim["prediction"],
            claim["measurement"],
            claim["interval"],
            strict=True,
        )
    )
    reason = f" ({claim['reason']})" if claim["reason"] else ""
    effort = f" --seed {environment['seed']}{' --quick' if environment['quick'] else ''}"
    return (
        f"### {claim['id']}: {claim['verdict']}{reason}\n\n{claim['statement']}\n\n"
        f"Source: {claim['source']}. Assumes: {claim['assumptions']}. "
        f"Fidelity: {claim['fidelity']}; {claim['runs']:,} runs, {claim['seconds']:.1f} s. "
        f"Margin: {claim['margin']}.\n\n"
        f"| quantity | prediction | measured | 99% interval |\n|---|---|---|---|\n{rows}\n\n"
        f"Negative control, {control['description']}: {control['verdict']}.\n\n"
        f"Repeat: `fedlora-sim verify{effort} --claim {claim['id']}`"
    )


def _environment(environment: Record) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in environment.items())
