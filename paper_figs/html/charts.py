"""Small charts as inline SVG: lines over rounds, intervals and margins, and numbers in HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from analysis.claims.report import digits_for, p_text
from analysis.formats import DIGITS, number, plain, rule_name
from fedlora_sim.storage import load_dataset

# Numbers in HTML: a true minus sign, powers of ten, digits of equal width

_POWER = re.compile(r"e([+-]?)0*(\d+)$")


def number_html(value: float | None, digits: int = DIGITS) -> Markup:
    """Return a number to this many significant digits."""
    return _html(number(value, digits))


def interval_html(ends: Sequence[float | None], digits: int = DIGITS) -> Markup:
    """Return the two ends of an interval."""
    low, high = (number_html(end, digits) for end in ends)
    return Markup('<span class="n">[{},</span> <span class="n">{}]</span>').format(low, high)


def p_html(p: float) -> Markup:
    """Return a p-value, or its upper bound."""
    text = p_text(p)
    if not text.startswith("<"):
        return _html(text)
    return Markup('<span class="n">&lt;&thinsp;{}</span>').format(_html(text[1:]))


def spoken(value: float | None, digits: int = DIGITS) -> str:
    """Return a number in plain characters, for a text alternative."""
    return number(value, digits).replace("-", "−")


def _html(text: str) -> Markup:
    power = _POWER.search(text)
    if not power:
        return escape(text.replace("-", "−"))
    mantissa = text[: power.start()].replace("-", "−")
    sign = "−" if power[1] == "-" else ""
    factor = "" if mantissa == "1" else f"{mantissa}&thinsp;×&thinsp;"
    return Markup(f'<span class="n">{factor}10<sup>{sign}{power[2]}</sup></span>')


# Line charts: measured points, their intervals, the prediction dashed

LEFT, RIGHT, TOP, BOTTOM = 54.0, 88.0, 26.0, 40.0
MOST_RULES = 6
_APART = 5.0  # offset of intervals of several lines at one x
_LABEL_STEP = 13.0  # least distance of two labels next to the ends of their lines
_MARKS = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True)
class Line:
    """Points of one line, with predictions.

    Args:
        name: name next to the line.
        x, y: its points.
        predicted: the prediction at each point.
        intervals: interval of each point, or none at all.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    predicted: Sequence[float]
    intervals: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Axes:
    """Positions of values on the drawing.

    Args:
        x, y: ends of the two axes, in values; in logarithms if `log`.
        width, height: size of the drawing.
        log: whether y is logarithmic.
        floor: smaller values are drawn here.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: float
    height: float
    log: bool = False
    floor: float = 0.0

    def at_x(self, value: float) -> float:
        """Return the distance from the left."""
        share = (value - self.x[0]) / (self.x[1] - self.x[0])
        return round(LEFT + share * (self.width - LEFT - RIGHT), 1)

    def at_y(self, value: float) -> float:
        """Return the distance from the top."""
        if self.log:
            value = math.log10(max(value, self.floor))
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return round(self.height - BOTTOM - share * (self.height - TOP - BOTTOM), 1)


def chart(
    lines: Sequence[Line],
    said: str,
    labels: tuple[str, str],
    *,
    size: tuple[int, int] = (480, 240),
    floor: float | None = None,
    panel: str = "",
) -> Markup:
    """Return a drawing of lines over common x values.

    Args:
        lines: at least one, each of at least two points.
        said: description of the drawing.
        labels: labels of the two axes.
        size: size of the drawing.
        floor: if given, y is logarithmic and clipped here; None for a linear axis.
        panel: name of the panel for a page that moves a cross line over it.

    Returns:
        An `svg` element with its text alternative.
    """
    axes = _axes(lines, size, floor)
    parts = [_grid(axes, labels, lines)]
    if panel:
        x = axes.at_x(axes.x[1])
        bottom = axes.height - BOTTOM
        parts.append(f'<line class="cross" x1="{x}" y1="{TOP:g}" x2="{x}" y2="{bottom:g}"/>')
    middle, apart = (len(lines) - 1) / 2, _APART if lines[0].intervals else 0.0
    parts += [_line(line, axes, i, apart * (i - middle)) for i, line in enumerate(lines)]
    parts.append(_names(lines, axes))
    extent = f' data-left="{LEFT}" data-right="{axes.width - RIGHT}"' if panel else ""
    return Markup(
        '<svg class="chart" role="img" viewBox="0 0 {} {}"{} aria-label="{}">{}</svg>'
    ).format(*size, Markup(extent), said, Markup("".join(parts)))


def _axes(lines: Sequence[Line], size: tuple[int, int], floor: float | None) -> Axes:
    x = [value for line in lines for value in line.x]
    y = [v for line in lines for v in (*line.y, *line.predicted)]
    y += [end for line in lines for pair in line.intervals for end in pair]
    if floor is not None:
        top = math.ceil(math.log10(max(*y, 10 * floor)))
        ends = (math.log10(floor), float(top))
    else:
        room = 0.06 * (max(y) - min(y)) or 1.0
        ends = (min(y) - room, max(y) + room)
    return Axes((min(x), max(x)), ends, *size, floor is not None, floor or 0.0)


def _grid(axes: Axes, labels: tuple[str, str], lines: Sequence[Line]) -> str:
    """Return the grid lines, their numbers, and the names of the axes."""
    right, bottom = axes.width - RIGHT, axes.height - BOTTOM
    parts = []
    for value in _ticks(axes):
        y, said = axes.at_y(value), _plain(value, axes.log)
        parts.append(f'<line class="rule" x1="{LEFT:g}" y1="{y}" x2="{right:g}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 13:g}" y="{y + 4:.1f}" text-anchor="end">{said}</text>')
    for value in _few(sorted({value for line in lines for value in line.x})):
        x = axes.at_x(value)
        parts.append(
            f'<text x="{x}" y="{bottom + 16:g}" text-anchor="middle">{_plain(value)}</text>'
        )
    middle = (LEFT + right) / 2
    x_name = Markup('<text class="name" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        f"{middle:g}", f"{axes.height - 6:g}", labels[0]
    )
    y_name = Markup('<text class="name" x="0" y="10">{}</text>').format(labels[1])
    return "".join([*parts, x_name, y_name])


def _ticks(axes: Axes) -> list[float]:
    if axes.log:
        bottom, top = (round(end) for end in axes.y)
        every = max(1, (top - bottom) // 5)
        return [10.0**power for power in range(top, bottom - 1, -every)]
    low, high = axes.y
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= MOST_RULES)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def _few(values: Sequence[float], most: int = 9) -> list[float]:
    step = math.ceil(len(values) / most)
    return list(values[::step])


def _plain(value: float, log: bool = False) -> str:
    """Return a number for an axis, without HTML, which an SVG cannot contain."""
    if log and value != 1:
        power = f"{round(math.log10(value))}".replace("-", "−")
        return f'10<tspan class="sup" dy="-4">{power}</tspan>'
    return spoken(value, 6)


def _line(line: Line, axes: Axes, i: int, shift: float) -> str:
    x = [axes.at_x(value) + shift for value in line.x]
    places = list(zip(x, map(axes.at_y, line.y), strict=True))
    predicted = zip(map(axes.at_x, line.x), map(axes.at_y, line.predicted), strict=True)
    parts = [f'<polyline class="measured" points="{_points(places)}"/>']
    for left, (low, high) in zip(x, line.intervals, strict=False):
        parts.append(
            f'<line class="whisker" x1="{left:.1f}" y1="{axes.at_y(low)}" '
            f'x2="{left:.1f}" y2="{axes.at_y(high)}"/>'
        )
    for place, value, y, p in zip(places, line.x, line.y, line.predicted, strict=True):
        told = f"{line.name}, {_spoken(value)}: measured {spoken(y)}, predicted {spoken(p)}"
        mark = Markup("<g>{}<title>{}</title></g>").format(Markup(_mark(*place, i)), told)
        parts.append(str(mark))
    parts.append(f'<polyline class="predicted" points="{_points(list(predicted))}"/>')
    return f'<g class="line line-{i % len(_MARKS)}">{"".join(parts)}</g>'


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _spoken(x: float) -> str:
    return spoken(x, 6)


def _mark(x: float, y: float, i: int) -> str:
    kind = _MARKS[i % len(_MARKS)]
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    shapes = {
        "square": [(-2.7, -2.7), (2.7, -2.7), (2.7, 2.7), (-2.7, 2.7)],
        "triangle": [(0, -3.6), (3.4, 2.6), (-3.4, 2.6)],
        "diamond": [(0, -3.9), (3.4, 0), (0, 3.9), (-3.4, 0)],
    }
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[kind])
    return f'<polygon points="{corners}"/>'


def _names(lines: Sequence[Line], axes: Axes) -> str:
    """Return the name of each line next to its end, without overlaps."""
    order = sorted(range(len(lines)), key=lambda i: axes.at_y(lines[i].y[-1]))
    places = [axes.at_y(lines[i].y[-1]) + 4 for i in order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + _LABEL_STEP)
    places[-1] = min(places[-1], axes.height - BOTTOM + 4)
    for i in range(len(places) - 1, 0, -1):
        places[i - 1] = min(places[i - 1], places[i] - _LABEL_STEP)
    x = axes.width - RIGHT + 12
    return "".join(
        Markup('<text class="label line-{}" x="{}" y="{}">{}</text>').format(
            i % len(_MARKS), f"{x:g}", f"{place:.1f}", lines[i].name
        )
        for i, place in zip(order, places, strict=True)
    )


# Intervals: a measured interval and the margin of its prediction on one line

WIDTH, HEIGHT, EDGE = 220.0, 22.0, 5.0
_ROOM = 2.0  # half the line shows this many widths of the margin, if the interval lies within
_BEYOND = 1.15  # room beyond the drawing, relative to its distance from the prediction


def region(prediction: float, margin: str) -> tuple[float, float]:
    """Return the values that agree with a prediction: `±2%`, `±0.05`, `at least` or `at most`."""
    if margin == "at least":
        return prediction, math.inf
    if margin == "at most":
        return -math.inf, prediction
    width = float(margin.strip("±%"))
    if margin.endswith("%"):
        width *= abs(prediction) / 100
    return prediction - width, prediction + width


def interval_plot(
    prediction: float | None,
    measurement: float | None,
    interval: Sequence[float | None],
    margin: str,
    quantity: str,
) -> Markup:
    """Return an inline SVG: margin as a band, prediction as a tick, measurement as a dot.

    Args:
        prediction: the predicted value, or None if it is not finite.
        measurement: the measured value, or None.
        interval: ends of its interval, or None.
        margin: as in a report.
        quantity: name of the measured quantity, for the text alternative.

    Returns:
        The drawing with a text alternative; only the text if a value is not finite.
    """
    said = words(prediction, measurement, interval, margin, quantity)
    low, high = interval
    if prediction is None or measurement is None or low is None or high is None:
        return Markup('<span class="muted">{}</span>').format(said)
    band = region(prediction, margin)
    start, end = _range(prediction, (low, high), band)

    def at(value: float) -> float:
        share = (min(max(value, start), end) - start) / (end - start)
        return round(EDGE + share * (WIDTH - 2 * EDGE), 1)

    left = at(band[0]) if math.isfinite(band[0]) else 0.0
    right = at(band[1]) if math.isfinite(band[1]) else WIDTH
    middle = HEIGHT / 2
    shapes = [
        f'<rect class="band" x="{left}" y="3" width="{round(max(right - left, 1.0), 1)}" '
        f'height="{HEIGHT - 6:g}"/>',
        f'<line class="axis" x1="0" y1="{middle:g}" x2="{WIDTH:g}" y2="{middle:g}"/>',
        f'<line class="tick" x1="{at(prediction)}" y1="1" x2="{at(prediction)}" y2="21"/>',
        f'<line class="whisker" x1="{at(low)}" y1="{middle:g}" x2="{at(high)}" y2="{middle:g}"/>',
        f'<circle class="dot" cx="{at(measurement)}" cy="{middle:g}" r="3.2"/>',
    ]
    return Markup(
        '<svg class="interval" role="img" viewBox="0 0 {} {}" aria-label="{}">{}</svg>'
    ).format(int(WIDTH), int(HEIGHT), said, Markup("".join(shapes)))


def _range(
    prediction: float, interval: tuple[float, float], band: tuple[float, float]
) -> tuple[float, float]:
    """Return ends of the line, with the prediction in the middle and all of the interval within."""
    widths = [_ROOM * abs(end - prediction) for end in band if math.isfinite(end)]
    reach = [_BEYOND * abs(end - prediction) for end in interval]
    room = max(*widths, *reach) or abs(prediction) or 1.0
    return prediction - room, prediction + room


def words(
    prediction: float | None,
    measurement: float | None,
    interval: Sequence[float | None],
    margin: str,
    quantity: str,
) -> str:
    """Return the content of the drawing as text."""
    digits = digits_for(margin)
    low, high = interval
    measured = (
        f"measured {spoken(measurement, digits)}, interval from {spoken(low, digits)} to "
        f"{spoken(high, digits)}"
    )
    if prediction is None or low is None or high is None:
        return f"{quantity}: predicted {spoken(prediction, digits)}; {measured}."
    least, most = region(prediction, margin)
    if least <= low and high <= most:
        where = "inside the margin"
    elif high < least or low > most:
        where = "outside the margin"
    else:
        where = "across the end of the margin"
    if margin.startswith("±"):
        said = f"{spoken(prediction, digits)} {margin}"
    else:
        said = f"{margin} {spoken(prediction, digits)}"
    return f"{quantity}: predicted {said}; {measured}, {where}."


# Charts over rounds: energies of a verification, and claims on many rounds

FLOOR = 1e-10
"""Energies below are drawn at this value: they are rounding."""

FEWEST = 3
"""Minimum number of points for a line."""

DECADES = 100
"""Ratio of the largest to the smallest value above which the axis is logarithmic."""

_SWEEP = re.compile(r"(?P<what>[^0-9]*\D\s)(?P<x>\d+(?:\.\d+)?)(?P<rest>(?:,.*)?)$")
_PARTITION = re.compile(r"(?:,\s*)?(partition \d+)(?:,\s*)?")


@dataclass(frozen=True)
class Energies:
    """Energies by rule, partition and round, as drawings and as numbers.

    Args:
        panels: one drawing per rule.
        rules: display names of the rules.
        partitions: names of the partitions.
        rounds: the rounds.
        measured, predicted: mean energies, [rule][partition][round].
        runs: number of seeds of each mean.
    """

    panels: list[Markup]
    rules: list[str]
    partitions: list[str]
    rounds: list[int]
    measured: list[list[list[float]]]
    predicted: list[list[list[float]]]
    runs: int

    def written(self) -> dict[str, Any]:
        """Return the same numbers as HTML, for a page that shows one round at a time."""
        nested = {"measured": self.measured, "predicted": self.predicted}
        return {
            "rounds": self.rounds,
            **{
                name: [[[number_html(v) for v in part] for part in rule] for rule in values]
                for name, values in nested.items()
            },
        }


def energies(folder: Path) -> Energies | None:
    """Return the energies next to a report, mean over seeds and over a partition's directions.

    Args:
        folder: folder of the report; the data are `data/energies.nc` in it.

    Returns:
        The energies, or None.
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
    rules = [rule_name(str(rule)) for rule in data.rule.values]
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
    """Return a drawing of a claim's quantities over the parameter in their names.

    Such as the round.

    Args:
        claim: an entry of a report, with quantities named like `..., round 3, partition 2`.

    Returns:
        A drawing with a line per partition, or None if there are fewer than three points.
    """
    lines: dict[str, list[int]] = {}
    found: dict[int, tuple[str, float]] = {}
    for i, quantity in enumerate(claim["quantities"]):
        match = _SWEEP.match(_PARTITION.sub(", ", plain(quantity)).strip(", "))
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
    """Return the power of ten below all values if they span decades; None for a linear axis."""
    values = [v for line in lines for v in (*line.y, *line.predicted)]
    values += [end for line in lines for pair in line.intervals for end in pair]
    if min(values) <= 0 or max(values) < DECADES * min(values):
        return None
    return float(10.0 ** math.floor(math.log10(min(values))))


def _axis_names(what: str, margin: str) -> tuple[str, str]:
    """Return the names of the axes: `W, round` is W over rounds, `q' at nu` is q' over nu."""
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
