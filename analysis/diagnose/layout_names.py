"""Names of the layouts of a run's folder.

They stand apart from `layouts`, which imports torch: the help of the command lists them.
"""

from __future__ import annotations

LAYOUTS = (
    *("own", "flowertune", "fedfm", "openfedllm", "flora", "nvflare", "federatedscope", "rounds"),
)
