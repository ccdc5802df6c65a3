"""Write the pages of the documentation into build/docs/pages, from which mkdocs makes a site.

Pages come from the README, the texts next to this file, the sympy derivations, the drawn figures,
docstrings and notebooks. Notebooks are executed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sympy as sp
from latex2mathml.converter import convert

from analysis.derivations import symbols
from analysis.derivations.appendix import derivations_of, equations_of, notation, sections
from analysis.formats import FORMULA

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "docs" / "pages"
RECORD = ROOT / "results" / "recorded"
FIGURES = ROOT / "results" / "figures"

API = {
    "simulate": (
        "Simulate",
        ("Scenario", "Federation", "simulate", "simulate_many", "parse_ranks"),
        "fedlora_sim",
    ),
    "aggregate": (
        "Aggregate",
        (
            *("aggregate", "AggregationRule", "Aggregator", "Context", "Properties"),
            *("Aggregated", "get_rule", "register"),
        ),
        "fedlora_sim.rules",
    ),
    "adapters": (
        "Aggregate PEFT adapters",
        (
            *("aggregate_adapters", "aggregate_state_dicts", "truncate_state_dict"),
            *("AdapterServer", "receive_state"),
        ),
        "fedlora_sim.peft",
    ),
    "check": (
        "Check a rule",
        ("check_aggregator", "CheckResult", "Case", "parametrize_with_checks"),
        "fedlora_sim.conformance",
    ),
    "predict": (
        "Predict",
        (
            *("predict", "design", "verify", "collapse_report", "diagnose", "Monitor"),
            *("calibrate", "forecast", "ledger", "summarize"),
        ),
        "analysis",
    ),
    "closed_forms": ("Closed forms", (), "analysis.closed_form"),
    "train": ("Fine-tune", ("Task", "Examples"), "fedlora_sim.tasks"),
    "sweep": ("Sweeps", ("run_sweep", "open_sweep"), "fedlora_sim.sweep"),
}
"""Page to its title, its names, and the package from which they are imported.

All of a package is shown if it has no names here.
"""


def main() -> None:
    """Write all pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-notebooks", action="store_true", help="leave the notebooks unrun")
    arguments = parser.parse_args()
    shutil.rmtree(PAGES, ignore_errors=True)
    (PAGES / "api").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "extra.css", PAGES)
    _write("index.md", _relinked((ROOT / "README.md").read_text(encoding="utf-8")))
    _write("contributing.md", _relinked((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    for text in sorted((ROOT / "docs").glob("*.md")):
        _write(text.name, _relinked(text.read_text(encoding="utf-8")))
    _write("changelog.md", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    _write("theory.md", "\n\n".join(theory()))
    _write("figures.md", "\n\n".join(figures()))
    for name, (title, members, package) in API.items():
        _write(f"api/{name}.md", api(title, members, package))
    for picture in RECORD.rglob("*.png"):
        _copy(picture, PAGES / "results" / "recorded" / picture.relative_to(RECORD))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        run_notebook(notebook, execute=not arguments.no_notebooks)


def theory() -> Iterator[str]:
    """Yield the derivations, section by section, as sentences and MathML."""
    yield "# Theory"
    yield (
        "Derived in sympy from indicator variables, recurrences and the factors' own differential "
        "equation; this page is written by the derivations themselves."
    )
    yield from map(_unlatexed, notation(symbols))
    for module in sections():
        yield f"## {module.TITLE}"
        yield from map(_unlatexed, notation(module))
        for function in derivations_of(module).values():
            yield from _derivation(function)


def _derivation(function: Callable[..., Any]) -> Iterator[str]:
    yield " ".join((function.__doc__ or "").partition("\n\n")[0].split())
    for left, value in equations_of(function):
        yield f'<div class="equation">{mathml(f"{left} = {sp.latex(value)}", "block")}</div>'


def mathml(latex: str, display: str = "inline") -> str:
    """Return MathML of LaTeX, on one line."""
    return re.sub(r"\s*\n\s*", " ", convert(latex, display=display))


def _unlatexed(paragraph: str) -> str:
    """Return a paragraph of LaTeX prose as HTML, because Markdown would end it at a formula."""
    text = re.sub(r"\\texttt\{((?:[^{}]|\{\})*)\}", r"<code>\1</code>", paragraph)
    text = re.sub(r"\\emph\{([^{}]*)\}", r"<em>\1</em>", text)
    text = text.replace(r"\textasciicircum{}", "^").replace(r"\_", "_").replace(r"\%", "%")
    text = text.replace(r"\textless{}", "&lt;").replace(r"\textgreater{}", "&gt;")
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return f"<p>{FORMULA.sub(lambda found: mathml(found[1]), text)}</p>"


def figures() -> Iterator[str]:
    """Yield the paper's figures with their captions, if `make figures` has drawn them."""
    yield "# Figures"
    manifest = FIGURES / "manifest.json"
    if not manifest.exists():
        yield "Not drawn here: `make results` makes their data, `make figures` draws them."
        return
    for name, entry in json.loads(manifest.read_text(encoding="utf-8"))["figures"].items():
        caption = entry["caption"]
        _copy(FIGURES / f"{name}.png", PAGES / "figures" / f"{name}.png")
        yield f"## {name.replace('_', ' ').capitalize()}"
        yield f"![{_plain(caption)}](figures/{name}.png)"
        yield _unlatexed(caption)
        yield f"`{entry['data']['command']}`, then `{entry['command']}`."


def api(title: str, members: tuple[str, ...], package: str) -> str:
    """Return a page of docstrings."""
    lines = [f"# {title}"]
    if not members:
        lines += [f"::: {package}", "    options:", "      show_submodules: true"]
    for name in members:
        home = getattr(__import__(package, fromlist=[name]), name)
        lines += ["", f"::: {home.__module__}.{name}"]
    return "\n".join(lines)


def run_notebook(path: Path, *, execute: bool) -> None:
    """Execute a notebook and write it with its outputs to the pages."""
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", str(path)]
    command += ["--execute"] if execute else []
    command += ["--ExecutePreprocessor.store_widget_state=False"]  # live widgets need a network
    out = PAGES / "notebooks"
    subprocess.run([*command, "--output-dir", str(out)], check=True, cwd=ROOT)


def _relinked(text: str) -> str:
    """Return a document as a page, with valid links to other pages.

    Links to files of the repository become plain text. The site has pages and recorded figures in
    one folder, and no other files. Formulas outside code become MathML.
    """
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL).replace("](../", "](")
    text = text.replace("](docs/", "](").replace("](CONTRIBUTING.md", "](contributing.md")
    text = re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|[a-z_]+\.md)[^)]+\)", r"\1", text)
    code = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
    parts = code.split(text)  # text and code by turns
    parts[::2] = [FORMULA.sub(lambda found: mathml(found[1]), part) for part in parts[::2]]
    return "".join(parts)


def _plain(text: str) -> str:
    return re.sub(r"[\[\]()$]", "", text).split(". ")[0]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _write(name: str, text: str) -> None:
    (PAGES / name).write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
