"""A causal task of seconds: a small LLaMA that can add learns to subtract.

Samples are equations modulo 100 of two-digit numbers, "17+95=12", in a vocabulary of characters.
The model has only ever seen sums; the federation's samples are differences, "17-95=22", of other
pairs than those it is judged on. Carrying and borrowing are learned, not looked up: of the 10,000
pairs a tenth is seen neither in pretraining nor in adaptation.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora_sim.errors import expected
from fedlora_sim.randomness import library_draws, stream
from fedlora_sim.runtime import one_thread
from fedlora_sim.tasks.examples import Examples
from fedlora_sim.tasks.objectives import IGNORED, Completion
from fedlora_sim.tasks.options import TaskOptions
from fedlora_sim.tasks.pretrained import INSTALL
from fedlora_sim.tasks.targets import resolve_targets
from fedlora_sim.tasks.task import Task

if TYPE_CHECKING:  # takes seconds to import, and is needed by none of the other tasks
    from transformers import LlamaForCausalLM

CHARACTERS = "0123456789+-="
END = len(CHARACTERS)
"""Token that closes an equation."""
PROMPT = len("17+95=")
MODULUS = 100
TEST_PAIRS = 1000
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load_arithmetic_task(options: TaskOptions) -> Task:
    """Cut the pairs and pretrain the model, some seconds; the model is remembered by this process.

    Args:
        options: `task_seed`, of the parts and of the pretraining; `target_modules`,
            `adapted_layers`, `max_train`, `max_test` and `dtype`.

    Returns:
        The task, on the CPU; LoRA on all seven maps of both blocks unless told otherwise. A
        sample's skew class is the last digit of its answer.

    Raises:
        InputError: on target modules or adapted layers that the model does not have, on
            `train_head`, or if transformers, which has the model, is not installed.
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
    """Equations modulo 100, one per pair.

    Args:
        pairs: operands from 0 to 99, (n, 2).
        operator: `+ | -`.

    Returns:
        Tokens (n, 9): "17+95=12" and the closing token. The labels are the tokens from the answer
        on; the classes are the answers' last digits.
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
    """Tens and ones, each (n,)."""
    return number // 10, number % 10


def _parts(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs of operands, shuffled, for training (9000, 2) and for test (1000, 2)."""
    order = stream(seed, "arithmetic parts").permutation(MODULUS**2)
    pairs = np.stack(np.divmod(order, MODULUS), axis=1)
    return pairs[TEST_PAIRS:], pairs[:TEST_PAIRS]


@lru_cache(maxsize=32)
def _pretrained(
    seed: int, *, steps: int = 550, batch_size: int = 64, rate: float = 3e-3
) -> LlamaForCausalLM:
    """Centralised training on the sums of the training pairs, by AdamW and one rate cycle."""
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
    """Two blocks of width 64, weights drawn from `rng` alone."""
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
        # Wider than large models start: at their 0.02 this small one learns nothing in a minute.
        initializer_range=0.1,
        # A base for nine positions, not for thousands: every seed then learns to add in time.
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
        use_cache=False,
    )
    with library_draws(int(rng.integers(2**31))):
        return LlamaForCausalLM(config)
