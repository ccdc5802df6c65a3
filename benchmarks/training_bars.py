"""Speed targets of stacked training, and whether this run reached them."""

from __future__ import annotations

from typing import Any

from benchmarks.bars import Bar, decided

SIZE, CLIENTS, THREADS = 64, 100, 2  # the case of the targets against the loop
OF_THE_LIMIT, FASTER_THAN_LOOP, FASTER_ON_GPU = 1.25, 2.0, 20.0

Record = dict[str, Any]


def training_bars(record: Record) -> list[dict[str, Any]]:
    """Return all targets that the record can decide: quantity, target, measurement, verdict."""
    gpu = record["device"] != "cpu"
    found: list[Bar] = []
    for d, threads in sorted({(row["d"], row["threads"]) for row in record["rows"]}):
        ratios = multiples(record, "stacked", "limit", d, threads)
        what = f"stacked / big batch, d = {d}, {min(ratios)} to {max(ratios)} clients"
        found.append((what + _on(threads, gpu), "<=", OF_THE_LIMIT, max(ratios.values())))
    threads, least = (1, FASTER_ON_GPU) if gpu else (THREADS, FASTER_THAN_LOOP)
    ratio = multiples(record, "loop", "stacked", SIZE, threads).get(CLIENTS)
    if ratio is not None:
        what = f"loop / stacked, d = {SIZE}, {CLIENTS} clients"
        found.append((what + _on(threads, gpu), ">=", least, ratio))
    return decided(found)


def multiples(record: Record, over: str, under: str, d: int, threads: int) -> dict[int, float]:
    """Return the ratio of the median times of two lanes by number of clients."""
    times: dict[str, dict[int, float]] = {over: {}, under: {}}
    for row in record["rows"]:
        if (row["d"], row["threads"]) == (d, threads) and row["lane"] in times:
            times[row["lane"]][row["clients"]] = row[f"{row['clock']}_median"]
    return {clients: taken / times[under][clients] for clients, taken in times[over].items()}


def _on(threads: int, gpu: bool) -> str:
    if gpu:
        return ", on a GPU"
    # with several threads CPU time includes waiting
    return ", 1 thread, CPU time" if threads == 1 else f", {threads} threads, wall time"
