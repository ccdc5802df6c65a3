"""Causal language modeling: questions and answers, generation, and the tasks."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from fedlora_sim.errors import check_positive_int, expected
from fedlora_sim.randomness import library_draws, stream
from fedlora_sim.runtime import one_thread
from fedlora_sim.tasks.huggingface import INSTALL, from_pretrained, load_pretrained, text_positions
from fedlora_sim.tasks.targets import linear_ends, resolve_targets
from fedlora_sim.tasks.task import (
    IGNORED,
    MASK,
    Completion,
    Examples,
    Task,
    TaskOptions,
    stratified_sample,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# Questions with worked answers, as in GSM8K, from files with one JSON object per line.
#
# Reference: Cobbe et al. 2021 (arXiv 2110.14168), whose files have `question` and `answer`; the
# answer ends in `#### ` and the number.

TEST_SHARE = 0.2
TOPICS = ("class", "topic")
"""Fields for the class of label skew; the first one in a file is used."""


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Args:
        question: text of the question.
        answer: text of the answer.
        topic: class for label skew; None if unknown.
        writer: author; None if unknown.
    """

    question: str
    answer: str
    topic: str | None = None
    writer: str | None = None

    @property
    def prompt(self) -> str:
        """The input of the model."""
        return f"Question: {self.question}\nAnswer:"

    @property
    def completion(self) -> str:
        """The expected output after the prompt, before the end-of-sequence token."""
        return f" {self.answer}"


def load_questions(
    data: str | None, test_data: str | None, seed: int
) -> tuple[list[Question], list[Question]]:
    """Read the training and the test part.

    Args:
        data: file of the training part, see `read_questions`.
        test_data: file of the test part; None holds out a fifth of `data`, topic by topic.
        seed: seed of the held-out part.

    Raises:
        InputError: names the argument, the file and the line.
    """
    questions = read_questions("data", data)
    if test_data is not None:
        return questions, read_questions("test_data", test_data)
    size = round(TEST_SHARE * len(questions))
    if not 0 < size < len(questions):
        wanted = "more questions, of which a fifth can be held out, or test_data"
        raise expected("data", f"{len(questions)} questions in {data}", wanted)
    topics = numbered([question.topic for question in questions])
    held_out = set(stratified_sample(topics, size, stream(seed, "held-out questions")).tolist())
    train = [q for i, q in enumerate(questions) if i not in held_out]
    return train, [questions[i] for i in sorted(held_out)]


def read_questions(argument: str, file: str | None) -> list[Question]:
    """Read lines `{"question": ..., "answer": ...}`, UTF-8; blank lines are skipped.

    Either all lines or none have a topic (`class` or `topic`), and likewise a `writer`.

    Args:
        argument: the caller's name of the file.
        file: its path.

    Raises:
        InputError: names the argument, the file and its first invalid line.
    """
    if not isinstance(file, str) or not Path(file).is_file():
        raise expected(argument, file, 'a file of lines {"question": ..., "answer": ...}')
    questions: list[Question] = []
    for number, line in enumerate(Path(file).read_bytes().split(b"\n"), start=1):
        if line.strip():
            where = f"{argument}: line {number} of {file}"
            questions.append(_question(where, line))
            _check_alike(where, questions)
    if not questions:
        raise expected(argument, file, "a file with at least one question")
    return questions


def numbered(names: Sequence[str | None]) -> NDArray[np.int64]:
    """Return the number of each name in the sorted list of names, (n,); None counts as empty."""
    return np.unique([name or "" for name in names], return_inverse=True)[1].astype(np.int64)


def _question(where: str, line: bytes) -> Question:
    try:
        record = json.loads(line)
    except ValueError as error:  # invalid JSON or UTF-8
        raise expected(where, line[:80], f"a JSON object ({error})") from None
    if not isinstance(record, dict):
        raise expected(where, line[:80], "a JSON object")
    for name in ("question", "answer"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise expected(f"{where}: {name}", record.get(name), "a text")
    topic, writer = _label(where, record, TOPICS), _label(where, record, ("writer",))
    return Question(record["question"].strip(), record["answer"].strip(), topic, writer)


def _label(where: str, record: dict[str, Any], names: Sequence[str]) -> str | None:
    """Return the first of these fields that exists: a text, or a whole number as text."""
    name = next((name for name in names if name in record), None)
    if name is None:
        return None
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise expected(f"{where}: {name}", value, "a text or a whole number")
    return str(value)


def _check_alike(where: str, questions: Sequence[Question]) -> None:
    """Refuse a topic or a writer in the last question if the first has none, and vice versa."""
    first, last = questions[0], questions[-1]
    for name, one, other in (
        ("class or topic", first.topic, last.topic),
        ("writer", first.writer, last.writer),
    ):
        if (one is None) != (other is None):
            wanted = "one, as in the first line" if other is None else "none, as in the first line"
            raise expected(f"{where}: {name}", other, wanted)


# Questions and answers for a pretrained causal language model, e.g. a LLaMA on GSM8K.
#
# The loss is the cross-entropy of the answer's tokens after the question's. A test sample is
# correct if greedy decoding would write its whole answer, token by token; `answer_accuracy`
# computes the usual metric of GSM8K, which compares the last number only.

BLOCK_MAPS = (
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ("c_attn", "c_proj", "c_fc"),
)
"""All linear maps of a block, for LLaMA and similar models, and for GPT-2."""


@dataclass(frozen=True, eq=False)
class CausalTask(Task):
    """A language model, and questions as tokens.

    Args:
        tokenizer: the model's tokenizer of transformers.
        test_questions: the samples of `test`, in order.
    """

    tokenizer: Any = field(kw_only=True)
    test_questions: tuple[Question, ...] = field(kw_only=True)


@dataclass(frozen=True)
class Sample:
    """A question as tokens.

    Args:
        question: the question.
        tokens: tokens of prompt and completion, with the end-of-sequence token.
        prompt_length: number of tokens of the prompt.
    """

    question: Question
    tokens: tuple[int, ...]
    prompt_length: int


def load_causal_task(options: TaskOptions) -> CausalTask:
    """Load a model, its tokenizer and questions.

    Args:
        options: `model` is a hub name or a folder that transformers' `AutoModelForCausalLM` and
            `AutoTokenizer` can load; `data` and `test_data` as in `load_questions`. Samples of more
            than `max_length` tokens are left out, because a truncated answer would be wrong;
            `max_train` and `max_test` count the remaining ones.

    Returns:
        A `CausalTask`, on the CPU in `options.dtype`; by default LoRA on all linear maps of the
            blocks.
        Skew classes and groups are the data's topics and writers, if any.

    Raises:
        InputError: names the argument, its value and what was expected.
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
    """Return the tokens of each text with leading special tokens, without an end-of-sequence token.

    Args:
        tokenizer: a tokenizer of transformers.
        texts: n texts.
    """
    found = tokenizer(list(texts), verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    return [tokens[:-1] if tokens[-1:] == [end] else tokens for tokens in found]


def block_maps(model: nn.Module) -> tuple[str, ...]:
    """Return the name suffixes of all linear maps in a model's blocks.

    Raises:
        InputError: if the model's structure differs from LLaMA and GPT-2; names its suffixes.
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
    """Return the frozen model; refuse other model types and models too short for the samples."""
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
    """Return the samples of each part that are short enough, and warn about the others."""
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
    # Tokenized as one text, because some tokenizers would insert a space before the completion.
    wholes = encode(tokenizer, [q.prompt + q.completion for q in questions])
    return [
        Sample(question, (*whole, tokenizer.eos_token_id), _common(prompt, whole))
        for question, prompt, whole in zip(questions, prompts, wholes, strict=True)
    ]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the longest common prefix of two sequences."""
    same = (a == b for a, b in zip(first, second, strict=False))
    return next((i for i, equal in enumerate(same) if not equal), min(len(first), len(second)))


def _drawn(samples: list[Sample], size: int | None, seed: int, part: str) -> list[Sample]:
    topics = numbered([sample.question.topic for sample in samples])
    index = stratified_sample(topics, size, stream(seed, "causal samples", part))
    return [samples[i] for i in index]


def _examples(samples: Sequence[Sample], tokenizer: Any) -> Examples:
    """Return the samples as tensors (n, T), padded on the right to the longest."""
    tokens = [torch.tensor(sample.tokens) for sample in samples]
    labels = [row.clone() for row in tokens]
    for row, sample in zip(labels, samples, strict=True):
        row[: sample.prompt_length] = IGNORED
    # Any token can serve as padding: it is masked, and follows all tokens that could attend to it.
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


# Generation, and the accuracy of the final number.
#
# Reference: Cobbe et al. 2021 (arXiv 2110.14168): GSM8K's answers end in `#### ` and a number,
# which alone is compared.

NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
"""A number with commas; a hyphen is a minus sign unless it directly follows a number or a word."""


def answer_accuracy(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 256,
    batch_size: int = 16,
) -> float:
    """Return the share of questions whose greedily decoded answer ends with the correct number.

    Args:
        model: as in `generate_answers`.
        tokenizer: the model's own tokenizer.
        questions: n questions, each with a number in its answer.
        max_new_tokens: maximum number of tokens of an answer.
        batch_size: number of questions per batch.

    Raises:
        InputError: if there are no questions, or an answer has no number.
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
    """Return the number after the last `####`, else the last one in the text, else None.

    Commas and dollar signs are ignored: "#### -$1,200.50" is -1200.5.
    """
    text = text.replace("$", "")
    _, mark, end = text.rpartition("####")
    marked = NUMBER.search(end) if mark else None
    found = marked[0] if marked else next(reversed(NUMBER.findall(text)), None)
    return None if found is None else Decimal(found.replace(",", ""))


def generate_answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, batch_size: int
) -> list[str]:
    """Return the greedy continuations, each up to its end-of-sequence token.

    Args:
        model: a complete causal language model of transformers, not one that starts from a cached
            prefix.
        tokenizer: the model's own tokenizer.
        prompts: n texts.
        max_new_tokens: maximum number of new tokens.
        batch_size: number of prompts per batch; sorting by length reduces padding.

    Returns:
        n texts, without the prompts and without special tokens.

    Raises:
        InputError: if a number is not a whole number of at least 1.
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
    """Return the most likely next tokens, one after another, until the end token.

    Args:
        model: as in `generate_answers`.
        prompts: n sequences of tokens.
        max_new_tokens: maximum number of new tokens.
        end: token that ends a sequence.

    Returns:
        The new tokens of each sequence, without the end token.
    """
    from transformers import GenerationConfig

    length = max(len(prompt) for prompt in prompts)
    shape = (len(prompts), length)
    tokens, mask = torch.full(shape, end), torch.zeros(shape, dtype=torch.int64)
    for row, real, prompt in zip(tokens, mask, prompts, strict=True):
        # Pad on the left, so that the new tokens directly follow the prompt.
        row[length - len(prompt) :] = torch.tensor(prompt)
        real[length - len(prompt) :] = 1
    # Many models have their own sampling settings; a shallow copy without them is used.
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


# A causal task that takes seconds: a small LLaMA that can add learns to subtract.
#
# Samples are equations modulo 100 of two-digit numbers, "17+95=12", in a vocabulary of characters.
# The model was pretrained on sums only; the federation's samples are differences, "17-95=22", of
# other pairs than the test samples. Carrying and borrowing must be learned and cannot be memorized:
# a tenth of the 10,000 pairs occurs neither in pretraining nor in adaptation.

CHARACTERS = "0123456789+-="
END = len(CHARACTERS)
"""Token that closes an equation."""
PROMPT = len("17+95=")
MODULUS = 100
TEST_PAIRS = 1000
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load_arithmetic_task(options: TaskOptions) -> Task:
    """Split the pairs and pretrain the model in a few seconds; the process caches the model.

    Args:
        options: `task_seed`, of the split and of the pretraining; `target_modules`,
            `adapted_layers`, `max_train`, `max_test` and `dtype`.

    Returns:
        The task, on the CPU; by default LoRA on all seven maps of both blocks. A sample's skew
            class is
        the last digit of its answer.

    Raises:
        InputError: if the model lacks the target modules or adapted layers, if `train_head` is set,
            or if transformers is not installed.
    """
    if options.train_head:
        raise expected("train_head", True, "None or False: its head is not new")
    model = _pretrained(options.task_seed)
    train, test = _parts(options.task_seed)
    task = Task(
        model,
        equations(train[: options.max_train], "-"),
        equations(test[: options.max_test], "-"),
        resolve_targets(model, options.target_modules or TARGETS, options.adapted_layers),
        objective=Completion(),
        class_names=tuple(CHARACTERS[:10]),
    )
    return task.to(torch.device("cpu"), getattr(torch, options.dtype))


def equations(pairs: NDArray[np.int64], operator: str) -> Examples:
    """Return the equations modulo 100, one per pair.

    Args:
        pairs: operands from 0 to 99, (n, 2).
        operator: `+ | -`.

    Returns:
        Tokens (n, 9): "17+95=12" and the end token. The labels are the tokens of the answer; the
        classes are the answers' last digits.
    """
    first, second = pairs.T
    answer = (first + second if operator == "+" else first - second) % MODULUS
    sign, equals, end = (
        np.full_like(first, token)
        for token in (CHARACTERS.index(operator), CHARACTERS.index("="), END)
    )
    columns = [*_digits(first), sign, *_digits(second), equals, *_digits(answer), end]
    tokens = torch.as_tensor(np.stack(columns, axis=1))
    labels = tokens.clone()
    labels[:, :PROMPT] = IGNORED
    return Examples({"input_ids": tokens}, labels, classes=answer % 10)


def _digits(number: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return tens and ones, each (n,)."""
    return number // 10, number % 10


def _parts(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all pairs of operands, shuffled, for training (9000, 2) and for test (1000, 2)."""
    order = stream(seed, "arithmetic parts").permutation(MODULUS**2)
    pairs = np.stack(np.divmod(order, MODULUS), axis=1)
    return pairs[TEST_PAIRS:], pairs[:TEST_PAIRS]


@lru_cache(maxsize=32)
def _pretrained(
    seed: int, *, steps: int = 550, batch_size: int = 64, rate: float = 3e-3
) -> LlamaForCausalLM:
    """Train the model centrally on the sums of the training pairs, by AdamW with one rate cycle."""
    rng = stream(seed, "arithmetic pretraining")
    model, objective = _untrained(rng), Completion()
    sums = equations(_parts(seed)[0], "+")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    with one_thread():
        for _ in range(steps):
            batch = sums.take(torch.as_tensor(rng.integers(len(sums), size=batch_size)))
            totals, counts = objective.losses(model(**batch.inputs).logits, batch.labels)
            optimizer.zero_grad()
            (totals.sum() / counts.sum()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.requires_grad_(False).eval()


def _untrained(rng: np.random.Generator) -> LlamaForCausalLM:
    """Return two blocks of width 64, with weights drawn from `rng` only."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ModuleNotFoundError:
        wanted = f"transformers, which has its model: {INSTALL}"
        raise expected("task", "arithmetic", wanted) from None
    config = LlamaConfig(
        vocab_size=END + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        # Larger than the initial scale of large models: at their 0.02 this small model does not
        # learn.
        initializer_range=0.1,
        # A base for nine positions, not for thousands: with it every seed learns to add in time.
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
        use_cache=False,
    )
    with library_draws(int(rng.integers(2**31))):
        return LlamaForCausalLM(config)
