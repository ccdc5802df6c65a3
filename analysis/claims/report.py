"""A verification report as Markdown, from its JSON form alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
CONTROLS = {
    "negative_control": "negative control",
    "near_control": "near control",
    "positive_control": "positive control",
}
"""The controls of a claim by their key in a record, and what tables call them."""
WANTED = {
    "negative_control": "refuted",
    "near_control": "refuted",
    "positive_control": "supported",
}
"""The verdict that each control must have."""
VERDICT_MARK = {"supported": "✓ supported", "refuted": "✗ refuted", "undecided": "? undecided"}


def verdict_table(report: Record) -> str:
    """One row per claim: statement, prediction, measurement, p-value, verdict and controls."""
    # Reports made before claims had families have no p-values: their column is left out.
    with_p = ["p (Holm)"] if "families" in report else []
    # Claims of a study have no near controls.
    names = [name for name in CONTROLS if any(name in claim for claim in report["claims"])]
    heads = [CONTROLS[name] for name in names if name != "positive_control"]
    head = ["claim", "prediction", measured_head(report), *with_p, "verdict", *heads]
    lines = [table_row(head), "|" + "---|" * len(head)]
    for claim in report["claims"]:
        controls = [_control_cell(claim, name) for name in names if name != "positive_control"]
        if "positive_control" in claim:
            controls[0] += f"; positive control {_control_cell(claim, 'positive_control')}"
        cells = [
            f"**{claim['id']}** ({_nature(claim)}): {claim['statement']}",
            prediction_text(claim),
            measurement_text(claim),
            *([p_text(claim["p_holm"])] if with_p else []),
            VERDICT_MARK[claim["verdict"]],
            *controls,
        ]
        lines.append(table_row(cells))
    return "\n".join(lines)


def _control_cell(claim: Record, name: str) -> str:
    if name not in claim:
        return "–"
    control = claim[name]
    distance = f"; {distance_text(control)}" if name == "near_control" else ""
    return f"{control['verdict']}: {control['description']}{distance}"


def distance_text(control: Record) -> str:
    """How far what is measured is from what the control predicts: `3.1 to 3.4 margins away`."""
    distances = control["distance"]
    if None in distances:
        return "distance not finite"
    low, high = (number(end(distances), 2) for end in (min, max))
    return f"{low} margins away" if low == high else f"{low} to {high} margins away"


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


def p_text(p: float | None) -> str:
    """A p-value to two digits; a dash for a statement on every run, which has none."""
    if p is None:
        return "–"
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
    return [
        f"Intervals hold together within a family of claims: {'; '.join(parts)}. "
        "Parts do not depend on how many claims are run. A claim is supported if every interval "
        "lies within its margin (two one-sided tests each), the same check refutes its negative "
        "control, and it refutes its near control, which is 2 to 5 margins away, in every "
        "quantity. A claim is refuted if one interval lies wholly outside, and undecided "
        "otherwise; a conjecture is refuted only if the check supports its positive control. "
        "Controls that are simulated anew have intervals of their own, which err in addition. "
        "Intervals of means are exact for normal runs only; with many runs they allow for "
        "skewness. p (Holm) is the least error of the family at which Holm's rule would still "
        "decide the claim as it is; claims not run count as undecided.",
        "A claim about every run (of every federation, say) shows the median and the range of all "
        "runs: one run outside the margin, a counterexample, refutes it. It has no p-value.",
        "In brackets, what a claim was tested on: spectral, amplitudes of directions alone; "
        "matrix, real factors through real aggregation; training, a model that is fine-tuned.",
    ]


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
    return f"{', '.join(parts)}; {_runs_text(claim)}{of}"


def _runs_text(claim: Record) -> str:
    """The number of runs; of a statement on every run also the number of counterexamples."""
    runs = f"{claim['runs']:,} runs"
    if "every_run" not in claim:
        return runs
    found = claim["every_run"]["counterexamples"]
    return f"{found:,} of {runs} outside" if found else f"all of {runs} inside"


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
    controls = [
        f"{sum(verdict == wanted for verdict in verdicts)} of {len(verdicts)} {CONTROLS[name]}s "
        f"{wanted}"
        for name, wanted in WANTED.items()
        if (verdicts := [c[name]["verdict"] for c in claims if name in c])
    ]
    parts = [
        "# Verification report",
        f"{supported} of {len(claims)} claims supported; {', '.join(controls)}, as all must be. "
        "Predictions come from the closed forms and the scenario alone, and take nothing from what "
        "is measured.",
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
        f"{_statistic(claim)}Margin: {claim['margin']}{_wide(claim)}.{_p_values(claim)}\n\n"
        f"| quantity | prediction | measured | {percent(claim['confidence'])} interval |\n"
        f"|---|---|---|---|\n{rows}\n\n"
        f"{_every_run(claim)}{_controls(claim)}\n\n"
        f"Repeat: `fedlora-sim verify{effort} --claim {claim['id']}`"
    )


def _every_run(claim: Record) -> str:
    """What a statement on every run found, with a counterexample to repeat."""
    if "every_run" not in claim:
        return ""
    found = claim["every_run"]
    if "first" not in found:
        share = percent(found["rarer_than"])
        confidence = percent(claim["confidence"])
        return (
            f"No counterexample in {claim['runs']:,} runs: at {confidence} confidence fewer than "
            f"{share} of such runs are one.\n\n"
        )
    first = found["first"]
    values = ", ".join(number(value) for value in first["measured"])
    scenario = f", `{first['scenario']}`" if "scenario" in first else ""
    return (
        f"Counterexamples: {found['counterexamples']:,} of {claim['runs']:,} runs; the first is "
        f"run {first['run']}, seed {first['seed']}{scenario}, measured {values}.\n\n"
    )


def _controls(claim: Record) -> str:
    """A sentence for each control."""
    return " ".join(
        f"{title.capitalize()}, {_control_sentence(claim[name])}."
        for name, title in CONTROLS.items()
        if name in claim
    )


def _control_sentence(control: Record) -> str:
    distance = f", {distance_text(control)}" if "distance" in control else ""
    return f"{control['description']}{distance}: {control['verdict']}"


def _wide(claim: Record) -> str:
    """Why the margin of what holds in every run is not that of rounding."""
    return f", because {claim['wide_because']}" if "wide_because" in claim else ""


def _statistic(claim: Record) -> str:
    return f"Measured: {claim['statistic']}. " if "statistic" in claim else ""


def _p_values(claim: Record) -> str:
    if "p_holm" not in claim:
        return ""
    return f" p = {p_text(claim['p_value'])}, over its family {p_text(claim['p_holm'])} (Holm)."


def _environment(environment: Record) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in environment.items())


# A report in brief: verdicts by theme, for a page that is read before the report itself


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
