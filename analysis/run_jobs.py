"""Long runs that claims share, simulated several at a time before the claims ask for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from joblib import Parallel, cpu_count, delayed

from analysis.claims.base import Context
from fedlora_sim import Scenario, simulate
from fedlora_sim.runtime import resolve_device, serve

MOST_WORKERS = 8
"""A worker holds a model and its libraries: about half a gigabyte."""


@dataclass(frozen=True)
class Job:
    """One run, under the label by which a context knows it.

    Args:
        label: unique in a verification.
        scenario: what is simulated.
        rule: the server rule.
        seed: of the run.
    """

    label: str
    scenario: Scenario
    rule: str
    seed: int


def workers(device: str) -> int:
    """Processes to use: one for each core, and one alone where they would share a GPU."""
    if resolve_device(device, torch.float32).type != "cpu":
        return 1
    return min(cpu_count(), MOST_WORKERS)


def run_ahead(jobs: Sequence[Job], context: Context, processes: int) -> None:
    """Simulate what is not there yet, each run on one thread of a process of its own.

    A run has the same bits wherever it is made. Every finished one is kept at once, so that a
    stopped verification goes on from there.

    Args:
        jobs: the runs.
        context: where they are looked for, and kept.
        processes: how many at a time; 1 stays in this process.
    """
    missing = [job for job in jobs if context.known_run(job.label) is None]
    finished = Parallel(n_jobs=processes, return_as="generator_unordered")(
        delayed(_simulate)(job, os.getpid()) for job in missing
    )
    for label, dataset in finished:
        context.keep_run(label, dataset)
        context.on_progress(1)


def _simulate(job: Job, owner: int) -> tuple[str, xr.Dataset]:
    serve(owner)
    return job.label, simulate(job.scenario, rule=job.rule, seed=job.seed)
