"""Measures of a round, computed again with dense matrices and NumPy's SVD."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from run_cases import TINY
from scipy.linalg import subspace_angles

from fedlora_sim import simulate
from fedlora_sim.finetune.run import FederatedRun, evaluate
from fedlora_sim.rules import get_rule
from fedlora_sim.runtime import one_thread
from fedlora_sim.tolerances import relative

CASES = {
    "raflora": {},
    "fedavg": {"cohort_size": 3, "lora_alpha": 6.0},
    "fedex": {"cohort_size": 4, "sampling": "with_replacement", "allocation": "random"},
    "flora": {"cohort_size": 4, "sampling": "bernoulli"},
    "hetlora": {"cohort_size": 5, "pruning_decay": 0.6, "pruning_penalty": 5.0},
    "ffa": {"initializer": "slora"},
}


class Watched:
    """A run, its global update after every round and its clients' updates, all dense."""

    def __init__(self, run) -> None:
        self.run, self.states, self.updates = run, [self.dense(run.state)], []
        self.bases, self.uploads = [dict(run.state.base)], []
        train, advance = run.train, run.round

        def watched_train(t):
            upload = train(t)
            self.uploads.append(upload)
            self.updates.append(
                {
                    name: [u.scaling * u.lora_B.numpy() @ u.lora_A.numpy() for u in own]
                    for name, own in upload.updates.items()
                }
            )
            return upload

        def watched_round(t):
            row = advance(t)
            self.states.append(self.dense(run.state))
            self.bases.append(dict(run.state.base))
            return row

        run.train, run.round = watched_train, watched_round
        self.result = run.run()

    @staticmethod
    def dense(state):
        return {name: delta.numpy() for name, delta in state.deltas().items()}


@pytest.fixture(scope="module", params=CASES)
def watched(request: pytest.FixtureRequest, tiny_task) -> Watched:
    scenario, rule = TINY.replace(**CASES[request.param]), get_rule(request.param)
    with one_thread():
        return Watched(FederatedRun(scenario, rule, 5, tiny_task))


def leading(matrix, r):
    """Return singular vectors as columns, and values; None if the values are rounding."""
    u, s, vh = np.linalg.svd(matrix)
    return (u[:, :r], s[:r], vh[:r].T) if s[0] and s[r - 1] > s[0] * 1e-12 else None


@pytest.mark.slow
def test_energies_of_the_global_update(watched):
    for t, state in enumerate(watched.states):
        for layer, dense in enumerate(state.values()):
            wanted = np.linalg.svd(dense, compute_uv=False)[:8]
            gap = np.linalg.norm(watched.result.singular_values[t, layer] - wanted)
            assert gap <= relative("factorization") * wanted[0]


def amplitudes_of(u, matrix, v):
    return np.diag(u.T @ matrix @ v)


def dense_account(watched, t, layer, name, *, power=1.0, sign=1.0):
    """The account of round t, from dense matrices; None where directions are not defined.

    `power` of the coverage, and `sign` of the base, are 1 unless a fault is wanted.
    """
    basis, upload = leading(watched.states[t - 1][name], 8), watched.uploads[t - 1]
    if basis is None:
        return None
    u, s, v = basis
    rule, updates = watched.run.rule, watched.updates[t - 1][name]
    base = watched.bases[t - 1].get(name)
    z = np.zeros(8) if base is None else sign * amplitudes_of(u, base.numpy(), v)
    weights = upload.weights[upload.kept]
    if rule.name == "hetlora":
        weights = np.array([np.linalg.norm(update) for update in updates])
    carries = np.zeros((len(updates), 8))
    for row, held in zip(carries, upload.positions[name], strict=True):
        row[held.numpy()] = 1
    coverage = weights @ carries / weights.sum()
    mu = {"raflora": (coverage > 0).astype(float), "hetlora": coverage**2}.get(rule.name, coverage)
    mu = mu**power
    returned = np.array([amplitudes_of(u, update, v) for update in updates])
    mean = (weights[:, None] * carries * returned).sum(0) / np.maximum(weights @ carries, 1e-300)
    if rule.name == "raflora":  # the policy of the run carries
        mu, mean = np.where(coverage > 0, mu, 1.0), np.where(coverage > 0, mean, s)
    server = amplitudes_of(u, watched.states[t][name], v)
    return {
        "round_coverage": coverage,
        "round_multiplier": mu,
        "idle_amplitude": z + mu * (s - z),
        "trained_amplitude": z + mu * mean,
        "server_amplitude": server,
    }


def test_the_account_on_dense_matrices(watched):
    compared, noticed = 0, {"power": 0, "sign": 0}
    for t in range(1, len(watched.states)):
        for layer, name in enumerate(watched.run.task.target_modules):
            wanted = dense_account(watched, t, layer, name)
            if wanted is None:
                continue
            compared += 1
            size = np.linalg.norm(watched.states[t - 1][name])

            def gaps(account, t=t, layer=layer):
                return [
                    np.abs(getattr(watched.result, key)[t, layer] - values).max()
                    for key, values in account.items()
                ]

            assert max(gaps(wanted)) <= relative("iteration") * max(size, 1.0)
            for key, changed in (("power", {"power": 1.01}), ("sign", {"sign": -1.0})):
                wrong = dense_account(watched, t, layer, name, **changed)
                noticed[key] += max(gaps(wrong)) > 1e3 * relative("iteration") * max(size, 1.0)
    assert compared > 0
    has_base = any(watched.bases[1:-1])
    assert (noticed["power"] > 0) == (watched.run.rule.name != "raflora")
    assert (noticed["sign"] > 0) == has_base


def test_clients_on_the_basis_that_they_started_from(watched):
    result, slots = watched.result, watched.run.federation.max_cohort
    projected = 0
    for t, updates in enumerate(watched.updates, start=1):
        for layer, (name, own) in enumerate(updates.items()):
            basis = leading(watched.states[t - 1][name], 8)
            for slot in range(slots):
                energy = result.update_energy[t, layer, slot]
                share = result.client_preservation[t, layer, slot]
                amplitude = result.amplitude[t, layer, slot]
                if slot >= len(own):
                    assert np.isnan([energy, share, *amplitude]).all()
                    continue
                total = np.linalg.norm(own[slot]) ** 2
                assert energy == pytest.approx(total, rel=relative("reduction"))
                if basis is None:
                    continue
                u, _, v = basis
                wanted, projected = np.diag(u.T @ own[slot] @ v), projected + 1
                bound = relative("iteration") * np.sqrt(total)
                assert np.abs(amplitude - wanted).max() <= bound
                kept = (wanted**2).sum() / total
                assert share == pytest.approx(kept, rel=relative("iteration"))
    assert projected, "some round must have had a basis"


def test_the_start_has_no_cohort_and_zero_has_no_basis(watched):
    result = watched.result
    assert (result.cohort[0] == -1).all()
    assert not result.client_weight[0].any()
    for name in ("amplitude", "update_energy", "client_preservation", "angle", "preservation"):
        assert np.isnan(getattr(result, name)[0]).all()
    if not any(delta.any() for delta in watched.states[0].values()):
        assert np.isnan(result.amplitude[1]).all()
        assert np.isnan(result.angle[1]).all()
        assert np.isfinite(result.update_energy[1][:, result.cohort[1] >= 0]).all()


def test_the_mean_over_the_cohort(watched):
    share = watched.result.client_preservation
    for index in np.ndindex(share.shape[:2]):
        own = share[index][~np.isnan(share[index])]
        found = watched.result.preservation[index]
        if len(own):
            assert found == pytest.approx(own.mean(), rel=relative("reduction"))
            assert 0 < found <= 1
        else:
            assert np.isnan(found)


def test_cohort_and_weights(watched):
    result, run = watched.result, watched.run
    sizes = np.array([len(own) for own in run.samples])
    for t, (clients, drawn) in enumerate(run.cohorts, start=1):
        m = len(clients)
        np.testing.assert_array_equal(result.cohort[t, :m], clients)
        assert (result.cohort[t, m:] == -1).all()
        share = drawn * sizes[clients] / (drawn * sizes[clients]).sum()
        np.testing.assert_allclose(result.client_weight[t, :m], share, rtol=relative("reduction"))
        assert not result.client_weight[t, m:].any()
        assert not result.dropped[t].any()


def test_angles_from_one_round_to_the_next(watched):
    result, levels = watched.result, watched.run.federation.levels
    assert result.angle.shape[2:] == (2, len(levels), 8)
    seen = 0
    for t in range(1, len(watched.states)):
        for layer, name in enumerate(watched.run.task.target_modules):
            for h, level in enumerate(levels):
                both = [leading(watched.states[s][name], level) for s in (t - 1, t)]
                found = result.angle[t, layer, :, h]
                assert np.isnan(found[:, level:]).all()
                if both[0] is None or both[1] is None:
                    continue
                seen += 1
                for side, vectors in enumerate((0, 2)):
                    wanted = subspace_angles(both[0][vectors], both[1][vectors])[::-1]
                    gap = np.abs(found[side, :level] - wanted).max()
                    assert gap <= relative("iteration")
    assert seen, "some rounds must have had a basis"


@pytest.mark.slow
def test_evaluation_every_few_rounds(make_run):
    every = make_run(rounds=5).run()
    some = make_run(rounds=5, evaluate_every=3).run()
    for name in ("accuracy", "loss"):
        judged = [0, 3, 5]
        found, wanted = getattr(some, name), getattr(every, name)
        np.testing.assert_array_equal(found[judged], wanted[judged])
        assert np.isnan(np.delete(found, judged)).all()
    np.testing.assert_array_equal(some.singular_values, every.singular_values)


def test_the_start_is_evaluated_unchanged(make_run):
    run = make_run()
    accuracy, loss = evaluate(run.task)
    result = run.run()
    assert (result.accuracy[0], result.loss[0]) == (accuracy, loss)


def test_samples_per_client_and_class(make_run, tiny_task):
    """For tasks with and without class names."""
    run = make_run(task=replace(tiny_task, class_names=tuple("0123456789")))
    labels = tiny_task.train.labels.numpy()
    counts = run.run().split_counts
    wanted = [[(labels[own] == c).sum() for c in range(10)] for own in run.samples]
    np.testing.assert_array_equal(counts, wanted)
    bare = make_run().run()
    np.testing.assert_array_equal(bare.split_counts[:, 0], counts.sum(1))
    assert bare.class_names == ("all",)


@pytest.mark.slow
def test_the_dataset_has_every_measure(make_run):
    run = make_run(cohort_size=3)
    found = simulate(run.scenario, rule="raflora", seed=[5, 6])
    result = run.run()
    for name in ("cohort", "dropped", "amplitude", "update_energy", "angle", "client_weight"):
        np.testing.assert_array_equal(found[name].sel(seed=5), getattr(result, name))
    assert found.amplitude.dims == ("seed", "round", "layer", "slot", "direction")
    assert found.angle.dims == ("seed", "round", "layer", "side", "level", "direction")
    assert found.level.values.tolist() == [2, 4, 8]
    assert found.side.values.tolist() == ["left", "right"]
    assert found.split_counts.dims == ("seed", "client", "class")
    assert found.cohort.dtype.kind == "i"
    assert found.dropped.dtype == bool
    assert "counterfactual_energy" not in found
