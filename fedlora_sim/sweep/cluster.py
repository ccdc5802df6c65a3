"""Run tasks on Dask: an existing scheduler, or one worker per GPU of this machine."""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_sim.errors import expected
from fedlora_sim.sweep.plan import SweepTask
from fedlora_sim.sweep.store import versions_of
from fedlora_sim.sweep.work import TaskResult, do_task, use_one_thread

if TYPE_CHECKING:
    from distributed import Client

WINDOW = 2000
"""Tasks at the scheduler at a time: enough for a thousand workers, few for its memory."""
CONNECT_SECONDS = 10.0


@contextmanager
def scheduler_client(address: str) -> Iterator[Client]:
    """Yield a client of a running scheduler.

    Raises:
        InputError: if the scheduler does not answer.
    """
    distributed = _library("scheduler", address, "distributed")
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise expected("scheduler", address, f"the address of a Dask scheduler ({error})") from None
    with client:
        yield client


@contextmanager
def gpu_client(gpus: Sequence[str]) -> Iterator[Client]:
    """Yield a client of one worker per GPU of this machine; each worker sees only its own GPU."""
    distributed = _library("gpus", list(gpus), "distributed")
    workers = {
        gpu: {
            "cls": distributed.Nanny,
            "options": {
                "nthreads": 1,
                "env": {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "1"},
            },
        }
        for gpu in gpus
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard_address": ":0"}}
    with (
        distributed.SpecCluster(workers=workers, scheduler=scheduler) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def visible_gpus() -> list[str]:
    """Return the numbers of the GPUs that this process may use.

    Raises:
        InputError: if there is none.
    """
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if not count:
        raise expected("gpus", count, "a CUDA device on this machine")
    return given.split(",")[:count] if given else [str(number) for number in range(count)]


def on_cluster(tasks: Sequence[SweepTask], folder: Path, client: Client) -> Iterator[TaskResult]:
    """Run tasks on a client's workers; Dask replaces killed workers and repeats their tasks.

    Args:
        tasks: the tasks to run.
        folder: folder of the sweep, on a file system that the workers share.
        client: a connected client.

    Returns:
        Outcomes in order of completion.

    Raises:
        InputError: if a worker has other code or does not see the folder.
        OSError: if a file cannot be written, or the scheduler is lost.
    """
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    versions, waiting = versions_of(tasks), iter(tasks)
    mine = secrets.token_hex(4)
    known: dict[str, SweepTask] = {}

    def submit(task: SweepTask) -> Any:
        # a unique key, so that requests of other drivers on the same scheduler are not reused
        key = f"sweep-{mine}-{task.id}"
        known[key] = task
        return client.submit(_do, task, folder, versions, key=key, pure=False)

    done = as_completed([submit(task) for task in islice(waiting, WINDOW)])
    for future in done:
        task = known.pop(future.key)
        if future.status in ("cancelled", "lost"):
            raise OSError("the Dask scheduler is gone, or dropped a task")
        error = future.exception() if future.status == "error" else None
        if isinstance(error, KilledWorker):
            outcome = TaskResult(task.id, 0.0, f"its workers were killed: {error}")
        elif error is not None:
            raise error
        else:
            outcome = future.result()
        future.release()
        done.update([submit(task) for task in islice(waiting, 1)])
        yield outcome


def _do(task: SweepTask, folder: Path, versions: dict[str, str]) -> TaskResult:
    use_one_thread()
    return do_task(task, folder, versions)


def _library(argument: str, value: object, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        wanted = f"the package {name}: pip install 'fedlora-sim[distributed]'"
        raise expected(argument, value, wanted) from None
