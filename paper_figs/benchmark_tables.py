"""Tables of the documents from the records of `make bench`: times and how they compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analysis.formats import NONE, Lines, interval, markdown_table, number

# Speed tables, from the records of `make bench`

Row = dict[str, Any]

CLOCKS = {"cpu": "CPU", "wall": "wall"}
"""Notes on the clock of a column of times: with several threads, CPU time includes waiting ones."""

LANES = ("serial", "pool")
RIVALS = {
    "qr": "QR path",
    "fallback": "collapsed",
    "dense": "dense SVD",
    "peft": "PEFT's merge",
    "products": "products alone",
}


def spectral_table(bench: dict[str, Any]) -> str:
    """Return the times of the spectral fidelity: median and range of the repeats."""
    head = ("rule", "client noise", "threads", "wall time, median and range", "CPU time, median")
    lines: Lines = []
    for row in bench["rows"]:
        noise = "gain and drift" if row["noise"] else "none"
        wall = f"{row['wall_median']:.2f} s [{row['wall_min']:.2f}, {row['wall_max']:.2f}]"
        cells = (row["rule"], noise, str(row["threads"]), wall, f"{row['cpu_median']:.2f} s")
        lines.append(cells)
    return markdown_table(head, lines)


def lanes_table(bench: dict[str, Any]) -> str:
    """Return the CPU time per run, round and direction, and of a normal draw."""
    lines: Lines = []
    for row in bench["lanes"]:
        low, middle, high = (1e9 * row[f"cpu_{key}"] for key in ("min", "median", "max"))
        lines.append((row["lane"], f"{middle:.3g} ns [{low:.3g}, {high:.3g}]"))
    return markdown_table(("what", "CPU time, median and range"), lines)


def slopes_table(bench: dict[str, Any]) -> str:
    """Return the slope of the cost in each quantity, between the logarithms of both."""
    lines: Lines = []
    for row in bench["slopes"]:
        values = ", ".join(f"{value:,}" for value in row["values"])
        times = ", ".join(f"{1e3 * seconds:.3g}" for seconds in row["seconds"])
        lines.append((row["quantity"], values, times, f"{row['slope']:.2f}"))
    return markdown_table(("quantity", "values", "CPU time, ms", "slope"), lines)


def matrix_table(bench: dict[str, Any]) -> str:
    """Return the times of the matrix fidelity and of a loop of the same operations."""
    lines: Lines = []
    for row in bench["rows"]:
        times = [
            f"{row[lane]['cpu_median']:.2f} s "
            f"[{row[lane]['cpu_min']:.2f}, {row[lane]['cpu_max']:.2f}]"
            for lane in ("engine", "loop")
        ]
        lines.append((row["rule"], *times, f"{row['ratio']:.2f}x"))
    return markdown_table(("rule", "engine, CPU time", "loop, CPU time", "engine / loop"), lines)


SWEEPS = {
    "seeds": "many seeds of few rows",
    "points": "many rows of few seeds",
    "matrix": "real factors",
}


def sweep_table(bench: dict[str, Any]) -> str:
    """Return the speed of sweeps relative to a loop of `simulate`, and their overhead."""
    workers = f"{bench['workers']} workers"
    head = ("grid", "rows, runs, tasks", "serial loop", "sweep / loop", f"{workers} / loop")
    lines: Lines = []
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
        lines.append(cells)
    table = markdown_table((*head, "overhead of a task", "largest difference"), lines)
    return f"{table}\n\nMeasured on: {bench['hardware']}, {bench['cores']} cores."


def _speed(loop: dict[str, float], lane: dict[str, float]) -> str:
    """Return the speed relative to the loop's median, with the range of the repeats."""
    median, low, high = (
        loop["wall_median"] / lane[f"wall_{kind}"] for kind in ("median", "max", "min")
    )
    return f"{median:.2f}x [{low:.2f}, {high:.2f}]"


def aggregation_table(bench: dict[str, Any]) -> str:
    """Return the CPU time of one float32 layer by size, with other methods as multiples of it."""
    head = ("layer", "Gram path, CPU time", "`aggregate`", *RIVALS.values(), "error")
    lines: Lines = []
    for d in sorted({row["d"] for row in bench["rows"]}):
        rows = {
            row["method"]: row
            for row in bench["rows"]
            if (row["d"], row["dtype"]) == (d, "float32")
        }
        own = rows["gram"]
        cells = [f"{d} x {d}", _milliseconds(own), _speed_multiple(rows["aggregate"], own)]
        cells += [_speed_multiple(rows.get(name), own) for name in RIVALS]
        lines.append([*cells, f"{own['relative_error']:.0e}"])
    return markdown_table(head, lines)


def large_table(bench: dict[str, Any]) -> str:
    """Return the times of large aggregates, and those and the errors of a range finder."""
    rivals = ("two passes", "two power iterations")
    shown = [f"ours / range finder, {name}" for name in rivals]
    head = ("layer", "clients, ranks in all", "spectrum", "CPU time", *shown, "error", "its errors")
    lines: Lines = []
    for row in bench["rows"]:
        own = row["times"]["ours"]
        ratios = [own["cpu_median"] / row["times"][name]["cpu_median"] for name in rivals]
        cells = (
            f"{row['d']} x {row['d']}",
            f"{row['clients']}, {row['columns']:,}",
            row["spectrum"],
            _milliseconds(own),
            *(f"{ratio:.2f}x" for ratio in ratios),
            f"{row['errors']['ours']:.0e}",
            ", ".join(f"{row['errors'][name]:.0e}" for name in rivals),
        )
        lines.append(cells)
    return markdown_table(head, lines)


def peft_table(bench: dict[str, Any]) -> str:
    """Return the times of aggregating PEFT folders, and of their files alone."""
    head = ("modules", "aggregate, wall time", "files alone, wall time", "CPU time", "error")
    lines: Lines = []
    for row in bench["rows"]:
        own, files = row["aggregate"], row["files"]
        walls = [
            f"{t['wall_median']:.2f} s [{t['wall_min']:.2f}, {t['wall_max']:.2f}]"
            for t in (own, files)
        ]
        cells = (str(row["modules"]), *walls, f"{own['cpu_median']:.2f} s")
        lines.append((*cells, f"{row['relative_error']:.0e}"))
    return markdown_table(head, lines)


def bars_table(bench: dict[str, Any]) -> str:
    """Return the performance targets of the engine, and whether this run reached them."""
    head = ("bar", "wanted", "measured", "")
    lines: Lines = []
    for bar in bench["bars"]:
        measured = f"{bar['measured']:#.3g}".removesuffix(".")
        cells = (bar["what"], bar["wanted"], measured, bar["verdict"])
        lines.append(cells)
    return markdown_table(head, lines)


def hardware_line(bench: dict[str, Any]) -> str:
    """Return the hardware of a benchmark run."""
    libraries = ", ".join(f"{name} {bench[f'{name}_version']}" for name in ("torch", "scipy"))
    return f"Measured on: {bench['hardware']}, {libraries}."


def gpu_block(record: Path) -> str:
    """Return the tables of a GPU, if one was available."""
    tables = {"gpu": gpu_table, "aggregation-cuda": aggregation_table}
    shown = []
    for name, table in tables.items():
        if (record / f"{name}.json").exists():
            bench = json.loads((record / f"{name}.json").read_text(encoding="utf-8"))
            shown.append(f"{hardware_line(bench)}\n\n{table(bench)}")
    return "\n\n".join(shown) or "GPU: not measured."


def gpu_table(bench: dict[str, Any]) -> str:
    """Return the limits of a GPU, and the time of each part as a share of them."""
    limits = bench["limits"]
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {d}" for d, rate in limits["products"].items())
    text = (
        f"Limits of the device: {limits['bandwidth'] / 1e9:,.0f} GB/s on it, "
        f"{limits['from_host'] / 1e9:,.0f} GB/s from the host, {rates}; "
        f"{1e6 * limits['launch']:.3g} us a launch, {1e6 * limits['wait']:.3g} us a wait."
    )
    head = ("part", "time", "of the limit", "launches", "waits", "difference from the CPU")
    lines: Lines = []
    for row in bench["rows"]:
        if "left_out" in row:
            lines.append((row["name"], row["left_out"], *[NONE] * 4))
            continue
        low, median, high = (row["scale"] * row[f"wall_{k}"] for k in ("min", "median", "max"))
        share = row["limit_seconds"] / row["wall_median"]
        counts = (f"{row['launches']:,}", f"{row['waits']:,}")
        taken = f"{number(median, 3)} s {interval([low, high], 3)}"
        lines.append((row["name"], taken, f"{share:.1%}", *counts, f"{row['difference']:.0e}"))
    return f"{text}\n\n{markdown_table(head, lines)}"


def training_table(bench: dict[str, Any]) -> str:
    """Return time of one local step of a cohort with other methods as multiples, and the prefix."""
    head = ("model", "threads", "clients", "stacked step", "time", "/ one big batch")
    lines: Lines = []
    found: dict[tuple[int, int, int], dict[str, Row]] = {}
    for row in bench["rows"]:
        found.setdefault((row["d"], row["threads"], row["clients"]), {})[row["lane"]] = row
    for (d, threads, clients), lanes in found.items():
        own, clock = lanes["stacked"], lanes["stacked"]["clock"]
        pairs = ((own, lanes["limit"]), (lanes["loop"], own), (lanes["grouped"], lanes["padded"]))
        cells = [f"d = {d}", str(threads), str(clients), _milliseconds(own, clock), CLOCKS[clock]]
        cells += [_speed_multiple(over, under, clock) for over, under in pairs]
        lines.append(cells)
    table = markdown_table((*head, "one by one / stacked", "groups of ranks / padded"), lines)
    return f"{table}\n\n{_prefix_table(bench['prefix'])}"


def _prefix_table(rows: list[Row]) -> str:
    """Return the times of a step on a whole encoder and on a cached prefix, per sample."""
    head = ("threads", "whole model, a sample", "cached prefix", "time", "whole / cached")
    lines: Lines = []
    for threads in sorted({row["threads"] for row in rows}):
        lanes = {row["lane"]: row for row in rows if row["threads"] == threads}
        whole, cached, clock = lanes["whole"], lanes["cached"], lanes["whole"]["clock"]
        times = [_milliseconds(row, clock, row["samples"]) for row in (whole, cached)]
        cells = [str(threads), *times, CLOCKS[clock], _speed_multiple(whole, cached, clock)]
        lines.append(cells)
    return markdown_table(head, lines)


def training_bars_block(record: Path) -> str:
    """Return the targets of stacked training, including those of a GPU if one was available."""
    lines = [bars_table(json.loads((record / "training.json").read_text(encoding="utf-8")))]
    gpu = record / "training-cuda.json"
    if not gpu.exists():
        return "\n\n".join([*lines, "GPU: not measured."])
    bench = json.loads(gpu.read_text(encoding="utf-8"))
    return "\n\n".join([*lines, hardware_line(bench), bars_table(bench)])


def layers_table(bench: dict[str, Any]) -> str:
    """Return the times of many layers at once and one after another."""
    head = ("threads", "one by one, wall time", "in one batch")
    lines: Lines = []
    for threads in sorted({row["threads"] for row in bench["layers"]}):
        rows = {row["method"]: row for row in bench["layers"] if row["threads"] == threads}
        cells = [_speed_seconds(rows["loop"]), _speed_seconds(rows["batched"])]
        lines.append([str(threads), *cells])
    return markdown_table(head, lines)


def _milliseconds(row: Row, clock: str = "cpu", share: int = 1) -> str:
    """Return median and range in milliseconds, divided by the number of shares."""
    low, median, high = (1e3 / share * row[f"{clock}_{kind}"] for kind in ("min", "median", "max"))
    if high < 1e3:
        return f"{number(median, 3)} ms {interval((low, high), 3)}"
    return f"{median:.0f} ms [{low:.0f}, {high:.0f}]"


def _speed_seconds(row: Row) -> str:
    return f"{row['wall_median']:.2f} s [{row['wall_min']:.2f}, {row['wall_max']:.2f}]"


def _speed_multiple(row: Row | None, own: Row, clock: str = "cpu") -> str:
    """Return a candidate's median time relative to another's; a single run is marked."""
    if row is None:
        return "not measured"
    once = ", one run" if row["repeats"] == 1 else ""
    return f"{row[f'{clock}_median'] / own[f'{clock}_median']:.3g}x{once}"


# The table of federated frameworks, from the record of the benchmark

OURS = "fedlora-sim"


def rivals_block(bench: dict[str, Any]) -> str:
    """Return time of a round in each framework as a multiple of ours, versions, and deviations."""
    rows: list[Row] = bench["rows"]
    lanes = list(dict.fromkeys(row["lane"] for row in rows))
    rivals = [lane for lane in lanes if lane != OURS]
    head = ("model", "clients a round", "threads", f"{OURS}, a round", *rivals)
    lines: Lines = []
    cases = dict.fromkeys((row["d_model"], row["cohort"], row["threads"]) for row in rows)
    for d, cohort, threads in cases:
        found = {
            row["lane"]: row
            for row in rows
            if (row["d_model"], row["cohort"], row["threads"]) == (d, cohort, threads)
        }
        own = found[OURS]
        cells = [f"d = {d}", str(cohort), str(threads), _rivals_speed_seconds(own)]
        cells += [_rivals_speed_multiple(found[lane], own) for lane in rivals]
        lines.append(cells)
    tables = (markdown_table(head, lines), _lanes(rows, lanes))
    return "\n\n".join([*tables, f"Measured on: {bench['hardware']}."])


def _lanes(rows: list[Row], lanes: list[str]) -> str:
    """Return libraries of each lane, how it ran, and its largest difference from plain PyTorch."""
    head = ("lane", "how it runs", "libraries", "first round", "off, float64", "off, float32")
    lines: Lines = []
    for lane in lanes:
        own = [row for row in rows if row["lane"] == lane and row["problem"] is None]
        if not own:
            continue
        last = own[-1]
        libraries = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
        first = [row["first_round_median"] for row in own]
        start = f"{min(first):.2g} to {max(first):.2g} s"
        off = [_largest(own, dtype) for dtype in ("float64", "float32")]
        lines.append([lane, last["how"], libraries, start, *off])
    return markdown_table(head, lines)


def _largest(rows: list[Row], dtype: str) -> str:
    """Return the largest difference; a dash for a lane that does not compute in a dtype."""
    found = [row["relative_difference"].get(dtype) for row in rows]
    values = [value for value in found if value is not None]
    if not values:
        return NONE
    return f"{max(values):.0e}" if max(values) else "0"


def _rivals_speed_seconds(row: Row) -> str:
    if row["problem"] is not None:
        return str(row["problem"])
    low, median, high = (row[f"round_{kind}"] for kind in ("min", "median", "max"))
    return f"{number(median, 3)} s {interval((low, high), 3)}"


def _rivals_speed_multiple(row: Row, own: Row) -> str:
    """Return a framework's median over ours, and its range over our median.

    Below 1 it is faster.
    """
    if row["problem"] is not None or own["problem"] is not None:
        return str(row["problem"] or NONE)
    low, median, high = (
        row[f"round_{kind}"] / own["round_median"] for kind in ("min", "median", "max")
    )
    return f"{number(median, 2)}x {interval((low, high), 2)}"
