#!/usr/bin/env python3
"""Learns what a hybrid search makes of its features: the file fusion.json of a checkpoint (docs/search-quality.md).

Usage: fusion.py dump --socket PATH --data FILE... --out FEATURES    asks a running recalld the questions of data sets
       fusion.py fit FEATURES... --out fusion.json [--sets NAME...] [--half SET:0|1] [--known SET...]
       fusion.py test FEATURES... --weights fusion.json [--sets NAME...] [--half SET:0|1]

`dump` appends memories `fusion/SPLIT/SET/...` that are not there yet, asks each question with `explain`, and writes a line
a question with the features of its candidates. To each set come questions of the other sets, which nothing there answers
(--strangers, their share): they teach the score what "nothing relevant" looks like. It asks for 128 results,
for which up to 256 chunks compete: one of the first 64 of a ranking that stands below the 128th result is missing.

`fit` takes FEATURES of sets that the checkpoint was not trained on. Weights of the order: softmax over the candidates of a
question, all evidence the right answer, no weight below 0, every set as heavy as any other. Then the score: a logistic
regression over the first 10 of every question, strangers too. Sets that the checkpoint was trained to answer go with --known:
landmarks and tokens, which find too much there, count as nothing in them, so that they teach how words and meaning go
together; and they teach no score. `test` prints any@1, any@10 and all@10 of the fused order
beside those of the single rankings, with 95% bootstrap intervals of the differences, and the expected calibration error.
--half takes of one set the questions of which the first evidence lies in the first (0) or the second half of its memory, so
that weights learned on the one can be tested on the other. Needs numpy; `dump` what tools/eval/search.py needs.
"""
import argparse
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DEPTH = 64      # of each ranking; daemon/fusion.h
ORDER = ("bm25", "context_bm25", "landmark", "tokens", "near_landmark", "near_tokens", "landmark_top", "lexical_top",
         "meaning", "topic")
# What a checkpoint was trained for, by its place in ORDER.
OF_MODEL = [i for i, name in enumerate(ORDER) if "landmark" in name or "tokens" in name]
SEARCH = ("best_bm25", "best_tokens", "best_landmark")
SHOWN = 10      # results of a question that the score is learned from
RIDGE = 1e-3
BINS = 10       # of the calibration error


@dataclass
class Asked:
    """A question with its candidates. `evidence` of a stranger is all False."""
    set: str
    split: str
    half: int               # of its memory, in which its first evidence lies; -1: a stranger
    order: np.ndarray       # [n, 10]
    search: np.ndarray      # [3]
    evidence: np.ndarray    # [n] bool
    wanted: int             # chunks of evidence, those beyond the candidates too
    chunks: np.ndarray      # [n]

    @property
    def stranger(self) -> bool:
        return self.half < 0


def read(paths: list[Path]) -> list[Asked]:
    asked = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                features = np.array([[each[name] for name in ORDER + SEARCH] for each in record["features"]], float)
                asked.append(Asked(record["set"], record["split"], record["half"], features[:, :len(ORDER)],
                                   features[0, len(ORDER):], np.array(record["evidence"], bool), record["wanted"],
                                   np.array(record["chunks"])))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                sys.exit(f"{path}:{number}: {error!r}; fusion.py dump writes these lines")
    return asked


# ---- dump

def dump(args) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "eval"))
    import dataset
    import search

    class Kept(search.Memory):
        """A memory that stays, and is appended once."""
        def _append(self, turns):
            if self.rpc.call("memories.list", prefix=self.name, limit=1)["memories"]:
                return 0
            return super()._append(turns)

    rpc, rng = search.Rpc(args.socket), random.Random(args.seed)
    sets = [dataset.read(path).of_first_memories(args.memories) for path in args.data]
    with args.out.open("w", encoding="utf-8") as out:
        for data in sets:
            own = [question for question in data.questions if question.evidence]
            if args.limit and len(own) > args.limit:
                own = [own[i * len(own) // args.limit] for i in range(args.limit)]
            others = [question.text for other in sets if other.name != data.name for question in other.questions]
            strangers = rng.sample(others, min(len(others), round(args.strangers * len(own))))
            names = sorted({question.memory for question in own})
            for place, name in enumerate(names):
                memory = Kept(rpc, search.memory_name("fusion", data.split or "all", data.name, name), data.memories[name])
                for question in (one for one in own if one.memory == name):
                    wanted = set().union(*(memory.map.chunks_of(one) for one in question.evidence))
                    half = int(2 * min(wanted) >= len(memory.map.texts))
                    ask(rpc, memory.name, question.text, wanted, data, half, out)
                for text in strangers[place::len(names)]:
                    ask(rpc, memory.name, text, set(), data, -1, out)
            print(f"{data.name} {data.split}: {len(own)} questions, {len(strangers)} strangers", flush=True)


def ask(rpc, memory, text, wanted, data, half, out) -> None:
    results = rpc.call("search", memory=memory, query=text, limit=2 * DEPTH, explain=True)["results"]
    deep = [result for result in results if min(result["why"].get("landmark_rank", DEPTH + 1),
                                                result["why"].get("lexical_rank", DEPTH + 1)) <= DEPTH]
    if deep:
        out.write(json.dumps({"set": data.name, "split": data.split, "half": half, "wanted": len(wanted),
                              "chunks": [result["chunk"] for result in deep],
                              "evidence": [int(result["chunk"] in wanted) for result in deep],
                              "features": [result["why"]["features"] for result in deep]}) + "\n")


# ---- fit

def by_set(asked: list[Asked]) -> dict[str, list[Asked]]:
    sets = {}
    for one in asked:
        sets.setdefault(one.set, []).append(one)
    return sets


def set_weights(asked: list[Asked]) -> np.ndarray:
    """So that every set counts the same; their sum is 1."""
    sets = by_set(asked)
    return np.array([1 / len(sets) / len(sets[one.set]) for one in asked])


def logsumexp(values: np.ndarray) -> float:
    top = values.max()
    return float(top + np.log(np.exp(values - top).sum()))


def fit_order(asked: list[Asked], steps: int = 400, rate: float = 0.05) -> np.ndarray:
    """[10], none below 0: Adam on the whole set, projected."""
    usable = [one for one in asked if one.evidence.any()]
    if not usable:
        sys.exit("fit: no question has evidence among its candidates; are these the features of the right sets?")
    weight = set_weights(usable)
    longest = max(len(one.evidence) for one in usable)
    features = np.zeros((len(usable), longest, len(ORDER)))
    there, right = np.zeros((2, len(usable), longest), bool)
    for i, one in enumerate(usable):
        features[i, :len(one.order)], there[i, :len(one.order)], right[i, :len(one.order)] = one.order, True, one.evidence
    w, m, v = np.full(len(ORDER), 0.3), np.zeros(len(ORDER)), np.zeros(len(ORDER))
    for step in range(1, steps + 1):
        scores = np.where(there, features @ w, -1e30)
        scores -= scores.max(1, keepdims=True)
        shares = np.exp(scores)
        of_right = np.where(right, shares, 0)
        shares /= shares.sum(1, keepdims=True)
        of_right /= np.maximum(of_right.sum(1, keepdims=True), 1e-300)
        gradient = np.einsum("q,qn,qnf->f", weight, shares - of_right, features) + 2 * RIDGE * w
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient ** 2
        w = np.maximum(0, w - rate * (m / (1 - 0.9 ** step)) / (np.sqrt(v / (1 - 0.99 ** step)) + 1e-9))
    return w


def score_rows(one: Asked, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the logit is a weighted sum of, for the first 10 of a question: [k, 6], and their places among the candidates."""
    sums = one.order @ order
    best = np.lexsort((one.chunks, -sums))[:SHOWN]
    rivals = logsumexp(sums)
    return np.stack([np.array([sums[i], rivals, *one.search, 1.0]) for i in best]), best


def fit_score(asked: list[Asked], order: np.ndarray) -> np.ndarray:
    """[slope, rivals, 3 of the search, bias] by Newton's method; the slope is not below 0."""
    weight, rows, labels, weights = set_weights(asked), [], [], []
    for one, heavy in zip(asked, weight):
        found, best = score_rows(one, order)
        rows.append(found)
        labels.append(one.evidence[best])
        weights.append(np.full(len(best), heavy / len(best)))
    x, y, heavy = np.concatenate(rows), np.concatenate(labels).astype(float), np.concatenate(weights)
    c = np.zeros(x.shape[1])
    ridge = 1e-4 * np.eye(len(c))
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ c, -30, 30)))
        gradient = x.T @ (heavy * (p - y)) + ridge @ c
        step = np.linalg.solve((x * (heavy * p * (1 - p))[:, None]).T @ x + ridge, gradient)
        c -= step / max(1.0, float(np.abs(step).max()))
    c[0] = max(c[0], 0.0)
    return c


def fit(args) -> None:
    asked = chosen(args)
    known = set(args.known or ())
    if missing := known - {one.set for one in asked}:
        sys.exit(f"--known: there are no features of {', '.join(sorted(missing))}")
    for one in asked:
        if one.set in known:
            one.order[:, OF_MODEL] = 0
    order = fit_order(asked)
    unknown = [one for one in asked if one.set not in known]
    if not unknown:
        sys.exit("--known: the score needs a set that the checkpoint was not trained to answer")
    score = fit_score(unknown, order)
    weights = {"format": 1, "depth": DEPTH,
               "learned_from": sorted({f"{one.set} ({one.split})" for one in asked}),
               "order": dict(zip(ORDER, order.round(5).tolist())),
               "score": dict(zip(("slope", "rivals", *SEARCH, "bias"), score.round(5).tolist()))}
    args.out.write_text(json.dumps(weights, indent=1) + "\n")
    print(json.dumps(weights, indent=1))


def half_of(text: str) -> tuple[str, int]:
    name, _, half = text.rpartition(":")
    if not name or half not in ("0", "1"):
        raise argparse.ArgumentTypeError(f"expected SET:0 or SET:1, got {text!r}")
    return name, int(half)


def chosen(args) -> list[Asked]:
    asked = [one for one in read(args.features)
             if (args.sets is None or one.set in args.sets)
             and (args.half is None or one.set != args.half[0] or one.half in (-1, args.half[1]))]
    if not asked:
        sys.exit("there are no features of these sets")
    return asked


# ---- test

def figures(one: Asked, sums: np.ndarray) -> tuple[float, float, float]:
    """any@1, any@10, all@10; of equals the lower chunk comes first."""
    first = one.evidence[np.lexsort((one.chunks, -sums))]
    return float(first[:1].any()), float(first[:10].any()), float(first[:10].sum() >= one.wanted)


def calibration_error(p: np.ndarray, y: np.ndarray) -> float:
    """Mean distance of score and share of evidence over ten bins of equal width, weighted by how many lie in each."""
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    return float(sum(abs(p[bins == b].mean() - y[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)))


def mean_of(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def test(args) -> None:
    weights = json.loads(args.weights.read_text())
    order = np.array([weights["order"].get(name, 0) for name in ORDER])  # meaning and topic may be missing
    score = np.array([weights["score"][name] for name in ("slope", "rivals", *SEARCH, "bias")])
    parts = dict(zip(ORDER, np.eye(len(ORDER))))
    alone = {"hybrid": order, "bm25": parts["bm25"], "context": parts["context_bm25"], "bm25 + context": parts["lexical_top"],
             "landmark": parts["landmark_top"], "tokens": parts["tokens"], "meaning": parts["meaning"]}
    print("| set | split | questions | ranking | any@1 | any@10 | all@10 | hybrid - it, any@1 | any@10 |")
    print("|---|---|---|---|---|---|---|---|---|")
    everything = chosen(args)
    for name, asked in by_set(everything).items():
        own = [one for one in asked if not one.stranger]
        if not own:
            print(f"| {name} | {asked[0].split} | 0 |" + " |" * 6)
            continue
        found = {system: np.array([figures(one, one.order @ w) for one in own]) for system, w in alone.items()}
        draws = np.random.default_rng(1).integers(0, len(own), (2000, len(own)))
        for system, values in found.items():
            cells = [f"{value:.3f}" for value in values.mean(0)]
            for column in (0, 1):
                difference = (found["hybrid"] - values)[:, column]
                low, high = np.percentile(difference[draws].mean(1), (2.5, 97.5))
                cells.append("" if system == "hybrid" else f"{difference.mean():.3f} [{low:.3f}, {high:.3f}]")
            print(f"| {name} | {own[0].split} | {len(own)} | {system} | " + " | ".join(cells) + " |")
    print("\n| set | ECE of the first 10 | of the first | mean score of the first, of strangers' first | AUC of the first |")
    print("|---|---|---|---|---|")
    for name, asked in by_set(everything).items():
        p, y, p1, y1, strange = [], [], [], [], []
        for one in asked:
            rows, best = score_rows(one, order)
            probability = 1 / (1 + np.exp(-(rows @ score)))
            p.extend(probability)
            y.extend(one.evidence[best])
            p1.append(probability[0])
            y1.append(one.evidence[best[0]])
            strange.append(one.stranger)
        p, y, p1, y1, strange = map(np.array, (p, y, p1, y1, strange))
        right, wrong = p1[y1], p1[~y1]
        auc = (right[:, None] > wrong).mean() if len(right) and len(wrong) else float("nan")
        print(f"| {name} | {calibration_error(p, y):.3f} | {calibration_error(p1, y1):.3f} | {mean_of(p1[~strange]):.3f}, "
              f"{mean_of(p1[strange]):.3f} | {auc:.3f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("dump")
    command.add_argument("--socket", required=True)
    command.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--limit", type=int, help="at most so many questions of a set, evenly spaced")
    command.add_argument("--memories", type=int, help="only so many memories of a set, the first ones")
    command.add_argument("--strangers", type=float, default=0.25)
    command.add_argument("--seed", type=int, default=1)
    for name in ("fit", "test"):
        command = commands.add_parser(name)
        command.add_argument("features", type=Path, nargs="+")
        command.add_argument("--sets", nargs="+", help="these alone")
        command.add_argument("--half", type=half_of, metavar="SET:0|1")
        if name == "fit":
            command.add_argument("--out", type=Path, required=True)
            command.add_argument("--known", nargs="+", metavar="SET", help="sets that the checkpoint was trained to answer")
        else:
            command.add_argument("--weights", type=Path, required=True)
    args = parser.parse_args()
    {"dump": dump, "fit": fit, "test": test}[args.command](args)


if __name__ == "__main__":
    main()
