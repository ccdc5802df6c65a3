"""Questions and answers for a pretrained causal language model, e.g. a LLaMA on GSM8K.

The loss is the cross-entropy of the answer's tokens after the question's. A test sample counts as
right when greedy decoding would write its whole answer, token by token; `generation` measures what
GSM8K is usually judged by, the last number alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from fedlora_sim.errors import check_positive_int, expected
from fedlora_sim.randomness import stream
from fedlora_sim.tasks.causal_data import Question, load_questions, numbered
from fedlora_sim.tasks.examples import MASK, Examples
from fedlora_sim.tasks.objectives import IGNORED, Completion
from fedlora_sim.tasks.options import TaskOptions
from fedlora_sim.tasks.pretrained import from_pretrained, load_pretrained, text_positions
from fedlora_sim.tasks.subsets import stratified_sample
from fedlora_sim.tasks.targets import linear_ends, resolve_targets
from fedlora_sim.tasks.task import Task

BLOCK_MAPS = (
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ("c_attn", "c_proj", "c_fc"),
)
"""All linear maps of a block: of LLaMA and those built like it, and of GPT-2."""


@dataclass(frozen=True, eq=False)
class CausalTask(Task):
    """A language model, and questions as tokens.

    Args:
        tokenizer: of transformers, the model's own.
        test_questions: the samples of `test`, in their order.
    """

    tokenizer: Any = field(kw_only=True)
    test_questions: tuple[Question, ...] = field(kw_only=True)


@dataclass(frozen=True)
class Sample:
    """A question as tokens.

    Args:
        question: where they come from.
        tokens: of prompt and completion, with the end-of-sequence token.
        prompt_length: how many of them are prompt.
    """

    question: Question
    tokens: tuple[int, ...]
    prompt_length: int


def load_causal_task(options: TaskOptions) -> CausalTask:
    """Load a model, its tokenizer and questions.

    Args:
        options: `model` is a hub name or a folder that transformers' `AutoModelForCausalLM` and
            `AutoTokenizer` can load; `data` and `test_data` as in `load_questions`. Samples of more
            than `max_length` tokens are left out, since an answer cut short would be a wrong one;
            `max_train` and `max_test` count those that are left.

    Returns:
        A `CausalTask`, on the CPU in `options.dtype`; LoRA on all linear maps of the blocks unless
        told otherwise. Skew classes and groups are the data's topics and writers, if it has them.

    Raises:
        InputError: naming the argument, its value and what was expected.
    """
    if options.train_head:
        raise expected("train_head", True, "None or False: a language model's head is not new")
    check_positive_int("max_length", options.max_length)
    parts = load_questions(options.data, options.test_data, options.task_seed)
    tokenizer = _tokenizer(options.model)
    train, test = _fitting(parts, tokenizer, options.max_length)
    train = _drawn(train, options.max_train, options.task_seed, "train")
    test = _drawn(test, options.max_test, options.task_seed, "test")
    model = _model(options)
    names = options.target_modules or block_maps(model)
    return CausalTask(
        model,
        _examples(train, tokenizer),
        _examples(test, tokenizer),
        resolve_targets(model, names, options.adapted_layers),
        objective=Completion(),
        class_names=tuple(sorted(filter(None, {sample.question.topic for sample in train}))),
        tokenizer=tokenizer,
        test_questions=tuple(sample.question for sample in test),
    )


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of every text, special ones in front included, without an end-of-sequence token.

    Args:
        tokenizer: of transformers.
        texts: n texts.
    """
    found = tokenizer(list(texts), verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    return [tokens[:-1] if tokens[-1:] == [end] else tokens for tokens in found]


def block_maps(model: nn.Module) -> tuple[str, ...]:
    """Ends of the names of all linear maps of a model's blocks.

    Raises:
        InputError: if the model is built unlike LLaMA and GPT-2, with the ends that it has.
    """
    ends = linear_ends(model)
    for names in BLOCK_MAPS:
        if set(names) <= set(ends):
            return names
    kind = f"for {type(model).__name__}"
    raise expected("target_modules", None, f"{kind} one or more of {', '.join(ends)}")


def _tokenizer(model: str | None) -> Any:
    tokenizer = from_pretrained("AutoTokenizer", model)
    if tokenizer.eos_token_id is None:
        raise expected("model", model, "a model whose tokenizer has an eos_token")
    return tokenizer


def _model(options: TaskOptions) -> nn.Module:
    """The frozen model, refused if it is no language model or too short for the samples."""
    dtype = getattr(torch, options.dtype)
    loaded = load_pretrained("AutoModelForCausalLM", options.model, dtype, options.task_seed)
    if loaded.new_parameters:
        lacking = ", ".join(sorted(loaded.new_parameters))
        raise expected("model", options.model, f"a causal language model; its files lack {lacking}")
    positions = text_positions(loaded.model)
    if positions is not None and options.max_length > positions:
        raise expected("max_length", options.max_length, f"at most {positions}, the model's")
    return loaded.model


def _fitting(
    parts: Sequence[Sequence[Question]], tokenizer: Any, max_length: int
) -> list[list[Sample]]:
    """The samples of every part that are short enough; a warning says how many are not."""
    samples = [_samples(questions, tokenizer) for questions in parts]
    fitting = [[s for s in part if len(s.tokens) <= max_length] for part in samples]
    counts = [f"{len(part)} of {len(whole)}" for part, whole in zip(fitting, samples, strict=True)]
    kept = f"{counts[0]} training and {counts[1]} test samples"
    if not all(fitting):
        longest = max(len(sample.tokens) for part in samples for sample in part)
        wanted = f"more: it fits {kept}, the longest has {longest} tokens"
        raise expected("max_length", max_length, wanted)
    if fitting != samples:
        message = f"max_length={max_length} fits {kept}; the others are left out"
        warnings.warn(message, stacklevel=3)
    return fitting


def _samples(questions: Sequence[Question], tokenizer: Any) -> list[Sample]:
    prompts = encode(tokenizer, [q.prompt for q in questions])
    # Tokenised as one text: some tokenizers would put a space of their own before the completion.
    wholes = encode(tokenizer, [q.prompt + q.completion for q in questions])
    return [
        Sample(question, (*whole, tokenizer.eos_token_id), _common(prompt, whole))
        for question, prompt, whole in zip(questions, prompts, wholes, strict=True)
    ]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest beginning that two sequences share."""
    same = (a == b for a, b in zip(first, second, strict=False))
    return next((i for i, equal in enumerate(same) if not equal), min(len(first), len(second)))


def _drawn(samples: list[Sample], size: int | None, seed: int, part: str) -> list[Sample]:
    topics = numbered([sample.question.topic for sample in samples])
    index = stratified_sample(topics, size, stream(seed, "causal samples", part))
    return [samples[i] for i in index]


def _examples(samples: Sequence[Sample], tokenizer: Any) -> Examples:
    """Samples as tensors (n, T), padded on the right to the longest."""
    tokens = [torch.tensor(sample.tokens) for sample in samples]
    labels = [row.clone() for row in tokens]
    for row, sample in zip(labels, samples, strict=True):
        row[: sample.prompt_length] = IGNORED
    # Any token will do for padding: it is masked, and comes after all that could look at it.
    inputs = {
        "input_ids": pad_sequence(tokens, batch_first=True, padding_value=tokenizer.eos_token_id),
        MASK: pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True),
    }
    topics = [sample.question.topic for sample in samples]
    writers = [sample.question.writer for sample in samples]
    return Examples(
        inputs,
        pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        classes=None if None in topics else numbered(topics),
        groups=None if None in writers else numbered(writers),
    )
