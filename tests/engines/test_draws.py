"""The laws of the random draws, tested on their own.

The reference simulators take their draws from the same functions as the fast path, so comparing the
two cannot see a wrong law. Every test here compares draws with the law that they should follow.
"""

from __future__ import annotations

from itertools import combinations, product
from math import factorial, prod

import numpy as np
import pytest
import torch
from scipy import stats

from fedlora_sim import Federation, Scenario
from fedlora_sim.engines import draws
from fedlora_sim.engines.cohort_draws import cohort_counts, draw_slots
from fedlora_sim.federation import draw_cohorts
from fedlora_sim.finetune.batches import initial_lora_a
from fedlora_sim.randomness import stream

SIGNIFICANCE = 1e-6  # error of every test; draws are seeded, so a failure is a changed law
NOISY = Scenario(
    "2x3,4x2", rounds=4000, gain_mean=1.1, gain_std=0.2, drift_mean=-0.1, drift_std=0.5
)
SAMPLES = (5, 1, 2, 7)
SEEDS = range(2000)


def assert_law(observed, probabilities):
    """Apply Pearson's test to counts against the probabilities of their cells."""
    observed = np.asarray(observed)
    assert sum(probabilities) == pytest.approx(1)
    expected = observed.sum() * np.asarray(probabilities)
    assert expected.min() > 5, "cells too small for the test"
    assert stats.chisquare(observed, expected).pvalue > SIGNIFICANCE


def assert_uncorrelated(x, y):
    """Check Pearson's correlation of two samples and of their squares."""
    for power in (1, 2):
        found = stats.pearsonr(np.ravel(x) ** power, np.ravel(y) ** power)
        assert found.pvalue > SIGNIFICANCE, found


def standard(scenario=NOISY, seed=0):
    """Return gains and drifts as standard normal numbers, each (T, K, r_max)."""
    drawn = draws.client_draws(scenario, [seed])
    return (
        (drawn.gain[0].numpy() - scenario.gain_mean) / scenario.gain_std,
        (drawn.drift[0].numpy() - scenario.drift_mean) / scenario.drift_std,
    )


def test_gains_and_drifts_are_normal_with_the_scenarios_moments():
    for values in standard():
        assert stats.kstest(values.ravel(), stats.norm.cdf).pvalue > SIGNIFICANCE


def test_gains_are_independent_of_drifts():
    gain, drift = standard()
    assert_uncorrelated(gain, drift)
    persistent = NOISY.replace(heterogeneity="persistent")
    pairs = [standard(persistent, seed) for seed in range(1000)]
    assert_uncorrelated([g for g, _ in pairs], [d for _, d in pairs])


@pytest.mark.parametrize("which", [0, 1], ids=["gains", "drifts"])
def test_rounds_clients_directions_and_seeds_are_independent(which):
    values, other = standard()[which], standard(seed=1)[which]
    for axis in range(3):
        one, next_one = np.moveaxis(values, axis, 0)[:-1], np.moveaxis(values, axis, 0)[1:]
        assert_uncorrelated(one[::2], next_one[::2])
    assert_uncorrelated(values, other)


def test_noise_of_one_kind_leaves_the_other_unchanged():
    gain, drift = standard()
    alone = draws.client_draws(NOISY.replace(gain_std=0.0), [0])
    np.testing.assert_array_equal((alone.drift[0].numpy() + 0.1) / 0.5, drift)
    assert torch.all(alone.gain == NOISY.gain_mean)
    assert not np.array_equal(gain, drift)


def test_targets_spread_as_the_scenario_says():
    scenario = NOISY.replace(
        local_loss="quadratic",
        local_time=1.0,
        target_std=0.3,
        gain_mean=1.0,
        gain_std=0.0,
        drift_mean=0.0,
        drift_std=0.0,
    )
    spread = [draws.client_targets(scenario, seed) / scenario.target_amplitudes for seed in SEEDS]
    by_client = (np.array(spread)[..., 0] - 1) / 0.3
    assert stats.kstest(by_client.ravel(), stats.norm.cdf).pvalue > SIGNIFICANCE
    assert_uncorrelated(by_client[:, 0], by_client[:, 1])
    np.testing.assert_allclose(np.ptp(spread, axis=-1), 0, atol=1e-12)


def test_random_allocation_gives_every_subset_of_directions_the_same_chance():
    scores = draws.allocation_scores(NOISY.replace(allocation="random"), [0])[0].numpy()
    assert stats.kstest(scores.ravel(), stats.uniform.cdf).pvalue > SIGNIFICANCE
    carried = np.sort(np.argsort(scores, axis=-1)[..., :2], axis=-1).reshape(-1, 2)
    pairs = list(combinations(range(4), 2))
    observed = [(carried == pair).all(-1).sum() for pair in pairs]
    assert_law(observed, np.full(len(pairs), 1 / len(pairs)))


def multinomial(counts, p):
    """Return probability of these counts in `sum(counts)` draws."""
    ways = factorial(sum(counts)) / prod(factorial(n) for n in counts)
    return ways * prod(q**n for q, n in zip(p, counts, strict=True))


def cohort_law(sampling, clients, size):
    """Return every cohort that the sampling can draw, as counts per client, and its probability."""
    most = size if sampling in ("with_replacement", "size_weighted") else 1
    cohorts = [c for c in product(range(most + 1), repeat=clients) if sum(c)]
    if sampling == "bernoulli":
        p = size / clients
        chances = [p ** sum(c) * (1 - p) ** (clients - sum(c)) for c in cohorts]
        return dict(zip(cohorts, np.divide(chances, sum(chances)), strict=True))
    cohorts = [c for c in cohorts if sum(c) == size]
    if sampling == "without_replacement":
        return dict.fromkeys(cohorts, 1 / len(cohorts))
    equal = sampling == "with_replacement"
    p = np.full(clients, 1 / clients) if equal else np.divide(SAMPLES, sum(SAMPLES))
    return {c: multinomial(c, p) for c in cohorts}


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling", ["without_replacement", "with_replacement", "bernoulli", "size_weighted"]
)
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("by_number", [False, True], ids=["fine-tuning", "simulators"])
def test_every_cohort_has_its_probability(sampling, size, by_number):
    law = cohort_law(sampling, len(SAMPLES), size)
    federation = Federation([2, 1, 2, 4], SAMPLES, size, sampling)
    if by_number:
        slots = draw_slots(federation, 400, range(1000), draws.CPU)
        counts = np.zeros((400_000, len(SAMPLES)), dtype=np.int64)
        clients, times = (x.reshape(400_000, -1).numpy() for x in slots)
        np.add.at(counts, (np.arange(400_000)[:, None], clients), times)
    else:
        counts = draw_cohorts(federation, 400_000, stream(0, "cohorts"))
    code = 5 ** np.arange(len(SAMPLES))  # one number for each cohort
    observed = np.bincount(counts @ code, minlength=5 ** len(SAMPLES))
    observed = observed[np.array(list(law)) @ code]
    assert observed.sum() == len(counts), "no other cohorts"
    assert_law(observed, list(law.values()))


def test_cohorts_of_neighboring_rounds_are_independent():
    federation = Federation([1] * 4, None, 2)
    counts = draw_cohorts(federation, 400_000, stream(1, "cohorts"))
    number = counts @ [1, 2, 4, 8]
    cells = np.unique(number)
    pairs = [(number[::2] == a) & (number[1::2] == b) for a in cells for b in cells]
    assert_law([pair.sum() for pair in pairs], np.full(len(pairs), 1 / len(pairs)))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "sampling", ["full", "without_replacement", "with_replacement", "size_weighted", "bernoulli"]
)
def test_cohorts_of_a_run_depend_on_its_seed_alone(sampling, size):
    """Neither other runs nor later rounds change them."""
    federation = Federation("1x2,2x2", None, None if sampling == "full" else size, sampling)
    together = draw_slots(federation, 5, [3, 1, 8], draws.CPU)
    for place, seed in enumerate([3, 1, 8]):
        slots = draw_slots(federation, 3, [seed], draws.CPU)
        for all_runs, alone in zip(together, slots, strict=True):
            own = all_runs[place if len(all_runs) > 1 else 0]
            assert torch.equal(own[:3], alone[0])


def test_cohorts_of_different_seeds_are_independent():
    """A run's first rounds have the same law over seeds as over rounds."""
    scenario = Scenario("1x4", cohort_size=2, rounds=2)
    number = np.array([cohort_counts(scenario, seed) @ [1, 2, 4, 8] for seed in SEEDS])
    cells = np.unique(number)
    for t in range(2):
        assert_law([(number[:, t] == c).sum() for c in cells], np.full(len(cells), 1 / len(cells)))
    assert_uncorrelated(number[:-1:2, 0], number[1::2, 0])


def test_cohorts_are_independent_of_gains():
    scenario = NOISY.replace(cohort_size=2)
    clients, _ = draw_slots(scenario.federation, scenario.rounds, [0], draws.CPU)
    for values in standard(scenario):
        assert_uncorrelated(clients[0, ..., None].numpy() * np.ones(4), values)


@pytest.mark.slow
@pytest.mark.parametrize("side", [0, 1], ids=["U", "V"])
def test_the_initial_basis_is_haar(side):
    """Squared entries follow a beta law; no sign is preferred; columns are orthonormal."""
    scenario = Scenario("2x1,3x1", fidelity="matrix", d_in=5, d_out=7)
    basis = np.array([draws.initial_basis(scenario, seed)[side] for seed in SEEDS])
    d = basis.shape[1]
    eye = np.einsum("sir,sic->src", basis, basis)
    np.testing.assert_allclose(eye, np.broadcast_to(np.eye(3), eye.shape), atol=1e-12)
    for i, r in product(range(d), range(3)):
        entry = basis[:, i, r]
        squares = stats.kstest(entry**2, stats.beta(0.5, (d - 1) / 2).cdf)
        assert squares.pvalue > SIGNIFICANCE
        assert stats.binomtest(int((entry > 0).sum()), len(entry)).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("d", [4, 5])
def test_rotations_of_a_span_have_the_law_of_whole_rotations(d):
    """Products of a rotated column with itself and another, against those of a Haar basis."""
    rng, turns = np.random.default_rng(1), []
    for _ in range(len(SEEDS)):
        q = np.linalg.qr(rng.standard_normal((d, d)))[0]
        q *= rng.choice([-1.0, 1.0], d)
        planes = np.zeros((d, d))
        for i in range(0, d - 1, 2):
            planes[i : i + 2, i : i + 2] = [[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]]
        planes[2 * (d // 2) :, 2 * (d // 2) :] = 1.0
        turns.append((q @ planes @ q.T)[:, :2])
    span = torch.eye(d, dtype=torch.float64)[:, :2].expand(len(SEEDS), -1, -1)
    gaussian = torch.from_numpy(rng.standard_normal((len(SEEDS), d, 3)))
    # Some entries are constant up to rounding.
    found = draws.turned(span, span, gaussian, 0.7).numpy().round(9)
    wanted = np.stack(turns).round(9)
    for i, j in product(range(d), range(2)):
        assert stats.ks_2samp(found[:, i, j], wanted[:, i, j]).pvalue > SIGNIFICANCE
    for i, j in ((1, 2), (2, 3)):
        pair = [x[:, i, 0] * x[:, j, 1] for x in (found, wanted)]
        assert stats.ks_2samp(*pair).pvalue > SIGNIFICANCE


def test_the_initial_a_is_pefts_kaiming_draw():
    """Uniform within 1/sqrt(d_in): Kaiming's bound sqrt(6 / ((1 + a^2) d_in)) with a = sqrt(5)."""
    rank, d_in = 8, 64
    drawn = [initial_lora_a(seed, "layer", rank, d_in) for seed in range(100)]
    bound = np.sqrt(6 / ((1 + 5) * d_in))
    law = stats.uniform(-bound, 2 * bound)
    assert stats.kstest(np.ravel(drawn), law.cdf).pvalue > SIGNIFICANCE
    assert np.abs(drawn).max() <= bound
    assert_uncorrelated(drawn[::2], drawn[1::2])
    later = [initial_lora_a(seed, "layer", rank, d_in, t=1) for seed in range(100)]
    other = [initial_lora_a(seed, "other", rank, d_in) for seed in range(100)]
    assert_uncorrelated(drawn, later)
    assert_uncorrelated(drawn, other)


@pytest.mark.slow
def test_the_initial_a_is_as_wide_as_pefts_own():
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(64, 400))
    config = peft.LoraConfig(r=32, target_modules=["0"])
    state = peft.get_peft_model(model, config).state_dict()
    theirs = next(v for k, v in state.items() if "lora_A" in k).double()
    ours = initial_lora_a(0, "layer", 32, 64)
    assert stats.ks_2samp(theirs.numpy().ravel(), ours.ravel()).pvalue > SIGNIFICANCE
