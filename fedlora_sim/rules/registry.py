"""The rules by name: case-insensitive, each name once, open to outsiders.

Another package adds a class of rules, an `AggregationRule` or any `Aggregator`, by the decorator,
when it is imported, or by an entry point, without:

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
from typing import Any, TypeVar, overload

from torch import Tensor

from fedlora_sim.errors import check_choice, expected, one_line
from fedlora_sim.rules.base import AggregationRule, Aggregator, option_defaults, option_text
from fedlora_sim.rules.external import ForeignRule, as_rule, check_aggregator_form

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
    """Class decorator: make a rule known under its `name`, and under other names that it goes by.

    Raises:
        InputError: if a name is taken by another rule.
    """
    if rule is None:
        return lambda cls: _register(cls, aliases)
    return _register(rule, aliases)


def get_rule(rule: str | AggregationRule | Aggregator, **options: object) -> AggregationRule:
    """The rule of a name, with its options; a rule that is made is returned as engines take it.

    Args:
        rule: a name, or a name with options as text, `raflora:canonicalize=true`; or a rule.
        **options: options of the rule, beside those in the text.

    Raises:
        InputError: if the name or an option is unknown (with the closest one), or its value wrong.
    """
    if not isinstance(rule, str) and not isinstance(rule, type) and hasattr(rule, "step"):
        if options:
            raise expected("options", options, "none beside a rule that is already made")
        return as_rule(rule)
    if isinstance(rule, type) and hasattr(rule, "step"):
        raise expected("rule", rule.__name__, f"a rule that is made: {rule.__name__}()")
    name, *parts = rule.split(":") if isinstance(rule, str) else (rule,)
    _load_entry_points()
    chosen = check_choice("rule", name, [*_RULES, *_ALIASES])
    return make_rule(_RULES[_ALIASES.get(chosen, chosen)], parts, **options)


def make_rule(rule: RuleClass, parts: Sequence[str] = (), **options: object) -> AggregationRule:
    """A rule of a class, as engines take it.

    Args:
        rule: the class.
        parts: options as text, `option=value` each.
        **options: options of the rule, beside those in the text.

    Raises:
        InputError: if an option is unknown (with the closest one), or its value wrong.
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
    """Names of all registered rules, sorted; without the other names that some go by."""
    _load_entry_points()
    return tuple(sorted(_RULES))


def rule_aliases() -> dict[str, str]:
    """Other names that rules go by, each with the rule's own."""
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
    """The name of a class; what would only fail when somebody lists or runs it is refused.

    Raises:
        InputError: saying what is wrong with it.
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
    """Whether it is the same class once more, from a notebook cell or a module run twice."""
    return (rule.__module__, rule.__qualname__) == (owner.__module__, owner.__qualname__)


def _parse(part: str) -> tuple[str, object]:
    """Option and value of `canonicalize=true`; the value as TOML, else as plain text."""
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

    One that fails to load is named in a warning and left out: whatever its module does, other rules
    still work.
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
        except (Exception, SystemExit) as error:  # whatever another package does
            reason = f"{type(error).__name__}: {error}"
            message = f"entry point {point.name} = {point.value} of {ENTRY_POINTS}: {reason}"
            warnings.warn(f"{one_line(message)} (left out)", stacklevel=2)


# What the registered rules are, in words: for listings

ADAPTERS = {"product": "products", "factor": "factors", "none": "a stack"}


@dataclass(frozen=True)
class Description:
    """One line of a listing.

    Args:
        name: of the rule.
        also: other names that it goes by.
        options: its options with their defaults.
        averages: what it averages, and whether something goes into the base.
        multiplier: factor on a direction whose contributors weigh W.
        summary: what it does.
        source: paper and place.
    """

    name: str
    also: str
    options: str
    averages: str
    multiplier: str
    summary: str
    source: str


def describe(rule: AggregationRule) -> Description:
    """The listing's line of a rule, from its docstrings and declarations."""
    adapter = "B alone" if rule.frozen_a else ADAPTERS[rule.space]
    averages = f"{adapter}, into the base" if rule.residual_in_base else adapter
    declared = rule.properties.multiplier
    inner = rule.inner if isinstance(rule, ForeignRule) else None
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
    """Every registered rule, by name."""
    return tuple(describe(get_rule(name)) for name in rule_names())


def _told(multiplier: Callable[[Tensor], Tensor] | None) -> str:
    if multiplier is None:
        return "not declared"
    return _first_line(multiplier).rstrip(".") or "declared, not in words"


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").split("\n")[0]
