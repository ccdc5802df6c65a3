"""A diagnosis holds the tensors of one module of one round, however long the run is."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from analysis import diagnose
from fedlora_sim.peft.read import FileWeights


def write_run(folder: Path, rounds: int, modules: int) -> Path:
    rng = torch.Generator().manual_seed(0)
    names = [f"base_model.model.layers.{m}.q_proj.lora_" for m in range(modules)]
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    for t in range(rounds):
        tensors = {name + "A.weight": torch.randn(4, 12, generator=rng) for name in names}
        tensors |= {name + "B.weight": torch.randn(10, 4, generator=rng) for name in names}
        place = folder / f"peft_{t}"
        place.mkdir(parents=True)
        save_file(tensors, place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("rounds", "modules"), [(3, 4), (12, 20)])
def test_one_stored_tensor_is_in_memory_at_a_time(rounds, modules, tmp_path, monkeypatch):
    read, alive, most = 0, 0, 0
    tensor = FileWeights.tensor

    def released():
        nonlocal alive
        alive -= 1

    def counted(self, key):
        nonlocal read, alive, most
        found = tensor(self, key)
        weakref.finalize(found, released)
        read, alive = read + 1, alive + 1
        most = max(most, alive)
        return found

    monkeypatch.setattr(FileWeights, "tensor", counted)
    diagnose(write_run(tmp_path, rounds, modules), ranks="2,4")
    assert read == 2 * rounds * modules  # every tensor is read once
    assert most == 1
