"""Interruption and continuation of commands with long work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fedlora_sim.storage import RunStore

INTERRUPTED = 130


@contextmanager
def resumable(store: RunStore) -> Iterator[None]:
    """Report existing results; on Ctrl-C explain how to continue, and exit with 130.

    The store is cleared when the block is complete, because then the results are in place.
    """
    store.remove_stale()
    if store.count():
        print(f"going on from {store.count()} finished pieces in {store.folder}", file=sys.stderr)
    try:
        yield
    except KeyboardInterrupt:
        kept = f"{store.count()} finished pieces are kept in {store.folder}"
        print(f"\nstopped; {kept}; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    store.clear()
