"""Fine-tuning under external rules: each has its own state, which survives a stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from run_cases import TINY

from fedlora_sim import simulate
from fedlora_sim.finetune.checkpoints import load_state
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.rules import Aggregated, Properties, registry
from fedlora_sim.tolerances import relative

SEEN: list[tuple[str, dict[str, torch.Tensor]]] = []


@dataclass(frozen=True)
class Moving:
    """FedAvg with a velocity, and a count of rounds that has no dimensions."""

    beta: float = 0.5
    name: ClassVar[str] = "moving"
    source: ClassVar[str] = "a test"
    properties: ClassVar[Properties] = Properties()

    def step(self, updates, weights, context, state):
        SEEN.append((self.name, dict(state)))
        mean = sum(w / sum(weights) * u.delta() for w, u in zip(weights, updates, strict=True))
        last = context.previous.delta()
        velocity, count = mean - last, torch.ones((), dtype=torch.int64)
        if state:
            velocity, count = velocity + self.beta * state["velocity"], count + state["count"]
        adapter = LoRAFactors.from_delta(last + velocity, context.r_max)
        return Aggregated(adapter), {"velocity": velocity, "count": count}


@dataclass(frozen=True)
class Other(Moving):
    """Another rule with the same state."""

    name: ClassVar[str] = "other"


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


def test_without_velocity_it_is_fedavg(tiny_task):
    found, wanted = (
        simulate(TINY, rule=rule, seed=5, task=tiny_task) for rule in (Moving(beta=0.0), "fedavg")
    )
    gap = np.abs(found.energy - wanted.energy).max()
    assert gap <= relative("training") * wanted.energy.max()


def test_the_state_of_every_module_continues(make_run):
    run = make_run(Moving())
    run.run()
    modules = run.task.target_modules
    assert len(SEEN) == 3 * len(modules)
    counts = [int(state.get("count", torch.tensor(0))) for _, state in SEEN]
    assert counts == [t for t in range(3) for _ in modules]
    assert {int(run.state.rule_state(name)["count"]) for name in modules} == {3}


@pytest.mark.slow
def test_compared_rules_get_no_state_of_the_run(make_run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_RULES", {**registry._RULES, "other": Other})
    plain, asked = make_run(Moving()), make_run(Moving(), counterfactuals=True)
    wanted = plain.run()
    SEEN.clear()
    found = asked.run()
    assert found.compared[:1] == ("moving",)
    assert "other" in found.compared
    modules = len(asked.task.target_modules)
    own = [bool(state) for name, state in SEEN if name == "moving"]
    assert own == [
        t > 0 for t in range(3) for _ in range(2 * modules)
    ]  # of the round, and of the comparison
    assert [bool(state) for name, state in SEEN if name == "other"] == [False] * 3 * modules
    np.testing.assert_array_equal(found.singular_values, wanted.singular_values)
    energy = found.counterfactual_energy
    np.testing.assert_array_equal(energy[1:, 0], found.singular_values[1:] ** 2)
    for name in asked.state.kept:
        for key, x in asked.state.rule_state(name).items():
            assert torch.equal(x, plain.state.rule_state(name)[key])


class StoppedError(Exception):
    """The run is stopped from outside."""


@dataclass
class Stop:
    """A progress callback that stops a run after a number of rounds."""

    rounds: int
    calls: list[float] = field(default_factory=list)

    def __call__(self, done: float) -> None:
        self.calls.append(done)
        if len(self.calls) > self.rounds:
            raise StoppedError


@pytest.mark.slow
@pytest.mark.parametrize("counterfactuals", [False, True])
def test_a_stopped_run_continues_with_its_state(tiny_task, tmp_path, counterfactuals):
    scenario = TINY.replace(cohort_size=4, counterfactuals=counterfactuals)
    given: dict[str, Any] = {"rule": Moving(), "seed": 5, "task": tiny_task}
    with pytest.raises(StoppedError):
        simulate(scenario, **given, checkpoints=tmp_path, on_progress=Stop(2))
    kept = load_state(tmp_path / "seed-5", 2, torch.device("cpu")).kept
    assert set(kept) == set(tiny_task.target_modules)
    for state in kept.values():
        assert int(state["count"]) == 2
        assert (state["count"].dtype, state["count"].shape) == (torch.int64, ())
    found = simulate(scenario, **given, checkpoints=tmp_path)
    assert found.identical(simulate(scenario, **given))


def test_a_run_may_be_run_again_from_its_start(make_run):
    run = make_run(Moving())
    first, again = run.run(), run.run()
    np.testing.assert_array_equal(first.singular_values, again.singular_values)
