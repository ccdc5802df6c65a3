"""Figures of the notebooks: style, panels, the explorer and its controls."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from typing import Any

import ipywidgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from analysis.closed_form import RULES
from analysis.cohorts.law import Array
from analysis.collapse.measure import Collapse
from analysis.formats import NONE, number, percent
from analysis.notebook import Exploration, PartitionVerdict, explore
from analysis.predict import directions_label
from analysis.stats.intervals import Measurement
from fedlora_sim import Federation, Scenario
from fedlora_sim.errors import InputError
from paper_figs import style
from paper_figs.style import RULE_COLORS, SMALL, look, partition_colors

# Figures of the notebooks that are not in the paper

NOTEBOOK_DPI = 140  # for screens
FAR = 100.0  # limits how far the axis follows a forecast beyond the measurements
HEIGHT = 2.3  # inches of a row of panels


def prepare() -> None:
    """Activate the figures' style for notebooks, in a size for screens."""
    style.apply()
    mpl.rcParams["figure.dpi"] = NOTEBOOK_DPI


def carriers(federation: Federation) -> Figure:
    """Draw which clients carry which directions, and the coverage of each partition.

    Args:
        federation: any federation.

    Returns:
        The figure.
    """
    ranks = np.asarray(federation.ranks)
    directions = np.arange(federation.r_max)
    partition = np.searchsorted(federation.levels, directions + 1)
    held = np.where(directions < ranks[:, None], partition, np.nan)
    figure, axis = plt.subplots(figsize=(style.DOUBLE_COLUMN * 0.75, HEIGHT))
    colors = style.partition_colors(len(federation.levels))
    axis.pcolormesh(
        directions + 1,
        np.arange(1, len(ranks) + 1),
        held,
        cmap=ListedColormap(colors),
        vmin=-0.5,
        vmax=len(colors) - 0.5,
        shading="nearest",
        edgecolors="w",
        linewidth=0.4,
    )
    axis.invert_yaxis()
    axis.set_xlabel("direction $i$")
    axis.set_ylabel("client $k$")
    axis.set_xticks([1, *federation.levels])
    coverage = federation.coverage()
    for part, color in zip(federation.partitions, colors, strict=True):
        middle = (part.start + 1 + part.stop) / 2
        axis.annotate(
            rf"$\pi={coverage[part.start]:.2g}$",
            (middle, 1),
            xycoords=axis.get_xaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color=color,
        )
    return figure


def estimates(
    names: Sequence[str], predicted: ArrayLike, measured: Measurement, label: str
) -> Figure:
    """Draw numbers with intervals, and their predictions as bars.

    Args:
        names: names of the numbers.
        predicted: one for each.
        measured: the same numbers, measured.
        label: axis label, with the unit.

    Returns:
        The figure.
    """
    figure, axis = plt.subplots(figsize=(style.DOUBLE_COLUMN * 0.75, 0.7 + 0.28 * len(names)))
    y = np.arange(len(names))
    bars = np.stack([measured.value - measured.low, measured.high - measured.value])
    told = np.asarray(predicted, dtype=float)
    axis.plot(told, y, "|", color=style.VERMILLION, ms=11, mew=1.4, label="predicted")
    axis.errorbar(
        measured.value,
        y,
        np.abs(bars),
        fmt="o",
        color=style.BLUE,
        ms=3,
        capsize=2.5,
        elinewidth=1,
        label=f"measured, {measured.samples:,} runs",
    )
    axis.set_yticks(y, names)
    axis.invert_yaxis()
    axis.margins(y=0.25)
    axis.set_xlabel(label)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def paths(
    panels: Mapping[str, tuple[Array, Array]],
    partitions: Sequence[slice],
    label: str,
    *,
    log: bool = True,
) -> Figure:
    """Draw a quantity of each partition over rounds, measured and predicted, in panels.

    Args:
        panels: by title, measured (rounds + 1, partitions) and predicted, the same shape.
        partitions: their directions.
        label: axis label, with the unit.
        log: whether the axis is logarithmic.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(style.DOUBLE_COLUMN, HEIGHT), sharey=True, squeeze=False
    )
    colors = style.partition_colors(len(partitions))
    for axis, (measured, predicted) in zip(axes[0], panels.values(), strict=True):
        for h, color in enumerate(colors):
            axis.plot(measured[:, h], color=color)
            axis.plot(predicted[:, h], "k--", lw=0.8)
        _rounds(axis, len(measured) - 1)
        if log:
            axis.set_yscale("log")
    if len(panels) > 1:
        style.letter(axes[0], list(panels))
    axes[0, 0].set_ylabel(label)
    names = [f"$i=${directions_label(part)}" for part in partitions]
    _beside(axes[0, -1], dict(zip(names, colors, strict=True)))
    return figure


def over_rounds(runs: Mapping[str, xr.Dataset], quantities: Mapping[str, str]) -> Figure:
    """Draw variables of runs over rounds, mean over seeds: a line per rule, a panel per variable.

    Args:
        runs: runs by rule.
        quantities: axis label by name of the variable.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(
        1, len(quantities), figsize=(style.DOUBLE_COLUMN, HEIGHT), squeeze=False
    )
    for axis, (name, label) in zip(axes[0], quantities.items(), strict=True):
        for rule, run in runs.items():
            values = run[name].mean([d for d in run[name].dims if d != "round"])
            color = look(rule).color
            axis.plot(run["round"], values, color=color, ls=look(rule).line)
        _rounds(axis, int(run["round"][-1]))
        axis.set_ylabel(label)
    style.letter(axes[0])
    _beside(axes[0, -1], {look(rule).name: look(rule).color for rule in runs})
    return figure


def images(rows: Mapping[str, ArrayLike]) -> Figure:
    """Draw small gray images in rows.

    Args:
        rows: images (count, height, width) by name.

    Returns:
        The figure.
    """
    pictures = {name: np.asarray(values) for name, values in rows.items()}
    count = max(len(values) for values in pictures.values())
    size = (style.DOUBLE_COLUMN * 0.75, 0.6 * len(pictures))
    figure, axes = plt.subplots(len(pictures), count, figsize=size, squeeze=False)
    for line, (name, values) in zip(axes, pictures.items(), strict=True):
        for axis, picture in zip(line, values, strict=False):
            axis.imshow(picture, cmap="Greys")
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def spectra(by_rule: Mapping[str, Sequence[ArrayLike]], titles: Sequence[str]) -> Figure:
    """Draw singular values of updates, a marker per direction and a panel per layer.

    Args:
        by_rule: singular values of each layer, by rule.
        titles: names of the layers.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(
        1, len(titles), figsize=(style.DOUBLE_COLUMN, HEIGHT), sharey=True, squeeze=False
    )
    for rule, layers in by_rule.items():
        for axis, values in zip(axes[0], layers, strict=True):
            shown = np.asarray(values, dtype=float)
            of_rule = look(rule)
            axis.plot(
                np.arange(1, len(shown) + 1),
                shown,
                marker=of_rule.marker,
                ms=3.5,
                lw=0.8,
                color=of_rule.color,
                label=of_rule.name,
            )
    for axis in axes[0]:
        axis.set_yscale("log")
        axis.set_xlabel("direction $i$")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes[0, 0].set_ylabel(r"singular value $\sigma_i$")
    axes[0, -1].legend(loc="upper right")
    style.letter(axes[0], titles)
    return figure


def forecasts(predictions: Mapping[str, xr.Dataset], runs: Mapping[str, xr.Dataset]) -> Figure:
    """Draw forecasts of the later rounds of a real run, and the measurements.

    Args:
        predictions: result of `analysis.forecast`, by rule; the first seed is drawn.
        runs: the runs.

    Returns:
        The figure. Solid: measured, all layers together; dashed and band: the forecast's median
        and interval.
    """
    figure, axes = plt.subplots(
        1, len(predictions), figsize=(style.DOUBLE_COLUMN, 1.15 * HEIGHT), squeeze=False
    )
    for axis, (rule, predicted) in zip(axes[0], predictions.items(), strict=True):
        one, first = predicted.isel(seed=0), int(predicted.attrs["calibration_rounds"])
        energy = runs[rule].layer_energy.isel(seed=0).sum("layer").groupby("partition").sum()
        seen = energy.transpose("round", "partition").values[1:]
        rounds, later = np.arange(1, len(seen) + 1), first + one.horizon.values
        colors = style.partition_colors(one.sizes["partition"])
        for h, color in enumerate(colors):
            of = one.total.isel(partition=h)
            low, middle, high = (of.sel(statistic=n) for n in ("low", "median", "high"))
            axis.fill_between(later, low, high, color=color, alpha=0.25, lw=0)
            axis.plot(later, middle, color=color, ls="--", lw=1)
            axis.plot(rounds, seen[:, h], color=color)
        axis.axvspan(0, first, color=style.SHADE, lw=0)
        axis.set_yscale("log")
        axis.set_ylim(seen[seen > 0].min() / FAR, seen.max() * FAR)
        _rounds(axis, len(seen))
    axes[0, 0].set_ylabel("energy of the partition")
    levels = runs[next(iter(predictions))].coords["level"].values.tolist()
    starts = [slice(low, high) for low, high in pairwise([0, *levels])]
    names = [f"$i=${directions_label(part)}" for part in starts]
    _beside(axes[0, -1], dict(zip(names, colors, strict=True)))
    style.letter(axes[0], [look(rule).name for rule in predictions])
    return figure


def _beside(axis: Axes, colors: Mapping[str, Any]) -> None:
    """Draw a legend next to the last panel, from the lowest color to the highest."""
    handles = [Line2D([], [], color=color, label=name) for name, color in colors.items()]
    axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5))


def _rounds(axis: Axes, last: int) -> None:
    axis.set_xlim(0, last)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_xlabel("round $t$")


# The explorer's figure: spectrum, energies over rounds, training, verdict

SIZE = (9.0, 4.6)  # inches
LINE, GAP = 0.19, 0.45  # height of the table's lines, and gap between it and the panels
LOWEST, TOP = 1e-8, 20.0
WORDS = {Collapse.KEEPS: "kept", Collapse.COLLAPSES: "lost", Collapse.UNDECIDED: "?"}
COLORS = {
    Collapse.KEEPS: RULE_COLORS["raflora"],
    Collapse.COLLAPSES: RULE_COLORS["fedavg"],
    Collapse.UNDECIDED: "0.4",
}
COLUMNS = (
    "directions",
    "coverage $\\pi$",
    "$P_0$",
    "mean rate",
    "typical rate",
    "half-life",
    "alive at the end",
    "drift floor",
    "no training",
    "$T^*$",
    "held at",
    "training",
)
"""Heads of the table; the verdicts are in the columns `no training` and `training`."""


def draw(found: Exploration) -> tuple[Figure, np.ndarray]:
    """Draw three panels above a table, all from closed forms.

    Args:
        found: any exploration.

    Returns:
        The figure and its axes: energies over rounds, spectrum, training, and the table's.
    """
    # Without pyplot and layout engine: positions are fixed, and a figure takes a fifth of the time.
    figure = Figure(figsize=SIZE)
    figure.set_layout_engine("none")
    room = (LINE * (len(found.rows) + 1) + GAP) / SIZE[1]
    grid = figure.add_gridspec(
        2,
        3,
        height_ratios=(0.88 - room, room),
        left=0.06,
        right=0.99,
        top=0.87,
        bottom=0.01,
        wspace=0.27,
    )
    panels = [figure.add_subplot(grid[0, j]) for j in range(3)]
    _energies(panels[0], found)
    _spectrum(panels[1], found)
    _training(panels[2], found)
    alive = "" if found.is_full else ", in runs that survive"
    titles = ("clients that return $a x + b$", "what is left of them", f"clients that train{alive}")
    style.letter(panels, titles)
    table = figure.add_subplot(grid[1, :])
    _table(table, found)
    name = found.rule.partition(",")[0]
    figure.suptitle(found.sentence.replace(name, look(name).name, 1), fontsize=10)
    return figure, np.array([*panels, table])


def _energies(axis: Axes, found: Exploration) -> None:
    _over_rounds(axis, found, found.energy, "mean energy $E[x_i^2]$")
    if found.energy is None:
        return
    rounds = np.arange(len(found.energy))
    for row, part in zip(found.rows, found.scenario.federation.partitions, strict=True):
        typical = found.energy[0, part.stop - 1] * row.typical**rounds
        axis.plot(rounds, _shown(typical), "k--", lw=0.8)
    dashed = Line2D([], [], color="k", ls="--", lw=0.8, label="left of the start, typical run")
    axis.legend(handles=[dashed], loc="upper right", borderaxespad=0, fontsize=SMALL)


def _training(axis: Axes, found: Exploration) -> None:
    path = None if found.training is None else found.training**2
    missing = "no local training" if found.local_time is None else ""
    _over_rounds(axis, found, path, "energy over the target's", missing)
    if path is not None:
        for row in found.rows:
            axis.axhline(max(row.held**2, LOWEST / 10), color="k", ls=":", lw=0.8)


def _over_rounds(
    axis: Axes, found: Exploration, energy: Array | None, label: str, missing: str = ""
) -> None:
    """Draw energies (rounds + 1, r_max) as lines, colored by partition."""
    _decades(axis)
    axis.set_xlim(0, found.scenario.rounds)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_xlabel("round $t$")
    axis.set_ylabel(label)
    if energy is None:
        _say(axis, missing or "no closed form here")
        return
    for part, color in zip(found.scenario.federation.partitions, _colors(found), strict=True):
        axis.plot(_shown(energy[:, part]), color=color, lw=0.9)


def _spectrum(axis: Axes, found: Exploration) -> None:
    """Draw energies by direction at the start and at the end."""
    _decades(axis)
    axis.set_xlabel("direction $i$")
    axis.set_ylabel(f"energy after {found.scenario.rounds} rounds")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if found.energy is None:
        _say(axis, "no closed form here")
        return
    direction = np.arange(1, found.energy.shape[1] + 1)
    for part, color in zip(found.scenario.federation.partitions, _colors(found), strict=True):
        axis.bar(direction[part], _shown(found.energy[-1, part]), 0.75, color=color)
    axis.step(direction, found.energy[0], where="mid", color="0.4", lw=0.9, label="at the start")
    axis.legend(loc="upper right", borderaxespad=0)


def _table(axis: Axes, found: Exploration) -> None:
    """Draw numbers by partition, in columns."""
    axis.set_axis_off()
    axis.set_xlim(0, len(COLUMNS))
    axis.set_ylim(len(found.rows) + 0.6, -0.6)
    for j, head in enumerate(COLUMNS):
        axis.text(j + 0.5, 0, head, ha="center", va="center", fontsize=SMALL, color="0.3")
    for i, (row, color) in enumerate(zip(found.rows, _colors(found), strict=True), 1):
        for j, (text, ink) in enumerate(_cells(row, shared=i == 1)):
            axis.text(
                j + 0.5, i, text, ha="center", va="center", fontsize=SMALL, color=ink or color
            )


def _cells(row: PartitionVerdict, *, shared: bool) -> list[tuple[str, str]]:
    """Return the texts with their colors; none for that of the partition."""
    told = [
        number(row.coverage, 3),
        number(row.empty, 3),
        number(row.rate),
        number(row.typical),
        "never" if np.isinf(row.half_life) else f"{number(row.half_life, 3)} rounds",
        percent(row.survival, 3),
        "none" if np.isinf(row.floor) else number(row.floor, 3),
    ]
    trains = [number(row.threshold, 3), number(row.held, 3)]
    black = "k"
    return [
        (row.directions, ""),
        *((_known(text), black) for text in told),
        _verdict(None if shared else row.passive),
        *((_known(text), black) for text in trains),
        _verdict(None if shared else row.trained),
    ]


def _known(text: str) -> str:
    return NONE if text.startswith("nan") else text


def _verdict(verdict: Collapse | None) -> tuple[str, str]:
    return (NONE, "0.4") if verdict is None else (WORDS[verdict], COLORS[verdict])


def _colors(found: Exploration) -> list[Any]:
    return partition_colors(len(found.rows))


def _decades(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.set_ylim(LOWEST, TOP)
    axis.yaxis.set_minor_locator(NullLocator())


def _shown(energy: Array) -> Array:
    """Return energies with zeros below the axis, so that a line visibly leaves it."""
    return np.maximum(energy, LOWEST / 10)


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", color="0.4")


# Controls of the explorer in a notebook; every change is answered from closed forms at once.
#
# If widgets are not available, as on a page made from a notebook, the last figure is shown.
# Requires ipywidgets, `pip install 'fedlora-sim[notebooks]'`.

CONTROLS_DPI = 110
RANKS = ("4x8,8x6,16x4", "2x4,4x4,16x4", "4x5,8x5,16x5,32x5", "8x16,64x2", "8x18")
EVERYBODY = "all"
ROUNDS = 30
WIDE = {"width": "31%", "min_width": "240px"}


class Explorer(ipywidgets.VBox):
    """Controls with a figure.

    Args:
        **start: initial settings: `rule`, `local_time`, and fields of a scenario.
    """

    def __init__(self, **start: Any) -> None:
        self.knobs: dict[str, Any] = _knobs(start)
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.message = ipywidgets.HTML()
        self.found: Exploration | None = None
        for knob in self.knobs.values():
            knob.observe(self._turned, names="value")
        self.update()
        row = {"flex_flow": "row wrap", "width": "100%"}
        panel = ipywidgets.Box(list(self.knobs.values()), layout=row)
        super().__init__([panel, self.message, self.picture])

    @property
    def settings(self) -> dict[str, Any]:
        """The rule, the local time and the scenario's fields, as set by the controls."""
        values = {name: knob.value for name, knob in self.knobs.items()}
        return {**values, "cohort_size": _cohort(values["cohort_size"])}

    def explore(self) -> Exploration:
        """Evaluate the closed forms."""
        fields = self.settings
        rule, time = fields.pop("rule"), fields.pop("local_time")
        scenario = Scenario(**fields, rounds=ROUNDS)
        return explore(scenario, rule, local_time=time or None)

    def update(self) -> None:
        """Evaluate the closed forms and draw; if they refuse.

        Show the reason and keep the figure.
        """
        try:
            self.found = self.explore()
        except InputError as error:
            self.message.value = f"<b>{_plain(str(error))}</b>"
            return
        self.message.value = "<br>".join(_plain(reason) for reason in self.found.reasons)
        self.picture.value = png(self.found)

    def _turned(self, change: Any) -> None:
        self.update()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        """Return the widget, with its figure for pages without widgets."""
        bundle: dict[str, str] = dict(super()._repr_mimebundle_(**options) or {})
        told = "explorer" if self.found is None else self.found.sentence
        picture = base64.b64encode(self.picture.value).decode()
        return {**bundle, "image/png": picture, "text/plain": told}


def png(found: Exploration) -> bytes:
    """Return the figure of an exploration as a file."""
    figure, _ = draw(found)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=CONTROLS_DPI, metadata=style.METADATA["png"])
    return file.getvalue()


def _knobs(start: dict[str, Any]) -> dict[str, Any]:
    """Return the controls by setting."""
    unknown = sorted(start.keys() - _MAKERS.keys())
    if unknown:
        raise InputError(f"{unknown[0]}: expected one of {', '.join(_MAKERS)}")
    return {name: make(start.get(name, usual)) for name, (make, usual) in _MAKERS.items()}


def _slider(text: str, least: float, most: float, step: float) -> Callable[[Any], Any]:
    def make(value: float) -> Any:
        return ipywidgets.FloatSlider(
            value=value,
            min=least,
            max=most,
            step=step,
            description=text,
            continuous_update=False,
            readout_format=".2f",
            layout=WIDE,
        )

    return make


def _rules(value: str) -> Any:
    return ipywidgets.Dropdown(options=RULES, value=value, description="rule", layout=WIDE)


def _policies(value: str) -> Any:
    return ipywidgets.Dropdown(
        options=("carry", "zero"), value=value, description="if empty", layout=WIDE
    )


def _ranks(value: str) -> Any:
    return ipywidgets.Combobox(
        options=RANKS, value=value, description="ranks", continuous_update=False, layout=WIDE
    )


def _cohorts(value: int | str | None) -> Any:
    return ipywidgets.Text(
        value=EVERYBODY if value is None else str(value),
        description="cohort",
        continuous_update=False,
        layout=WIDE,
    )


def _cohort(text: str) -> Any:
    """Return the clients per round as a number if possible, else the text."""
    words = text.strip().lower()
    if words in ("", EVERYBODY):
        return None
    return int(words) if words.isdecimal() else text


def _plain(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


_MAKERS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "rule": (_rules, "fedavg"),
    "ranks": (_ranks, RANKS[0]),
    "cohort_size": (_cohorts, None),
    "gain_mean": (_slider("gain, mean", 0.5, 1.2, 0.01), Scenario.gain_mean),
    "gain_std": (_slider("gain, std", 0.0, 1.0, 0.01), Scenario.gain_std),
    "drift_std": (_slider("drift, std", 0.0, 0.5, 0.01), Scenario.drift_std),
    "local_time": (_slider("local time", 0.0, 3.0, 0.05), 0.0),
    "empty_partition": (_policies, Scenario.empty_partition),
}
