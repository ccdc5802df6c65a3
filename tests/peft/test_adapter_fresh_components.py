"""Received adapters can be trained: components without energy are initialized as in LoRA."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from adapter_cases import (
    RANKS,
    SETTINGS,
    assert_same,
    base_model,
    load,
    lora_layers,
    outputs,
    share_a,
    third_party_warnings_ignored,
    train,
    tree,
)
from peft import LoraConfig, PeftModel, get_peft_model

from fedlora_sim.lora import LoRAFactors
from fedlora_sim.peft import aggregate_adapters, write
from fedlora_sim.randomness import library_draws
from fedlora_sim.rules import rule_names

pytestmark = pytest.mark.slow

RULES = [*rule_names(), "raflora:canonicalize=true"]
CLIENTS = [{"r": r, "lora_alpha": 12} for r in RANKS]
CASES = [("llama", rule) for rule in RULES] + [
    (architecture, rule)
    for architecture in ("bert", "gpt2", "conv")
    for rule in ("fedavg", "flora", "raflora")
]


def low_cohort(clients, architecture, rule, folder, name="out", **options):
    """Aggregate a cohort without the highest rank level; return the trainable folders."""
    folders = clients(architecture, *CLIENTS)
    if rule == "ffa" and not (folder / "rank-2").exists():
        share_a(folders, folder)
    if rule == "ffa":
        folders = [folder / f"rank-{r}" for r in RANKS]
    wanted = {"rank_levels": RANKS, "empty_partition": "zero", "client_folders": True}
    out = folder / name
    report = aggregate_adapters(folders[:2], [3, 1], rule, out, **wanted, **options)
    places = [out / place for place in report.client_folders]
    # The server knows the rows of a frozen A that no client sent.
    return places if rule == "ffa" else [*places, out / "adapter" if report.has_base else out]


@pytest.mark.parametrize(("architecture", "rule"), CASES)
def test_every_received_component_moves(clients, tmp_path, architecture, rule):
    for folder in low_cohort(clients, architecture, rule, tmp_path):
        with third_party_warnings_ignored():
            base = base_model(architecture)
            model = PeftModel.from_pretrained(base, folder, is_trainable=True)
        before = {name: (a.clone(), b.clone()) for name, (a, b, _) in lora_layers(model).items()}
        train(model, seed=9, steps=3)
        for name, (a, b, _) in lora_layers(model).items():
            assert (a != before[name][0]).any(dim=1).all(), f"A of {name} in {folder}"
            assert (b != before[name][1]).any(dim=0).all(), f"B of {name} in {folder}"


@pytest.mark.parametrize("rule", RULES)
def test_the_update_is_the_same_as_without_a_draw(clients, tmp_path, monkeypatch, rule):
    drawn = low_cohort(clients, "llama", rule, tmp_path, "drawn")
    monkeypatch.setattr(write, "_lost", lambda update: torch.zeros(update.rank).bool())
    bare = low_cohort(clients, "llama", rule, tmp_path, "bare")
    for with_draw, without in zip(drawn, bare, strict=True):
        assert_same(outputs(load("llama", with_draw)), outputs(load("llama", without)))


def test_a_frozen_a_is_not_drawn(clients, tmp_path):
    low_cohort(clients, "gpt2", "ffa", tmp_path)
    for a, b, _ in lora_layers(load("gpt2", tmp_path / "out")).values():
        assert not a[4:].any()
        assert not b[:, 4:].any()


@pytest.mark.parametrize("architecture", SETTINGS)
def test_a_fresh_adapter_looks_like_one_of_pefts(clients, tmp_path, architecture):
    """Uniform within the same bound if PEFT draws A; for an embedding PEFT draws B, and A is 0."""
    folders = low_cohort(clients, architecture, "flora", tmp_path)
    with third_party_warnings_ignored(), library_draws(0):
        options = {**SETTINGS[architecture], "r": max(RANKS)}
        fresh = lora_layers(get_peft_model(base_model(architecture), LoraConfig(**options)))
    ours = lora_layers(load(architecture, folders[-1]))
    for name, (a, b, _) in fresh.items():
        own_a, own_b, _ = ours[name]
        for theirs, mine in ((a, own_a), (b, own_b)):
            assert bool(theirs.any()) == bool(mine.any())
            assert bool((theirs != 0).all()) == bool((mine != 0).all())
        if b.any():
            assert own_b.abs().max() > 1  # for tens of standard normal entries
        else:
            bound = a.shape[1] ** -0.5
            assert a.abs().max() <= bound
            assert bound / 2 < own_a.abs().max() <= bound


def test_clients_of_every_rank_start_from_the_same_rows(clients, tmp_path):
    low, high, whole = low_cohort(clients, "gpt2", "flora", tmp_path)
    low, high, whole = (lora_layers(load("gpt2", folder)) for folder in (low, high, whole))
    for name, (a, _, _) in whole.items():
        assert torch.equal(low[name][0], a[:2])
        assert torch.equal(high[name][0], a[:4])
    assert len({a.sum().item() for a, _, _ in whole.values()}) == len(whole)


@pytest.mark.parametrize("rule", ["flora", "raflora"])
def test_the_same_seed_gives_the_same_bytes(clients, tmp_path, rule):
    for number, seed in enumerate((5, 5, 6)):
        place = tmp_path / str(number)
        place.mkdir()
        low_cohort(clients, "conv", rule, place, seed=seed)
    first, again, other = (
        {p: c for p, c in tree(tmp_path / str(n) / "out").items() if p.suffix == ".safetensors"}
        for n in range(3)
    )
    assert first == again
    assert first != other


def test_the_command_takes_a_seed(fedlora_aggregate, refused, clients, here):
    folders = clients("gpt2", *CLIENTS)
    for number, seed in enumerate((5, 5, 6)):
        given = ("--rule", "flora", "--out", here / str(number), "--seed", seed)
        assert fedlora_aggregate(*folders, *given).code == 0
    first, again, other = (
        (here / str(n) / "adapter" / "adapter_model.safetensors").read_bytes() for n in range(3)
    )
    assert first == again
    assert first != other
    assert '"seed": 6' in (here / "2" / "aggregation.json").read_text()
    assert "--seed=-1: expected" in refused(*folders, "--out", "out", "--seed", "-1")


def test_a_small_component_is_not_replaced():
    """Averaged to 1e-4 it is still an update within single precision."""
    amplitudes = torch.tensor([1.0, 1e-4, 1e-9, 0.0])
    lora_a = torch.nn.functional.normalize(torch.ones(4, 4096), dim=1)
    lora_b = torch.zeros(4096, 4)
    lora_b[range(4), range(4)] = amplitudes
    update = LoRAFactors(lora_a, lora_b)
    assert update.lost_columns().tolist() == [False, True, True, True]
    layer = SimpleNamespace(is_embedding=False, d_in=update.d_in)
    cohort = SimpleNamespace(layer={"m": layer}.get)
    kept = write.with_fresh_components(cohort, {"m": update}, seed=0)["m"]
    assert torch.equal(kept.lora_A[:2], lora_a[:2])
    assert torch.equal(kept.lora_B[:, :2], lora_b[:, :2])
    assert not kept.lora_B[:, 2:].any()
    assert not torch.equal(kept.lora_A[2:], lora_a[2:])
