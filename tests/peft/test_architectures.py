"""Tiny models of many architectures: outputs with the aggregated folder against a dense merge.

Every architecture is combined with every way of writing a folder, in two cases each; the deep
profile runs all combinations.
"""

from __future__ import annotations

import copy
import functools
import itertools
import random
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from adapter_cases import assert_same, lora_layers, third_party_warnings_ignored
from hypothesis_profiles import is_random
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from fedlora_sim.peft import aggregate_adapters
from fedlora_sim.randomness import library_draws
from fedlora_sim.reference.aggregation import aggregate_reference

VOCABULARY, WIDTH, SAMPLES = 24, 16, (3, 1)
WEIGHTS = "adapter_model.safetensors"
# Sizes under all names in configurations; each takes the ones that it knows.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": 20, "n_inner": 24}
SEQ2SEQ = {
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "decoder_start_token_id": 1,
}
PATCHES = {"image_size": 8, "patch_size": 4}
QV = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Architecture:
    """How to build a tiny model, and where its adapters go.

    Args:
        model: class in transformers.
        targets: ends of the names of two kinds of modules.
        saved: a module that is trained in full.
        embeddings: end of the name of the input embeddings; empty for models of images, None if
            PEFT finds none.
        sizes: further sizes of the configuration.
        inputs: kind of input.
    """

    model: str
    targets: tuple[str, str] = QV
    saved: str = "norm"
    embeddings: str | None = "embed_tokens"
    sizes: dict = field(default_factory=dict)
    inputs: str = "words"


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", ("q_proj", "down_proj")),
    "mistral": Architecture("MistralForCausalLM"),
    "mixtral": Architecture(
        "MixtralForCausalLM", sizes={"num_local_experts": 2, "experts_implementation": "eager"}
    ),
    "qwen2": Architecture("Qwen2ForCausalLM", ("k_proj", "gate_proj")),
    "qwen3": Architecture("Qwen3ForCausalLM", ("o_proj", "up_proj")),
    "gemma": Architecture("GemmaForCausalLM"),
    "gemma2": Architecture("Gemma2ForCausalLM"),
    "gemma3": Architecture("Gemma3ForCausalLM", sizes={"layer_types": ["full_attention"]}),
    "phi": Architecture("PhiForCausalLM", ("dense", "fc1"), "final_layernorm"),
    "phi3": Architecture("Phi3ForCausalLM", ("qkv_proj", "gate_up_proj")),
    "starcoder2": Architecture("Starcoder2ForCausalLM", ("q_proj", "c_fc")),
    "gpt2": Architecture("GPT2LMHeadModel", ("c_attn", "c_fc"), "ln_f", "wte", GPT),
    "gptj": Architecture(
        "GPTJForCausalLM", ("q_proj", "fc_in"), "ln_f", "wte", {**GPT, "rotary_dim": 4}
    ),
    "gpt_neox": Architecture(
        "GPTNeoXForCausalLM", ("query_key_value", "dense"), "final_layer_norm", "embed_in"
    ),
    "opt": Architecture(
        "OPTForCausalLM",
        ("q_proj", "fc1"),
        "final_layer_norm",
        sizes={"ffn_dim": 24, "word_embed_proj_dim": WIDTH},
    ),
    "bloom": Architecture(
        "BloomForCausalLM", ("query_key_value", "dense"), "ln_f", "word_embeddings", GPT
    ),
    "falcon": Architecture(
        "FalconForCausalLM", ("query_key_value", "dense"), "ln_f", "word_embeddings"
    ),
    "mpt": Architecture(
        "MptForCausalLM",
        ("Wqkv", "up_proj"),
        "norm_f",
        "wte",
        {"d_model": WIDTH, "n_heads": 2, "n_layers": 1, "max_seq_len": 20},
    ),
    "mamba": Architecture(
        "MambaForCausalLM", ("in_proj", "x_proj"), "norm_f", "embeddings", {"state_size": 4}
    ),
    "bert": Architecture(
        "BertForMaskedLM", ("query", "output.dense"), "transform", "word_embeddings"
    ),
    "roberta": Architecture(
        "RobertaForMaskedLM", ("query", "value"), "lm_head.dense", "word_embeddings"
    ),
    "distilbert": Architecture(
        "DistilBertForMaskedLM",
        ("q_lin", "lin1"),
        "vocab_transform",
        "word_embeddings",
        {"dim": WIDTH, "hidden_dim": 24, "n_layers": 1, "n_heads": 2},
    ),
    "deberta": Architecture(
        "DebertaV2ForSequenceClassification",
        ("query_proj", "value_proj"),
        "classifier",
        "word_embeddings",
    ),
    "albert": Architecture(
        "AlbertForMaskedLM",
        ("query", "ffn"),
        "predictions.dense",
        "word_embeddings",
        {"embedding_size": 8, "num_hidden_layers": 2},
    ),
    "electra": Architecture(
        "ElectraForMaskedLM",
        ("query", "value"),
        "generator_predictions",
        "word_embeddings",
        {"embedding_size": 8},
    ),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        ("q", "wo"),
        "final_layer_norm",
        "shared",
        {
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 1,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
        "pairs",
    ),
    "bart": Architecture(
        "BartForConditionalGeneration", QV, "layernorm_embedding", "shared", SEQ2SEQ, "pairs"
    ),
    "whisper": Architecture(
        "WhisperForConditionalGeneration",
        QV,
        "layer_norm",
        "decoder.embed_tokens",
        {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 20},
        "mel",
    ),
    "clip": Architecture(
        "CLIPModel",
        QV,
        "visual_projection",
        None,
        {"text_config": SIZES, "vision_config": {**SIZES, **PATCHES}, "projection_dim": 8},
        "captions",
    ),
    "llava": Architecture(
        "LlavaForConditionalGeneration",
        ("q_proj", "fc1"),
        "multi_modal_projector",
        sizes={
            "text_config": {"model_type": "llama", **SIZES},
            "vision_config": {"model_type": "clip_vision_model", **SIZES, **PATCHES},
        },
    ),
    "vit": Architecture(
        "ViTForImageClassification", ("q_proj", "fc1"), "classifier", "", PATCHES, "images"
    ),
    "resnet": Architecture(
        "ResNetForImageClassification",
        ("0.convolution", "1.convolution"),
        "normalization",
        None,
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "images",
    ),
    "convnext": Architecture(
        "ConvNextForImageClassification",
        ("pwconv1", "pwconv2"),
        "classifier",
        None,
        {"num_stages": 2, "hidden_sizes": [8, 8], "depths": [1, 1], "patch_size": 2},
        "images",
    ),
    "wav2vec2": Architecture(
        "Wav2Vec2ForCTC",
        QV,
        "lm_head",
        None,
        {
            "conv_dim": [8, 8],
            "conv_stride": [2, 2],
            "conv_kernel": [3, 3],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        "waves",
    ),
}

RANKS = {
    "uniform": [{"r": 3}, {"r": 3}],
    "mixed": [{"r": 2}, {"r": 4}],
    "patterns": [
        {"r": 2, "rank_pattern": {0: 3}, "alpha_pattern": {1: 5}},
        {"r": 3, "rank_pattern": {1: 4}},
    ],
}
SCALINGS = {
    "alpha/r": [{}, {}],
    "rslora": [{"use_rslora": True}, {"use_rslora": True}],
    "both": [{"use_rslora": True}, {"lora_alpha": 12}],
}
FACTORS = {
    "ranks": tuple(RANKS),
    "scalings": tuple(SCALINGS),
    "trained": ("factors", "module", "biases"),
    "embeddings": ("plain", "resized", "targeted"),
    "precisions": ("one", "two"),
    "rule": ("flora", "fedex", "fedavg", "raflora", "zero_pad", "hetlora", "rbla"),
}
EXACT = ("flora", "fedex")


def two_rows():
    """Return two cases per architecture: patterns, rsLoRA, a saved module and two precisions."""
    for number, name in enumerate(ARCHITECTURES):
        embeddings = ("targeted", "resized")[:: 1 if number % 2 else -1]
        rule, trained = EXACT[number % 2], FACTORS["trained"][number % 3]
        yield name, ("patterns", "rslora", "module", embeddings[0], "two", rule)
        ranks, scalings = (
            ("uniform", "mixed")[number // 2 % 2],
            ("alpha/r", "both")[number // 4 % 2],
        )
        rule = FACTORS["rule"][number % len(FACTORS["rule"])]
        yield name, (ranks, scalings, trained, embeddings[1], "one", rule)


def all_pairs(seed):
    """Return cases per architecture with all pairs of levels of two factors: greedy, seeded."""
    rng = random.Random(seed)
    levels = [[(factor, level) for level in own] for factor, own in FACTORS.items()]
    for name in ARCHITECTURES:
        lacking = {
            pair
            for one, two in itertools.combinations(levels, 2)
            for pair in itertools.product(one, two)
        }
        while lacking:
            drawn = [tuple(rng.choice(own) for own in levels) for _ in range(50)]
            met = [lacking.intersection(itertools.combinations(row, 2)) for row in drawn]
            best = max(range(len(drawn)), key=lambda i: len(met[i]))
            lacking -= met[best]
            if met[best]:
                yield name, tuple(level for _, level in drawn[best])


CASES = list(all_pairs(0) if is_random() else two_rows())


@functools.cache
def original(name):
    spec = ARCHITECTURES[name]
    model = getattr(transformers, spec.model)
    computed = {k for k in SIZES if isinstance(getattr(model.config_class, k, None), property)}
    own = {} if "text_config" in spec.sizes else {k: SIZES[k] for k in SIZES.keys() - computed}
    with third_party_warnings_ignored(), library_draws(7):
        return model(model.config_class(**{**own, **spec.sizes})).double().eval()


def base_model(name, embeddings):
    model = copy.deepcopy(original(name))
    if embeddings == "resized" and ARCHITECTURES[name].embeddings:
        with library_draws(3):
            model.resize_token_embeddings(VOCABULARY + 4, mean_resizing=False)
    return model


def save_clients(name, case, folder):
    """Yield two clients' folders, saved by PEFT, of random factors and moved whole modules."""
    ranks, scalings, trained, embeddings, precisions, _ = case
    spec = ARCHITECTURES[name]
    targets = [*spec.targets]
    if embeddings == "targeted" and spec.embeddings:
        targets.append(spec.embeddings)
    for number, options in enumerate(zip(RANKS[ranks], SCALINGS[scalings], strict=True)):
        given = {key: value for own in options for key, value in own.items()}
        for pattern in {"rank_pattern", "alpha_pattern"} & set(given):
            given[pattern] = {spec.targets[i]: value for i, value in given[pattern].items()}
        config = LoraConfig(
            target_modules=targets,
            modules_to_save=[spec.saved] if trained == "module" else None,
            bias="all" if trained == "biases" else "none",
            init_lora_weights=False,
            fan_in_fan_out=spec.model == "GPT2LMHeadModel",
            **given,
        )
        with third_party_warnings_ignored(), library_draws(10 + number):
            model = get_peft_model(base_model(name, embeddings), config)
            moved = {p for p in model.parameters() if p.requires_grad}
            moved -= {p for n, p in model.named_parameters() if "lora_" in n}
            saves = embeddings != "plain" and spec.embeddings is not None
            if saves and embeddings == "resized":
                moved |= set(model.get_input_embeddings().parameters())
            with torch.no_grad():
                for parameter in moved:
                    parameter += 0.1 * torch.randn_like(parameter)
            path = folder / str(number)
            model.save_pretrained(path, save_embedding_layers=saves)
        if precisions == "two" and number == 0:
            tensors = load_file(path / WEIGHTS)
            halved = {
                k: x if ".lora_" in k or not x.is_floating_point() else x.float()
                for k, x in tensors.items()
            }
            save_file(halved, path / WEIGHTS, metadata={"format": "pt"})
        yield path


def adapted(name, embeddings, folder):
    """Return the model with an adapter on top, through PEFT; every tensor must find its place."""
    with third_party_warnings_ignored():
        model = PeftModel(base_model(name, embeddings), PeftConfig.from_pretrained(folder))
        result = model.load_adapter(folder, adapter_name="default")
    assert list(result.missing_keys) + list(result.unexpected_keys) == []
    return model.eval()


def dense_merge(name, case, models):
    """Return the base model with the average of the clients' merged weights, summed in float64.

    Under a rule that is not exact, layers with LoRA get the dense reference's update.
    """
    *_, embeddings, _, rule = case
    updates = [factors(model) for model in models]
    states = [model.merge_and_unload().state_dict() for model in models]
    shares = [n / sum(SAMPLES) for n in SAMPLES]
    base = base_model(name, embeddings)
    state = {
        key: sum(share * own[key] for share, own in zip(shares, states, strict=True)).to(x.dtype)
        for key, x in states[0].items()
    }
    base.load_state_dict(state)
    if rule not in EXACT:
        start = base_model(name, embeddings)
        for module in updates[0]:
            own = [update[module] for update in updates]
            levels = sorted({a.shape[0] for a, _, _ in own})
            a, b, rest = aggregate_reference(own, SAMPLES, rule, levels)
            layer, weight = base.get_submodule(module), start.get_submodule(module).weight
            delta = torch.from_numpy(b @ a + rest)
            transposed = isinstance(layer, nn.Embedding) or type(layer).__name__ == "Conv1D"
            delta = delta.T if transposed else delta
            with torch.no_grad():
                layer.weight.copy_(weight + delta.reshape(weight.shape))
    return base.eval()


def factors(model):
    """PEFT's own view of every LoRA module: A (r, d_in), B (d_out, r), scaling."""
    return {
        name: (a.numpy(), b.numpy(), scaling)
        for name, (a, b, scaling) in lora_layers(model).items()
    }


def outputs(model, inputs):
    ids = torch.arange(16).reshape(2, 8) * 5 % VOCABULARY
    images = torch.linspace(-1, 1, 2 * 3 * 64, dtype=torch.float64).reshape(2, 3, 8, 8)
    given = {
        "words": {"input_ids": ids},
        "pairs": {"input_ids": ids, "decoder_input_ids": ids.flip(1)},
        "mel": {
            "input_features": torch.linspace(-1, 1, 320, dtype=torch.float64).reshape(2, 8, 20),
            "decoder_input_ids": ids,
        },
        "captions": {"input_ids": ids, "pixel_values": images},
        "images": {"pixel_values": images},
        "waves": {"input_values": torch.linspace(-1, 1, 400, dtype=torch.float64).reshape(2, 200)},
    }[inputs]
    with torch.no_grad():
        result = model(**given)
    return result.logits_per_text if inputs == "captions" else result.logits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`")
@pytest.mark.parametrize(("name", "case"), CASES, ids=str)
def test_outputs_are_those_of_a_dense_merge(tmp_path, name, case):
    *_, embeddings, _, rule = case
    folders = list(save_clients(name, case, tmp_path))
    aggregate_adapters(folders, SAMPLES, rule, tmp_path / "out")
    inputs = ARCHITECTURES[name].inputs
    models = [adapted(name, embeddings, folder) for folder in folders]
    wanted = outputs(dense_merge(name, case, models), inputs)
    assert_same(
        outputs(adapted(name, embeddings, tmp_path / "out").merge_and_unload(), inputs), wanted
    )
    moved = wanted - outputs(base_model(name, embeddings), inputs)
    assert float(moved.norm()) > 1e-4 * float(wanted.norm())  # the comparison is of something


def test_the_design_covers_every_architecture_and_every_kind_of_folder():
    assert len(ARCHITECTURES) >= 25
    met = {name: set() for name in ARCHITECTURES}
    for name, case in two_rows():
        met[name] |= set(case)
    kinds = {"patterns", "rslora", "module", "resized", "targeted", "two"}
    assert all(kinds <= levels and levels & {"uniform", "mixed"} for levels in met.values())
    every = {level for own in FACTORS.values() for level in own} - {"plain"}
    assert every <= set.union(*met.values())
    pairs = {name: set() for name in ARCHITECTURES}
    for name, case in all_pairs(0):
        pairs[name] |= set(itertools.combinations(case, 2))
    for one, two in itertools.combinations(FACTORS.values(), 2):
        assert all(set(itertools.product(one, two)) <= found for found in pairs.values())
