"""A measured interval against the margin of its prediction, drawn on one line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from analysis.claims.report import digits_for
from paper_figs.html.numbers import spoken

WIDTH, HEIGHT, EDGE = 220.0, 22.0, 5.0
_ROOM = 2.0  # half the line shows so many widths of the margin, if the interval lies within
_BEYOND = 1.15  # room beyond what is drawn, of its distance from the prediction


def region(prediction: float, margin: str) -> tuple[float, float]:
    """Values that agree with a prediction: `±2%`, `±0.05`, `at least` or `at most` it."""
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
    """An inline SVG of the margin as a band, the prediction as a tick, the measurement as a dot.

    Args:
        prediction: the predicted value, or None where it is not finite.
        measurement: the measured value, or None.
        interval: ends of its interval, or None.
        margin: as in a report.
        quantity: name of what is measured, for the text alternative.

    Returns:
        The drawing, which says the same in words; the words alone if a value is not finite.
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
    """Ends of the line: the prediction in the middle, all of the interval within."""
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
    """What the drawing shows, in words."""
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
