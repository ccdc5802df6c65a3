"""Refusals of an export, before it writes anything."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from export_cases import TINY, keep_run, tiny_task

from fedlora_sim.errors import InputError
from fedlora_sim.finetune.run import run_training
from fedlora_sim.peft import AdapterFolder
from fedlora_sim.peft.export import KeptRun
from fedlora_sim.rules import get_rule
from fedlora_sim.runtime import one_thread

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def alone():
    """Provide one thread, as in a run."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a kept run of clients [0, 1, 2], [...], ..., its task and folder."""
    with one_thread():
        task, folder = tiny_task(), tmp_path_factory.mktemp("small")
        return keep_run(folder, task), task, folder


def test_a_client_that_did_not_take_part_is_refused_with_those_who_did(small, tmp_path):
    kept, _, _ = small
    there = kept.run.cohorts[1][0].tolist()
    absent = next(k for k in range(6) if k not in there)
    with pytest.raises(InputError) as refusal:
        kept.export_clients(2, [there[0], absent], tmp_path / "out")
    assert str(refusal.value).startswith(f"client={absent}: expected ")
    assert str(there) in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("t", [0, 4, -1])
def test_rounds_without_clients_are_refused(small, tmp_path, t):
    with pytest.raises(InputError, match=rf"^round={t}: expected .*\[1, 2, 3\]"):
        small[0].export_clients(t, None, tmp_path / "out")


@pytest.mark.parametrize("t", [4, -1])
def test_rounds_without_a_state_are_refused(small, tmp_path, t):
    with pytest.raises(InputError, match=rf"^round={t}: expected .*\[0, 1, 2, 3\]"):
        small[0].export_global(t, tmp_path / "out")


def test_only_the_last_state_kept(tmp_path):
    scenario, task = TINY.replace(rounds=2), tiny_task()
    run_training(scenario, get_rule("raflora"), [3], task=task, checkpoints=tmp_path)
    kept = KeptRun(tmp_path / "seed-3", task)
    kept.export_global(2, tmp_path / "out")
    assert AdapterFolder(tmp_path / "out").layers
    with pytest.raises(InputError, match=r"^round=2: expected a round whose start was kept, \[1\]"):
        kept.export_clients(2, None, tmp_path / "clients")


@pytest.mark.parametrize("allocation", ["random", "importance"])
def test_clients_of_other_allocations_are_refused(tmp_path, allocation):
    kept = keep_run(tmp_path, tiny_task(), rounds=1, allocation=allocation)
    with pytest.raises(InputError, match=f"^allocation='{allocation}': expected svd"):
        kept.export_clients(1, None, tmp_path / "out")
    kept.export_global(1, tmp_path / "out")
    assert AdapterFolder(tmp_path / "out").layers


def test_nothing_is_replaced_unless_forced(small, tmp_path):
    kept, _, _ = small
    kept.export_global(1, tmp_path / "out")
    before = (tmp_path / "out" / WEIGHTS).read_bytes()
    with pytest.raises(InputError, match=r"^out="):
        kept.export_global(2, tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == before
    kept.export_global(2, tmp_path / "out", force=True)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() != before


def test_other_data_than_the_runs_are_noticed(small, tmp_path):
    """Also if the data pass the checks at opening: training again shows the difference."""
    _, task, folder = small
    kept = KeptRun(folder / "seed-3", tiny_task())
    kept.run.task.train.labels.mul_(-1).add_(1)
    with pytest.raises(InputError, match=r"^folder=.*the run's own model and data"):
        kept.export_clients(1, None, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    assert KeptRun(folder / "seed-3", task).run.task.train.labels.equal(task.train.labels)


def test_folders_that_hold_no_run_that_can_be_opened(small, tmp_path):
    _, task, folder = small
    with pytest.raises(InputError, match=r"^folder="):
        KeptRun(tmp_path)
    with pytest.raises(InputError, match=r"^task=None"):
        KeptRun(folder / "seed-3")
    described = json.loads((folder / "seed-3" / "run.json").read_text())
    described.pop("rounds")
    (tmp_path / "run.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"^folder=.*this version of fedlora-sim .*'rounds'"):
        KeptRun(tmp_path, task)


def test_lora_on_modules_that_peft_saves_in_full_is_refused(tmp_path):
    task = tiny_task(heads=())
    both = (*task.target_modules, "classifier")
    kept = keep_run(tmp_path, replace(task, target_modules=both), ranks="2x3")
    with pytest.raises(InputError, match=r"^target_modules='classifier'"):
        kept.export_global(1, tmp_path / "out")


@pytest.mark.slow
def test_a_client_that_was_dropped_sent_nothing_back(tmp_path):
    changes = {"nonfinite": "drop-client", "client_learning_rates": (*[0.02] * 5, 1e300)}
    kept = keep_run(tmp_path, tiny_task(), cohort_size=6, **changes)
    assert kept.export_clients(1, None, tmp_path / "out").clients == (0, 1, 2, 3, 4)
    with pytest.raises(InputError, match=r"^client=5: expected one .*\[0, 1, 2, 3, 4\]"):
        kept.export_clients(1, [5], tmp_path / "other")
