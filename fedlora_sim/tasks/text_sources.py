"""Labelled texts as they come: from tab-separated files and scikit-learn's 20 newsgroups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedlora_sim.errors import expected

NEWSGROUPS = "20newsgroups"


@dataclass(frozen=True)
class LabelledTexts:
    """Texts, and the name of the class of each.

    Args:
        texts: n texts.
        labels: n names of classes.
        writers: who wrote each text, n names; None if unknown.
        class_names: all classes in the source's own order; None if it has none.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    writers: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None


def read_tsv(argument: str, path: Path) -> LabelledTexts:
    """Read lines `text<TAB>label` or `text<TAB>label<TAB>writer`, UTF-8, without a header.

    Raises:
        InputError: naming the argument, the file and its first line that is otherwise.
    """
    rows: list[list[str]] = []
    # Lines end where a file's lines end, not at every separator that Unicode knows.
    for number, line in enumerate(path.read_bytes().rstrip().split(b"\n"), start=1):
        where = f"{argument}: line {number} of {path}"
        try:
            row = line.rstrip(b"\r").decode()
        except UnicodeDecodeError:
            raise expected(where, line[:40], "text in UTF-8") from None
        cells = row.split("\t")
        if not 2 <= len(cells) <= 3 or not all(cell.strip() for cell in cells):
            raise expected(where, row[:80], "text<TAB>label, or text<TAB>label<TAB>writer")
        if rows and len(cells) != len(rows[0]):
            raise expected(where, row[:80], f"{len(rows[0])} columns, as in the first line")
        rows.append([cell.strip() for cell in cells])
    texts, labels, *writers = zip(*rows, strict=True)
    return LabelledTexts(texts, labels, writers[0] if writers else None)


def read_newsgroups(argument: str) -> dict[str, LabelledTexts]:
    """The 20 newsgroups' messages by scikit-learn, in its parts by date, `train` and `test`.

    Headers, signatures and quotes are removed: they give the group away (scikit-learn's advice).

    Raises:
        InputError: if they lie in no cache and cannot be fetched.
    """
    from sklearn.datasets import fetch_20newsgroups

    parts = {}
    for part in ("train", "test"):
        try:
            bunch = fetch_20newsgroups(subset=part, remove=("headers", "footers", "quotes"))
        except OSError as error:
            wanted = f"scikit-learn's copy of them, or a network to fetch it ({error})"
            raise expected(argument, NEWSGROUPS, wanted) from None
        names = tuple(bunch.target_names)
        labels = tuple(names[target] for target in bunch.target)
        parts[part] = LabelledTexts(tuple(bunch.data), labels, class_names=names)
    return parts
