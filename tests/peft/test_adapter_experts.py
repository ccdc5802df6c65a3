"""LoRA on parameters (target_parameters): routers, and experts stacked in three dimensions."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from adapter_cases import (
    SAMPLES,
    assert_same,
    cut,
    dense_average,
    inputs,
    third_party_warnings_ignored,
    train,
)
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file, save_file
from state_dict_cases import ALPHA, assert_bits_of_folder, states
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from fedlora_sim.errors import InputError
from fedlora_sim.peft import AdapterFolder, aggregate_adapters, aggregate_state_dicts
from fedlora_sim.randomness import library_draws
from fedlora_sim.rules import rule_names

# PEFT warns that patterns for parameters are ignored, but uses them.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"
)

WEIGHTS = "adapter_model.safetensors"
RANKS = (1, 2, 3)
SIZES = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 10,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
}
MODELS = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=5)),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **SIZES, num_experts=5, moe_intermediate_size=10, shared_expert_intermediate_size=6
        )
    ),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, num_experts=5, moe_intermediate_size=10)
    ),
    # Its experts are stored (experts, in, out), all others' (experts, out, in).
    "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=5)),
}
STACKED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
TARGETS = {
    "mixtral": {"target_modules": "all-linear"},
    "qwen2_moe": {"target_modules": [], "target_parameters": STACKED},
    "qwen3_moe": {"target_modules": "all-linear"},
    "gpt_oss": {"target_modules": ["q_proj"], "target_parameters": STACKED},
}
# Three scalings, one of them rank-stabilized.
MIXED = [{"r": r, "lora_alpha": 3 + r, "use_rslora": r == 2} for r in RANKS]


def base_model(architecture):
    with library_draws(7):
        model = MODELS[architecture]().double().eval()
    model.set_experts_implementation("eager")  # the others do not support double precision
    return model


@pytest.fixture(scope="session")
def expert_clients(tmp_path_factory):
    made = {}

    def get(architecture, *settings):
        key = architecture, repr(settings)
        if key not in made:
            folder = tmp_path_factory.mktemp(architecture)
            made[key] = [folder / str(number) for number in range(len(settings))]
            for number, (path, own) in enumerate(zip(made[key], settings, strict=True)):
                config = LoraConfig(**{**TARGETS[architecture], **own})
                with third_party_warnings_ignored(), library_draws(number):
                    model = get_peft_model(base_model(architecture), config)
                    train(model, seed=number)
                    model.save_pretrained(path)
        return made[key]

    return get


def load(architecture, folder):
    with third_party_warnings_ignored():
        model = PeftModel.from_pretrained(base_model(architecture), folder)
        result = model.load_adapter(folder, adapter_name="default")
    assert (list(result.missing_keys), list(result.unexpected_keys)) == ([], [])
    return model.eval()


def outputs(model):
    with torch.no_grad():
        return model(input_ids=inputs()).logits


def views(model):
    """Return PEFT's (A, B, scaling) of every expert by parameter."""
    found = {}
    for name, module in model.base_model.model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        place = name.replace(".base_layer", "")
        if isinstance(module, ParamWrapper) and module.num_experts > 1:
            lhs, rhs, scaling = module.get_delta_factors("default")
            if not module._did_swap_in_out_features:
                lhs, rhs = rhs.mT, lhs.mT
            layers = [(a, b, scaling) for a, b in zip(rhs, lhs, strict=True)]
        else:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            layers = [(a, b, module.scaling["default"])]
        parameter = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
        found[f"{place}.{parameter}"] = [(a.detach(), b.detach(), s) for a, b, s in layers]
    return found


def updates(view):
    return {name: [s * b @ a for a, b, s in layers] for name, layers in view.items()}


def averages(of_clients, samples, rule, rank=None):
    """Return dense averages per parameter and expert, truncated to a rank."""
    found = {}
    for name, experts in of_clients[0].items():
        found[name] = []
        for e in range(len(experts)):
            factors = [view[name][e] for view in of_clients]
            dense = dense_average(factors, samples, "fedavg" if rank == "all" else rule)
            highest = max(a.shape[0] for a, _, _ in factors)
            found[name].append(dense if rank == "all" else cut(dense, rank or highest))
    return found


def merged_outputs(architecture, deltas):
    """Return outputs of the base model with dense updates added to its parameters."""
    model = base_model(architecture)
    with torch.no_grad():
        for name, experts in deltas.items():
            parameter = model.get_parameter(name)
            update = torch.stack(list(experts)) if parameter.ndim == 3 else experts[0]
            is_transposed = architecture == "gpt_oss" and parameter.ndim == 3
            parameter += update.mT if is_transposed else update
    return outputs(model)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("rule", ["fedavg", "raflora"])
def test_experts_are_averaged_one_by_one(expert_clients, tmp_path, architecture, rule):
    folders = expert_clients(architecture, *MIXED)
    report = aggregate_adapters(folders, SAMPLES, rule, tmp_path / "out", client_folders=True)
    of_clients = [views(load(architecture, folder)) for folder in folders]
    wanted = averages(of_clients, SAMPLES, rule)
    stacked = {layer.module.rpartition(".")[2] for layer in report.layers if layer.experts == 5}
    assert stacked == {"gate_up_proj", "down_proj"}
    got = load(architecture, tmp_path / "out")
    assert_same(outputs(got), merged_outputs(architecture, wanted))
    assert float((outputs(got) - outputs(base_model(architecture))).norm()) > 1e-3
    for folder, place in zip(folders, report.client_folders, strict=True):
        received = views(load(architecture, tmp_path / "out" / place))
        own = views(load(architecture, folder))
        for name, experts in received.items():
            for e, (a, b, scaling) in enumerate(experts):
                assert (a.shape, scaling) == (own[name][e][0].shape, own[name][e][2])
                assert_same(scaling * b @ a, cut(wanted[name][e], a.shape[0]))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["flora", "fedex"])
@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe"])
def test_exact_rules_are_exact_for_every_expert(expert_clients, tmp_path, architecture, rule):
    folders = expert_clients(architecture, *MIXED)
    out = tmp_path / "out"
    aggregate_adapters(folders, SAMPLES, rule, out, client_folders=True)
    of_clients = [views(load(architecture, folder)) for folder in folders]
    exact = averages(of_clients, SAMPLES, rule, rank="all")
    assert_same(outputs(load(architecture, out)), merged_outputs(architecture, exact))
    merged = load(architecture, out / "base").merge_and_unload()
    with third_party_warnings_ignored():
        both = PeftModel.from_pretrained(merged, out / "adapter").eval()
    assert_same(outputs(both), outputs(load(architecture, out)))


@pytest.mark.parametrize("rule", [*rule_names(), "raflora:canonicalize=true"])
def test_every_rule_goes_expert_by_expert(expert_clients, tmp_path, rule):
    """Against the same rule on folders that hold one expert each, as an ordinary module."""
    folders = expert_clients("qwen2_moe", *MIXED)
    if rule == "ffa":
        folders = [with_common_a(folder, tmp_path / f"a-{folder.name}") for folder in folders]
    aggregate_adapters(folders, SAMPLES, rule, tmp_path / "out", device="cpu")
    together = AdapterFolder(tmp_path / "out")
    cpu = torch.device("cpu")
    for e in (0, 3):
        alone = [one_expert(folder, e, tmp_path / f"{folder.name}-{e}") for folder in folders]
        aggregate_adapters(alone, SAMPLES, rule, tmp_path / f"out-{e}", device="cpu")
        expert = AdapterFolder(tmp_path / f"out-{e}")
        for name in together.layers:
            delta = together.factors(name, torch.float64, cpu).delta()[e]
            assert_same(delta, expert.factors(f"{name}.expert", torch.float64, cpu).delta())


def one_expert(folder, expert, to):
    """Return an adapter folder with one expert of every stack, as a module."""
    source, tensors = AdapterFolder(folder), {}
    for name in source.layers:
        factors = source.factors(name, torch.float64, torch.device("cpu"))
        key = f"base_model.model.{name}.expert"
        tensors[f"{key}.lora_A.weight"] = factors.lora_A[expert].contiguous()
        tensors[f"{key}.lora_B.weight"] = factors.lora_B[expert].contiguous()
    to.mkdir()
    save_file(tensors, to / WEIGHTS)
    options = {**source.config.options, "target_modules": ["expert"], "target_parameters": None}
    (to / "adapter_config.json").write_text(json.dumps(options))
    return to


def with_common_a(folder, to):
    """Return a copy in which every A is the top of one matrix that all clients share."""
    shutil.copytree(folder, to)
    tensors = load_file(to / WEIGHTS)
    for key, tensor in tensors.items():
        if ".lora_A" in key:
            drawn = torch.Generator().manual_seed(len(key))
            common = torch.randn(5, 3, tensor.shape[1], generator=drawn, dtype=tensor.dtype)
            tensors[key] = common[:, : tensor.shape[0] // 5].flatten(0, 1).contiguous()
    save_file(tensors, to / WEIGHTS)
    return to


@pytest.mark.parametrize("rule", ["flora", "fedavg"])
def test_received_adapters_of_experts_can_be_trained(expert_clients, tmp_path, rule):
    """Components without energy are reinitialized in every expert."""
    folders = expert_clients("qwen2_moe", *MIXED)
    options = {"client_folders": True, "rank_levels": RANKS, "empty_partition": "zero"}
    aggregate_adapters(folders[:2], None, rule, tmp_path / "out", **options)
    place = "adapter" if rule == "flora" else "."
    for experts in views(load("qwen2_moe", tmp_path / "out" / place)).values():
        starts = {tuple(a[-1].tolist()) for a, _, _ in experts}
        assert len(starts) == len(experts)
        assert all(a.norm(dim=1).min() > 0 for a, _, _ in experts)


def test_the_rank_of_a_fused_parameter_follows_the_levels(expert_clients, tmp_path):
    """PEFT doubles r for gate_up_proj, so the federation's levels double there too."""
    folders = expert_clients("mixtral", *MIXED)[:2]
    options = {"rank_levels": RANKS, "empty_partition": "zero"}
    report = aggregate_adapters(folders, None, "raflora", tmp_path / "out", **options)
    levels = {layer.module.rpartition(".")[2]: layer.levels for layer in report.layers}
    assert levels["gate_up_proj"] == (2, 4, 6)
    assert levels["down_proj"] == levels["weight"] == levels["q_proj"] == RANKS
    outputs(load("mixtral", tmp_path / "out"))


class Pair(nn.Module):
    """Two stacks of experts in one module, under names that say nothing of their order."""

    def __init__(self):
        super().__init__()
        self.zeta = nn.Parameter(torch.ones(2, 6, 4))
        self.alpha = nn.Parameter(torch.ones(2, 4, 6))


def saved_pair(folder, **options):
    model = nn.ModuleDict({"pair": Pair()})
    config = LoraConfig(
        r=2, target_modules=[], target_parameters=["pair.zeta", "pair.alpha"], **options
    )
    with third_party_warnings_ignored():
        get_peft_model(model, config).save_pretrained(folder)
    return folder


def test_parameters_of_unknown_order_are_identified_by_rank(tmp_path):
    folder = saved_pair(tmp_path / "told", rank_pattern={"pair.zeta": 3})
    layers = AdapterFolder(folder).layers
    assert layers["pair.zeta"].shape_A == (6, 4)
    assert layers["pair.alpha"].shape_A == (4, 6)
    with pytest.raises(InputError, match=r"rows of lora_A of pair=\[4, 4\]"):
        AdapterFolder(saved_pair(tmp_path / "not"))


def test_a_folder_cannot_make_the_server_try_endless_orders(tmp_path):
    """20 parameters in 10 wrapped layers have 6.7e11 orders."""
    path = "base_model.model.pair" + ".base_layer" * 10
    tensors = {}
    for _ in range(10):
        path = path.removesuffix(".base_layer")
        tensors[f"{path}.lora_A.weight"] = torch.ones(4, 6)
        tensors[f"{path}.lora_B.weight"] = torch.ones(6, 4)
    save_file(tensors, tmp_path / WEIGHTS)
    options = {"peft_type": "LORA", "r": 3, "lora_alpha": 4, "target_modules": []}
    options["target_parameters"] = [f"pair.p{number}" for number in range(20)]
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    with pytest.raises(InputError, match=r"rows of lora_A of pair=.*10 of the parameters"):
        AdapterFolder(tmp_path)


def test_square_experts_of_two_versions_of_peft_are_refused(tmp_path):
    """The shapes do not show which way round they are stored."""
    model = nn.ModuleDict({"pair": Pair()})
    model["pair"].square = nn.Parameter(torch.ones(2, 4, 4))
    options = {"target_modules": [], "target_parameters": ["pair.square"]}
    config = LoraConfig(r=2, init_lora_weights=False, **options)
    folders = [tmp_path / "a", tmp_path / "b"]
    with third_party_warnings_ignored():
        get_peft_model(model, config).save_pretrained(folders[0])
    shutil.copytree(folders[0], folders[1])
    aggregate_adapters(folders, None, "fedavg", tmp_path / "out")
    path = folders[1] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_version": "0.18.1"}))
    with pytest.raises(InputError, match=r"peft_version='0\.18\.1'"):
        aggregate_adapters(folders, None, "fedavg", tmp_path / "never")


def test_experts_and_routers_of_one_rank(expert_clients, tmp_path):
    """Also if that rank exceeds the maximum of a router."""
    folders = expert_clients("mixtral", *MIXED)
    aggregate_adapters(folders, SAMPLES, "flora", tmp_path / "patterns")
    aggregate_adapters(folders, SAMPLES, "flora", tmp_path / "uniform", uniform_rank=True)
    uniform = load("mixtral", tmp_path / "uniform")
    ranks = {a.shape[0] for experts in views(uniform).values() for a, _, _ in experts}
    assert len(ranks) == 1
    assert ranks.pop() > 5  # experts, and so the router's outputs
    assert_same(outputs(uniform), outputs(load("mixtral", tmp_path / "patterns")))
    config = json.loads((tmp_path / "uniform" / "adapter_config.json").read_text())
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})


@pytest.mark.parametrize("rule", ["raflora", "flora"])
def test_experts_in_memory(expert_clients, tmp_path, rule):
    """Shapes do not show how many experts a parameter stacks: an argument does."""
    folders = expert_clients("qwen2_moe", *({"r": r, "lora_alpha": ALPHA} for r in RANKS))
    aggregate_adapters(folders, SAMPLES, rule, tmp_path / "out")
    found = aggregate_state_dicts(
        states(folders),
        SAMPLES,
        rule=rule,
        lora_alpha=ALPHA,
        target_parameters=dict.fromkeys(STACKED, 5),
    )
    assert_bits_of_folder(found, tmp_path / "out", ALPHA)
    wrong = dict.fromkeys(STACKED, 7)
    with pytest.raises(InputError, match=r"rows of lora_A of mlp|rows of lora_A of model"):
        aggregate_state_dicts(states(folders), lora_alpha=ALPHA, target_parameters=wrong)
