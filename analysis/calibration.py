"""Calibrate the verdicts: how often intervals miss the true value on data like the claims' data.

    python -m analysis.calibration   # results/bench/calibration.json

Four parts, each from its own seed. Finished parts are stored, and a stopped calibration continues
from there.

- `coverage`: the rate at which each estimator's intervals miss, at errors from 0.1 down to those
  of a claim's single interval. A rate is resolved if at least `RESOLVED` misses are expected.
- `margin`: how often a claim is supported whose true value lies exactly at the end of its margin,
  over all looks at growing data.
- `family`: how often any interval of the fast claims misses its predicted value, at the error of a
  family.
- `ranks`: the rank of the true value in the distribution that an estimator's intervals of all
  levels define. True values are drawn for every sample; the counts are uniform if the estimator is
  calibrated (simulation-based calibration; Talts et al., arXiv 1804.06788).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats
from scipy.signal import lfilter
from tqdm import tqdm

import analysis
from analysis.claims import CLAIMS
from analysis.claims.base import Claim, RunContext
from analysis.claims.verify import family_size
from analysis.stats.intervals import (
    Array,
    Estimator,
    bootstrap_interval,
    cdf_distance,
    fieller_ratio,
    log_odds_interval,
    mean_interval,
    median_interval,
    proportion_interval,
)
from analysis.stats.series import stationary_mean
from analysis.stats.verdicts import (
    Prediction,
    Verdict,
    claim_error,
    measure_until_decided,
    number_of_looks,
)
from fedlora_sim.randomness import stream
from fedlora_sim.run_store import RunStore
from fedlora_sim.storage import source_fingerprint, write_text
from fedlora_sim.version import versions

SEED = 2029
ALLOWED = 1.3
"""Largest rate of misses over the nominal one that counts as calibrated."""
RESOLVED = 10
"""Expected number of misses above which a rate is meaningful: the ratio's standard error is 0.3."""
ERRORS = (0.1, 0.01, 1e-3, 1e-4)
REACH = 0.5
"""Largest `skewness^2 t^2 / n` at which intervals of means are calibrated, t Student's factor.

Hall's correction is the first term of an expansion in this number.
"""
BATCH = 1_000_000
"""Numbers drawn at a time."""

Generator = np.random.Generator
Draw = Callable[[Generator, int, int], Array]
Record = dict[str, Any]

# Weights of 6 carriers among 20 clients in cohorts of 8: those of the claims on sampled cohorts.
CARRIED = np.arange(7) / 8
CHANCE = stats.hypergeom(20, 6, 8).pmf(np.arange(7))
MEAN_SQUARE = float(CHANCE @ CARRIED**2)


@dataclass(frozen=True)
class Law:
    """A distribution of samples.

    Args:
        name: name in the tables.
        draw: maps a generator, runs n and quantities q to samples (n, q, ...).
        truth: the value that an interval should contain.
        skewness: skewness of the averaged values; None if the estimator does not average.
    """

    name: str
    draw: Draw
    truth: float
    skewness: float | None = None


def _normal(rng: Generator, n: int, q: int) -> Array:
    return rng.standard_normal((n, q))


def _exponential(rng: Generator, n: int, q: int) -> Array:
    return rng.standard_exponential((n, q))


def _products(rounds: int, rng: Generator, n: int, q: int) -> Array:
    """Return the energies after some rounds of random cohorts, over their mean."""
    factors = CARRIED[rng.choice(7, p=CHANCE, size=(rounds, n, q))] ** 2 / MEAN_SQUARE
    return np.asarray(factors.prod(0), dtype=np.float64)


def _product_skewness(rounds: int) -> float:
    second, third = (
        (float(CHANCE @ CARRIED ** (2 * k)) / MEAN_SQUARE**k) ** rounds for k in (2, 3)
    )
    return (third - 3 * second + 2) / (second - 1) ** 1.5


def _log_odds(rng: Generator, n: int, q: int) -> Array:
    """Return shares close to 1 whose log-odds are skewed, as after fine-tuning."""
    return np.asarray(special.expit(6 - rng.standard_exponential((n, q))), dtype=np.float64)


def _trials(chance: float, rng: Generator, n: int, q: int) -> Array:
    return (rng.random((n, q)) < chance).astype(np.float64)


def _quotients(rng: Generator, n: int, q: int) -> Array:
    """Return energies after two rounds of random cohorts.

    Divided by a quantity of small variation.
    """
    below = 1 + 0.2 * rng.standard_normal((n, q))
    return np.stack([_products(2, rng, n, q), below], axis=-1)


def _series(rounds: int, phi: float, rng: Generator, n: int, q: int) -> Array:
    """Return energies of autoregressive amplitudes: correlated and skewed."""
    noise = rng.standard_normal((n, q, rounds)) * np.sqrt(1 - phi**2)
    first = rng.standard_normal((n, q, 1))
    return np.asarray(lfilter([1.0], [1.0, -phi], noise, axis=-1, zi=phi * first)[0] ** 2)


NORMAL = Law("normal", _normal, 0.0, 0.0)
EXPONENTIAL = Law("exponential", _exponential, 1.0, 2.0)
FEW, MANY = (
    Law(f"energy after {k} cohorts", partial(_products, k), 1.0, _product_skewness(k))
    for k in (2, 4)
)
ODDS = Law("share, skewed log-odds", _log_odds, float(special.expit(5.0)), 2.0)
RARE, EVEN = (Law(f"success, {p:g}", partial(_trials, p), p) for p in (0.02, 0.5))
RATIO = Law("energy after 2 cohorts, over a mean", _quotients, 1.0, _product_skewness(2))
LONG, SHORT = (
    Law(f"autocorrelated energy, {rounds:,} rounds", partial(_series, rounds, phi), 1.0)
    for rounds, phi in ((4_000, 0.9), (40, 0.8))
)
MEDIAN = Law("exponential, median", _exponential, float(np.log(2.0)))


@dataclass(frozen=True)
class CalibrationCase:
    """An estimator on a distribution.

    Args:
        estimator: name and estimator.
        law: distribution of the samples.
        runs: numbers of runs n.
        replicates: number of samples for each n, limited to `DRAWN` numbers in all.
        errors: probabilities of a miss.
    """

    estimator: tuple[str, Estimator]
    law: Law
    runs: tuple[int, ...]
    replicates: int = 100_000
    errors: tuple[float, ...] = ERRORS


DRAWN = 20_000_000
"""Maximum of numbers drawn for one row."""
MEAN = ("mean", mean_interval)


def _middle(samples: Array) -> Array:
    return np.asarray(np.median(samples, axis=0))


CASES = (
    CalibrationCase(MEAN, NORMAL, (7, 8, 30, 1_000)),
    CalibrationCase(MEAN, EXPONENTIAL, (7, 8, 30, 100, 1_000, 20_000)),
    CalibrationCase(MEAN, FEW, (30, 1_000, 20_000)),
    CalibrationCase(MEAN, MANY, (8, 100, 1_000, 4_000, 20_000)),
    CalibrationCase(("log-odds", log_odds_interval), ODDS, (7, 100)),
    CalibrationCase(("proportion", proportion_interval), RARE, (8, 400)),
    CalibrationCase(("proportion", proportion_interval), EVEN, (8, 400)),
    CalibrationCase(("ratio (Fieller)", fieller_ratio), RATIO, (8, 100, 1_000, 4_000)),
    CalibrationCase(("stationary mean", stationary_mean(0)), LONG, (1, 4, 16), 2_000, (0.1, 0.01)),
    CalibrationCase(("stationary mean", stationary_mean(0)), SHORT, (400,), 2_000, (0.1, 0.01)),
    CalibrationCase(("median", median_interval), MEDIAN, (12, 17, 30), errors=ERRORS[:3]),
    CalibrationCase(
        ("largest distance of a law", cdf_distance(stats.norm.cdf)),
        Law("normal, distance 0", _normal, 0.0),
        (100, 4_000),
        2_000,
        (0.1, 0.01),
    ),
    CalibrationCase(
        ("median (BCa bootstrap)", bootstrap_interval(_middle, SEED)),
        Law("normal, median", _normal, 0.0),
        (20, 100),
        200,
        (0.1,),
    ),
)


def coverage(case: CalibrationCase, runs: int, seed: int) -> list[Record]:
    """Return the miss rates of one estimator on one distribution with n runs, one row per error.

    Args:
        case: estimator and distribution.
        runs: n.
        seed: seed of the samples.
    """
    name, estimator = case.estimator
    rng = stream(seed, "coverage", name, case.law.name, runs)
    size = runs * case.law.draw(rng, 1, 1).size
    replicates = int(min(case.replicates, max(DRAWN // size, 1)))
    low, high = np.zeros((2, len(case.errors)), dtype=np.int64)
    left = replicates
    while left:
        q = min(left, max(BATCH // size, 1))
        samples = case.law.draw(rng, runs, q)
        for i, error in enumerate(case.errors):
            found = estimator(samples, error * q)  # each of the q intervals has this error
            low[i] += int((found.low > case.law.truth).sum())
            high[i] += int((found.high < case.law.truth).sum())
        left -= q
    return [
        {
            "estimator": name,
            "law": case.law.name,
            "runs": runs,
            "error": error,
            "replicates": replicates,
            "missed_above": int(high[i]),
            "missed_below": int(low[i]),
            "reach": _reach(case.law.skewness, runs, error),
            **_rate(int(low[i] + high[i]), replicates, error),
        }
        for i, error in enumerate(case.errors)
    ]


def _reach(skewness: float | None, runs: int, error: float) -> float | None:
    """Return `skewness^2 t^2 / n`, see `REACH`; None without a mean or for too few runs."""
    if skewness is None or runs < 2:
        return None
    return float(skewness**2 * stats.t.isf(error / 2, runs - 1) ** 2 / runs)


def _rate(misses: int, trials: int, nominal: float) -> Record:
    """Return the rate of misses, over the nominal one, with its exact 95% interval."""
    ends = proportion_interval(np.repeat([[1.0], [0.0]], [misses, trials - misses], axis=0), 0.05)
    low, high = float(ends.low[0]) / nominal, float(ends.high[0]) / nominal
    resolved = nominal * trials >= RESOLVED
    return {
        "ratio": misses / trials / nominal,
        "ratio_interval": [low, high],
        "resolved": bool(resolved),
        "calibrated": bool(low <= ALLOWED) if resolved else None,
    }


@dataclass(frozen=True)
class Edge:
    """A claim whose true value lies at the end of its margin.

    Args:
        estimator: name and estimator.
        law: distribution of the samples, whose true value is not 0.
        first, cap: runs of the first look, and maximum.
        replicates: repetitions.
    """

    estimator: tuple[str, Estimator]
    law: Law
    first: int
    cap: int
    replicates: int


EDGES = (
    Edge(MEAN, Law("normal, mean 1", lambda rng, n, q: 1 + _normal(rng, n, q), 1.0), 8, 64, 4_000),
    Edge(MEAN, EXPONENTIAL, 100, 1_600, 4_000),
    Edge(MEAN, MANY, 1_000, 8_000, 1_000),
    Edge(("proportion", proportion_interval), EVEN, 100, 1_600, 4_000),
    Edge(("ratio (Fieller)", fieller_ratio), RATIO, 1_000, 8_000, 1_000),
    Edge(("stationary mean", stationary_mean(0)), LONG, 2, 8, 400),
)
EDGE_ERROR, EDGE_MARGIN = 0.1, 0.5


def false_support(edge: Edge, seed: int) -> Record:
    """Return how often a claim is supported whose value lies exactly at the end of its margin.

    The true value is the upper end of the region in one half of the repetitions, and the lower end
    in the other. The probability of support is at most half the error, because one of its two tests
    would have to be wrong.
    """
    name, estimator = edge.estimator
    rng = stream(seed, "margin", name, edge.law.name)
    verdicts = []
    for i in range(edge.replicates):
        side = 1 + EDGE_MARGIN if i % 2 else 1 - EDGE_MARGIN
        _, verdict, _ = measure_until_decided(
            lambda numbers: edge.law.draw(rng, len(numbers), 1),
            estimator,
            Prediction.within(edge.law.truth / side, EDGE_MARGIN),
            edge.first,
            edge.cap,
            EDGE_ERROR,
        )
        verdicts.append(verdict)
    count = {str(verdict): verdicts.count(verdict) for verdict in Verdict}
    return {
        "estimator": name,
        "law": edge.law.name,
        "first": edge.first,
        "cap": edge.cap,
        "looks": number_of_looks(edge.first, edge.cap),
        "error": EDGE_ERROR,
        "replicates": edge.replicates,
        **count,
        **_rate(count[Verdict.SUPPORTED], edge.replicates, EDGE_ERROR / 2),
    }


FAST = (
    "cohort-rate",
    "zero-pad-cohort-rate",
    "random-allocation-rate",
    "random-allocation-variance",
    "hetlora-uniform-cohorts",
    "heterogeneity-slows",
    "persistent-full",
    "equal-signal-to-noise",
)
"""Claims whose prediction is exact and whose runs take milliseconds."""
REPETITIONS, FAMILY_RUNS, AT_ONCE = 200, 400, 10


def family_misses(claim_id: str, seed: int, repetitions: int = REPETITIONS) -> Record:
    """Repeat one claim's first look and return the repetitions in which an interval misses.

    Each repetition has `FAMILY_RUNS` fresh runs, or as many as the claim's first look if these are
    fewer, and the claim's part of the family's error in a family of the fast claims. An interval
    misses if it does not contain the predicted value.

    Args:
        claim_id: id of the claim.
        seed: base seed of all runs.
        repetitions: number of repetitions.
    """
    (claim,) = (claim for claim in CLAIMS if claim.id == claim_id)
    truth, error = claim.predict().value, claim_error(len(FAST))
    runs, context = min(claim.first, FAMILY_RUNS), RunContext(seed=seed)
    missed, skewness = [], []
    for first in range(0, repetitions, AT_ONCE):
        count = min(AT_ONCE, repetitions - first)
        numbers = range(first * runs, (first + count) * runs)
        for samples in np.split(claim.experiment(numbers, context), count):
            found = claim.estimator(samples, error)
            missed.append(bool(((found.low > truth) | (found.high < truth)).any()))
            skewness.append(_largest_skewness(samples))
    known = [value for value in skewness if value is not None]
    return {
        "claim": claim_id,
        "runs": runs,
        "first": claim.first,
        "quantities": len(truth),
        "error": error,
        "each": _error_of_an_interval(claim),
        "missed": missed,
        "skewness": float(np.median(known)) if known else None,
    }


def _error_of_an_interval(claim: Claim) -> float:
    """Return the error of a single interval of the claim in a verification."""
    family = claim_error(family_size(claim.kind))
    return family / number_of_looks(claim.first, claim.cap) / len(claim.quantities)


def _largest_skewness(samples: Array) -> float | None:
    """Return the largest skewness over quantities of samples (n, q); None for pairs and series."""
    if samples.ndim != 2:
        return None
    return float(np.abs(stats.skew(samples, axis=0)).max())


def family_error(parts: Sequence[Record]) -> Record:
    """Return the number of repetitions in which an interval of the fast claims misses.

    The allowed error is the sum of the claims' parts.
    """
    together = np.asarray(np.any([part["missed"] for part in parts], axis=0), dtype=np.bool_)
    count = int(together.sum())
    claims = [{k: v for k, v in p.items() if k != "missed"} for p in parts]
    for claim, part in zip(claims, parts, strict=True):
        claim["missed"] = int(np.sum(part["missed"]))
        claim["reach"] = _reach(claim["skewness"], claim["first"], claim["each"])
    error = sum(part["error"] for part in parts)
    return {
        "claims": claims,
        "repetitions": len(together),
        "error": error,
        "missed": count,
        **_rate(count, len(together), error),
    }


BINS = 20
RANKED = (
    (MEAN, NORMAL, 8, 2_000),
    (MEAN, EXPONENTIAL, 8, 2_000),
    (MEAN, MANY, 1_000, 2_000),
    (("proportion", proportion_interval), None, 400, 2_000),
    (("ratio (Fieller)", fieller_ratio), RATIO, 1_000, 2_000),
    (("stationary mean", stationary_mean(0)), LONG, 4, 600),
)


def ranks(
    estimator: tuple[str, Estimator], law: Law | None, runs: int, count: int, seed: int
) -> Record:
    """Return the histogram of the true value's rank among an estimator's ends of all levels.

    The lower end at error e has the rank e / 2 and the upper one 1 - e / 2. True values are scales
    from 1 to 10, or probabilities of success from 0 to 1 if no distribution is given.
    """
    name, estimate = estimator
    label = "success, any probability" if law is None else law.name
    rng = stream(seed, "ranks", name, label)
    places = np.zeros(BINS, dtype=np.int64)
    size = runs * (1 if law is None else law.draw(rng, 1, 1).size)
    left = count
    while left:
        q = min(left, max(BATCH // size, 1))
        if law is None:
            truth = rng.random(q)
            samples = (rng.random((runs, q)) < truth).astype(np.float64)
        else:
            scale = rng.uniform(1, 10, q)
            samples = law.draw(rng, runs, q)
            if samples.ndim == 2 or law is not RATIO:
                samples = samples * scale.reshape(q, *[1] * (samples.ndim - 2))
            else:
                samples = samples * np.stack([scale, np.ones(q)], axis=-1)
            truth = scale * law.truth
        below = np.zeros(q, dtype=np.int64)
        for step in range(1, BINS):
            tail = min(step, BINS - step) / BINS
            found = estimate(samples, 2 * tail * q * (1 - 1e-12))
            end = found.low if step <= BINS / 2 else found.high
            below += truth > end
        places += np.bincount(below, minlength=BINS)
        left -= q
    # Verdicts use the outer bins: an estimator may leave fewer true values there, but not more.
    outer = int(places[0] + places[-1])
    return {
        "estimator": name,
        "law": label,
        "runs": runs,
        "samples": count,
        "counts": places.tolist(),
        "p_uniform": float(stats.chisquare(places).pvalue),
        **_rate(outer, count, 2 / BINS),
    }


def pieces(seed: int) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yield each part of the calibration: name, label, and the function that computes it."""
    for i, case in enumerate(CASES):
        for runs in case.runs:
            yield "coverage", f"coverage-{i}-{runs}", partial(coverage, case, runs, seed)
    for i, edge in enumerate(EDGES):
        yield "margin", f"margin-{i}", partial(false_support, edge, seed)
    for i, (estimator, law, runs, count) in enumerate(RANKED):
        yield "ranks", f"ranks-{i}", partial(ranks, estimator, law, runs, count, seed)
    for claim_id in FAST:
        yield "family", f"family-{claim_id}", partial(family_misses, claim_id, seed)


def calibrate(out: Path, seed: int = SEED) -> Record:
    """Run all parts that are not stored yet, and return the record.

    Args:
        out: folder of finished parts and of the result.
        seed: seed of all draws.
    """
    package = Path(analysis.__file__).parent
    code = [source_fingerprint(package / name) for name in ("inference", "claims", "closed_form")]
    own = Path(__file__).read_text(encoding="utf-8")
    store = RunStore(out / "pieces", {"seed": seed, "analysis": code, "calibration": own})
    found: dict[str, list[Any]] = {"coverage": [], "margin": [], "ranks": [], "family": []}
    wanted = list(pieces(seed))
    bar = tqdm(wanted, unit="piece", disable=None)
    for number, (part, label, make) in enumerate(bar, 1):
        bar.set_description(label, refresh=False)
        kept = store.get_record(label)
        if kept is None:
            kept = {"found": make()}
            store.put_record(label, kept)
        if bar.disable:  # without a terminal: a line per part instead of a bar
            print(f"piece {number} of {len(wanted)}: {label}", file=sys.stderr, flush=True)
        rows = kept["found"]
        found[part] += rows if isinstance(rows, list) else [rows]
    record = {
        "seed": seed,
        "allowed": ALLOWED,
        "reach": REACH,
        "coverage": found["coverage"],
        "margin": found["margin"],
        "family": family_error(found["family"]),
        "ranks": found["ranks"],
        "environment": versions(),
    }
    write_text(out / "calibration.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    store.clear()
    return record


def main() -> None:
    """Calibrate from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    calibrate(arguments.out, arguments.seed)
    print(f"calibration in {arguments.out / 'calibration.json'}")


if __name__ == "__main__":
    main()
