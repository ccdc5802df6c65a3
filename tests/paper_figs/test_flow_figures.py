"""Figures on training and its limits, from small made-up data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from fedlora_sim.storage import load_dataset, save_dataset
from paper_figs import floors, style
from paper_figs.files import FIGURES

pytestmark = pytest.mark.usefixtures("coarse_figures")


@pytest.fixture
def curves() -> xr.Dataset:
    """Save deviations that grow tenfold from point to point."""
    value = np.geomspace(1e-4, 1e1, 6)
    deviation = np.broadcast_to(value[:, None] / 100, (3, 6, 2))
    dims = ("sweep", "point", "partition")
    return xr.Dataset(
        {
            "deviation": (dims, deviation),
            "low": (dims, 0.0 * deviation),
            "high": (dims, 2 * deviation),
            "value": (dims[:2], np.stack([value, value, np.linspace(0.1, 0.6, 6)])),
            "inside": (dims[:1], [3, 4, 0]),
            "label": (dims[:1], ["angle", "local steps", "local time"]),
        },
        coords={"sweep": list(floors.TITLES), "partition": [2, 3]},
        attrs={"tolerance": 0.05},
    )


@pytest.fixture
def settled() -> xr.Dataset:
    """Return fractions of four directions in two partitions."""
    fraction = np.full((3, 4), 0.25)
    ends = {
        f"speed{name}": ("level", np.array([1.0, 0.2]) * scale)
        for name, scale in (
            ("", 1.0),
            ("_low", 0.9),
            ("_high", 1.1),
            ("_predicted", 1.0),
            ("_homogeneous", 0.8),
        )
    }
    names = ("fraction", "predicted", "homogeneous")
    return xr.Dataset(
        {**dict.fromkeys(names, (("round", "direction"), fraction)), **ends},
        coords={
            "round": np.arange(3),
            "direction": np.arange(1, 5),
            "partition": ("direction", [1, 2, 2, 2]),
            "level": [1, 4],
        },
    )


@pytest.fixture
def diagram() -> xr.Dataset:
    """Save floors equal to the coverage; one measured point is collapsed, three are held."""
    coverage, time = np.linspace(1.0, 0.1, 4), np.linspace(0.0, 1.0, 5)
    floor = np.broadcast_to(coverage[:, None], (2, 4, 5))
    return xr.Dataset(
        {
            "floor": (("rule", "coverage", "local_time"), floor),
            "threshold": (("rule", "coverage"), floor[..., 0] / 2),
            "measured": (
                ("rule", "measured_coverage", "measured_time"),
                np.broadcast_to([[0.0, 0.5], [0.5, 0.9]], (2, 2, 2)),
            ),
        },
        coords={
            "rule": ["fedavg", "zero_pad"],
            "coverage": coverage,
            "local_time": time,
            "measured_coverage": [0.3, 0.7],
            "measured_time": [0.2, 0.8],
        },
        attrs={"collapsed": 0.01},
    )


def test_breakdown(curves: xr.Dataset) -> None:
    figure, axes = floors.draw_breakdown(curves)
    assert isinstance(figure, Figure)
    titles = [axis.get_title(loc="left") for axis in axes]
    assert titles == ["(a) turning basis", "(b) clients with turned targets", "(c) Adam"]
    assert [axis.get_xlabel() for axis in axes] == ["angle", "local steps", "local time"]
    assert "measured / predicted" in axes[0].get_ylabel()
    # The edge of a region lies between its last point and the next one.
    shades = [axis.patches for axis in axes]
    assert [len(patches) for patches in shades] == [1, 1, 0]
    x = curves.value.values[0]
    assert x[2] < shades[0][0].get_x() + shades[0][0].get_width() < x[3]
    texts = [text.get_text() for text in axes[0].texts]
    assert texts == ["partition 2", "partition 3", "5%"]
    assert axes[2].get_xticklabels()[0].get_text() == "0.1"


def test_settling(settled: xr.Dataset) -> None:
    figure, axes = floors.draw_settling(settled)
    assert isinstance(figure, Figure)
    assert axes[0].get_xlabel() == "round $t$"
    assert "fraction of energy" in axes[0].get_ylabel()
    assert "partition" in axes[1].get_xlabel()
    # Four singular values as the SVD sorts them, then three lines for each partition.
    assert len(axes[0].lines) == 4 + 3 * 2
    sums = axes[0].lines[4 + 3].get_ydata()
    np.testing.assert_allclose(sums, 0.75)
    predicted, alike = (
        [segment[0, 1] for segment in lines.get_segments()] for lines in axes[1].collections[:2]
    )
    assert [*predicted, *alike] == [1.0, 0.2, 0.8, 0.8 * 0.2]


def test_phase(diagram: xr.Dataset) -> None:
    figure, axes = floors.draw_phase(diagram)
    assert isinstance(figure, Figure)
    titles = [axis.get_title(loc="left") for axis in axes]
    assert titles == ["(a) FedAvg", "(b) zero padding"]
    assert "coverage" in axes[0].get_ylabel()
    assert {axis.get_xlabel() for axis in axes} == {"local training time $MT$"}
    boundary, collapsed = axes[0].lines
    np.testing.assert_allclose(boundary.get_xdata(), diagram.threshold.values[0])
    assert len(collapsed.get_xdata()) == 1
    assert len(axes[0].collections[-1].get_offsets()) == 3


@pytest.mark.slow
@pytest.mark.deep
def test_drawn_from_files_they_are_the_same_every_time(
    curves: xr.Dataset,
    settled: xr.Dataset,
    diagram: xr.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(style.RC, "savefig.dpi", 40)
    style.apply()
    made = {"breakdown": curves, "settling": settled, "phase": diagram}
    for name in made:
        save_dataset(made[name], tmp_path / f"{name}.nc")
        draw = FIGURES[name].draw
        first, second = (
            style.save(draw(load_dataset(tmp_path / f"{name}.nc"))[0], tmp_path / out, name)
            for out in ("here", "there")
        )
        for one, other in zip(first, second, strict=True):
            assert one.read_bytes() == other.read_bytes(), one.name
