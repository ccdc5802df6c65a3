"""A run on disk: stopped anywhere and continued, it ends with the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from run_cases import TINY

from fedlora_sim import simulate
from fedlora_sim.errors import InputError
from fedlora_sim.finetune import run as finetune_run
from fedlora_sim.finetune.checkpoints import Checkpoints, load_state, read_description, state_rounds
from fedlora_sim.finetune.run import FederatedRun, run_training
from fedlora_sim.rules import get_rule

CASES = {
    "fedavg": ("fedavg", {}),
    "raflora": ("raflora", {"cohort_size": 3, "empty_partition": "zero"}),
    "flora": ("flora", {"lora_alpha": 6.0}),
    "fedex": ("fedex", {"allocation": "random"}),
    "ffa": ("ffa", {"cohort_size": 2, "allocation": "importance"}),
    "hetlora": ("hetlora", {"sampling": "bernoulli", "cohort_size": 3}),
    "pruned": (
        "raflora",
        {"pruning_decay": 0.5, "pruning_penalty": 50.0, "learning_rate": 0.02, "cohort_size": 4},
    ),
    "sparse start": ("rbla", {"initializer": "slora"}),
    "sparse start, frozen A": ("ffa", {"initializer": "slora", "cohort_size": 2}),
    "heads": ("raflora", {"counterfactuals": True, "evaluate_every": 2}),
}


class StoppedError(Exception):
    """An interruption from outside."""


def stop_after(number: int):
    """Return a progress callback that stops a run after a number of rounds."""
    count = 0

    def progress(_: float) -> None:
        nonlocal count
        count += 1
        if count > number:  # the first call is for the start
            raise StoppedError

    return progress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_ends_as_if_it_had_not_been(tiny_task, folder, case):
    rule, changes = CASES[case]
    task = replace(tiny_task, head_modules=("head",)) if case == "heads" else tiny_task
    run = partial(simulate, TINY.replace(**changes), rule=rule, seed=5, task=task)
    with pytest.raises(StoppedError):
        run(checkpoints=folder, on_progress=stop_after(2))
    assert run(checkpoints=folder).identical(run())


@pytest.mark.slow
def test_a_run_continues_after_any_number_of_stops(tiny_task, folder):
    run = partial(simulate, TINY, seed=5, task=tiny_task)
    for _ in range(2):
        with pytest.raises(StoppedError):
            run(checkpoints=folder, on_progress=stop_after(1))
    for progress in ([2 / 3, 1 / 3], [1.0]):  # stored rounds come first
        done = []
        assert run(checkpoints=folder, on_progress=done.append).identical(run())
        assert done == progress


@pytest.mark.slow
def test_several_seeds_have_separate_folders(tiny_task, folder):
    with pytest.raises(StoppedError):
        simulate(TINY, seed=[1, 2], task=tiny_task, checkpoints=folder, on_progress=stop_after(5))
    found = simulate(TINY, seed=[1, 2], task=tiny_task, checkpoints=folder)
    assert found.identical(simulate(TINY, seed=[1, 2], task=tiny_task))
    assert sorted(path.name for path in folder.iterdir()) == ["seed-1", "seed-2"]


def run_with(task, folder: Path, keep: str, rule: str = "fedex") -> FederatedRun:
    """Return a finished run that was kept."""
    run = FederatedRun(TINY, get_rule(rule), 5, task)
    run.run(checkpoints=Checkpoints(folder, run.description(), keep))
    return run


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["fedex", "raflora", "flora", "ffa"])
def test_the_last_state_replaces_the_older_ones(tiny_task, folder, rule):
    run = run_with(tiny_task, folder, "last", rule)
    assert state_rounds(folder) == [0, 3]
    assert len(list(folder.glob("measures-*"))) == 4
    assert_same_state(load_state(folder, 3, torch.device("cpu")), run.state)
    with pytest.raises(InputError, match=r"round=1: expected one whose state is in .*\[0, 3\]"):
        load_state(folder, 1, torch.device("cpu"))


def test_all_states_can_be_kept_and_any_round_trained_again(tiny_task, folder):
    run_with(replace(tiny_task, head_modules=("head",)), folder, "all")
    assert state_rounds(folder) == [0, 1, 2, 3]
    task = replace(tiny_task, head_modules=("head",))
    other = FederatedRun(TINY, get_rule("fedex"), 5, task)
    for t in range(3):
        assert_same_state(load_state(folder, t, torch.device("cpu")), other.state)
        other.round(t)


def assert_same_state(found, wanted) -> None:
    """Check bits and strides: a product of the same numbers in another layout has other bits."""
    for name, factors in wanted.adapters.items():
        assert found.adapters[name].lora_A.stride() == factors.lora_A.stride()
        assert found.adapters[name].lora_B.stride() == factors.lora_B.stride()
        assert torch.equal(found.adapters[name].lora_A, factors.lora_A)
        assert torch.equal(found.adapters[name].lora_B, factors.lora_B)
        assert found.adapters[name].scaling == factors.scaling
    assert found.base.keys() == wanted.base.keys()
    assert found.heads.keys() == wanted.heads.keys()
    for name, matrix in wanted.base.items():
        assert torch.equal(found.base[name], matrix)
    for name, own in wanted.heads.items():
        assert all(map(torch.equal, found.heads[name], own))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "rule", "message"),
    [
        ({"rounds": 9}, "raflora", r"rounds=9: expected 3, as in the run in .*seed-5"),
        ({"learning_rate": 0.5}, "raflora", r"learning_rate=0\.5: expected 0\.001"),
        ({"cohort_size": 2}, "raflora", "cohort_size=2: expected 'none'"),
        ({}, "fedavg", "rule='fedavg': expected 'raflora'"),
    ],
)
def test_another_run_is_refused_and_nothing_written(tiny_task, folder, changes, rule, message):
    simulate(TINY, seed=5, task=tiny_task, checkpoints=folder)
    before = {path: path.read_bytes() for path in (folder / "seed-5").iterdir()}
    with pytest.raises(ValueError, match=message):
        simulate(TINY.replace(**changes), rule=rule, seed=5, task=tiny_task, checkpoints=folder)
    assert {path: path.read_bytes() for path in (folder / "seed-5").iterdir()} == before


def test_a_folder_without_a_description_of_its_run_is_refused(tiny_task, folder):
    simulate(TINY, seed=5, task=tiny_task, checkpoints=folder)
    described = json.loads((folder / "seed-5" / "run.json").read_text(encoding="utf-8"))
    del described["numpy_version"]
    (folder / "seed-5" / "run.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(ValueError, match=r"numpy_version='.*': expected None, as in the run in"):
        simulate(TINY, seed=5, task=tiny_task, checkpoints=folder)


def test_a_custom_task_is_not_the_scenarios(make_run, tiny_task, folder):
    """`make_run` loads the tiny task as the scenario's."""
    simulate(make_run().scenario, seed=5, checkpoints=folder)
    with pytest.raises(ValueError, match="task='given by the caller': expected 'digits'"):
        simulate(make_run().scenario, seed=5, checkpoints=folder, task=tiny_task)


def test_leftovers_of_a_killed_run_are_dropped(tiny_task, folder):
    """Half a file under a temporary name, and measures of a round without a state."""
    wanted = simulate(TINY, seed=5, task=tiny_task)
    with pytest.raises(StoppedError):
        simulate(TINY, seed=5, task=tiny_task, checkpoints=folder, on_progress=stop_after(1))
    own = folder / "seed-5"
    (own / ".state-00003.safetensors.0123456789abcdef.tmp").write_bytes(b"half")
    (own / "measures-00002.safetensors").write_bytes(b"half")
    assert simulate(TINY, seed=5, task=tiny_task, checkpoints=folder).identical(wanted)
    assert not list(own.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["all", "last"])
@pytest.mark.parametrize("rule", ["raflora", "flora", "ffa"])
def test_a_start_that_took_training_is_not_trained_again(
    tiny_task, folder, rule, keep, monkeypatch
):
    scenario, rule = TINY.replace(initializer="slora", slora_rounds=1), get_rule(rule)
    wanted = run_training(scenario, rule, [5], task=tiny_task)[0]
    with pytest.raises(StoppedError):
        run_training(
            scenario, rule, [5], stop_after(2), task=tiny_task, checkpoints=folder, keep=keep
        )
    monkeypatch.delattr(finetune_run, "sparse_stage")
    found = run_training(scenario, rule, [5], task=tiny_task, checkpoints=folder, keep=keep)[0]
    assert np.array_equal(found.singular_values, wanted.singular_values)


def test_what_describes_a_run(tiny_task, folder):
    run_with(tiny_task, folder, "last")
    described = read_description(folder)
    assert described == json.loads((folder / "run.json").read_text())
    assert (described["rule"], described["seed"]) == ("fedex", 5)
    assert described["learning_rate"] == TINY.learning_rate
    assert read_description(folder / "elsewhere") is None
    assert state_rounds(folder / "elsewhere") == []


def test_bad_input(tiny_task, folder):
    with pytest.raises(InputError, match=r"keep='lest'.*'last'"):
        Checkpoints(folder, {}, "lest")
    with pytest.raises(InputError, match="checkpoints='given'"):
        simulate(TINY.replace(fidelity="spectral"), checkpoints=folder)
    assert not folder.exists()
    with pytest.raises(InputError, match="keep='some'"):
        run_training(
            TINY, get_rule("raflora"), [1], task=tiny_task, checkpoints=folder, keep="some"
        )


def test_a_folder_does_not_continue_with_other_data(tiny_task, folder):
    simulate(TINY, seed=5, task=tiny_task, checkpoints=folder)
    labels = tiny_task.train.labels.flip(0)
    other = replace(tiny_task, train=replace(tiny_task.train, labels=labels))
    with pytest.raises(ValueError, match="data_content="):
        simulate(TINY, seed=5, task=other, checkpoints=folder)


def test_a_run_can_be_run_again(tiny_task):
    run = FederatedRun(TINY, get_rule("raflora"), 5, tiny_task)
    first, again = run.run(), run.run()
    assert np.array_equal(first.singular_values, again.singular_values)


def test_a_custom_task_is_converted_to_the_scenarios_dtype(tiny_task):
    run = FederatedRun(TINY.replace(dtype="float32"), get_rule("raflora"), 5, tiny_task)
    assert run.task.dtype == torch.float32
    assert tiny_task.dtype == torch.float64
