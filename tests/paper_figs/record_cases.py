"""A document with every generated block, and the records that fill them."""

from __future__ import annotations

TEMPLATE = """# Title

<!-- verdicts: generated -->
old table
<!-- end -->

between

<!-- proofs: generated -->
<!-- end -->

<!-- evidence: generated -->
<!-- end -->

<!-- themes: generated -->
<!-- end -->

<!-- conjectures: generated -->
<!-- end -->

<!-- digits: generated -->
<!-- end -->

<!-- run: generated -->
<!-- end -->

<!-- summary: generated -->
<!-- end -->

<!-- rules: generated -->
<!-- end -->

<!-- speed: generated -->
<!-- end -->

<!-- spectral_lanes: generated -->
<!-- end -->

<!-- spectral_slopes: generated -->
<!-- end -->

<!-- spectral_bars: generated -->
<!-- end -->

<!-- matrix: generated -->
<!-- end -->

<!-- matrix_bars: generated -->
<!-- end -->

<!-- aggregation: generated -->
<!-- end -->

<!-- layers: generated -->
<!-- end -->

<!-- bars: generated -->
<!-- end -->

<!-- hardware: generated -->
<!-- end -->

<!-- large_aggregates: generated -->
<!-- end -->

<!-- large_bars: generated -->
<!-- end -->

<!-- peft_folders: generated -->
<!-- end -->

<!-- peft_bars: generated -->
<!-- end -->

<!-- gpu: generated -->
<!-- end -->

<!-- training: generated -->
<!-- end -->

<!-- training_bars: generated -->
<!-- end -->

<!-- rivals: generated -->
<!-- end -->

<!-- sweep: generated -->
<!-- end -->

<!-- faults: generated -->
<!-- end -->

<!-- conformance: generated -->
<!-- end -->

<!-- conformance_rules: generated -->
<!-- end -->

<!-- conformance_broken: generated -->
<!-- end -->

<!-- mutation: generated -->
<!-- end -->

<!-- calibration_coverage: generated -->
<!-- end -->

<!-- calibration_margin: generated -->
<!-- end -->

<!-- calibration_family: generated -->
<!-- end -->

<!-- calibration_reach: generated -->
<!-- end -->

<!-- calibration_ranks: generated -->
<!-- end -->

after
"""


TIMES = {f"{kind}_{of}": 0.5 for kind in ("wall", "cpu") for of in ("median", "min", "max")}
BAR = {"what": "this / that", "wanted": "<= 3", "measured": 4.0, "verdict": "missed"}
SPECTRAL = {
    "rows": [{"rule": "fedavg", "noise": False, "threads": 1, **TIMES}],
    "lanes": [{"lane": "all clients", "cpu_min": 3e-8, "cpu_median": 4e-8, "cpu_max": 5e-8}],
    "slopes": [{"quantity": "seeds", "values": [1, 2], "seconds": [0.1, 0.2], "slope": 1.0}],
    "bars": [BAR],
}
MATRIX = {
    "rows": [{"rule": "fedavg", "ratio": 0.5, "engine": TIMES, "loop": TIMES}],
    "bars": [BAR],
}
LARGE = {
    "rows": [
        {
            "d": 9,
            "clients": 3,
            "columns": 2000,
            "spectrum": "flat",
            "errors": {"ours": 1e-7, "two passes": 1.0, "two power iterations": 0.1},
            "times": dict.fromkeys(("ours", "two passes", "two power iterations"), TIMES),
        }
    ],
    "bars": [BAR],
}
FOLDERS = {
    "rows": [{"modules": 8, "relative_error": 1e-7, "aggregate": TIMES, "files": TIMES}],
    "bars": [BAR],
}
AGGREGATION = {
    "hardware": "a processor",
    "torch_version": "2",
    "scipy_version": "1",
    "rows": [
        {"d": 9, "dtype": "float32", "method": name, "repeats": n, "relative_error": 1e-7}
        | {key: seconds * factor for key, seconds in TIMES.items()}
        for name, n, factor in (
            ("gram", 5, 1),
            ("aggregate", 5, 1.1),
            ("qr", 5, 2),
            ("dense", 1, 300),
        )
    ],
    "layers": [
        {"threads": threads, "method": name, **TIMES}
        for threads in (1, 2)
        for name in ("loop", "batched")
    ],
    "bars": [{"what": "qr / gram", "wanted": ">= 2", "measured": 2.0, "verdict": "met"}],
}

TRAINING = {
    **{key: AGGREGATION[key] for key in ("hardware", "torch_version", "scipy_version")},
    "rows": [
        {"d": 9, "threads": 2, "clients": 8, "lane": lane, "clock": "wall", "repeats": 5}
        | {key: seconds * factor for key, seconds in TIMES.items()}
        for lane, factor in (
            ("stacked", 1),
            ("limit", 1),
            ("loop", 4),
            ("padded", 1),
            ("grouped", 2),
        )
    ],
    "prefix": [
        {"threads": 2, "lane": lane, "clock": "wall", "repeats": 5, "samples": 10, **TIMES}
        for lane in ("whole", "cached")
    ],
    "bars": [{"what": "loop / stacked", "wanted": ">= 2", "measured": 4.0, "verdict": "met"}],
}

RIVALS = {
    "hardware": "a processor",
    "rows": [
        {"d_model": 9, "cohort": 1, "threads": 2, "lane": lane, "problem": problem}
        | {f"round_{of}": 0.5 * factor for of in ("median", "min", "max")}
        | {"first_round_median": 0.5, "how": "one by one", "versions": {"torch": "2"}}
        | {"relative_difference": {"float32": 2e-7}}
        for lane, factor, problem in (
            ("fedlora-sim", 1, None),
            ("theirs", 0.2, None),
            ("another", 1, "not installed"),
        )
    ],
}

SWEEP = {
    "workers": 2,
    "hardware": "a processor",
    "cores": 4,
    "rows": [
        {"grid": "seeds", "rows": 2, "runs": 6000, "tasks": 9, "largest_difference": 0.0}
        | {"overhead_ms_per_task": 25.0, "overhead_share": 0.02, "runs_per_second": {"loop": 500.0}}
        | {
            "times": {
                lane: {"wall_median": seconds, "wall_min": seconds / 1.25, "wall_max": 2 * seconds}
                for lane, seconds in (("loop", 12.0), ("serial", 10.0), ("pool", 5.0))
            }
        }
    ],
}

CONFORMANCE = {
    "laws": 36,
    "tried": 12345,
    "command": "python record.py",
    "rules": {
        "fedavg": {"passed": 30, "expected": 2, "skipped": 4, "examples": 9000, "own": True},
        "dense": {"passed": 30, "failed": 1, "examples": 10, "own": False},
    },
    "broken": {
        "Forgetful": {"bug": "`a | b` forgotten.", "fails": ["exact"], "as_named": True},
        "Lucky": {"bug": "Nothing much.", "fails": ["linear"], "as_named": False},
    },
}

MUTATION = {
    "command": "python plant.py",
    "faults": [
        {"fault": f"fault {k}", "path": path, "result": result, "as_expected": as_expected}
        for k, (path, result, as_expected) in enumerate(
            (
                ("a/one.py", "caught", True),
                ("a/two.py", "caught", False),
                ("b/c/one.py", "survived", False),
            )
        )
    ],
}

RATE = {"ratio": 1.25, "ratio_interval": [1.0, 1.5], "resolved": True, "calibrated": True}
OF = {"estimator": "mean", "law": "normal", "runs": 8}
CALIBRATION = {
    "coverage": [
        {**OF, **RATE, "error": 0.1, "replicates": 5_000},
        {**OF, **RATE, "error": 0.01, "replicates": 5_000, "ratio": 5.0, "calibrated": False},
        {**OF, **RATE, "error": 1e-3, "replicates": 5_000, "resolved": False, "calibrated": None},
    ],
    "margin": [
        {**OF, **RATE, "first": 8, "cap": 32, "looks": 3, "replicates": 400, "supported": 20}
    ],
    "family": {
        **RATE,
        **{"missed": 6, "repetitions": 200, "error": 0.05},
        "claims": [
            {"claim": "one", "runs": 9, "first": 90, "each": 1e-4, "skewness": 2.0, "reach": 0.25},
            {"claim": "two", "runs": 9, "first": 90, "each": 1e-4, "skewness": None, "reach": None},
        ],
    },
    "ranks": [{**OF, **RATE, "counts": [3, 4], "p_uniform": 0.5}],
}

FAULTS = {
    "command": "python faults.py",
    "rows": [
        {"promise": "Nothing is lost.", "kind": "kills", "count": 20, "passed": True}
        | {"test": "faults/test_kills.py::test_one"},
        {"promise": "Nothing is lost.", "kind": "kills", "count": 5, "passed": True}
        | {"test": "faults/test_kills.py::test_two"},
        {"promise": "Nothing is hidden.", "kind": "files", "count": 2000, "passed": False}
        | {"test": "peft/test_files.py::test_three"},
    ],
}
