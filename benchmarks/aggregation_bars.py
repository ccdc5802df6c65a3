"""Speed targets of the aggregation engine, and whether this run reached them."""

from __future__ import annotations

from typing import Any

from benchmarks.bars import Bar, decided
from fedlora_sim.tolerances import RELATIVE

SIZE = 4096  # width of the layer of the speed targets
FASTER_THAN_DENSE, FASTER_THAN_QR, OF_THE_PRODUCTS = 300.0, 2.0, 2.0

Record = dict[str, Any]


def aggregation_bars(record: Record) -> list[dict[str, Any]]:
    """Return all targets that the record can decide: quantity, target, measurement, verdict.

    One layer by median CPU time on one thread, many layers by median wall time.
    """
    found: list[Bar] = []
    rows = {(r["d"], r["dtype"], r["method"]): r for r in record["rows"]}

    def ratio(over: str, under: str) -> float | None:
        pair = [rows.get((SIZE, "float32", name)) for name in (over, under)]
        if pair[0] is None or pair[1] is None:
            return None
        return float(pair[0]["cpu_median"] / pair[1]["cpu_median"])

    for over, under, least in (
        ("dense", "aggregate", FASTER_THAN_DENSE),
        ("peft", "aggregate", FASTER_THAN_DENSE),
        ("qr", "gram", FASTER_THAN_QR),
    ):
        if (value := ratio(over, under)) is not None:
            found.append((f"{over} / {under}, {SIZE} x {SIZE}", ">=", least, value))
    if (value := ratio("gram", "products")) is not None:
        found.append((f"gram / products, {SIZE} x {SIZE}", "<=", OF_THE_PRODUCTS, value))
    for threads in sorted({r["threads"] for r in record["layers"]}):
        times = {r["method"]: r["wall_median"] for r in record["layers"] if r["threads"] == threads}
        what = f"batched / loop, {threads} thread{'s' if threads > 1 else ''}"
        found.append((what, "<=", 1.0, times["batched"] / times["loop"]))
    for dtype, bound in RELATIVE["factorization"].items():
        errors = [
            r["relative_error"]
            for r in record["rows"]
            if r["dtype"] == dtype and r["method"] == "aggregate"
        ]
        found.append((f"largest error of aggregate, {dtype}", "<=", bound, max(errors)))
    return decided(found)
