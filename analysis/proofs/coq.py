"""Compile the proofs with Coq, and read which assumptions every theorem rests on."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from tempfile import TemporaryDirectory

from fedlora_sim.errors import expected
from fedlora_sim.storage import write_text

FOLDER = Path(__file__).parent
"""Folder of the proofs, one file per section of the theory."""

EXAMPLES = "all_examples"
"""Name of the tuple of all requested examples of a file; its assumptions are theirs together."""

LIBRARY = "FedLoRA"
"""Name under which the files import each other."""

INSTALL = (
    "apt-get install --no-install-recommends coq libcoq-coquelicot libcoq-mathcomp-algebra "
    "libcoq-interval"
)
"""Command that installs Coq and its libraries on Debian."""

CLASSICAL = frozenset(
    {
        "ClassicalDedekindReals.sig_forall_dec",
        "ClassicalDedekindReals.sig_not_dec",
        "FunctionalExtensionality.functional_extensionality_dep",
        "Classical_Prop.classic",
        "Eqdep.Eq_rect_eq.eq_rect_eq",
        "PrimInt63.",
        "PrimFloat.",
        "FloatAxioms.",
        "Uint63.",
    }
)
"""Assumptions of Coq's own libraries: the classical real numbers, and machine numbers (`interval`).

An entry that ends in a dot covers a module."""

_NAME = r"[A-Za-z_][\w']*"
_STATED = re.compile(rf"^(Theorem|Example|Lemma) ({_NAME})", re.M)
_COMMENT = re.compile(r"\(\*(.*?)\*\)", re.S)
_IMPORTS = re.compile(rf"^From {LIBRARY} Require Import ([\w ]+)\.", re.M)
_TIME = re.compile(r"^Chars (\d+) - (\d+) .*? ([\d.]+) secs", re.M)
_WARNINGS = "-ambiguous-paths,-notation-overridden,-deprecated"


class NoCoqError(RuntimeError):
    """Coq is not installed; the message is one line with the command that installs it."""


@dataclass(frozen=True)
class Proof:
    """The outcome of compiling one theorem.

    Args:
        name: `File.theorem`.
        proved: True if its file compiles and it rests on Coq's own libraries alone.
        assumptions: assumptions that Coq reports; empty if it rests on none. For an example, those
            of all requested examples of its file.
        seconds: time of its statement and proof.
    """

    name: str
    proved: bool
    assumptions: tuple[str, ...]
    seconds: float


@cache
def files() -> dict[str, str]:
    """Return the texts of all proofs by the name of their file, without its ending."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.v"))}


def stated(file: str) -> list[str]:
    """Return the names of the theorems and examples of a file, without its lemmas."""
    return [name for kind, name in _STATED.findall(files()[file]) if kind != "Lemma"]


def examples(file: str) -> frozenset[str]:
    """Return the names of the examples of a file: numeric instances and certificates."""
    return frozenset(name for kind, name in _STATED.findall(files()[file]) if kind == "Example")


def all_names() -> list[str]:
    """Return the names of all theorems and examples, as `File.theorem`."""
    return [f"{file}.{name}" for file in files() for name in stated(file)]


def sentence(name: str) -> str:
    """Return the sentence that stands before a theorem in its file, in one line.

    Raises:
        InputError: if there is no such theorem, or no sentence right before it.
    """
    file, _, theorem = name.partition(".")
    text = files().get(file, "")
    found = re.search(rf"^(Theorem|Example|Lemma) {re.escape(theorem)}\b", text, re.M)
    if found is None:
        raise expected("theorem", name, "a theorem of the proofs")
    before = text[: found.start()].rstrip()
    comments = list(_COMMENT.finditer(before))
    if not comments or comments[-1].end() != len(before):
        raise expected("theorem", name, "a theorem with a sentence before it")
    return " ".join(comments[-1][1].split())


def needed(names: Sequence[str]) -> list[str]:
    """Return these files and all files that they import, in order of compilation."""
    graph: dict[str, list[str]] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in graph:
            graph[name] = [i for line in _IMPORTS.findall(files()[name]) for i in line.split()]
            waiting += graph[name]
    return list(TopologicalSorter(graph).static_order())


def coqc() -> str:
    """Return the path of Coq's compiler.

    Raises:
        NoCoqError: if there is none.
    """
    found = shutil.which("coqc")
    if found is None:
        raise NoCoqError(f"coqc is not installed; on Debian: {INSTALL}")
    return found


def prove(names: Sequence[str], processes: int = 1) -> list[Proof]:
    """Compile the files of these theorems in a temporary folder, and return one proof per theorem.

    Args:
        names: theorems as `File.theorem`.
        processes: number of files that are compiled at a time.

    Returns:
        One proof per name, in the same order.

    Raises:
        NoCoqError: if Coq is not installed.
        InputError: if there is no such theorem.
    """
    compiler = coqc()
    known = set(all_names())
    for name in names:
        if name not in known:
            raise expected("theorem", name, "a theorem of the proofs")
    wanted = list(dict.fromkeys(name.partition(".")[0] for name in names))
    with TemporaryDirectory(prefix="fedlora-sim-proofs-") as folder:
        run = _Run(compiler, Path(folder), frozenset(names))
        compiled = run.compile(needed(wanted), processes)
        return [run.proof(name, compiled) for name in names]


@dataclass(frozen=True)
class _Compiled:
    """A compiled file: whether Coq accepted it, and the time of each sentence by its place."""

    accepted: bool
    times: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class _Run:
    """Compilation in one folder."""

    compiler: str
    folder: Path
    names: frozenset[str]

    def compile(self, order: Sequence[str], processes: int) -> dict[str, _Compiled]:
        """Compile files, each as soon as those that it imports are compiled."""
        with ThreadPoolExecutor(max_workers=processes) as pool:
            running: dict[str, Future[_Compiled]] = {}
            for file in order:
                imported = [f for f in needed([file]) if f != file]
                running[file] = pool.submit(self._one, file, [running[f] for f in imported])
            return {file: future.result() for file, future in running.items()}

    def _one(self, file: str, before: Sequence[Future[_Compiled]]) -> _Compiled:
        # the pool starts files in order, so that those before this one have started already
        for future in before:
            future.result()
        # What a theorem assumes goes to a file of its name. Coq takes seconds for each, so that the
        # dozens of examples of a file are asked together.
        wanted = [name for name in stated(file) if f"{file}.{name}" in self.names]
        together = [name for name in wanted if name in examples(file)]
        asked = [
            f'Redirect "{file}.{name}" Print Assumptions {name}.'
            for name in wanted
            if name not in together
        ]
        if together:
            asked += [
                f"Definition {EXAMPLES} := ({', '.join(together)}).",
                f'Redirect "{file}.{EXAMPLES}" Print Assumptions {EXAMPLES}.',
            ]
        path = self.folder / f"{file}.v"
        write_text(path, "\n".join([files()[file], *asked, ""]))
        command = [self.compiler, "-q", "-time", "-w", _WARNINGS, "-Q", ".", LIBRARY, path.name]
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=False, encoding="utf-8"
        )
        times = tuple((int(a), float(s)) for a, _, s in _TIME.findall(done.stdout))
        return _Compiled(done.returncode == 0, times)

    def proof(self, name: str, compiled: dict[str, _Compiled]) -> Proof:
        """Return the proof of one theorem of a compiled file."""
        file, _, theorem = name.partition(".")
        start, end = _place(file, theorem)
        taken = sum(seconds for place, seconds in compiled[file].times if start <= place < end)
        printed = self.folder / f"{file}.{EXAMPLES if theorem in examples(file) else theorem}.out"
        if not compiled[file].accepted or not printed.is_file():
            return Proof(name, False, (), round(taken, 3))
        found = assumptions(printed.read_text(encoding="utf-8"))
        return Proof(name, all(map(is_classical, found)), found, round(taken, 3))


def _place(file: str, theorem: str) -> tuple[int, int]:
    """Return the bytes of a file at which a theorem starts and its proof ends."""
    text = files()[file]
    found = re.search(rf"^(Theorem|Example|Lemma) {re.escape(theorem)}\b", text, re.M)
    assert found is not None  # `prove` checks the names
    end = text.index("Qed.", found.start()) + len("Qed.")
    return len(text[: found.start()].encode()), len(text[:end].encode())


def assumptions(printed: str) -> tuple[str, ...]:
    """Return the names of the assumptions in the output of Coq's `Print Assumptions`.

    A switched-off check, such as that of termination, is named by its whole line.

    Raises:
        RuntimeError: if the output has another form: nothing may pass unread.
    """
    if printed.strip() == "Closed under the global context":
        return ()
    _, found, body = printed.partition("Axioms:\n")
    if not found:
        raise RuntimeError(f"unknown output of Print Assumptions: {printed[:80]!r}")
    named = (line.split(" :")[0].strip() for line in body.splitlines() if line[:1].strip())
    return tuple(sorted(set(named)))


def is_classical(assumption: str) -> bool:
    """Return True if an assumption belongs to Coq's own libraries of numbers."""
    return any(
        assumption.startswith(own) if own.endswith(".") else assumption == own for own in CLASSICAL
    )
