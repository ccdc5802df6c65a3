"""`fedlora-sim verify`: reports, exit codes and interruptions, with claims made for the tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from verify_cases import claim

import analysis
import analysis.claims.verify as verification
from analysis.claims import CLAIMS, digits
from analysis.claims.base import Claim, Control, RunContext
from analysis.paper import energies
from analysis.paper.catalogue import RECIPES
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario
from fedlora_sim.datasets import build_dataset
from fedlora_sim.errors import InputError, check_choice
from fedlora_sim.storage import MARKER, load_dataset
from paper_figs import finetuning as digits_figure

CASES = {
    "true": claim("true"),
    "false": claim("false", 2.0),
    "false-conjecture": claim("false-conjecture", 2.0, kind="conjecture"),
    "untested": claim("untested", control=Control("nothing", lambda: CASES_RIGHT)),
}
CASES_RIGHT = Prediction.within(1.0, 0.1)


@pytest.fixture(autouse=True)
def small_house(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return the claims of this file in place of the project's, few points, and no pictures."""

    def select(names: Sequence[str] | None, quick: bool = False) -> tuple[Claim, ...]:
        return tuple(CASES[check_choice("claim", name, CASES)] for name in names or CASES)

    monkeypatch.setattr("analysis.claims.select", select)
    monkeypatch.setattr(verification, "select", select)
    monkeypatch.setattr("paper_figs.draw_all", lambda report, data, out: [])
    monkeypatch.setattr(verification, "run_jobs", lambda jobs, context, processes: None)
    monkeypatch.setattr(verification, "workers", lambda device: 1)
    small = energies.ENERGIES.replace(ranks="1,2,3", rounds=2, d_in=6, d_out=5)
    monkeypatch.setattr(energies, "ENERGIES", small)


def verify(fedlora: Callable, *names: str, strict: bool = False) -> int:
    options = [text for name in names for text in ("--claim", name)]
    return fedlora("verify", "--out", "v", *options, *(["--strict"] if strict else [])).code


def report() -> dict:
    return json.loads(Path("v/report.json").read_text())


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["true"], 0),
        (["false"], 1),
        (["untested"], 1),
        (["true", "false"], 1),
        (["true", "false-conjecture"], 0),
    ],
)
def test_strict_fails_unless_every_theorem_is_supported(
    fedlora: Callable, names: list[str], code: int
) -> None:
    assert verify(fedlora, *names, strict=True) == code
    assert [c["id"] for c in report()["claims"]] == names


def test_without_strict_a_refuted_claim_is_a_result(fedlora: Callable) -> None:
    outcome = fedlora("verify", "--out", "v", "--claim", "false", "--claim", "untested")
    assert outcome.code == 0
    assert [c["verdict"] for c in report()["claims"]] == ["refuted", "undecided"]
    assert "refuted" in outcome.out
    assert "undecided" in outcome.out
    text = Path("v/report.md").read_text()
    assert "### untested: undecided (the check did not refute its negative control)" in text


def test_seed_and_effort_reach_the_report(fedlora: Callable) -> None:
    fedlora("verify", "--out", "v", "--claim", "true", "--seed", "5", "--quick")
    environment = report()["environment"]
    assert (environment["seed"], environment["quick"]) == (5, True)


def test_default_folder(fedlora: Callable) -> None:
    assert fedlora("verify", "--claim", "true").code == 0
    assert Path("results/verify/report.json").exists()


def test_names_and_verdicts_are_shown_whole_in_eighty_columns(
    fedlora: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = max((made.id for made in CLAIMS), key=len)
    monkeypatch.setitem(CASES, name, claim(name, kind="conjecture"))
    monkeypatch.setenv("COLUMNS", "80")
    shown = fedlora("verify", "--out", "v", "--claim", name).out
    for text in (name, "supported", "refuted"):
        assert text in shown


def test_the_function_returns_the_report_that_the_command_writes(
    fedlora: Callable, here: Path
) -> None:
    assert verify(fedlora, "false", "true") == 0
    made, written = analysis.verify(["false", "true"]), report()
    assert [c["verdict"] for c in made["claims"]] == ["refuted", "supported"]
    for each in (made, written):
        assert each.pop("seconds") >= 0
        for entry in each["claims"]:
            assert entry.pop("seconds") >= 0
    assert json.loads(json.dumps(made, allow_nan=False)) == written
    assert [c["id"] for c in analysis.verify("true", seed=5)["claims"]] == ["true"]
    for wrong in ({"claims": "tru"}, {"seed": -1}, {"device": "moon"}):
        with pytest.raises(InputError, match=next(iter(wrong))[:5]):
            analysis.verify(**wrong)
    assert sorted(p.name for p in here.iterdir()) == ["v"]


def test_no_temporary_files_are_left(fedlora: Callable, here: Path) -> None:
    assert verify(fedlora, "true") == 0
    assert [p.name for p in here.rglob(".*")] == [MARKER]
    assert not list(here.rglob("*tmp"))


def test_ctrl_c_keeps_finished_claims_and_the_next_run_continues(fedlora: Callable) -> None:
    first, second = CASES["true"].experiment, CASES["false"].experiment
    first.runs, second.stop = 0, True
    stopped = fedlora("verify", "--out", "v", "--claim", "true", "--claim", "false")
    assert stopped.code == 130
    assert "1 finished pieces are kept in v/.partial/" in stopped.err
    assert "the same command goes on" in stopped.err
    assert not Path("v/report.json").exists()

    second.stop, once = False, first.runs
    again = fedlora("verify", "--out", "v", "--claim", "true", "--claim", "false")
    assert again.code == 0
    assert "going on from 1 finished pieces" in again.err
    assert first.runs == once
    assert [c["verdict"] for c in report()["claims"]] == ["supported", "refuted"]
    assert not Path("v/.partial").exists()


def test_stored_claims_of_another_seed_are_measured_again(fedlora: Callable) -> None:
    first, second = CASES["true"].experiment, CASES["false"].experiment
    second.stop = True
    assert verify(fedlora, "true", "false") == 130
    second.stop, once = False, first.runs
    assert fedlora("verify", "--out", "v", "--claim", "true", "--seed", "1").code == 0
    assert first.runs > once


def fine_tuned(
    scenario: Scenario, *, rule: str, seed: Sequence[int], on_progress: object = None
) -> xr.Dataset:
    """Return a made-up fine-tuning run that collapses where the real one does.

    FedAvg's runs differ so much that its claim needs more runs than the others.
    """
    (number,) = seed if isinstance(seed, Sequence) else (seed,)
    keeps = rule == "raflora"
    lost = 0.004 + 0.008 * (number % 2) if rule == "fedavg" else 1e-5
    energy = np.full((1, scenario.rounds + 1, max(scenario.ranks)), 1e-7)
    energy[..., 0], energy[..., -1] = 1.0, 1.0 if keeps else lost
    accuracy = np.full(energy.shape[:2], 0.9 if keeps else 0.8)
    extra = {"accuracy": (("seed", "round"), accuracy)}
    return build_dataset(scenario, rule, (number,), energy, extra)


@pytest.fixture
def digits_ids(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Provide the ids of the digits claims of quick runs, with artificial runs."""
    monkeypatch.setattr(digits, "simulate", fine_tuned)
    monkeypatch.setattr(digits, "RUNS", {name: digits.RUNS[name] for name in digits.QUICK_RUNS})
    # Two looks, so that claims stop at different numbers of runs.
    chosen = [replace(made, first=3, cap=6) for made in digits.CLAIMS if made.in_quick]
    monkeypatch.setattr(digits, "CLAIMS", tuple(chosen))
    for made in chosen:
        monkeypatch.setitem(CASES, made.id, made)
    return [made.id for made in chosen]


def verify_digits(fedlora: Callable, ids: list[str]) -> Any:
    return fedlora("verify", "--out", "v", *(t for n in ids for t in ("--claim", n)))


@pytest.mark.slow
def test_digits_are_tabled_and_can_be_drawn(fedlora: Callable, digits_ids: list[str]) -> None:
    outcome = verify_digits(fedlora, digits_ids)
    assert outcome.code == 0
    rows = {row["run"]: row for row in report()["digits"]}
    assert list(rows) == list(digits.RUNS)
    assert {row["runs"] for row in rows.values()} == {6}
    assert rows["raflora"]["rho"] == pytest.approx(0.5, abs=1e-5)
    assert rows["zero_pad"]["accuracy"] == pytest.approx(0.8)
    for row in rows.values():
        for name in ("accuracy", "rho", "effective_rank"):
            low, high = row[f"{name}_interval"]
            assert low <= row[name] <= high
    text = Path("v/report.md").read_text()
    assert all(run in outcome.out and run in text for run in rows)
    data = load_dataset("v/data/digits.nc")
    assert data.rho.sizes == {"run": len(rows), "seed": 6, "round": digits.MIXED.rounds + 1}
    figure, axes = digits_figure.draw_digits(data)
    assert len(axes) == 3  # accuracy, energy ratio, effective rank
    plt.close(figure)


@pytest.mark.slow
@pytest.mark.parametrize("finished", [3, pytest.param(99, marks=pytest.mark.deep)])
def test_an_interrupted_digits_run_reports_on_as_many_runs(
    fedlora: Callable, digits_ids: list[str], monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    measure, left = verification.claim_record, iter(range(finished))

    def stop_later(made: Claim, context: RunContext) -> dict:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return measure(made, context)

    def stop(context: RunContext) -> xr.Dataset:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verification, "claim_record", stop_later)
        patch.setattr(
            "analysis.paper.catalogue.VERIFIED", [replace(RECIPES["energies"], make=stop)]
        )
        assert verify_digits(fedlora, digits_ids).code == 130
    again = verify_digits(fedlora, digits_ids)
    assert again.code == 0, again.err
    rows = {row["run"]: row for row in report()["digits"]}
    assert list(rows) == list(digits.RUNS)
    assert {row["runs"] for row in rows.values()} == {6}
    assert rows["fedavg"]["rho"] == pytest.approx(0.992, abs=2e-3)
