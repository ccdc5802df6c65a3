"""Sweeps on Dask: the documented SLURM cluster, and faults of workers and schedulers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sweep_cases import QUICK, SMALL, contents, swept

from fedlora_sim.errors import InputError
from fedlora_sim.rules.fedavg import FedAvg
from fedlora_sim.rules.registry import _RULES, register
from fedlora_sim.sweep import cluster, run, store, work
from fedlora_sim.sweep.cluster import on_cluster
from fedlora_sim.sweep.grid import read_grid
from fedlora_sim.sweep.plan import plan
from fedlora_sim.sweep.run import Engine
from fedlora_sim.sweep.store import versions_of

distributed = pytest.importorskip("distributed")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def client() -> Iterator[Any]:
    """Yield a scheduler and two workers as threads of this process, which show errors at once."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as local,
        distributed.Client(local) as connected,
    ):
        yield connected


@pytest.mark.slow
def test_workers_write_the_bytes_of_the_serial_run(tmp_path: Path, client: Any) -> None:
    swept(SMALL, tmp_path / "serial")
    engine = Engine(scheduler=client.scheduler.address)
    report = swept(SMALL, tmp_path / "dask", engine=engine)
    assert report.made == report.tasks > 2
    assert contents(tmp_path / "dask") == contents(tmp_path / "serial")


def test_a_client_of_dask_nearby_does_not_disturb_the_serial_sweep(
    tmp_path: Path, client: Any
) -> None:
    assert swept(SMALL, tmp_path / "s").made > 2
    assert distributed.get_client() is client


@pytest.mark.slow
def test_more_tasks_than_the_scheduler_holds_at_a_time(
    tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WINDOW", 2)
    engine = Engine(scheduler=client.scheduler.address)
    report = swept(SMALL, tmp_path / "s", engine=engine, seconds=0.001)
    assert report.made == report.tasks > 4


def test_a_worker_that_does_not_see_the_folder_is_refused(tmp_path: Path, client: Any) -> None:
    tasks = plan(read_grid(SMALL).rows, QUICK)
    with pytest.raises(InputError, match="out="):
        list(on_cluster(tasks, tmp_path / "elsewhere", client))


def test_a_worker_with_other_code_is_refused(tmp_path: Path) -> None:
    (task, *_) = plan(read_grid(SMALL).rows, QUICK)
    theirs = {**versions_of([task]), "code": "0123456789ab"}
    with pytest.raises(InputError, match=r"code='.*'0123456789ab' for the worker on"):
        work.do_task(task, tmp_path, theirs)


def test_a_full_disk_of_a_worker_ends_the_sweep(
    tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(work, "put_task", full)
    with pytest.raises(OSError, match="No space left"):
        swept(SMALL, tmp_path / "s", engine=Engine(scheduler=client.scheduler.address))


def test_a_rule_that_workers_do_not_find_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(FedAvg):
        name = "own_of_test"

    register(Own)
    try:
        tables = {**SMALL, "grid": {"rule": ["own_of_test"]}}
        with pytest.raises(InputError, match="rule='own_of_test'"):
            swept(tables, tmp_path / "s", engine=Engine(workers=2))
        swept(tables, tmp_path / "s")
        assert len(store.rule_version("own_of_test")) == 12
    finally:
        del _RULES["own_of_test"]
        store.rule_version.cache_clear()


@pytest.mark.slow
def test_every_gpu_has_a_worker_that_sees_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.gpu_client(["3", "5"]) as connected:
        seen = connected.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        threads = connected.run(lambda dask_worker: dask_worker.state.nthreads)
    assert sorted(seen.values()) == ["3", "5"]
    assert set(threads.values()) == {1}
    monkeypatch.setattr(run, "visible_gpus", lambda: ["0"])
    report = swept(SMALL, tmp_path / "s", engine=Engine(gpus=True))
    assert report.made == report.tasks


def test_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cluster.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert cluster.visible_gpus() == ["4", "7"]


def test_the_documented_slurm_cluster_has_jobs_of_one_worker() -> None:
    """The options of the page's example, without the jobs."""
    jobqueue = pytest.importorskip("dask_jobqueue")
    snippets = re.findall(
        r"```py\n(.*?)```", (ROOT / "docs" / "sweeps.md").read_text(), flags=re.DOTALL
    )
    (snippet,) = (text for text in snippets if "SLURMCluster" in text)
    given: dict[str, Any] = {}
    exec(snippet.partition("with ")[0], given)
    with jobqueue.SLURMCluster(
        **given["options"], **given["one_thread"], scheduler_options={"dashboard_address": ":0"}
    ) as made:
        script = made.job_script()
    for line in ("-p gpu", "--gpus=1", "-t 04:00:00", "--cpus-per-task=1", "--mem=8G"):
        assert f"#SBATCH {line}" in script
    assert "export OMP_NUM_THREADS=1" in script
    assert "--nthreads 1" in script
    assert "--nworkers" not in script


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"scheduler='tcp://127.0.0.1:9'"):
        swept(SMALL, tmp_path / "s", engine=Engine(scheduler="tcp://127.0.0.1:9"))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(cluster.importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"pip install 'fedlora-sim\[distributed\]'"):
        swept(SMALL, tmp_path / "s", engine=Engine(scheduler="tcp://127.0.0.1:9"))
