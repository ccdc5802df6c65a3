"""The figures of a verification or a study on the page, with text alternatives."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.claims.report import digits_for, shown
from analysis.formats import number, plain
from paper_figs.html.charts import spoken


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Args:
        name: name of its file.
        title: title of the figure.
        drawn: description of the drawing.
        text: its content in words and in numbers of the report.
        source: the file itself, as a data URL.
        width, height: size on the page, in CSS pixels.
    """

    name: str
    title: str
    drawn: str
    text: str
    source: str
    width: int
    height: int


SIGNATURE = b"\x89PNG"
DENSITY = 1.4
"""Pixels of a file per pixel of the page: sharp, with text of the page's size."""

FIGURES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "energies": (
        "Energy of every direction over rounds",
        "One panel per rule, rounds across, energy upwards on a logarithmic scale: one line per "
        "direction, colored by partition, closed forms dashed",
        ("staircase", "zero-pad-fourth-power", "raflora-flat"),
    ),
    "rates": (
        "Energy factors per round",
        "Measured factors of every partition with their intervals, and the predicted ones",
        ("staircase", "zero-pad-fourth-power", "raflora-flat"),
    ),
    "floors": (
        "Floors that drift holds",
        "Measured floors of every partition with their intervals, and the predicted ones",
        ("floor-fedavg", "floor-raflora"),
    ),
    "participation": (
        "What lower participation does",
        "Factors of the mean energy, of a typical run and of survival against the size of the "
        "cohort, and the spread of log energies over runs",
        ("participation-mean-milder", "review-participation-typical-moderate", "extinction-law"),
    ),
    "phase": (
        "Phase transition of local training",
        "Maps of the floor over coverage and local time, one per rule, with the predicted "
        "threshold as a line and measured federations as marks",
        ("flow-threshold-fedavg", "flow-threshold-zero-pad", "flow-raflora-no-threshold"),
    ),
    "breakdown": (
        "Where the theory stops",
        "Deviation of measured rates from their prediction against what is given up: a fixed "
        "basis, alike clients, plain steps",
        ("breakdown-drift", "breakdown-steps", "breakdown-adam"),
    ),
    "settling": (
        "The settling experiment",
        "Fraction of energy in every partition over rounds, and the speed at which each settles, "
        "measured and predicted",
        ("review-settling-fractions", "review-settling-speed"),
    ),
    "digits": (
        "Real fine-tuning on digits",
        "Share of energy in the lowest rank level and test accuracy over rounds, one line per run",
        ("digits-collapse-fedavg", "digits-raflora-no-collapse", "digits-accuracy"),
    ),
    "ledger": (
        "The energy ledger of real fine-tuning",
        "Decades of energy that dilution, training, mixing and turning add to every partition in "
        "each round, under FedAvg and raFLoRA",
        ("ledger-closes", "ledger-dilution", "ledger-regrowth", "ledger-floor"),
    ),
    "study_curves": ("Training curves", "Accuracy and energy ratio over rounds, by rule", ()),
    "study_outcomes": ("Outcomes", "Final accuracy of every rule and configuration", ()),
}
"""Title, description and claims of a figure, by name of its file."""


def pictures(report: Mapping[str, Any], folder: Path, leave_out: str = "") -> list[Picture]:
    """Return the figures of a report in a folder.

    Args:
        report: the report, as in `report.json`.
        folder: folder of the PNG files; its subfolder `figures` is searched first.
        leave_out: name of a figure that the page draws itself.

    Returns:
        Figures in the order of `FIGURES`.
    """
    found = []
    claims = {claim["id"]: claim for claim in report["claims"]}
    for name, (title, drawn, ids) in FIGURES.items():
        paths = [place / f"{name}.png" for place in (folder / "figures", folder)]
        path = next((path for path in paths if path.is_file()), None)
        if path is None or name == leave_out:
            continue
        said = [_sentence(claims[name]) for name in ids or claims if name in claims]
        if name == "digits":
            said = [_digits_sentence(row) for row in report.get("digits", [])] or said
        text, image = " ".join([f"{drawn}.", *said]), path.read_bytes()
        if not image.startswith(SIGNATURE):
            continue
        found.append(Picture(name, title, drawn, text, _data_url(image), *_size(image)))
    return found


def _data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def _size(image: bytes) -> tuple[int, int]:
    """Return the width and height on the page, from the header of a PNG."""
    width, height = struct.unpack(">II", image[16:24])
    return round(width / DENSITY), round(height / DENSITY)


def _sentence(claim: Mapping[str, Any]) -> str:
    """Return the measurements of a claim, quantity by quantity."""
    digits = digits_for(claim["margin"])
    values = [
        f"{plain(claim['quantities'][i])} {spoken(claim['measurement'][i], digits)} (predicted "
        f"{'' if claim['margin'].startswith('±') else claim['margin'] + ' '}"
        f"{spoken(claim['prediction'][i], digits)})"
        for i in shown(claim)
    ]
    return f"{claim['id']}, {claim['verdict']}: {', '.join(values)}."


def _digits_sentence(row: Mapping[str, Any]) -> str:
    return (
        f"{row['run']} ends with {number(100 * row['accuracy'], 3)}% accuracy and "
        f"{number(100 * row['rho'], 4)}% of its energy in the lowest rank level."
    )
