"""A verification report as Markdown, from its JSON form alone."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.claims.evidence import evidence_text
from analysis.formats import DIGITS, NONE, interval, markdown_table, number, percent

Record = Mapping[str, Any]
SYMBOLS = (
    r"Symbols: $h$, a partition of the directions, the lowest shared by all clients; $\rho_l$, "
    "the share of energy in the first $l$ directions; $t$, the number of rounds; $w$, a "
    "client's weight in a round, $W$ the sum over the carriers of a direction, $H$ their "
    r"number, $\pi$ the mean of $W$ (coverage), $P_0$ the probability that there is none; $g$ "
    r"and $\nu$, mean and standard deviation of the gains by which clients multiply an "
    r"amplitude $x$, $c$ and $\tau$ those of the drifts that they add, $\delta^2$ the energy "
    "that drifts add in a round; $q$ and $q'$, the factors of the mean energy per round, for "
    "gains of 1 and for any; $m$, the clients of a round; $M$, the target amplitude of the "
    r"training, $T$ the local time, $G = \exp(2 M T)$, and $\omega$ the factor of averaging on "
    "an amplitude that is not trained."
)

# Of many quantities, a claim shows the one closest to leaving its region.
CONTROLS = {
    "negative_control": "negative control",
    "near_control": "near control",
    "positive_control": "positive control",
}
"""The controls of a claim: key in a record, and name in tables."""
WANTED = {
    "negative_control": "refuted",
    "near_control": "refuted",
    "positive_control": "supported",
}
"""The verdict that each control must have."""
MARKS = {"supported": "✓", "refuted": "✗", "undecided": "?"}
VERDICT_MARK = {verdict: f"{mark} {verdict}" for verdict, mark in MARKS.items()}


def verdict_table(report: Record, proofs: str | None = None) -> str:
    """Return one row per claim: statement, prediction, measurement, p-value, verdict, controls.

    Args:
        report: the report.
        proofs: address of the page of theorems, to link to; None names them only.
    """
    # Reports from before claims had families have no p-values: the column is left out.
    with_p = ["p (Holm)"] if "families" in report else []
    # Claims of a study have no near controls.
    names = [name for name in CONTROLS if any(name in claim for claim in report["claims"])]
    heads = [CONTROLS[name] for name in names if name != "positive_control"]
    head = ["claim", "prediction", measured_head(report), *with_p, "verdict", "evidence", *heads]
    rows = []
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
            evidence_text(claim["id"], proofs),
            *controls,
        ]
        rows.append(cells)
    return markdown_table(head, rows)


def _control_cell(claim: Record, name: str) -> str:
    if name not in claim:
        return NONE
    control = claim[name]
    distance = f"; {distance_text(control)}" if name == "near_control" else ""
    return f"{control['verdict']}: {control['description']}{distance}"


def distance_text(control: Record) -> str:
    """Return the distance from the control, such as `3.1 to 3.4 margins away`."""
    distances = control["distance"]
    if None in distances:
        return "distance not finite"
    low, high = (number(end(distances), 2) for end in (min, max))
    return f"{low} margins away" if low == high else f"{low} to {high} margins away"


def measured_head(report: Record) -> str:
    """Return the heading of measured values, with the joint confidence of their intervals."""
    if "families" not in report:
        return f"measured, {percent(report['claims'][0]['confidence'])} interval"
    errors = {family["error"] for family in report["families"].values()}
    return f"measured, simultaneous {', '.join(percent(1 - error) for error in sorted(errors))}"


def p_text(p: float | None) -> str:
    """Return a p-value with two digits; a dash for a statement on every run, which has none."""
    if p is None:
        return NONE
    return "<1e-6" if p < 1e-6 else f"{p:.2g}"


def families_text(report: Record) -> list[str]:
    """Return the statement on families of claims, their error, and each claim's part of it."""
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
        "Controls that are simulated have separate intervals, whose errors come in addition. "
        "Intervals of means are exact for normal runs only; with many runs they allow for "
        "skewness. p (Holm) is the least error of the family at which Holm's rule would still "
        "decide the claim as it is; claims not run count as undecided.",
        "A claim about every run (of every federation, say) shows the median and the range of all "
        "runs: one run outside the margin, a counterexample, refutes it. It has no p-value.",
        "In brackets, what a claim was tested on: spectral, amplitudes of directions alone; "
        "matrix, real factors through real aggregation; training, a model that is fine-tuned.",
    ]


def _nature(claim: Record) -> str:
    """Return the fidelity of the check, and whether the claim is a conjecture."""
    suffix = ", conjecture" if claim["kind"] == "conjecture" else ""
    return f"{claim['fidelity']}{suffix}"


def worst(claim: Record) -> int:
    """Return the index of the quantity whose interval is closest to leaving its margin.

    Distances are relative or absolute as the margin is, on both sides or on the forbidden one. A
    quantity without a finite interval is the worst of all.
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
    """Return the quantities to show: all if there are few, otherwise the worst."""
    count = len(claim["prediction"])
    return list(range(count)) if count <= 3 else [worst(claim)]


def prediction_text(claim: Record, indices: Sequence[int] | None = None) -> str:
    """Return the predicted values with their margin: `0.25, 0.04 (±2%)` or `at least 0.99`."""
    chosen = shown(claim) if indices is None else indices
    margin = claim["margin"]
    values = ", ".join(number(claim["prediction"][i], digits_for(margin)) for i in chosen)
    return f"{values} ({margin})" if margin.startswith("±") else f"{margin} {values}"


def measurement_text(claim: Record) -> str:
    """Return the measured values with their intervals, and the number of runs."""
    digits = digits_for(claim["margin"])
    parts = [
        f"{number(claim['measurement'][i], digits)} {interval(claim['interval'][i], digits)}"
        for i in shown(claim)
    ]
    count = len(claim["prediction"])
    of = f"; furthest of {count}: {claim['quantities'][worst(claim)]}" if count > 3 else ""
    return f"{', '.join(parts)}; {_runs_text(claim)}{of}"


def _runs_text(claim: Record) -> str:
    """Return the number of runs and, for a statement on every run, of its counterexamples."""
    runs = f"{claim['runs']:,} runs"
    if "every_run" not in claim:
        return runs
    found = claim["every_run"]["counterexamples"]
    return f"{found:,} of {runs} outside" if found else f"all of {runs} inside"


def digits_for(margin: str) -> int:
    """Return the significant digits that resolve a relative margin such as `±2%`, at least four."""
    if not margin.endswith("%"):
        return DIGITS
    relative = float(margin.strip("±%")) / 100
    return max(DIGITS, 1 - math.floor(math.log10(relative)))


def digits_table(report: Record) -> str:
    """Return accuracy, energy ratio and effective rank of the fine-tuning runs, with intervals."""
    head = ("run", "client ranks", "rule", "learning rate", "accuracy", "rho", "effective rank")
    rows = []
    for row in report["digits"]:
        cells = [
            f"{number(row[name])} {interval(row[f'{name}_interval'])}"
            for name in ("accuracy", "rho", "effective_rank")
        ]
        rate = f"{row['learning_rate']:g}"
        rows.append([row["run"], row["ranks"], row["rule"], rate, *cells])
    return markdown_table(head, rows)


def to_markdown(report: Record) -> str:
    """Return the whole report."""
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
    head = ("quantity", "prediction", "measured", f"{percent(claim['confidence'])} interval")
    rows = [
        (name, number(p, digits), number(m, digits), interval(i, digits))
        for name, p, m, i in zip(
            claim["quantities"],
            claim["prediction"],
            claim["measurement"],
            claim["interval"],
            strict=True,
        )
    ]
    reason = f" ({claim['reason']})" if claim["reason"] else ""
    return (
        f"### {claim['id']}: {claim['verdict']}{reason}\n\n{claim['statement']}\n\n"
        f"Source: {claim['source']}. Assumes: {claim['assumptions']}. "
        f"Fidelity: {claim['fidelity']}; {claim['runs']:,} runs, {claim['seconds']:.1f} s. "
        f"Evidence: {evidence_text(claim['id'])}. "
        f"{_statistic(claim)}Margin: {claim['margin']}{_wide(claim)}.{_p_values(claim)}\n\n"
        f"{markdown_table(head, rows)}\n\n"
        f"{_every_run(claim)}{_controls(claim)}\n\n"
        f"Repeat: `{repeat_command(environment, claim['id'])}`"
    )


def repeat_command(environment: Record, claim: str | None = None) -> str:
    """Return the command that repeats a verification, or one of its claims."""
    words = ["fedlora-sim", "verify", "--seed", str(environment["seed"])]
    words += ["--quick"] if environment["quick"] else []
    return shlex.join([*words, *(["--claim", claim] if claim else [])])


def _every_run(claim: Record) -> str:
    """Return the finding of a statement on every run, with a counterexample to reproduce."""
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
    """Return one sentence per control."""
    return " ".join(
        f"{title.capitalize()}, {_control_sentence(claim[name])}."
        for name, title in CONTROLS.items()
        if name in claim
    )


def _control_sentence(control: Record) -> str:
    distance = f", {distance_text(control)}" if "distance" in control else ""
    return f"{control['description']}{distance}: {control['verdict']}"


def _wide(claim: Record) -> str:
    """Return the reason for a margin wider than rounding of a statement on every run."""
    return f", because {claim['wide_because']}" if "wide_because" in claim else ""


def _statistic(claim: Record) -> str:
    return f"Measured: {claim['statistic']}. " if "statistic" in claim else ""


def _p_values(claim: Record) -> str:
    if "p_holm" not in claim:
        return ""
    return f" p = {p_text(claim['p_value'])}, over its family {p_text(claim['p_holm'])} (Holm)."


def _environment(environment: Record) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in environment.items())


# Summary of a report: verdicts by theme


def by_theme(report: Record) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the parts of the report by theme: name, and a report of that theme's claims."""
    names = dict.fromkeys(claim["theme"] for claim in report["claims"])
    for name in names:
        yield name, {**report, "claims": [c for c in report["claims"] if c["theme"] == name]}


def theme_table(report: Record) -> str:
    """Return one row per theme: the verdicts of its theorems, conjectures and controls."""
    head = ("theme", "theorems", "conjectures", "negative controls", "near controls")
    rows = []
    for name, part in by_theme(report):
        kinds = (_verdicts(part, kind) for kind in ("theorem", "conjecture"))
        controls = (_refuted(part, control) for control in ("negative_control", "near_control"))
        rows.append([name, *kinds, *controls])
    return markdown_table(head, rows)


def _refuted(part: Record, control: str) -> str:
    """Return the number of refuted controls of one sort; a dash if there are none."""
    verdicts = [claim[control]["verdict"] for claim in part["claims"] if control in claim]
    return f"{verdicts.count('refuted')} of {len(verdicts)} refuted" if verdicts else NONE


def _verdicts(part: Record, kind: str) -> str:
    """Return the number of claims of a kind by verdict; a dash if there are none."""
    verdicts = [claim["verdict"] for claim in part["claims"] if claim["kind"] == kind]
    counts = [
        f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(sorted(verdicts)[::-1])
    ]
    return ", ".join(counts) if counts else NONE


def conjecture_table(report: Record) -> str:
    """Return the full table of conjectures."""
    chosen = [claim for claim in report["claims"] if claim["kind"] == "conjecture"]
    return verdict_table({**report, "claims": chosen})


def claim_tables(report: Record, proofs: str | None = None) -> str:
    """Return all claims, in one table per theme, with links to this page of theorems."""
    parts = by_theme(report)
    return "\n\n".join(f"### {name}\n\n{verdict_table(part, proofs)}" for name, part in parts)
