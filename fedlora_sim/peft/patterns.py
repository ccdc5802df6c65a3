"""Patterns of module names: match in bounded time; write `rank_pattern`, `alpha_pattern`."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

from fedlora_sim.errors import expected

# Match the patterns of an adapter's configuration in bounded time.
#
# PEFT reads `target_modules`, `rank_pattern` and `alpha_pattern` as regular expressions, and a
# client chooses them. A pattern such as `(a+)+$` can keep Python's `re` busy for years, and only
# the end of its process stops it. Patterns with repetition or alternation are therefore tried first
# in a separate process, with all modules of the folder and a limit of processor time.

SECONDS = 1.0
"""Processor time for all matches of a folder, in addition to that of ordinary ones."""
SECONDS_PER_MATCH = 5e-6
MOST_MATCHES = 10_000_000
"""Maximum of patterns times modules of one folder."""
LONGEST = 10_000
"""Maximum number of characters of a pattern."""

# A sequence of single characters: no repetition, no alternation, no group.
_PLAIN = re.compile(r"(?:[\w.^$-]|\\.)*")
_TRIAL = """
import json, re, signal, sys
task = json.load(sys.stdin)
if hasattr(signal, "setitimer"):  # elsewhere the parent's limit of time is left
    signal.setitimer(signal.ITIMER_VIRTUAL, task["seconds"])  # whose signal ends the process
for number, form in enumerate(task["forms"]):
    print(number, flush=True)
    matches = re.compile(form).match
    for name in task["names"]:
        matches(name)
"""


def fits_end(pattern: str, name: str) -> bool:
    """Return True if a pattern matches the end of a module's name, after a dot, as in PEFT."""
    return _compiled(_of_end(pattern)).match(name) is not None


def fits_whole(pattern: str, name: str) -> bool:
    """Return True if a pattern matches the whole name of a module, as PEFT's `target_modules`."""
    return _compiled(_of_whole(pattern)).match(name) is not None


def check_pattern(argument: str, pattern: str) -> None:
    """Refuse patterns that are not valid regular expressions or are too long.

    Raises:
        InputError: names the argument.
    """
    if len(pattern) > LONGEST:
        raise expected(argument, pattern, f"a pattern of at most {LONGEST:,} characters")
    try:
        _compiled(_of_end(pattern))
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        raise expected(argument, pattern, f"a regular expression ({error})") from None


def check_time(
    source: str, modules: Collection[str], whole: Iterable[str], ends: Iterable[str]
) -> None:
    """Refuse patterns that take too long to match with the modules of a folder.

    Args:
        source: file of the patterns, for the message.
        modules: names of all modules.
        whole: patterns for whole names.
        ends: patterns for the ends of names.

    Raises:
        InputError: names the file and the pattern.
    """
    forms = {_of_whole(pattern): pattern for pattern in whole}
    forms |= {_of_end(pattern): pattern for pattern in ends}
    count = len(forms) * len(modules)
    if count > MOST_MATCHES:
        wanted = f"at most {MOST_MATCHES:,} pairs of a pattern and a module"
        raise expected(source, f"{len(forms):,} patterns x {len(modules):,} modules", wanted)
    tried = [form for form, pattern in forms.items() if _PLAIN.fullmatch(pattern) is None]
    seconds = SECONDS + SECONDS_PER_MATCH * count
    slow = _slow(tried, list(modules), seconds) if tried else None
    if slow is not None:
        wanted = f"patterns that {seconds:.1f} s are enough to match with {len(modules):,} modules"
        raise expected(f"{source}: pattern", forms[slow], wanted)


def _slow(forms: Sequence[str], names: Sequence[str], seconds: float) -> str | None:
    """Return the form at which a separate process ran out of time, or None."""
    task = json.dumps({"forms": forms, "names": names, "seconds": seconds})
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _TRIAL]
    try:
        done = subprocess.run(
            command,
            input=task.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=30 + 10 * seconds,  # allow for a busy machine
            check=False,
        )
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, output = 1, error.stdout or b""
    reached = output.split()
    return None if code == 0 else forms[int(reached[-1]) if reached else 0]


def _of_end(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _of_whole(pattern: str) -> str:
    return rf"(?:{pattern})\Z"


@lru_cache(maxsize=100_000)
def _compiled(form: str) -> re.Pattern[str]:
    with warnings.catch_warnings():  # future set syntax
        warnings.simplefilter("ignore")
        return re.compile(form)


# `rank_pattern` and `alpha_pattern`: match them as PEFT does, and write patterns that PEFT loads.
#
# PEFT matches a pattern with the names of the modules in the model, which may differ from the names
# in the file: transformers renames modules between versions, and PEFT renames the keys of old files
# when it loads them. A pattern that spells out a name from the file may then match nothing. The
# clients' own patterns match wherever PEFT loads the clients' folders, so only these are written.
# Modules that no pattern separates get one value. For ranks it is the highest one, and the other
# factors are padded with zeros.

V = TypeVar("V", bound=Hashable)


def pattern_key(patterns: Iterable[str], module: str) -> str:
    """Return the first pattern that matches, as PEFT does; the module itself if there is none.

    A pattern is a regular expression for the end of the name, after a dot.

    Source: `peft.utils.other.get_pattern_key`.
    """
    return next((pattern for pattern in patterns if fits_end(pattern, module)), module)


@dataclass(frozen=True)
class Written(Generic[V]):
    """A default and patterns, as PEFT reads them.

    Args:
        default: value of the modules that no pattern matches.
        patterns: values by pattern, in the order of PEFT's files (sorted keys).
        values: value of each module.
    """

    default: V
    patterns: dict[str, V]
    values: dict[str, V]


def write_patterns(
    values: Mapping[str, V],
    keys: Iterable[str],
    common: Callable[[Sequence[V]], V],
    names: Iterable[str] = (),
) -> Written[V]:
    """Return the values of modules as a default and patterns.

    Args:
        values: the required value of each module.
        keys: patterns that may be written.
        common: combines the values of modules that no pattern separates.
        names: modules whose names are those of the model. Their names are also used as patterns if
            the keys do not separate modules with different values.

    Returns:
        Default and patterns, and the value that they give each module: the required one, or
        `common` of all modules that match the same pattern.
    """
    known = functools.cache(fits_end)
    groups = _Groups(values, sorted(set(keys)), common, known)
    for candidate in _candidates(names):
        if not groups.changed:
            break
        finer = _Groups(values, sorted({*groups.keys, candidate}), common, known)
        if finer.changed < groups.changed:
            groups = finer
    return groups.written()


def most_common(values: Sequence[V]) -> V:
    """Return the most common value; the first one of a tie."""
    return Counter(values).most_common(1)[0][0]


def _candidates(names: Iterable[str]) -> list[str]:
    """Return the names as patterns, bare names (which all versions of PEFT read) first."""
    found = sorted(set(names))
    bare = [name if re.fullmatch(r"[\w.-]+", name) else re.escape(name) for name in found]
    return [*bare, *(f"^{re.escape(name)}" for name in found)]


class _Groups(Generic[V]):
    """Modules by the first matching pattern in sorted order; None if there is no match."""

    def __init__(
        self,
        values: Mapping[str, V],
        keys: Sequence[str],
        common: Callable[[Sequence[V]], V],
        fit: Callable[[str, str], bool],
    ) -> None:
        self.fitting = {m: [key for key in keys if fit(key, m)] for m in values}
        self.keys = keys
        members: dict[str | None, list[str]] = {}
        for module, fitting in self.fitting.items():
            members.setdefault(fitting[0] if fitting else None, []).append(module)
        self.shared = {key: common([values[m] for m in own]) for key, own in members.items()}
        self.values = {m: self.shared[f[0] if f else None] for m, f in self.fitting.items()}
        self.changed = sum(self.values[module] != value for module, value in values.items())

    def written(self) -> Written[V]:
        """Remove all patterns that do not change any module's value."""
        default = self.shared.get(None, most_common(list(self.values.values())))
        kept = {key: value for key, value in self.shared.items() if key is not None}
        for key in [key for key, value in kept.items() if value == default]:
            rest = {k: v for k, v in kept.items() if k != key}
            concerned = (m for m, fitting in self.fitting.items() if key in fitting)
            if all(
                next((rest[k] for k in self.fitting[m] if k in rest), default) == self.values[m]
                for m in concerned
            ):
                kept = rest
        return Written(default, dict(sorted(kept.items())), self.values)
