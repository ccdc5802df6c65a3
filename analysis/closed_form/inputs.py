"""Arguments that closed forms share: the federation, and values per direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from analysis.cohorts.law import Array
from fedlora_sim.errors import check_numbers, expected
from fedlora_sim.federation import Federation, check_num_samples, parse_ranks

Ranks = str | Sequence[int]
Samples = Sequence[float] | None


def federation_of(
    ranks: Ranks, num_samples: Samples, cohort_size: int | None, sampling: str | None
) -> Federation:
    """The federation that the arguments of a closed form describe."""
    clients = parse_ranks(ranks)
    samples = None if num_samples is None else check_num_samples(num_samples, len(clients))
    return Federation(clients, samples, cohort_size, sampling)


def is_full(federation: Federation, allocation: str) -> bool:
    """Whether every round is alike: everybody takes part, with the same directions."""
    everybody = federation.cohort_size == federation.num_clients
    repeated = federation.sampling in ("with_replacement", "size_weighted")
    return everybody and not repeated and allocation == "svd"


def per_direction(
    argument: str, value: ArrayLike, r_max: int, minimum: float | None = None
) -> Array:
    """`value` as finite floats of at least `minimum`, broadcast to shape (r_max,).

    Raises:
        ValueError: naming the argument.
    """
    bound = "" if minimum is None else f" of at least {minimum:g}"
    expectation = f"finite numbers{bound}, a scalar or one per direction ({r_max})"
    try:
        array = np.broadcast_to(check_numbers(argument, value, expectation), (r_max,))
    except ValueError:
        raise expected(argument, value, expectation) from None
    if not np.isfinite(array).all() or (minimum is not None and array.min() < minimum):
        raise expected(argument, value, expectation)
    return array
