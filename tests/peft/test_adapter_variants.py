"""Adapters of other kinds, trained and saved by PEFT, are refused by name."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from adapter_cases import (
    assert_same,
    base_model,
    cut,
    dense_average,
    load,
    lora_layers,
    third_party_warnings_ignored,
)
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from fedlora_sim.errors import InputError
from fedlora_sim.peft import AdapterFolder, aggregate_adapters
from fedlora_sim.randomness import library_draws

WEIGHTS = "adapter_model.safetensors"
TARGETS = {"target_modules": ["q_proj", "down_proj"]}


def saved(folder, config, model=None):
    with third_party_warnings_ignored(), library_draws(0):
        model = base_model("llama", torch.float32) if model is None else model
        get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LoraConfig(**TARGETS, use_dora=True), "use_dora=True"),
        (LoraConfig(**TARGETS, lora_bias=True), "lora_bias=True"),
        (LoraConfig(**TARGETS, init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (LoraConfig(**TARGETS, init_lora_weights="olora"), "init_lora_weights='olora'"),
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "peft_type='IA3'"),
        (LoHaConfig(**TARGETS), "peft_type='LOHA'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_adapters_are_refused_by_name(tmp_path, config, named):
    model = None
    if named == "lora_bias=True":  # LLaMA's modules have no bias
        model = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "down_proj": nn.Linear(4, 4)})
        config.r = 2
    folder = saved(tmp_path / "client", config, model)
    with pytest.raises(InputError) as refusal:
        aggregate_adapters([folder], None, "fedavg", tmp_path / "out")
    assert f"adapter_config.json: {named}" in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_variant_that_only_its_tensors_show_is_refused(tmp_path):
    folder = saved(tmp_path / "client", LoraConfig(**TARGETS, use_dora=True))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_dora": False}))
    with pytest.raises(InputError, match=r"lora_magnitude_vector.*plain LoRA"):
        AdapterFolder(folder)


def test_attention_in_one_module_is_refused(tmp_path):
    """PEFT nests two LoRA layers there, whose ranks share one name."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    folder = saved(tmp_path / "client", LoraConfig(r=2, target_modules=["attention"]), model)
    with pytest.raises(InputError, match="not inside of another LoRA layer"):
        AdapterFolder(folder)


def test_grouped_convolutions_are_refused(tmp_path):
    """Their B has r / groups columns: the update is not B @ A."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.warns(UserWarning, match="groups > 1"):
        folder = saved(tmp_path / "client", LoraConfig(r=2, target_modules=["0"]), model)
    with pytest.raises(InputError, match=r"lora_B\.weight=.*expected rank 2"):
        AdapterFolder(folder)


def test_rslora_stays_rslora(clients, tmp_path):
    folders = clients("gpt2", {"r": 3, "use_rslora": True}, {"r": 5, "use_rslora": True})
    aggregate_adapters(folders, None, "raflora", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["r"], config["lora_alpha"]) == (True, 5, math.sqrt(5))


def test_clients_of_one_rank_and_two_scalings_have_a_folder_each(clients, tmp_path):
    settings = [{"r": 4, "lora_alpha": alpha} for alpha in (4, 8, 4)]
    folders = clients("gpt2", *settings)
    out = tmp_path / "out"
    report = aggregate_adapters(folders, None, "fedavg", out, client_folders=True)
    assert report.client_folders == ("clients/rank-4", "clients/rank-4-client-2", "clients/rank-4")
    for place, scaling in zip(report.client_folders, (1, 2, 1), strict=True):
        assert {s for _, _, s in lora_layers(load("gpt2", out / place)).values()} == {scaling}


def in_dtype(folder, to, dtype, factor=1.0):
    shutil.copytree(folder, to)
    tensors = {key: (factor * x).to(dtype) for key, x in load_file(to / WEIGHTS).items()}
    save_file(tensors, to / WEIGHTS)
    return to


def test_clients_of_different_precision_are_computed_in_the_wider_one(clients, tmp_path):
    """bfloat16 and float16 have no common half: float32 holds both."""
    whole = clients("gpt2", {"r": 2}, {"r": 4})
    dtypes = (torch.bfloat16, torch.float16)
    folders = [in_dtype(f, tmp_path / str(d), d) for f, d in zip(whole, dtypes, strict=True)]
    aggregate_adapters(folders, [3, 1], "fedavg", tmp_path / "out")
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    views = [lora_layers(load("gpt2", folder)) for folder in folders]
    for name, (a, b, scaling) in lora_layers(load("gpt2", tmp_path / "out")).items():
        wanted = cut(dense_average([view[name] for view in views], [3, 1], "fedavg"), 4)
        assert_same(scaling * b @ a, wanted, dtype=torch.float32)


def test_values_outside_of_the_clients_precision_are_refused(clients, tmp_path):
    """Half precision ends at 65504, which the factors exceed by their scaling."""
    settings = {"r": 2, "lora_alpha": 2_000_000_000}
    folder = clients("gpt2", settings)[0]
    half = in_dtype(folder, tmp_path / "half", torch.float16, factor=1e3)
    with pytest.raises(InputError, match=r"at most 65504, to fit torch\.float16"):
        aggregate_adapters([half], None, "fedavg", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["half"]
