"""Communication: the number of values that a round sends and receives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.closed_form.scope import check_scope
from analysis.closed_form.setting import rule_form
from analysis.cohorts.law import Array
from fedlora_sim.errors import check_positive_int
from fedlora_sim.federation import Federation
from fedlora_sim.scenario import Scenario


@dataclass(frozen=True)
class Communication:
    """Expected number of values per round, summed over its clients and all layers.

    Args:
        upload: from the clients to the server.
        download: from the server to the clients.
    """

    upload: float
    download: float

    @property
    def total(self) -> float:
        """Upload plus download."""
        return self.upload + self.download


def communication(scenario: Scenario, rule: str, *, layers: int = 1) -> Communication:
    """Return the number of values that a round's cohort sends and receives, in expectation.

    A client of rank r sends both factors, `r (d_in + d_out)` numbers, and receives as many. ffa
    sends B only, `r d_out`. flora's clients receive the stack of all adapters, of rank `sum_S r_k`.
    fedex's clients receive their adapter and the residual, which is sent as that stack or as a
    dense matrix, whichever is smaller on average. A client that did not take part must fetch the
    changes of the base in the meantime; this is not counted, and neither are the few values outside
    matrices.

    Args:
        scenario: the federation and the shape of a layer, `d_in` and `d_out`. A client drawn twice
            trains and sends once; the allocation has no effect.
        rule: any of `RULES`, or an alias.
        layers: number of adapted layers, all of this shape.

    Returns:
        Expected number of values per round.

    Raises:
        InputError: if an argument is invalid, and at fidelity `training`, whose layers are the
            model's.

    Reference:
        Sizes: Wu et al., arXiv 2602.13486, Sec. 3, and the rules' papers. Counts: our derivation.
    """
    form = rule_form(rule)
    federation = check_scope("communication", scenario, {}).federation
    width, height = scenario.d_in, scenario.d_out
    count = check_positive_int("layers", layers)
    together = _taking_part(federation)
    clients, client_ranks = np.diag(together), np.asarray(federation.ranks, dtype=np.float64)
    size = height if form.name == "ffa" else width + height
    adapters = float(clients @ client_ranks) * size
    # each client of the cohort receives the stack: E[number of clients times sum of ranks]
    stack = float(together.sum(axis=0) @ client_ranks) * size
    download = adapters
    if form.space == "base":
        download = stack
    elif form.space == "residual":
        download += min(stack, float(clients.sum()) * width * height)
    return Communication(count * adapters, count * download)


def _taking_part(federation: Federation) -> Array:
    """Return the probability that clients j and k both take part, (K, K).

    The diagonal is the probability that k takes part.
    """
    K, m = federation.num_clients, federation.cohort_size
    assert m is not None  # resolved by Federation
    if federation.sampling in ("with_replacement", "size_weighted"):
        sized = federation.sampling == "size_weighted"
        law = federation.weights if sized else np.full(K, 1.0 / K)
        missed = (1 - law) ** m
        neither = np.maximum(1 - law[:, None] - law, 0.0) ** m
        pairs = 1 - missed[:, None] - missed + neither
        np.fill_diagonal(pairs, 1 - missed)
        return np.asarray(pairs, dtype=np.float64)
    if federation.sampling == "bernoulli":
        share = m / K
        some = -np.expm1(K * np.log1p(-share)) if share < 1 else 1.0  # an empty draw is repeated
        alone, pair = share / some, share**2 / some
    else:
        alone, pair = m / K, m * (m - 1) / (K * max(K - 1, 1))
    pairs = np.full((K, K), pair)
    np.fill_diagonal(pairs, alone)
    return pairs
