"""A BERT-like encoder with random weights, to time what a cached prefix saves."""

from __future__ import annotations

import torch

from benchmarks.training_lanes import Case, make_case
from fedlora_sim.randomness import library_draws
from fedlora_sim.tasks import Examples, Task
from fedlora_sim.tasks.prefix import cache_prefix
from fedlora_sim.tasks.targets import resolve_targets, usual_targets

BLOCKS, ADAPTED, WIDTH, HEADS, TOKENS = 6, 2, 384, 12, 32
CLIENTS, RANK = 4, 16
SAMPLES, VOCABULARY, CLASSES = 128, 1_000, 4


def prefix_cases(dtype: torch.dtype, device: str) -> dict[str, Case]:
    """Return the clients on the whole model and on one that starts at the first adapted block."""
    task = encoder_task().to(torch.device(device), dtype)
    ranks = (RANK,) * CLIENTS
    return {"whole": make_case(task, ranks), "cached": make_case(cache_prefix(task), ranks)}


def encoder_task() -> Task:
    """Return random tokens without padding, in `CLASSES` classes."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=TOKENS,
        num_labels=CLASSES,
    )
    rng = torch.Generator().manual_seed(0)
    with library_draws(0):
        model = BertForSequenceClassification(config).requires_grad_(False).eval()
    tokens = torch.randint(VOCABULARY, (SAMPLES, TOKENS), generator=rng)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=rng)
    data = Examples({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, labels)
    return Task(model, data, data, resolve_targets(model, usual_targets(model), ADAPTED))
