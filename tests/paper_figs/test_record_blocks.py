"""Generated blocks of the documents: rendered from a record, or refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from record_cases import (
    AGGREGATION,
    CALIBRATION,
    CONFORMANCE,
    FAULTS,
    FOLDERS,
    LARGE,
    MATRIX,
    MUTATION,
    RIVALS,
    SPECTRAL,
    SWEEP,
    TEMPLATE,
    TRAINING,
)

from analysis.claims import CLAIMS, with_texts
from analysis.claims.report import (
    claim_tables,
    conjecture_table,
    digits_table,
    theme_table,
    verdict_table,
)
from paper_figs import documents
from paper_figs.check_tables import (
    broken_table,
    conformance_line,
    faults_table,
    mutation_table,
    suite_table,
)
from paper_figs.files import FROM_DATA

SMALL = """<!-- verdicts: generated -->
<!-- end -->

<!-- digits: generated -->
<!-- end -->
"""


def blocks(report: dict[str, Any]) -> dict[str, str]:
    return {"verdicts": verdict_table(report), "digits": digits_table(report)}


def render(text: str, report: dict[str, Any]) -> str:
    return documents.render({"page.md": text}, blocks(report))["page.md"]


def test_blocks_are_replaced_and_the_rest_is_kept(report: dict[str, Any]) -> None:
    old = "before\n\n" + SMALL.replace("-->\n<!-- end", "-->\nold table\n<!-- end", 1) + "after\n"
    text = render(old, report)
    assert text == (
        f"before\n\n<!-- verdicts: generated -->\n{verdict_table(report)}\n<!-- end -->\n\n"
        f"<!-- digits: generated -->\n{digits_table(report)}\n<!-- end -->\nafter\n"
    )
    assert render(text, report) == text


def test_a_backslash_in_a_statement_is_kept(report: dict[str, Any]) -> None:
    report["claims"][0]["statement"] = r"\rho at \1."
    assert r"\rho at \1." in render(SMALL, report)


@pytest.mark.parametrize("name", ["verdicts", "digits"])
def test_a_missing_block_is_refused(report: dict[str, Any], name: str) -> None:
    with pytest.raises(SystemExit, match=f"expected a block '<!-- {name}: generated"):
        render(SMALL.replace(f"<!-- {name}: generated -->\n<!-- end -->\n", ""), report)


def test_a_block_that_nothing_generates_is_refused(report: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match=r"page\.md: expected no block '<!-- other: generated"):
        render(SMALL + "<!-- other: generated -->\n<!-- end -->\n", report)


def test_blocks_may_be_in_any_document_and_in_several(report: dict[str, Any]) -> None:
    verdicts, digits = SMALL.split("\n\n")
    made = documents.render({"a": verdicts, "b": digits, "c": digits}, blocks(report))
    assert verdict_table(report) in made["a"]
    assert made["b"] == made["c"]
    assert digits_table(report) in made["b"]


def test_the_conformance_tables_count_what_was_caught_and_hide_nothing() -> None:
    text = "\n".join(f(CONFORMANCE) for f in (conformance_line, suite_table, broken_table))
    assert "36 laws, 12,345 cases tried. Of 2 deliberately broken rules" in text
    assert "1 fail exactly the checks named for their bug; 2 healthy ones fail 1." in text
    assert "| `fedavg` | 30 | 2 | 0 | 4 | 9,000 |" in text
    assert "`dense`" not in text
    assert r"| `a \| b` forgotten. | exact |" in text
    assert "| Nothing much. | linear (not as named) |" in text


def test_the_table_of_faults_sums_trials_and_hides_no_failure() -> None:
    text = faults_table(FAULTS)
    assert "| Nothing is lost. | `faults/test_kills.py` | 25 kills | kept in all |" in text
    hidden = "| Nothing is hidden. | `peft/test_files.py` | 2,000 files | broken in 1 of 1 tests |"
    assert hidden in text


def test_the_table_of_planted_faults_counts_by_folder_and_names_survivors() -> None:
    text = mutation_table(MUTATION)
    assert "| `a` | 2 | 2 | 1 |\n| `b/c` | 1 | 0 | 0 |\n| all | 3 | 2 | 1 |" in text
    assert text.endswith("Survivors: fault 2. Repeat: `python plant.py`.")


def test_a_block_without_its_end_is_refused(report: dict[str, Any]) -> None:
    unfinished = SMALL.replace("\n<!-- end -->", "", 1)
    with pytest.raises(SystemExit, match="after every generated block"):
        render(unfinished, report)


def test_the_recorded_claims_are_those_of_the_code() -> None:
    path = documents.RECORD / "report.json"
    recorded = {c["id"]: c for c in json.loads(path.read_text())["claims"]}
    claims = {claim.id: claim for claim in CLAIMS}
    assert not set(recorded) - set(claims)
    for name, entry in recorded.items():
        assert (entry["kind"], entry["fidelity"]) == (claims[name].kind, claims[name].fidelity)
        assert len(entry["prediction"]) == len(claims[name].quantities)
        assert {c for c in entry if c.endswith("_control")} == set(claims[name].controls)


def at_seed(report: dict[str, Any], seed: int) -> dict[str, Any]:
    return report | {"environment": report["environment"] | {"seed": seed}}


@pytest.fixture
def house(tmp_path: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with a README and a verification's results."""
    (tmp_path / "README.md").write_text(TEMPLATE)
    figures = tmp_path / "results" / "verify" / "figures"
    figures.mkdir(parents=True)
    (figures.parent / "report.json").write_text(json.dumps(at_seed(report, 2026)))
    bench = tmp_path / "results" / "bench"
    bench.mkdir()
    (bench / "spectral.json").write_text(json.dumps(SPECTRAL))
    (bench / "matrix.json").write_text(json.dumps(MATRIX))
    (bench / "aggregation.json").write_text(json.dumps(AGGREGATION))
    (bench / "large_aggregates.json").write_text(json.dumps(LARGE))
    (bench / "peft_folders.json").write_text(json.dumps(FOLDERS))
    (bench / "training.json").write_text(json.dumps(TRAINING))
    (bench / "rivals.json").write_text(json.dumps(RIVALS))
    (bench / "sweep.json").write_text(json.dumps(SWEEP))
    (bench / "conformance.json").write_text(json.dumps(CONFORMANCE))
    (bench / "mutation.json").write_text(json.dumps(MUTATION))
    (bench / "calibration.json").write_text(json.dumps(CALIBRATION))
    (bench / "faults.json").write_text(json.dumps(FAULTS))
    for name in FROM_DATA:
        (figures / f"{name}.png").write_bytes(b"png")
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.setattr(documents, "RECORD", tmp_path / "results" / "recorded")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["record", *arguments])
    documents.main()


def test_seeds_that_checks_are_built_on_are_not_recorded(
    house: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (house / "results" / "verify" / "report.json").write_text(json.dumps(at_seed(report, 9)))
    with pytest.raises(SystemExit, match="built on seeds 0 to 9"):
        run(monkeypatch)
    assert not (house / "results" / "recorded").exists()


def test_a_recorded_readme_passes_its_check(
    house: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch)
    text = (house / "README.md").read_text()
    worded = with_texts(report)  # numbers of the record, texts of the code
    for table in (theme_table, conjecture_table):
        assert table(worded) in text
    assert claim_tables(worded, "proofs.md") in text
    assert documents.evidence_table(worded) in text
    assert documents.theorem_pages() in text
    assert "What staircase states." not in text
    theorems = [claim for claim in report["claims"] if claim["kind"] == "theorem"]
    held = sum(claim["verdict"] == "supported" for claim in theorems)
    assert f"**{held} of {len(theorems)} theorems supported.** Of " in text
    assert documents.rules_table() in text
    assert sorted(p.name for p in (house / "results" / "recorded").iterdir()) == [
        *("aggregation.json", "breakdown.png", "calibration.json", "conformance.json"),
        *("digits.png", "energies.png", "faults.json", "large_aggregates.json", "ledger.png"),
        *("matrix.json", "mutation.json", "participation.png", "peft_folders.json", "phase.png"),
        *("report.json", "rivals.json"),
        *("settling.png", "spectral.json", "sweep.json", "training.json"),
    ]
    assert "| 9 x 9 | 500 ms [500, 500] | 1.1x | 2x | not measured | 300x, one run |" in text
    assert "| 2 | 0.50 s [0.50, 0.50] | 0.50 s [0.50, 0.50] |" in text
    assert "| qr / gram | >= 2 | 2.00 | met |" in text
    large = "| 9 x 9 | 3, 2,000 | flat | 500 ms [500, 500] | 1.00x | 1.00x | 1e-07 | 1e+00, 1e-01 |"
    assert large in text
    assert "| 8 | 0.50 s [0.50, 0.50] | 0.50 s [0.50, 0.50] | 0.50 s | 1e-07 |" in text
    assert "Measured on: a processor" in text
    assert text.count("GPU: not measured.") == 2
    assert "| d = 9 | 2 | 8 | 500 ms [500, 500] | wall | 1x | 4x | 2x |" in text
    assert "| 2 | 50 ms [50, 50] | 50 ms [50, 50] | wall | 1x |" in text
    assert "| loop / stacked | >= 2 | 4.00 | met |" in text
    assert "| d = 9 | 1 | 2 | 0.5 s [0.5, 0.5] | 0.2x [0.2, 0.2] | not installed |" in text
    assert "| theirs | one by one | torch 2 | 0.5 to 0.5 s | – | 2e-07 |" in text
    assert (
        "| many seeds of few rows | 2, 6,000, 9 | 500 runs/s "
        "| 1.20x [0.60, 1.50] | 2.40x [1.20, 3.00] | 25 ms (2.0%) | none |" in text
    )
    assert "Measured on: a processor, 4 cores." in text
    assert "| mean | normal | 8 | 5,000 | 1.2 | 5 ✗ | – |" in text
    assert "| mean | normal | 8 to 32 | 3 | 400 | 5% | 1.2 |" in text
    assert "In 6 of 200 repetitions (3%, 95% interval 5% to 7.5%)" in text
    assert "| `one` | 2 | 90 | 0.0001 | 0.25 |" in text
    assert "| `two` |" not in text
    assert "| mean | normal | 8 | 3 4 | 1.2 | 0.5 |" in text
    assert "verify --seed 2026` (1.5 minutes on 2 cores)." in text
    run(monkeypatch, "--check")
    assert (house / "README.md").read_text() == text


def test_a_gpu_table_is_shown_if_measured(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, bench in (("aggregation", AGGREGATION), ("training", TRAINING)):
        path = house / "results" / "bench" / f"{name}-cuda.json"
        path.write_text(json.dumps({**bench, "hardware": "an accelerator"}))
    run(monkeypatch)
    text = (house / "README.md").read_text()
    assert text.count("Measured on: an accelerator") == 2
    assert "not measured." not in text


def test_a_missing_bench_is_noticed(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch)
    (house / "results" / "recorded" / "aggregation.json").unlink()
    with pytest.raises(FileNotFoundError):
        run(monkeypatch, "--check")


def test_a_stale_readme_fails_its_check_and_is_not_touched(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch)
    stale = (house / "README.md").read_text().replace("supported", "refuted", 1)
    (house / "README.md").write_text(stale)
    with pytest.raises(SystemExit, match="make record"):
        run(monkeypatch, "--check")
    assert (house / "README.md").read_text() == stale


@pytest.mark.parametrize("missing", ["digits", "full effort"])
def test_a_partial_verification_is_not_recorded(
    house: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "digits":
        del report["digits"]
    else:
        report["environment"]["quick"] = True
    (house / "results" / "verify" / "report.json").write_text(json.dumps(report))
    with pytest.raises(SystemExit, match="full report"):
        run(monkeypatch)
    assert not (house / "results" / "recorded" / "report.json").exists()
    assert (house / "README.md").read_text() == TEMPLATE
