"""Measure a CUDA device: its own limits, then every part of the simulator against them.

Run as `python -m benchmarks.gpu`; there are no options, and it takes less than ten minutes. Every
part is compared with the CPU in float64 before it is timed. Writes results/bench/gpu.json and the
GPU block of docs/speed.md. Without a CUDA device it prints one line and exits with code 3.

The limit of a part is the time that its operations would take if each ran at one of the device's
measured limits: a launch, its bytes at the bandwidth of a copy, or its products at the rate of the
largest matrix product, whichever is longest. Solvers count by their bytes alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.timing import hardware, side_by_side
from fedlora_sim import LoRAFactors, Scenario, aggregate, simulate
from fedlora_sim.runtime import full_precision
from fedlora_sim.storage import result_file
from fedlora_sim.tolerances import relative
from fedlora_sim.version import versions
from paper_figs.documents import record_bench

OUT = Path("results/bench/gpu.json")
NO_DEVICE = 3
MOST_SECONDS = 540.0
"""When this time is over, the parts that are left are not measured."""
REPEATS = 3
VIEWS = {"view", "_unsafe_view", "expand", "slice", "select", "transpose", "t", "permute", "alias",
         "unsqueeze", "squeeze", "as_strided", "detach", "split", "unbind", "empty"}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Sizes of everything that is measured; the defaults are for a GPU."""

    copy: int = 1 << 28
    product: int = 8192
    solver: tuple[tuple[int, int], ...] = ((32, 1024), (64, 256), (256, 16), (1024, 1))
    spectral_seeds: tuple[int, ...] = (1_000, 100_000)
    spectral_rounds: int = 200
    matrix: tuple[tuple[int, int, int], ...] = ((64, 1_000, 10), (768, 50, 3))
    layer: int = 4096
    modules: int = 224
    ranks: tuple[int, ...] = (4, 8, 16, 32, 64) * 20
    training: tuple[tuple[int, int], ...] = ((1, 1), (10, 1), (100, 1), (10, 8))
    checked_seeds: int = 2
    repeats: int = REPEATS


# The limits of the device


@dataclass(frozen=True)
class Limits:
    """Measured limits of a device.

    Args:
        launch: seconds from one launch to the next.
        wait: seconds of a synchronization.
        bandwidth: bytes per second that a copy on the device reads and writes.
        from_host: bytes per second from the host.
        products: floating-point operations per second of a matrix product, by dtype.
        solvers: seconds of a call by solver, size and batch.
    """

    launch: float
    wait: float
    bandwidth: float
    from_host: float
    products: dict[str, float]
    solvers: dict[str, float]

    @classmethod
    def measure(cls, sizes: Sizes, device: str) -> Limits:
        """Measure the limits of a device."""

        def seconds(run: Callable[[], object]) -> float:
            return side_by_side({"it": run}, sizes.repeats, device)["it"]["wall_min"]

        one, many = torch.zeros(1, device=device), 1_000

        def launch() -> None:
            for _ in range(many):
                one.add_(1)

        def wait() -> None:
            for _ in range(many):
                one.item()

        x = torch.zeros(sizes.copy, dtype=torch.uint8, device=device)
        y, host = torch.empty_like(x), torch.zeros(sizes.copy, dtype=torch.uint8)
        copied = seconds(lambda: y.copy_(x))
        moved = seconds(lambda: y.copy_(host))
        products = {}
        for dtype in (torch.float32, torch.float64):
            a = torch.ones(sizes.product, sizes.product, dtype=dtype, device=device)
            b = torch.empty_like(a)
            taken = seconds(lambda a=a, b=b: torch.mm(a, a, out=b))  # type: ignore[misc]
            products[str(dtype).removeprefix("torch.")] = 2 * sizes.product**3 / taken
        solvers = {}
        for n, batch in sizes.solver:
            a = torch.randn(batch, n, n, generator=torch.Generator().manual_seed(0)).to(device)
            gram = a @ a.mT
            for name, run in _solvers(a, gram).items():
                solvers[f"{name} {batch} x {n}"] = seconds(run)
        launched, waited = seconds(launch) / many, seconds(wait) / many
        return cls(launched, waited, 2 * sizes.copy / copied, sizes.copy / moved, products, solvers)


def _solvers(a: Tensor, gram: Tensor) -> dict[str, Callable[[], object]]:
    return {
        "eigh": lambda: torch.linalg.eigh(gram),
        "qr": lambda: torch.linalg.qr(a),
        "svd": lambda: torch.linalg.svd(a, full_matrices=False),
    }


class Work(TorchDispatchMode):
    """Counts the operations of a block, and the seconds that they would take at the limits."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits, self.seconds = limits, 0.0
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name in VIEWS:
            return found
        tensors = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, Tensor)]
        moved = sum(_stored(x) for x in tensors)
        done = _operations(name, args)
        dtype = str(tensors[-1].dtype).removeprefix("torch.") if tensors else ""
        rate = self.limits.products.get(dtype)
        self.counts.update(launches=1, bytes=moved, operations=done)
        self.counts["waits"] += name in {"_local_scalar_dense", "nonzero"}
        at_limits = (self.limits.launch, moved / self.limits.bandwidth, done / rate if rate else 0)
        self.seconds += max(at_limits)
        return found


def _stored(x: Tensor) -> int:
    """Return the bytes of a tensor; expanded dimensions are read once."""
    shape = [n for n, stride in zip(x.shape, x.stride(), strict=True) if stride]
    return int(np.prod(shape, dtype=np.int64)) * x.element_size()


def _operations(name: str, args: Any) -> int:
    """Return the floating-point operations of a matrix product, else 0."""
    if name not in {"mm", "bmm", "addmm", "baddbmm"}:
        return 0
    left, right = [x for x in args if isinstance(x, Tensor)][-2:]
    return int(2 * left.numel() * right.shape[-1])


# Parts of the simulator


@dataclass(frozen=True)
class Part:
    """A part of the simulator to measure.

    Args:
        name: what is measured.
        run: runs it on the device.
        check: returns its relative difference from the CPU in float64, at a size that the CPU takes
            seconds for.
        bound: largest difference that is allowed.
        scale: factor from the measured time to that of the whole, e.g. the number of modules.
    """

    name: str
    run: Callable[[], object]
    check: Callable[[], float]
    bound: float
    scale: int = field(default=1)


def parts(sizes: Sizes, device: str) -> Iterator[Part]:
    """Yield all parts."""
    federation = "4x40,8x30,16x30"
    spectral = Scenario(
        federation, cohort_size=10, rounds=sizes.spectral_rounds, gain_std=0.1, drift_std=0.02
    )
    for seeds in sizes.spectral_seeds:
        yield _simulated(f"spectral, {seeds:,} seeds", spectral, seeds, sizes, device)
    for d, seeds, rounds in sizes.matrix:
        matrix = Scenario(
            federation, fidelity="matrix", cohort_size=10, rounds=rounds, d_in=d, d_out=d
        )
        name = f"matrix, d = {d}, {seeds:,} seeds x {rounds} rounds"
        yield _simulated(name, matrix, seeds, sizes, device)
    yield _aggregated(sizes, device)
    for clients, seeds in sizes.training:
        training = Scenario(f"4x{clients}", fidelity="training", split="iid", rounds=1)
        name = f"training, digits, {clients} clients, {seeds} seeds, a round"
        yield _simulated(name, training, seeds, sizes, device, kind="training")


def _simulated(
    name: str, scenario: Scenario, seeds: int, sizes: Sizes, device: str, kind: str = "iteration"
) -> Part:
    there = scenario.replace(device=device)

    def check() -> float:
        found, wanted = (
            simulate(s.replace(dtype="float64"), "raflora", seed=range(sizes.checked_seeds)).energy
            for s in (there, scenario.replace(device="cpu"))
        )
        return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))

    run = there.replace(dtype="float32")
    return Part(name, lambda: simulate(run, "raflora", seed=range(seeds)), check, relative(kind))


def _aggregated(sizes: Sizes, device: str) -> Part:
    draw, d = torch.Generator().manual_seed(0), sizes.layer
    drawn = [
        LoRAFactors(torch.randn(r, d, generator=draw), torch.randn(d, r, generator=draw), 16 / r)
        for r in sizes.ranks
    ]

    def on(place: str, dtype: torch.dtype) -> list[LoRAFactors]:
        return [
            LoRAFactors(x.lora_A.to(place, dtype), x.lora_B.to(place, dtype), x.scaling)
            for x in drawn
        ]

    def check() -> float:
        few = slice(0, len(sizes.ranks), 10)  # the CPU takes seconds
        found, wanted = (
            aggregate(on(place, torch.float64)[few], None, "raflora").adapter.product
            for place in (device, "cpu")
        )
        apart = found.singular_values().cpu() - wanted.singular_values()
        return float(apart.norm() / wanted.singular_values().norm())

    there = on(device, torch.float32)
    name = f"aggregate, {sizes.modules} modules of {d} x {d}, {len(sizes.ranks)} clients"
    bound = relative("factorization")
    return Part(name, lambda: aggregate(there, None, "raflora"), check, bound, sizes.modules)


def measure(sizes: Sizes, device: str) -> dict[str, Any]:
    """Check and measure everything.

    Raises:
        SystemExit: if a part differs from the CPU.
    """
    started, rows = time.perf_counter(), []
    with full_precision():
        limits = Limits.measure(sizes, device)
        for part in parts(sizes, device):
            if time.perf_counter() - started > MOST_SECONDS:
                rows.append({"name": part.name, "left_out": "no time was left"})
                continue
            difference = part.check()
            if not difference <= part.bound:
                told = f"differs from the CPU by {difference:.1e}, {part.bound:.0e} allowed"
                raise SystemExit(f"{part.name}: {told}; not timed")
            with Work(limits) as work:
                part.run()
            times = side_by_side({"it": part.run}, sizes.repeats, device)["it"]
            rows.append(
                {
                    "name": part.name,
                    "difference": difference,
                    "scale": part.scale,
                    "limit_seconds": work.seconds,
                    **work.counts,
                    **times,
                }
            )
            print(f"{part.name}: {times['wall_median'] * part.scale:.3g} s", flush=True)
    return {
        "limits": vars(limits),
        "rows": rows,
        "seconds": time.perf_counter() - started,
        "hardware": hardware(device),
        "scipy_version": scipy.__version__,
        **versions(),
    }


def main() -> None:
    """Measure the CUDA device of this machine."""
    if not torch.cuda.is_available():
        print("benchmarks.gpu: no CUDA device is available; nothing was measured", file=sys.stderr)
        sys.exit(NO_DEVICE)
    write = result_file(OUT, "benchmarks.gpu")
    write(json.dumps(measure(Sizes(), "cuda"), indent=1) + "\n")
    record_bench(OUT)
    print(f"wrote {OUT} and the GPU block of docs/speed.md")


if __name__ == "__main__":
    main()
