"""All figures of a verification, from its report and its data files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora_sim.storage import load_dataset
from paper_figs import (
    breakdown,
    claim_floors,
    digits,
    energies,
    participation,
    phase,
    settling,
    staircase,
    style,
)

FROM_DATA = {
    "energies": energies.draw,
    "participation": participation.draw,
    "phase": phase.draw,
    "breakdown": breakdown.draw,
    "settling": settling.draw,
    "digits": digits.draw,
}
"""Figures of a data file of the same name."""


def draw_all(report: Mapping[str, Any], data: Path, out: Path) -> list[Path]:
    """Draw every figure of a verification whose data are there, as PNG and PDF.

    Args:
        report: the report, as in `report.json`.
        data: folder of the netCDF files beside it.
        out: folder to write to.

    Returns:
        The files written.
    """
    style.apply()
    claims = {claim["id"]: claim for claim in report["claims"]}
    written: list[Path] = []
    for name, draw in FROM_DATA.items():
        if (data / f"{name}.nc").exists():
            written += style.save(draw(load_dataset(data / f"{name}.nc"))[0], out, name)
    if set(staircase.CLAIMS) <= set(claims):
        written += style.save(staircase.draw(staircase.from_claims(claims))[0], out, "rates")
    if set(claim_floors.CLAIMS) <= set(claims):
        written += style.save(claim_floors.draw(claims)[0], out, "floors")
    return written
