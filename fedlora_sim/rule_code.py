"""The code of rules from outside this package: what tells their versions apart."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from fedlora_sim.aggregation import AggregationRule
from fedlora_sim.aggregation.foreign import ForeignRule
from fedlora_sim.storage import digest, file_digest, source_fingerprint

OWN = __name__.partition(".")[0]
UNKNOWN = "unknown"


def rule_class(rule: AggregationRule) -> type:
    """The class that a rule was written as."""
    return type(rule.inner if isinstance(rule, ForeignRule) else rule)


def rule_code(rule: AggregationRule) -> str | None:
    """Hash of the sources of a rule from outside; None for the package's own.

    A rule in a package: of all the package's modules. Another one: of its file. The same for
    classes from outside that it derives from.

    Returns:
        The hash; `unknown` where there is no file, as in a notebook.
    """
    kind = rule_class(rule)
    if _top(kind) == OWN:
        return None
    own = [_sources(base) for base in kind.__mro__ if _is_outside(base)]
    if UNKNOWN in own:
        return UNKNOWN
    return digest("".join(dict.fromkeys(own)).encode())


def _top(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _is_outside(kind: type) -> bool:
    return _top(kind) not in {OWN, "builtins"} and _top(kind) not in sys.stdlib_module_names


def _sources(kind: type) -> str:
    """Hash of the package or file of a class."""
    package = sys.modules.get(_top(kind))
    places = [Path(place) for place in getattr(package, "__path__", ())]
    if places:
        return digest("".join(source_fingerprint(place) for place in places).encode())
    try:
        path = inspect.getsourcefile(kind)
    except (TypeError, OSError):
        path = None
    return UNKNOWN if path is None else file_digest(Path(path))
