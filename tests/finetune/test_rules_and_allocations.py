"""The round loop under every rule and allocation: the reference, corrected bases, a frozen A."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from designs import each_value, pairwise
from simulator_cases import ALL_RULES, CANONICAL

from fedlora_sim import Scenario, simulate
from fedlora_sim.finetune import run as finetune_run
from fedlora_sim.finetune.exchange import gradient_norms
from fedlora_sim.finetune.run import evaluate
from fedlora_sim.finetune.stacked import find_linear
from fedlora_sim.reference.simulators import importance_reference, loss_of
from fedlora_sim.reference.training import training_reference
from fedlora_sim.tasks.digits import DigitsTask
from fedlora_sim.tolerances import relative

CASES = [
    (rule, allocation)
    for rule in ALL_RULES
    for allocation in ("svd", "random", "importance")
    if rule != CANONICAL or allocation == "svd"
]
ALPHA = {"cohort_size": 4, "sampling": "with_replacement", "lora_alpha": 6.0}
RSLORA = {
    "cohort_size": 3,
    "sampling": "bernoulli",
    "lora_alpha": 4.0,
    "use_rslora": True,
    "optimizer": "sgd",
    "learning_rate": 0.1,
}


def assert_reference(run, rule):
    """Compare the ranks of every round, and the final adapter and update of every module."""
    ranks = run.run().client_rank
    states = training_reference(run.scenario, run.task, rule, run.seed)
    np.testing.assert_array_equal(ranks, [state.ranks for state in states])
    deltas, last = run.state.deltas(), states[-1]
    for name, (lora_a, lora_b) in last.adapters.items():
        wanted, adapter = last.delta(name), run.state.adapters[name].delta().numpy()
        bound = relative("training") * np.linalg.norm(wanted)
        assert np.linalg.norm(deltas[name].numpy() - wanted) <= bound
        assert np.linalg.norm(adapter - lora_b @ lora_a) <= bound


@pytest.mark.slow
@each_value(
    rule=ALL_RULES,
    allocation=("svd", "random", "importance"),
    only=lambda rule, allocation: (rule, allocation) in CASES,
)
def test_alpha_over_r_and_a_sampled_cohort_are_the_reference(make_run, rule, allocation):
    assert_reference(make_run(rule, allocation=allocation, **ALPHA), rule)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALL_RULES)
def test_rslora_and_sgd_are_the_reference(make_run, rule):
    assert_reference(make_run(rule, **RSLORA), rule)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["raflora", "rbla", "ffa"])
@pytest.mark.parametrize("allocation", ["svd", "random", "importance"])
def test_lost_directions_are_the_reference(make_run, rule, allocation):
    lossy = {"cohort_size": 1, "empty_partition": "zero", "rounds": 5}
    assert_reference(make_run(rule, allocation=allocation, **lossy), rule)


PRUNED = {"pruning_decay": 0.6, "pruning_penalty": 0.5, "rounds": 5, "learning_rate": 0.03}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "allocation"),
    [("raflora", "svd"), ("raflora", "random"), ("hetlora", "svd"), ("fedex", "importance")],
)
def test_pruned_clients_are_the_reference(make_run, rule, allocation):
    run = make_run(rule, allocation=allocation, **ALPHA, **PRUNED)
    assert_reference(run, rule)
    assert run.ranks != list(run.scenario.ranks)


SPARSE = {"initializer": "slora", "slora_density": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "allocation"),
    [("raflora", "svd"), ("fedavg", "random"), ("flora", "svd"), ("ffa", "random")],
)
def test_runs_that_start_sparse_are_the_reference(make_run, rule, allocation):
    assert_reference(make_run(rule, allocation=allocation, **ALPHA, **SPARSE), rule)


@pytest.mark.slow
def test_everything_at_once_is_the_reference(make_run):
    assert_reference(make_run(allocation="importance", **{**PRUNED, **RSLORA, **SPARSE}), "raflora")


class Watch:
    """Records inputs and outputs of every round's local training."""

    def __init__(self, monkeypatch):
        self.calls = []
        original = finetune_run.train_on_plan

        def train_on_plan(task, stack, *args):
            trained = original(task, stack, *args)
            self.calls.append((task, stack.adapters, trained.adapters))
            return trained

        monkeypatch.setattr(finetune_run, "train_on_plan", train_on_plan)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["flora", "fedex", "fedex:residual_rank=1"])
def test_clients_train_on_the_corrected_model(make_run, monkeypatch, rule):
    """The base correction is added to the weights once, and the shared model is unchanged."""
    watch, run = Watch(monkeypatch), make_run(rule)
    before = {n: p.clone() for n, p in run.task.model.named_parameters()}
    bases = []
    original = run._aggregate

    def aggregate(*args):
        results = original(*args)
        bases.append({name: result.base.dense() for name, result in results.items()})
        return results

    run._aggregate = aggregate
    run.run()
    gathered = {name: torch.zeros_like(before[f"{name}.weight"]) for name in bases[0]}
    for (task, _, _), more in zip(watch.calls, bases, strict=True):
        for name, correction in gathered.items():
            seen = find_linear(task.model, name).weight - before[f"{name}.weight"]
            gap = (seen - correction).norm()
            assert gap <= relative("reduction") * find_linear(task.model, name).weight.norm()
            correction += more[name]
    assert len(watch.calls) == 3
    for name, parameter in run.task.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_flora_starts_every_round_afresh_and_moves_the_base_alone(make_run, monkeypatch):
    watch, run = Watch(monkeypatch), make_run("flora", lora_alpha=6.0)
    result = run.run()
    highest = int(np.argmax(run.scenario.ranks))
    for name in run.task.target_modules:
        drawn = [adapters[name][0][highest] for _, adapters, _ in watch.calls]
        for (_, adapters, _), common in zip(watch.calls, drawn, strict=True):
            lora_a, lora_b = adapters[name]
            assert not lora_b.any()
            for k, rank in enumerate(run.scenario.ranks):
                assert torch.equal(lora_a[k, :rank], common[:rank])
        for one, other in itertools.combinations(drawn, 2):
            assert not (one == other).any(), "drawn anew every round"
    assert not any(f.delta().any() for f in run.state.adapters.values())
    assert (result.singular_values[-1] > 0).all()
    assert evaluate(run.state.merged(run.task))[1] == pytest.approx(
        result.loss[-1], rel=relative("reduction")
    )


@pytest.mark.slow
@pairwise(
    allocation=["svd", "random", "importance"], start=[{}, SPARSE], law=[{}, {"cohort_size": 2}]
)
def test_the_a_of_ffa_never_moves_by_a_bit(make_run, monkeypatch, allocation, start, law):
    """In all clients and rounds, for all scalings, and after rows that no client sent."""
    watch = Watch(monkeypatch)
    run = make_run("ffa", allocation=allocation, lora_alpha=6.0, **start, **law)
    common = {name: start.lora_A.clone() for name, start in run.received.fresh.items()}
    for name, adapter in run.state.adapters.items():
        alive = ~adapter.lost_columns()
        assert torch.equal(adapter.lora_A[alive], common[name][alive])
    cohorts, held = run.cohorts, []
    original = run.received.positions

    def positions(*arguments):
        found = original(*arguments)
        held.append({name: [own.clone() for own in rows] for name, rows in found.items()})
        return found

    run.received.positions = positions
    run.run()
    for (clients, _), (_, adapters, trained), received in zip(
        cohorts, watch.calls, held, strict=True
    ):
        for name in common:
            for k, own in zip(range(len(clients)), received[name], strict=True):
                for lora_a in (adapters[name][0][k], trained[name][0][k]):
                    assert torch.equal(lora_a[: len(own)], common[name][own])
                    assert not lora_a[len(own) :].any()


@pytest.mark.parametrize("frozen_a", [False, True])
def test_importance_is_each_clients_own_gradient(make_run, tiny_task: DigitsTask, frozen_a):
    """Equal to that of one client at a time and to the slope of the loss."""
    run = make_run("ffa" if frozen_a else "raflora", **SPARSE)
    run.run()
    received = run.received.whole(run.state)
    everything = run.received.everything(run.state, len(run.samples))
    norms = gradient_norms(tiny_task, everything, run.samples, run.scenario)
    weights = {n: find_linear(tiny_task.model, n).weight for n in received}
    pairs = {n: (f.lora_A.numpy(), f.lora_B.numpy()) for n, f in received.items()}
    for k, own in enumerate(run.samples):
        wanted = importance_reference(tiny_task, weights, pairs, own, frozen_a=frozen_a)
        for name, norm in wanted.items():
            gap = np.linalg.norm(norms[name][k].numpy() - norm)
            assert gap <= relative("factorization") * np.linalg.norm(norm)
    assert_slope(tiny_task, weights, received, run.samples[0], norms, frozen_a)


def assert_slope(task, weights, received, samples, norms, frozen_a):
    """Check that the loss along direction 2 of one module falls by norm times step."""
    # Rounding of the loss over the step, and the square of the step, are both far below the bound.
    name, i, step = next(iter(received)), 2, 3e-5
    factors = received[name]
    lora_a, lora_b = (x.clone().requires_grad_() for x in (factors.lora_A, factors.lora_B))

    def loss(a, b):
        dense = {n: weights[n] + f.delta() for n, f in received.items()}
        return loss_of(task, {**dense, name: weights[name] + b @ a}, samples)

    on_a, on_b = torch.autograd.grad(loss(lora_a, lora_b), [lora_a, lora_b])
    size = float(norms[name][0, i])
    with torch.no_grad():
        moved = []
        for sign in (1, -1):
            a, b = lora_a.clone(), lora_b.clone()
            b[:, i] += sign * step * on_b[:, i] / size
            if not frozen_a:
                a[i] += sign * step * on_a[i] / size
            moved.append(float(loss(a, b)))
    assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(size, rel=relative("training"))


@pytest.mark.parametrize("allocation", ["random", "importance"])
def test_clients_receive_the_components_that_their_positions_name(
    make_run, monkeypatch, allocation
):
    watch, run = Watch(monkeypatch), make_run("rbla", allocation=allocation)
    seen, original = [], run.received.positions

    def positions(*arguments):
        found = original(*arguments)
        seen.append((found, run.state.adapters))
        return found

    run.received.positions = positions
    run.run()
    for t, ((found, adapters), (_, sent, _)) in enumerate(zip(seen, watch.calls, strict=True)):
        for name, rows in found.items():
            for k, (own, rank) in enumerate(zip(rows, run.scenario.ranks, strict=True)):
                assert own.tolist() == sorted(set(own.tolist()))
                assert len(own) == rank
                if t:  # in round 0 every direction is lost, and is sent as LoRA initializes it
                    lora_a, lora_b = (factor[k] for factor in sent[name])
                    assert torch.equal(lora_a[:rank], adapters[name].lora_A[own])
                    assert torch.equal(lora_b[:, :rank], adapters[name].lora_B[:, own])
    layers = [tuple(rows[0].tolist()) for rows in seen[-1][0].values()]
    # Random directions depend on the client, important ones also on the layer.
    assert (len(set(layers)) == 1) == (allocation == "random")


@pytest.mark.slow
@each_value(
    rule=ALL_RULES,
    allocation=("svd", "random", "importance"),
    only=lambda rule, allocation: (rule, allocation) in CASES,
)
def test_single_precision_on_the_real_task_under_every_rule_and_allocation(rule, allocation):
    scenario = Scenario("2x3,8x2", fidelity="training", rounds=2, local_steps=3, cohort_size=3)
    run = simulate(scenario.replace(allocation=allocation), rule=rule, seed=0)
    assert np.isfinite(run.loss).all()
    assert (run.energy[0, -1].sum() > 0).all()
    untrained = float(run.loss[0, 0])
    assert float(run.loss[0, -1]) != untrained
