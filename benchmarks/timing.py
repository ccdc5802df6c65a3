"""Timing of candidates in turn in one process: CPU and wall time, with ranges."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Times = dict[str, float]


def side_by_side(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int | Mapping[str, int],
    device: str = "cpu",
) -> dict[str, Times]:
    """Time candidates in turn, round after round, so that a busy moment affects all of them.

    Args:
        candidates: name to a function without arguments.
        repeats: number of timed calls, for all or by name; candidates with more than one repeat
            are called once more, untimed, before.
        device: device to synchronize at the end of every call.

    Returns:
        Name to wall and CPU seconds: median, minimum and maximum.
    """
    counts = repeats if isinstance(repeats, Mapping) else dict.fromkeys(candidates, repeats)
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(-1, max(counts.values())):
        for name, run in candidates.items():
            if turn >= counts[name] or (turn < 0 and counts[name] == 1):
                continue
            started = time.perf_counter(), time.process_time()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            ended = time.perf_counter(), time.process_time()
            if turn >= 0:
                wall[name].append(ended[0] - started[0])
                cpu[name].append(ended[1] - started[1])
    return {name: {**_summary("wall", wall[name]), **_summary("cpu", cpu[name])} for name in wall}


def _summary(kind: str, seconds: list[float]) -> Times:
    return {
        f"{kind}_median": statistics.median(seconds),
        f"{kind}_min": min(seconds),
        f"{kind}_max": max(seconds),
        "repeats": len(seconds),
    }


def hardware(device: str = "cpu") -> str:
    """Return the name of the processor or of the GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
