"""The page of a diagnosis: verdict, figures over rounds, and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from analysis.diagnose import Diagnosis
from analysis.diagnose.report import (
    client_rows,
    directions,
    layer_rows,
    notes_of,
    partition_rows,
    run_text,
    share_above,
    term_rows,
)
from fedlora_sim.errors import one_line
from fedlora_sim.version import __version__
from paper_figs.html.charts import Line, chart
from paper_figs.html.render import page_templates

FLOOR = 1e-10
"""Smaller shares are drawn here."""


def diagnosis_page(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as one self-contained HTML page."""
    return (
        page_templates()
        .get_template("diagnosis.html.jinja")
        .render(
            run=one_line(diagnosis.run),
            sentence=diagnosis.sentence,
            remedy=diagnosis.remedy,
            about=run_text(diagnosis),
            notes=notes_of(diagnosis),
            figures=_figures(diagnosis),
            tables=_tables(diagnosis),
            version=__version__,
        )
    )


def _figures(d: Diagnosis) -> list[dict[str, Any]]:
    rows = [
        (
            "Energy shares",
            "Share of the update's energy in each partition, all layers together; shares below "
            "1e-10 are drawn there.",
            [_line(directions(part), d.rounds, part.share) for part in d.partitions],
            FLOOR,
        ),
        (
            "Share above each rank level",
            "Energy share above each rank level but the highest.",
            [
                _line(f"above {level}", d.rounds, share_above(d, h))
                for h, level in enumerate(d.levels[:-1])
            ],
            None,
        ),
        (
            "Effective rank",
            "Effective rank (Roy and Vetterli 2007) of all layers together.",
            [_line("effective rank", d.rounds, d.effective_rank)],
            None,
        ),
    ]
    return [
        {
            "title": title,
            "caption": caption,
            "drawing": chart(lines, f"{title} by round", ("round", title.lower()), floor=floor),
        }
        for title, caption, lines, floor in rows
        if lines and all(len(line.x) > 1 for line in lines)
    ]


def _line(name: str, x: Sequence[float], y: Sequence[float]) -> Line:
    known = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    return Line(name, [a for a, _ in known], [b for _, b in known])


def _tables(d: Diagnosis) -> list[dict[str, Any]]:
    made = {
        "Partitions": ("All layers together, with intervals in brackets", partition_rows(d)),
        "Ledger": ("Decades of energy per round, by cause", term_rows(d)),
        "Client files": ("Had each rule aggregated the client files", client_rows(d)),
        "Layers": ("Partitions above the shared one", layer_rows(d)),
    }
    return [
        {"title": title, "caption": caption, "head": rows[0], "rows": rows[1:]}
        for title, (caption, rows) in made.items()
        if rows
    ]
