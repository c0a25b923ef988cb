"""The shape of a data set: what is read is what was written, and mistakes are named by their line."""
import json

import dataset
import pytest
from dataset import DataSet, Evidence, Question


def small() -> DataSet:
    data = DataSet("boats", "about boats", "heldout")
    data.add_turn("harbour", {"content": "The ferry leaves at nine.", "role": "user", "name": "Runa",
                              "time": "2026-01-02T03:04:05Z", "metadata": {"draft": 2}})
    data.add_turn("harbour", {"content": "Thank you."})
    data.questions = [Question("harbour", "When does the ferry leave?", [Evidence(0, 21, 25), Evidence(1)], "time", "q1", "nine")]
    return data


def test_what_was_written_is_read_again(tmp_path):
    dataset.write(small(), tmp_path / "any.jsonl")
    assert dataset.read(tmp_path / "any.jsonl") == small()


def test_a_long_memory_is_written_in_several_lines_and_read_as_one(tmp_path):
    data = small()
    for i in range(1200):
        data.add_turn("harbour", {"content": f"Wave {i}."})
    dataset.write(data, tmp_path / "any.jsonl")
    assert sum('"type": "memory"' in line for line in (tmp_path / "any.jsonl").open()) == 3
    assert dataset.read(tmp_path / "any.jsonl") == data


def test_limit_spreads_the_questions_and_keeps_only_their_memories():
    data = DataSet("many")
    for i in range(10):
        data.add_turn(f"m{i}", {"content": "x"})
        data.questions.append(Question(f"m{i}", f"q{i}", [Evidence(0)]))
    limited = data.limited(3)
    assert [question.text for question in limited.questions] == ["q0", "q3", "q6"]
    assert list(limited.memories) == ["m0", "m3", "m6"]
    assert data.limited(10) is data
    first = data.of_first_memories(2)
    assert list(first.memories) == ["m0", "m1"] and {question.memory for question in first.questions} == {"m0", "m1"}
    assert data.of_first_memories(None) == data


MEMORY = {"type": "memory", "memory": "m", "turns": [{"content": "four"}]}
QUESTION = {"type": "question", "memory": "m", "question": "q", "evidence": [0]}


@pytest.mark.parametrize("records, message", [
    ([MEMORY, QUESTION | {"evidence": [1]}], ":2: question.evidence[0]: there is no turn 1; the memory has 1"),
    ([MEMORY, QUESTION | {"evidence": [{"turn": 0, "from": 2, "to": 5}]}], "expected 0 <= from < to <= 4"),
    ([MEMORY, QUESTION | {"evidence": [{"turn": 0, "from": 2}]}], "from and to go together"),
    ([MEMORY, QUESTION | {"evidence": 0}], "question.evidence: expected an array, got a number"),
    ([MEMORY, QUESTION | {"evidence": [True]}], "question.evidence[0]: expected an object, got a boolean"),
    ([MEMORY, QUESTION | {"colour": "red"}], "there is no member colour; there are memory, question, evidence"),
    ([QUESTION], ":1: question.memory: no line before tells of a memory 'm'"),
    ([MEMORY | {"memory": "a//b"}], "'a//b' is no name of a memory"),
    ([MEMORY | {"turns": [{"content": ""}]}], "memory.turns[0].content: expected 1 to 1048576 bytes, got 0"),
    ([MEMORY | {"turns": [{"content": "x", "role": "robot"}]}], "role: expected one of user, assistant, system, tool"),
    ([MEMORY | {"turns": [{"content": "x", "time": "yesterday"}]}], "expected a time of RFC 3339"),
    ([MEMORY | {"turns": [{"content": "x", "time": "2026-01-02T03:04:05"}]}], "expected a time of RFC 3339"),
    ([MEMORY | {"turns": [{"content": "x", "name": "a\nb"}]}], "without control characters"),
    ([{"type": "turn"}], "type: expected set, memory or question, got 'turn'"),
    ([[]], "expected an object, got an array"),
    ([MEMORY], "no questions"),
])
def test_a_mistake_is_named(json_file, records, message):
    path = json_file("wrong.jsonl", records)
    with pytest.raises(SystemExit) as error:
        dataset.read(path)
    assert str(error.value).startswith(f"{path}:") and message in str(error.value)


def test_a_line_that_is_no_json_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "wrong.jsonl").write_text(json.dumps(MEMORY) + "\n{\n")
    with pytest.raises(SystemExit, match="wrong.jsonl:2: the line is not JSON"):
        dataset.read(tmp_path / "wrong.jsonl")
    with pytest.raises(SystemExit, match="none.jsonl: No such file"):
        dataset.read(tmp_path / "none.jsonl")
