"""Options of PEFT's LoRA: each is known; those that leave the base unchanged are aggregated."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from adapter_cases import (
    VOCABULARY,
    assert_same,
    cut,
    dense_average,
    inputs,
    lora_layers,
    outputs,
    third_party_warnings_ignored,
    train,
)
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from state_dict_cases import ALPHA, assert_bits_of_folder, states
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fedlora_sim.errors import InputError
from fedlora_sim.peft import aggregate_adapters, aggregate_state_dicts
from fedlora_sim.peft.config import CARRIED, PLAIN_INITIALIZATIONS, REFUSED, SHARED, WRITTEN
from fedlora_sim.randomness import library_draws

TOKENS = [3, 7, 1]
# PEFT's warnings about tied layers; the tests check the outputs.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning"),
    pytest.mark.filterwarnings("ignore:lora with eva initialization used with:UserWarning"),
]


def base_model(tie=False):
    with library_draws(7):
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tie,
        )
        return LlamaForCausalLM(config).double().eval()


def load(folder, tie=False):
    with third_party_warnings_ignored():
        model = PeftModel.from_pretrained(base_model(tie), folder)
        result = model.load_adapter(folder, adapter_name="default")
    assert (list(result.missing_keys), list(result.unexpected_keys)) == ([], [])
    return model.eval()


def clients(folder, *settings, tie=False, start=None):
    paths = []
    for number, own in enumerate(settings):
        config = LoraConfig(**{"r": 2 + number, "target_modules": ["q_proj", "down_proj"], **own})
        with third_party_warnings_ignored(), library_draws(number):
            model = get_peft_model(base_model(tie), config)
            if start is not None:
                start(model, number)
            train(model, seed=number)
            paths.append(folder / f"client-{number}")
            model.save_pretrained(paths[-1])
    return paths


def edited(folder, to, **options):
    shutil.copytree(folder, to)
    path = to / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))
    return to


def averages(folders, samples, tie=False):
    """Return dense averages of the clients' updates by module, cut to their highest rank."""
    found = [lora_layers(load(folder, tie)) for folder in folders]
    return {
        name: cut(
            dense_average([view[name] for view in found], samples, "fedavg"),
            max(view[name][0].shape[0] for view in found),
        )
        for name in found[0]
    }


def merged(deltas, tie=False):
    model = base_model(tie)
    with torch.no_grad():
        for name, delta in deltas.items():
            module = model.get_submodule(name)
            module.weight += delta.T if isinstance(module, nn.Embedding) else delta
    return model


def test_every_option_of_the_installed_peft_has_been_decided_on():
    """A new option fails this test; until it is handled, setting it is refused."""
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    kinds = [WRITTEN, CARRIED, set(SHARED), set(REFUSED)]
    assert fields == set().union(*kinds)
    assert sum(len(kind) for kind in kinds) == len(fields)


def test_shared_options_mean_what_peft_means_by_default():
    config = LoraConfig()
    assert {name: getattr(config, name) for name in SHARED} == SHARED


OTHER_VALUES = {
    "alora_invocation_tokens": [1, 2],
    "bias": "lora_only",
    "ensure_weight_tying": True,
    "fan_in_fan_out": True,
    "layer_replication": [[0, 1], [0, 1]],
    "task_type": "CAUSAL_LM",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return clients(tmp_path_factory.mktemp("plain"), {}, {})


@pytest.mark.parametrize("name", SHARED)
def test_clients_must_agree_on_shared_options(plain, tmp_path, name):
    other = edited(plain[1], tmp_path / "other", **{name: OTHER_VALUES[name]})
    with pytest.raises(InputError, match=rf"{name}=.*: expected .*as in"):
        aggregate_adapters([plain[0], other], None, "fedavg", tmp_path / "out")


CARRIED_VALUES = {
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"},
    "exclude_modules": ["lm_head"],
    "layers_pattern": "layers",
    "layers_to_transform": [0],
    "lora_dropout": 0.25,
    "megatron_core": "megatron.other",
    "peft_version": "0.20.0",
    "qalora_group_size": 8,
    "runtime_config": {"ephemeral_gpu_offload": False},
    "target_modules": r".*(q_proj|down_proj)",
    "target_parameters": ["nothing.weight"],
}


@pytest.mark.parametrize("name", sorted(CARRIED - {"modules_to_save", "trainable_token_indices"}))
def test_carried_options_are_those_of_the_first_client(plain, tmp_path, name):
    """Modules_to_save and token indices, which have tensors, have separate tests."""
    first = edited(plain[0], tmp_path / "first", **{name: CARRIED_VALUES[name]})
    aggregate_adapters([first, plain[1]], None, "fedavg", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written[name] == CARRIED_VALUES[name]


@pytest.mark.parametrize(
    "initialization",
    [True, False, "gaussian", "orthogonal", "eva", "pissa", "pissa_niter_2", "olora", "mica"],
)
def test_initializations_are_refused_where_peft_changes_the_base_or_freezes(initialization):
    with third_party_warnings_ignored(), library_draws(0):
        base = base_model().float()
        weight = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
        own = {"eva_config": EvaConfig()} if initialization == "eva" else {}
        config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=initialization, **own)
        model = get_peft_model(base, config)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    trains_both = all(
        p.requires_grad for p in (layer.lora_A.default.weight, layer.lora_B.default.weight)
    )
    unchanged = torch.equal(layer.base_layer.weight, weight)
    assert (unchanged and trains_both) == (initialization in PLAIN_INITIALIZATIONS)


def test_eva_is_ordinary_lora_whose_ranks_differ_by_module(tmp_path):
    """It initializes A from the client's inputs and distributes ranks; the base is unchanged."""

    def start(model, number):
        rng = torch.Generator().manual_seed(number)
        data = [{"input_ids": torch.randint(VOCABULARY, (4, 8), generator=rng)} for _ in range(3)]
        initialize_lora_eva_weights(model, data, show_progress_bar=False)

    own = {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.5), "r": 4}
    folders = clients(tmp_path, own, own, start=start)
    configs = [json.loads((f / "adapter_config.json").read_text()) for f in folders]
    assert any(config["rank_pattern"] for config in configs)
    aggregate_adapters(folders, [3, 1], "fedavg", tmp_path / "out")
    deltas = averages(folders, [3, 1])
    assert_same(outputs(load(tmp_path / "out")), outputs(merged(deltas)))
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["init_lora_weights"], written["eva_config"]) == (True, None)


def test_alora_acts_from_its_invocation_on(tmp_path):
    """Against hooks that add the dense average to the tokens from the invocation on."""
    text = inputs()
    invocation = text[0, 3:5].tolist()
    own = {"alora_invocation_tokens": invocation, "task_type": "CAUSAL_LM"}
    own["init_lora_weights"] = False  # random texts do not invoke it, so nothing would be trained
    folders = clients(tmp_path, own, own)
    aggregate_adapters(folders, [3, 1], "fedavg", tmp_path / "out")
    deltas = averages(folders, [3, 1])
    model = base_model()
    for name, delta in deltas.items():
        model.get_submodule(name).register_forward_hook(
            lambda module, given, result, delta=delta: torch.cat(
                [result[:, :3], result[:, 3:] + given[0][:, 3:] @ delta.T], dim=1
            )
        )
    with torch.no_grad():
        got = load(tmp_path / "out")(input_ids=text[:1]).logits
        assert_same(got, model(input_ids=text[:1]).logits)
        assert float((got - base_model()(input_ids=text[:1]).logits).norm()) > 1e-3


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"}, "a part of the tokens"),
        ({"layer_replication": [(0, 1), (0, 1)]}, "share their base weights"),
    ],
)
@pytest.mark.parametrize("rule", ["flora", "fedex"])
def test_no_correction_where_nothing_can_be_merged(tmp_path, option, reason, rule):
    folders = clients(tmp_path, option, option)
    with pytest.raises(InputError, match=rf"rule='{rule}': expected .*{reason}"):
        aggregate_adapters(folders, None, rule, tmp_path / "out")


def test_replicated_layers_are_averaged_one_by_one(tmp_path):
    own = {"layer_replication": [(0, 1), (0, 1)]}
    folders = clients(tmp_path, own, own)
    aggregate_adapters(folders, [3, 1], "fedavg", tmp_path / "out")
    deltas, got = averages(folders, [3, 1]), lora_layers(load(tmp_path / "out"))
    assert {name.split(".")[2] for name in got} == {"0", "1"}
    for name, (a, b, scaling) in got.items():
        assert_same(scaling * b @ a, deltas[name])


@pytest.mark.parametrize("tie", [False, True])
def test_trained_tokens_are_averaged_row_by_row(tmp_path, tie):
    """Also if the second client lists its tokens in another order that is not its own inverse."""
    orders = (TOKENS, [*TOKENS[1:], TOKENS[0]])
    settings = [{"trainable_token_indices": order} for order in orders]
    folders = clients(tmp_path, *settings, tie=tie)
    aggregate_adapters(folders, [3, 1], "fedavg", tmp_path / "out", client_folders=True)
    wanted = merged(averages(folders, [3, 1], tie), tie)
    rows = [load(folder, tie).get_base_model().get_input_embeddings() for folder in folders]
    rows = [table.token_adapter.get_merged_weights(["default"])[TOKENS] for table in rows]
    with torch.no_grad():
        wanted.get_input_embeddings().weight[TOKENS] = 0.75 * rows[0] + 0.25 * rows[1]
    assert_same(outputs(load(tmp_path / "out", tie)), outputs(wanted))
    for rank in (2, 3):
        received = load(tmp_path / "out" / "clients" / f"rank-{rank}", tie)
        table = received.get_base_model().get_input_embeddings().token_adapter
        assert_same(table.get_merged_weights(["default"]), wanted.get_input_embeddings().weight)


def test_tokens_of_several_modules(tmp_path):
    own = {"trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": [2, 5]}}
    folders = clients(tmp_path, own, own)
    aggregate_adapters(folders, [1, 1], "flora", tmp_path / "out")
    wanted = merged({})
    exact = [lora_layers(load(folder)) for folder in folders]
    exact = {n: dense_average([v[n] for v in exact], [1, 1], "fedavg") for n in exact[0]}
    wanted = merged(exact)
    with torch.no_grad():
        for name, tokens in (("model.embed_tokens", TOKENS), ("lm_head", [2, 5])):
            rows = [
                load(folder).get_base_model().get_submodule(name).token_adapter
                for folder in folders
            ]
            rows = [table.get_merged_weights(["default"])[tokens] for table in rows]
            wanted.get_submodule(name).weight[tokens] = (rows[0] + rows[1]) / 2
    assert_same(outputs(load(tmp_path / "out")), outputs(wanted))


def test_clients_that_trained_other_tokens_are_refused(tmp_path):
    settings = [{"trainable_token_indices": tokens} for tokens in (TOKENS, [3, 7, 2])]
    folders = clients(tmp_path, *settings)
    with pytest.raises(InputError, match=r"trainable_token_indices=\[2, 3, 7\].*\[1, 3, 7\]"):
        aggregate_adapters(folders, None, "fedavg", tmp_path / "out")
    other = edited(folders[0], tmp_path / "other", trainable_token_indices=[3, 3, 1])
    with pytest.raises(InputError, match=r"expected 3 distinct tokens"):
        aggregate_adapters([other], None, "fedavg", tmp_path / "out")


TIED = {
    "lora": {"target_modules": ["q_proj", "embed_tokens"]},
    "lora on the output": {"target_modules": ["q_proj", "lm_head"]},
    "saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tokens": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": TOKENS},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("rule", ["fedavg", "zero_pad", "flora"])
def test_tied_weights_stay_tied(tmp_path, kind, rule):
    own = {**TIED[kind], "ensure_weight_tying": True, "lora_alpha": 4}
    folders = clients(tmp_path, own, {**own, "lora_alpha": 9}, tie=True)
    if rule == "flora" and kind.startswith("lora"):
        with pytest.raises(InputError, match=r"rule='flora': expected .*\(lm_head\) to them twice"):
            aggregate_adapters(folders, [3, 1], rule, tmp_path / "out")
        return
    aggregate_adapters(folders, [3, 1], rule, tmp_path / "out", client_folders=True)
    for place in ("", "clients/rank-2", "clients/rank-3"):
        model = load(tmp_path / "out" / place, tie=True)
        found = lora_layers(model)
        names = [name for name in found if name in ("model.embed_tokens", "lm_head")]
        assert len(names) == (2 if kind.startswith("lora") else 0)
        if names:
            (a, b, scaling), (tied_a, tied_b, tied_scaling) = (found[name] for name in names)
            assert torch.equal(a, tied_b.T)
            assert torch.equal(b, tied_a.T)
            assert scaling == tied_scaling
    if rule == "fedavg" and kind.startswith("lora"):
        wanted = averages(folders, [3, 1], tie=True)
        wanted.pop("lm_head")  # the same weights as the embedding's
        assert_same(outputs(load(tmp_path / "out", tie=True)), outputs(merged(wanted, tie=True)))


def test_peft_merges_lora_on_tied_layers_twice(tmp_path):
    """This is why no base correction is written for them; if it changes, so can the refusal."""
    own = {**TIED["lora"], "ensure_weight_tying": True}
    (folder,) = clients(tmp_path, own, tie=True)
    wanted = outputs(load(folder, tie=True))
    with pytest.warns(UserWarning, match="tied_target_modules"):
        merged_by_peft = outputs(load(folder, tie=True).merge_and_unload())
    assert float((merged_by_peft - wanted).norm()) > 0.1 * float(wanted.norm())


def test_tied_factors_that_differ_are_refused(tmp_path):
    own = {**TIED["lora"], "ensure_weight_tying": True}
    (folder,) = clients(tmp_path, own, tie=True)
    other = edited(folder, tmp_path / "other", alpha_pattern={"lm_head": 3})
    with pytest.raises(InputError, match="tied factors of='lm_head'"):
        aggregate_adapters([other], None, "fedavg", tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [
        {"trainable_token_indices": TOKENS},
        {**TIED["lora"], "ensure_weight_tying": True},
        {"bias": "all"},
        {"modules_to_save": ["input_layernorm", "post_attention_layernorm", "model.norm"]},
    ],
    ids=lambda options: next(reversed(options)),
)
def test_options_in_memory(tmp_path, options):
    """The same options as arguments give the bits of the folders."""
    is_tied = "ensure_weight_tying" in options
    folders = clients(tmp_path, *[{**options, "lora_alpha": ALPHA}] * 2, tie=is_tied)
    aggregate_adapters(folders, [3, 1], "raflora", tmp_path / "out")
    given = json.loads((folders[0] / "adapter_config.json").read_text())
    found = aggregate_state_dicts(states(folders), [3, 1], lora_alpha=ALPHA, options=given)
    assert_bits_of_folder(found, tmp_path / "out", ALPHA)
