#!/usr/bin/env python3
"""Whether the evidence of one data set lies within that of another that asks the same questions of the same turns.

Usage: compare_evidence.py GUESSED MARKED

Questions are matched by their text and by how their memories begin, turns by their text, both without what stands in {} or
<> (some copies of QMSum leave such marks out). Prints for how many questions some of the guessed evidence lies in marked
turns, and which share of its characters. Standard library only.
"""
import re
import sys

import dataset
from dataset import DataSet, Question


def bare(text: str) -> str:
    return " ".join(re.sub(r"\{[^}]*\}|<[^>]*>", "", text).split())


def key(data: DataSet, question: Question) -> tuple[str, str]:
    beginning = bare(" ".join(turn["content"] for turn in data.memories[question.memory][:6]))[:150]
    return beginning, bare(question.text)


def compare(guessed: DataSet, marked: DataSet) -> tuple[int, int, float]:
    """Questions in both; those with some guessed evidence in marked turns; mean share of its characters."""
    marks: dict[tuple[str, str], set[str]] = {}
    for question in marked.questions:
        turns = marked.memories[question.memory]
        marks.setdefault(key(marked, question), set()).update(bare(turns[one.turn]["content"]) for one in question.evidence)
    shares = []
    for question in guessed.questions:
        there = marks.get(key(guessed, question))
        if there is None:
            continue
        inside = total = 0
        for one in question.evidence:
            content = guessed.memories[question.memory][one.turn]["content"]
            size = len(content) if one.begin is None else one.end - one.begin
            total += size
            inside += size if bare(content) in there else 0
        shares.append(inside / total if total else 0.0)
    return len(shares), sum(share > 0 for share in shares), sum(shares) / max(1, len(shares))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    both, touched, share = compare(*(dataset.read(path) for path in sys.argv[1:]))
    if not both:
        sys.exit("the two sets have no question in common")
    print(f"{both} questions in both: for {touched} ({touched / both:.3f}) some of the evidence lies in marked turns; "
          f"{share:.3f} of its characters do")


if __name__ == "__main__":
    main()
