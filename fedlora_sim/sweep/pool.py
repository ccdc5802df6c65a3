"""Tasks one after another in this process, or in processes of this machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from joblib import Parallel, delayed

from fedlora_sim.runtime import serve
from fedlora_sim.sweep.manifest import versions_of
from fedlora_sim.sweep.plan import Task
from fedlora_sim.sweep.work import Outcome, Progress, do_task, use_one_thread

MOST_BREAKS = 3
"""Times in a row that workers may be killed with no task finished between."""


def in_this_process(
    tasks: Sequence[Task], folder: Path, on_progress: Progress
) -> Iterator[Outcome]:
    """Make tasks in turn."""
    for task in tasks:
        yield do_task(task, folder, versions_of([task]), on_progress)


def in_processes(tasks: Sequence[Task], folder: Path, workers: int) -> Iterator[Outcome]:
    """Make tasks several at a time; a killed worker is replaced, and what it was at made again.

    Args:
        tasks: what is made.
        folder: of the sweep.
        workers: number of processes.

    Returns:
        Outcomes as they come; when it is closed its workers are gone.

    Raises:
        BrokenProcessPool: if workers are killed again and again, and nothing is finished.
    """
    left, breaks = {task.id: task for task in tasks}, 0
    owner, versions = os.getpid(), versions_of(tasks)
    while left:
        made = Parallel(
            n_jobs=workers, batch_size=1, pre_dispatch=2 * workers, return_as="generator_unordered"
        )(delayed(_do)(task, folder, versions, owner) for task in list(left.values()))
        try:
            for outcome in made:
                del left[outcome.id]
                breaks = 0
                yield outcome
        except BrokenProcessPool:
            breaks += 1
            if breaks == MOST_BREAKS:
                raise
        finally:
            with warnings.catch_warnings():  # that what was not made yet is not made is no news
                warnings.filterwarnings("ignore", ".*have been cancelled", UserWarning)
                made.close()  # which returns when the workers are dead


def _do(task: Task, folder: Path, versions: dict[str, str], owner: int) -> Outcome:
    serve(owner)
    use_one_thread()
    return do_task(task, folder, versions)
