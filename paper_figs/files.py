"""Write figures as files: PDF, PNG, data, captions, and a manifest of their origin."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr
from matplotlib.figure import Figure

from analysis.paper.store import ROOT, code_fingerprint, digest, read, read_record
from fedlora_sim.storage import ResultFolder, load_dataset, write_bytes, write_text
from fedlora_sim.version import versions
from paper_figs import cohorts, finetuning, floors, forecasting, spectra, style, theory


class Drawing(NamedTuple):
    """How a figure is drawn from its data, and its caption."""

    draw: Callable[[xr.Dataset], tuple[Figure, Any]]
    caption: Callable[[xr.Dataset], str]


FIGURES = {
    "spectrum": Drawing(spectra.draw_spectrum, spectra.caption_spectrum),
    "energies": Drawing(spectra.draw_energies, spectra.caption_energies),
    "staircase": Drawing(spectra.draw_staircase, spectra.caption_staircase),
    "energy_ratio": Drawing(spectra.draw_energy_ratio, spectra.caption_energy_ratio),
    "settling": Drawing(floors.draw_settling, floors.caption_settling),
    "floors": Drawing(floors.draw_floors, floors.caption_floors),
    "participation": Drawing(cohorts.draw_participation, cohorts.caption_participation),
    "phase": Drawing(floors.draw_phase, floors.caption_phase),
    "breakdown": Drawing(floors.draw_breakdown, floors.caption_breakdown),
    "allocation": Drawing(cohorts.draw_allocation, cohorts.caption_allocation),
    "ranks": Drawing(cohorts.draw_ranks, cohorts.caption_ranks),
    "digits": Drawing(finetuning.draw_digits, finetuning.caption_digits),
    "ledger": Drawing(finetuning.draw_ledger, finetuning.caption_ledger),
    "text": Drawing(finetuning.draw_text, finetuning.caption_text),
    "forecasts": Drawing(forecasting.draw_forecasts, forecasting.caption_forecasts),
    "scaling": Drawing(theory.draw_scaling, theory.caption_scaling),
}
"""The paper's figures in order; each is drawn from the data file of the same name."""

FROM_DATA = ("energies", "participation", "phase", "breakdown", "settling", "digits", "ledger")
"""Figures of a verification that are drawn from a data file of the same name."""


def draw_all(report: Mapping[str, Any], data: Path, out: Path) -> list[Path]:
    """Draw all figures of a verification whose data exist, as PNG and PDF.

    Args:
        report: the report, as in `report.json`.
        data: folder of the netCDF files next to it.
        out: output folder.

    Returns:
        The written files.
    """
    style.apply()
    claims = {claim["id"]: claim for claim in report["claims"]}
    written: list[Path] = []
    for name in FROM_DATA:
        if (data / f"{name}.nc").exists():
            dataset = load_dataset(data / f"{name}.nc")
            written += style.save(FIGURES[name].draw(dataset)[0], out, name)
    if set(spectra.CLAIMS) <= set(claims):
        written += style.save(spectra.draw_staircase(spectra.from_claims(claims))[0], out, "rates")
    if set(floors.CLAIMS) <= set(claims):
        written += style.save(floors.draw_claim_floors(claims)[0], out, "floors")
    return written


# Figures of a study, from its report and data files


def draw_study(report: Mapping[str, Any], data: Path, out: Path) -> list[Path]:
    """Draw the figures of a study, as PNG and PDF.

    Args:
        report: as in `study.json`.
        data: folder of the netCDF files next to it.
        out: output folder.

    Returns:
        The written files.
    """
    style.apply()
    curves = finetuning.draw_study_curves(load_dataset(data / "curves.nc"), report)[0]
    written = style.save(curves, out, "study_curves")
    written += style.save(finetuning.draw_study_outcomes(report)[0], out, "study_outcomes")
    return written


# The paper's figures, with a manifest of their origin

KINDS = ("pdf", "png")
MANIFEST, CAPTIONS, LATEX = "manifest.json", "captions.md", "captions.tex"


def draw_paper(
    names: Sequence[str],
    data: Path,
    out: Path,
    on_figure: Callable[[str], object] = lambda name: None,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Draw figures of the paper, and list the origin of all figures in the folder.

    Args:
        names: names of figures.
        data: folder of the data files that `python -m analysis.paper` wrote.
        out: output folder: `NAME.pdf`, `NAME.png`, `NAME.csv`; the manifest and the captions
            include figures that were drawn there earlier.
        on_figure: called with the name of each figure when it is drawn.
        force: whether files that were edited since may be replaced.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError: if the data of a figure are missing.
        InputError: if a data file was changed since it was made.
    """
    style.apply()
    results = ResultFolder(out, "paper_figs", force=force)
    with results.only_writer(), results.replace(drop_older=False) as new:
        written = (f"{name}.{kind}" for name in names for kind in (*KINDS, "csv"))
        results.check((*written, MANIFEST, CAPTIONS, LATEX), drop_older=False)
        path = out / MANIFEST
        known = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.exists() else {}
        for name in names:
            known[name] = _draw(name, data, new)
            on_figure(name)
        figures = {name: known[name] for name in FIGURES if name in known}
        made_with = {**versions(), "matplotlib": style.mpl.__version__}
        manifest = {"made_with": made_with, "figures": figures}
        write_text(new / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        write_text(new / CAPTIONS, _markdown(figures))
        write_text(new / LATEX, _latex(figures))
    return manifest


def _draw(name: str, data: Path, out: Path) -> dict[str, Any]:
    """Draw one figure's files and return its entry of the manifest."""
    drawing, dataset, record = FIGURES[name], read(data, name), read_record(data, name)
    figure = drawing.draw(dataset)[0]
    width, height = (round(float(size), 3) for size in figure.get_size_inches())
    files = style.save(figure, out, name, KINDS)
    files.append(write_bytes(out / f"{name}.csv", (data / f"{name}.csv").read_bytes()))
    return {
        "caption": drawing.caption(dataset),
        "command": f"python -m paper_figs {name}",
        "inches": [width, height],
        "files": {file.name: digest(file.read_bytes()) for file in files},
        "data": {
            "path": _shown(data / f"{name}.csv"),
            "sha256": record["sha256"],
            "about": record["about"],
            "units": record["units"],
            "command": record["command"],
            "settings": record["settings"],
            "attributes": record["attributes"],
            "seeds": record["seeds"],
            "sources": record["sources"],
            "made_with": record["made_with"],
        },
    }


def stale(manifest: dict[str, Any]) -> list[str]:
    """Return the figures whose data were made by other code than the current one."""
    code = code_fingerprint()
    return [
        name
        for name, entry in manifest["figures"].items()
        if entry["data"]["made_with"]["code"] != code
    ]


def _shown(path: Path) -> str:
    """Return a path relative to the project's root if it is below it."""
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _markdown(figures: dict[str, Any]) -> str:
    blocks = [
        f"## {name}\n\n![{name}]({name}.png)\n\n{entry['caption']}"
        for name, entry in figures.items()
    ]
    return "\n\n".join(["# Figures", *blocks]) + "\n"


def _latex(figures: dict[str, Any]) -> str:
    """Return one figure environment each, for a paper with two columns."""
    blocks = []
    for name, entry in figures.items():
        wide = entry["inches"][0] > style.SINGLE_COLUMN
        kind, width = ("figure*", r"\textwidth") if wide else ("figure", r"\columnwidth")
        blocks.append(
            f"\\begin{{{kind}}}\n\\centering\n\\includegraphics[width={width}]{{{name}.pdf}}\n"
            f"\\caption{{{_escaped(entry['caption'])}}}\n\\label{{fig:{name}}}\n\\end{{{kind}}}"
        )
    return "\n\n".join(blocks) + "\n"


def _escaped(caption: str) -> str:
    """Return a caption, which is LaTeX except for unescaped special characters of text."""
    for sign, latex in (("%", r"\%"), ("&", r"\&"), ("×", r"$\times$"), ("–", "--")):
        caption = caption.replace(sign, latex)
    return caption
