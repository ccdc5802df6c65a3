"""Render the page: a report's numbers in the template, with embedded style and script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from analysis.claims.report import MARKS, SYMBOLS
from analysis.formats import percent
from fedlora_sim.version import __version__
from paper_figs.html import page
from paper_figs.html.charts import energies, interval_html, number_html
from paper_figs.html.figures import pictures
from paper_figs.html.formulas import curly, typeset

KINDS_TEXT = (
    "A theorem must hold. A conjecture is reported, whichever way it falls; a refuted one is a "
    "result. Every check was also given something wrong, its negative control, and had to refute "
    "it."
)
SORTS = {
    "name": "name",
    "kind": "kind",
    "fidelity": "fidelity",
    "verdict": "verdict",
    "control": "control",
    "p": "p-value",
    "runs": "number of runs",
}


def render(report: Mapping[str, Any], folder: Path, source: str = "report.json") -> str:
    """Return a report as one self-contained HTML page.

    Args:
        report: as in `report.json`, or a study's by `as_report`.
        folder: folder of figures (PNG, in `figures` or directly) and `data/energies.nc`; missing
            files are left out.
        source: name of the report's file.

    Returns:
        The page.
    """
    claims = [page.claim_view(claim, report, i) for i, claim in enumerate(report["claims"])]
    derived = {item.name: item for claim in claims for item, _ in claim["equations"]}
    drawn = energies(folder)
    controls = [claim["control"]["verdict"] for claim in claims]
    made = report["environment"]
    return (
        page_templates()
        .get_template("report.html.jinja")
        .render(
            title=report.get("title", "Verification report"),
            headline=page.headline(report),
            about=report.get("about") or _about(report),
            kinds_text=KINDS_TEXT if "families" in report else "",
            totals=page.totals(report),
            themes=page.themes(report),
            controls={"refuted": controls.count("refuted"), "all": len(controls)},
            marks=MARKS,
            reading=[typeset(line) for line in page.how_to_read(report)],
            symbols=typeset(SYMBOLS),
            choices=page.choices(report),
            sorts=[(key, text) for key, text in SORTS.items() if key != "p" or _has_p(report)],
            has_p=_has_p(report),
            confidence=page.confidence_text(report),
            claims=claims,
            left_out=report.get("left_out", []),
            energies=drawn,
            digits=_digits(report),
            pictures=pictures(report, folder, leave_out="energies" if drawn else ""),
            derivations=list(derived.values()),
            proofs=list({item.name: item for claim in claims for item in claim["proofs"]}.values()),
            environment=_readable(made),
            whole_command=page.command(report),
            version=__version__,
            source=source,
        )
    )


def page_templates() -> jinja2.Environment:
    """Return the templates, with the filters and the style sheet of all pages."""
    loader = jinja2.PackageLoader("paper_figs.html")
    made = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {"number": number_html, "interval": interval_html, "curly": curly}
    for kind in ("css", "js"):  # unchanged: they are our own files, not templates
        made.globals[kind] = Markup(loader.get_source(made, f"report.{kind}")[0])
    return made


def _has_p(report: Mapping[str, Any]) -> bool:
    return any("p_holm" in claim for claim in report["claims"])


def _about(report: Mapping[str, Any]) -> str:
    made = report["environment"]
    effort = "a quick run, of fewer claims with fewer runs" if made["quick"] else "a full run"
    took = report.get("seconds")
    minutes = "" if took is None else f", {took / 60:.1f} minutes on {made['cores']} cores"
    return (
        f"Base seed {made['seed']}, {effort}{minutes}. Predictions and margins are fixed in the "
        "code and take nothing from what is measured."
    )


def _digits(report: Mapping[str, Any]) -> dict[str, Any] | None:
    rows = report.get("digits")
    if not rows:
        return None
    first = rows[0]
    confidence = percent(first.get("confidence", 0.99))
    caption = (
        f"{first['runs']} seeds, {first['rounds']} rounds of {first['local_steps']} local steps; "
        f"intervals each for itself at {confidence}"
    )
    return {"caption": caption, "rows": rows}


def _readable(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return readable names: `numpy_version` is numpy's version."""
    shown = {}
    for name, value in environment.items():
        words = name.removesuffix("_version") if name.endswith("_version") else name
        words = words.replace("fedlora_sim", "fedlora-sim").replace("_", " ")
        truth = {True: "yes", False: "no"} if isinstance(value, bool) else {}
        shown[words] = truth.get(value, str(value))
    return shown
