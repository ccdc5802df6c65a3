"""Time the aggregation of PEFT folders against reading and writing the files alone.

Run as `python -m benchmarks.peft_folders`; writes results/bench/peft_folders.json. Twenty clients
of ranks 4 to 64, square modules of width 1024, float32, on two threads. First the written
updates of some modules are compared with the same clients aggregated in float64 by QR. Then a full
set of modules is timed against reading all tensors of the inputs and writing tensors as large as
the output, and a growing number of modules gives the slope of the cost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.bars import decided
from benchmarks.timing import hardware, side_by_side
from fedlora_sim.lowrank import LowRankProduct
from fedlora_sim.peft.aggregate import aggregate_adapters
from fedlora_sim.rules.base import contributor_shares
from fedlora_sim.storage import result_file, write_tensors
from fedlora_sim.tolerances import relative
from fedlora_sim.version import versions

OUT = Path("results/bench/peft_folders.json")
RANKS = (4, 8, 16, 32, 64) * 4
WIDTH, LAYERS = 1024, 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
SLOPE_LAYERS = (2, 4, 8, 16)
REPEATS = 3
COMPARED = 8  # modules compared with the QR path, which takes a third of a second each
OVER_FILES, SLOPE = 3.0, 1.1
WEIGHTS = "adapter_model.safetensors"


def samples() -> list[float]:
    """Return different sample counts."""
    return [100.0 + 10 * k for k in range(len(RANKS))]


def key(layer: int, target: str, factor: str) -> str:
    """Return the name that PEFT gives a tensor."""
    return f"base_model.model.model.layers.{layer}.self_attn.{target}.lora_{factor}.weight"


def write_clients(folder: Path, layers: int) -> list[Path]:
    """Write one adapter folder per client, with Gaussian factors."""
    rng = torch.Generator().manual_seed(0)
    paths = []
    for number, rank in enumerate(RANKS):
        path = folder / f"client-{number}"
        path.mkdir(parents=True)
        tensors = {}
        for layer in range(layers):
            for target in TARGETS:
                tensors[key(layer, target, "A")] = torch.randn(rank, WIDTH, generator=rng)
                tensors[key(layer, target, "B")] = torch.randn(WIDTH, rank, generator=rng)
        save_file(tensors, path / WEIGHTS, {"format": "pt"})
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": "model",
            "r": rank,
            "lora_alpha": 16,
            "target_modules": list(TARGETS),
            "task_type": "CAUSAL_LM",
        }
        (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        paths.append(path)
    return paths


def run(paths: list[Path], out: Path) -> None:
    """Aggregate the folders."""
    aggregate_adapters(paths, samples(), "raflora", out, device="cpu", force=True)


def largest_error(paths: list[Path], out: Path) -> float:
    """Return the largest relative error of a module against the QR path in float64."""
    weights = torch.tensor(samples(), dtype=torch.float64)
    members = torch.arange(max(RANKS)) < torch.tensor(RANKS).unsqueeze(-1)
    shares = contributor_shares(weights, members)
    clients = [load_file(path / WEIGHTS) for path in paths]
    found = load_file(out / WEIGHTS)
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    scaling = config["lora_alpha"] / config["r"]
    errors = []
    names = sorted(name for name in found if ".lora_A." in name)
    for name in names[:: max(1, len(names) // COMPARED)]:
        other = name.replace(".lora_A.", ".lora_B.")
        blocks = [(c[other].double(), c[name].double()) for c in clients]
        columns = [16 / r * shares[k, :r] for k, r in enumerate(RANKS)]
        u, s, vh = LowRankProduct(blocks, torch.cat(columns)).svd(max(RANKS), "qr")
        wanted = (u * s) @ vh
        written = scaling * found[other].double() @ found[name].double()
        errors.append(float((written - wanted).norm() / wanted.norm()))
    return max(errors)


def files_alone(paths: list[Path], out: Path, target: Path) -> None:
    """Read every tensor of the inputs, and write the tensors of the output to another place."""
    for path in paths:
        for tensor in load_file(path / WEIGHTS).values():
            tensor.sum()  # files are mapped: their pages are read when they are used
    write_tensors(target, load_file(out / WEIGHTS))


def measure(folder: Path, layers: int, repeats: int) -> dict[str, Any]:
    """Check and time one number of layers."""
    paths, out = write_clients(folder / "in", layers), folder / "out"
    run(paths, out)
    error = largest_error(paths, out)
    if error > relative("factorization", "float32"):
        raise SystemExit(f"{layers} layers: off by {error:.1e}; not timed")
    times = side_by_side(
        {
            "aggregate": lambda: run(paths, out),
            "files": lambda: files_alone(paths, out, folder / "copy.safetensors"),
        },
        repeats,
    )
    shutil.rmtree(folder)
    row = {"layers": layers, "modules": layers * len(TARGETS), "relative_error": error, **times}
    print(
        f"{row['modules']:4} modules: wall {times['aggregate']['wall_median']:.2f} s, "
        f"files alone {times['files']['wall_median']:.2f} s, error {error:.1e}",
        flush=True,
    )
    return row


def main() -> None:
    """Check equality, measure times, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    write = result_file(arguments.out, "benchmarks.peft_folders")
    torch.set_num_threads(arguments.threads)
    counts = sorted({*(n for n in SLOPE_LAYERS if n < arguments.layers), arguments.layers})
    with tempfile.TemporaryDirectory(prefix="fedlora-sim-") as place:
        rows = [measure(Path(place) / str(n), n, arguments.repeats) for n in counts]
    last = rows[-1]
    over = last["aggregate"]["wall_median"] / last["files"]["wall_median"]
    modules, cpu = zip(*((r["modules"], r["aggregate"]["cpu_median"]) for r in rows), strict=True)
    slope = float(np.polyfit(np.log(modules), np.log(cpu), 1)[0]) if len(rows) > 1 else 1.0
    size = f"{last['modules']} modules, d = {WIDTH}, {len(RANKS)} clients"
    bars = decided(
        [
            (f"PEFT folders / files alone, {size}, wall time", "<=", OVER_FILES, over),
            ("PEFT folders: log-log slope of the CPU time in modules", "<=", SLOPE, slope),
        ]
    )
    for bar in bars:
        print(f"{bar['what']}: {bar['measured']:.3g}, wanted {bar['wanted']}: {bar['verdict']}")
    record = {"hardware": hardware(), "threads": arguments.threads, "rows": rows, "bars": bars}
    write(json.dumps({**record, **versions()}, indent=1) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
