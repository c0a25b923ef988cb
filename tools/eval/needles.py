#!/usr/bin/env python3
"""Hides numbered facts, each a turn of its own, in a long prose stream and asks recalld for each of them.

Usage: needles.py --socket PATH --prose DIR [--tokens 1048576] [--facts 24] [--seed 1] [--memory needles] [--ask]

DIR holds plain-text files (novels, say). Each page of some 4,000 characters becomes a turn. A fact counts as found when the first result
of its question holds the fact's turn. With --ask the daemon answers each question too, which counts when it is the
fact's answer and nothing else. Prints how many were found first and in the first eight and were answered, how long
that took, and exits with 1 when fewer than 95% came first or 90% were answered. Python's standard library only.
"""
import argparse
import pathlib
import random
import re
import sys
import time

from daemon_process import Rpc

THINGS = ["lighthouse", "orchard", "granary", "ferry", "observatory", "tannery", "windmill", "archive", "greenhouse",
          "foundry", "belfry", "quarry", "stable", "cellar", "pavilion", "chapel", "brewery", "sawmill", "aqueduct",
          "boathouse", "dovecote", "smithy", "customs house", "signal tower"]


def facts(rng, count):
    """(statement, question, answer) about distinct things; the answer is a number that cannot be guessed.

    The kinds of numbered facts that the checkpoints that recalld ships were trained on: magic numbers, codes, variables, prices.
    """
    def letters():
        return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(4))

    def digits(n):
        return rng.randint(10**(n - 1), 10**n - 1)

    shapes = [
        (7, "The special magic number for the {thing} is {answer}.", "What is the special magic number for the {thing}?",
         "{number}"),
        (4, "The code for the {thing} is {answer}.", "What is the code for the {thing}?", "{number}"),
        (5, "Set {letters} to {answer}.", "What value is assigned to {letters}?", "{number}"),
        (3, "The {thing} costs {answer}.", "How much is the {thing}?", "{number} dollars"),
    ]
    things = rng.sample(THINGS, k=min(count, len(THINGS)))
    things += [f"{one} and the {other}" for one in THINGS for other in THINGS if one != other][:count - len(things)]
    found = []
    for i, thing in enumerate(things):
        length, statement, question, answer = shapes[i % len(shapes)]
        words = {"thing": thing, "letters": letters(), "answer": answer.format(number=digits(length))}
        found.append((statement.format(**words), question.format(**words), words["answer"]))
    return found


def pages(directory, rng):
    """The text of all files in a seeded order of files, in paragraphs up to about 4,000 characters, for ever."""
    files = sorted(path for path in pathlib.Path(directory).rglob("*") if path.is_file())
    if not files:
        sys.exit(f"needles: no files under {directory}; unpack some prose there first")
    rng.shuffle(files)
    page = ""
    while True:
        for path in files:
            for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace")):
                page += " ".join(block.split())[:4000] + "\n"
                if len(page) >= 4000:
                    yield page.strip()
                    page = ""


def ask(rpc, args, hidden):
    """How many questions the daemon answers exactly."""
    exact = 0
    took, tokens = [], 0
    for statement, question, answer in hidden:
        reply = rpc.call("generate", memory=args.memory, prompt=question, max_tokens=16)
        took.append(reply["took_ms"])
        tokens += reply["tokens"]
        exact += reply["text"] == answer
        if reply["text"] != answer:
            print(f"not answered: {statement!r}: got {reply['text']!r}")
    took.sort()
    print(f"facts answered exactly: {exact} of {len(hidden)}")
    print(f"generate: median {took[len(took) // 2]:.1f} ms, slowest {took[-1]:.1f} ms, {tokens / len(hidden):.1f} tokens an answer")
    return exact


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--prose", required=True, help="directory of plain-text files")
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--facts", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory", default="needles")
    parser.add_argument("--ask", action="store_true")
    args = parser.parse_args()

    rng = random.Random(args.seed)
    hidden = facts(rng, args.facts)
    prose = pages(args.prose, rng)
    rpc = Rpc(args.socket)

    # A fact goes in whenever its share of the stream has passed, at a place inside that share drawn at random.
    share = args.tokens / len(hidden)
    places = [int((i + rng.uniform(0.1, 0.9)) * share) for i in range(len(hidden))]
    turn_of, tokens, batch, start = {}, 0, [], time.monotonic()
    while tokens < args.tokens or len(turn_of) < len(hidden):
        batch = [next(prose) for _ in range(4)]
        for i, place in enumerate(places):
            if i not in turn_of and tokens >= place:
                batch.append(hidden[i][0])
                turn_of[i] = len(batch) - 1
                break
        else:
            i = None
        reply = rpc.call("append", memory=args.memory, turns=[{"role": "user", "content": text} for text in batch])
        if i is not None:
            turn_of[i] += reply["first_turn"]
        tokens += reply["tokens"]
    rpc.call("append", memory=args.memory, turns=[{"role": "user", "content": "That was all."}], wait="searchable")
    seconds = time.monotonic() - start
    print(f"{tokens} tokens, {tokens // 64} chunks, searchable after {seconds:.1f} s ({tokens / seconds:.0f} tokens/s)")

    first = first8 = 0
    took = []
    for i, (statement, question, _) in enumerate(hidden):
        reply = rpc.call("search", memory=args.memory, query=question, limit=8)
        took.append(reply["took_ms"])
        ranks = [rank for rank, result in enumerate(reply["results"])
                 if any(turn["turn"] == turn_of[i] for turn in result["turns"])]
        first += ranks[:1] == [0]
        first8 += bool(ranks)
        if ranks[:1] != [0]:
            print(f"not first: {statement!r} came {'at rank %d' % (ranks[0] + 1) if ranks else 'not in the first 8'}")
    took.sort()
    print(f"facts found first: {first} of {len(hidden)}; in the first 8: {first8} of {len(hidden)} (seed {args.seed})")
    print(f"search: median {took[len(took) // 2]:.1f} ms, slowest {took[-1]:.1f} ms")
    failed = first < 0.95 * len(hidden)
    if args.ask:
        failed |= ask(rpc, args, hidden) < 0.9 * len(hidden)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
