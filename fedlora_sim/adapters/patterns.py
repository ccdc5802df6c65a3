"""`rank_pattern` and `alpha_pattern`: matched as PEFT matches them, and written so that PEFT loads.

PEFT matches a pattern with the names of the modules in the model, and these may differ from the
names in the file: transformers renames modules between versions, and PEFT renames the keys of old
files when it loads them. A pattern that spells out a name of the file may then match nothing. The
clients' own patterns still match wherever PEFT loads the clients' folders, so only these are
written. Modules that no pattern separates get one value, for ranks the highest: the factors of the
others are padded with zeros.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedlora_sim.adapters.matching import fits_end

V = TypeVar("V", bound=Hashable)


def pattern_key(patterns: Iterable[str], module: str) -> str:
    """Return the first pattern that fits, as PEFT finds it; the module itself if there is none.

    A pattern is a regular expression for the end of the name, at a dot.

    Source: `peft.utils.other.get_pattern_key`.
    """
    return next((pattern for pattern in patterns if fits_end(pattern, module)), module)


@dataclass(frozen=True)
class Written(Generic[V]):
    """A default and patterns, as PEFT reads them.

    Args:
        default: value of the modules that no pattern fits.
        patterns: values by pattern, in the order of their keys, which is that of PEFT's files.
        values: value of every module.
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
    """Write the values of modules as a default and patterns.

    Args:
        values: the value wanted for every module.
        keys: patterns that may be written.
        common: value for modules that no pattern separates, from their values.
        names: modules whose names are those of the model. They are patterns too, used where the
            keys do not separate modules with different values.

    Returns:
        Default and patterns, and the value that they give every module: the one wanted, or
        `common` of all that share its pattern.
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
    """Return the most common value, of several the first."""
    return Counter(values).most_common(1)[0][0]


def _candidates(names: Iterable[str]) -> list[str]:
    """Names as patterns: bare ones, which every version of PEFT reads, before anchored ones."""
    found = sorted(set(names))
    bare = [name if re.fullmatch(r"[\w.-]+", name) else re.escape(name) for name in found]
    return [*bare, *(f"^{re.escape(name)}" for name in found)]


class _Groups(Generic[V]):
    """Modules by the first of the sorted patterns that fits them; None where none does."""

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
        """Leave out every pattern without which each module has the same value."""
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
