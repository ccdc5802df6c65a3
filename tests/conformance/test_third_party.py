"""An installed external package of rules: the command line treats its rules as built-in ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file
from wheel_cases import PATIENCE, unpack_wheel

from fedlora_sim.rules import registry
from fedlora_sim.storage import load_dataset

TESTS = Path(__file__).parents[1]
PROGRAM = str(Path(sys.executable).with_name("fedlora-sim"))

TRAIN = """
from run_cases import make_tiny_task
from fedlora_cli import train
from fedlora_cli.main import main
from fedlora_sim.finetune import run

run.load_task = lambda scenario: make_tiny_task()
train.draw_split = lambda dataset, out: None
main()
"""

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the installed package: its wheel, built and unpacked."""
    place = tmp_path_factory.mktemp("third_party")
    source, wheels, site = (place / name for name in ("source", "wheels", "site"))
    skipped = shutil.ignore_patterns("__pycache__", ".*", "build", "*.egg-info")
    shutil.copytree(TESTS / "third_party", source, ignore=skipped)
    unpack_wheel(source, wheels, "fedlora_momentum-1.0-*.whl", site)
    return site


@pytest.fixture
def run(fedlora: Run, site: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `fedlora-sim` in this process with the package, and remove the package afterwards."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    monkeypatch.setattr(registry, "_loaded", False)
    return fedlora


@pytest.fixture
def process(site: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program with the package in a separate process and an empty folder."""

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            cwd=tmp_path,
            env=environment(site),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return call


def environment(site: Path) -> dict[str, str]:
    """Return the environment of a process that finds the package."""
    paths = os.pathsep.join((str(site), str(TESTS / "finetune")))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_its_rules_are_listed(process: Run) -> None:
    done = process(PROGRAM, "rules")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    blocks = done.stdout.split("\n")
    for name, options, multiplier, averages in (
        ("momentum", "beta=0.9, learning_rate=1.0", "W of the first round", "in its own way"),
        ("tempered", "beta=0.5", "not declared", "products"),
    ):
        at = blocks.index(name)
        told = dict(line.split(maxsplit=1) for line in blocks[at + 2 : at + 6])
        assert told["options"] == options
        assert told["multiplier"] == multiplier
        assert told["averages"] == averages
        assert told["source"]
    assert "FedAvg with server momentum" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("fidelity", ["spectral", "matrix"])
def test_the_rule_of_weights_is_simulated(run: Run, tmp_path: Path, fidelity: str) -> None:
    rules = "fedavg,tempered,tempered:beta=1.0"
    settings = ("--ranks", "2x2,4x2", "--rounds", "5", "--set", "num_samples=[1, 4, 9, 16]")
    done = run(
        *("simulate", "--fidelity", fidelity, "--rule", rules, "--out", "x.nc", *settings),
    )
    assert done.code == 0, done.err
    energy = load_dataset(tmp_path / "x.nc").energy
    assert energy.rule.values.tolist() == ["fedavg", "tempered", "tempered:beta=1.0"]
    fedavg, own, as_fedavg = (energy.sel(rule=name) for name in energy.rule.values)
    xr.testing.assert_allclose(as_fedavg.drop_vars("rule"), fedavg.drop_vars("rule"))
    # contributors to the upper directions have 25 of 30 samples, and 7 of 10 of their roots
    ratio = (own / fedavg).sel(direction=4, round=5).item()
    assert ratio == pytest.approx(((7 / 10) / (25 / 30)) ** 10)


@pytest.mark.slow
def test_the_rule_with_a_state_is_simulated(run: Run, tmp_path: Path) -> None:
    """Momentum overshoots: after the same rounds, less is left in FedAvg's lost directions."""
    settings = ("--ranks", "2x2,4x2", "--rounds", "4", "--seeds", "2", "--out", "x.nc")
    rules = "fedavg,momentum:beta=0.0,momentum:beta=0.2"
    done = run("simulate", "--fidelity", "matrix", "--rule", rules, *settings)
    assert done.code == 0, done.err
    energy = load_dataset(tmp_path / "x.nc").energy
    fedavg, still, moving = (energy.sel(rule=name, direction=4) for name in energy.rule.values)
    xr.testing.assert_allclose(still.drop_vars("rule"), fedavg.drop_vars("rule"))
    assert (moving.sel(round=slice(2, None)) < fedavg.sel(round=slice(2, None)) / 2).all()


def test_rules_without_spectral_form_are_refused(run: Run, tmp_path: Path) -> None:
    done = run("simulate", "--ranks", "2,4", "--rule", "momentum", "--out", "x.nc")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "fedlora-sim: fidelity='spectral': expected matrix or training: momentum is more than "
        "weights on amplitudes\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["momentum:learning_rate=0.5", pytest.param("tempered", marks=pytest.mark.deep)]
)
def test_its_rules_are_checked(run: Run, name: str) -> None:
    done = run("check", name, "--examples", "2", "--json")
    assert done.code == 0, done.out + done.err
    found = json.loads(done.out)
    assert found["rule"] == name
    assert found["counts"]["failed"] == 0
    assert found["counts"]["passed"] > 15
    assert found["counts"]["expected"] > 0


@pytest.mark.slow
def test_a_rule_with_a_state_gets_a_verdict(run: Run) -> None:
    name = "momentum"
    done = run("collapse", name, "--scenario", "full", "--json")
    assert done.code == 0, done.out + done.err
    report = json.loads(done.out)
    assert report["rule"] == name
    assert report["failed_controls"] == []
    assert report["verdict"]


def test_a_state_is_not_lost_between_folders(run: Run, tmp_path: Path) -> None:
    """PEFT folders hold no state, so only the rule with a state is refused."""
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["line"]}
    tensors = {
        "base_model.model.line.lora_A.weight": torch.ones(2, 5),
        "base_model.model.line.lora_B.weight": torch.ones(4, 2),
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(settings))
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
    done = run("aggregate", "one", "two", "--rule", "momentum", "--out", "refused")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "fedlora-sim: line: --rule='momentum': expected a rule that keeps nothing from round to "
        "round, as folders cannot\n"
    )
    assert not (tmp_path / "refused").exists()
    done = run("aggregate", "one", "two", "--rule", "tempered", "--out", "taken")
    assert done.code == 0, done.err
    assert (tmp_path / "taken").exists()


@pytest.mark.slow
@pytest.mark.deep
def test_a_killed_training_keeps_its_momentum(process: Run, site: Path, tmp_path: Path) -> None:
    fields = ("rounds=30", "local_steps=5", "batch_size=4", "cohort_size=4", "dtype=float64")
    settings = (word for field in ("ranks=2x3,4x2,8x2", *fields) for word in ("--set", field))
    command = ("train", "--rule", "momentum:beta=0.5", "--seed", "5", *settings, "--out")
    python = (sys.executable, "-c", TRAIN)
    child = subprocess.Popen(
        [*python, *command, "run"], cwd=tmp_path, env=environment(site), stderr=subprocess.DEVNULL
    )
    states, deadline = tmp_path / "run" / "rounds", time.monotonic() + PATIENCE
    while len(list(states.glob("state-*.safetensors"))) < 4:
        assert child.poll() is None, "the child must not end by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait(timeout=PATIENCE) == -signal.SIGKILL
    assert not (tmp_path / "run" / "run.nc").exists()

    again = process(*python, *command, "run", "--resume")
    assert again.returncode == 0, again.stderr
    assert "going on from round" in again.stderr
    whole = process(*python, *command, "whole")
    assert whole.returncode == 0, whole.stderr
    found, wanted = (load_dataset(tmp_path / name / "run.nc") for name in ("run", "whole"))
    xr.testing.assert_identical(found, wanted)
    name = "rounds/state-00030.safetensors"
    last, other = (load_file(tmp_path / folder / name) for folder in ("run", "whole"))
    assert [key for key in last if key.startswith("rule.velocity/")]
    assert last.keys() == other.keys()
    assert all(torch.equal(last[key], other[key]) for key in last)
