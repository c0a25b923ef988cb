"""A data set of questions about memories: its shape in memory and as a file of JSON lines. Standard library only.

docs/search-quality.md describes the file. What is read has been checked; the first mistake ends the program and is named
as FILE:LINE.
"""
import json
import re
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

ROLES = ("user", "assistant", "system", "tool")
MEMORY_NAME = re.compile(r"[A-Za-z0-9._/-]{1,200}")
TURN_BYTES_MAX = 1 << 20
QUESTION_BYTES_MAX = 16 << 10


@dataclass(frozen=True)
class Evidence:
    """A turn that answers, by its number in the memory; or characters [begin, end) of its content alone."""
    turn: int
    begin: int | None = None
    end: int | None = None


@dataclass
class Question:
    memory: str
    text: str
    evidence: list[Evidence]   # none: nothing in the memory answers
    category: str = ""
    id: str = ""
    answer: str = ""


@dataclass
class DataSet:
    """`memories`: the turns of each as append takes them."""
    name: str
    about: str = ""
    split: str = ""
    memories: dict[str, list[dict]] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)

    def add_turn(self, memory: str, turn: dict) -> int:
        """The number of the turn."""
        turns = self.memories.setdefault(memory, [])
        turns.append(turn)
        return len(turns) - 1

    def limited(self, questions: int | None) -> "DataSet":
        """So many questions, evenly spaced, and only the memories that they ask."""
        if questions is None or questions >= len(self.questions):
            return self
        step = len(self.questions) / questions
        kept = [self.questions[int(i * step)] for i in range(questions)]
        asked = {question.memory for question in kept}
        memories = {name: turns for name, turns in self.memories.items() if name in asked}
        return DataSet(self.name, self.about, self.split, memories, kept)

    def of_first_memories(self, count: int | None) -> "DataSet":
        """So many memories, in the order of the file, and all questions about them."""
        memories = dict(list(self.memories.items())[:count])
        return DataSet(self.name, self.about, self.split, memories,
                       [question for question in self.questions if question.memory in memories])


class Mistake(Exception):
    """What a line of a data set has wrong."""


def _expect(good: bool, what: str) -> None:
    if not good:
        raise Mistake(what)


def _kind(value) -> str:
    return {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number")


def _members(record, where: str, required: dict[str, type], optional: dict[str, type]) -> None:
    _expect(isinstance(record, dict), f"{where}: expected an object, got {_kind(record)}")
    for name, type_ in required.items():
        _expect(name in record, f"{where}: {name} is missing")
    for name, value in record.items():
        type_ = required.get(name) or optional.get(name)
        _expect(type_ is not None, f"{where}: there is no member {name}; there are {', '.join([*required, *optional])}")
        _expect(isinstance(value, type_) and not (type_ is int and isinstance(value, bool)),
                f"{where}.{name}: expected {_kind(type_())}, got {_kind(value)}")


def _check_turn(turn, where: str) -> None:
    _members(turn, where, {"content": str}, {"role": str, "name": str, "time": str, "metadata": dict})
    size = len(turn["content"].encode())
    _expect(0 < size <= TURN_BYTES_MAX, f"{where}.content: expected 1 to {TURN_BYTES_MAX} bytes, got {size}")
    _expect(turn.get("role", "user") in ROLES, f"{where}.role: expected one of {', '.join(ROLES)}, got {turn.get('role')!r}")
    if "name" in turn:
        fits = 0 < len(turn["name"].encode()) <= 200 and turn["name"].isprintable()
        _expect(fits, f"{where}.name: expected 1 to 200 bytes without control characters, got {turn['name']!r}")
    if "time" in turn:
        try:
            aware = datetime.fromisoformat(turn["time"]).tzinfo is not None
        except ValueError:
            aware = False
        _expect(aware, f"{where}.time: expected a time of RFC 3339, such as 2026-01-02T03:04:05Z, got {turn['time']!r}")


def _evidence(value, where: str, turns: list[dict]) -> Evidence:
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"turn": value}
    _members(value, where, {"turn": int}, {"from": int, "to": int})
    turn, begin, end = value["turn"], value.get("from"), value.get("to")
    _expect(0 <= turn < len(turns), f"{where}: there is no turn {turn}; the memory has {len(turns)}, counted from 0")
    _expect((begin is None) == (end is None), f"{where}: from and to go together")
    if begin is not None:
        size = len(turns[turn]["content"])
        _expect(0 <= begin < end <= size, f"{where}: expected 0 <= from < to <= {size} (characters of turn {turn}), "
                                          f"got {begin} and {end}")
    return Evidence(turn, begin, end)


def _take(data: DataSet, record) -> None:
    _expect(isinstance(record, dict), f"expected an object, got {_kind(record)}")
    kind = record.get("type")
    body = {name: value for name, value in record.items() if name != "type"}
    if kind == "set":
        _members(body, "set", {}, {"name": str, "about": str, "split": str})
        data.name, data.about = body.get("name", data.name), body.get("about", "")
        data.split = body.get("split", "")
    elif kind == "memory":
        _members(body, "memory", {"memory": str, "turns": list}, {})
        name = body["memory"]
        proper = MEMORY_NAME.fullmatch(name) and not {"", ".", ".."} & set(name.split("/"))
        _expect(bool(proper), f"memory.memory: {name!r} is no name of a memory: 1 to 200 of A-Z a-z 0-9 . _ / -, and "
                              "nothing empty, . or .. between slashes")
        for i, turn in enumerate(body["turns"]):
            _check_turn(turn, f"memory.turns[{i}]")
        data.memories.setdefault(name, []).extend(body["turns"])
    elif kind == "question":
        _members(body, "question", {"memory": str, "question": str, "evidence": list},
                 {"category": str, "id": str, "answer": str})
        memory, size = body["memory"], len(body["question"].encode())
        _expect(memory in data.memories, f"question.memory: no line before tells of a memory {memory!r}")
        _expect(0 < size <= QUESTION_BYTES_MAX, f"question.question: expected 1 to {QUESTION_BYTES_MAX} bytes, got {size}")
        evidence = [_evidence(value, f"question.evidence[{i}]", data.memories[memory])
                    for i, value in enumerate(body["evidence"])]
        data.questions.append(Question(memory, body["question"], evidence, body.get("category", ""), body.get("id", ""),
                                       body.get("answer", "")))
    else:
        raise Mistake(f"type: expected set, memory or question, got {kind!r}")


def read(path: Path | str) -> DataSet:
    path = Path(path)
    data = DataSet(path.stem)
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    _take(data, json.loads(line))
                except (json.JSONDecodeError, Mistake) as mistake:
                    what = mistake if isinstance(mistake, Mistake) else f"the line is not JSON: {mistake}"
                    sys.exit(f"{path}:{number}: {what}")
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"read {path}: {getattr(error, 'strerror', None) or error}; convert.py writes data sets")
    if not data.questions:
        sys.exit(f"{path}: no questions; a data set needs lines of type question")
    return data


def lines(data: DataSet):
    """The lines of its file, each a memory's 500 turns at most."""
    yield {"type": "set", "name": data.name, "about": data.about, "split": data.split}
    for name, turns in data.memories.items():
        for first in range(0, len(turns), 500):
            yield {"type": "memory", "memory": name, "turns": turns[first:first + 500]}
    for question in data.questions:
        evidence = [one.turn if one.begin is None else {"turn": one.turn, "from": one.begin, "to": one.end}
                    for one in question.evidence]
        optional = {name: value for name, value in (("category", question.category), ("id", question.id),
                                                    ("answer", question.answer)) if value}
        yield {"type": "question", "memory": question.memory, "question": question.text, "evidence": evidence, **optional}


def write(data: DataSet, path: Path | str) -> None:
    with Path(path).open("w", encoding="utf-8") as out:
        for line in lines(data):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
