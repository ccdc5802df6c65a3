"""Every rule under every allocation at spectral fidelity, and its amplitudes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from designs import each_value, pairwise
from simulator_cases import ALL_RULES, CANONICAL, FACTOR_RULES, LAWS, SIGMAS, assert_close, differs

from fedlora_sim import Federation, LoRAFactors, Scenario, simulate
from fedlora_sim.engines import spectral as spectral_run
from fedlora_sim.errors import InputError
from fedlora_sim.reference.simulators import spectral_reference
from fedlora_sim.rules import FedAvg
from fedlora_sim.simulate import simulate_many
from fedlora_sim.tolerances import relative

RANKS, SAMPLES = "1x3,3x2,4x2", (5, 1, 2, 7, 3, 3, 1)
PERSISTENT = {
    "heterogeneity": "persistent",
    "gain_mean": 0.9,
    "gain_std": 0.4,
    "drift_mean": 0.1,
    "drift_std": 0.2,
}
RULES = [rule for rule in ALL_RULES if rule != CANONICAL]
ALLOCATIONS = ("svd", "random", "importance")


def scenario(law="without_replacement", **changes):
    size = None if law == "full" else 2
    options = {"num_samples": SAMPLES, "rounds": 8, "sampling": law, "cohort_size": size}
    return Scenario(RANKS, **{**options, **changes})


def amplitudes(run, rule, seeds=range(2)):
    """Return amplitudes of the fast path without signs, which energies do not show."""
    return np.sqrt(simulate(run, rule=rule, seed=seeds).energy.values)


def reference(run, rule, seeds=range(2)):
    return np.abs(np.stack([spectral_reference(run, rule, seed) for seed in seeds]))


@pairwise(rule=RULES, allocation=ALLOCATIONS, law=LAWS)
def test_persistent_clients_are_the_reference(rule, allocation, law):
    policy = "zero" if law in ("bernoulli", "without_replacement") else "carry"
    run = scenario(law, allocation=allocation, empty_partition=policy, **PERSISTENT)
    assert_close(amplitudes(run, rule), reference(run, rule))


@pairwise(rule=RULES, allocation=ALLOCATIONS, drift=[0.0, 0.05])
def test_without_noise_it_is_the_reference(rule, allocation, drift):
    """A residual truncated to its largest entry is not unique if drift makes entries equal."""
    drift = 0.0 if "residual_rank" in rule else drift
    run = scenario(allocation=allocation, gain_mean=-0.95, drift_mean=drift, rounds=12)
    assert_close(amplitudes(run, rule), reference(run, rule))


@pairwise(
    rule=[rule for rule in RULES if rule in FACTOR_RULES or "fedex" in rule],
    allocation=ALLOCATIONS,
    law=["with_replacement", "bernoulli"],
)
def test_fresh_noise_in_factor_space_is_the_reference(rule, allocation, law):
    run = scenario(law, allocation=allocation, **{**PERSISTENT, "heterogeneity": "fresh"})
    assert_close(amplitudes(run, rule), reference(run, rule))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["fedavg", "raflora", "flora", "ffa"])
@pytest.mark.parametrize("allocation", ["svd", "random"])
def test_fresh_noise_in_product_space_agrees_in_law(rule, allocation):
    run = scenario(allocation=allocation, rounds=4, **{**PERSISTENT, "heterogeneity": "fresh"})
    many, few = 2000, 600
    fast = simulate(run, rule=rule, seed=range(many)).energy.values[:, 1:]
    slow = reference(run, rule, range(many, many + few))[:, 1:] ** 2
    spread = np.sqrt(fast.var(0) / many + slow.var(0) / few)
    assert np.all(np.abs(fast.mean(0) - slow.mean(0)) <= SIGMAS * spread)


@pytest.mark.parametrize("residual_rank", [1, 2, 3])
def test_spectral_fedex_keeps_the_largest_of_its_residual(residual_rank):
    run, rule = scenario("full", rounds=1), f"fedex:residual_rank={residual_rank}"
    coverage = Federation(RANKS, SAMPLES).coverage()
    whole, in_adapter = (run.initial_amplitudes * w for w in (coverage, coverage**2))
    kept = np.argsort(in_adapter - whole)[:residual_rank]
    wanted = in_adapter.copy()
    wanted[kept] = whole[kept]
    assert_close(amplitudes(run, rule)[0, 1], wanted)


def test_flora_loses_nothing_without_drift():
    """Gains are in the base; with gain 1 the increment of any cohort is zero."""
    for allocation in ("svd", "random", "importance"):
        run = scenario("bernoulli", allocation=allocation, rounds=40)
        energy = simulate(run, rule="flora", seed=range(3)).energy
        assert_close(energy, np.tile(run.initial_amplitudes**2, (3, 41, 1)))


def test_flora_grows_by_its_coverage():
    """Gain g adds `W (g - 1)` of a direction in every round: `sigma' = (1 + W (g - 1)) sigma`."""
    run = scenario("full", gain_mean=1.1)
    growth = 1 + 0.1 * Federation(RANKS, SAMPLES).coverage()
    wanted = run.initial_amplitudes * growth ** np.arange(9)[:, None]
    assert_close(amplitudes(run, "flora")[0], wanted)


def test_fedex_settles_where_its_base_has_taken_the_rest():
    """With gain 1 and full participation a direction settles at `W / (1 + W)` of its start.

    Adapter x and base z. All clients keep the total x + z. The share W that carries the direction
    returns adapters `x + z - z = x`, the others 0. The average of the products is `W x`, the
    product of the averages `W**2 x`, and the base takes the residual:

        x' = W**2 x,    z' = z + (W - W**2) x.

    From z = 0, with W < 1, x dies out and z gathers `(W - W**2) sum_t W**(2 t)`, that is
    `W (1 - W) / (1 - W**2) = W / (1 + W)`. At W = 1 the adapter keeps all of it.
    """
    run = scenario("full", rounds=600)
    w = Federation(RANKS, SAMPLES).coverage()
    left = np.where(w < 1, w / (1 + w), 1.0)
    assert_close(amplitudes(run, "fedex")[0, -1], left * run.initial_amplitudes, "iteration")
    x, z = run.initial_amplitudes, np.zeros(4)
    for row in amplitudes(run, "fedex")[0]:
        assert_close(row, x + z, "iteration")
        x, z = w**2 * x, z + (w - w**2) * x


@pytest.mark.parametrize("rule", ["hetlora", "hetlora:data_weighted=true"])
def test_the_weights_of_hetlora_become_uniform_as_the_high_directions_drain(rule):
    """The surviving part of direction i in a round shows the weight of its contributors.

    With gain 1 it is `W~**2`, the squared norm share of its carriers. At first it exceeds their
    share of the clients, because they have more directions; in the end it equals that share.
    """
    run = scenario("full", rounds=60, num_samples=None, spectrum_decay=1.0)
    weights = np.sqrt((left := amplitudes(run, rule)[0])[1:] / left[:-1])
    uniform = Federation(RANKS).coverage()
    assert_close(weights[:, 0], np.ones(60))
    assert np.all(weights[0, 1:] > uniform[1:])
    gap = np.abs(weights - uniform).max(1)
    assert np.all(np.diff(gap[gap > relative("iteration")]) < 0)
    assert_close(weights[-1], uniform, "iteration")


def test_norms_and_not_samples_weigh_in_hetlora():
    run = scenario("full", gain_std=0.3, heterogeneity="persistent")
    equal = run.replace(num_samples=None)
    assert_close(amplitudes(run, "hetlora"), amplitudes(equal, "hetlora"))
    weighted = "hetlora:data_weighted=true"
    assert differs(amplitudes(run, weighted), amplitudes(equal, weighted))


@pytest.mark.slow
@pairwise(rule=RULES, allocation=ALLOCATIONS, heterogeneity=["fresh", "persistent"])
def test_a_run_is_the_same_bits_alone_in_chunks_and_in_a_batch(
    rule, allocation, heterogeneity, monkeypatch
):
    noise = {**PERSISTENT, "heterogeneity": heterogeneity}
    run = scenario("bernoulli", allocation=allocation, **noise)
    whole = simulate(run, rule=rule, seed=range(5)).energy
    batch = simulate_many([run.replace(rounds=3), run], rule=rule, seed=range(5))[1].energy
    np.testing.assert_array_equal(batch, whole)
    monkeypatch.setattr(spectral_run, "BATCH_ELEMENTS", 1)
    np.testing.assert_array_equal(simulate(run, rule=rule, seed=range(5)).energy, whole)
    np.testing.assert_array_equal(simulate(run, rule=rule, seed=3).energy[0], whole[3])


@each_value(rule=RULES, allocation=ALLOCATIONS)
def test_single_precision_uses_the_same_draws(rule, allocation):
    run = scenario(allocation=allocation, **PERSISTENT)
    single = amplitudes(run.replace(dtype="float32"), rule, range(5))
    assert_close(single, amplitudes(run, rule, range(5)), "iteration", torch.float32)


@pytest.mark.parametrize("rule", ["raflora", "rbla"])
@pytest.mark.parametrize("allocation", ["random", "importance"])
def test_policies_act_direction_by_direction(rule, allocation):
    """Gain 1, one client a round: what it does not carry stays under `carry`, is lost for good
    under `zero`, and ends the run under `error`."""
    run = scenario(cohort_size=1, allocation=allocation, rounds=30)
    start = run.initial_amplitudes
    assert_close(amplitudes(run, rule), np.tile(start, (2, 31, 1)))
    left = amplitudes(run.replace(empty_partition="zero"), rule)
    assert np.all((left == 0) | (np.abs(left - start) <= relative("reduction") * start))
    assert np.all((left[:, 1:] == 0) >= (left[:, :-1] == 0))
    with pytest.raises(InputError, match=r"'error'.*direction \d has none in round"):
        simulate(run.replace(empty_partition="error"), rule=rule)


@pytest.mark.parametrize("rule", ["fedavg", "flora", "ffa", "zero_pad", "fedex", "hetlora"])
def test_rules_without_partitions_have_no_policy(rule):
    run = scenario(cohort_size=1, allocation="random", gain_mean=0.9)
    runs = [run.replace(empty_partition=policy) for policy in ("carry", "zero", "error")]
    first, *others = (simulate(one, rule=rule).energy.values for one in runs)
    for other in others:
        np.testing.assert_array_equal(other, first)


@dataclass(frozen=True)
class Halved(FedAvg):
    """A rule that is more than its weights: it returns half of the average."""

    def adapter(self, *arguments, **options):
        return LoRAFactors(*(0.5**0.5 * f for f in pair(super().adapter(*arguments, **options))))


def pair(factors):
    return factors.lora_A, factors.lora_B


@pytest.mark.parametrize("rule", [CANONICAL, Halved()])
def test_a_rule_that_is_more_than_weights_is_refused_and_runs_elsewhere(rule):
    run = Scenario("2x2,3", rounds=1, d_in=5, d_out=4)
    with pytest.raises(InputError, match="fidelity='spectral'"):
        simulate(run, rule=rule)
    energy = simulate(run.replace(fidelity="matrix"), rule=rule).energy.values[0]
    if isinstance(rule, Halved):
        assert_close(energy[1, 0], 0.25 * energy[0, 0])
