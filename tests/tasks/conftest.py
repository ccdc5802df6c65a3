"""Tiny models in folders, offline: random encoders with a small vocabulary."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from wordpiece_cases import wordpiece

from fedlora_sim.randomness import library_draws
from fedlora_sim.runtime import one_thread

WORDS = "the a cat dog sat ran on mat road ball goal team match bank stock price fell rose ##s ##ed"
SHARED = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2}
LONGEST = 24
"""Positions of every tiny model."""


def _encoder(config: type, **changes: object) -> object:
    sizes = {"vocab_size": 24, "intermediate_size": 24, "max_position_embeddings": LONGEST}
    return config(**{**SHARED, **sizes, "num_labels": 3, "pad_token_id": 0, **changes})


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForSequenceClassification(_encoder(BertConfig)),
    "roberta": lambda: RobertaForSequenceClassification(
        _encoder(RobertaConfig, max_position_embeddings=LONGEST + 1)
    ),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=24, dim=16, n_layers=4, n_heads=2, hidden_dim=24, num_labels=3,
            max_position_embeddings=LONGEST,
        )
    ),
    "gpt2": lambda: GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=24, n_positions=LONGEST, n_embd=16, n_layer=4, n_head=2, num_labels=3,
            pad_token_id=0,
        )
    ),
    "llama": lambda: LlamaForSequenceClassification(_encoder(LlamaConfig)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Use one thread: on a busy machine, threads that wait for each other take minutes."""
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the test's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FEDLORA_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """Return a function from architectures to random classifiers of four blocks."""

    def make(architecture: str = "bert") -> PreTrainedModel:
        with library_draws(0):
            model = MODELS[architecture]()
            for parameter in model.parameters():  # far from symmetric: biases are not zero
                parameter.data += 0.2 * torch.randn_like(parameter)
        return model.double().eval().requires_grad_(False)

    return make


@pytest.fixture
def tiny_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Return a function that makes a WordPiece tokenizer, optionally without a padding token."""
    return partial(wordpiece, WORDS, LONGEST)


@pytest.fixture
def tiny_folder(
    tmp_path: Path,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> Callable[..., str]:
    """Return a function that saves a model, without classifier if `headless`, and its tokenizer."""

    def make(
        architecture: str = "bert", *, headless: bool = True, pad_token: str | None = "[PAD]"
    ) -> str:
        folder = tmp_path / f"{architecture}-{headless}-{pad_token}"
        model = tiny_model(architecture).float()
        (model.base_model if headless else model).save_pretrained(folder)
        tiny_tokenizer(pad_token).save_pretrained(folder)
        return str(folder)

    return make
