"""Text classification: a pretrained encoder or decoder, its tokens, and a classifier on top."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedlora_sim.errors import expected
from fedlora_sim.randomness import stream
from fedlora_sim.tasks.examples import Examples
from fedlora_sim.tasks.options import TaskOptions
from fedlora_sim.tasks.pretrained import (
    Pretrained,
    from_pretrained,
    load_pretrained,
    text_positions,
)
from fedlora_sim.tasks.subsets import stratified_sample
from fedlora_sim.tasks.targets import inside, resolve_targets, usual_targets
from fedlora_sim.tasks.task import Task
from fedlora_sim.tasks.text_data import TextPart, load_text
from fedlora_sim.tasks.tokens import tokenize


def load_text_task(options: TaskOptions) -> Task:
    """Load a model, its tokenizer and labelled texts.

    Args:
        options: `model` is a hub name or a folder that transformers'
            `AutoModelForSequenceClassification` and `AutoTokenizer` can load; `data` and
            `test_data` as in `text_data.load_text`.

    Returns:
        The task, on the CPU in `options.dtype`. Labels are what splits go by; groups are the
        writers in the data's third column.

    Raises:
        InputError: naming the argument, its value and what was expected.
    """
    tokenizer = from_pretrained("AutoTokenizer", options.model)
    data = load_text(options.data, options.test_data, options.task_seed)
    loaded = load_pretrained(
        "AutoModelForSequenceClassification",
        options.model,
        getattr(torch, options.dtype),
        options.task_seed,
        num_labels=len(data.class_names),
    )
    model = loaded.model
    _set_padding(tokenizer, model, options.model)
    _check_length(options.max_length, tokenizer, model)
    heads = _heads(loaded, options.train_head)
    targets = _targets(model, options, heads)
    return Task(
        model,
        _examples(data.train, options, "train", options.max_train, tokenizer),
        _examples(data.test, options, "test", options.max_test, tokenizer),
        targets,
        head_modules=heads,
        class_names=data.class_names,
    )


def _set_padding(tokenizer: Any, model: Any, name: str | None) -> None:
    """Tell the model what its tokenizer pads with: decoders classify by the last real token.

    Raises:
        InputError: if the tokenizer has no padding token, or one that the model has no row for.
    """
    padding, rows = tokenizer.pad_token_id, model.get_input_embeddings().num_embeddings
    if padding is None or padding >= rows:
        wanted = f"a model whose tokenizer has a pad_token among the model's {rows} tokens"
        raise expected("model", name, f"{wanted}: set one and save it beside the model")
    model.config.pad_token_id = padding


def _check_length(max_length: int, tokenizer: Any, model: Any) -> None:
    """Refuse samples longer than the model's positions, or without room for a word."""
    positions = text_positions(model)
    least = tokenizer.num_special_tokens_to_add() + 1
    most = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    if not least <= max_length <= most:
        raise expected("max_length", max_length, f"a number of tokens from {least} to {most}")


def _heads(loaded: Pretrained, train_head: bool | None) -> tuple[str, ...]:
    """Names of the linear maps that clients train as a whole.

    They are the new ones; for `train_head=True` all that come after the model's trunk as well.
    """
    if train_head is False:
        return ()
    heads = set(loaded.new_linear)
    if train_head:
        trunk = loaded.model.base_model_prefix
        linear = (name for name, m in loaded.model.named_modules() if isinstance(m, nn.Linear))
        heads |= {name for name in linear if not inside(name, str(trunk))}
    return tuple(name for name, _ in loaded.model.named_modules() if name in heads)


def _targets(model: nn.Module, options: TaskOptions, heads: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the maps that carry LoRA: what is trained as a whole needs none."""
    names = options.target_modules or usual_targets(model)
    found = resolve_targets(model, names, options.adapted_layers)
    targets = tuple(name for name in found if name not in heads)
    if not targets:
        raise expected("target_modules", names, f"some besides {heads}, which are trained whole")
    return targets


def _examples(
    part: TextPart, options: TaskOptions, which: str, size: int | None, tokenizer: Any
) -> Examples:
    """Tokens of a part, or of as many samples of it as are wanted."""
    drawn = stratified_sample(part.labels, size, stream(options.task_seed, "text samples", which))
    kept = part.take(drawn)
    inputs = tokenize(tokenizer, kept.texts, options.max_length)
    return Examples(inputs, torch.as_tensor(kept.labels), groups=kept.groups)
