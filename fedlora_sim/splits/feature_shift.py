"""Feature shift: clients whose inputs are noisier than others'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora_sim.errors import check_finite, check_positive_int, expected
from fedlora_sim.randomness import stream
from fedlora_sim.tasks.examples import Examples
from fedlora_sim.tasks.prefix import PREFIX


def feature_noise_levels(num_clients: int, level: float) -> NDArray[np.float64]:
    """Standard deviation of every client's input noise, `level * k / K` for k = 1..K.

    Args:
        num_clients: number of clients K.
        level: that of the last client, at least 0, in units of the inputs.

    Returns:
        The deviations, shape (K,).

    Raises:
        ValueError: naming the argument, its value and what was expected.

    Reference:
        Li et al. 2022 (arXiv 2102.02079), Sec. IV-C, "Noise-based feature imbalance": party i's
        noise is Gau(sigma * i / N).
    """
    clients = check_positive_int("num_clients", num_clients)
    highest = check_finite("feature_noise", level, minimum=0.0)
    return highest * np.arange(1, clients + 1) / clients


def add_feature_noise(
    examples: Examples, samples: Sequence[NDArray[np.int64]], level: float, seed: int
) -> Examples:
    """Add Gaussian noise to every client's inputs, more for clients of higher number.

    A client's noise depends on the seed, its number and its number of samples, on nothing else.

    Args:
        examples: the training data; every input continuous.
        samples: sample indices of every client, K arrays.
        level: standard deviation of the last client's noise; see `feature_noise_levels`.
        seed: of the noise.

    Returns:
        A copy with noise; the examples themselves where the level is 0.

    Raises:
        ValueError: if the level is negative, an input is not of floating point, as tokens are, or
            the first blocks were computed already, of inputs without noise.
    """
    levels = feature_noise_levels(len(samples), level)
    if level == 0:
        return examples
    if PREFIX in examples.inputs:
        raise expected("feature_noise", level, "0 with cache_prefix, made of inputs without noise")
    for name, x in examples.inputs.items():
        if not x.is_floating_point():
            only = f"0: inputs[{name!r}] are {x.dtype}, and noise is for continuous inputs"
            raise expected("feature_noise", level, only)
    noisy = {name: x.clone() for name, x in examples.inputs.items()}
    for k, (own, deviation) in enumerate(zip(samples, levels, strict=True)):
        for name, x in noisy.items():
            rng = stream(seed, "feature noise", name, k)
            noise = deviation * rng.standard_normal((len(own), *x.shape[1:]))
            x[torch.from_numpy(own).to(x.device)] += torch.from_numpy(noise).to(x)
    return replace(examples, inputs=noisy)
