"""A verification report as Markdown, from its JSON form alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
DIGITS = 4
SYMBOLS = (
    "Symbols: h, a partition of the directions, the lowest shared by all clients; rho_l, the share "
    "of energy in the first l directions; w, a client's weight in a round, W the sum over those "
    "who carry a direction, H their number, pi the mean of W (coverage), P0 the chance that there "
    "is none; g and nu, mean and deviation of the gains by which clients change an amplitude x, c "
    "and tau those of the drifts that they add, delta^2 what drifts add to the energy a round; q "
    "and q', the factor of the mean energy a round, with equal gains of 1 and with any; m, the "
    "clients of a round; M, the amplitude that training aims at, T the local time, "
    "G = exp(2 M T), and omega what averaging leaves of an amplitude that is not trained."
)

# A claim on many quantities shows the one that comes closest to leaving its region.
VERDICT_MARK = {"supported": "✓ supported", "refuted": "✗ refuted", "undecided": "? undecided"}


def verdict_table(report: Record) -> str:
    """One row per claim: statement, prediction, measurement, p-value, verdict, negative control."""
    # Reports made before claims had families have no p-values: their column is left out.
    with_p = ["p (Holm)"] if "families" in report else []
    head = ["claim", "prediction", measured_head(report), *with_p, "verdict", "negative control"]
    lines = [table_row(head), "|" + "---|" * len(head)]
    for claim in report["claims"]:
        control = claim["negative_control"]
        cells = [
            f"**{claim['id']}** ({_nature(claim)}): {claim['statement']}",
            prediction_text(claim),
            measurement_text(claim),
            *([p_text(claim["p_holm"])] if with_p else []),
            VERDICT_MARK[claim["verdict"]],
            f"{control['verdict']}: {control['description']}",
        ]
        lines.append(table_row(cells))
    return "\n".join(lines)


def table_row(cells: Sequence[str]) -> str:
    """A row of a table; a bar within a cell, as in E[W | W > 0], would end it."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def measured_head(report: Record) -> str:
    """Heading of measured values: with what confidence their intervals hold, and which of them."""
    if "families" not in report:
        return f"measured, {percent(report['claims'][0]['confidence'])} interval"
    errors = {family["error"] for family in report["families"].values()}
    return f"measured, simultaneous {', '.join(percent(1 - error) for error in sorted(errors))}"


def percent(share: float) -> str:
    """A share as a percentage, to the digits that tell it from 100%."""
    return f"{100 * share:.6g}%"


def p_text(p: float) -> str:
    """A p-value to two digits."""
    return "<1e-6" if p < 1e-6 else f"{p:.2g}"


def families_text(report: Record) -> list[str]:
    """What holds over the claims together: families, their error, and each claim's part of it."""
    if "families" not in report:
        return [f"Intervals hold together at {percent(report['claims'][0]['confidence'])} a claim."]
    parts = [
        f"{family['claims']} {kind}s ({family['run']} in this report), error {family['error']:g} "
        f"in all, {family['error'] / family['claims']:.2g} for each claim over all its quantities "
        "and all its looks at the data"
        for kind, family in report["families"].items()
        if family["run"]
    ]
    lines = [
        f"Intervals hold together within a family of claims: {'; '.join(parts)}. "
        "Parts do not depend on how many claims are run. A claim is supported if every interval "
        "lies within its margin (two one-sided tests each) and the same check refutes its negative "
        "control, refuted if one lies wholly outside, undecided otherwise. Controls that are "
        "simulated anew have intervals of their own, which err in addition. Intervals of means "
        "are exact for normal runs only; with many runs they allow for skewness. "
        "p (Holm) is the least error of the family at which Holm's rule would still decide the "
        "claim as it is; claims not run count as undecided.",
        "In brackets, what a claim was tested on: spectral, amplitudes of directions alone; "
        "matrix, real factors through real aggregation; training, a model that is fine-tuned.",
    ]
    if report["quick_margin"] != 1:
        lines.append(
            f"Quick run: fewer runs, and margins of a width (±) {report['quick_margin']:g} times "
            "as wide as in a full run; the tables show the widened ones."
        )
    return lines


def _nature(claim: Record) -> str:
    """Fidelity of the check, and whether the claim is one that may fall."""
    suffix = ", conjecture" if claim["kind"] == "conjecture" else ""
    return f"{claim['fidelity']}{suffix}"


def worst(claim: Record) -> int:
    """Index of the quantity whose interval reaches furthest towards the end of its margin.

    That is to both sides, relatively or not as the margin is, or to the one that is not allowed;
    what has no finite interval reaches furthest of all.
    """
    margin = claim["margin"]
    absolute = margin.startswith("±") and not margin.endswith("%")
    reach = []
    for p, (low, high) in zip(claim["prediction"], claim["interval"], strict=True):
        if p is None or low is None or high is None:
            reach.append(float("inf"))
            continue
        sides = {"at least": [p - low], "at most": [high - p]}.get(margin, [high - p, p - low])
        reach.append(max(sides) / (1.0 if absolute else max(abs(p), 1e-300)))
    return reach.index(max(reach))


def shown(claim: Record) -> list[int]:
    """Quantities to show: all of a few, the worst of many."""
    count = len(claim["prediction"])
    return list(range(count)) if count <= 3 else [worst(claim)]


def prediction_text(claim: Record, indices: Sequence[int] | None = None) -> str:
    """Predicted values with their margin: `0.25, 0.04 (±2%)` or `at least 0.99`."""
    chosen = shown(claim) if indices is None else indices
    margin = claim["margin"]
    values = ", ".join(number(claim["prediction"][i], digits_for(margin)) for i in chosen)
    return f"{values} ({margin})" if margin.startswith("±") else f"{margin} {values}"


def measurement_text(claim: Record) -> str:
    """Measured values with their intervals, and the number of runs behind them."""
    digits = digits_for(claim["margin"])
    parts = [
        f"{number(claim['measurement'][i], digits)} {interval_text(claim['interval'][i], digits)}"
        for i in shown(claim)
    ]
    count = len(claim["prediction"])
    of = f"; furthest of {count}: {claim['quantities'][worst(claim)]}" if count > 3 else ""
    return f"{', '.join(parts)}; {claim['runs']:,} runs{of}"


def digits_for(margin: str) -> int:
    """Significant digits in which a relative margin, as `±2%`, can be seen; at least four."""
    if not margin.endswith("%"):
        return DIGITS
    relative = float(margin.strip("±%")) / 100
    return max(DIGITS, 1 - math.floor(math.log10(relative)))


def interval_text(ends: Sequence[float | None], digits: int = DIGITS) -> str:
    """An interval."""
    return f"[{number(ends[0], digits)}, {number(ends[1], digits)}]"


def number(value: float | None, digits: int = DIGITS) -> str:
    """A number to this many significant digits; plain zero for what is zero."""
    if value is None:
        return "not finite"
    return "0" if value == 0 else f"{value:.{digits}g}"


def digits_table(report: Record) -> str:
    """Accuracy, energy ratio and effective rank of the real runs, with intervals."""
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
        "controls refuted, as all must be. Predictions come from the closed forms and the scenario "
        "alone, and take nothing from what is measured.",
        *families_text(report),
        verdict_table(report),
    ]
    if report.get("digits"):
        row = report["digits"][0]
        effort = f"{row['runs']} seeds, {row['rounds']} rounds of {row['local_steps']} local steps"
        parts += [
            f"## Real fine-tuning on digits: {effort}",
            f"Intervals of this table each for itself at {percent(row.get('confidence', 0.99))}.",
            digits_table(report),
        ]
    parts += [
        "## Claims in full",
        SYMBOLS,
        *(_claim_section(claim, report["environment"]) for claim in claims),
    ]
    parts += ["## Environment", _environment(report["environment"])]
    return "\n\n".join(parts) + "\n"


def _claim_section(claim: Record, environment: Record) -> str:
    digits = digits_for(claim["margin"])
    control = claim["negative_control"]
    rows = "\n".join(
        table_row([name, number(p, digits), number(m, digits), interval_text(i, digits)])
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
        f"{_statistic(claim)}Margin: {claim['margin']}.{_p_values(claim)}\n\n"
        f"| quantity | prediction | measured | {percent(claim['confidence'])} interval |\n"
        f"|---|---|---|---|\n{rows}\n\n"
        f"Negative control, {control['description']}: {control['verdict']}.\n\n"
        f"Repeat: `fedlora-sim verify{effort} --claim {claim['id']}`"
    )


def _statistic(claim: Record) -> str:
    return f"Measured: {claim['statistic']}. " if "statistic" in claim else ""


def _p_values(claim: Record) -> str:
    if "p_holm" not in claim:
        return ""
    return f" p = {p_text(claim['p_value'])}, over its family {p_text(claim['p_holm'])} (Holm)."


def _environment(environment: Record) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in environment.items())
