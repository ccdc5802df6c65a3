"""Shared by the adapters' tests: tiny models, adapters trained by PEFT, and a dense merge.

The merge is independent of the package: factors and scalings come from PEFT's modules after PEFT
has loaded the client's folder, and weights are summed in dense float64 matrices.
"""

from __future__ import annotations

import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from fedlora_sim.randomness import library_draws
from fedlora_sim.tolerances import relative

VOCABULARY = 24
SAMPLES = (120, 80, 40)
RANKS = (2, 4, 8)


class ConvNet(nn.Module):
    """Convolutions of one and two dimensions and a linear head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 9)
        self.line = nn.Conv1d(9, 10, 3, padding=1)
        self.plane = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Linear(8, 9)

    def forward(self, input_ids):
        x = self.line(self.embed(input_ids).mT).unsqueeze(1)
        return self.head(self.plane(x).mean(dim=(2, 3)))


def _bert():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return BertForSequenceClassification(
        BertConfig(vocab_size=VOCABULARY, num_hidden_layers=2, max_position_embeddings=16, **sizes)
    )


def _gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    )


def _llama():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=2, max_position_embeddings=16, **sizes)
    )


MODELS = {"bert": _bert, "gpt2": _gpt2, "llama": _llama, "conv": ConvNet}
# Square and non-square modules of each; an embedding of LLaMA, both kinds of convolution.
SETTINGS = {
    "bert": {"target_modules": ["query", "intermediate.dense"], "task_type": "SEQ_CLS"},
    "gpt2": {
        "target_modules": ["c_attn", "c_proj"],
        "fan_in_fan_out": True,
        "task_type": "CAUSAL_LM",
    },
    "llama": {"target_modules": ["q_proj", "down_proj", "embed_tokens"], "task_type": "CAUSAL_LM"},
    "conv": {"target_modules": ["line", "plane", "head"]},
}


@contextmanager
def third_party_warnings_ignored():
    """Ignore warnings of PEFT and transformers that are not about the files."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
        warnings.filterwarnings("ignore", message="Could not identify embedding layer")
        warnings.filterwarnings("ignore", message=r".*invalid shape: .*lora_B\.bias")
        yield


def base_model(architecture, dtype=torch.float64):
    """Return the same model each time, with random weights, in evaluation mode."""
    with library_draws(7):
        return MODELS[architecture]().to(dtype).eval()


def inputs():
    return torch.arange(24).reshape(3, 8) * 5 % VOCABULARY


def outputs(model):
    with torch.no_grad():
        result = model(input_ids=inputs())
    return result if isinstance(result, torch.Tensor) else result.logits


def make_clients(architecture, settings, folder):
    """Train one adapter for each settings and save it as PEFT does."""
    paths = []
    for number, own in enumerate(settings):
        dtype = own.get("dtype", torch.float64)
        options = {k: v for k, v in own.items() if k != "dtype"}
        path = folder / f"client-{number}"
        config = LoraConfig(**{**SETTINGS[architecture], **options})
        with third_party_warnings_ignored(), library_draws(number):
            model = get_peft_model(base_model(architecture), config)
            train(model, seed=number)
            model.to(dtype).save_pretrained(path)
        paths.append(path)
    return tuple(paths)


def share_a(folders, to):
    """Return copies of the folders in which every A is the top of the highest client's."""
    highest = load_file(folders[-1] / "adapter_model.safetensors")
    copies = []
    for folder in folders:
        tensors = load_file(folder / "adapter_model.safetensors")
        place = to / f"rank-{next(x.shape[0] for k, x in tensors.items() if '_A' in k)}"
        place = to / f"{place.name}-again" if place.exists() else place
        copies.append(Path(shutil.copytree(folder, place)))
        for key, tensor in tensors.items():
            if ".lora_A" in key or key.endswith(".lora_embedding_A"):
                tensors[key] = highest[key][: tensor.shape[0]].clone()
        save_file(tensors, copies[-1] / "adapter_model.safetensors")
    return copies


def train(model, seed, steps=3):
    """Take a few steps on random tokens, after which B, initially zero, is nowhere zero."""
    rng = torch.Generator().manual_seed(100 + seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(steps):
        result = model(input_ids=torch.randint(VOCABULARY, (4, 8), generator=rng))
        logits = result if isinstance(result, torch.Tensor) else result.logits
        targets = torch.randn(logits.shape, generator=rng, dtype=logits.dtype)
        (logits - targets).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def load(architecture, folder, dtype=torch.float64):
    """The base model with the adapter of a folder, through PEFT; every key must find its place."""
    with third_party_warnings_ignored():
        model = PeftModel.from_pretrained(base_model(architecture, dtype), folder)
        result = model.load_adapter(folder, adapter_name="default")  # load again for the report
    assert list(result.missing_keys) == []
    assert list(result.unexpected_keys) == []
    return model.eval()


def lora_layers(model):
    """Return PEFT's A (r, d_in), B (d_out, r) and scaling of every LoRA module."""
    found = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            if "default" in module.lora_embedding_A:
                a, b = module.lora_embedding_A["default"], module.lora_embedding_B["default"]
            else:
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            a, b = a.detach().double().flatten(1), b.detach().double().flatten(1)
            found[name] = (a, b, module.scaling["default"])
    return found


def dense_average(factors, samples, rule):
    """`sum_k w_k s_k B_k A_k` of one module, dense; under raflora over the contributors only."""
    ranks = [a.shape[0] for a, _, _ in factors]
    total = 0.0
    for (a, b, scaling), n in zip(factors, samples, strict=True):
        weight = torch.empty(a.shape[0], dtype=torch.float64)
        for i in range(a.shape[0]):
            contributors = [m for m, r in zip(samples, ranks, strict=True) if r > i]
            weight[i] = n / sum(contributors if rule == "raflora" else samples)
        total = total + scaling * (b * weight) @ a
    return total


def cut(matrix, rank):
    """Return best approximation of a rank, by NumPy's SVD."""
    u, s, vh = np.linalg.svd(matrix.numpy(), full_matrices=False)
    return torch.from_numpy((u[:, :rank] * s[:rank]) @ vh[:rank])


def merged_model(architecture, deltas):
    """Return the base model with dense updates added to its weights, as the layer stores them."""
    model = base_model(architecture)
    for name, delta in deltas.items():
        module = model.get_submodule(name)
        transposed = isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D"
        update = delta.T if transposed else delta
        with torch.no_grad():
            module.weight += update.reshape(module.weight.shape)
    return model


def assert_same(actual, wanted, kind="factorization", dtype=torch.float64):
    """Check equality within the project's tolerance, relative to the expected norm."""
    error = (actual.double() - wanted.double()).norm()
    bound = relative(kind, dtype) * wanted.double().norm()
    assert error <= bound, f"off by {float(error):.3g}, {float(bound):.3g} allowed"


def tree(folder):
    """Return every file below a folder with its content."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
