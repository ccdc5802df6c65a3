"""A sequence whose items are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LazySequence(Sequence[T], Generic[T]):
    """`length` items, item k made by `get(k)` every time: thousands of clients, one in memory.

    Args:
        length: number of items.
        get: makes item k, for k from 0 to length - 1.
    """

    length: int
    get: Callable[[int], T]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: Any) -> Any:
        indices = range(self.length)[k]  # refuses what lies outside, and resolves -1
        if isinstance(k, slice):
            return LazySequence(len(indices), lambda i: self.get(indices[i]))
        return self.get(indices)

    def __iter__(self) -> Iterator[T]:
        """Items in order, none of them held while the next one is made."""
        return map(self.get, range(self.length))
