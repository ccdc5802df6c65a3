"""The planted faults fit the current code, and the harness detects caught ones and survivors."""

from __future__ import annotations

from dataclasses import replace

import plant
import pytest
from faults import FAULTS, Fault


def test_every_fault_fits_the_code():
    for fault in FAULTS:
        source = (plant.ROOT / fault.path).read_text(encoding="utf-8")
        assert plant.planted(source, fault) != source, fault.name
        tests = [(plant.ROOT / name).read_text(encoding="utf-8") for name in fault.test_files]
        assert any(f"def {fault.catcher}(" in text for text in tests), fault.name


def test_names_are_unique():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Return a project of one function with one test."""
    monkeypatch.setattr(plant, "ROOT", tmp_path)
    (tmp_path / "small.py").write_text("def double(x):\n    return 2 * x + 0 * x\n")
    test = "from small import double\n\ndef test_double():\n    assert double(3) == 6\n"
    (tmp_path / "test_code.py").write_text(test)
    return Fault("wrong", "small.py", "2 * x", "3 * x", ("test_code.py",), "test_double")


@pytest.mark.slow
def test_a_fault_is_caught_or_survives_and_leaves_the_copy_unchanged(small, tmp_path):
    before = (tmp_path / "small.py").read_text()
    found = plant.try_fault(small, tmp_path)
    assert (found["result"], found["as_expected"]) == ("caught", True)
    assert found["failed"] == ["test_double"]
    harmless = replace(small, old="0 * x", new="1 * x - x")
    assert plant.try_fault(harmless, tmp_path)["result"] == "survived"
    assert (tmp_path / "small.py").read_text() == before


def test_a_fault_that_fits_nowhere_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match="occurs 0 times"):
        plant.try_fault(replace(small, old="4 * x"), tmp_path)
