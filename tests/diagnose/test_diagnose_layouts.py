"""Runs of other frameworks: every layout is recognized, and gives the same energies."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diagnose_cases import ALPHA, MODULES, WRITERS, state, toy, write_peft

from analysis import diagnose
from analysis.diagnose.layouts import Scalings, find_run
from analysis.diagnose.spectra import read_spectra
from fedlora_sim.errors import InputError
from fedlora_sim.peft.server import CORRECTION, AdapterServer, split_state
from fedlora_sim.tolerances import relative


def energies(rounds) -> np.ndarray:
    return np.stack(
        [
            np.stack([np.linalg.svd(a[m].delta().numpy())[1][:4] ** 2 for m in MODULES])
            for a in rounds
        ]
    )


@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize("layout", WRITERS)
def test_layouts_are_recognized(layout: str, is_given: bool, tmp_path: Path) -> None:
    rounds = toy("fedavg")
    WRITERS[layout](tmp_path / "run", rounds)
    found = find_run(tmp_path / "run", layout if is_given else None, Scalings(ALPHA))
    assert found.layout == layout
    spectra = read_spectra(found)
    first = 0 if layout == "flora" else 1
    assert spectra.rounds.tolist() == list(range(first, 9))
    assert spectra.layers == MODULES
    assert spectra.is_scaled
    expected = energies(rounds.adapters[first:])
    error = np.abs(spectra.energy - expected).max() / expected.max()
    assert error < relative("factorization", "float32")
    if layout == "fedfm":
        assert found.group_ranks == (2, 4)
    if layout == "flora":
        assert list(found.rounds[1].clients) == ["0", "1", "2", "3"]


def test_the_layout_can_be_given(tmp_path: Path) -> None:
    rounds = toy("fedavg")
    for t in (1, 2, 10):
        write_peft(tmp_path / f"run-7_epoch{t}", rounds.adapters[t % 9])
    found = find_run(tmp_path, r"epoch(\d+)", Scalings())
    assert [files.number for files in found.rounds] == [1, 2, 10]
    with pytest.raises(InputError, match="round in the path"):
        find_run(tmp_path, None, Scalings())
    with pytest.raises(InputError, match="one group, the round"):
        find_run(tmp_path, r"(e)poch(\d+)", Scalings())
    with pytest.raises(InputError, match="layout='flowertunes'"):
        find_run(tmp_path, "flowertunes", Scalings())


def test_the_innermost_number_is_the_round(tmp_path: Path) -> None:
    WRITERS["flora"](tmp_path / "10", toy("fedavg"))
    for layout in (None, "flora", "rounds"):
        found = find_run(tmp_path, layout, Scalings(ALPHA))
        assert [files.number for files in found.rounds] == list(range(9))
        assert all(len(files.clients) == 4 for files in found.rounds[1:])


@pytest.mark.parametrize("rule", ["flora", "fedex"])
def test_a_base_correction_is_no_layer(rule: str) -> None:
    server = AdapterServer(lora_alpha=ALPHA, rule=rule)
    first = state(toy("fedavg").adapters[0], "base_model.model.")
    replies = [server.for_client(first, rank) for rank in (2, 4)]
    after = server.aggregate(first, replies, [1, 1], 1)
    assert any(key.startswith(CORRECTION) for key in after)
    found = diagnose([first, after], ranks="2,4", alpha=ALPHA)
    alone = diagnose([first, split_state(after)[0]], ranks="2,4", alpha=ALPHA)
    np.testing.assert_array_equal(found.energy, alone.energy)


def test_missing_and_truncated_rounds(tmp_path: Path) -> None:
    run = tmp_path / "run"
    WRITERS["openfedllm"](run, toy("fedavg"))
    shutil.rmtree(run / "checkpoint-3")
    found = diagnose(run, ranks="2x2,4x2", cohort=4)
    assert found.gaps == (3,)
    assert found.rounds == (1, 2, 4, 5, 6, 7, 8)
    assert found.collapses
    file = run / "checkpoint-4" / "adapter_model.bin"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match=r"checkpoint-4.*plain tensors"):
        diagnose(run, ranks="2x2,4x2")


def test_a_pickle_of_code_is_refused(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self):
            return Path.touch, (tmp_path / "canary",)

    folder = tmp_path / "run" / "1"
    folder.mkdir(parents=True)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"model": Canary()}))
    with pytest.raises(InputError, match="plain tensors"):
        diagnose(tmp_path / "run")
    torch.save({"model": Canary()}, folder / "adapter_model.bin")
    with pytest.raises(InputError, match="plain tensors"):
        diagnose(tmp_path / "run")
    assert not (tmp_path / "canary").exists()


def test_several_runs_in_a_folder_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_peft(tmp_path / name / "peft_1", toy("fedavg").adapters[1])
    with pytest.raises(InputError, match="one run; there are 2"):
        diagnose(tmp_path)


def test_bad_state_dicts() -> None:
    good = state(toy("fedavg").adapters[0])
    key = f"{MODULES[0]}.lora_B.weight"
    cases = {
        "A and B of each module": {k: v for k, v in good.items() if k != key},
        "one factor B": {**good, f"model.{key}": good[key]},
        "finite entries": {**good, key: good[key] * torch.nan},
        "lora_A has rows": {**good, key: good[key][:, :3]},
        "keys with lora_A": {"weight": good[key]},
        "floating-point matrix": {**good, key: good[key].int()},
        "not several with names": {**good, **state(toy("fedavg").adapters[0], "x.", ".other")},
    }
    for message, bad in cases.items():
        with pytest.raises(InputError, match=message):
            diagnose([bad])
    with pytest.raises(InputError, match="the modules of"):
        diagnose([good, state({MODULES[0]: toy("fedavg").adapters[0][MODULES[0]]})])
