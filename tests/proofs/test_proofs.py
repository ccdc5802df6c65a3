"""The proofs: complete, tied to the derivations and the closed forms, and accepted by Coq."""

from __future__ import annotations

import re

import numpy as np
import pytest

from analysis import closed_form
from analysis.claims import CLAIMS
from analysis.proofs import THEOREMS, all_names, certificates, derived, instances, prove
from analysis.proofs import coq as compiler
from analysis.proofs.theorems import CERTIFICATES, claims_of, theorems_of
from fedlora_sim import Scenario
from fedlora_sim.errors import InputError
from fedlora_sim.tolerances import relative

GENERATED = {"Derived", "Instances", "Certificates"}
CLOSE = 1e-14
"""The exact instances agree with the closed forms to this."""


def test_nothing_is_assumed_or_left_out():
    for name, text in compiler.files().items():
        code = compiler._COMMENT.sub("", text)
        found = re.findall(
            r"\b(Admitted|admit|give_up|Abort|Axioms?|Parameters?|Conjecture|bypass_check"
            r"|Unset (?:Guard|Positivity|Universe)\w*)\b",
            code,
        )
        assert not found, name
        assert code.count("Qed.") == len(re.findall(r"^(?:Theorem|Lemma|Example)\b", code, re.M))


def test_every_theorem_is_listed_with_a_sentence_and_its_claims():
    proved = {name for name in all_names() if name.partition(".")[0] not in GENERATED}
    assert proved == set(THEOREMS)
    ids = {claim.id for claim in CLAIMS}
    for theorem in THEOREMS.values():
        assert theorem.sentence.endswith("."), theorem.name
        assert "\n" not in theorem.sentence
        assert theorem.assumptions
        assert set(theorem.claims) <= ids, theorem.name
    assert set(certificates.CERTIFIED) <= ids


@pytest.mark.slow
@pytest.mark.parametrize("made", [derived, instances, certificates], ids=lambda made: made.__name__)
def test_generated_files_are_what_the_expressions_give(made):
    assert made.FILE.read_text(encoding="utf-8") == made.text()


def test_every_definition_is_used_or_certified():
    used = "\n".join(text for name, text in compiler.files().items() if name != "Derived")
    entries = {
        entry.replace(".", "_"): [
            name for name in derived.definitions() if name.startswith(entry.replace(".", "_"))
        ]
        for entry in derived.DEFINED
    }
    for entry, names in entries.items():
        assert any(re.search(rf"\b{name}\b", used) for name in names), entry


@pytest.mark.parametrize("instance", instances.instances()[:: instances.COUNT // 10])
def test_exact_instances_agree_with_the_closed_forms(instance):
    check_instance(instance)


@pytest.mark.design
@pytest.mark.parametrize("instance", instances.instances())
def test_all_exact_instances_agree_with_the_closed_forms(instance):
    check_instance(instance)


def check_instance(instance):
    scenario = Scenario(
        ranks=instance.ranks,
        num_samples=instance.samples,
        cohort_size=instance.cohort_size,
        gain_mean=float(instance.gain_mean),
        gain_std=float(instance.gain_std),
        drift_std=float(instance.drift_std),
        empty_partition="zero",
    )
    idle = scenario.replace(gain_mean=1.0, gain_std=0.0)
    found = np.stack(
        [
            closed_form.coverage(scenario),
            closed_form.energy_rate(idle, "fedavg"),
            closed_form.noise_gain(scenario, "fedavg"),
            1 - closed_form.energy_rate(idle, "raflora"),
            closed_form.noise_gain(scenario, "raflora"),
            closed_form.energy_rate(scenario, "fedavg"),
            closed_form.energy_floor(scenario, "fedavg"),
            closed_form.energy_rate(scenario, "raflora"),
            closed_form.energy_floor(scenario, "raflora"),
        ],
        axis=-1,
    )
    for direction in instance.directions:
        wanted = [float(value) for value in instance.numbers(direction)]
        np.testing.assert_allclose(found[direction], wanted, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("claim", certificates.CERTIFIED)
def test_certified_expressions_are_the_predictions(claim):
    (chosen,) = (c for c in CLAIMS if c.id == claim)
    exact = [float(applied.value()) for applied in certificates.CERTIFIED[claim]()]
    predicted = chosen.predict().value
    np.testing.assert_allclose(exact, predicted, rtol=relative("reduction"))
    names = [f"{CERTIFICATES}.{claim.replace('-', '_')}_{i}" for i in range(len(exact))]
    assert [name for name in all_names() if claims_of(name) == (claim,) and name in names] == names


def test_files_come_after_those_that_they_import():
    order = compiler.needed(["Strictness", "Rules"])
    assert order.index("Federation") < order.index("Strictness")
    assert order.index("Sequences") < order.index("Rules")
    assert len(order) == len(set(order))


def test_assumptions_are_read():
    printed = (
        "Axioms:\nClassicalDedekindReals.sig_forall_dec\n  : forall P : nat -> Prop,\n    x\n"
        "mine : 0 = 1\n"
    )
    found = compiler.assumptions(printed)
    assert found == ("ClassicalDedekindReals.sig_forall_dec", "mine")
    assert [compiler.is_classical(name) for name in found] == [True, False]
    assert compiler.assumptions("Closed under the global context\n") == ()


def test_unknown_theorems_are_refused(coq):
    with pytest.raises(InputError, match=r"Suppression\.nothing"):
        prove(["Suppression.nothing"])


@pytest.mark.slow
def test_coq_accepts_every_theorem(coq):
    proofs = prove(all_names(), processes=2)
    assert [proof.name for proof in proofs if not proof.proved] == []
    assert {proof.name for proof in proofs} == set(all_names())
    by_name = {proof.name: proof for proof in proofs}
    identities = [proof for proof in proofs if proof.name.startswith("Matrices.")]
    assert {proof.assumptions for proof in identities} == {()}
    assumed = {one for name in THEOREMS for one in by_name[name].assumptions}
    assert assumed <= REALS
    assert by_name["Suppression.staircase"].assumptions
    assert all(proof.seconds >= 0 for proof in proofs)
    assert sum(proof.seconds for proof in proofs) > 0


REALS = {
    "ClassicalDedekindReals.sig_forall_dec",
    "ClassicalDedekindReals.sig_not_dec",
    "FunctionalExtensionality.functional_extensionality_dep",
    "Classical_Prop.classic",
}
"""Axioms of Coq's real numbers and of Coquelicot; certificates also rest on machine numbers."""


CONTROLS = {
    "false": "Theorem wrong : 1 + 1 = 3.\nProof. reflexivity. Qed.\n",
    "assumed": "Axiom free : 1 = 2.\nTheorem wrong : 1 = 2.\nProof. exact free. Qed.\n",
    "unguarded": "#[bypass_check(guard)] Fixpoint bad (n : nat) : False := bad n.\n"
    "Theorem wrong : 1 = 2.\nProof. destruct (bad 0). Qed.\n",
    "assumed example": "Axiom free : 1 = 2.\nExample wrong : 1 = 2.\nProof. exact free. Qed.\n"
    "Example fine : 1 = 1.\nProof. reflexivity. Qed.\n",
    "admitted": "Theorem wrong : 1 = 2.\nProof. Admitted. (* Qed. *)\n",
}


@pytest.mark.parametrize("control", CONTROLS)
def test_what_is_false_assumed_or_admitted_is_not_proved(coq, control, monkeypatch):
    texts = {
        "Control": CONTROLS[control],
        "Right": "Theorem right : 1 + 1 = 2.\nProof. reflexivity. Qed.\n",
    }
    monkeypatch.setattr(compiler, "files", lambda: texts)
    wrong, right = prove(["Control.wrong", "Right.right"])
    assert not wrong.proved
    assert right.proved
    assert right.assumptions == ()


def test_output_of_another_form_is_refused():
    with pytest.raises(RuntimeError, match="unknown output"):
        compiler.assumptions("")


def test_a_claim_on_real_training_has_no_theorem():
    assert theorems_of("digits-accuracy") == ()
