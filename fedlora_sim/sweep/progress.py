"""Live progress of a sweep: a bar with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType

from tqdm.auto import tqdm

from fedlora_sim.sweep.plan import Task
from fedlora_sim.sweep.work import Outcome

LINES, EVERY_SECONDS = 20, 30.0
"""Lines of a sweep where there is no terminal, and seconds after which there is one anyway."""
BAR = "{desc} |{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]"


class Display:
    """What is done of a sweep, weighed by the time that tasks are expected to take.

    Args:
        tasks: all of the sweep.
        missing: those that are to be made.
        shown: whether anything is written.
    """

    def __init__(self, tasks: Sequence[Task], missing: Sequence[Task], shown: bool) -> None:
        self.total, self.done = len(tasks), len(tasks) - len(missing)
        self.failed, self.shown = 0, shown
        self.terminal = shown and sys.stderr.isatty()
        left = sum(task.seconds for task in missing)
        self.weight, self.finished, self.started = left, 0.0, time.monotonic()
        self.said_at, self.said = self.started, self.done
        self.bar = tqdm(total=left, disable=not self.terminal, bar_format=BAR, file=sys.stderr)

    def __enter__(self) -> Display:
        if self.done:
            self.say(f"going on from {self.done:,} of {self.total:,} tasks")
        self._describe()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.shown:
            tqdm.write(text, file=sys.stderr) if self.terminal else print(text, file=sys.stderr)

    def advance(self, runs: float) -> None:
        """Runs of the task under way have got on: keep the clock of the bar moving."""
        self.bar.refresh()

    def finish(self, task: Task, outcome: Outcome) -> None:
        """A task is made, or has failed."""
        self.done += outcome.error is None
        self.failed += outcome.error is not None
        self.finished += task.seconds
        self.bar.update(task.seconds)
        self._describe()
        if self.terminal or not self.shown:
            return
        now = time.monotonic()
        some = self.done - self.said >= max(1, self.total // LINES)
        if some or now - self.said_at >= EVERY_SECONDS or self.done == self.total:
            self.said, self.said_at = self.done, now
            print(f"{self._text()}, {self._left()}", file=sys.stderr, flush=True)

    def _describe(self) -> None:
        self.bar.set_description_str(self._text(), refresh=False)

    def _text(self) -> str:
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self.done:,} of {self.total:,} tasks{failed}"

    def _left(self) -> str:
        spent = time.monotonic() - self.started
        left = spent * (self.weight - self.finished) / max(self.finished, 1e-9)
        return f"about {duration(left)} left"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, in two digits or so."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
