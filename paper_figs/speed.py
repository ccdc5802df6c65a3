"""Speed tables, from the records of `make bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]

CLOCKS = {"cpu": "CPU", "wall": "wall"}
"""What a column of times says of its clock: of several threads, CPU time counts waiting ones."""

LANES = ("serial", "pool")
RIVALS = {
    "qr": "QR path",
    "fallback": "collapsed",
    "dense": "dense SVD",
    "peft": "PEFT's merge",
    "products": "products alone",
}


def spectral_table(bench: dict[str, Any]) -> str:
    """Times of the spectral fidelity: median and range of the repeats."""
    lines = [
        "| rule | client noise | threads | wall time, median and range | CPU time, median |",
        "|---|---|---|---|---|",
    ]
    for row in bench["rows"]:
        noise = "gain and drift" if row["noise"] else "none"
        wall = f"{row['wall_median']:.2f} s [{row['wall_min']:.2f}, {row['wall_max']:.2f}]"
        cells = (row["rule"], noise, str(row["threads"]), wall, f"{row['cpu_median']:.2f} s")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


SWEEPS = {
    "seeds": "many seeds of few rows",
    "points": "many rows of few seeds",
    "matrix": "real factors",
}


def sweep_table(bench: dict[str, Any]) -> str:
    """Sweeps beside the serial loop of `simulate`: speed as a multiple, overhead of a task."""
    workers = f"{bench['workers']} workers"
    lines = [
        f"| grid | rows, runs, tasks | serial loop | sweep / loop | {workers} / loop "
        "| overhead of a task | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in bench["rows"]:
        times = row["times"]
        cells = (
            SWEEPS[row["grid"]],
            f"{row['rows']:,}, {row['runs']:,}, {row['tasks']:,}",
            f"{row['runs_per_second']['loop']:,.0f} runs/s",
            *(_speed(times["loop"], times[lane]) for lane in LANES),
            f"{row['overhead_ms_per_task']:.0f} ms ({row['overhead_share']:.1%})",
            f"{row['largest_difference']:.0e}" if row["largest_difference"] else "none",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Measured on: {bench['hardware']}, {bench['cores']} cores."])


def _speed(loop: dict[str, float], lane: dict[str, float]) -> str:
    """How many times as fast as the loop's median, with the range of the repeats."""
    median, low, high = (
        loop["wall_median"] / lane[f"wall_{kind}"] for kind in ("median", "max", "min")
    )
    return f"{median:.2f}x [{low:.2f}, {high:.2f}]"


def aggregation_table(bench: dict[str, Any]) -> str:
    """One float32 layer by size: CPU time of the engine, and of the others as a multiple of it."""
    lines = [
        f"| layer | Gram path, CPU time | `aggregate` | {' | '.join(RIVALS.values())} | error |",
        "|---|" + "---|" * (len(RIVALS) + 3),
    ]
    for d in sorted({row["d"] for row in bench["rows"]}):
        rows = {
            row["method"]: row
            for row in bench["rows"]
            if (row["d"], row["dtype"]) == (d, "float32")
        }
        own = rows["gram"]
        cells = [f"{d} x {d}", _milliseconds(own), _multiple(rows["aggregate"], own)]
        cells += [_multiple(rows.get(name), own) for name in RIVALS]
        lines.append(f"| {' | '.join(cells)} | {own['relative_error']:.0e} |")
    return "\n".join(lines)


def bars_table(bench: dict[str, Any]) -> str:
    """What the engine was built to reach, and whether this run reached it."""
    lines = ["| bar | wanted | measured | |", "|---|---|---|---|"]
    for bar in bench["bars"]:
        measured = f"{bar['measured']:#.3g}".removesuffix(".")
        cells = (bar["what"], bar["wanted"], measured, bar["verdict"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def hardware_line(bench: dict[str, Any]) -> str:
    """Where a bench was run."""
    libraries = ", ".join(f"{name} {bench[f'{name}_version']}" for name in ("torch", "scipy"))
    return f"Measured on: {bench['hardware']}, {libraries}."


def gpu_block(record: Path) -> str:
    """The engine's table on a GPU, where one was had."""
    path = record / "aggregation-cuda.json"
    if not path.exists():
        return "GPU: not measured."
    bench = json.loads(path.read_text(encoding="utf-8"))
    return f"{hardware_line(bench)}\n\n{aggregation_table(bench)}"


def training_table(bench: dict[str, Any]) -> str:
    """One local step of a cohort: its time, and the other ways as multiples; then the prefix."""
    lines = [
        "| model | threads | clients | stacked step | time | / one big batch "
        "| one by one / stacked | groups of ranks / padded |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found: dict[tuple[int, int, int], dict[str, Row]] = {}
    for row in bench["rows"]:
        found.setdefault((row["d"], row["threads"], row["clients"]), {})[row["lane"]] = row
    for (d, threads, clients), lanes in found.items():
        own, clock = lanes["stacked"], lanes["stacked"]["clock"]
        pairs = ((own, lanes["limit"]), (lanes["loop"], own), (lanes["grouped"], lanes["padded"]))
        cells = [f"d = {d}", str(threads), str(clients), _milliseconds(own, clock), CLOCKS[clock]]
        cells += [_multiple(over, under, clock) for over, under in pairs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_prefix_lines(bench["prefix"])])


def _prefix_lines(rows: list[Row]) -> list[str]:
    """A step on a whole encoder and on a cached prefix, a sample."""
    lines = [
        "| threads | whole model, a sample | cached prefix | time | whole / cached |",
        "|---|---|---|---|---|",
    ]
    for threads in sorted({row["threads"] for row in rows}):
        lanes = {row["lane"]: row for row in rows if row["threads"] == threads}
        whole, cached, clock = lanes["whole"], lanes["cached"], lanes["whole"]["clock"]
        times = [_milliseconds(row, clock, row["samples"]) for row in (whole, cached)]
        cells = [str(threads), *times, CLOCKS[clock], _multiple(whole, cached, clock)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def training_bars_block(record: Path) -> str:
    """The bars of stacked training, those of a GPU too where one was had."""
    lines = [bars_table(json.loads((record / "training.json").read_text(encoding="utf-8")))]
    gpu = record / "training-cuda.json"
    if not gpu.exists():
        return "\n\n".join([*lines, "GPU: not measured."])
    bench = json.loads(gpu.read_text(encoding="utf-8"))
    return "\n\n".join([*lines, hardware_line(bench), bars_table(bench)])


def layers_table(bench: dict[str, Any]) -> str:
    """Many layers at once against one after the other."""
    lines = ["| threads | one by one, wall time | in one batch |", "|---|---|---|"]
    for threads in sorted({row["threads"] for row in bench["layers"]}):
        rows = {row["method"]: row for row in bench["layers"] if row["threads"] == threads}
        cells = [_seconds(rows["loop"]), _seconds(rows["batched"])]
        lines.append(f"| {threads} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _milliseconds(row: Row, clock: str = "cpu", share: int = 1) -> str:
    """Median and range, of one of so many equal shares."""
    low, median, high = (1e3 / share * row[f"{clock}_{kind}"] for kind in ("min", "median", "max"))
    if high < 1e3:
        return f"{median:.3g} ms [{low:.3g}, {high:.3g}]"
    return f"{median:.0f} ms [{low:.0f}, {high:.0f}]"


def _seconds(row: Row) -> str:
    return f"{row['wall_median']:.2f} s [{row['wall_min']:.2f}, {row['wall_max']:.2f}]"


def _multiple(row: Row | None, own: Row, clock: str = "cpu") -> str:
    """A candidate's median time over another's; a single run is marked as one."""
    if row is None:
        return "not measured"
    once = ", one run" if row["repeats"] == 1 else ""
    return f"{row[f'{clock}_median'] / own[f'{clock}_median']:.3g}x{once}"
