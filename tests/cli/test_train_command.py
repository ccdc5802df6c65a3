"""`fedlora-sim train`: a run in a folder that continues to the same result after any stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import train_cases
import xarray as xr
from designs import each_value
from train_cases import RUN, TOML, use_small_task, write_scenario

import fedlora_cli.train as command
from fedlora_sim import Scenario, simulate
from fedlora_sim.finetune.run import FederatedRun
from fedlora_sim.storage import MARKER, load_dataset

draw_split = command.draw_split
STATES = [f"state-{t:05d}.safetensors" for t in range(4)]


@pytest.fixture
def small(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the scenario file of the small task."""
    use_small_task(monkeypatch)
    write_scenario()


def stop_at(monkeypatch: pytest.MonkeyPatch, t: int) -> None:
    """Send Ctrl-C before round t, counted from 0."""
    go_on = FederatedRun.round

    def stop(run: FederatedRun, number: int) -> object:
        if number == t:
            raise KeyboardInterrupt
        return go_on(run, number)

    monkeypatch.setattr(FederatedRun, "round", stop)


def states(folder: str = "run") -> list[str]:
    return sorted(path.name for path in Path(folder, "rounds").glob("state-*"))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_run_in_its_folder(
    fedlora: Callable, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "draw_split", draw_split)
    done = fedlora("train", *RUN, "--seed", "5", "--rule", "fedavg")
    assert done.code == 0, done.err
    assert done.out == "wrote run/run.nc\n"
    assert [line.split(": ")[0] for line in done.err.splitlines()] == [
        f"round {t} of 3" for t in (1, 2, 3)
    ]
    assert "accuracy 0." in done.err
    assert "rho 0." in done.err
    assert sorted(path.name for path in (here / "run").iterdir()) == [
        MARKER,
        "rounds",
        "run.nc",
        "split.png",
    ]
    assert states() == STATES
    data = load_dataset("run/run.nc")
    scenario = Scenario.from_attrs(data.attrs)
    assert scenario.fidelity == "training"
    xr.testing.assert_identical(data, simulate(scenario, rule="fedavg", seed=5))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_options_win_over_the_file_and_settings_over_both(fedlora: Callable) -> None:
    given = ("--threads", "2", "--set", "threads=1", "--set", "rounds=1")
    done = fedlora("train", *RUN, "--device", "auto", *given)
    assert done.code == 0, done.err
    scenario = Scenario.from_attrs(load_dataset("run/run.nc").attrs)
    assert (scenario.threads, scenario.rounds, scenario.device) == (1, 1, "auto")


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_only_the_last_state_is_kept_if_requested(fedlora: Callable) -> None:
    assert fedlora("train", *RUN, "--keep", "last").code == 0
    assert states() == [STATES[0], STATES[-1]]
    assert fedlora("train", *RUN, "--keep", "last", "--resume").code == 0


CASES = [
    ("raflora", ()),
    ("flora", ("--set", "optimizer=sgd", "--set", "learning_rate=0.1")),
    # The bits of these rules were observed to depend on the memory layout of the global update.
    ("raflora", ("--set", "dtype=float64", "--seed", "2")),
    ("hetlora", ("--set", "pruning_decay=0.6", "--set", "counterfactuals=true")),
]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@each_value(case=CASES, stopped_at=[0, 2])
def test_ctrl_c_and_resume_give_the_undisturbed_result(
    fedlora: Callable,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, tuple[str, ...]],
    stopped_at: int,
) -> None:
    rule, settings = case
    command = ("train", "--scenario", "s.toml", "--rule", rule, *settings, "--out")
    with monkeypatch.context() as patch:
        stop_at(patch, stopped_at)
        stopped = fedlora(*command, "run")
    assert stopped.code == 130
    assert f"{stopped_at} finished rounds are kept in run/rounds" in stopped.err
    assert "the same command with --resume goes on" in stopped.err
    assert not Path("run/run.nc").exists()

    again = fedlora(*command, "run", "--resume")
    assert again.code == 0, again.err
    assert ("going on from round 2 of 3" in again.err) is (stopped_at == 2)
    assert fedlora(*command, "whole").code == 0
    xr.testing.assert_identical(load_dataset("run/run.nc"), load_dataset("whole/run.nc"))
    assert states("run") == states("whole") == STATES


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_resume_starts_an_empty_folder_and_accepts_a_finished_one(
    fedlora: Callable,
) -> None:
    assert fedlora("train", *RUN, "--resume").code == 0
    first = Path("run/run.nc")
    data = load_dataset(first)
    first.unlink()  # stopped after the last round
    assert fedlora("train", *RUN, "--resume").code == 0
    xr.testing.assert_identical(load_dataset(first), data)


@pytest.mark.usefixtures("small")
def test_ctrl_c_before_the_first_round(fedlora: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedlora_sim.finetune.run.FederatedRun", stop)
    stopped = fedlora("train", *RUN)
    assert stopped.code == 130
    assert "0 finished rounds" in stopped.err
    assert not Path("run").exists()


@pytest.mark.usefixtures("small")
def test_a_client_that_diverges_is_named_in_one_line(fedlora: Callable) -> None:
    done = fedlora("train", *RUN, "--set", "learning_rate=1e300", "--set", "optimizer=sgd")
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("fedlora-sim: learning_rate=1e+300: expected a rate at which")
    assert "diverged in round 1 at step 0 in blocks.0." in line
    assert "(client " in line


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_folder_of_a_run_is_not_begun_again(fedlora: Callable) -> None:
    assert fedlora("train", *RUN).code == 0
    before = Path("run/run.nc").read_bytes()
    again = fedlora("train", *RUN)
    assert again.code == 2
    refusal = "fedlora-sim: --out='run': expected a new folder, or --resume to go on\n"
    assert again.err == refusal
    assert Path("run/run.nc").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_another_run_does_not_continue_in_a_folder(fedlora: Callable) -> None:
    assert fedlora("train", *RUN).code == 0
    for changed in (("--seed", "1"), ("--rule", "fedavg"), ("--set", "rounds=4")):
        other = fedlora("train", *RUN, *changed, "--resume")
        assert other.code == 2
        (line,) = other.err.splitlines()
        assert "as in the run in run/rounds" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "fidelity=matrix"), "fidelity='matrix': expected training"),
        (("--set", "rounds=0"), "rounds=0: expected"),
        (("--set", "round=2"), "scenario field='round': expected"),
        (("--rule", "fedavgg"), "rule='fedavgg': expected"),
        (("--seed", "-1"), "--seed=-1: expected"),
        (("--keep", "some"), "--keep='some': expected one of all, last"),
        (("--device", "tpu"), "device='tpu': expected"),
        (("--threads", "0"), "threads=0: expected"),
        (("--scenario", "no.toml"), "scenario='no.toml': expected"),
        (("--out", "s.toml"), "--out='s.toml': expected a place to write to"),
        (
            ("--rule", "raflora:canonicalize=true", "--set", "allocation=random"),
            "allocation='random': expected svd for rule='raflora:canonicalize=true'",
        ),
        (("--set", "task=text"), "model=None: expected what task='text' is to load"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.usefixtures("small")
def test_bad_input_is_one_line_before_any_work(
    fedlora: Callable, here: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = fedlora("train", *RUN, *arguments)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith(f"fedlora-sim: {message}")
    assert [path.name for path in here.iterdir()] == ["s.toml"]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_simulate_continues_within_a_run(
    fedlora: Callable, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("simulate", "--scenario", "s.toml", "--set", "fidelity=training", "--out")
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert fedlora(*command, "x.nc").code == 130
    assert len(list(here.glob(".x.nc.parts/*/fedavg-0-0/seed-0/state-00002.safetensors"))) == 1
    done, go_on = [], FederatedRun.round

    def count(run: FederatedRun, t: int) -> object:
        done.append((run.rule.label, t))
        return go_on(run, t)

    with monkeypatch.context() as patch:
        patch.setattr(FederatedRun, "round", count)
        assert fedlora(*command, "x.nc").code == 0
    assert done == [("fedavg", 2), *(("raflora", t) for t in range(3))]
    assert fedlora(*command, "y.nc").code == 0
    xr.testing.assert_identical(load_dataset("x.nc"), load_dataset("y.nc"))
    assert sorted(path.name for path in here.iterdir()) == ["s.toml", "x.nc", "y.nc"]


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.usefixtures("small", "one_thread")
def test_a_process_that_is_stopped_and_then_killed_continues_to_the_same_bits(
    fedlora: Callable, here: Path
) -> None:
    """With enough rounds that both signals arrive during work."""
    Path("s.toml").write_text(TOML.replace("rounds = 3", "rounds = 300"))
    for more, finished, number, code in (
        ((), 2, signal.SIGINT, 130),
        (("--resume",), 10, signal.SIGKILL, -signal.SIGKILL),
    ):
        process = subprocess.Popen(
            [sys.executable, train_cases.__file__, "train", *RUN, *more],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # if a shell starts the tests in the background, they and their children ignore it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 300
        while f"state-{finished:05d}.safetensors" not in states() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (code, "")
        assert "Traceback" not in err
        assert not Path("run/run.nc").exists()

    again = fedlora("train", *RUN, "--resume")
    assert again.code == 0, again.err
    assert "going on from round" in again.err
    assert fedlora("train", "--scenario", "s.toml", "--out", "whole").code == 0
    xr.testing.assert_identical(load_dataset("run/run.nc"), load_dataset("whole/run.nc"))
