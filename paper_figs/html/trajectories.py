"""What happens over rounds, drawn: energies of a verification, and claims on many rounds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from fedlora_sim.storage import load_dataset
from paper_figs.html.charts import Line, chart
from paper_figs.html.numbers import number_html, spoken
from paper_figs.style import RULE_NAMES

FLOOR = 1e-10
"""Energies below are drawn there: what is left is rounding."""

FEWEST = 3
"""Points from which on a line is drawn."""

DECADES = 100
"""Values of which the largest is so many times the smallest are drawn on a logarithmic axis."""

_SWEEP = re.compile(r"(?P<what>[^0-9]*\D\s)(?P<x>\d+(?:\.\d+)?)(?P<rest>(?:,.*)?)$")
_PARTITION = re.compile(r"(?:,\s*)?(partition \d+)(?:,\s*)?")


@dataclass(frozen=True)
class Energies:
    """Energies by rule, partition and round, as drawings and as numbers.

    Args:
        panels: one drawing per rule.
        rules: names of the rules, for readers.
        partitions: names of the partitions.
        rounds: the rounds.
        measured, predicted: mean energies, [rule][partition][round].
        runs: seeds behind every mean.
    """

    panels: list[Markup]
    rules: list[str]
    partitions: list[str]
    rounds: list[int]
    measured: list[list[list[float]]]
    predicted: list[list[list[float]]]
    runs: int

    def written(self) -> dict[str, Any]:
        """The same numbers as HTML, for a page that shows one round at a time."""
        nested = {"measured": self.measured, "predicted": self.predicted}
        return {
            "rounds": self.rounds,
            **{
                name: [[[number_html(v) for v in part] for part in rule] for rule in values]
                for name, values in nested.items()
            },
        }


def energies(folder: Path) -> Energies | None:
    """The energies that lie beside a report, mean over seeds and over a partition's directions.

    Args:
        folder: of the report; the data are `data/energies.nc` in it.

    Returns:
        The energies, or None where there are none.
    """
    path = folder / "data" / "energies.nc"
    if not path.is_file():
        return None
    data = load_dataset(path)
    partition = data.partition.values
    parts = [np.flatnonzero(partition == h) for h in np.unique(partition)]
    rounds = [int(t) for t in data["round"].values]
    names = [f"partition {h + 1}" for h in range(len(parts))]
    measured, predicted, panels = [], [], []
    rules = [RULE_NAMES.get(str(rule), str(rule)) for rule in data.rule.values]
    for rule, label in zip(data.rule.values, rules, strict=True):
        run = data.sel(rule=rule)
        mean = run.energy.mean("seed").values
        told = run.predicted_energy.values
        measured.append([mean[:, part].mean(-1).tolist() for part in parts])
        predicted.append([told[:, part].mean(-1).tolist() for part in parts])
        lines = [
            Line(name, rounds, found, said)
            for name, found, said in zip(names, measured[-1], predicted[-1], strict=True)
        ]
        words = _panel_words(label, lines, rounds[-1])
        panels.append(
            chart(lines, words, ("round", "mean energy"), size=(400, 270), floor=FLOOR, panel=label)
        )
    return Energies(panels, rules, names, rounds, measured, predicted, data.sizes["seed"])


def _panel_words(rule: str, lines: list[Line], last: int) -> str:
    said = ", ".join(
        f"{line.name} goes from {spoken(line.y[0])} to {spoken(line.y[-1])}, predicted "
        f"{spoken(line.predicted[-1])}"
        for line in lines
    )
    return f"Mean energy under {rule} over {last} rounds, logarithmic: {said}."


def sweep(claim: Mapping[str, Any]) -> Markup | None:
    """A claim's quantities drawn over what varies in their names, such as the round.

    Args:
        claim: an entry of a report, with quantities named like `..., round 3, partition 2`.

    Returns:
        A drawing with a line per partition, or None where fewer than three points make a line.
    """
    lines: dict[str, list[int]] = {}
    found: dict[int, tuple[str, float]] = {}
    for i, quantity in enumerate(claim["quantities"]):
        match = _SWEEP.match(_PARTITION.sub(", ", quantity).strip(", "))
        if match is None or None in (claim["measurement"][i], *claim["interval"][i]):
            return None
        partition = _PARTITION.search(quantity)
        name = partition[1] if partition else "measured"
        found[i] = (match["what"].strip(" =,"), float(match["x"]))
        lines.setdefault(name + match["rest"], []).append(i)
    what = {name for name, _ in found.values()}
    if len(what) != 1 or any(len({found[i][1] for i in own}) < FEWEST for own in lines.values()):
        return None
    x_name, y_name = _axis_names(what.pop(), claim["margin"])
    drawn = [_sweep_line(claim, name, own, found) for name, own in lines.items()]
    first, last = drawn[0].x[0], drawn[0].x[-1]
    said = "; ".join(
        f"{line.name} from {spoken(line.y[0])} to {spoken(line.y[-1])}, predicted "
        f"{spoken(line.predicted[0])} to {spoken(line.predicted[-1])}"
        for line in drawn
    )
    words = f"{y_name} against {x_name}, {spoken(first)} to {spoken(last)}: {said}."
    return chart(drawn, words, (x_name, y_name), floor=_floor(drawn))


def _floor(lines: list[Line]) -> float | None:
    """The power of ten below all values, where they span decades; None for a linear axis."""
    values = [v for line in lines for v in (*line.y, *line.predicted)]
    values += [end for line in lines for pair in line.intervals for end in pair]
    if min(values) <= 0 or max(values) < DECADES * min(values):
        return None
    return float(10.0 ** math.floor(math.log10(min(values))))


def _axis_names(what: str, margin: str) -> tuple[str, str]:
    """Names of the axes: `W, round` is W over rounds, `q' at nu` is q' over nu."""
    measured = "deviation" if margin == "at most" else "measured"
    for between in (", round", " at "):
        before, found, after = what.partition(between)
        if found:
            return f"{between.strip(' ,at')}{after}", before or measured
    return what, measured


def _sweep_line(
    claim: Mapping[str, Any], name: str, own: list[int], found: dict[int, tuple[str, float]]
) -> Line:
    own = sorted(own, key=lambda i: found[i][1])
    return Line(
        name,
        [found[i][1] for i in own],
        [claim["measurement"][i] for i in own],
        [claim["prediction"][i] for i in own],
        [claim["interval"][i] for i in own],
    )
