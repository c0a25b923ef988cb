#!/usr/bin/env python3
"""The demo's questions must be answered by its history: each fact told once, in the turn that --questions names."""
import json
import subprocess
import sys

GENERATOR = sys.argv[1]


def generated(*arguments):
    return subprocess.run([sys.executable, GENERATOR, *arguments], check=True, capture_output=True, text=True).stdout


for seed in ("1", "2"):
    history, questions = generated("--seed", seed), generated("--seed", seed, "--questions")
    assert history == generated("--seed", seed), "the same seed must give the same history"
    turns = [json.loads(line) for line in history.splitlines()]
    assert all(set(turn) == {"role", "content", "time"} and turn["content"] for turn in turns)
    assert [turn["time"] for turn in turns] == sorted(turn["time"] for turn in turns), "turns must be in order of time"

    facts = [line.split("\t") for line in questions.splitlines()]
    assert len(facts) == 5
    for number, _, answer in facts:
        told = [i for i, turn in enumerate(turns) if answer in turn["content"]]
        assert told == [int(number)], f"'{answer}' is told in turns {told}, and should be in {number} alone"
    gaps = [int(b[0]) - int(a[0]) for a, b in zip(facts, facts[1:])]
    assert min(gaps) > len(turns) / 10, f"the facts lie too close together: {gaps}"
assert generated("--seed", "1") != generated("--seed", "2")
