"""The aggregated folder in the real PEFT against dense merges that the test computes itself."""

from __future__ import annotations

import pytest
import torch
from adapter_cases import (
    RANKS,
    SAMPLES,
    SETTINGS,
    assert_same,
    base_model,
    cut,
    dense_average,
    load,
    lora_layers,
    merged_model,
    outputs,
)

from fedlora_sim.adapters import aggregate_adapters

CONVENTIONS = {
    "alpha_over_r": [{"r": r, "lora_alpha": 12} for r in RANKS],
    "rslora": [{"r": r, "lora_alpha": 5, "use_rslora": True} for r in RANKS],
    "mixed": [{"r": r, "lora_alpha": 3 + r, "use_rslora": r == 4} for r in RANKS],
}
PATTERN = {
    "bert": r"layer\.0\..*query",
    "gpt2": "h.1.attn.c_attn",
    "llama": "layers.1.self_attn.q_proj",
    "conv": "line",
}


def with_pattern(architecture, r):
    name = PATTERN[architecture]
    patterns = {"rank_pattern": {name: r + 1}, "alpha_pattern": {name: 9}}
    return {"r": r, "lora_alpha": 12, **patterns}


def without_extras(architecture, wanted_from):
    """The dense merge leaves a trained classifier out: take it from the aggregated model."""
    return {} if architecture != "bert" else wanted_from


def compare(architecture, folder, deltas):
    """Outputs of PEFT with the folder against those of the base model with dense updates."""
    model = load(architecture, folder)
    merged = merged_model(architecture, deltas)
    if architecture == "bert":  # a trained classifier, averaged, which its own test looks at
        merged.classifier = model.base_model.model.classifier.modules_to_save["default"]
    assert_same(outputs(model), outputs(merged))


@pytest.mark.parametrize("architecture", SETTINGS)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("rule", ["fedavg", "raflora"])
def test_different_ranks(clients, tmp_path, architecture, convention, rule):
    folders = clients(architecture, *CONVENTIONS[convention])
    aggregate_adapters(folders, SAMPLES, rule, tmp_path / "out")
    views = [lora_layers(load(architecture, folder)) for folder in folders]
    deltas = {
        name: cut(dense_average([view[name] for view in views], SAMPLES, rule), max(RANKS))
        for name in views[0]
    }
    compare(architecture, tmp_path / "out", deltas)


@pytest.mark.parametrize("architecture", SETTINGS)
@pytest.mark.parametrize("rule", ["fedavg", "raflora"])
def test_ranks_by_pattern(clients, tmp_path, architecture, rule):
    folders = clients(architecture, *(with_pattern(architecture, r) for r in RANKS))
    aggregate_adapters(folders, SAMPLES, rule, tmp_path / "out")
    views = [lora_layers(load(architecture, folder)) for folder in folders]
    assert {a.shape[0] for a, _, _ in views[0].values()} == {2, 3}
    deltas = {
        name: cut(
            dense_average([view[name] for view in views], SAMPLES, rule),
            max(view[name][0].shape[0] for view in views),
        )
        for name in views[0]
    }
    compare(architecture, tmp_path / "out", deltas)


@pytest.mark.parametrize("architecture", SETTINGS)
@pytest.mark.parametrize("convention", ["alpha_over_r", "rslora", "pattern"])
@pytest.mark.parametrize("rule", ["fedavg", "raflora", "zero_pad"])
def test_one_client_is_the_identity(clients, tmp_path, architecture, convention, rule):
    if convention == "pattern":
        settings = [with_pattern(architecture, r) for r in RANKS]
    else:
        settings = CONVENTIONS[convention]
    folder = clients(architecture, *settings)[1]
    aggregate_adapters([folder], [17], rule, tmp_path / "out")
    before, after = load(architecture, folder), load(architecture, tmp_path / "out")
    assert_same(outputs(after), outputs(before))
    base = outputs(base_model(architecture))
    assert float((outputs(before) - base).norm()) > 0.01 * float(base.norm())


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_weight_zero_and_a_client_listed_twice(clients, tmp_path, architecture):
    a, b, c = clients(architecture, *CONVENTIONS["alpha_over_r"])
    aggregate_adapters([a, c, a], [30, 40, 50], "fedavg", tmp_path / "twice")
    aggregate_adapters([a, b, c], [80, 0, 40], "fedavg", tmp_path / "once")
    twice, once = load(architecture, tmp_path / "twice"), load(architecture, tmp_path / "once")
    assert_same(outputs(twice), outputs(once))


def test_the_target_rank_is_the_best_approximation(clients, tmp_path):
    folders = clients("llama", *CONVENTIONS["mixed"])
    aggregate_adapters(folders, SAMPLES, "fedavg", tmp_path / "out", target_rank=3)
    views = [lora_layers(load("llama", folder)) for folder in folders]
    deltas = {
        name: cut(dense_average([view[name] for view in views], SAMPLES, "fedavg"), 3)
        for name in views[0]
    }
    compare("llama", tmp_path / "out", deltas)
    assert {a.shape[0] for a, _, _ in lora_layers(load("llama", tmp_path / "out")).values()} == {3}


@pytest.mark.parametrize("architecture", ["gpt2", "conv"])
def test_client_folders_are_cut_to_the_clients_ranks_and_scalings(clients, tmp_path, architecture):
    folders = clients(architecture, *CONVENTIONS["mixed"])
    out = tmp_path / "out"
    report = aggregate_adapters(folders, SAMPLES, "raflora", out, client_folders=True)
    assert report.client_folders == ("clients/rank-2", "clients/rank-4", "clients/rank-8")
    total = lora_layers(load(architecture, out))
    for folder, place in zip(folders, report.client_folders, strict=True):
        received = load(architecture, out / place)
        own = lora_layers(load(architecture, folder))
        for name, (a, b, scaling) in lora_layers(received).items():
            assert a.shape == own[name][0].shape
            assert scaling == own[name][2]
            wanted = cut(total[name][2] * total[name][1] @ total[name][0], a.shape[0])
            assert_same(scaling * b @ a, wanted)


def test_half_precision_is_kept_and_computed_in_single(clients, tmp_path):
    settings = [{"r": r, "lora_alpha": 8, "dtype": torch.bfloat16} for r in (2, 4)]
    folders = clients("llama", *settings)
    aggregate_adapters(folders, [1, 1], "fedavg", tmp_path / "out")
    from safetensors.torch import load_file

    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    views = [lora_layers(load("llama", folder)) for folder in folders]
    for name, (a, b, scaling) in lora_layers(load("llama", tmp_path / "out")).items():
        wanted = cut(dense_average([view[name] for view in views], [1, 1], "fedavg"), 4)
        error = (scaling * b @ a - wanted).norm()
        assert error <= 2 * 2**-8 * wanted.norm()  # bfloat16 keeps 8 digits of each factor
