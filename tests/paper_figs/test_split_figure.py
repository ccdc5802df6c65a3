"""The picture of a split shows every sample, also in small numbers, and distinguishes ranks."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from fedlora_sim.tolerances import relative
from paper_figs import finetuning, style

COUNTS = np.array([[400, 0, 25], [0, 100, 0], [225, 0, 1]])


pytestmark = pytest.mark.usefixtures("coarse_figures")


def dataset(counts: np.ndarray = COUNTS, ranks: object = (2, 4, 4)) -> xr.Dataset:
    """Return a split as a run records it, for two seeds; the second holds nothing."""
    both = np.stack([counts, np.zeros_like(counts)])
    dims = ("seed", "client", "class")
    return xr.Dataset({"split_counts": (dims, both)}, attrs={"ranks": ranks})


def bubbles(axis: plt.Axes) -> PathCollection:
    (found,) = axis.collections
    assert isinstance(found, PathCollection)
    return found


def test_bars_are_sizes_and_bubbles_are_samples() -> None:
    figure, axes = finetuning.draw_split(dataset())
    assert isinstance(figure, Figure)
    assert [bar.get_height() for bar in axes[0].patches] == [425, 100, 226]
    drawn = bubbles(axes[1])
    assert drawn.get_offsets().tolist() == [[0, 0], [0, 2], [1, 1], [2, 0], [2, 2]]
    areas = drawn.get_sizes()
    shares = np.array([400, 25, 100, 225]) / 400
    np.testing.assert_allclose(areas[:4] / areas[0], shares, rtol=relative("reduction"))
    assert areas[4] == finetuning.SMALLEST**2
    assert np.sqrt(areas.max()) <= finetuning.WIDEST
    assert (axes[0].get_ylabel(), axes[1].get_ylabel()) == ("samples", "class")
    assert "client" in axes[1].get_xlabel()


def test_ranks_have_colors_and_a_legend() -> None:
    _, axes = finetuning.draw_split(dataset())
    colors = [tuple(bar.get_facecolor()) for bar in axes[0].patches]
    assert colors[0] != colors[1] == colors[2]
    drawn = [tuple(color) for color in bubbles(axes[1]).get_facecolors()]
    assert drawn == [colors[k] for k in (0, 0, 1, 2, 2)]
    texts = [[t.get_text() for t in axis.get_legend().get_texts()] for axis in axes]
    assert texts == [["rank 2", "rank 4"], ["100", "400"]]


def test_classes_have_their_names_if_any() -> None:
    _, axes = finetuning.draw_split(dataset())
    assert [t.get_text() for t in axes[1].get_yticklabels()] == ["0", "1", "2"]
    named = dataset().assign_coords({"class": ["World", "Sports", "Business"]})
    _, axes = finetuning.draw_split(named.isel(seed=0))
    assert [t.get_text() for t in axes[1].get_yticklabels()] == ["World", "Sports", "Business"]
    assert axes[1].yaxis_inverted()


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (1, 2), (40, 2), (60, 100)])
def test_it_fits_small_and_large_splits(clients: int, classes: int) -> None:
    counts = np.ones((clients, classes), dtype=np.int64)
    ranks: object = 4 if clients == 1 else [4] * clients  # netCDF keeps a list of one as a number
    figure, axes = finetuning.draw_split(dataset(counts, ranks))
    figure.canvas.draw()
    assert figure.get_size_inches()[1] < 7.5
    assert len(axes[1].get_xticks()) <= finetuning.MANY + 2
    width = axes[1].get_window_extent().width / clients
    across = np.sqrt(bubbles(axes[1]).get_sizes().max()) * figure.dpi / finetuning.POINTS
    assert across <= width
    (label,) = [t.get_text() for t in axes[1].get_legend().get_texts()]
    assert label == "1"


def test_the_same_split_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        style.save(finetuning.draw_split(dataset())[0], tmp_path / name, "split", ("png",))[0]
        for name in ("here", "there")
    )
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == second.read_bytes()
