"""Registry of rules by name (case-insensitive, unique), open to other packages.

Another package adds a rule class, an `AggregationRule` or any `Aggregator`, in one of two ways:
with the decorator `register`, which takes effect when the package is imported, or with an entry
point, which needs no import:

    [project.entry-points."fedlora_sim.rules"]
    my_rule = "my_package.my_module:MyRule"
"""

from __future__ import annotations

import inspect
import tomllib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar, overload

from fedlora_sim.errors import check_choice, expected, one_line
from fedlora_sim.rules.base import AggregationRule, Aggregator, option_defaults, option_text
from fedlora_sim.rules.external import ExternalRule, as_rule, check_aggregator_form

if TYPE_CHECKING:
    from torch import Tensor

ENTRY_POINTS = "fedlora_sim.rules"
RuleClass = type[AggregationRule] | type[Aggregator]
RuleT = TypeVar("RuleT", bound=RuleClass)

_RULES: dict[str, RuleClass] = {}
_ALIASES: dict[str, str] = {}
_loaded = False


@overload
def register(rule: RuleT) -> RuleT: ...
@overload
def register(*, aliases: Sequence[str]) -> Callable[[RuleT], RuleT]: ...
def register(rule: Any = None, *, aliases: Sequence[str] = ()) -> Any:
    """Register a rule class under its `name` and optional aliases; use as a class decorator.

    Raises:
        InputError: if a name is taken by another rule.
    """
    if rule is None:
        return lambda cls: _register(cls, aliases)
    return _register(rule, aliases)


def get_rule(rule: str | AggregationRule | Aggregator, **options: object) -> AggregationRule:
    """Return the rule with the given name and options; a rule object is adapted for the engines.

    Args:
        rule: a name, a name with options such as `raflora:canonicalize=true`, or a rule object.
        **options: more options of the rule.

    Raises:
        InputError: if the name or an option is unknown (names the closest one), or a value is
            wrong.
    """
    if not isinstance(rule, str) and not isinstance(rule, type) and hasattr(rule, "step"):
        if options:
            raise expected("options", options, "none with a rule object")
        return as_rule(rule)
    if isinstance(rule, type) and hasattr(rule, "step"):
        raise expected("rule", rule.__name__, f"a rule that is made: {rule.__name__}()")
    name, *parts = rule.split(":") if isinstance(rule, str) else (rule,)
    _load_entry_points()
    chosen = check_choice("rule", name, [*_RULES, *_ALIASES])
    return make_rule(_RULES[_ALIASES.get(chosen, chosen)], parts, **options)


def make_rule(rule: RuleClass, parts: Sequence[str] = (), **options: object) -> AggregationRule:
    """Return an instance of a rule class, adapted for the engines.

    Args:
        rule: the class.
        parts: options as text, `option=value` each.
        **options: more options of the rule.

    Raises:
        InputError: if an option is unknown (names the closest one), or a value is wrong.
    """
    given = {**dict(_parse(part) for part in parts), **options}
    defaults = option_defaults(rule)
    for option, value in given.items():
        if option not in defaults:
            _refuse_option(str(rule.name).lower(), option, value, defaults)
        if isinstance(defaults[option], bool) and not isinstance(value, bool):
            raise expected(option, value, "true or false")
    return as_rule(rule(**given))


def rule_names() -> tuple[str, ...]:
    """Return the names of all registered rules, sorted, without aliases."""
    _load_entry_points()
    return tuple(sorted(_RULES))


def rule_aliases() -> dict[str, str]:
    """Return the aliases of the rules, each with the rule's name."""
    _load_entry_points()
    return dict(sorted(_ALIASES.items()))


def _register(rule: RuleT, aliases: Sequence[str]) -> RuleT:
    names = [name.lower() for name in (check_rule_class(rule), *aliases)]
    for name in names:
        owner = _RULES.get(_ALIASES.get(name, name))
        if owner is not None and not _is_again(rule, owner):
            raise expected("name", name, f"a name other than that of {owner.__name__}")
    _RULES[names[0]] = rule
    _ALIASES.update(dict.fromkeys(names[1:], names[0]))
    return rule


def check_rule_class(rule: Any) -> str:
    """Check a rule class and return its name.

    Errors that would otherwise occur when the rule is listed or run are raised here.

    Raises:
        InputError: names what is wrong with the class.
    """
    if not isinstance(rule, type):
        raise expected("rule", rule, "a class of rules")
    missing = sorted(getattr(rule, "__abstractmethods__", ()))
    if missing:
        raise expected("rule", rule.__name__, f"a rule that defines {', '.join(missing)}")
    name = check_aggregator_form(rule)
    option_defaults(rule)
    try:
        made = rule()
    except TypeError as error:
        wanted = f"a rule that can be made without arguments ({error})"
        raise expected("rule", rule.__name__, wanted) from None
    as_rule(made)
    return name


def _is_again(rule: RuleClass, owner: RuleClass) -> bool:
    """Return True if the class is the same one again, from a notebook cell or module run twice."""
    return (rule.__module__, rule.__qualname__) == (owner.__module__, owner.__qualname__)


def _parse(part: str) -> tuple[str, object]:
    """Return option and value of `canonicalize=true`; the value is TOML or else plain text."""
    name, sign, value = part.partition("=")
    if not sign or not name.strip():
        raise expected("rule option", part, "option=value, e.g. canonicalize=true")
    if value.strip().lower() == "none":
        return name.strip(), None
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _refuse_option(rule: str, option: str, value: object, known: dict[str, object]) -> None:
    if not known:
        raise expected(option, value, f"no option: {rule} has none")
    check_choice(f"option of rule {rule!r}", option, known)
    raise expected(option, value, f"the option {option.lower()!r}, in lower case")


def _load_entry_points() -> None:
    """Register the rules of other packages, once.

    An entry point that fails to load is reported in a warning and left out, so that a faulty
    package does not affect other rules.
    """
    global _loaded
    if _loaded:
        return
    _loaded = True
    for point in entry_points(group=ENTRY_POINTS):
        try:
            rule = point.load()
            if rule not in _RULES.values():  # its module may have used the decorator
                _register(rule, ())
        except (Exception, SystemExit) as error:  # another package may raise anything
            reason = f"{type(error).__name__}: {error}"
            message = f"entry point {point.name} = {point.value} of {ENTRY_POINTS}: {reason}"
            warnings.warn(f"{one_line(message)} (left out)", stacklevel=2)


# Descriptions of the registered rules, for listings

ADAPTERS = {"product": "products", "factor": "factors", "none": "a stack"}


@dataclass(frozen=True)
class Description:
    """One row of a listing of rules.

    Args:
        name: name of the rule.
        also: aliases of the rule.
        options: options with their defaults.
        averages: what the rule averages, and whether it merges a correction into the base.
        multiplier: factor on a direction whose contributors have weight share W.
        summary: one sentence on the rule.
        source: paper and section.
    """

    name: str
    also: str
    options: str
    averages: str
    multiplier: str
    summary: str
    source: str


def describe(rule: AggregationRule) -> Description:
    """Return the description of a rule, from its docstrings and declarations."""
    adapter = "B alone" if rule.frozen_a else ADAPTERS[rule.space]
    averages = f"{adapter}, into the base" if rule.residual_in_base else adapter
    declared = rule.properties.multiplier
    inner = rule.inner if isinstance(rule, ExternalRule) else None
    return Description(
        name=rule.name,
        also=", ".join(other for other, own in rule_aliases().items() if own == rule.name),
        options=", ".join(f"{name}={option_text(value)}" for name, value in rule.options.items()),
        averages=averages if inner is None else "in its own way",
        multiplier=_told(declared),
        summary=_first_line(type(rule if inner is None else inner)),
        source=rule.source,
    )


def describe_all() -> tuple[Description, ...]:
    """Return the descriptions of all registered rules, sorted by name."""
    return tuple(describe(get_rule(name)) for name in rule_names())


def _told(multiplier: Callable[[Tensor], Tensor] | None) -> str:
    if multiplier is None:
        return "not declared"
    return (
        _first_line(multiplier).removeprefix("Return ").rstrip(".")
        or "declared, without a description"
    )


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").split("\n")[0]
