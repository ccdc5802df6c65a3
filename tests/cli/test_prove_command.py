"""`fedlora-sim prove`: theorems, JSON, exit codes and one-line errors."""

from __future__ import annotations

import json
import shutil

import pytest

from analysis.proofs import INSTALL


def test_without_coq_it_says_how_to_install_it(fedlora, monkeypatch):
    monkeypatch.setattr("analysis.proofs.coq.shutil.which", lambda name: None)
    done = fedlora("prove", "--claim", "staircase")
    assert done.code == 3
    assert done.err.strip() == f"fedlora-sim: coqc is not installed; on Debian: {INSTALL}"
    assert done.out == ""


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--claim", "stairs"), "staircase"),
        (("--claim", "digits-accuracy"), "--claim"),
        (("--claim", "staircase", "--all"), "either --claim or --all"),
        (("--processes", "0"), "--processes"),
    ],
)
def test_bad_input_is_one_line(fedlora, asked, message):
    done = fedlora("prove", *asked)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert message in done.err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("coqc") is None, reason=f"no coqc: {INSTALL}")
def test_json_has_a_row_per_theorem_and_claim(fedlora):
    done = fedlora("prove", "--claim", "partition-identity", "--json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["theorems"]
    assert row.pop("seconds") >= 0
    assert row == {
        "name": "Matrices.partition_identity",
        "claim": "partition-identity",
        "proved": True,
        "assumptions": [],
    }


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("coqc") is None, reason=f"no coqc: {INSTALL}")
def test_the_table_names_assumptions(fedlora):
    done = fedlora("prove", "--claim", "collapse-bound")
    assert done.code == 0, done.err
    assert "Bound.collapse_bound" in done.out
    assert "Assumptions of Coq's library: ClassicalDedekindReals" in done.out
    assert "1 of 1 proved" in done.out
