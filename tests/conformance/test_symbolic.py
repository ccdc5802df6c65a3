"""Laws on weights decided by z3: proofs, smallest counterexamples, and what cannot be expressed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from fedlora_sim.conformance.symbolic import LAWS, SymbolicTensor, prove_weights
from fedlora_sim.errors import InputError
from fedlora_sim.rules import get_rule
from fedlora_sim.rules.base import DataWeightedRule
from fedlora_sim.rules.fedavg import FedAvg

z3 = pytest.importorskip(
    "z3", reason="z3-solver is not installed: pip install 'fedlora-sim[prove]'"
)
THIRD_PARTY = Path(__file__).parents[1] / "third_party" / "fedlora_momentum.py"


@pytest.fixture
def tempered(monkeypatch):
    """Return a rule of an external package."""
    spec = importlib.util.spec_from_file_location("fedlora_momentum", THIRD_PARTY)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fedlora_momentum", module)
    spec.loader.exec_module(module)
    return module.Tempered


def statuses(rule):
    return {proof.law: proof.status for proof in prove_weights(rule)}


@pytest.mark.parametrize("name", ["fedavg", "raflora"])
def test_declared_laws_hold_for_all_weights(name):
    assert statuses(get_rule(name)) == dict.fromkeys(LAWS, "proved")


@dataclass(frozen=True)
class Broken(FedAvg):
    """Weights that violate a law that is declared."""

    law: str = "order"

    def direction_weights(self, weights, members, norms=None):
        """Return wrong weights."""
        if self.law == "order":
            first = torch.where(weights > 0, weights, 0.0).sum(-1, keepdim=True)
            return ((weights + weights[..., :1]) / (2 * first)).unsqueeze(-1) * members
        if self.law == "scale":
            return (weights / (weights.sum(-1, keepdim=True) + 1)).unsqueeze(-1) * members
        squares = weights.square()
        return (squares / squares.sum(-1, keepdim=True)).unsqueeze(-1) * members


@pytest.mark.parametrize(
    ("law", "failed", "weights"),
    [("order", "client_order", (0, 1)), ("scale", "weight_scale", (1,))],
)
def test_a_broken_law_fails_with_the_smallest_counterexample(law, failed, weights):
    (proof,) = (p for p in prove_weights(Broken(law)) if p.law == failed)
    assert proof.status == "failed"
    assert sum(proof.counterexample["weights"]) == sum(weights)
    assert len(proof.counterexample["weights"]) == len(weights)


def test_a_law_declared_absent_gets_the_smallest_counterexample():
    @dataclass(frozen=True)
    class Squared(Broken):
        law: str = "repetition"

        @property
        def properties(self):
            return replace(super().properties, weight_repetition=False)

    found = {proof.law: proof for proof in prove_weights(Squared())}
    assert found["weight_repetition"].status == "expected"
    example = found["weight_repetition"].counterexample
    assert example == {"weights": (1, 1), "ranks": (1, 1)}
    # by hand: client 1 of weight 2 has 4/5, twice of weight 1 2/3
    assert found["weight_scale"].status == "proved"


def test_a_law_declared_absent_that_holds_fails():
    @dataclass(frozen=True)
    class Modest(FedAvg):
        @property
        def properties(self):
            return replace(super().properties, zero_weight=False, client_order=None)

    found = statuses(Modest())
    assert found["zero_weight"] == "failed"
    assert found["client_order"] == "skipped"


@pytest.mark.slow
def test_third_party_rules_are_proved(tempered):
    found = {proof.law: proof for proof in prove_weights(tempered(beta=0.5))}
    assert found["zero_weight"].status == "proved"
    assert found["weight_repetition"].status == "expected"
    assert sum(found["weight_repetition"].counterexample["weights"]) == 2


def test_what_symbols_cannot_express_is_skipped(tempered):
    assert set(statuses(tempered(beta=0.7)).values()) == {"skipped"}

    @dataclass(frozen=True)
    class Branching(DataWeightedRule):
        def direction_weights(self, weights, members, norms=None):
            return weights.unsqueeze(-1) * members if weights[0] > 1 else weights * 0

        def multiplier(self, coverage):
            return coverage

    Branching.name, Branching.source = "branching", "a test"
    assert set(statuses(Branching()).values()) == {"skipped"}


def test_symbols_compute_as_tensors_do():
    weights, members = torch.tensor([3.0, 1.0, 4.0]), torch.tensor([[1, 1], [1, 0], [1, 1]]) > 0
    for name in ("fedavg", "raflora"):
        rule = get_rule(name)
        found = rule.direction_weights(SymbolicTensor([3, 1, 4], []), members)
        exact = [[z3.simplify(value).as_fraction() for value in row] for row in found.values]
        wanted = rule.direction_weights(weights.double(), members)
        torch.testing.assert_close(
            torch.tensor([[float(x) for x in row] for row in exact], dtype=torch.float64), wanted
        )


def test_the_command_prints_proofs(fedlora):
    done = fedlora("check", "fedavg", "--prove", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["rule"] == "fedavg"
    assert [proof["law"] for proof in found["proofs"]] == list(LAWS)
    assert {proof["status"] for proof in found["proofs"]} == {"proved"}


def test_rules_with_a_step_are_refused(fedlora, here):
    shutil.copy(THIRD_PARTY, here)
    done = fedlora("check", "fedlora_momentum:Momentum", "--prove")
    assert done.code == 2
    assert "a rule that is weights per client and direction" in done.err


def test_without_z3_the_command_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "z3", None)
    with pytest.raises(InputError, match=r"fedlora-sim\[prove\]"):
        prove_weights(get_rule("fedavg"))
