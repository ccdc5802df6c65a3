"""What a language model writes, and whether the number that it ends on is right.

Reference:
    Cobbe et al. 2021 (arXiv 2110.14168): GSM8K's answers end in `#### ` and a number, and are
    judged by it alone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import torch

from fedlora_sim.errors import check_positive_int, expected
from fedlora_sim.tasks.causal import encode
from fedlora_sim.tasks.causal_data import Question

NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
"""A number with commas; a hyphen is a minus unless it comes right after a number or a word."""


def answer_accuracy(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 256,
    batch_size: int = 16,
) -> float:
    """Share of the questions whose answer, decoded greedily, ends on the right number.

    Args:
        model: as in `generate_answers`.
        tokenizer: the model's own.
        questions: n of them, each with a number in its answer.
        max_new_tokens: tokens that an answer may have.
        batch_size: questions answered at a time.

    Raises:
        InputError: without questions, and on answers without a number.
    """
    if not questions:
        raise expected("questions", questions, "at least one")
    right = [final_answer(question.answer) for question in questions]
    for index, number in enumerate(right):
        if number is None:
            answer = questions[index].answer[:80]
            raise expected(f"questions[{index}].answer", answer, "a text with a number")
    prompts = [question.prompt for question in questions]
    written = generate_answers(model, tokenizer, prompts, max_new_tokens, batch_size)
    hits = [final_answer(text) == number for text, number in zip(written, right, strict=True)]
    return sum(hits) / len(hits)


def final_answer(text: str) -> Decimal | None:
    """The number after the last `####`, else the last one in the text; None if it has none.

    Commas and dollar signs do not count: "#### -$1,200.50" is -1200.5.
    """
    text = text.replace("$", "")
    _, mark, end = text.rpartition("####")
    marked = NUMBER.search(end) if mark else None
    found = marked[0] if marked else next(reversed(NUMBER.findall(text)), None)
    return None if found is None else Decimal(found.replace(",", ""))


def generate_answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, batch_size: int
) -> list[str]:
    """Greedy continuations, each up to its end-of-sequence token.

    Args:
        model: a causal language model of transformers, whole: not one resumed from a cached prefix.
        tokenizer: the model's own.
        prompts: n texts.
        max_new_tokens: tokens written at most.
        batch_size: prompts continued at a time; their order by length saves padding.

    Returns:
        n texts, without the prompts and without special tokens.

    Raises:
        InputError: if a number is not a whole one of at least 1.
    """
    check_positive_int("max_new_tokens", max_new_tokens)
    check_positive_int("batch_size", batch_size)
    tokens = encode(tokenizer, prompts)
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    written = [""] * len(tokens)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        new = continue_greedily(
            model, [tokens[i] for i in batch], max_new_tokens, tokenizer.eos_token_id
        )
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        for index, text in zip(batch, texts, strict=True):
            written[index] = text
    return written


@torch.no_grad()
def continue_greedily(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, end: int
) -> list[list[int]]:
    """Most likely next tokens, one after the other, until one of them is the end.

    Args:
        model: as in `generate_answers`.
        prompts: n sequences of tokens.
        max_new_tokens: tokens written at most.
        end: token that ends a sequence.

    Returns:
        The new tokens of every sequence, without the end.
    """
    from transformers import GenerationConfig

    length = max(len(prompt) for prompt in prompts)
    shape = (len(prompts), length)
    tokens, mask = torch.full(shape, end), torch.zeros(shape, dtype=torch.int64)
    for row, real, prompt in zip(tokens, mask, prompts, strict=True):
        # On the left, so that what is written follows the prompt at once.
        row[length - len(prompt) :] = torch.tensor(prompt)
        real[length - len(prompt) :] = 1
    # Many models bring settings of their own for sampling; a shallow copy goes without them.
    greedy = copy.copy(model)
    greedy.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=end,
        pad_token_id=end,
        use_cache=True,
    )
    device = model.device
    made = greedy.generate(input_ids=tokens.to(device), attention_mask=mask.to(device))
    new = made[:, length:].tolist()
    return [row[: row.index(end)] if end in row else row for row in new]
