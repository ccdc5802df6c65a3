"""The code of rules from outside this package: what tells their versions apart."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

from fedlora_sim.aggregation import AggregationRule
from fedlora_sim.aggregation.foreign import ForeignRule

OWN = __name__.partition(".")[0]
UNKNOWN = "unknown"


def rule_class(rule: AggregationRule) -> type:
    """The class that a rule was written as."""
    return type(rule.inner if isinstance(rule, ForeignRule) else rule)


def rule_code(rule: AggregationRule) -> str | None:
    """Hash of the file that a rule from outside is written in; None for the package's own.

    Returns:
        The hash; `unknown` where there is no file, as in a notebook.
    """
    kind = rule_class(rule)
    if kind.__module__.partition(".")[0] == OWN:
        return None
    try:
        path = inspect.getsourcefile(kind)
    except (TypeError, OSError):
        path = None
    return UNKNOWN if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
