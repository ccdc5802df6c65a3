"""The paper's figures by name, in its order: each is drawn from the data file of the same name."""

from __future__ import annotations

from types import ModuleType

from paper_figs import (
    allocation,
    breakdown,
    calibrated,
    digits,
    energies,
    energy_ratio,
    floors,
    participation,
    phase,
    ranks,
    scaling,
    settling,
    spectrum,
    staircase,
    text,
)

FIGURES: dict[str, ModuleType] = {
    "spectrum": spectrum,
    "energies": energies,
    "staircase": staircase,
    "energy_ratio": energy_ratio,
    "settling": settling,
    "floors": floors,
    "participation": participation,
    "phase": phase,
    "breakdown": breakdown,
    "allocation": allocation,
    "ranks": ranks,
    "digits": digits,
    "text": text,
    "calibrated": calibrated,
    "scaling": scaling,
}
"""Every module has `draw(data) -> (figure, axes)` and `caption(data)`."""
