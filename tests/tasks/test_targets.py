"""Names of linear maps: PEFT's rule, the last blocks, and refusals with a remedy."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedlora_sim.errors import InputError
from fedlora_sim.finetune.stacked import add_deltas
from fedlora_sim.tasks.digits import TinyTransformer
from fedlora_sim.tasks.targets import (
    USUAL_TARGETS,
    is_linear,
    linear_shape,
    resolve_targets,
    target_blocks,
    usual_targets,
)


def adapted_by_peft(model, names):
    config = LoraConfig(target_modules=list(names), fan_in_fan_out="c_attn" in names)
    adapted = inject_adapter_in_model(config, model)
    return tuple(name for name, m in adapted.named_modules() if isinstance(m, LoraLayer))


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("bert", ("query", "value")),
        ("bert", ("attention.output.dense", "classifier")),
        ("bert", ("bert.encoder.layer.2.intermediate.dense", "key")),
        ("roberta", ("dense",)),
        ("distilbert", ("q_lin", "lin1")),
        ("llama", ("q_proj", "down_proj", "score")),
        ("gpt2", ("c_attn",)),
    ],
)
def test_target_names_mean_the_same_as_in_peft(tiny_model, architecture, names):
    model = tiny_model(architecture)
    found = resolve_targets(model, names)
    assert found == adapted_by_peft(model, names)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_usual_targets_of_the_last_blocks(tiny_model, architecture):
    model = tiny_model(architecture)
    names = usual_targets(model)
    everywhere = resolve_targets(model, names)
    assert len(everywhere) == 4 * len(names)
    assert resolve_targets(model, names, adapted_layers=4) == everywhere
    assert resolve_targets(model, names, adapted_layers=1) == everywhere[3 * len(names) :]
    assert len(target_blocks(model, everywhere)) == 4
    assert names == USUAL_TARGETS[architecture]


def test_blocks_are_children_of_the_outermost_lists_that_hold_targets():
    experts = nn.ModuleList(nn.Linear(2, 3) for _ in range(2))
    model = nn.ModuleDict(
        {
            "before": nn.ModuleList([nn.Identity(), nn.Identity()]),
            "blocks": nn.ModuleList(nn.ModuleDict({"experts": experts}) for _ in range(3)),
            "head": nn.Linear(3, 2),
        }
    )
    model["blocks"][2] = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 3)])})
    targets = resolve_targets(model, ("0", "head"))
    assert targets == ("blocks.0.experts.0", "blocks.2.experts.0", "head")
    assert target_blocks(model, targets) == ("blocks.0", "blocks.1", "blocks.2")
    assert resolve_targets(model, ("0", "head"), adapted_layers=2) == ("blocks.2.experts.0",)
    assert resolve_targets(model, ("0", "head"), adapted_layers=3) == targets[:2]


def test_a_model_may_itself_be_a_list():
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    assert resolve_targets(model, ("0", "2"), adapted_layers=2) == ("2",)


def test_shapes_of_both_kinds_of_linear_map(tiny_model):
    gpt2 = tiny_model("gpt2")
    conv1d, linear = gpt2.transformer.h[0].mlp.c_fc, nn.Linear(5, 7)
    assert linear_shape(conv1d) == (64, 16)
    assert linear_shape(linear) == (7, 5)
    assert is_linear(conv1d)
    assert is_linear(linear)
    assert not is_linear(nn.Conv1d(2, 3, 1))
    assert not is_linear(nn.Embedding(2, 3))


def test_an_update_is_merged_into_both_kinds_of_square_maps():
    """The shape does not show how a square map stores its weight."""
    maps = nn.ModuleDict({"conv1d": Conv1D(3, 3), "linear": nn.Linear(3, 3)}).double()
    delta = torch.arange(9, dtype=torch.float64).reshape(3, 3)
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    for name, module in maps.items():
        wanted = module(x) + x @ delta.mT
        module.weight.data = add_deltas(maps, {name: delta})[f"{name}.weight"]
        torch.testing.assert_close(module(x), wanted)


@pytest.mark.parametrize(
    ("names", "layers", "message"),
    [
        (("q_proj", "quer"), None, "target_modules='q_proj': .* closest is '"),
        (("quer",), None, "target_modules='quer': .* closest is 'query'"),
        (("attention.self.quer",), None, "closest is 'attention.self.query'"),
        (("word_embeddings",), None, "target_modules='word_embeddings'"),
        ((), None, r"target_modules=\(\)"),
        (("query",), 5, "adapted_layers=5: expected at most 4"),
        (("query",), 0, "adapted_layers=0: expected a whole number of at least 1"),
        (("layer.0.attention.self.query",), 2, "adapted_layers=2"),
        (("classifier",), 1, "adapted_layers=1: expected at most 0"),
    ],
)
def test_refusals(tiny_model, names, layers, message):
    with pytest.raises(InputError, match=message):
        resolve_targets(tiny_model("bert"), names, layers)


def test_no_usual_targets_for_an_unknown_model(tiny_model):
    model = tiny_model("bert")
    model.config.model_type = "newest"
    with pytest.raises(InputError, match=r"target_modules=None: .*'newest'.* query, key, value"):
        usual_targets(model)
    assert is_linear(model.classifier)


def test_a_model_that_is_not_of_transformers(tiny_model):
    model = TinyTransformer(torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"TinyTransformer.* embed, q_proj"):
        usual_targets(model)
    assert resolve_targets(model, ("fc1",), 1) == ("blocks.1.fc1",)
