"""The aggregated folder in PEFT against dense merges computed by the tests."""

from __future__ import annotations

import json

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
    share_a,
    third_party_warnings_ignored,
)
from designs import each_value, pairwise
from peft import PeftModel
from safetensors.torch import load_file

from fedlora_sim.peft import AdapterFolder, aggregate_adapters
from fedlora_sim.rules import rule_names

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


def compare(architecture, folder, deltas):
    """Compare PEFT's outputs with the folder with those of the base model with dense updates."""
    model = load(architecture, folder)
    merged = merged_model(architecture, deltas)
    if architecture == "bert":  # a trained and averaged classifier has a separate test
        merged.classifier = model.base_model.model.classifier.modules_to_save["default"]
    assert_same(outputs(model), outputs(merged))


@pytest.mark.slow
@pairwise(architecture=SETTINGS, convention=CONVENTIONS, rule=["fedavg", "raflora"])
def test_different_ranks(clients, tmp_path, architecture, convention, rule):
    folders = clients(architecture, *CONVENTIONS[convention])
    aggregate_adapters(folders, SAMPLES, rule, tmp_path / "out")
    views = [lora_layers(load(architecture, folder)) for folder in folders]
    deltas = {
        name: cut(dense_average([view[name] for view in views], SAMPLES, rule), max(RANKS))
        for name in views[0]
    }
    compare(architecture, tmp_path / "out", deltas)


@pytest.mark.slow
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


@pytest.mark.slow
@pairwise(
    architecture=SETTINGS,
    convention=["alpha_over_r", "rslora", "pattern"],
    rule=[*rule_names(), "raflora:canonicalize=true"],
)
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
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    views = [lora_layers(load("llama", folder)) for folder in folders]
    for name, (a, b, scaling) in lora_layers(load("llama", tmp_path / "out")).items():
        wanted = cut(dense_average([view[name] for view in views], [1, 1], "fedavg"), 4)
        # Storing rounds A and B to the 8 digits of bfloat16, half a unit of each.
        error = (scaling * b @ a - wanted).norm()
        assert error <= torch.finfo(torch.bfloat16).eps * wanted.norm()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["flora", "fedex"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "conv"])
def test_rules_with_a_base_correction_are_exact(clients, tmp_path, architecture, rule):
    folders, out = clients(architecture, *CONVENTIONS["mixed"]), tmp_path / "out"
    report = aggregate_adapters(folders, SAMPLES, rule, out, client_folders=True)
    assert report.has_base
    # The exact sum has the clients' rank; the adapter's part in the base adds none.
    assert all(layer.rank == min(sum(RANKS), limit(folders, layer)) for layer in report.layers)
    views = [lora_layers(load(architecture, folder)) for folder in folders]
    exact = {
        name: dense_average([view[name] for view in views], SAMPLES, "fedavg") for name in views[0]
    }
    compare(architecture, out, exact)
    adapter, base = (lora_layers(load(architecture, out / part)) for part in ("adapter", "base"))
    for name, wanted in exact.items():
        assert_same(update(adapter[name]) + update(base[name]), wanted)
        assert adapter[name][0].shape[0] == max(RANKS)
    # A client merges the correction and trains the received adapter on top.
    for place in report.client_folders:
        received = lora_layers(load(architecture, out / place))
        assert {a.shape[0] for a, _, _ in received.values()} == {int(place[-1])}


@pytest.mark.parametrize("rule", ["flora", "fedex"])
def test_the_base_correction_merges_into_the_base(clients, tmp_path, rule):
    """As a server does it: merge `base` for good, then put `adapter` on top."""
    aggregate_adapters(clients("gpt2", *CONVENTIONS["mixed"]), SAMPLES, rule, tmp_path / "out")
    merged = load("gpt2", tmp_path / "out" / "base").merge_and_unload()
    with third_party_warnings_ignored():
        both = PeftModel.from_pretrained(merged, tmp_path / "out" / "adapter").eval()
    assert_same(outputs(both), outputs(load("gpt2", tmp_path / "out")))


def test_the_target_rank_of_averaged_factors_is_the_best_approximation_too(clients, tmp_path):
    """Their components are not ordered, so the first ones would be arbitrary."""
    folders = clients("gpt2", *CONVENTIONS["alpha_over_r"])
    aggregate_adapters(folders, SAMPLES, "zero_pad", tmp_path / "whole")
    aggregate_adapters(folders, SAMPLES, "zero_pad", tmp_path / "out", target_rank=3)
    whole = lora_layers(load("gpt2", tmp_path / "whole"))
    compare("gpt2", tmp_path / "out", {name: cut(update(v), 3) for name, v in whole.items()})


@pytest.mark.parametrize("rule", ["flora", "fedex"])
def test_the_target_rank_cuts_adapter_and_correction_together(clients, tmp_path, rule):
    folders = clients("llama", *CONVENTIONS["mixed"])
    aggregate_adapters(folders, SAMPLES, rule, tmp_path / "out", target_rank=5)
    views = [lora_layers(load("llama", folder)) for folder in folders]
    deltas = {
        name: cut(dense_average([view[name] for view in views], SAMPLES, "fedavg"), 5)
        for name in views[0]
    }
    compare("llama", tmp_path / "out", deltas)


@pytest.mark.slow
@each_value(rule=[*rule_names(), "flexlora", "raflora:canonicalize=true"], architecture=SETTINGS)
def test_every_rule_runs(clients, tmp_path, architecture, rule):
    folders = clients(architecture, *CONVENTIONS["alpha_over_r"])
    if rule == "ffa":
        folders = share_a(folders, tmp_path)
    aggregate_adapters(folders, SAMPLES, rule, tmp_path / "out", client_folders=True)
    assert outputs(load(architecture, tmp_path / "out")).isfinite().all()
    for rank in RANKS:
        received = load(architecture, tmp_path / "out" / "clients" / f"rank-{rank}")
        assert outputs(received).isfinite().all()


@pytest.mark.slow
def test_a_rule_that_freezes_a_hands_out_the_same_a(clients, tmp_path):
    folders = share_a(clients("gpt2", *CONVENTIONS["mixed"]), tmp_path)
    aggregate_adapters(folders, SAMPLES, "ffa", tmp_path / "out", client_folders=True)
    total = lora_layers(load("gpt2", tmp_path / "out"))
    views = [lora_layers(load("gpt2", folder)) for folder in folders]
    for name, wanted in total.items():
        assert_same(update(wanted), dense_average([v[name] for v in views], SAMPLES, "fedavg"))
    for folder in folders:
        received = lora_layers(load("gpt2", tmp_path / "out" / "clients" / folder.name))
        for name, (a, b, scaling) in received.items():
            assert torch.equal(a, lora_layers(load("gpt2", folder))[name][0])
            assert_same(scaling * b, (total[name][2] * total[name][1])[:, : a.shape[0]])


def limit(folders, layer):
    found = AdapterFolder(folders[0]).layers[layer.module]
    return min(torch.Size(found.shape_A[1:]).numel(), found.shape_B[0])


def update(view):
    a, b, scaling = view
    return scaling * b @ a


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["fedavg", "zero_pad", "flora"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_uniform_rank_changes_no_update(clients, fedlora_aggregate, here, rule, use_rslora):
    """One rank and alpha without patterns, for clients of different ranks and scalings."""
    settings = [{**with_pattern("bert", r), "use_rslora": use_rslora} for r in RANKS]
    folders = clients("bert", *settings)
    arguments = (*folders, "--samples", "120,80,40", "--rule", rule, "--client-folders")
    assert fedlora_aggregate(*arguments, "--out", "patterns").code == 0
    assert fedlora_aggregate(*arguments, "--out", "uniform", "--uniform-rank").code == 0
    configs = [
        json.loads((here / name / "adapter_config.json").read_text())
        for name in ("patterns", "uniform")
    ]
    assert configs[0]["rank_pattern"]
    assert (configs[1]["rank_pattern"], configs[1]["alpha_pattern"]) == ({}, {})
    places = ("", "adapter", "base") if rule == "flora" else ("",)
    for place in places:
        before, after = (
            lora_layers(load("bert", here / n / place)) for n in ("patterns", "uniform")
        )
        assert len({(a.shape[0], scaling) for a, _, scaling in after.values()}) == 1
        for name, view in after.items():
            assert_same(update(view), update(before[name]))
    assert_same(*(outputs(load("bert", here / name)) for name in ("uniform", "patterns")))
    for rank in RANKS:  # clients continue with their own ranks
        place = f"clients/rank-{rank}/adapter_config.json"
        assert (here / "uniform" / place).read_bytes() == (here / "patterns" / place).read_bytes()
