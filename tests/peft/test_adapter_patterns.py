"""Patterns are written so that PEFT loads the output if it loads the inputs."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from adapter_cases import SAMPLES, assert_same, third_party_warnings_ignored
from designs import each_value
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from fedlora_sim.errors import InputError
from fedlora_sim.peft import AdapterFolder, aggregate_adapters
from fedlora_sim.peft.patterns import most_common, write_patterns
from fedlora_sim.randomness import library_draws

WEIGHTS = "adapter_model.safetensors"
TOWERS, ENDS = ("a", "b.a", "c.q"), ("q", "k", "a.q", "q+")
MODULES = [f"{tower}.{end}" for tower in TOWERS for end in ENDS]
KEYS = ["q", "k", "a.q", "q|k", r"a\..*", "^b.*", "c.*", "zz"]


@settings(max_examples=examples(100), deadline=None)
@given(
    st.dictionaries(st.sampled_from(MODULES), st.integers(1, 4), min_size=1),
    st.lists(st.sampled_from(KEYS), unique=True),
    st.booleans(),
)
def test_peft_reads_the_values_that_are_written(values, keys, has_names):
    names = values if has_names else ()
    written = write_patterns(values, keys, max, names)
    allowed = {f"{anchor}{re.escape(module)}" for module in names for anchor in ("", "^")}
    assert set(written.patterns) <= {*keys, *names, *allowed}
    assert list(written.patterns) == sorted(written.patterns)  # PEFT sorts them when it saves
    for module, value in values.items():
        key = get_pattern_key(written.patterns, module)
        assert written.patterns.get(key, written.default) == written.values[module] >= value
    if has_names and not keys:
        assert written.values == values
    if not keys and not has_names:
        assert written.patterns == {}


def test_a_pattern_that_changes_nothing_is_left_out():
    values = {"a.q": 4, "b.q": 8, "a.k": 4}
    written = write_patterns(values, ["a.q", "k", "b.q"], most_common)
    assert (written.default, written.patterns) == (4, {"b.q": 8})


def test_a_pattern_that_shields_modules_from_a_later_one_stays():
    written = write_patterns({"a.q": 4, "b.q": 8, "k": 4}, ["a.q", "q"], max)
    assert (written.default, written.patterns) == (4, {"a.q": 4, "q": 8})


def llava():
    text = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    with library_draws(0):
        config = LlavaConfig(vision_config=vision, text_config=text)
        return LlavaForConditionalGeneration(config).double().eval()


def client_of_an_old_version(folder, seed, **options):
    """Return an adapter with the module names that transformers 4.51 gave LLaVA."""
    targets = r".*language_model.*\.(q_proj|k_proj)"
    config = LoraConfig(**{"target_modules": targets, "init_lora_weights": False, **options})
    with third_party_warnings_ignored(), library_draws(seed):
        get_peft_model(llava(), config).save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    new, old = "model.model.language_model.", "model.language_model.model."
    renamed = {key.replace(new, old): tensor for key, tensor in tensors.items()}
    assert set(renamed).isdisjoint(tensors)
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def merged(folder):
    """The model with an adapter in its weights, through PEFT, which finds every tensor's place."""
    with third_party_warnings_ignored():
        model = PeftModel.from_pretrained(llava(), folder)
        result = model.load_adapter(folder, adapter_name="default")
    assert list(result.missing_keys) + list(result.unexpected_keys) == []
    return model.merge_and_unload().state_dict()


@pytest.mark.slow
def test_old_names_are_loaded_by_a_newer_version(tmp_path):
    """Also ranks above the limit of k_proj (8), so that its sum has another rank."""
    settings = (
        {"r": 6, "lora_alpha": 8, "rank_pattern": {"k_proj": 2}},
        {"r": 4, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"k_proj": 3}},
        {"r": 6},
    )
    folders = [
        client_of_an_old_version(tmp_path / str(k), k, **options)
        for k, options in enumerate(settings)
    ]
    for folder in folders:
        before = merged(folder)
        aggregate_adapters([folder], None, "fedavg", tmp_path / f"{folder.name}-alone")
        for key, tensor in merged(tmp_path / f"{folder.name}-alone").items():
            assert_same(tensor, before[key])
    report = aggregate_adapters(folders, SAMPLES, "flora", tmp_path / "out")
    assert {layer.rank for layer in report.layers if "k_proj" in layer.module} == {8}
    states = [merged(folder) for folder in folders]
    for key, tensor in merged(tmp_path / "out").items():
        parts = (n / sum(SAMPLES) * state[key] for n, state in zip(SAMPLES, states, strict=True))
        assert_same(tensor, sum(parts))


def test_modules_that_no_pattern_separates_are_padded(clients, tmp_path):
    """PEFT takes the first pattern in alphabetical order, so c_proj matches all its modules."""
    one = clients("gpt2", {"r": 4, "rank_pattern": {"c_proj": 2}})[0]
    two = clients("gpt2", {"r": 2, "rank_pattern": {"h.0.attn.c_proj": 4}})[0]
    report = aggregate_adapters([one, two], None, "raflora", tmp_path / "out")
    ranks = {layer.module: layer.rank for layer in report.layers}
    assert ranks["transformer.h.1.mlp.c_proj"] == 2
    out = AdapterFolder(tmp_path / "out")
    assert {out.config.rank_of(module) for module in out.layers} == {4}
    assert out.config.rank_pattern == {}


def test_a_padded_last_adapter_is_cut_to_the_highest_level(clients, tmp_path):
    client, wide = clients("gpt2", {"r": 2}, {"r": 4})
    arguments = {"rank_levels": [2], "empty_partition": "carry"}
    with pytest.raises(InputError, match=r"c_attn in the last adapter .*=4: expected the highest"):
        aggregate_adapters([client], None, "raflora", tmp_path / "out", previous=wide, **arguments)
    tensors = load_file(wide / WEIGHTS)
    padded = shutil.copytree(wide, tmp_path / "padded")
    for key, tensor in tensors.items():
        if ".lora_B" in key:
            tensor[:, 2:] = 0
    save_file(tensors, padded / WEIGHTS)
    aggregate_adapters([client], None, "raflora", tmp_path / "out", previous=padded, **arguments)
    assert AdapterFolder(tmp_path / "out").config.rank == 2


RULES = ["fedavg", "flora", "fedex", "raflora", "raflora:canonicalize=true", "zero_pad", "rbla"]


@pytest.mark.slow
@each_value(rule=RULES, shape=[(1, 12), (12, 2), (3, 3)])
def test_a_rank_above_the_limit_of_a_narrow_module(tmp_path, rule, shape):
    """A value head or a router equals one padded with rows or columns of zeros."""
    d_out, d_in = shape
    ranks, weights = (4, 8), (0.75, 0.25)
    updates, folders = [], []
    for k, rank in enumerate(ranks):
        with library_draws(k):
            config = LoraConfig(r=rank, target_modules=["0"], init_lora_weights=False)
            model = torch.nn.Sequential(torch.nn.Linear(d_in, d_out)).double()
            get_peft_model(model, config).save_pretrained(tmp_path / str(k))
        folders.append(tmp_path / str(k))
        a, b = (
            load_file(folders[-1] / WEIGHTS)[f"base_model.model.0.lora_{f}.weight"] for f in "AB"
        )
        updates.append((8 / rank, a, b))
    aggregate_adapters(folders, weights, rule, tmp_path / "out", client_folders=True)
    if rule in ("zero_pad", "rbla"):
        root = [(s**0.5 * a, s**0.5 * b) for s, a, b in updates]
        lora_a, lora_b = torch.zeros(8, d_in).double(), torch.zeros(d_out, 8).double()
        for i in range(8):
            own = [k for k in range(2) if ranks[k] > i]
            total = sum(weights[k] for k in own) if rule == "rbla" else 1.0
            lora_a[i] = sum(weights[k] / total * root[k][0][i] for k in own)
            lora_b[:, i] = sum(weights[k] / total * root[k][1][:, i] for k in own)
        wanted = lora_b @ lora_a
    else:
        if rule == "raflora:canonicalize=true":
            updates = [(s, *canonical(a, b)) for s, a, b in updates]
        wanted = 0.0
        for (s, a, b), weight in zip(updates, weights, strict=True):
            share = torch.full((a.shape[0],), weight, dtype=torch.float64)
            if "raflora" in rule:
                share[4:] = 1.0
            wanted = wanted + s * (b * share) @ a
    assert_same(delta(tmp_path / "out"), wanted)
    for rank in ranks:
        assert AdapterFolder(tmp_path / f"out/clients/rank-{rank}").config.rank == rank


def canonical(a, b):
    """Return factors of the same product in SVD gauge, with zeros beyond its rank."""
    u, s, vh = torch.linalg.svd(b @ a, full_matrices=False)
    lora_a, lora_b = torch.zeros_like(a), torch.zeros_like(b)
    lora_a[: len(s)], lora_b[:, : len(s)] = s.sqrt().unsqueeze(-1) * vh, u * s.sqrt()
    return lora_a, lora_b


def delta(folder):
    opened = AdapterFolder(folder)
    (layer,) = opened.layers.values()
    a, b = opened.tensor(layer.key_A), opened.tensor(layer.key_B)
    return opened.config.scaling_of("0") * b @ a
