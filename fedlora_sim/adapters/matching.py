r"""Match the patterns of an adapter's configuration in bounded time.

PEFT reads `target_modules`, `rank_pattern` and `alpha_pattern` as regular expressions, and a client
chooses them. Python's `re` can be kept busy for years by a pattern such as `(a+)+$`, and nothing
but the end of its process stops it. Patterns that repeat or choose are therefore tried first in a
process of their own, with all modules of the folder, under a limit of processor time.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from fedlora_sim.errors import expected

SECONDS = 1.0
"""Processor time for all matches of a folder, beside that of ordinary ones."""
SECONDS_PER_MATCH = 5e-6
MOST_MATCHES = 10_000_000
"""Patterns times modules of one folder."""
LONGEST = 10_000
"""Characters of one pattern."""

# Characters one after the other, each matched at one place: no repetition, no choice, no group.
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
    """Whether a pattern matches the end of a module's name, at a dot, as PEFT matches it."""
    return _compiled(_of_end(pattern)).match(name) is not None


def fits_whole(pattern: str, name: str) -> bool:
    """Whether a pattern matches the whole name of a module, as PEFT matches `target_modules`."""
    return _compiled(_of_whole(pattern)).match(name) is not None


def check_pattern(argument: str, pattern: str) -> None:
    """Refuse what is no regular expression, and what is too long.

    Raises:
        InputError: naming the argument.
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
    """Refuse patterns that take long to match with the modules of a folder.

    Args:
        source: file of the patterns, for the message.
        modules: names of all modules.
        whole: patterns of whole names.
        ends: patterns of the ends of names.

    Raises:
        InputError: naming the file and the pattern.
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
    """The form at which a process of its own ran out of time; None if it came to the end."""
    task = json.dumps({"forms": forms, "names": names, "seconds": seconds})
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _TRIAL]
    try:
        done = subprocess.run(
            command,
            input=task.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=30 + 10 * seconds,  # of a machine that has other things to do
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
    with warnings.catch_warnings():  # of sets that later versions of Python may read otherwise
        warnings.simplefilter("ignore")
        return re.compile(form)
