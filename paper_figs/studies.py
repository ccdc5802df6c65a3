"""All figures of a study, from its report and its data files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.paper.training import scored
from fedlora_sim.storage import load_dataset
from paper_figs import calibrated, study_curves, study_outcomes, style


def draw_study(report: Mapping[str, Any], data: Path, out: Path) -> list[Path]:
    """Draw every figure of a study whose data are there, as PNG and PDF.

    Args:
        report: as in `study.json`.
        data: folder of the netCDF files beside it.
        out: folder to write to.

    Returns:
        The files written.
    """
    style.apply()
    curves = study_curves.draw(load_dataset(data / "curves.nc"), report)[0]
    written = style.save(curves, out, "study_curves")
    written += style.save(study_outcomes.draw(report)[0], out, "study_outcomes")
    if (data / "forecasts.nc").exists():
        told = calibrated.draw(scored(load_dataset(data / "forecasts.nc"), report))[0]
        written += style.save(told, out, "calibrated")
    return written
