"""Clients with different modules: refused, their common modules, or each module over its owners."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from adapter_cases import assert_same, cut, dense_average, load, lora_layers
from safetensors.torch import load_file
from state_dict_cases import ALPHA, assert_bits_of_folder, client, product, states

from analysis import predict
from fedlora_sim import Scenario
from fedlora_sim.errors import InputError
from fedlora_sim.peft import aggregate_adapters, aggregate_state_dicts, truncate_state_dict
from fedlora_sim.tolerances import relative

SAMPLES = (120, 80, 40)
TARGETS = (["c_attn"], ["c_attn", "c_proj"], ["c_proj"])
SETTINGS = [
    {"r": r, "lora_alpha": ALPHA, "target_modules": targets}
    for r, targets in zip((2, 4, 8), TARGETS, strict=True)
]


def test_the_refusal_names_the_option(refused, clients, here):
    folders = clients("gpt2", *SETTINGS)
    line = refused(*folders, "--out", "out")
    assert "c_proj" in line
    assert "choose --modules owners or --modules shared" in line


@pytest.mark.parametrize("rule", ["fedavg", "raflora", "flora"])
def test_owners_are_averaged_among_themselves(clients, tmp_path, rule):
    folders = clients("gpt2", *SETTINGS)
    out = tmp_path / "out"
    report = aggregate_adapters(
        folders, SAMPLES, rule, out, modules="owners", client_folders=rule == "raflora"
    )
    views = [lora_layers(load("gpt2", folder)) for folder in folders]
    found = lora_layers(load("gpt2", out))
    assert set(found) == {name for view in views for name in view}
    assert json.loads((out / "adapter_config.json").read_text())["target_modules"] == [
        "c_attn",
        "c_proj",
    ]
    for layer in report.layers:
        name = layer.module
        assert layer.owners == tuple(k for k, view in enumerate(views) if name in view)
        samples = [SAMPLES[k] for k in layer.owners]
        assert layer.coverage == pytest.approx(sum(samples) / sum(SAMPLES))
        kind = "raflora" if rule == "raflora" else "fedavg"
        dense = dense_average([views[k][name] for k in layer.owners], samples, kind)
        rank = min(dense.shape) if rule == "flora" else max(layer.client_ranks)
        a, b, scaling = found[name]
        assert_same(scaling * b @ a, cut(dense, rank))
    memory = aggregate_state_dicts(
        states(folders), SAMPLES, rule=rule, lora_alpha=ALPHA, modules="owners"
    )
    assert_bits_of_folder(memory, out, ALPHA)
    for place, view in zip(report.client_folders, views, strict=False):
        assert set(lora_layers(load("gpt2", out / place))) == set(view)


@pytest.mark.parametrize("targets", ["list", "pattern"])
def test_shared_modules(clients, tmp_path, targets):
    settings = [dict(own) for own in SETTINGS[:2]]
    if targets == "pattern":
        settings[0]["target_modules"] = r".*h\.1\.attn\.c_attn"
    folders = clients("gpt2", *settings)
    out = tmp_path / "out"
    report = aggregate_adapters(
        folders, [1, 2], "fedavg", out, modules="shared", client_folders=True
    )
    views = [lora_layers(load("gpt2", folder)) for folder in folders]
    assert set(report.left_out) == set(views[1]) - set(views[0])
    assert {layer.coverage for layer in report.layers} == {1.0}
    for place in (out, *(out / place for place in report.client_folders)):
        assert set(lora_layers(load("gpt2", place))) == set(views[0])
    for name, (a, b, scaling) in lora_layers(load("gpt2", out)).items():
        dense = dense_average([view[name] for view in views], [1, 2], "fedavg")
        assert_same(scaling * b @ a, cut(dense, 4))


def test_clients_without_a_common_module(clients, tmp_path):
    a, _, c = clients("gpt2", *SETTINGS)
    with pytest.raises(InputError, match="modules='shared': expected clients that share a module"):
        aggregate_adapters([a, c], None, "fedavg", tmp_path / "out", modules="shared")


def test_the_command_shows_owners_and_coverage(fedlora_aggregate, clients, here):
    folders = clients("gpt2", *SETTINGS)
    outcome = fedlora_aggregate(*folders, "--out", "out", "--modules", "owners")
    assert "coverage: weight share of the clients that have the module" in outcome.out
    assert "2, 3" in outcome.out
    outcome = fedlora_aggregate(*folders[:2], "--out", "two", "--modules", "shared")
    assert "left out, because not all clients have them: transformer.h" in outcome.out


def other(state):
    return {key.replace(".layer.", ".other."): x for key, x in state.items()}


@pytest.mark.parametrize("policy", ["carry", "zero", "error"])
def test_a_module_without_owner_in_the_cohort_is_an_empty_partition(policy):
    previous = {**client(4, seed=1), **other(client(4, seed=2))}
    given = {"lora_alpha": ALPHA, "modules": "owners", "previous": previous, "details": True}
    given |= {"rank_levels": [4], "empty_partition": policy}
    if policy == "error":
        with pytest.raises(InputError, match="other: empty_partition='error'"):
            aggregate_state_dicts([client(4)], **given)
        return
    found = aggregate_state_dicts([client(4)], rule="fedavg", **given)
    kept = product(found.total, key=OTHER)
    wanted = product(previous, key=OTHER)
    assert_same(product(found.total), product(client(4)))
    if policy == "carry":
        assert_same(kept, wanted)
    else:
        assert not kept.any()
    layer = found.layers[-1]
    assert (layer.module, layer.owners, layer.coverage) == ("other", (), 0.0)


OTHER = "base_model.model.other.lora_{}.weight"


def test_owners_without_samples_do_not_count():
    mixed = [client(2), {**client(2, seed=1), **other(client(2))}]
    found = aggregate_state_dicts(mixed, [1, 0], lora_alpha=ALPHA, modules="owners", details=True)
    assert found.left_out == ("other",)
    assert set(found.total) == set(client(2))


def test_tensors_besides_lora_are_averaged_over_their_owners():
    saved = "base_model.model.norm.scale"
    trained = [{**client(2, seed=k), saved: torch.full((3,), float(k))} for k in (1, 4)]
    mixed = [client(2), *trained]
    options = {"modules_to_save": ["norm"]}
    given = {"lora_alpha": ALPHA, "options": options}
    found = aggregate_state_dicts(mixed, [5, 1, 2], modules="owners", **given)
    assert found[saved].tolist() == [3.0] * 3
    assert saved not in aggregate_state_dicts(mixed, [5, 1, 2], modules="shared", **given)


def test_shapes_are_compared_where_two_clients_share_a_module():
    """Neither has a module of the first client."""
    two = other(client(2)), other(client(2, d_in=8))
    with pytest.raises(InputError, match=r"shape of other in state_dicts\[2\]=.*state_dicts\[1\]"):
        aggregate_state_dicts([client(2), *two], lora_alpha=ALPHA, modules="owners")


def test_the_prediction_of_a_module_is_that_of_its_owners():
    """Three rounds without training: energies of each module fall as its own scenario predicts."""
    ranks, samples, rounds = (2, 4, 4), (120, 80, 40), 3
    start = {**client(4), **other(client(4))}
    start = aggregate_state_dicts([start], rule="fedavg", lora_alpha=ALPHA)

    def sent(k, state):
        own = truncate_state_dict(state, ranks[k], lora_alpha=ALPHA)
        return own if k < 2 else {key: x for key, x in own.items() if ".layer." not in key}

    state = start
    for _ in range(rounds):
        found = aggregate_state_dicts(
            [sent(k, state) for k in range(3)],
            samples,
            rule="fedavg",
            lora_alpha=ALPHA,
            modules="owners",
            details=True,
        )
        state = found.total
    assert [layer.coverage for layer in found.layers] == pytest.approx([200 / 240, 1.0])
    keys = ("base_model.model.layer.lora_{}.weight", OTHER)
    for layer, key in zip(found.layers, keys, strict=True):
        scenario = Scenario(
            ranks=layer.client_ranks,
            num_samples=[samples[k] for k in layer.owners],
            rounds=rounds,
        )
        rate = predict(scenario, "fedavg").energy_rate.values
        first, last = (torch.linalg.svdvals(product(own, key=key))[:4] for own in (start, state))
        np.testing.assert_allclose(
            (last / first).square().numpy(), rate**rounds, rtol=relative("factorization")
        )


@pytest.mark.parametrize("policy", ["owners", "shared"])
def test_an_embedding_of_one_client(clients, tmp_path, policy):
    """PEFT saves its frozen weights next to its LoRA; they come and go with the module."""
    settings = [
        {"r": 2, "target_modules": ["q_proj", "embed_tokens"]},
        {"r": 4, "target_modules": ["q_proj", "down_proj"]},
    ]
    folders = clients("llama", *settings)
    out = tmp_path / "out"
    report = aggregate_adapters(folders, None, "raflora", out, modules=policy, client_folders=True)
    views = [lora_layers(load("llama", folder)) for folder in folders]
    found = lora_layers(load("llama", out))
    written = {*views[0], *views[1]} if policy == "owners" else set(views[0]) & set(views[1])
    assert set(found) == written
    frozen = [key for key in load_file(out / "adapter_model.safetensors") if "base_layer" in key]
    assert len(frozen) == (1 if policy == "owners" else 0)
    for name in written:
        own = [view[name] for view in views if name in view]
        a, b, scaling = found[name]
        dense = dense_average(own, [1] * len(own), "raflora")
        assert_same(scaling * b @ a, cut(dense, max(a.shape[0] for a, _, _ in own)))
    for place, view in zip(report.client_folders, views, strict=True):
        assert set(lora_layers(load("llama", out / place))) == set(view) & written


def test_a_module_with_lora_that_another_client_trains_as_a_whole():
    whole = {**client(2), "base_model.model.other.weight": torch.ones(7, 9)}
    lora = {**client(2), **other(client(2))}
    with pytest.raises(
        InputError, match=r"state_dicts\[1\]=.*LoRA on other, as in state_dicts\[0\]"
    ):
        aggregate_state_dicts([lora, whole], lora_alpha=ALPHA, modules="owners")
