"""Time the aggregation engine against QR, dense SVD, PEFT's merge and the lower limit.

Run as `python -m benchmarks.aggregation [--device cuda]`; writes results/bench/aggregation.json
(aggregation-cuda.json). Ten clients, two per rank 4, 8, 16, 32, 64; square layers; rank 64 out.
Before timing, every candidate is compared with a reference in float64: a dense SVD up to 4096, the
QR path above. PEFT's merge, which equals FedAvg's, is compared below 4096.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.aggregation_bars import aggregation_bars
from benchmarks.timing import hardware, side_by_side
from fedlora_sim import LoRAFactors, aggregate, rule_names
from fedlora_sim.lowrank import LowRankProduct
from fedlora_sim.rules import Cohort, get_rule
from fedlora_sim.storage import result_file
from fedlora_sim.tolerances import relative
from fedlora_sim.version import versions

OUT = Path("results/bench")
RANKS = (4, 8, 16, 32, 64) * 2
RANK_OUT = max(RANKS)
SIZES = (768, 2048, 4096, 8192)
DENSE_UP_TO = 4096  # above, one dense SVD takes minutes
LAYERS, LAYER_SIZE = 64, 768
RULES_SIZE = 2048
LIBRARIES = ("numpy", "scipy", "peft")
REPEATS = 31
OURS = {"aggregate", "gram", "qr", "fallback", "batched"}

Row = dict[str, Any]


def draw_updates(
    d: int, dtype: torch.dtype, device: str, batch: tuple[int, ...] = ()
) -> list[LoRAFactors]:
    """Return Gaussian factors with alpha/r scalings; flat spectra are the hardest to truncate."""
    rng = torch.Generator().manual_seed(0)
    draws = [
        (torch.randn(*batch, r, d, generator=rng), torch.randn(*batch, d, r, generator=rng))
        for r in RANKS
    ]
    return [
        LoRAFactors(a.to(device, dtype), b.to(device, dtype), 16 / r)
        for (a, b), r in zip(draws, RANKS, strict=True)
    ]


def samples() -> list[float]:
    """Return different sample counts."""
    return [100.0 + 10 * k for k in range(len(RANKS))]


def product_of(updates: list[LoRAFactors], rule: str = "raflora") -> LowRankProduct:
    """Return the rule's weighted sum as the engine receives it."""
    weights = torch.tensor(samples(), dtype=torch.float64)
    cohort = Cohort.from_updates(updates, weights, (RANK_OUT,))
    return cohort.product(get_rule(rule).direction_weights(cohort.weights, cohort.members))


def reference(updates: list[LoRAFactors], d: int, rule: str = "raflora") -> Tensor:
    """Return the best rank-64 approximation in float64, by dense SVD or, if too large, by QR."""
    product = product_of([u.to(torch.float64) for u in updates], rule)
    u, s, vh = product.svd(RANK_OUT, "dense" if d <= DENSE_UP_TO and rule == "raflora" else "qr")
    return (u * s.unsqueeze(-2)) @ vh


def error(result: Tensor, wanted: Tensor) -> float:
    """Return the relative difference in norm."""
    return float((result.double() - wanted).norm() / wanted.norm())


def collapsed(updates: list[LoRAFactors]) -> list[LoRAFactors]:
    """Return the clients late in a collapse: amplitudes above rank 4 are 1e-4 of the others."""
    kept = min(RANKS)
    return [
        LoRAFactors(
            torch.cat([u.lora_A[:kept], 1e-2 * u.lora_A[kept:]]),
            torch.cat([u.lora_B[:, :kept], 1e-2 * u.lora_B[:, kept:]], dim=1),
            u.scaling,
        )
        for u in updates
    ]


def one_layer(d: int, dtype: torch.dtype, device: str, repeats: int, wanted: Tensor) -> list[Row]:
    """Time all paths to the same aggregate of one d x d layer."""
    updates = [u.to(dtype) for u in draw_updates(d, torch.float32, device)]
    product = product_of(updates)
    by_path: dict[str, Callable[[], LoRAFactors]] = {
        "aggregate": lambda: aggregate(updates, samples(), "raflora").adapter,
        "qr": lambda: _split(product, "qr"),
    }
    if dtype == torch.float32:
        by_path["gram"] = lambda: _split(product, "gram")
        if d <= DENSE_UP_TO:
            by_path["dense"] = lambda: _split(product, "dense")
    errors = {name: error(run().to(torch.float64).delta(), wanted) for name, run in by_path.items()}
    if dtype == torch.float32:
        late = product_of(collapsed(updates))
        by_path["fallback"] = lambda: _split(late, "auto")
        truth = product_of([u.to(torch.float64) for u in collapsed(updates)])
        exact = _split(truth, "qr").delta()
        errors["fallback"] = error(by_path["fallback"]().to(torch.float64).delta(), exact)
    check(errors, dtype)
    candidates: dict[str, Callable[[], object]] = {**by_path, "products": _products(updates)}
    if d <= DENSE_UP_TO and dtype == torch.float32 and device == "cpu":
        merge, merged = peft_merge(updates)
        candidates["peft"] = merge
        if d < DENSE_UP_TO:  # each merge takes half a minute there
            merge()
            errors["peft"] = error(merged(), reference(updates, d, "fedavg"))
    counts = dict.fromkeys(candidates, repeats)
    for slow in {"dense", "peft"} & set(counts):
        counts[slow] = {768: 5, 2048: 3}.get(d, 1)
    times = side_by_side(candidates, counts, device)
    kind, threads = str(dtype).removeprefix("torch."), torch.get_num_threads()
    return [
        {
            "d": d,
            "dtype": kind,
            "threads": threads,
            "method": name,
            "relative_error": errors.get(name),
            **times[name],
        }
        for name in candidates
    ]


def _split(product: LowRankProduct, method: str) -> LoRAFactors:
    u, s, vh = product.svd(RANK_OUT, method)
    root = s.sqrt()
    return LoRAFactors(vh * root.unsqueeze(-1), u * root)


def _products(updates: list[LoRAFactors]) -> Callable[[], object]:
    """Return the minimum work of any method: two Gram matrices and two back-projections."""
    left = torch.cat([u.lora_B for u in updates], dim=-1)
    right = torch.cat([u.lora_A for u in updates], dim=-2)
    core = left.new_ones(left.shape[-1], RANK_OUT)
    return lambda: (left.mT @ left, right @ right.mT, left @ core, core.mT @ right)


def peft_merge(
    updates: list[LoRAFactors],
) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    """Prepare PEFT's merge of adapters of different ranks, `add_weighted_adapter(..., "svd")`.

    Returns:
        The merge, and a function that returns its result, FedAvg of the same updates.
    """
    from peft import LoraConfig, get_peft_model

    base = torch.nn.Sequential(torch.nn.Linear(updates[0].d_in, updates[0].d_out, bias=False))
    model: Any = None
    names = [f"client{k}" for k in range(len(updates))]
    for name, update in zip(names, updates, strict=True):
        alpha = round(update.scaling * update.rank)
        config = LoraConfig(r=update.rank, lora_alpha=alpha, target_modules=["0"])
        if model is None:
            model = get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    layer = model.base_model.model[0]
    with torch.no_grad():
        for name, update in zip(names, updates, strict=True):
            layer.lora_A[name].weight.copy_(update.lora_A)
            layer.lora_B[name].weight.copy_(update.lora_B)
    weights = [n / sum(samples()) for n in samples()]

    def merge() -> None:
        if "merged" in layer.lora_A:
            model.base_model.delete_adapter("merged")
        model.base_model.add_weighted_adapter(names, weights, "merged", "svd", svd_rank=RANK_OUT)

    return merge, lambda: layer.get_delta_weight("merged").detach()


def many_layers(layers: int, dtype: torch.dtype, device: str, repeats: int) -> list[Row]:
    """Time several layers in one batch against one after the other."""
    batch = draw_updates(LAYER_SIZE, dtype, device, batch=(layers,))
    single = [
        [LoRAFactors(u.lora_A[i], u.lora_B[i], u.scaling) for u in batch] for i in range(layers)
    ]

    def loop() -> list[LoRAFactors]:
        return [aggregate(layer, samples(), "raflora").adapter for layer in single]

    def batched() -> LoRAFactors:
        return aggregate(batch, samples(), "raflora").adapter

    one_by_one = torch.stack([f.delta() for f in loop()])
    apart = float((batched().delta() - one_by_one).norm() / one_by_one.norm())
    check({"batched": apart}, dtype)
    times = side_by_side({"loop": loop, "batched": batched}, repeats, device)
    kind, threads = str(dtype).removeprefix("torch."), torch.get_num_threads()
    return [
        {"method": name, "dtype": kind, "threads": threads, "relative_difference": apart, **t}
        for name, t in times.items()
    ]


def every_rule(d: int, device: str, repeats: int) -> list[Row]:
    """Time `aggregate` under every rule for one layer in float32."""
    updates = draw_updates(d, torch.float32, device)
    common = updates[-1].lora_A
    frozen = [LoRAFactors(common[: u.rank], u.lora_B, u.scaling) for u in updates]
    names = [*rule_names(), "raflora:canonicalize=true"]
    runs = {
        name: lambda name=name: aggregate(frozen if name == "ffa" else updates, samples(), name)
        for name in names
    }
    times = side_by_side(runs, repeats, device)
    return [
        {"method": name, "d": d, "threads": torch.get_num_threads(), **times[name]} for name in runs
    ]


def check(errors: dict[str, float], dtype: torch.dtype) -> None:
    """Refuse to time a wrong result."""
    bound = relative("factorization", dtype)
    for name in OURS & set(errors):
        if errors[name] > bound:
            raise SystemExit(f"{name}: off by {errors[name]:.1e}, {bound:.0e} allowed; not timed")


def show(rows: list[Row]) -> None:
    """Print one line per measurement."""
    for row in rows:
        apart = row.get("relative_error", row.get("relative_difference"))
        size = row.get("d", "layers")
        line = f"{size:>10} {row.get('dtype', ''):8} {row['threads']} thread(s) {row['method']:26}"
        wall = f"wall {row['wall_median']:.4f} [{row['wall_min']:.4f}, {row['wall_max']:.4f}] s"
        off = "" if apart is None else f"  error {apart:.1e}"
        print(f"{line}{wall}  CPU {row['cpu_median']:.4f} s{off}", flush=True)


def main() -> None:
    """Check equality, measure times, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    device, repeats = arguments.device, arguments.repeats
    name = "aggregation.json" if device == "cpu" else "aggregation-cuda.json"
    out = arguments.out or OUT / name
    write = result_file(out, "benchmarks.aggregation")
    record: dict[str, Any] = {"device": device, "hardware": hardware(device), "rows": []}
    torch.set_num_threads(1)
    for d in arguments.sizes:
        wanted = reference(draw_updates(d, torch.float32, device), d)
        for dtype in (torch.float32, torch.float64):
            show(rows := one_layer(d, dtype, device, repeats, wanted))
            record["rows"] += rows
    record["layers"] = []
    for threads in (1, 2) if device == "cpu" else (1,):
        torch.set_num_threads(threads)
        few = max(3, repeats // 3)
        show(rows := many_layers(arguments.layers, torch.float32, device, few))
        record["layers"] += rows
    torch.set_num_threads(1)
    show(rows := every_rule(min(RULES_SIZE, max(arguments.sizes)), device, repeats))
    record["rules"] = rows
    record["bars"] = aggregation_bars(record)
    for bar in record["bars"]:
        print(f"{bar['what']}: {bar['measured']:.3g}, wanted {bar['wanted']}: {bar['verdict']}")
    record |= {f"{name}_version": importlib.metadata.version(name) for name in LIBRARIES}
    write(json.dumps({**record, **versions()}, indent=1) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
