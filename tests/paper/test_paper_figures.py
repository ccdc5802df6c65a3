"""Figures of the paper: content and legibility."""

from __future__ import annotations

from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from analysis.paper.catalogue import RECIPES
from analysis.paper.store import read, read_record
from paper_figs import style
from paper_figs.files import FIGURES
from paper_figs.style import LINES_OF, look

pytestmark = pytest.mark.usefixtures("coarse_figures")

TOUCH = 1.0  # points by which the boxes of two texts may overlap, because letters do not fill them
OUTSIDE = 0.5  # points by which a box may reach beyond the canvas


@pytest.fixture(params=FIGURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def data(name: str, paper_data: Path) -> xr.Dataset:
    return read(paper_data, name)


@cache
def drawn(name: str, paper_data: Path) -> tuple[Figure, np.ndarray, list[tuple[str, Bbox]]]:
    """Return a figure, its axes, and all texts in it, laid out once for all tests."""
    figure, axes = FIGURES[name].draw(read(paper_data, name))
    assert isinstance(figure, Figure)
    return figure, axes, words(figure)


def words(figure: Figure) -> list[tuple[str, Bbox]]:
    """Return all that is written, and its box in points."""
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    hidden = {id(text) for axis in figure.findobj(Axes) for text in hidden_ticks(axis)}
    return [
        (text.get_text(), Bbox(text.get_window_extent().get_points() * scale))
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]


def hidden_ticks(axis: Axes) -> list[Text]:
    """Return labels of ticks that lie outside their axis: they exist and are not drawn."""
    hidden = []
    for side, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        low, high = sorted(side.get_transform().transform(limits))
        slack = 1e-9 * (high - low)
        for tick in (*side.get_major_ticks(), *side.get_minor_ticks()):
            place = side.get_transform().transform(tick.get_loc())
            if not low - slack <= place <= high + slack:
                hidden += [tick.label1, tick.label2]
    return hidden


def test_there_is_a_figure_of_every_data_file() -> None:
    assert list(FIGURES) == list(RECIPES)


def test_panels_have_letters_and_labels(name: str, paper_data: Path) -> None:
    figure, axes, _ = drawn(name, paper_data)
    assert isinstance(axes, np.ndarray)
    width = figure.get_size_inches()[0]
    assert width in (style.SINGLE_COLUMN, style.DOUBLE_COLUMN)
    top = axes[0] if axes.ndim == 2 else axes
    if axes.size > 1:
        starts = [axis.get_title(loc="left")[:3] for axis in top]
        assert starts == [f"({letter})" for letter in "abcdefgh"[: len(top)]]
    left = axes[:, 0] if axes.ndim == 2 else axes[:1]
    assert all(axis.get_ylabel() for axis in left)
    last = np.ravel(axes)[-1]
    assert last.get_xlabel() or any(t.get_text() for t in last.get_xticklabels())


def test_nothing_is_cut_and_no_words_overlap(name: str, paper_data: Path) -> None:
    figure, _, found = drawn(name, paper_data)
    width, height = 72 * figure.get_size_inches()
    for text, box in found:
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -OUTSIDE, text
    for (one, first), (other, second) in combinations(found, 2):
        shared = Bbox.intersection(first, second)
        if shared is not None:
            assert min(shared.width, shared.height) <= TOUCH, (one, other)


def test_no_letter_is_too_small(name: str, paper_data: Path) -> None:
    figure, _, _ = drawn(name, paper_data)
    sizes = [t.get_fontsize() for t in figure.findobj(Text) if t.get_text().strip()]
    assert min(sizes) >= style.SMALLEST
    assert max(sizes) <= style.RC["font.size"]


def test_captions_state_setting_and_seeds(name: str, data: xr.Dataset, paper_data: Path) -> None:
    caption = FIGURES[name].caption(data)
    seeds = read_record(paper_data, name)["seeds"]
    if seeds is not None:
        assert all(str(seed) in caption for seed in seeds)
        assert "clients of ranks" in caption
    elif "study_first_seed" in data.attrs:
        assert f"{data.attrs['study_first_seed']}–{data.attrs['study_last_seed']}" in caption
        assert "clients of ranks" in caption
    elif "seed" in data:
        assert all(f"seed {seed:d}" in caption for seed in data.seed.values)
        assert "clients of ranks" in caption
    else:
        assert "no seed" in caption
        assert data.attrs["hardware"] in caption
    assert caption.endswith(".")
    assert caption.count("$") % 2 == 0
    assert caption.isascii() or set(caption) - set(map(chr, range(128))) <= set("×–")


def test_another_setting_is_another_caption(paper_data: Path) -> None:
    data = read(paper_data, "floors")
    other = data.assign_attrs(gain_mean=0.123, ranks="3x4,5x6", first_seed=77)
    caption = FIGURES["floors"].caption(other)
    assert "mean 0.123" in caption
    assert "10 clients of ranks 3 (×4) and 5 (×6)" in caption
    assert "seeds 77–" in caption


def test_figures_show_the_files_data(paper_data: Path) -> None:
    data = read(paper_data, "floors")
    _, axes = FIGURES["floors"].draw(data)
    np.testing.assert_allclose(
        axes[1].lines[0].get_ydata(), data.predicted.sel(rule="raflora", partition=1)
    )
    data = read(paper_data, "energy_ratio")
    _, (axis,) = FIGURES["energy_ratio"].draw(data)
    np.testing.assert_allclose(axis.lines[0].get_ydata(), data.bound)
    assert axis.get_yscale() == "log"
    told = {text.get_text() for text in axis.texts}
    assert "FedAvg, FFA-LoRA" in told  # they coincide and share a label
    data = read(paper_data, "spectrum")
    _, (fedavg, raflora) = FIGURES["spectrum"].draw(data)
    (shades,) = fedavg.collections
    shown = np.asarray(shades.get_array())
    np.testing.assert_allclose(shown, np.maximum(data.measured.sel(rule="fedavg").values.T, 1e-8))
    assert [text.get_text() for text in raflora.texts] == [
        rf"$\pi={share:g}$" for share in (1, 0.75, 0.5, 0.25)
    ]


def test_rules_are_distinguishable_without_color() -> None:
    rules = [look(rule) for rule in LINES_OF]
    looks = [(str(rule.line), rule.marker) for rule in rules]
    assert len(set(looks)) == len(looks)
    assert len({rule.marker for rule in rules}) == len(rules)
    assert {rule.color for rule in rules} <= set(style.PALETTE)


@pytest.mark.parametrize("values", [[0.1, 0.1001, 0.9], [0.99, 1.0, 1.0, 1.0], [0.0, 0.0], [0.5]])
def test_names_do_not_overlap_and_have_the_order_of_their_lines(values: list[float]) -> None:
    figure, axis = style.plt.subplots(figsize=(3, 1.5))
    axis.set_ylim(0, 1)
    ends = [style.End(y, f"line {i}", "k") for i, y in enumerate(values)]
    told = style.name_lines([axis], [ends])
    figure.draw_without_rendering()
    heights = [label.xy[1] for label in told]
    assert heights == sorted(heights)
    assert [label.get_text() for label in told] == [
        f"line {i}" for i in np.argsort(values, kind="stable")
    ]
    boxes = [label.get_window_extent() for label in told]
    assert all(one.y1 <= other.y1 and one.y1 - other.y0 < 3 for one, other in pairwise(boxes))
    # a name that crosses the end of the axis
    half = (boxes[-1].y1 - boxes[-1].y0) / 2
    assert boxes[-1].y1 <= axis.get_window_extent().y1 + half + 1


def test_no_lines_have_no_names() -> None:
    _, axis = style.plt.subplots()
    assert style.name_lines([axis], [[]]) == []


def test_lines_that_end_alike_are_named_together() -> None:
    ends = [style.End(1.0, "a", "r"), style.End(0.1, "b", "g"), style.End(1.01, "c", "b")]
    assert style.together(ends) == [style.End(0.1, "b", "g"), style.End(1.0, "a, c", "k")]
