"""The paper's figures as files: PDF, PNG, data, captions, and a manifest of where all is from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analysis.paper.store import ROOT, code_fingerprint, digest, read, read_record
from fedlora_sim.storage import ResultFolder, write_bytes, write_text
from fedlora_sim.version import versions
from paper_figs import style
from paper_figs.catalogue import FIGURES

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
    """Draw figures of the paper, and tell of every one that is there where it is from.

    Args:
        names: of figures.
        data: folder of the data files that `python -m analysis.paper` wrote.
        out: folder to write to: `NAME.pdf`, `NAME.png`, `NAME.csv`; the manifest and the captions
            speak of all figures that were drawn there, these and earlier ones.
        on_figure: called with the name of each figure when it is drawn.
        force: whether files that were changed since they were written may be replaced.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError: if the data of a figure are not there.
        ValueError: if a data file was changed since it was made.
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
    """One figure's files, and its entry of the manifest."""
    module, dataset, record = FIGURES[name], read(data, name), read_record(data, name)
    figure = module.draw(dataset)[0]
    width, height = (round(float(size), 3) for size in figure.get_size_inches())
    files = style.save(figure, out, name, KINDS)
    files.append(write_bytes(out / f"{name}.csv", (data / f"{name}.csv").read_bytes()))
    return {
        "caption": module.caption(dataset),
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
    """Figures whose data were made by other code than there is now."""
    code = code_fingerprint()
    return [
        name
        for name, entry in manifest["figures"].items()
        if entry["data"]["made_with"]["code"] != code
    ]


def _shown(path: Path) -> str:
    """Relative to the project's root where it is below it."""
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _markdown(figures: dict[str, Any]) -> str:
    blocks = [
        f"## {name}\n\n![{name}]({name}.png)\n\n{entry['caption']}"
        for name, entry in figures.items()
    ]
    return "\n\n".join(["# Figures", *blocks]) + "\n"


def _latex(figures: dict[str, Any]) -> str:
    """One figure environment each, for a paper of two columns."""
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
    """Captions are LaTeX but for signs that text has and LaTeX takes for its own."""
    for sign, latex in (("%", r"\%"), ("&", r"\&"), ("×", r"$\times$"), ("–", "--")):
        caption = caption.replace(sign, latex)
    return caption
