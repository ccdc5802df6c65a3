"""Every rule through PEFT against the dense float64 reference, which shares no code.

The test compares outputs of the base model with the written folder, and of the base model with the
reference's `lora_B @ lora_A + base` added to its weights.
"""

from __future__ import annotations

import pytest
import torch
from adapter_cases import (
    RANKS,
    assert_same,
    base_model,
    load,
    lora_layers,
    merged_model,
    outputs,
    share_a,
    third_party_warnings_ignored,
)
from designs import each_value
from peft import PeftModel

from fedlora_sim.peft import aggregate_adapters
from fedlora_sim.reference.aggregation import aggregate_reference, split_reference
from fedlora_sim.rules import rule_names

pytestmark = pytest.mark.slow

RULES = [
    *rule_names(),
    "raflora:canonicalize=true",
    "hetlora:data_weighted=true",
    "fedex:residual_rank=3",
]
# Two clients of the middle rank: contributor weights differ from one partition to the next.
COHORT = (2, 4, 4, 8)
SAMPLES = (120, 80, 40, 60)
CONVENTIONS = {
    "alpha_over_r": {"lora_alpha": 12},
    "rslora": {"lora_alpha": 5, "use_rslora": True},
}
TARGETS = {
    "square": ("llama", ["q_proj", "o_proj"]),
    "tall": ("llama", ["up_proj"]),
    "wide": ("llama", ["down_proj"]),
    "transposed": ("gpt2", ["c_attn", "c_proj"]),
    "embedding": ("llama", ["embed_tokens", "v_proj"]),
    "convolution": ("conv", ["line", "plane"]),
}


def reference(folders, architecture, rule, samples, **options):
    """Adapter and base correction of every module, dense, from PEFT's own view of the clients."""
    views = [lora_layers(load(architecture, folder)) for folder in folders]
    adapters, bases = {}, {}
    for name in views[0]:
        updates = [(a.numpy(), b.numpy(), scaling) for a, b, scaling in (v[name] for v in views)]
        levels = options.get("rank_levels", RANKS)
        a, b, base = aggregate_reference(
            updates, samples, rule, **{**options, "rank_levels": levels}
        )
        adapters[name] = torch.from_numpy(a), torch.from_numpy(b)
        bases[name] = torch.from_numpy(base)
    return adapters, bases


def totals(adapters, bases):
    return {name: b @ a + bases[name] for name, (a, b) in adapters.items()}


def cohort(clients, tmp_path, architecture, rule, settings):
    folders = clients(architecture, *settings)
    return share_a(folders, tmp_path) if rule == "ffa" else folders


@each_value(rule=RULES, convention=CONVENTIONS, targets=TARGETS)
def test_outputs_are_those_of_the_dense_reference(clients, tmp_path, targets, convention, rule):
    architecture, modules = TARGETS[targets]
    own = {**CONVENTIONS[convention], "target_modules": modules}
    folders = cohort(clients, tmp_path, architecture, rule, [{"r": r, **own} for r in COHORT])
    out = tmp_path / "out"
    report = aggregate_adapters(folders, SAMPLES, rule, out, client_folders=True)
    adapters, bases = reference(folders, architecture, rule, SAMPLES)
    wanted = outputs(merged_model(architecture, totals(adapters, bases)))
    assert_same(outputs(load(architecture, out)), wanted)
    moved = wanted - outputs(base_model(architecture))
    assert float(moved.norm()) > 0.01 * float(wanted.norm())  # the update is not zero

    # A client continues from its first components of the adapter on the corrected base.
    for rank, place in dict(zip(COHORT, report.client_folders, strict=True)).items():
        received = totals({n: (a[:rank], b[:, :rank]) for n, (a, b) in adapters.items()}, bases)
        model = corrected_base(architecture, out, report)
        with third_party_warnings_ignored():
            model = PeftModel.from_pretrained(model, out / place).eval()
        assert_same(outputs(model), outputs(merged_model(architecture, received)))


def corrected_base(architecture, out, report):
    if not report.has_base:
        return base_model(architecture)
    return load(architecture, out / "base").merge_and_unload()


@pytest.mark.parametrize("rule", [*rule_names(), "raflora:canonicalize=true"])
@pytest.mark.parametrize("empty_partition", ["carry", "zero"])
def test_a_sampled_cohort_with_the_last_adapter(clients, tmp_path, rule, empty_partition):
    """The second round of a federation, without clients of the highest level."""
    settings = [{"r": r, "lora_alpha": 12} for r in RANKS]
    folders = cohort(clients, tmp_path, "gpt2", rule, settings)
    samples = (120, 80, 40)
    aggregate_adapters(folders, samples, rule, tmp_path / "one")
    last = tmp_path / "one"
    if (last / "adapter").exists():
        last = last / "adapter"
    options = {"rank_levels": RANKS, "empty_partition": empty_partition}
    arguments = (folders[:2], samples[:2], rule, tmp_path / "two")
    aggregate_adapters(*arguments, previous=last, **options)
    views = [lora_layers(load("gpt2", folder)) for folder in (last, *folders[:2])]
    deltas = {}
    for name, (a, b, scaling) in views[0].items():
        # Written with the file's scaling; the reference needs 1, shared by both factors.
        previous = (a.numpy() * scaling**0.5, b.numpy() * scaling**0.5)
        updates = [(v[name][0].numpy(), v[name][1].numpy(), v[name][2]) for v in views[1:]]
        wanted = aggregate_reference(
            updates, samples[:2], rule, RANKS, previous=previous, empty_partition=empty_partition
        )
        deltas[name] = torch.from_numpy(wanted[1] @ wanted[0] + wanted[2])
    assert_same(outputs(load("gpt2", tmp_path / "two")), outputs(merged_model("gpt2", deltas)))


@pytest.mark.parametrize("rule", ["flora", "fedex", "zero_pad", "raflora"])
def test_the_target_rank_is_the_best_approximation_of_the_reference(clients, tmp_path, rule):
    folders = clients("llama", *({"r": r, "lora_alpha": 12} for r in RANKS))
    aggregate_adapters(folders, (3, 2, 1), rule, tmp_path / "out", target_rank=3)
    deltas = {}
    for name, delta in totals(*reference(folders, "llama", rule, (3, 2, 1))).items():
        a, b = split_reference(delta.numpy(), 3)
        deltas[name] = torch.from_numpy(b @ a)
    assert_same(outputs(load("llama", tmp_path / "out")), outputs(merged_model("llama", deltas)))
