"""Options of a rule: the fields of its class, written behind its name."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from fedlora_sim.errors import expected


def option_text(value: object) -> str:
    """An option's value as it is written behind a rule's name."""
    return str(value) if isinstance(value, str) else str(value).lower()


def option_defaults(cls: type) -> dict[str, object]:
    """Options of a class of rules, with their defaults.

    Raises:
        InputError: if one has no default: then no name stands for the rule.
    """
    known: tuple[Field[Any], ...] = fields(cls) if is_dataclass(cls) else ()
    return {field.name: _default(cls, field) for field in known if field.init}


def _default(cls: type, field: Field[Any]) -> object:
    if field.default_factory is not MISSING:
        return field.default_factory()
    if field.default is MISSING:
        raise expected(f"{cls.__name__}.{field.name}", "no default", "options with a default")
    return field.default


def rule_label(rule: Any) -> str:
    """A rule's name with the options that are not at their default, as `get_rule` reads it."""
    usual = option_defaults(type(rule))
    changed = [(name, getattr(rule, name)) for name in usual if getattr(rule, name) != usual[name]]
    return ":".join([rule.name, *(f"{name}={option_text(value)}" for name, value in changed)])
