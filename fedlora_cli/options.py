"""Options of several commands: rules, seeds, and values of scenario fields."""

from __future__ import annotations

import importlib
import sys
import tomllib
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora_sim.errors import MOST_ITEMS, InputError, check_count, expected
from fedlora_sim.import_path import prefer_own_packages

if TYPE_CHECKING:  # torch takes seconds, and some commands have no rules
    from fedlora_sim.rules import AggregationRule


FORCE_HELP = "replace results that are there; never files that fedlora-sim did not write"


def load_rule(text: str) -> AggregationRule:
    """Return the rule of a name (`raflora:canonicalize=true`) or of a path (`pkg.module:Name`).

    A registered name has priority, and the text after it is its options. Otherwise, if the text
    after the first `:` is not `option=value`, it is a name in a module in the current folder or an
    installed one: a rule object, or a class, which is created with its defaults and the options
    after it, `pkg.module:Name:beta=0.5`.

    Raises:
        InputError: if there is no such rule, it is not a rule, or its module does not import.
    """
    from fedlora_sim.rules import get_rule, rule_aliases, rule_names

    module, *behind = (part.strip() for part in text.split(":"))
    named = module.lower() in {*rule_names(), *rule_aliases()}
    if named or not behind or "=" in behind[0]:
        return get_rule(text)
    name, *options = behind
    return _made(text, _imported(text, module, name), options)


def _imported(text: str, module: str, name: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:  # first, as with `python -m`; an installed program searches elsewhere
        sys.path.insert(0, here)
        prefer_own_packages()  # if the folder has its own `analysis`
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise expected("rule", text, f"a module that imports ({error})") from error
        wanted = f"a registered rule, or a module that is installed or in {Path.cwd()}"
        raise expected("rule", text, f"{wanted}; there is no {error.name}") from None
    except (Exception, SystemExit) as error:  # a module may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise expected("rule", text, f"a module that imports ({reason})") from error
    try:
        return attrgetter(name)(found)
    except AttributeError:
        raise expected("rule", text, f"a name in {module}, which has no {name!r}") from None


def _made(text: str, found: object, options: list[str]) -> AggregationRule:
    from fedlora_sim.rules import get_rule
    from fedlora_sim.rules.registry import check_rule_class, make_rule

    if not hasattr(found, "step"):
        kind = type(found).__name__
        wanted = f"a rule or a class of rules, with `step`; this is of type {kind}"
        raise expected("rule", text, wanted)
    try:
        if isinstance(found, type):
            check_rule_class(found)
            return make_rule(found, options)
        if options:
            raise expected("options", options, "none with a rule object")
        return get_rule(found)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"rule={text!r}: {error}") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise expected("rule", text, f"a rule that can be made ({reason})") from error


def parse_assignment(text: str) -> tuple[str, object]:
    """Return a scenario field and its value from `field=value`.

    The value is TOML or else plain text.

    Raises:
        InputError: if there is no `=`.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise expected("--set", text, "field=value, e.g. gain_std=0.1")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def check_folder(argument: str, value: Path, folder: Path) -> None:
    """Refuse a folder that cannot be created because a file has its name.

    Raises:
        InputError: names the argument and its value.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise expected(argument, str(value), f"a place to write to ({path} is a file)")


def parse_pair(argument: str, text: str, mean: float | None = None) -> tuple[float, float]:
    """Return mean and standard deviation from `mean,std`, or from `std` if a mean is given.

    Raises:
        InputError: names the argument.
    """
    try:
        *before, std = (float(number) for number in text.split(","))
        (first,) = before if before or mean is None else [mean]
    except ValueError:
        form = "mean,std" if mean is None else "std or mean,std"
        raise expected(argument, text, f"{form}, e.g. 0.98,0.1") from None
    return first, std


def parse_samples(argument: str, text: str) -> tuple[float, ...]:
    """Return sample counts per client, from text such as `100x8,50x6`: 100 samples, 8 clients; ...

    Raises:
        InputError: names the argument.
    """
    counts: list[float] = []
    for part in text.replace(" ", "").split(","):
        count, _, clients = part.partition("x")
        try:
            number = check_count(argument, clients or "1", MOST_ITEMS - len(counts))
            counts += [float(count)] * number
        except ValueError:
            raise expected(argument, text, "counts like '120,80' or '100x8,50x6'") from None
    return tuple(counts)
