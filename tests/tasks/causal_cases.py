"""Tiny language models in folders with a tokenizer of characters, and files of questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fedlora_sim.randomness import library_draws

CHARACTERS = "0123456789 #+-=?:\nabcdefghijklmnopqrstuvwxyzQA$,."
START, END = "<s>", "</s>"
VOCABULARY = {token: i for i, token in enumerate((START, END, *CHARACTERS))}
POSITIONS = 96

MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=POSITIONS, initializer_range=0.5,
            bos_token_id=0, eos_token_id=1,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(VOCABULARY), n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=2,
            initializer_range=0.5, bos_token_id=0, eos_token_id=1,
        )
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=len(VOCABULARY), hidden_size=16, ffn_dim=24, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=POSITIONS, word_embed_proj_dim=16,
            bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    ),
}  # fmt: skip


def causal_model(architecture: str = "llama") -> PreTrainedModel:
    """Return a random model of two blocks in evaluation mode, always the same."""
    with library_draws(0):
        return MODELS[architecture]().eval().requires_grad_(False)


def causal_tokenizer(*, adds_end: bool = False, end: str | None = END) -> PreTrainedTokenizerFast:
    """Return a token per character after a start token; without padding token."""
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token=START))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    template = f"{START} $A {END}" if adds_end else f"{START} $A"
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(START, 0), (END, 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=START, eos_token=end)


def causal_folder(folder: Path, architecture: str = "llama", **tokenizer: object) -> str:
    """Return a folder with a model and its tokenizer."""
    causal_model(architecture).save_pretrained(folder)
    causal_tokenizer(**tokenizer).save_pretrained(folder)
    return str(folder)


def sums(number: int, **fields: Callable[[int], object]) -> list[dict[str, object]]:
    """Return questions of different lengths; further fields are functions of i."""
    return [
        {
            "question": f"{i}+{i * i}?",
            "answer": f"{i}+{i * i}={i + i * i}\n#### {i + i * i}",
            **{name: rule(i) for name, rule in fields.items()},
        }
        for i in range(number)
    ]


def write_lines(path: Path, records: Iterable[object]) -> str:
    """Return a file with one JSON value per line."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return str(path)
