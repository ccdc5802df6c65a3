"""Finished pieces on disk: stored, resumed, and dropped if they belong to other work."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest
import xarray as xr

from fedlora_sim import Scenario, run_store, simulate, storage
from fedlora_sim.run_store import RunStore
from fedlora_sim.storage import ResultFolder, write_text

CONFIGURATION = {"ranks": [2, 3], "seed": 1, "nested": {"b": 1, "a": None}}
RESULTS = ("report.md", "report.json", "data/a.nc")
DATASET = simulate(Scenario("2x2", rounds=2), seed=3)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "parts"


def filled(folder):
    store = RunStore(folder, CONFIGURATION)
    store.put_run("fedavg-3", DATASET)
    store.put_record("claim", {"verdict": "supported", "interval": [0.5, 1.0]})
    return store


def assert_kept(store):
    assert store.count() == 2
    xr.testing.assert_equal(store.get_run("fedavg-3"), DATASET)
    assert store.get_record("claim") == {"verdict": "supported", "interval": [0.5, 1.0]}


def test_no_folder_is_made_before_the_first_piece(folder):
    store = RunStore(folder, CONFIGURATION)
    assert store.count() == 0
    assert store.get_run("fedavg-3") is None
    assert store.get_record("claim") is None
    assert not folder.exists()


def test_pieces_are_kept_and_found_again_by_the_same_work(folder):
    assert_kept(filled(folder))
    reordered = dict(reversed(CONFIGURATION.items()))
    assert_kept(RunStore(folder, reordered))
    assert_kept(RunStore(str(folder), CONFIGURATION))


def test_a_label_keeps_its_last_piece(folder):
    store = filled(folder)
    store.put_record("claim", {"verdict": "refuted"})
    assert store.get_record("claim") == {"verdict": "refuted"}
    assert store.count() == 2


@pytest.mark.parametrize("change", [{"seed": 2}, {"ranks": [3, 2]}, {"extra": 1}])
def test_pieces_of_another_configuration_are_separate(folder, change):
    filled(folder)
    other = RunStore(folder, {**CONFIGURATION, **change})
    assert other.count() == 0
    assert other.get_run("fedavg-3") is None
    other.put_record("claim", {"verdict": "refuted"})
    other.clear()
    assert_kept(RunStore(folder, CONFIGURATION))


def test_pieces_of_other_code_are_not_taken(folder, monkeypatch):
    filled(folder)
    monkeypatch.setattr(run_store, "code_versions", lambda: {"code": "of another day"})
    assert RunStore(folder, CONFIGURATION).get_run("fedavg-3") is None


def test_half_written_pieces_do_not_count(folder):
    filled(folder)
    store = RunStore(folder, CONFIGURATION)
    (store.folder / ".fedavg-4.0123456789abcdef.nc.0123456789abcdef.tmp").write_bytes(b"half")
    assert_kept(store)
    assert store.get_run("fedavg-4") is None


def test_clear_drops_everything(folder):
    store = filled(folder)
    store.clear()
    assert not folder.exists()
    store.put_record("claim", {"verdict": "supported"})
    assert RunStore(folder, CONFIGURATION).count() == 1


def test_a_folder_that_is_not_a_store_is_never_deleted(tmp_path):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("three years")
    with contextlib.suppress(ValueError):
        RunStore(tmp_path, CONFIGURATION)
    assert thesis.exists()


def test_text_is_written_whole_or_not_at_all(tmp_path):
    path = write_text(tmp_path / "new" / "report.md", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["report.md"]


def test_a_reader_of_the_old_text_reads_it_to_the_end(tmp_path):
    path = write_text(tmp_path / "report.md", "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_the_fingerprint_is_that_of_the_sources(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    before = storage.source_fingerprint(tmp_path)
    assert before == storage.source_fingerprint(tmp_path)
    (tmp_path / "a.py").write_text("x = 2")
    assert before != storage.source_fingerprint(tmp_path)


def write_results(folder, number):
    """Write three results as a command does."""
    results = ResultFolder(folder, "test", force=False)
    with results.only_writer():
        results.check(RESULTS)
        with results.replace() as new:
            for name in RESULTS:
                write_text(new / name, f"{name} {number}")


@pytest.mark.parametrize("step", range(1, 9))
def test_results_that_count_already_survive_a_disk_that_runs_full(tmp_path, step, monkeypatch):
    """At every rename of a file, also after the marker names the new results."""
    write_results(tmp_path, 0)
    (tmp_path / "mine.txt").write_text("mine")
    done, replace = [], Path.replace

    def full(self, target):
        done.append(target)
        if len(done) >= step:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            write_results(tmp_path, 1)
    storage.remove_stale(tmp_path)  # by another command in the same folder
    write_results(tmp_path, 2)
    found = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {tmp_path / name for name in (*RESULTS, "mine.txt", storage.MARKER)}
    assert all((tmp_path / name).read_text() == f"{name} 2" for name in RESULTS)


def stopped(folder, monkeypatch):
    """Return a folder whose new results are valid, with only one of them in place."""
    write_results(folder, 0)
    done, replace = [], Path.replace

    def full(self, target):
        done.append(target)
        if len(done) > 5:  # three results, the marker, and the first move
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            write_results(folder, 1)


def test_a_check_knows_results_that_are_half_in_place(tmp_path, monkeypatch):
    stopped(tmp_path, monkeypatch)
    texts = {(tmp_path / name).read_text().split()[1] for name in RESULTS}
    assert texts == {"0", "1"}
    ResultFolder(tmp_path, "test", force=False).check(RESULTS)


@pytest.mark.parametrize("name", RESULTS)
def test_a_file_that_came_into_being_meanwhile_is_not_moved_over(tmp_path, name, monkeypatch):
    stopped(tmp_path, monkeypatch)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name} was changed since it was written"):
        write_results(tmp_path, 2)
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).unlink()
    write_results(tmp_path, 2)
    assert all((tmp_path / name).read_text() == f"{name} 2" for name in RESULTS)
