"""The energy ledger: it closes for every rule, and each term is what its name says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples
from simulator_cases import ALL_RULES, CANONICAL

from analysis import ledger
from analysis.ledger import TERMS, implied_floor
from fedlora_sim import Scenario, aggregate, simulate
from fedlora_sim.datasets import ACCOUNT
from fedlora_sim.errors import InputError
from fedlora_sim.rules import Aggregated, FedAvg, Properties

CLOSED = 1e-9  # decades
LOSSES = (
    {},
    {"gain_std": 0.3, "drift_mean": 0.1, "drift_std": 0.1},
    {"gain_mean": 0.9, "gain_std": 0.2, "heterogeneity": "persistent"},
    {"local_loss": "drift", "drift_mean": 0.1, "drift_std": 0.05},
    {"local_loss": "quadratic", "local_time": 0.5},
    {"local_loss": "quadratic", "local_time": 0.5, "target_std": 0.3},
)
DISTURBED = {"subspace_noise": 0.1, "basis_drift": 0.1, "d_in": 12, "d_out": 10}


def supports(fidelity, rule, allocation, loss):
    """Whether an engine runs this; otherwise `simulate` refuses it."""
    flow = fidelity == "spectral" and "local_loss" in loss
    if rule == CANONICAL:
        return fidelity == "matrix" and allocation == "svd"
    return not (flow and rule.partition(":")[0] in ("flora", "fedex"))


@st.composite
def runs(draw, fidelities=("spectral", "matrix")):
    fidelity, loss = draw(st.sampled_from(fidelities)), draw(st.sampled_from(LOSSES))
    rule = draw(st.sampled_from(ALL_RULES))
    allocation = draw(st.sampled_from(("svd", "random", "importance")))
    assume(supports(fidelity, rule, allocation, loss))
    changes = dict(loss)
    if fidelity == "matrix":
        changes |= DISTURBED | ({"local_steps": 3} if "local_loss" in loss else {})
    run = Scenario(
        "1x2,3x2,4x1",
        fidelity=fidelity,
        rounds=4,
        cohort_size=draw(st.sampled_from((None, 2))),
        num_samples=(5, 1, 2, 7, 3),
        allocation=allocation,
        empty_partition=draw(st.sampled_from(("carry", "zero"))),
        dtype=draw(st.sampled_from(("float32", "float64"))),
        **changes,
    )
    return run, rule, draw(st.integers(0, 999))


def net(account):
    """Return the change of log10 of the energy, and where it and all terms are numbers."""
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.log10(account.energy)
        change, terms = level - level.shift(round=1), account.change.sum("term", skipna=False)
    return change, terms, np.isfinite(account.change).all("term")


@pytest.mark.slow
@settings(max_examples=examples(25))
@given(runs())
def test_the_account_closes(drawn):
    scenario, rule, seed = drawn
    account = ledger(simulate(scenario, rule, seed=[seed, seed + 1], ledger=True))
    assert account.change.dims == ("seed", "round", "layer", "partition", "term")
    change, terms, known = net(account)
    assert float(abs(change - terms).where(known).max()) < CLOSED
    lost = np.isneginf(terms)  # a partition that ended: its energy is zero
    assert np.isneginf(change.values[lost.values]).all()
    if rule != "fedex:residual_rank=1":
        assert known.isel(round=1).any()
    kept = account.q * account.energy.shift(round=1)
    apart = abs(kept + account.delta2 - account.energy).where(known)
    assert not (apart > 1e-12 * (kept + account.energy)).any()


@settings(max_examples=examples(10))
@given(runs(fidelities=("spectral",)))
def test_nothing_turns_in_a_fixed_basis(drawn):
    scenario, rule, seed = drawn
    run = simulate(scenario, rule, seed=seed, ledger=True)
    turning = ledger(run).change.sel(term="turning")
    assert float(abs(turning.where(np.isfinite(turning))).max()) < 1e-5
    np.testing.assert_allclose(run.server_amplitude[:, 1:] ** 2, run.energy[:, 1:], rtol=1e-12)


@settings(max_examples=examples(10))
@given(runs())
def test_the_account_changes_nothing(drawn):
    scenario, rule, seed = drawn
    usual, with_account = (
        simulate(scenario, rule, seed=[seed, seed + 1], ledger=on) for on in (False, True)
    )
    assert set(with_account.data_vars) - set(usual.data_vars) == set(ACCOUNT)
    xr.testing.assert_identical(with_account.drop_vars(ACCOUNT), usual)


@dataclass(frozen=True)
class Misdeclared(FedAvg):
    """FedAvg that declares a slightly larger power of the coverage."""

    power: float = 1.01

    def multiplier(self, coverage):
        return coverage**self.power


def dilution(rule, **changes):
    scenario = Scenario("1x2,3x2,4x2", fidelity="matrix", rounds=5, **DISTURBED, **changes)
    account = ledger(simulate(scenario, rule, ledger=True)).isel(round=slice(1, None))
    return account.change.sel(term="dilution"), account.coverage


def test_dilution_is_the_coverage_under_fedavg_and_none_under_flora():
    found, coverage = dilution("fedavg")
    assert float(abs(found - 2 * np.log10(coverage)).max()) < CLOSED
    assert float(coverage.min()) < 0.4
    assert float(abs(dilution("flora", gain_std=0.2)[0]).max()) < CLOSED
    near, coverage = dilution(Misdeclared())
    assert float(abs(near - 2 * np.log10(coverage)).max()) > 1e6 * CLOSED


def test_dilution_and_mixing_when_no_client_trains():
    """Then all of the change is the rule's, as declared: training, mixing and turning are zero."""
    for fidelity, changes in (("spectral", {}), ("matrix", {"d_in": 9, "d_out": 8})):
        scenario = Scenario("1x2,3x2,4x2", fidelity=fidelity, rounds=4, **changes)
        for rule in ALL_RULES:
            if not supports(fidelity, rule, "svd", {}) or "residual_rank" in rule:
                continue
            change = ledger(simulate(scenario, rule, ledger=True)).change.isel(round=slice(1, None))
            rest = change.sel(term=list(TERMS[1:]))
            assert float(abs(rest).max()) < 1e-8, (fidelity, rule)


@pytest.mark.parametrize("rule", ["fedavg", "raflora", "zero_pad", "rbla", "flora", "fedex", "ffa"])
def test_the_implied_drift_is_what_clients_add(rule):
    """One direction per partition, so that amplitudes of partitions are those of directions."""
    scenario = Scenario("1x2,2x2,3x2", rounds=6, drift_mean=0.2)
    account = ledger(simulate(scenario, rule, ledger=True)).isel(round=slice(1, None))
    np.testing.assert_allclose(account.drift, 0.2, rtol=1e-9)
    larger = ledger(simulate(scenario.replace(drift_mean=0.202), rule, ledger=True))
    assert abs(float(larger.drift[0, -1, 0, -1]) - 0.2) > 1e-3


def test_a_partition_that_ends_and_one_that_is_kept():
    scenario = Scenario("1x5,3x1", rounds=12, cohort_size=2, gain_mean=1.1)
    for policy in ("zero", "carry"):
        run = simulate(scenario.replace(empty_partition=policy), "raflora", ledger=True)
        account = ledger(run).isel(seed=0, layer=0, partition=1)
        missing = np.flatnonzero(account.coverage == 0)
        assert len(missing) > 1
        first = account.change[missing[0]].values
        if policy == "carry":
            np.testing.assert_array_equal(account.change[missing], 0)
            assert np.isfinite(account.energy).all()
            assert np.isnan(account.drift[missing]).all()
        else:
            np.testing.assert_array_equal(first, [-np.inf, 0, 0, 0])
            assert np.isnan(account.change[missing[0] + 1 :]).all()  # no energy that could change
            assert np.isnan(account.q[missing[0] + 1 :]).all()
            assert (account.energy[missing[0] :] == 0).all()


def test_a_rule_without_a_declared_multiplier_has_the_rest_of_the_account():
    class Undeclared:
        name, source, properties = "undeclared", "a test", Properties(linear=True, exact=True)

        def step(self, updates, weights, context, state):
            levels = {"rank_levels": context.rank_levels, "positions": context.positions}
            found = aggregate(updates, weights, "fedavg", **levels)
            return Aggregated(found.adapter.to(torch.float64)), {}

    scenario = Scenario("1x2,3x2", fidelity="matrix", rounds=3, gain_std=0.1, **DISTURBED)
    account, known = (
        ledger(simulate(scenario, rule, ledger=True)).isel(round=slice(1, None))
        for rule in (Undeclared(), "fedavg")
    )
    for name in TERMS[:3]:
        assert np.isnan(account.change.sel(term=name)).all()
    for name in ("q", "delta2", "energy", "coverage"):
        np.testing.assert_allclose(account[name], known[name], rtol=1e-9)
    turning = (x.change.sel(term="turning") for x in (account, known))
    np.testing.assert_allclose(*turning, atol=CLOSED)


def test_the_floor_is_where_the_recursion_settles():
    q, delta2 = np.array([0.5, 0.9, 1.0, np.nan]), np.array([0.1, 0.2, 0.3, np.nan])
    around = np.array([-0.1, 0.0, 0.1])[:, None]
    dims = ("seed", "round", "layer", "partition")
    account = xr.Dataset(
        {
            "q": (dims, (q + around)[None, :, None]),
            "delta2": (dims, (delta2 + around)[None, :, None]),
        },
        {"round": [1, 2, 3]},
    )
    np.testing.assert_allclose(implied_floor(account)[0, 0], [0.2, 2.0, np.inf, np.nan])
    first = implied_floor(account, slice(1, 1))[0, 0]
    np.testing.assert_allclose(first, [0.0, 0.5, 2.0, np.nan], atol=1e-15)
    energy = 1.0
    for _ in range(60):
        energy = q[0] * energy + delta2[0]
    assert float(implied_floor(account)[0, 0, 0]) == pytest.approx(energy, rel=1e-12)


def test_runs_without_their_account_are_refused():
    scenario = Scenario("1x2,3x2", rounds=2)
    with pytest.raises(InputError, match=r"ledger=True"):
        ledger(simulate(scenario))
    with pytest.raises(InputError, match=r"'dict': expected a dataset"):
        ledger({})
    with pytest.raises(InputError, match=r"x 6 values.*: expected at most"):
        simulate(Scenario("1x2,900x2", rounds=9_999), seed=range(10), ledger=True)
