"""Tests of the frameworks run where these are installed: `make test-frameworks`."""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from importlib.util import find_spec

MODULES = {
    "test_flower.py": "flwr.serverapp.strategy",
    "test_tensorboard.py": "tensorboard",
    "test_nvflare.py": "nvflare.app_common.aggregators.model_aggregator",
}
NEEDED = "FEDLORA_SIM_NEEDS_FRAMEWORKS" in os.environ
collect_ignore = []
for test, module in MODULES.items():
    if not NEEDED and find_spec(module.partition(".")[0]) is None:
        collect_ignore.append(test)
        continue
    with warnings.catch_warnings():  # their own imports use what other packages deprecate
        warnings.simplefilter("ignore")
        import_module(module)
