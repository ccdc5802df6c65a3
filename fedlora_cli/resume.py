"""Interruption and continuation of commands with long work."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from fedlora_sim.run_store import RunStore

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


@contextmanager
def resumable_sweep(out: Path) -> Iterator[Callable[[object], None]]:
    """On Ctrl-C or SIGTERM report what is stored and how to continue, and exit with 130.

    Yields:
        A function to call after every task: an exception that a signal raises is lost within Python
        callbacks.
    """
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    def check(_: object) -> None:
        if stopped:
            raise KeyboardInterrupt

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):  # raised again by `check`
            hook_before(lost)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    hook_before, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield check
    except (KeyboardInterrupt, OSError) as error:
        print(f"\nstopped; {_kept(out)}; go on with: {_command()}", file=sys.stderr)
        if isinstance(error, OSError):
            raise
        raise typer.Exit(INTERRUPTED) from None
    finally:
        sys.unraisablehook = hook_before
        for number, handler in before.items():
            signal.signal(number, handler)


def _kept(out: Path) -> str:
    from fedlora_sim.sweep.store import load_manifest, present_tasks

    manifest = load_manifest(out)
    if manifest is None:
        return "nothing was begun"
    ids, present = {task.id for task in manifest.tasks}, present_tasks(out)
    return f"{len(ids & present):,} of {len(ids):,} tasks are kept in {out}"


def _command() -> str:
    return shlex.join(["fedlora-sim", *sys.argv[1:]])
