"""Files of questions: reading, held-out parts, and refusals that name the line."""

from __future__ import annotations

import json

import pytest
from causal_cases import sums, write_lines

from fedlora_sim.errors import InputError
from fedlora_sim.tasks.causal import Question, load_questions, numbered, read_questions

PLAIN = {"question": "2+3?", "answer": "#### 5"}


def test_a_line_is_a_question(tmp_path):
    file = tmp_path / "questions.jsonl"
    text = '{"question": " Wie spät? ", "answer": "#### 5\\n", "id": 7}\n\n'
    file.write_text(f"{text}{json.dumps(PLAIN)}\r\n", encoding="utf-8")
    first, second = read_questions("data", str(file))
    assert first == Question("Wie spät?", "#### 5")
    assert second == Question("2+3?", "#### 5")
    assert second.prompt + second.completion == "Question: 2+3?\nAnswer: #### 5"


def test_topics_and_writers(tmp_path):
    fields = {"class": lambda i: i % 2, "topic": lambda i: "other", "writer": lambda i: f"w{i}"}
    questions = read_questions("data", write_lines(tmp_path / "a", sums(3, **fields)))
    assert [q.topic for q in questions] == ["0", "1", "0"]
    assert [q.writer for q in questions] == ["w0", "w1", "w2"]
    (question,) = read_questions("data", write_lines(tmp_path / "b", [{**PLAIN, "topic": "sum"}]))
    assert question.topic == "sum"


def test_a_fifth_of_every_topic_is_held_out_by_the_seed(tmp_path):
    file = write_lines(tmp_path / "q", sums(50, topic=lambda i: i % 5))
    train, test = load_questions(file, None, 3)
    assert len(test) == 10
    assert sorted(q.topic for q in test) == sorted("01234" * 2)
    assert {*train, *test} == set(read_questions("data", file))
    assert load_questions(file, None, 3) == (train, test)
    assert load_questions(file, None, 4)[1] != test


def test_a_separate_test_part(tmp_path):
    file, other = (write_lines(tmp_path / str(n), sums(n)) for n in (4, 6))
    train, test = load_questions(file, other, 0)
    assert (len(train), len(test)) == (4, 6)


def test_numbers_of_names():
    assert numbered(["b", "a", "b"]).tolist() == [1, 0, 1]
    assert numbered([None, None]).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "2+3?", "answer"', r"^data: line 2 of .*a JSON object \("),
        (b'{"question": "\xff", "answer": "5"}', r"^data: line 2 of .*a JSON object \("),
        (b'["2+3?", "5"]', "^data: line 2 of .*a JSON object$"),
        (b'{"question": "2+3?"}', "^data: line 2 of .*: answer=None: expected a text$"),
        (b'{"question": 5, "answer": "5"}', "^data: line 2 of .*: question=5: expected a text$"),
        (b'{"question": " ", "answer": "5"}', "^data: line 2 of .*: question=' ': expected a text"),
        (b'{"question": "a", "answer": "b", "class": 0.5}', "^data: line 2 of .*: class=0.5"),
        (b'{"question": "a", "answer": "b", "writer": ""}', "^data: line 2 of .*: writer=''"),
        (b'{"question": "a", "answer": "b", "topic": "x"}', "topic='x'"),
        (b'{"question": "a", "answer": "b", "writer": 1}', "writer='1'"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    file = tmp_path / "q.jsonl"
    file.write_bytes(json.dumps(PLAIN).encode() + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=message):
        read_questions("data", str(file))


def test_a_missing_topic(tmp_path):
    file = write_lines(tmp_path / "q", [{**PLAIN, "topic": "sum"}, PLAIN])
    with pytest.raises(InputError, match="class or topic=None"):
        read_questions("data", file)


@pytest.mark.parametrize("file", [None, "", "no-such-file.jsonl", "."])
def test_no_file(file):
    with pytest.raises(InputError, match=r"^test_data="):
        read_questions("test_data", file)


def test_too_few(tmp_path):
    with pytest.raises(InputError, match="data="):
        read_questions("data", write_lines(tmp_path / "none", []))
    with pytest.raises(InputError, match=r"^data='2 questions in .*or test_data$"):
        load_questions(write_lines(tmp_path / "two", sums(2)), None, 0)
