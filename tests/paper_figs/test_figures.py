"""Figures from small made-up results: labels, files, and the same bytes every time."""

from __future__ import annotations

import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from hypothesis_profiles import is_random
from matplotlib.figure import Figure

from analysis.formats import rule_name
from fedlora_sim.storage import save_dataset
from paper_figs import draw_all, finetuning, spectra, style
from paper_figs import floors as floors
from paper_figs import spectra as energies_figure

LEFT_OUT = () if is_random() else ("energies",)
DRAWN = tuple(name for name in ("digits", "energies", "floors", "rates") if name not in LEFT_OUT)
"""Figures whose bytes are compared; drawing takes seconds."""


pytestmark = pytest.mark.usefixtures("coarse_figures")


@pytest.fixture
def data(tmp_path: Path, energies: xr.Dataset, digits_runs: xr.Dataset) -> Path:
    """Return the folder of datasets next to a report."""
    save_dataset(energies, tmp_path / "data" / "energies.nc")
    save_dataset(digits_runs, tmp_path / "data" / "digits.nc")
    return tmp_path / "data"


def labels(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def names(axis: Any) -> list[str]:
    """Return the labels at the ends of lines, lowest first."""
    return [text.get_text() for text in axis.texts]


@pytest.mark.slow
def test_energies(energies: xr.Dataset) -> None:
    figure, axes = energies_figure.draw_energies(energies)
    assert isinstance(figure, Figure)
    assert [axis.get_title(loc="left") for axis in axes] == [
        "(a) zero padding",
        "(b) FedAvg",
        "(c) raFLoRA",
    ]
    assert {axis.get_xlabel() for axis in axes} == {"round $t$"}
    assert "energy" in axes[0].get_ylabel()
    assert axes[0].get_yscale() == "log"
    # One line per direction and one prediction per partition.
    assert {len(axis.lines) for axis in axes} == {4 + 3}
    assert sorted(names(axes[-1])) == [
        "$i=$1–1, $\\pi=$1",
        "$i=$2–2, $\\pi=$0.67",
        "$i=$3–4, $\\pi=$0.33",
    ]
    drawn = axes[1].lines[0].get_ydata()
    measured = energies.energy.sel(rule="fedavg").mean("seed").values[:, 0]
    np.testing.assert_allclose(drawn, measured)


def test_rates(report: dict[str, Any]) -> None:
    claims = {claim["id"]: claim for claim in report["claims"]}
    figure, (axis,) = spectra.draw_staircase(spectra.from_claims(claims))
    assert isinstance(figure, Figure)
    assert {name.split(",")[0] for name in names(axis)} == {"FedAvg", "zero padding", "raFLoRA"}
    assert "partition" in axis.get_xlabel()
    assert "energy factor per round" in axis.get_ylabel()
    assert axis.get_yscale() == "log"
    assert list(axis.patches[0].get_data().values) == [1.0, 0.25, 0.04]


def test_values_that_are_not_finite_are_left_out(report: dict[str, Any]) -> None:
    for claim in report["claims"]:
        claim["measurement"][0] = None
        claim["interval"][0] = [None, None]
    claims = {claim["id"]: claim for claim in report["claims"]}
    floors.draw_claim_floors(claims)[0].canvas.draw()
    spectra.draw_staircase(spectra.from_claims(claims))[0].canvas.draw()


def test_floors(report: dict[str, Any]) -> None:
    claims = {claim["id"]: claim for claim in report["claims"]}
    figure, axis = floors.draw_claim_floors(claims)
    assert isinstance(figure, Figure)
    assert labels(axis) == [rule_name(rule) for rule in floors.CLAIMS.values()]
    assert "partition" in axis.get_xlabel()
    assert "energy" in axis.get_ylabel()
    assert [bar.get_height() for bar in axis.patches[:3]] == [0.5, 0.25, 0.04]


def test_digits(digits_runs: xr.Dataset) -> None:
    figure, axes = finetuning.draw_digits(digits_runs)
    assert isinstance(figure, Figure)
    assert len(axes) == 2
    assert "accuracy" in axes[0].get_ylabel()
    assert "rho" in axes[1].get_ylabel()
    assert {axis.get_xlabel() for axis in axes} == {"round $t$"}
    assert {len(axis.lines) for axis in axes} == {len(finetuning.LOOK)}
    for axis in axes:
        assert sorted(names(axis)) == sorted(look[2] for look in finetuning.LOOK.values())


@pytest.mark.slow
def test_only_figures_of_the_report_are_drawn(
    report: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    (data / "digits.nc").unlink()
    few = {"claims": report["claims"][:1]}
    written = draw_all(few, data, tmp_path / "figures")
    assert [path.name for path in written] == ["energies.png", "energies.pdf"]


@pytest.mark.slow
def test_another_process_gives_the_same_bytes(
    report: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report))
    for name in LEFT_OUT:
        (data / f"{name}.nc").unlink()
    code = (
        "import json, pathlib, paper_figs; here = pathlib.Path.cwd();"
        "paper_figs.style.RC['savefig.dpi'] = 40;"
        "report = json.loads((here / 'report.json').read_text());"
        "paper_figs.draw_all(report, here / 'data', here / 'there')"
    )
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    written = draw_all(report, data, tmp_path / "here")
    names = {f"{name}.{kind}" for name in DRAWN for kind in ("png", "pdf")}
    assert names == {path.name for path in written}
    for folder in ("here", "there"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == names
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")
        assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not plt.get_fignums()


def test_a_figure_that_could_not_be_finished_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(figure: Figure, file: BytesIO, **options: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(KeyboardInterrupt):
        style.save(plt.figure(), tmp_path, "energies")
    assert not list(tmp_path.iterdir())
