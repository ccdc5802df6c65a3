"""Time aggregates whose ranks sum to much more than the wanted one, against a range finder.

Run as `python -m benchmarks.large_aggregates`; writes results/bench/large_aggregates.json. One
square layer in float32 on one thread, CPU time, rank 64 out. The rival is a randomized range finder
on the factors (Halko, Martinsson and Tropp 2011, Alg. 4.1 and 5.1, ten more columns), with two
passes, and with two power iterations in between (Alg. 4.4); neither is exact. `flat`: independent
clients, the hardest spectrum; `decaying`: clients that share their directions, whose amplitudes
fall by a fifth from one to the next, with noise of 1%. Our result is compared with float64 before
the timing, and the rival's error is recorded. Ten clients at 4096 give the other targets: the QR
path, the products that every method needs, and clients late in a collapse.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.aggregation import (
    RANK_OUT,
    RANKS,
    _products,
    _split,
    collapsed,
    draw_updates,
    product_of,
)
from benchmarks.bars import Bar, decided
from benchmarks.timing import hardware, side_by_side
from fedlora_sim.lowrank import SVD, LowRankProduct
from fedlora_sim.storage import result_file
from fedlora_sim.version import versions

OUT = Path("results/bench/large_aggregates.json")
CASES = ((4096, 40), (1024, 100))
SPECTRA = ("flat", "decaying")
SMALL = 4096
OVERSAMPLED, REPEATS = 10, 5
OVER_RIVAL, CERTIFIED, LATE, OVER_QR, OVER_PRODUCTS = 1.3, 1e-6, 2.5, 2.5, 1.6


def product(d: int, clients: int, spectrum: str) -> LowRankProduct:
    """Return the weighted sum of a cohort with ranks 4 to 64."""
    rng = torch.Generator().manual_seed(0)
    top = max(RANKS)
    shared = [torch.randn(d, top, generator=rng), torch.randn(top, d, generator=rng)]
    fall = 0.8 ** (torch.arange(top) / 2)
    blocks = []
    for rank in (RANKS[k % len(RANKS)] for k in range(clients)):
        B, A = torch.randn(d, rank, generator=rng), torch.randn(rank, d, generator=rng)
        if spectrum == "decaying":
            B = (shared[0][:, :rank] + 0.01 * B) * fall[:rank]
            A = (shared[1][:rank] + 0.01 * A) * fall[:rank].unsqueeze(-1)
        blocks.append((B, A))
    columns = sum(B.shape[-1] for B, _ in blocks)
    return LowRankProduct(blocks, torch.full((columns,), 1 / clients))


def range_finder(B: Tensor, A: Tensor, power: int) -> SVD:
    """Return approximate leading triplets of `B @ A` by a randomized range finder."""
    rng = torch.Generator().manual_seed(1)
    sketch = torch.randn(A.shape[-1], RANK_OUT + OVERSAMPLED, generator=rng)
    q, _ = torch.linalg.qr(B @ (A @ sketch))
    for _ in range(power):
        right, _ = torch.linalg.qr(((q.mT @ B) @ A).mT)
        q, _ = torch.linalg.qr(B @ (A @ right))
    u, s, vh = torch.linalg.svd((q.mT @ B) @ A, full_matrices=False)
    return q @ u[:, :RANK_OUT], s[:RANK_OUT], vh[:RANK_OUT]


def apart(found: SVD, wanted: SVD) -> float:
    """Return the relative difference of two truncated products."""
    matrices = [(u.double() * s.double()) @ vh.double() for u, s, vh in (found, wanted)]
    return float((matrices[0] - matrices[1]).norm() / wanted[1].norm())


def large(d: int, clients: int, spectrum: str, repeats: int) -> dict[str, Any]:
    """Check and time one large aggregate."""
    own = product(d, clients, spectrum)
    B, A = own.B, own.A
    exact = LowRankProduct([(x.double(), y.double()) for x, y in own.blocks], own.weights.double())
    wanted = exact.svd(RANK_OUT, "qr" if own.columns < d else "dense")
    runs = {
        "ours": lambda: own.svd(RANK_OUT),
        "two passes": lambda: range_finder(B, A, 0),
        "two power iterations": lambda: range_finder(B, A, 2),
    }
    errors = {name: apart(run(), wanted) for name, run in runs.items()}
    if errors["ours"] > CERTIFIED:
        raise SystemExit(f"{d}, {clients} clients, {spectrum}: off by {errors['ours']:.1e}")
    times = side_by_side(runs, repeats)
    row = {
        "d": d,
        "clients": clients,
        "columns": own.columns,
        "spectrum": spectrum,
        "errors": errors,
        "times": times,
    }
    print(row["d"], clients, spectrum, {n: t["cpu_median"] for n, t in times.items()}, errors)
    return row


def ten_clients(repeats: int) -> dict[str, Any]:
    """Time the usual aggregate, the same late in a collapse, the QR path and the products alone."""
    updates = draw_updates(SMALL, torch.float32, "cpu")
    usual, late = product_of(updates), product_of(collapsed(updates))
    errors = {}
    for name, own in (("usual", usual), ("late", late)):
        exact = LowRankProduct(
            [(x.double(), y.double()) for x, y in own.blocks], own.weights.double()
        )
        errors[name] = apart(own.svd(RANK_OUT), exact.svd(RANK_OUT, "qr"))
        if errors[name] > CERTIFIED:
            raise SystemExit(f"{name}: off by {errors[name]:.1e}")
    runs = {
        "usual": lambda: _split(usual, "auto"),
        "late": lambda: _split(late, "auto"),
        "qr": lambda: _split(usual, "qr"),
        "products": _products(updates),
    }
    return {"d": SMALL, "errors": errors, "times": side_by_side(runs, 3 * repeats)}


def bars(rows: list[dict[str, Any]], small: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the targets with their measurements."""
    found: list[Bar] = []
    for row in rows:
        times = {name: t["cpu_median"] for name, t in row["times"].items()}
        case = f"d = {row['d']}, {row['clients']} clients, {row['spectrum']}"
        for rival in ("two passes", "two power iterations"):
            what = f"aggregate / range finder with {rival}, {case}"
            found.append((what, "<=", OVER_RIVAL, times["ours"] / times[rival]))
        found.append((f"relative error, {case}", "<=", CERTIFIED, row["errors"]["ours"]))
    times = {name: t["cpu_median"] for name, t in small["times"].items()}
    case = f"d = {small['d']}, 10 clients"
    found += [
        (f"late in a collapse / usual, {case}", "<=", LATE, times["late"] / times["usual"]),
        (f"QR path / aggregate, {case}", ">=", OVER_QR, times["qr"] / times["usual"]),
        (f"aggregate / products, {case}", "<=", OVER_PRODUCTS, times["usual"] / times["products"]),
    ]
    return decided(found)


def main() -> None:
    """Check equality, measure times, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    write = result_file(arguments.out, "benchmarks.large_aggregates")
    torch.set_num_threads(1)
    small = ten_clients(arguments.repeats)
    rows = [large(*case, own, arguments.repeats) for case in CASES for own in SPECTRA]
    record = {"hardware": hardware(), "rows": rows, "ten_clients": small}
    record["bars"] = bars(rows, small)
    for bar in record["bars"]:
        print(f"{bar['what']}: {bar['measured']:.3g}, wanted {bar['wanted']}: {bar['verdict']}")
    write(json.dumps({**record, **versions()}, indent=1) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
