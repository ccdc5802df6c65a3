"""Rules from outside the package: what tells their versions apart, and who finds them."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from fedlora_sim.errors import expected
from fedlora_sim.rules import get_rule
from fedlora_sim.rules.registry import ENTRY_POINTS
from fedlora_sim.storage import rule_class, rule_code


@cache
def rule_version(rule: str) -> str | None:
    """Hash of the file of a rule from outside; None for the rules of the package."""
    code = rule_code(get_rule(rule))
    return None if code is None else code[:12]


def check_found_by_workers(rule: str) -> None:
    """Refuse a rule that only this process has registered.

    Raises:
        InputError: naming the rule.
    """
    chosen = get_rule(rule)
    kind = rule_class(chosen)
    known = {point.value for point in entry_points(group=ENTRY_POINTS)}
    if rule_code(chosen) is not None and f"{kind.__module__}:{kind.__qualname__}" not in known:
        wanted = f"a rule that other processes find by its name: an entry point of {ENTRY_POINTS!r}"
        raise expected("rule", rule, f"{wanted} (or one process alone)")
