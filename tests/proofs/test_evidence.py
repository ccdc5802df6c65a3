"""What reports and documents say of the evidence of each claim is true."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from analysis.claims import CLAIMS, with_texts
from analysis.claims.evidence import (
    DERIVED,
    anchor,
    derivations_of_claim,
    evidence,
    evidence_text,
)
from analysis.derivations.statement import MARK
from analysis.proofs import THEOREMS, all_names, theorems_of
from paper_figs.html.formulas import mathml, shown_proof
from paper_figs.html.page import claim_view

ROOT = Path(__file__).parents[2]
RECORDED = with_texts(json.loads((ROOT / "results/recorded/report.json").read_text("utf-8")))
PAGE = (ROOT / "docs/proofs.md").read_text("utf-8")


@pytest.mark.parametrize("claim", [claim.id for claim in CLAIMS])
def test_evidence_of_a_claim_exists(claim):
    kinds = evidence(claim)
    assert kinds[0] == "measured"
    assert claim in {recorded["id"] for recorded in RECORDED["claims"]}
    assert ("derived" in kinds) == (claim in DERIVED)
    for name in derivations_of_claim(claim):
        module, function = name.split(".")
        derived = getattr(importlib.import_module(f"analysis.derivations.{module}"), function)
        assert hasattr(derived, MARK)
    proved = theorems_of(claim)
    assert ("proved" in kinds) == bool(proved)
    assert {theorem.name for theorem in proved} <= set(all_names())


def test_documents_say_what_is_proved_and_link_to_it():
    table = (ROOT / "docs/claims.md").read_text("utf-8").split("## All, by theme")[1]
    rows = {
        found[1]: line
        for line in table.splitlines()
        if (found := re.match(r"\| \*\*([\w-]+)\*\*", line))
    }
    for claim in RECORDED["claims"]:
        assert f"| {evidence_text(claim['id'], 'proofs.md')} |" in rows[claim["id"]]
    headings = re.findall(r"^### ([\w.]+)$", PAGE, re.M)
    assert headings == list(THEOREMS)
    for theorem in THEOREMS.values():
        assert theorem.sentence in PAGE
        assert f"${theorem.formula}$" in PAGE
        assert anchor(theorem) == theorem.name.replace(".", "").lower()


@pytest.mark.slow
def test_the_page_links_every_proved_claim_to_its_theorems():
    for order, claim in enumerate(RECORDED["claims"]):
        view = claim_view(claim, RECORDED, order)
        assert view["evidence"] == evidence(claim["id"])
        assert [proof.name for proof in view["proofs"]] == [
            t.name for t in theorems_of(claim["id"])
        ]


@pytest.mark.parametrize("theorem", THEOREMS.values(), ids=lambda theorem: theorem.name)
def test_theorems_are_typeset(theorem):
    shown = shown_proof(theorem)
    assert (ROOT / shown.file).is_file()
    assert shown.equation == mathml(theorem.formula, display=True)
    for text in (shown.equation, shown.assumptions):
        assert not re.search(r"\\[a-zA-Z]|\$", text)
