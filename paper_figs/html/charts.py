"""Small charts as inline SVG: lines over rounds, intervals and margins, and numbers in HTML."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from analysis.claims.report import digits_for, p_text
from analysis.formats import DIGITS, number, plain, rule_name
from fedlora_sim.storage import load_dataset
from paper_figs.style import End, name_lines

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
#
# Matplotlib draws them in colors that stand for variables of the page's style sheet, which also
# sets the fonts, so that charts follow the theme and the width of the page.

LEFT, RIGHT, TOP, BOTTOM = 54.0, 88.0, 26.0, 40.0
FONT = 12
MOST_TICKS = 9
MOST_UNEVEN = 5
"""Ratio of the largest to the smallest gap between x values above which x is logarithmic."""
_GAP = 11.0  # between a line and its name
_APART = 5.0  # offset of intervals of several lines at one x
_MARKS = "os^D"
_VARIABLES = ("ink", "soft", "rule", "line-0", "line-1", "line-2", "line-3")
_COLORS = {name: f"#0000{i:02x}" for i, name in enumerate(_VARIABLES, 1)}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_RC: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": _COLORS["soft"],
    "font.size": FONT,
    "axes.axisbelow": True,
    "ytick.major.pad": 11.0,
    "grid.color": _COLORS["rule"],
    "grid.linewidth": 1.0,
    **{f"{axis}tick.labelcolor": _COLORS["soft"] for axis in "xy"},
    **{f"{axis}tick.major.size": 0.0 for axis in "xy"},
}


@dataclass(frozen=True)
class Line:
    """Points of one line, with predictions.

    Args:
        name: name next to the line.
        x, y: its points.
        predicted: the prediction at each point, or none at all.
        intervals: interval of each point, or none at all.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    predicted: Sequence[float] = ()
    intervals: Sequence[Sequence[float]] = ()


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
        An `svg` element with its text alternative, and a title for each point.
    """
    width, height = size
    right, bottom = width - RIGHT, height - BOTTOM
    with context(["default", {**_RC, "svg.hashsalt": said}]):  # whatever style figures use
        figure = Figure(figsize=(width / 72, height / 72))
        box = (LEFT / width, BOTTOM / height, (right - LEFT) / width, (bottom - TOP) / height)
        axis = figure.add_axes(box, frameon=False)
        _scale(axis, lines, floor)
        for i, line in enumerate(lines):
            shift = _APART * (i - (len(lines) - 1) / 2) if lines[0].intervals else 0.0
            _draw(axis, line, i, shift, floor or -math.inf)
        ends = [
            End(max(line.y[-1], floor or -math.inf), line.name, _color(i))
            for i, line in reversed(
                list(enumerate(lines))
            )  # of lines that coincide, the first on top
        ]
        for label in name_lines([axis], [ends], size=FONT):
            label.xyann = (_GAP, 0.0)
        figure.text((LEFT + right) / 2 / width, 6 / height, labels[0], ha="center")
        figure.text(0.0, 1 - 12 / height, labels[1])
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    cross = f'<line class="cross" x1="{right:g}" y1="{TOP:g}" x2="{right:g}" y2="{bottom:g}"/>'
    extent = f' data-left="{LEFT}" data-right="{right}"' if panel else ""
    return Markup(
        '<svg class="chart" role="img" viewBox="0 0 {} {}"{} aria-label="{}">{}{}</svg>'
    ).format(
        *size, Markup(extent), said, Markup(cross if panel else ""), _body(file.getvalue(), lines)
    )


def _color(i: int) -> str:
    return _COLORS[f"line-{i % len(_MARKS)}"]


def _scale(axis: Axes, lines: Sequence[Line], floor: float | None) -> None:
    """Set limits, ticks and grid."""
    x = sorted({value for line in lines for value in line.x})
    y = [v for line in lines for v in (*line.y, *line.predicted)]
    y += [end for line in lines for pair in line.intervals for end in pair]
    gaps = np.diff(x)
    if x[0] > 0 and gaps.max() > MOST_UNEVEN * gaps.min():
        axis.set_xscale("log")
    axis.set_xlim(x[0], x[-1])
    axis.set_xticks(x[:: math.ceil(len(x) / MOST_TICKS)])
    axis.grid(axis="y")
    if floor is None:
        room = 0.06 * (max(y) - min(y)) or 1.0
        axis.set_ylim(min(y) - room, max(y) + room)
        axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], min_n_ticks=3))
    else:
        low, high = round(math.log10(floor)), math.ceil(math.log10(max(*y, 10 * floor)))
        axis.set_yscale("log")
        axis.set_ylim(10.0**low, 10.0**high)
        axis.set_yticks([10.0**k for k in range(high, low - 1, -max(1, (high - low) // 5))])
    axis.minorticks_off()
    axis.xaxis.set_major_formatter(lambda value, _: spoken(value, 6))
    axis.yaxis.set_major_formatter(lambda value, _: _tick(value, floor is not None))


def _tick(value: float, log: bool) -> str:
    if not log or value == 1:
        return spoken(value, 6)
    return f"10{str(round(math.log10(value))).translate(_RAISED)}"


def _draw(axis: Axes, line: Line, i: int, shift: float, floor: float) -> None:
    """Draw a line, its points and intervals shifted to the right by a number of points."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    place = axis.transData + ScaledTranslation(shift / 72, 0.0, figure.dpi_scale_trans)
    own: Any = {"color": _color(i), "transform": place, "clip_on": False}
    for x, (low, high) in zip(line.x, line.intervals, strict=False):
        axis.plot([x, x], np.maximum([low, high], floor), linewidth=1.5, alpha=0.7, **own)
    axis.plot(
        line.x, np.maximum(line.y, floor), linewidth=1.75, marker=_MARKS[i % 4], markersize=5, **own
    )
    dashed: Any = {"color": _COLORS["ink"], "linewidth": 1.1, "linestyle": (0, (4, 4))}
    if line.predicted:
        axis.plot(line.x, np.maximum(line.predicted, floor), clip_on=False, **dashed)


def _body(svg: str, lines: Sequence[Line]) -> Markup:
    """Return the content of matplotlib's SVG for a page that holds other drawings too.

    Without style sheet, fonts and unused ids, in the colors of the page, a title for each point.
    """
    body = " ".join(svg[svg.index("<g ") : svg.rindex("</svg>")].split())
    for name, color in _COLORS.items():
        body = body.replace(color, f"var(--{name})")
    body = re.sub(r"font: [^;\"]*;? ?", "", body).replace("xlink:href", "href")
    used = set(re.findall('href="#([^"]+)"', body))
    body = re.sub(' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", body)
    titles = (
        Markup("<title>{}, {}: measured {}{}</title>").format(
            line.name, spoken(x, 6), spoken(y), f", predicted {spoken(p[0])}" if p else ""
        )
        for line in lines
        for x, y, *p in zip(*(v for v in (line.x, line.y, line.predicted) if v), strict=True)
    )
    mark = re.compile("<use ([^>]*)/>")
    return Markup(mark.sub(lambda use: f"<use {use[1]}>{next(titles)}</use>", body))


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
    """Return a drawing of a claim's quantities over the parameter in their names, as the round.

    Args:
        claim: an entry of a report, with quantities named like `..., round 3, partition 2`.

    Returns:
        A drawing with a line per partition, or None if there are fewer than three points.
    """
    lines: dict[str, list[int]] = {}
    found: dict[int, tuple[str, float]] = {}
    for i, quantity in enumerate(claim["quantities"]):
        match = _SWEEP.match(_PARTITION.sub(", ", plain(quantity)).strip(", "))
        values = (claim["measurement"][i], claim["prediction"][i], *claim["interval"][i])
        if match is None or None in values:
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
