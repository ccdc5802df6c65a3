"""Figures of a study from artificial results: content, and the stated source."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from study_report_cases import (
    ROUNDS,
    RULES,
    SPLITS,
    made_up_curves,
    study_report,
)

from fedlora_sim.storage import save_dataset
from paper_figs import draw_study, finetuning
from paper_figs.style import look, ranks_text

NAMES = [look(rule).name for rule in RULES]


pytestmark = pytest.mark.usefixtures("coarse_figures")


def legend(figure: plt.Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_rules_that_are_not_known_have_a_look_too() -> None:
    assert look("my_rule").name == "my_rule"
    assert look("raflora").name == "raFLoRA"
    assert ranks_text([2, 2, 4, 4]) == "2x2, 4x2"


def test_curves() -> None:
    curves = made_up_curves()
    figure, axes = finetuning.draw_study_curves(curves, study_report())
    assert axes.shape == (4, len(SPLITS))
    assert [axis.get_title() for axis in axes[0]] == SPLITS
    assert [axis.get_ylabel() for axis in axes[:, 0]] == [
        "test accuracy",
        "energy above rank 2",
        "effective rank",
        "directions preserved",
    ]
    assert [row[0].get_yscale() for row in axes] == ["linear", "log", "linear", "linear"]
    assert legend(figure) == NAMES
    assert figure.get_suptitle() == "small, ranks 2x2, 4x2: mean of 3 seeds, and their range"
    for axis in axes.ravel():
        assert len(axis.lines) == len(axis.collections) == len(RULES)
    judged = axes[0, 0].lines[0]
    assert judged.get_xdata().tolist() == list(range(0, ROUNDS + 1, 2))
    mean = curves.rho.sel(heterogeneity="harsh", rule="raflora").mean("run").values[1:]
    np.testing.assert_allclose(axes[1, 1].lines[1].get_ydata(), 1 - mean)


@pytest.mark.slow
def test_curves_of_one_seed_and_of_a_total_collapse() -> None:
    curves = made_up_curves(runs=1)
    figure, axes = finetuning.draw_study_curves(
        curves.assign(rho=curves.rho * 0 + 1), study_report()
    )
    assert figure.get_suptitle().endswith("one seed")
    assert (axes[1, 0].lines[0].get_ydata() > 0).all()
    figure.canvas.draw()


@pytest.mark.slow
def test_what_single_precision_resolves_of_an_energy_is_drawn() -> None:
    curves = made_up_curves()
    shares = {1e-8: 1e-8, 1e-12: finetuning.STUDY_CURVES_LOWEST}
    for share, drawn in shares.items():
        _, axes = finetuning.draw_study_curves(
            curves.assign(rho=curves.rho * 0 + 1 - share), study_report()
        )
        np.testing.assert_allclose(axes[1, 0].lines[0].get_ydata(), drawn, rtol=1e-6)


def test_outcomes() -> None:
    figure, axes = finetuning.draw_study_outcomes(study_report())
    assert [axis.get_title() for axis in axes] == SPLITS
    assert [text.get_text() for text in axes[0].get_yticklabels()] == NAMES
    assert legend(figure) == ["all clients of rank 2", "all clients of rank 4"]
    assert figure.get_suptitle() == "small, 6 rounds: mean of 3 seeds, 95% intervals"
    dots = [line.get_xdata() for line in axes[0].lines[2:]]
    np.testing.assert_allclose(np.ravel(dots), [0.5, 0.6, 0.7])
    bands = [line.get_xdata()[0] for line in axes[0].lines[:2]]
    assert bands == [0.4, 0.9]


def test_no_interval_of_the_outcomes_is_cut() -> None:
    report = study_report()
    report["rows"][1]["accuracy_interval"] = [0.1, 0.98]
    report["rows"].append({**report["rows"][0], "configuration": "few", "accuracy": 0.01})
    _, axes = finetuning.draw_study_outcomes(report)
    for axis in axes:
        np.testing.assert_allclose(axis.get_xlim(), [0.1 - finetuning.PAD, 1.0])
    report["rows"][1]["accuracy_interval"] = [0.0, 0.6]
    _, axes = finetuning.draw_study_outcomes(report)
    np.testing.assert_allclose(axes[0].get_xlim(), [0.0, 0.92 + finetuning.PAD])


def test_outcomes_of_one_seed() -> None:
    report = study_report()
    for row in report["rows"]:
        row |= {"runs": 1, "accuracy_interval": None}
    figure, axes = finetuning.draw_study_outcomes(report)
    assert figure.get_suptitle().endswith("one seed")
    assert not axes[0].patches


@pytest.mark.slow
@pytest.mark.deep
def test_all_are_written_reproducibly_as_png_and_pdf(tmp_path: Path) -> None:
    save_dataset(made_up_curves(), tmp_path / "curves.nc")
    first, second = (
        draw_study(study_report(), tmp_path, tmp_path / name) for name in ("here", "there")
    )
    assert len(first) == 4
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
