"""Task of the comparison, drawn once and read by all lanes.

A randomly initialized transformer classifier of `fedlora_sim.tasks.digits` on scikit-learn's
digits; LoRA of equal rank on q and v. A client has between half of `max_steps` and `max_steps`
batches of samples, passes over them once per round, and is averaged with that weight.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from benchmarks.rivals.exchange import Adapters, Exchange, Settings
from fedlora_sim.randomness import stream
from fedlora_sim.tasks.digits import TinyTransformer

RANK, BATCH_SIZE, MAX_STEPS = 8, 8, 6
TARGETS = ("q_proj", "v_proj")


def draw_exchange(
    settings: Settings,
    *,
    cohort: int,
    rounds: int,
    max_steps: int = MAX_STEPS,
    seed: int = 0,
) -> Exchange:
    """Draw a federated run.

    Args:
        settings: the settings; all draws are float64 and cast to its dtype at the end.
        cohort: clients of a round, K.
        rounds: federated rounds.
        max_steps: maximum number of batches of a client.
        seed: seed of all draws.

    Returns:
        The run; another dtype gives the same run, rounded.
    """
    bunch = load_digits()
    generator = torch.Generator().manual_seed(seed)
    model = build_model(settings, generator)
    weights = {name: x.numpy().astype(settings.dtype) for name, x in model.state_dict().items()}
    num_steps, batches = _draw_batches(len(bunch.target), cohort, rounds, max_steps, seed)
    return Exchange(
        settings,
        (bunch.images / 16.0).astype(settings.dtype),
        bunch.target.astype(np.int64),
        weights,
        _initial_adapters(settings, seed),
        batches,
        num_steps,
    )


def build_model(settings: Settings, generator: torch.Generator) -> TinyTransformer:
    """Return the frozen model, initialized by the generator, in float32."""
    model = TinyTransformer(
        generator,
        d_model=settings.d_model,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        patch=(settings.patch, settings.patch),
    )
    return model.requires_grad_(False)


def _initial_adapters(settings: Settings, seed: int) -> Adapters:
    """Return PEFT's initial adapters: A uniform within 1/sqrt(d), B zero."""
    d, found = settings.d_model, {}
    for i in range(settings.num_layers):
        for target in TARGETS:
            name = f"blocks.{i}.attention.{target}"
            lora_a = stream(seed, "rivals lora_A", name).uniform(-1, 1, (RANK, d)) / d**0.5
            found[name] = lora_a.astype(settings.dtype), np.zeros((d, RANK), settings.dtype)
    return found


def _draw_batches(
    samples: int, cohort: int, rounds: int, max_steps: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return steps (rounds, K) and batches (rounds, steps, K, b), of new clients in each round."""
    rng = stream(seed, "rivals batches")
    num_steps = rng.integers(-(-max_steps // 2), max_steps + 1, size=(rounds, cohort))
    batches = np.zeros((rounds, int(num_steps.max()), cohort, BATCH_SIZE), dtype=np.int64)
    for (t, k), steps in np.ndenumerate(num_steps):
        own = rng.choice(samples, size=(steps, BATCH_SIZE), replace=False)
        batches[t, :steps, k] = own
    return num_steps, batches
