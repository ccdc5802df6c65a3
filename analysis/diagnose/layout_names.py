"""Names of the layouts of a run: folders and files of rounds, and objects in memory.

They stand apart from `layouts`, which imports torch: the help of the command lists them.
"""

from __future__ import annotations

LAYOUTS = (
    *("own", "flowertune", "fedfm", "openfedllm", "flora", "nvflare", "federatedscope", "rounds"),
)
IN_MEMORY = "state dicts"
"""Layout of state dicts in Python."""
DATASET = "dataset"
"""Layout of a dataset that `simulate` returned."""
