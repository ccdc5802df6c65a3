"""Small line charts as inline SVG: measured points, their intervals, the prediction dashed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from paper_figs.html.numbers import spoken

LEFT, RIGHT, TOP, BOTTOM = 54.0, 88.0, 26.0, 40.0
MOST_RULES = 6
_APART = 5.0  # intervals of several lines at one x, beside one another
_LABEL_STEP = 13.0  # least distance of two labels beside the ends of their lines
_MARKS = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True)
class Line:
    """Points of one line, with what was predicted of them.

    Args:
        name: what stands beside it.
        x, y: its points.
        predicted: the prediction at every point.
        intervals: interval of every point, or none at all.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    predicted: Sequence[float]
    intervals: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Axes:
    """Where values lie on the drawing.

    Args:
        x, y: ends of the two axes, in values; of logarithms, where `log`.
        width, height: of the drawing.
        log: whether y is logarithmic.
        floor: what is smaller is drawn there.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: float
    height: float
    log: bool = False
    floor: float = 0.0

    def at_x(self, value: float) -> float:
        """Distance from the left."""
        share = (value - self.x[0]) / (self.x[1] - self.x[0])
        return round(LEFT + share * (self.width - LEFT - RIGHT), 1)

    def at_y(self, value: float) -> float:
        """Distance from the top."""
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
    """The drawing of some lines over common x values.

    Args:
        lines: at least one, each of at least two points.
        said: what the drawing shows, in words.
        labels: of the two axes.
        size: of the drawing.
        floor: y is logarithmic, and cut here; None for a linear one.
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
    """Rules across, numbers beside them, and the names of the axes."""
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
    """A number beside an axis, without HTML, which a drawing cannot hold."""
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
    """The name of every line beside its end, apart from one another."""
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
