"""What the ledger's claims measure, on runs whose ledger is known; nothing is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import xarray as xr

from analysis.claims import ledger as claims
from analysis.claims.base import RunContext
from analysis.claims.verify import run_claim
from analysis.ledger import ledger
from fedlora_sim import Scenario, simulate

DRIFT = 0.05
BY_ID = {claim.id: claim for claim in claims.CLAIMS}
# One direction per partition, so that a round is exactly `X' = mu (X + c)`.
AFFINE = Scenario("1x4,2x4,3x4", rounds=30, drift_mean=DRIFT, fidelity="matrix", d_in=6, d_out=5)


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> RunContext:
    """A context in which runs of real factors with a constant drift replace fine-tuning."""

    @cache
    def simulated(label: str, number: int) -> xr.Dataset:
        scenario = AFFINE.replace(drift_mean=DRIFT * (1 + number / 100), subspace_noise=0.01)
        return simulate(scenario, label, seed=number, ledger=True)

    monkeypatch.setattr(
        claims, "digits_run", lambda label, number, context: simulated(label, number)
    )
    return RunContext()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ledger-closes", "ledger-dilution", "ledger-regrowth"])
def test_the_ledger_of_known_runs_supports_the_claims(name: str, context: RunContext) -> None:
    record = run_claim(BY_ID[name], context)
    assert record["verdict"] == "supported", record["reason"]
    assert min(record["near_control"]["distance"]) >= 2
    assert record["negative_control"]["verdict"] == "refuted"


def test_the_floor_of_a_constant_drift_is_exact(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = simulate(AFFINE, "fedavg", ledger=True)
    monkeypatch.setattr(claims, "digits_run", lambda label, number, context: still)
    error = claims.floor_error("fedavg", [0], context)
    assert error.max() < 0.01  # energies within 1% of the floor after 20 rounds
    larger = claims.floor_error("fedavg", [0], context, drift=claims.LARGER_DRIFT)
    np.testing.assert_allclose(larger, 2 * np.log10(claims.LARGER_DRIFT), atol=0.01)
    assert claims.floor_error("fedavg", [0], context, drift=0.0).min() > 1


@cache
def plain_run(number: int) -> xr.Dataset:
    return simulate(AFFINE, "fedavg", seed=number, ledger=True)


def law(power: float) -> Callable[[int, RunContext], xr.Dataset]:
    """Return runs whose counterfactual energies follow a power of the coverage."""

    def made(number: int, context: RunContext) -> xr.Dataset:
        run = plain_run(number)
        coverage = ledger(run).coverage.sel(partition=run.partition).values  # seed, round, layer, i
        energy = 1 + np.random.default_rng(number).random(coverage.shape)
        both = np.stack([energy, energy * coverage**-power], axis=2)
        dims = ("seed", "round", "compared_rule", "layer", "direction")
        names = {"compared_rule": ["fedavg", "raflora"]}
        return run.assign(counterfactual_energy=(dims, both)).assign_coords(names)

    return made


@pytest.mark.slow
def test_the_law_on_the_same_cohort(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_compared_run", law(2.0))
    claim = BY_ID["ledger-same-cohort"]
    record = run_claim(claim, context)
    assert record["verdict"] == "supported", record["reason"]
    assert np.abs(record["measurement"]).max() < 1e-9
    monkeypatch.setattr(claims, "_compared_run", law(1.6))
    wrong = run_claim(claim, context)
    assert wrong["verdict"] == "refuted"
