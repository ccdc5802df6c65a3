"""`fedlora-sim study`: refusals, a tiny study from start to end, and one that is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import train_cases
from train_cases import use_small_task

import fedlora_cli.study as command
from analysis.studies.study import study_names
from fedlora_sim.sweep import run
from fedlora_sim.tasks.task import Examples
from paper_figs import style

TOML = """
name = "tiny"
about = "Two rules on a few digits."
rules = ["fedavg", "raflora"]
seeds = 2
target_accuracy = 0.1
counterfactual_rules = ["raflora"]
[scenario]
ranks = "2x2,4x2"
rounds = 2
local_steps = 1
[heterogeneity]
"dirichlet 0.5" = { split = "dirichlet", dirichlet_alpha = 0.5 }
"""
RUNS = 2 * (2 + 2)  # seeds, rules and equal ranks
STUDY = ("study", "tiny.toml", "--out", "t")
ONE_SEED = (*STUDY, "--seeds", "1")  # every process pretrains the model of every seed
DEADLINE = 300
FEW = SimpleNamespace(train=Examples({"x": torch.zeros(40, 1)}, torch.arange(40) % 10))
"""The part of a task that a split needs."""


@pytest.fixture
def tiny(here: Path) -> Path:
    path = here / "tiny.toml"
    path.write_text(TOML)
    return path


def report(out: str = "t") -> dict:
    return json.loads(Path(out, "study.json").read_text())


def kept() -> list[Path]:
    return list(Path("t/runs/tasks").glob("[!.]*.nc"))


def files(out: str = "t") -> set[str]:
    return {str(path.relative_to(out)) for path in Path(out).rglob("*") if path.is_file()}


def test_packaged_studies_are_listed(fedlora: Callable, here: Path) -> None:
    outcome = fedlora("study", "--list")
    assert outcome.code == 0
    assert [line.split(":")[0] for line in outcome.out.splitlines()] == study_names()
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "study=None: expected one of agnews, digits"),
        (("digit",), "did you mean 'digits'"),
        (("agnews",), "model=None"),
        (("absent.toml",), "readable TOML"),
        (("tiny.toml", "--workers", "0"), "--workers=0"),
        (("tiny.toml", "--seeds", "3"), "seeds=3: expected at most the 2"),
        (("tiny.toml", "--rules", "fedavg,rbla"), "rules='rbla'"),
        (("tiny.toml", "--rules", "fedavg,fedawg"), "did you mean 'fedavg'"),
        (("tiny.toml", "--heterogeneity", "iid"), "dirichlet 0.5"),
        (("tiny.toml", "--set", "roundz=3"), "did you mean 'rounds'"),
        (("tiny.toml", "--out", "tiny.toml"), "--out='tiny.toml'"),
        (("tiny.toml", "--report-only"), f"{RUNS} are missing"),
    ],
)
def test_bad_input(fedlora: Callable, tiny: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = fedlora("study", *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert message in line
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize("row", ["dirichlet_alfa = 0.5", 'split = "by_writer"'])
def test_errors_in_the_last_row_are_found_before_the_first_run(
    fedlora: Callable, tiny: Path, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    monkeypatch.setattr(run, "load_task", lambda scenario: FEW)
    tiny.write_text(TOML + f"last = {{ {row} }}\n")
    outcome = fedlora(*STUDY)
    assert outcome.code == 2
    assert ("dirichlet_alpha" if "alfa" in row else "groups") in outcome.err
    assert not Path("t").exists()


@pytest.mark.slow
def test_a_tiny_study_from_end_to_end(
    fedlora: Callable, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_task(monkeypatch)
    monkeypatch.setitem(style.RC, "savefig.dpi", 40)
    outcome = fedlora(*STUDY)
    assert outcome.code == 0, outcome.err
    # The figures were drawn once; drawing them for every later command takes seconds.
    monkeypatch.setattr(style, "image", lambda figure, kind, **_: memoryview(kind.encode()))
    assert [line.split(",")[0] for line in outcome.err.splitlines()] == [
        f"{i} of {RUNS} tasks" for i in range(1, RUNS + 1)
    ]
    made = {"runs/manifest.json", *(f"runs/tasks/{path.name}" for path in kept())}
    assert len(made) == 1 + RUNS
    figures = {f"figures/study_{n}.{k}" for n in ("curves", "outcomes") for k in ("png", "pdf")}
    documents = {".fedlora-sim.json", "data/curves.nc", "study.json", "study.md"}
    assert files() == {*made, *figures, *documents}
    found = report()
    assert [claim["id"] for claim in found["claims"]] == ["collapse", "prevention", "accuracy"]
    assert [claim["id"] for claim in found["left_out"]] == ["robustness"]
    assert found["command"] == "fedlora-sim study tiny.toml"
    assert str(tiny.parent) not in Path("t/study.json").read_text()
    for text in ("raflora", "collapse", "left out"):
        assert text in outcome.out

    again = fedlora(*STUDY)
    assert again.err == f"going on from {RUNS} of {RUNS} tasks\n"
    assert report() == found
    for mine in (
        "study.toml",
        "data/mine.nc",
        "figures/mine.png",
    ):  # in addition to the written files
        (Path("t") / mine).write_text("mine")
    only = fedlora(*STUDY, "--report-only", "--rules", "raflora", "--seeds", "1")
    assert only.code == 0
    assert only.err == ""
    part = report()
    assert part["command"] == "fedlora-sim study tiny.toml --rules raflora --seeds 1"
    assert not part["study"]["complete"]
    assert part["claims"] == []
    assert made | {"study.toml", "data/mine.nc", "figures/mine.png"} < files()
    assert fedlora(*STUDY, "--report-only").code == 0
    assert report() == found

    other = fedlora(*STUDY, "--set", "rounds=3")
    assert other.code == 2
    assert "rounds=3: expected" in other.err


def stopped(number: int) -> str:
    """Return the output of a study that gets a signal after storing one more run."""
    before = len(kept())
    process = subprocess.Popen(
        [sys.executable, train_cases.__file__, *ONE_SEED],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # if a shell starts the tests in the background, they and their children ignore SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + DEADLINE
    while len(kept()) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in err
    assert not Path("t/study.json").exists()
    return err


@pytest.mark.slow
@pytest.mark.deep
def test_a_study_that_is_stopped_and_then_killed_continues_to_the_same_result(
    fedlora: Callable, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = stopped(signal.SIGINT)
    assert f"of {RUNS} tasks are kept in t/runs; go on with: fedlora-sim study tiny.toml" in told
    stopped(signal.SIGKILL)

    use_small_task(monkeypatch)
    again = fedlora(*ONE_SEED)
    assert again.code == 0, again.err
    assert again.err.startswith("going on from ")
    assert not Path("t/runs/rounds").exists()
    assert fedlora(*ONE_SEED, "--out", "whole").code == 0
    assert report() == report("whole")


def test_an_interrupt_states_what_is_kept(
    fedlora: Callable, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.studies.run.run_study", stop)
    outcome = fedlora(*STUDY)
    assert outcome.code == 130
    assert "stopped; nothing was begun; go on with: fedlora-sim study" in outcome.err


def test_the_command_that_repeats_a_study_has_no_path_of_the_machine(here: Path) -> None:
    (here / "model").mkdir()
    settings = [f"model={here}/model", f"data={here}/train.tsv", "rounds=3"]
    line = command._command(f"{here}/own.toml", settings, ["fedavg"], ["dirichlet 0.5"], 2)
    assert str(here) not in line
    assert line == (
        "fedlora-sim study own.toml --set model=model --set data=train.tsv --set rounds=3 "
        "--rules fedavg --heterogeneity 'dirichlet 0.5' --seeds 2"
    )
