"""`fedlora-sim simulate`, any scenario to a labeled netCDF file; and `fedlora-sim rules`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fedlora_cli.simulate as command
from fedlora_sim import Scenario, rule_names, simulate
from fedlora_sim.storage import load_dataset

SMALL = ("--ranks", "2x2,4x2", "--rounds", "3")
TOML = 'ranks = "2x3,4x1"\nrounds = 7\ngain_std = 0.25\nempty_partition = "zero"\n'


def written(fedlora: Callable, *arguments: str, out: str = "x.nc") -> xr.Dataset:
    outcome = fedlora("simulate", "--out", out, *arguments)
    assert outcome.code == 0, outcome.err
    assert out in outcome.out
    return load_dataset(out)


def test_rules_are_listed(fedlora: Callable, here: Path) -> None:
    outcome = fedlora("rules")
    assert outcome.code == 0
    assert all(name in outcome.out for name in rule_names())
    assert "Algorithm 1" in outcome.out
    assert not list(here.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("fidelity", ["spectral", "matrix"])
def test_dataset_is_labeled(fedlora: Callable, here: Path, fidelity: str) -> None:
    rules = ",".join(rule_names())
    data = written(fedlora, "--fidelity", fidelity, *SMALL, "--seeds", "2", "--rule", rules)
    assert data.energy.dims == ("rule", "seed", "round", "direction")
    assert data.rho.dims == data.effective_rank.dims == ("rule", "seed", "round")
    assert data.rule.values.tolist() == list(rule_names())
    assert data.seed.values.tolist() == [0, 1]
    assert data["round"].values.tolist() == [0, 1, 2, 3]
    assert data.direction.values.tolist() == [1, 2, 3, 4]
    assert data.partition.values.tolist() == [1, 1, 2, 2]
    assert data.coverage.values.tolist() == [1, 1, 0.5, 0.5]
    assert all(variable.attrs["long_name"] for variable in data.data_vars.values())
    assert all(variable.attrs["units"] for variable in data.data_vars.values())
    assert [p.name for p in here.iterdir()] == ["x.nc"]


def test_values_are_those_of_the_python_interface(fedlora: Callable) -> None:
    data = written(fedlora, *SMALL, "--seeds", "3", "--seed", "5", "--set", "drift_std=0.5")
    scenario = Scenario("2x2,4x2", rounds=3, drift_std=0.5)
    for rule in ("fedavg", "raflora"):
        mine = simulate(scenario, rule=rule, seed=[5, 6, 7])
        np.testing.assert_array_equal(data.energy.sel(rule=rule), mine.energy)
    assert Scenario.from_attrs(data.attrs) == scenario


def test_one_rule_keeps_its_dimension_and_name(fedlora: Callable) -> None:
    data = written(fedlora, *SMALL, "--rule", " RaFLoRA ")
    assert data.energy.dims == ("rule", "seed", "round", "direction")
    assert data.rule.values.tolist() == ["raflora"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["4", "4x3"])
def test_the_scenario_reads_back_from_the_file(fedlora: Callable, ranks: str) -> None:
    data = written(fedlora, "--ranks", ranks, "--rounds", "2")
    assert Scenario.from_attrs(data.attrs) == Scenario(ranks, rounds=2)


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["", "[scenario]\n"])
def test_scenario_file(fedlora: Callable, here: Path, heading: str) -> None:
    Path("s.toml").write_text(heading + TOML)
    data = written(fedlora, "--scenario", "s.toml")
    assert Scenario.from_attrs(data.attrs) == Scenario(
        "2x3,4x1", rounds=7, gain_std=0.25, empty_partition="zero"
    )


def test_options_win_over_the_file_and_settings_over_both(fedlora: Callable, here: Path) -> None:
    Path("s.toml").write_text(TOML)
    data = written(
        fedlora, "--scenario", "s.toml", "--rounds", "2", "--cohort", "3", "--set", "gain_std=0.5"
    )
    expected = Scenario("2x3,4x1", rounds=2, cohort_size=3, gain_std=0.5, empty_partition="zero")
    assert Scenario.from_attrs(data.attrs) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False)])
def test_yes_and_no_are_read_as_booleans(fedlora: Callable, word: str, value: bool) -> None:
    data = written(fedlora, *SMALL, "--set", f"use_rslora={word}")
    assert bool(Scenario.from_attrs(data.attrs).use_rslora) is value


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_dataset(fedlora: Callable) -> None:
    first = written(fedlora, *SMALL, "--seeds", "2", "--set", "gain_std=0.3")
    second = written(fedlora, *SMALL, "--seeds", "2", "--set", "gain_std=0.3", out="y.nc")
    xr.testing.assert_identical(first, second)


@pytest.mark.slow
def test_an_older_dataset_is_replaced_by_force_alone(fedlora: Callable, here: Path) -> None:
    before = written(fedlora, *SMALL)
    refused = fedlora("simulate", "--out", "x.nc", *SMALL, "--rounds", "5")
    assert refused.code == 2
    assert "--out='x.nc': expected a new file (or --force" in refused.err
    xr.testing.assert_identical(load_dataset("x.nc"), before)
    assert written(fedlora, *SMALL, "--rounds", "5", "--force").sizes["round"] == 6


def test_a_file_of_another_program_is_never_replaced(fedlora: Callable, here: Path) -> None:
    Path("x.nc").write_text("not a dataset")
    for options in ((), ("--force",)):
        refused = fedlora("simulate", "--out", "x.nc", *SMALL, *options)
        assert refused.code == 2
        assert "fedlora-sim did not write this one" in refused.err
        assert Path("x.nc").read_text() == "not a dataset"
        assert [path.name for path in here.iterdir()] == ["x.nc"]


@pytest.mark.slow
def test_work_survives_a_file_that_could_not_be_written(
    fedlora: Callable, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(dataset: xr.Dataset, path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(command, "save_dataset", full)
        outcome = fedlora("simulate", "--out", "x.nc", *SMALL)
    assert outcome.code != 0
    assert not Path("x.nc").exists()
    again = fedlora("simulate", "--out", "x.nc", *SMALL)
    assert "going on from 2 finished pieces" in again.err
    assert [p.name for p in here.iterdir()] == ["x.nc"]


@pytest.mark.slow
@pytest.mark.parametrize("changed", [("--rounds", "4"), ("--seeds", "3"), ("--rule", "raflora")])
def test_pieces_of_other_work_are_not_mixed_in(
    fedlora: Callable, here: Path, monkeypatch: pytest.MonkeyPatch, changed: tuple[str, ...]
) -> None:
    def stop(*arguments: object, **options: object) -> xr.Dataset:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(xr, "concat", stop)
        stopped = fedlora("simulate", "--out", "x.nc", *SMALL)
    assert stopped.code == 130
    assert "1 finished pieces" in stopped.err
    other = fedlora("simulate", "--out", "x.nc", *SMALL, *changed)
    assert other.code == 0
    assert "going on" not in other.err


def test_moments_continue_after_an_interruption(
    fedlora: Callable, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(command.MOMENTS_PER_PIECE, "spectral", 2)
    many = (*SMALL, "--seeds", "5", "--keep", "moments")

    def full(dataset: xr.Dataset, path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(command, "save_dataset", full)
        assert fedlora("simulate", "--out", "x.nc", *many).code != 0
    again = fedlora("simulate", "--out", "x.nc", *many)
    assert "going on from 6 finished pieces" in again.err
    assert fedlora("simulate", "--out", "y.nc", *many).code == 0
    continued, whole = xr.load_dataset("x.nc"), xr.load_dataset("y.nc")
    assert continued.identical(whole)
    assert whole.attrs["num_seeds"] == 5
    runs = simulate(Scenario.from_attrs(whole.attrs), "fedavg", seed=range(5))
    found = whole.energy_mean.sel(rule="fedavg")
    np.testing.assert_allclose(found, runs.energy.mean("seed"), rtol=1e-12)
    assert [path.name for path in sorted(here.iterdir())] == ["x.nc", "y.nc"]
    refused = fedlora("simulate", "--out", "z.nc", *many, "--fidelity", "training")
    assert refused.code == 2
    assert "fidelity='training'" in refused.err
