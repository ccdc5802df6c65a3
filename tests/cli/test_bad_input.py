"""Bad input: exit code 2, one line with argument, value and expectation, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedlora_cli.options import parse_assignment

SIMULATE = ("simulate", "--out", "x.nc", "--rounds", "2")
RANKS = (*SIMULATE, "--ranks", "2x2,4x1")


def refused(fedlora: Callable, here: Path, arguments: tuple[str, ...]) -> str:
    before = sorted(here.rglob("*"))
    outcome = fedlora(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert sorted(here.rglob("*")) == before
    (line,) = outcome.err.splitlines()
    assert line.startswith("fedlora-sim: ")
    assert "Traceback" not in line
    return line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "argument", "value", "expectation"),
    [
        (("verify", "--claim", "stair"), "claim", "'stair'", "did you mean 'staircase'"),
        (("verify", "--device", "gpu"), "device", "'gpu'", "cpu"),
        (("verify", "--seed", "-1"), "--seed", "-1", "non-negative"),
        (("simulate", "--out", "x.txt", "--ranks", "4"), "--out", "'x.txt'", ".nc"),
        (SIMULATE, "ranks", "None", "4x8"),
        ((*SIMULATE, "--ranks", "0x4"), "ranks", "'0'", "at least 1"),
        ((*SIMULATE, "--ranks", "4x0"), "ranks", "'0'", "at least 1"),
        ((*SIMULATE, "--ranks", "-4x2"), "ranks", "'-4x2'", "4x8"),
        ((*SIMULATE, "--ranks", "four"), "ranks", "'four'", "4x8"),
        ((*SIMULATE, "--ranks", "4x2,"), "ranks", "'4x2,'", "4x8"),
        ((*RANKS, "--fidelity", "matrix", "--set", "d_in=3"), "ranks", "4", "min(d_in, d_out) = 3"),
        ((*RANKS, "--cohort", "4"), "cohort_size", "4", "at most the federation's 3 clients"),
        ((*RANKS, "--cohort", "0"), "cohort_size", "0", "at least 1"),
        ((*RANKS, "--rule", "fedavgg"), "rule", "'fedavgg'", "did you mean 'fedavg'"),
        ((*RANKS, "--rule", "fedavg,"), "rule", "''", "one of fedavg"),
        ((*RANKS, "--rule", "fedavg,FedAvg"), "--rule", "'fedavg,FedAvg'", "each rule once"),
        ((*RANKS, "--fidelity", "spectra"), "fidelity", "'spectra'", "did you mean 'spectral'"),
        ((*RANKS, "--task", "cifar"), "task", "'cifar'", "digits"),
        ((*RANKS, "--device", "tpu"), "device", "'tpu'", "cpu"),
        ((*RANKS, "--seeds", "0"), "--seeds", "0", "at least 1"),
        ((*RANKS, "--seed", "-1"), "seed", "-1", "at least 0"),
        ((*RANKS, "--rounds", "0"), "rounds", "0", "at least 1"),
        ((*RANKS, "--set", "gain_sd=1"), "scenario field", "'gain_sd'", "did you mean 'gain_std'"),
        ((*RANKS, "--set", "gain_std"), "--set", "'gain_std'", "field=value"),
        ((*RANKS, "--set", "=1"), "--set", "'=1'", "field=value"),
        ((*RANKS, "--set", "gain_std=-1"), "gain_std", "-1", "at least 0"),
        ((*RANKS, "--set", "gain_std=nan"), "gain_std", "nan", "finite"),
        ((*RANKS, "--set", "gain_std=much"), "gain_std", "'much'", "finite"),
        ((*RANKS, "--set", "rounds=2.5"), "rounds", "2.5", "whole number"),
        ((*RANKS, "--set", "num_samples=[1, 2]"), "num_samples", "[1.0, 2.0]", "3 values"),
        ((*RANKS, "--set", "num_samples=[0, 0, 0]"), "num_samples", "[0.0", "positive"),
        ((*RANKS, "--set", "num_samples=[1, -2, 1]"), "num_samples", "-2", "at least 0"),
        ((*RANKS, "--set", "num_samples=3"), "num_samples", "3", "per client"),
        ((*SIMULATE, "--set", "ranks=4"), "ranks", "4", "per client"),
        ((*RANKS, "--set", "use_rslora=maybe"), "use_rslora", "'maybe'", "true"),
        ((*RANKS, "--set", "use_rslora=False"), "use_rslora", "'False'", "true"),
        ((*RANKS, "--set", "task_seed=1.5"), "task_seed", "1.5", "whole number"),
        ((*RANKS, "--scenario", "no.toml"), "scenario", "'no.toml'", "TOML"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_bad_arguments(
    fedlora: Callable,
    here: Path,
    arguments: tuple[str, ...],
    argument: str,
    value: str,
    expectation: str,
) -> None:
    line = refused(fedlora, here, arguments)
    assert f"{argument}={value}" in line
    assert ": expected " in line
    assert expectation in line


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("ranks = [4, 4\n", "scenario='s.toml'"),
        ("ranks = '4x2'\nrule = 'fedavg'\n", "scenario field='rule'"),
        ("scenario = 3\nranks = '4x2'\n", "scenario"),
        ("scenario = 'x'\n", "scenario"),
        ("rounds = 5\n[scenario]\nranks = '4x2'\n", "rounds"),
        ("ranks = '4x2'\nrounds = true\n", "rounds=True"),
        ("ranks = true\n", "ranks=True"),
    ],
)
def test_bad_scenario_file(fedlora: Callable, here: Path, content: str, named: str) -> None:
    Path("s.toml").write_text(content)
    assert named in refused(fedlora, here, ("simulate", "--out", "x.nc", "--scenario", "s.toml"))


def test_scenario_file_that_is_not_text(fedlora: Callable, here: Path) -> None:
    Path("s.toml").write_bytes(b"\xff\xfe\x00")
    arguments = ("simulate", "--out", "x.nc", "--scenario", "s.toml")
    assert "scenario='s.toml'" in refused(fedlora, here, arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "--out", "taken", "--quick"),
        ("verify", "--out", "taken/below", "--quick", "--claim", "raflora-carry-flat"),
        ("simulate", "--out", "taken/x.nc", "--ranks", "2x2", "--rounds", "2"),
        ("simulate", "--out", "folder.nc", "--ranks", "2x2", "--rounds", "2"),
    ],
    ids=" ".join,
)
def test_output_that_cannot_be_written_is_refused(
    fedlora: Callable, here: Path, arguments: tuple[str, ...]
) -> None:
    Path("taken").write_text("mine")
    Path("folder.nc").mkdir()
    assert f"--out='{arguments[2]}'" in refused(fedlora, here, arguments)
    assert Path("taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("verify", "--seed", "many"), "--seed"),
        (("verify", "--bogus"), "--bogus"),
        (("simulate", "--ranks", "4x2"), "--out"),
        (("simulat",), "simulat"),
    ],
)
def test_refusals_of_the_parser_are_named(
    fedlora: Callable, here: Path, arguments: tuple[str, ...], named: str
) -> None:
    outcome = fedlora(*arguments)
    assert outcome.code == 2
    assert named in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("rounds=3", "rounds", 3),
        ("gain_std = 0.5", "gain_std", 0.5),
        ("ranks=[2, 4]", "ranks", [2, 4]),
        ("ranks=2x3,4x1", "ranks", "2x3,4x1"),
        ("sampling='bernoulli'", "sampling", "bernoulli"),
        ("sampling=bernoulli", "sampling", "bernoulli"),
        ("use_rslora=true", "use_rslora", True),
        ("lora_alpha=none", "lora_alpha", "none"),
    ],
)
def test_assignments_read_as_toml_or_text(text: str, field: str, value: object) -> None:
    assert parse_assignment(text) == (field, value)
