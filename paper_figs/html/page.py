"""The content of the page: headline, claims and themes of a report, prepared for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from analysis.claims.evidence import evidence
from analysis.claims.report import (
    CONTROLS,
    MARKS,
    WANTED,
    by_theme,
    digits_for,
    distance_text,
    families_text,
    measured_head,
    repeat_command,
    shown,
    worst,
)
from analysis.formats import plain
from paper_figs.html.charts import interval_html, interval_plot, number_html, p_html, sweep
from paper_figs.html.formulas import behind, proofs_of, typeset

Record = Mapping[str, Any]
SEEDS_APART = 1_000_000
"""Run i of base seed s has seed `s * 1_000_000 + i`."""

CONTROL_ROWS = 3
"""Number of quantities for which a control's measurement is shown."""


def headline(report: Record) -> str:
    """Return the outcome of a report in one or two sentences."""
    claims = report["claims"]
    said = [_kind_sentence(claims, kind) for kind in dict.fromkeys(c["kind"] for c in claims)]
    said += [_control_sentence(claims, name) for name in CONTROLS if any(name in c for c in claims)]
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _kind_sentence(claims: Sequence[Record], kind: str) -> str:
    verdicts = [claim["verdict"] for claim in claims if claim["kind"] == kind]
    counts = {verdict: verdicts.count(verdict) for verdict in MARKS if verdict in verdicts}
    count, names = len(verdicts), kind if len(verdicts) == 1 else f"{kind}s"
    if len(counts) == 1:
        every = "the" if count == 1 else "all"
        number = names if count == 1 else f"{count} {names}"
        return f"{every} {number} {'is' if count == 1 else 'are'} {verdicts[0]}"
    parts = [f"{number} {verdict}" for verdict, number in counts.items()]
    parts[0] = parts[0].replace(" ", " is " if parts[0].startswith("1 ") else " are ")
    return f"of {count} {names} {', '.join(parts[:-1])} and {parts[-1]}"


def _control_sentence(claims: Sequence[Record], name: str) -> str:
    wanted, title = WANTED[name], CONTROLS[name]
    verdicts = [claim[name]["verdict"] for claim in claims if name in claim]
    count, good = len(verdicts), verdicts.count(wanted)
    if good < count:
        return f"{count - good} of {count} {title}s not {wanted}"
    if count == 1:
        return f"{'its' if len(claims) == 1 else 'the'} {title} is {wanted}, as it must be"
    return f"all {count} {title}s are {wanted}, as they must be"


def themes(report: Record) -> list[dict[str, Any]]:
    """Return, by theme, the verdicts of each kind, and the numbers of refuted controls."""
    rows = []
    for name, part in by_theme(report):
        controls = [
            claim[name]["verdict"]
            for claim in part["claims"]
            for name in ("negative_control", "near_control")
            if name in claim
        ]
        rows.append(
            {
                "name": name,
                "counts": {kind: _counts(part["claims"], kind) for kind in _values(report, "kind")},
                "refuted": controls.count("refuted"),
                "controls": len(controls),
            }
        )
    return rows


def totals(report: Record) -> dict[str, dict[str, int]]:
    """Return the number of claims of each kind by verdict."""
    return {kind: _counts(report["claims"], kind) for kind in _values(report, "kind")}


def _counts(claims: Sequence[Record], kind: str) -> dict[str, int]:
    verdicts = [claim["verdict"] for claim in claims if claim["kind"] == kind]
    return {verdict: verdicts.count(verdict) for verdict in MARKS if verdict in verdicts}


def choices(report: Record) -> dict[str, list[str]]:
    """Return the filters: values of each property, in the order of the report."""
    return {name: _values(report, name) for name in ("theme", "kind", "verdict", "fidelity")}


def _values(report: Record, name: str) -> list[str]:
    return list(dict.fromkeys(claim[name] for claim in report["claims"]))


def how_to_read(report: Record) -> list[str]:
    """Return statement on all intervals together; empty if a report has no families of claims."""
    return families_text(report) if "families" in report else []


def confidence_text(report: Record) -> str:
    """Return the joint confidence of the intervals."""
    held = measured_head(report).removeprefix("measured, ").removesuffix(" interval")
    return f"Measured values with {held} intervals."


def claim_view(claim: Record, report: Record, order: int) -> dict[str, Any]:
    """Return a claim in the form of the template."""
    digits = digits_for(claim["margin"])
    rows = [_row(claim, i, digits) for i in range(len(claim["quantities"]))]
    return {
        **{name: claim[name] for name in ("id", "theme", "kind", "fidelity", "verdict", "reason")},
        "order": order,
        "mark": MARKS[claim["verdict"]],
        "statement": typeset(claim["statement"]),
        "source": typeset(claim["source"]),
        "assumptions": typeset(claim["assumptions"]),
        "statistic": typeset(claim["statistic"]),
        "margin": claim["margin"].replace("-", "−"),
        "two_sided": claim["margin"].startswith("±"),
        "rows": rows,
        "shown": [rows[i] for i in shown(claim)],
        "furthest": rows[worst(claim)]["name"] if len(rows) > len(shown(claim)) else None,
        "p": _p(claim, "p_holm"),
        "p_raw": "" if claim.get("p_holm") is None else claim["p_holm"],
        "p_alone": _p(claim, "p_value"),
        "confidence": f"{100 * claim['confidence']:.6g}%",
        "runs": claim["runs"],
        "seeds": _seeds(claim, report),
        "seconds": claim.get("seconds"),
        "equations": behind(claim["id"]),
        "evidence": evidence(claim["id"]),
        "proofs": proofs_of(claim["id"]),
        "sweep": sweep(claim),
        "control": _control_view(claim, "negative_control", digits),
        "other_controls": [
            {"title": CONTROLS[name].capitalize(), **_control_view(claim, name, digits)}
            for name in ("near_control", "positive_control")
            if name in claim
        ],
        "counterexample": _counterexample(claim),
        "command": command(report, claim),
        "search": _search_text(claim),
    }


def _p(claim: Record, name: str) -> Markup | None:
    """Return a p-value; None if the report has none, as for a statement on every run."""
    return None if claim.get(name) is None else p_html(claim[name])


def _counterexample(claim: Record) -> str | None:
    """Return the first run that contradicts a statement on every run, to reproduce it."""
    first = claim.get("every_run", {}).get("first")
    if first is None:
        return None
    count = claim["every_run"]["counterexamples"]
    text = f"{count:,} of {claim['runs']:,} runs; the first is run {first['run']}"
    scenario = f", {first['scenario']}" if "scenario" in first else ""
    return f"{text}, seed {first['seed']}{scenario}"


def _control_view(claim: Record, name: str, digits: int) -> dict[str, Any]:
    """Return a control in the form of the template."""
    control = claim[name]
    return {
        "verdict": control["verdict"],
        "as_wanted": control["verdict"] == WANTED[name],
        "description": typeset(control["description"]),
        "found": _control_found(control, claim, digits),
        "distance": distance_text(control) if "distance" in control else None,
    }


def _row(claim: Record, i: int, digits: int) -> dict[str, Any]:
    name, low_high = claim["quantities"][i], claim["interval"][i]
    predicted, measured = claim["prediction"][i], claim["measurement"][i]
    return {
        "name": typeset(name),
        "predicted": number_html(predicted, digits),
        "measured": number_html(measured, digits),
        "interval": interval_html(low_high, digits),
        "plot": interval_plot(predicted, measured, low_high, claim["margin"], plain(name)),
    }


def _control_found(control: Record, claim: Record, digits: int) -> list[Markup]:
    """Return the control's measurement and requirement, if the report has them."""
    if "measurement" not in control:
        return []
    lines = [
        Markup("{}: asked for {}, measured {} {}").format(
            typeset(name),
            number_html(asked, digits),
            number_html(measured, digits),
            interval_html(ends, digits),
        )
        for name, asked, measured, ends in zip(
            claim["quantities"],
            control["prediction"],
            control["measurement"],
            control["interval"],
            strict=False,  # a control may measure fewer
        )
    ]
    rest = len(lines) - CONTROL_ROWS
    return lines[:CONTROL_ROWS] + ([Markup(f"and {rest} more in report.json")] if rest > 0 else [])


def _seeds(claim: Record, report: Record) -> str:
    """Return the seeds behind the claim's runs."""
    seed = report["environment"].get("seed")
    if seed is None:
        return ""
    return f"from {seed * SEEDS_APART} on (base seed {seed})"


def command(report: Record, claim: Record | None = None) -> str:
    """Return the command that repeats a report or one claim; a study is repeated as a whole."""
    if "command" in report:
        return str(report["command"])
    return repeat_command(report["environment"], None if claim is None else claim["id"])


def _search_text(claim: Record) -> str:
    controls = [claim[name]["description"] for name in CONTROLS if name in claim]
    texts = (claim["id"], claim["statement"], claim["theme"], claim["source"], *controls)
    return plain(" ".join((*texts, *claim["quantities"]))).lower()


# Studies: convert a study's report to the form of a verification's


def as_report(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's report in the form of a verification's, with one quantity per claim.

    Args:
        study: as in `study.json`.

    Returns:
        A report without families of claims, whose intervals hold together as the study states.
    """
    name = study["study"]["name"]
    return {
        "title": f"Study: {name}",
        "about": study["study"]["about"],
        "claims": [_claim(claim, name) for claim in study["claims"]],
        "left_out": study["left_out"],
        "command": study["command"],
        "environment": study["environment"],
    }


def _claim(claim: Mapping[str, Any], study: str) -> dict[str, Any]:
    return {
        "id": claim["id"],
        "theme": study,
        "statement": claim["statement"],
        "source": "see the study's report",
        "kind": "claim",
        "assumptions": "those of the study",
        "fidelity": "training",
        "statistic": f"{claim['quantity']}; mean of {claim['replicates']} replicates of the study",
        "quantities": [claim["quantity"]],
        "prediction": [claim["prediction"]],
        "margin": claim["margin"],
        "measurement": [claim["measurement"]],
        "interval": [claim["interval"]],
        "confidence": claim["confidence"],
        "runs": claim["runs"],
        "verdict": claim["verdict"],
        "reason": "",
        "negative_control": {
            "description": claim["negative_control"]["description"],
            "verdict": claim["negative_control"]["verdict"],
        },
    }
