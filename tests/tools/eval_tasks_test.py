#!/usr/bin/env python3
"""tools/eval/tasks.py must tell what it asks, in order and under keys of its own, and ask it of a real recalld.

Usage: eval_tasks_test.py SOURCE_DIR RECALLD. Exits with 77 where Python lacks numpy or sentencepiece.
"""
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import numpy  # noqa: F401
    import sentencepiece
except ImportError as missing:
    print(f"not tested: {missing}")
    sys.exit(77)

SOURCE, RECALLD = Path(sys.argv[1]), sys.argv[2]
SCRIPT = SOURCE / "tools/eval/tasks.py"
sys.path.insert(0, str(SCRIPT.parent))
spec = importlib.util.spec_from_file_location("eval_tasks", SCRIPT)
tasks = sys.modules["eval_tasks"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tasks)

source = tasks.Words(sentencepiece.SentencePieceProcessor(model_file=str(SOURCE / "tests/golden/starter/tokenizer.model")))


def size(turn):
    return len(source.model.encode(f"{turn.get('name', 'User')}: {turn['content']}")) + 1


class Listener:
    """Takes appends as a daemon does, and encodes at once."""

    def __init__(self):
        self.turns = []

    def call(self, method, turns=(), **_):
        first = len(self.turns)
        self.turns += turns
        return {"first_turn": first, "tokens": sum(map(size, turns)), "encoded_chunks": 1, "chunks": 1}


def grown(kinds, lengths, lines=None, asks=20):
    lines = lines or (lambda: tasks.made_up_lines(7))
    memory = tasks.Memory(Listener(), "tasks", tasks.Prose(lines, size), tasks.Facts(source, kinds, asks, 7, size), size)
    for length in lengths:
        memory.grow(length)
        assert length - tasks.TURN_TOKENS_MIN < memory.tokens <= length, f"{memory.tokens} tokens, not {length}"
    return memory, memory.rpc.turns


# Every answer stands in the memory, the first part of it in the turn that must be found; a new stretch tells new facts.
kinds = list(tasks.KINDS)
memory, turns = grown(kinds, (4096, 16384, 65536))
assert {one.kind for one in memory.told} == set(kinds)
for one in memory.told:
    if one.kind != "variables":
        first = one.answer.split(", ")[0].split(": ")[-1]  # of several, each stands behind its key
        assert first in turns[one.turn]["content"], f"{one.question} is not answered by {turns[one.turn]}"
    start = sum(map(size, turns[:one.turn]))
    assert one.token == start < memory.tokens - tasks.CHUNK, f"{one.question}: told at {start}, not {one.token}"
assert sum(one.token < 4096 for one in memory.told) >= 40 and sum(one.token >= 16384 for one in memory.told) >= 150
assert any("name" in turn for turn in turns), "who speaks of himself is not named"
assert all(len(turn["content"].split()) <= tasks.TURN_WORDS for turn in turns)

# No key comes twice: of a user's relatives, say, there are few.
facts = tasks.Facts(source, ["personal"], 300, 7, size)
asked = facts.plan(32768)[1] + facts.plan(32768)[1]
questions = [one.question for one in asked if " my " in one.question]
assert len(asked) == 600 and len(questions) > 50 and len(set(questions)) == len(questions)

# The statements of an updated fact come in order, and the last one is asked for.
plan, asked = tasks.Facts(source, ["updated"], 20, 7, size).plan(16384)
told = [[j for _, i, j, _ in plan if i == one.task] for one in asked]
assert len(told) == 20 and sum(len(statements) > 1 for statements in told) >= 15
assert all(statements == list(range(one.statement + 1)) for one, statements in zip(asked, told))

# What is asked lies all over the memory, and prose that ends begins anew.
chosen = tasks.spread([one for one in memory.told if one.kind == "numbered"], 12, memory.tokens)
assert len(chosen) == 12 and chosen == sorted(chosen, key=lambda one: one.token)
assert chosen[2].token < memory.tokens * 0.4 and chosen[9].token > memory.tokens * 0.6
_, turns = grown(["passkey"], (4096,), lambda: ["one two three four five", "six seven"], asks=3)
assert sum(turn["content"] == "one two three four five six seven" for turn in turns) > 100

# A real daemon finds and answers some of them, and the same run again has the same facts.
with tempfile.TemporaryDirectory() as folder:
    saved = Path(folder) / "saved.jsonl"
    command = [sys.executable, SCRIPT, "--recalld", RECALLD, "--data", folder, "--lengths", "4Ki", "--kinds", "numbered",
               "--asks", "10", "--wrong", "--save", saved, "--", "--device", "cpu",
               "--model", SOURCE / "tests/golden/starter"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (row,) = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [row[name] for name in ("kind", "length", "asks", "device", "device_bytes")] == ["numbered", 4096, 10, "cpu", 0], row
    assert 4096 - tasks.TURN_TOKENS_MIN < row["tokens"] <= 4096, row
    assert row["first"] >= 5, f"the starter finds most of these, found were {row['first']} of 10:\n{out}"
    assert row["exact"] == 10 - out.count("  numbered: ") and 1 <= row["exact"] <= 9, out
    assert 0 < row["search_ms"] <= row["search_ms_95th"] and 0 < row["answer_ms"] <= row["answer_ms_95th"], row
    assert 0 < row["resident_bytes"] <= row["resident_bytes_max"] and row["append_tokens_per_s"] > 0, row
    assert [path.name for path in Path(folder).iterdir()] == ["saved.jsonl"], "the store was left behind"
