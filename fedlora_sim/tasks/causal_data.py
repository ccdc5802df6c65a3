"""Questions with worked answers, as of GSM8K, from files with one JSON object per line.

Reference:
    Cobbe et al. 2021 (arXiv 2110.14168), whose files have `question` and `answer`, the answer
    ending in `#### ` and the number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_sim.errors import expected
from fedlora_sim.randomness import stream
from fedlora_sim.tasks.subsets import stratified_sample

TEST_SHARE = 0.2
TOPICS = ("class", "topic")
"""Fields that say what label skew is counted in, the first that a file has."""


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Args:
        question: as it was asked.
        answer: as it is to be written.
        topic: what label skew is counted in; None if unknown.
        writer: who wrote it; None if unknown.
    """

    question: str
    answer: str
    topic: str | None = None
    writer: str | None = None

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return f"Question: {self.question}\nAnswer:"

    @property
    def completion(self) -> str:
        """What the model is to write after the prompt, and then to end."""
        return f" {self.answer}"


def load_questions(
    data: str | None, test_data: str | None, seed: int
) -> tuple[list[Question], list[Question]]:
    """Read the training and the test part.

    Args:
        data: file of the training part, see `read_questions`.
        test_data: file of the test part; when None, a fifth of `data`, topic by topic, is held out.
        seed: draws what is held out.

    Raises:
        InputError: naming the argument, the file and the line.
    """
    questions = read_questions("data", data)
    if test_data is not None:
        return questions, read_questions("test_data", test_data)
    size = round(TEST_SHARE * len(questions))
    if not 0 < size < len(questions):
        wanted = "more questions, of which a fifth can be held out, or test_data"
        raise expected("data", f"{len(questions)} questions in {data}", wanted)
    topics = numbered([question.topic for question in questions])
    held_out = set(stratified_sample(topics, size, stream(seed, "held-out questions")).tolist())
    train = [q for i, q in enumerate(questions) if i not in held_out]
    return train, [questions[i] for i in sorted(held_out)]


def read_questions(argument: str, file: str | None) -> list[Question]:
    """Read lines `{"question": ..., "answer": ...}`, UTF-8; blank ones are passed over.

    All or none of the lines have a topic (`class` or `topic`), and all or none a `writer`.

    Args:
        argument: what the caller calls the file.
        file: its path.

    Raises:
        InputError: naming the argument, the file and its first line that is otherwise.
    """
    if not isinstance(file, str) or not Path(file).is_file():
        raise expected(argument, file, 'a file of lines {"question": ..., "answer": ...}')
    questions: list[Question] = []
    for number, line in enumerate(Path(file).read_bytes().split(b"\n"), start=1):
        if line.strip():
            where = f"{argument}: line {number} of {file}"
            questions.append(_question(where, line))
            _check_alike(where, questions)
    if not questions:
        raise expected(argument, file, "a file with at least one question")
    return questions


def numbered(names: Sequence[str | None]) -> NDArray[np.int64]:
    """Number of every name in the sorted list of names, (n,); None is numbered as an empty one."""
    return np.unique([name or "" for name in names], return_inverse=True)[1].astype(np.int64)


def _question(where: str, line: bytes) -> Question:
    try:
        record = json.loads(line)
    except ValueError as error:  # of JSON, or of UTF-8
        raise expected(where, line[:80], f"a JSON object ({error})") from None
    if not isinstance(record, dict):
        raise expected(where, line[:80], "a JSON object")
    for name in ("question", "answer"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise expected(f"{where}: {name}", record.get(name), "a text")
    topic, writer = _label(where, record, TOPICS), _label(where, record, ("writer",))
    return Question(record["question"].strip(), record["answer"].strip(), topic, writer)


def _label(where: str, record: dict[str, Any], names: Sequence[str]) -> str | None:
    """The first of these fields that there is: a text, or a whole number as one."""
    name = next((name for name in names if name in record), None)
    if name is None:
        return None
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise expected(f"{where}: {name}", value, "a text or a whole number")
    return str(value)


def _check_alike(where: str, questions: Sequence[Question]) -> None:
    """Refuse a topic or a writer of the last question where the first has none, or the reverse."""
    first, last = questions[0], questions[-1]
    for name, one, other in (
        ("class or topic", first.topic, last.topic),
        ("writer", first.writer, last.writer),
    ):
        if (one is None) != (other is None):
            wanted = "one, as in the first line" if other is None else "none, as in the first line"
            raise expected(f"{where}: {name}", other, wanted)
