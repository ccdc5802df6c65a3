"""Brute force for laws of weights: all cohorts and carriers, in fractions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

from hypothesis import strategies as st

from fedlora_sim.federation import SAMPLINGS, Federation

RANKS = (1, 2, 2, 4)
UNEQUAL = (3, 1, 4, 2)
NORMALIZERS = ("cohort", "contributors", "federation")
ALLOCATIONS = ("svd", "random")
CASES = [(s, n, a) for s in SAMPLINGS for n in NORMALIZERS for a in ALLOCATIONS]

Law = dict[Fraction, tuple[Fraction, Fraction]]


def federation(
    sampling: str, samples: tuple[float, ...] | None = None, size: int = 3, ranks=RANKS
) -> Federation:
    return Federation(ranks, samples, None if sampling == "full" else size, sampling)


@st.composite
def federations(draw: st.DrawFn, sampling: str) -> Federation:
    """Draw at most four clients of different ranks and samples."""
    clients = draw(
        st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4)
    )
    ranks, samples = zip(*clients, strict=True)
    return federation(sampling, samples, draw(st.integers(1, min(3, len(ranks)))), ranks)


def cohorts(fed: Federation, *, redrawn: bool = True) -> Iterator[tuple[Fraction, tuple[int, ...]]]:
    """Yield probability and draw counts of every cohort."""
    K, m = fed.num_clients, fed.cohort_size
    assert m is not None
    samples = [Fraction(n) for n in fed.num_samples or ()]
    if fed.sampling == "full":
        yield Fraction(1), (1,) * K
    elif fed.sampling == "without_replacement":
        for chosen in itertools.combinations(range(K), m):
            yield Fraction(1, math.comb(K, m)), tuple(int(k in chosen) for k in range(K))
    elif fed.sampling == "bernoulli":
        p = Fraction(m, K)
        for counts in itertools.product((0, 1), repeat=K):
            mass = math.prod((p if c else 1 - p) for c in counts)
            if any(counts) or not redrawn:
                yield mass / (1 - redrawn * (1 - p) ** K), counts
    else:
        uniform = fed.sampling == "with_replacement"
        law = [Fraction(1, K) if uniform else n / sum(samples) for n in samples]
        for draws in itertools.product(range(K), repeat=m):
            mass = math.prod((law[k] for k in draws), start=Fraction(1))
            yield mass, tuple(draws.count(k) for k in range(K))


def carriers(fed: Federation, counts: tuple[int, ...], carry: list[Fraction]):
    """Yield probability of every choice of carriers among the drawn clients."""
    options = [
        ((0, Fraction(1)),) if not c else ((0, 1 - p), (1, p))
        for c, p in zip(counts, carry, strict=True)
    ]
    for choice in itertools.product(*options):
        mass = math.prod((p for _, p in choice), start=Fraction(1))
        if mass:
            yield mass, [flag for flag, _ in choice]


def weights_of(fed: Federation, normalizer: str, counts, flags) -> list[Fraction]:
    """Return weights of the contributors, from the definition."""
    samples = [Fraction(n) for n in fed.num_samples or ()]
    sized = fed.sampling == "size_weighted"
    m = fed.cohort_size
    if normalizer == "federation":
        total = sum(samples)
        p = [n / total for n in samples]
        mean = [m * q if sized else Fraction(m, fed.num_clients) for q in p]
        return [f * c * q / e for c, q, e, f in zip(counts, p, mean, flags, strict=True) if c]
    v = [Fraction(c if sized else c * n) for c, n in zip(counts, samples, strict=True)]
    mine = [f * x for f, x in zip(flags, v, strict=True)]
    norm = sum(v) if normalizer == "cohort" else sum(mine)
    return [x / norm for x in mine if norm]


def brute_laws(fed: Federation, normalizer: str, allocation: str) -> list[Law]:
    """Return `{share: (probability, E[sum w^2 | share])}` per level."""
    if allocation == "svd":
        carry = [[Fraction(int(r >= level)) for r in fed.ranks] for level in fed.levels]
    else:
        carry = [[Fraction(r, fed.r_max) for r in fed.ranks]]
    laws = []
    for chances in carry:
        law: dict[Fraction, list[Fraction]] = {}
        for mass, counts in cohorts(fed, redrawn=normalizer != "federation"):
            for part, flags in carriers(fed, counts, chances):
                w = weights_of(fed, normalizer, counts, flags)
                row = law.setdefault(sum(w, Fraction(0)), [Fraction(0), Fraction(0)])
                row[0] += mass * part
                row[1] += mass * part * sum((x**2 for x in w), Fraction(0))
        laws.append({W: (p, q / p) for W, (p, q) in sorted(law.items()) if p})
    return laws
