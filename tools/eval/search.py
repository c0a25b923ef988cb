#!/usr/bin/env python3
"""How well recalld finds what answers a question, beside BM25 and a dense ranker over the same chunks.

Usage: search.py --data FILE... [--modes landmark,lexical,hybrid] [--dense] [--limit N] [--seed 1] [--brief]
                 [--parts] [--save FILE] [--each FILE] [--socket PATH | --recalld BINARY [--store DIR]] [-- FLAG OF RECALLD...]

Each FILE is a data set in the shape that docs/search-quality.md describes; convert.py makes them. Every memory of it is
appended, every question asked once in each mode. A mode that the daemon does not have is reported and left out. Prints
tables in Markdown: by chunk and by turn the share of questions with some (any@k) and with all (all@k) of their evidence in
the first k results and the mean reciprocal rank, 95% bootstrap intervals, paired differences, categories, latency. With
--parts each question is asked once more in mode hybrid, for one explained result, to tell where a search's time goes.

Without --socket it starts a recalld with an empty store under --store and ends it. The memories that it makes begin with
--memory, and are deleted once they were asked. Needs numpy and snowballstemmer; --dense needs wordllama.
"""
import argparse
import contextlib
import json
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import dataset
import metrics
import rankers
from chunk_map import ChunkMap
from daemon_process import DaemonProcess, Rpc, RpcError

ROOT = Path(__file__).resolve().parents[2]
BATCH_TURNS, BATCH_BYTES = 512, 1 << 20     # of an append
CHUNK_TOKENS = 64
INVALID_PARAMS = -32602
COMPARED = ("any@1", "any@10", "all@10")    # in the table of differences
WITH_INTERVAL = ("any@10", "all@10")
BRIEF = ("any@1", "any@10", "all@10", "mrr")
MODES = ("landmark", "lexical", "hybrid")


# ---- The daemon's side

class Memory:
    """A memory of a data set in the daemon."""

    def __init__(self, rpc: Rpc, name: str, turns: list[dict]):
        self.rpc, self.name = rpc, name
        self.tokens = self._append(turns)
        stored = self._chunks()
        self.chunk_tokens = stored[0]["tokens"][1] - stored[0]["tokens"][0] if stored else CHUNK_TOKENS
        self.map = ChunkMap.of(name, turns, [chunk["text"] for chunk in stored])

    def _append(self, turns: list[dict]) -> int:
        tokens, batch, size = 0, [], 0
        for i, turn in enumerate(turns):
            batch.append({"role": "user"} | turn)
            size += len(turn["content"].encode())
            last = i + 1 == len(turns)
            if last or len(batch) == BATCH_TURNS or size >= BATCH_BYTES:
                wait = {"wait": "searchable"} if last else {}
                tokens += self.rpc.call("append", memory=self.name, turns=batch, **wait)["tokens"]
                batch, size = [], 0
        return tokens

    def _chunks(self) -> list[dict]:
        found, page = [], {"next_cursor": None}
        while "next_cursor" in page:
            cursor = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
            page = self.rpc.call("chunks.list", memory=self.name, limit=1000, **cursor)
            found += page["chunks"]
        return found

    def search(self, question: str, mode: str, arguments: dict) -> tuple[list[set[int]], float, float]:
        """The chunks that each result shows, best first; milliseconds here and inside the daemon."""
        begun = time.perf_counter()
        reply = self.rpc.request("search", memory=self.name, query=question, limit=metrics.DEPTH, mode=mode, **arguments)
        took = 1e3 * (time.perf_counter() - begun)
        shown = []
        for result in reply["results"]:
            begin, end = result["tokens"]
            shown.append(set(range(begin // self.chunk_tokens, -(-end // self.chunk_tokens))))
        return shown, took, reply["took_ms"]

    def parts_of_search(self, question: str, arguments: dict) -> dict[str, float]:
        """Milliseconds of each part of a hybrid search, before its results are made; empty when it finds nothing."""
        asked = arguments | {"query": question, "limit": 1, "mode": "hybrid", "explain": True}
        results = self.rpc.request("search", memory=self.name, **asked)["results"]
        return results[0]["why"]["took"] if results else {}


def memory_name(*parts: str) -> str:
    name = "/".join(re.sub(r"[^A-Za-z0-9._/-]", "-", part) for part in parts)
    return name[:200]


# ---- What was found

@dataclass
class Answers:
    """What one system found for the questions of a set, in their order."""
    system: str
    of_daemon: bool
    by_chunk: list[list[float]] = field(default_factory=list)   # metrics.names() of each question
    by_turn: list[list[float]] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)
    inside_ms: list[float] = field(default_factory=list)
    parts_ms: list[dict[str, float]] = field(default_factory=list)   # of questions that found something

    def add(self, shown: list[set[int]], memory: Memory, question: dataset.Question) -> None:
        """`shown`: the chunks of each result."""
        chunks = set().union(*(memory.map.chunks_of(one) for one in question.evidence))
        turns = {one.turn for one in question.evidence}
        shown_turns = [set().union(*(memory.map.turns_of[chunk] for chunk in result)) for result in shown]
        self.by_chunk.append(metrics.of_ranking(shown, chunks))
        self.by_turn.append(metrics.of_ranking(shown_turns, turns))


@dataclass
class Outcome:
    data: dataset.DataSet
    questions: list[dataset.Question]
    memories: int   # that were appended: those with a question that has evidence
    chunks: int
    tokens: int
    answers: list[Answers]


class Evaluation:
    def __init__(self, rpc: Rpc, args):
        self.rpc, self.args = rpc, args
        self.baselines = rankers.baselines(args.dense)
        self.modes = list(args.modes)

    def run(self, data: dataset.DataSet) -> Outcome:
        """Memory after memory: appended, asked, deleted."""
        asked = [question for question in data.questions if question.evidence]
        answers = {name: Answers(name, name in self.modes) for name in [*self.modes, *self.baselines]}
        order, memories, chunks, tokens, begun = [], 0, 0, 0, time.monotonic()
        appending = 0.0
        for name, turns in data.memories.items():
            questions = [question for question in asked if question.memory == name]
            if not questions:
                continue
            start = time.monotonic()
            memory = Memory(self.rpc, memory_name(self.args.memory, data.name, name), turns)
            appending += time.monotonic() - start
            try:
                self._ask(memory, questions, answers)
            finally:
                self.rpc.call("memories.delete", memory=memory.name, wait="none")
            order += questions
            memories += 1
            chunks += len(memory.map.texts)
            tokens += memory.tokens
        left_out = len(data.questions) - len(asked)
        print(f"{data.name}: {memories} memories, {tokens} tokens, {chunks} chunks, {len(asked)} questions"
              + (f" and {left_out} without evidence, left out" if left_out else "")
              + f"; {tokens / max(appending, 1e-9):.0f} tokens a second appended, {time.monotonic() - begun:.0f} s in all",
              file=sys.stderr, flush=True)
        return Outcome(data, order, memories, chunks, tokens, [one for one in answers.values() if one.by_chunk])

    def _ask(self, memory: Memory, questions: list[dataset.Question], answers: dict[str, Answers]) -> None:
        for mode in list(self.modes):
            try:
                for question in questions:
                    shown, took, inside = memory.search(question.text, mode, self.args.arguments)
                    answers[mode].add(shown, memory, question)
                    answers[mode].took_ms.append(took)
                    answers[mode].inside_ms.append(inside)
                if self.args.parts and mode == "hybrid":
                    parts = (memory.parts_of_search(question.text, self.args.arguments) for question in questions)
                    answers[mode].parts_ms += [one for one in parts if one]
            except RpcError as error:
                if error.code != INVALID_PARAMS or not error.message.startswith("mode:") or answers[mode].by_chunk:
                    sys.exit(str(error))
                print(f"mode {mode} is left out: {error}", file=sys.stderr)
                self.modes.remove(mode)
        for name, ranker in self.baselines.items():
            ranked = rankers.best(ranker(memory.map.texts, [question.text for question in questions]), metrics.DEPTH)
            for question, row in zip(questions, ranked.tolist()):
                answers[name].add([{chunk} for chunk in row], memory, question)


# ---- Tables

def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def share(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def with_interval(one: metrics.Interval) -> str:
    return f"{share(one.mean)} [{share(one.low)}, {share(one.high)}]"


def mean_parts(answers: Answers) -> dict[str, float]:
    """Milliseconds of each part of a search; the rest is that of the searches that explained nothing: waiting, ranking and
    text."""
    parts = {name.removesuffix("_ms"): float(np.mean([one[name] for one in answers.parts_ms]))
             for name in answers.parts_ms[0]}
    return parts | {"rest": max(0.0, float(np.mean(answers.inside_ms)) - inside_of(parts))}


def inside_of(parts: dict[str, float]) -> float:
    """The time of these parts, but for what went on beside the model."""
    return sum(ms for name, ms in parts.items() if name != "words_beside")


class Report:
    """The tables and the saved lines of all sets."""

    def __init__(self, outcomes: list[Outcome], seed: int):
        self.outcomes, self.names = outcomes, metrics.names()
        self.drawn = {id(one): metrics.draws(len(one.questions), seed) for one in outcomes}

    def _intervals(self, outcome: Outcome, rows: list[list[float]]) -> dict[str, metrics.Interval]:
        return dict(zip(self.names, metrics.intervals(np.array(rows), self.drawn[id(outcome)])))

    def _differences(self, outcome: Outcome):
        """(mode, other system, figure -> interval of the mode's minus the other's)."""
        for mode in (one for one in outcome.answers if one.of_daemon):
            for other in outcome.answers:
                if other is not mode:
                    difference = np.array(mode.by_chunk) - np.array(other.by_chunk)
                    yield mode.system, other.system, self._intervals(outcome, difference)

    def print(self, brief: bool = False) -> None:
        sets = [[one.data.name, one.data.split, str(one.memories), str(one.tokens), str(one.chunks),
                 str(len(one.questions))] for one in self.outcomes]
        print(table(["set", "split", "memories", "tokens", "chunks", "questions"], sets))
        if brief:
            self._print_systems("chunk", BRIEF)
        else:
            self._print_systems("chunk", self.names)
            self._print_systems("turn", self.names)
        self._print_differences(brief)
        self._print_categories()
        self._print_latency()
        self._print_parts()

    def _print_systems(self, by: str, columns) -> None:
        rows = []
        for outcome in self.outcomes:
            for answers in outcome.answers:
                found = self._intervals(outcome, getattr(answers, f"by_{by}"))
                rows.append([outcome.data.name, answers.system] + [
                    with_interval(found[name]) if name in WITH_INTERVAL else share(found[name].mean) for name in columns])
        print(f"By {by}:\n")
        print(table(["set", "system", *columns], rows))

    def _print_differences(self, brief: bool) -> None:
        """Brief: of each mode only those to BM25 and to what is best beside it by any@10."""
        column, rows = self.names.index("any@10"), []
        for outcome in self.outcomes:
            mean = {one.system: np.array(one.by_chunk)[:, column].mean() for one in outcome.answers}
            for mode, other, found in self._differences(outcome):
                best = max((name for name in mean if name != mode), key=mean.get)
                if not brief or other in ("BM25", best):
                    rows.append([outcome.data.name, f"{mode} - {other}", *(with_interval(found[name]) for name in COMPARED)])
        if rows:
            print("Differences by chunk, with paired intervals:\n")
            print(table(["set", "systems", *COMPARED], rows))

    def _print_latency(self) -> None:
        rows = [[outcome.data.name, answers.system, str(outcome.chunks // outcome.memories),
                 *(f"{value:.1f}" for value in metrics.percentiles(answers.took_ms).values()),
                 *(f"{value:.1f}" for value in metrics.percentiles(answers.inside_ms).values())]
                for outcome in self.outcomes for answers in outcome.answers if answers.of_daemon]
        if rows:
            print("Milliseconds of a search, through the socket and inside the daemon:\n")
            print(table(["set", "mode", "chunks a memory", "p50", "p95", "p99", "inside p50", "p95", "p99"], rows))

    def _print_parts(self) -> None:
        rows, names = [], []
        for outcome in self.outcomes:
            for answers in (one for one in outcome.answers if one.parts_ms):
                parts = mean_parts(answers)
                names, inside = list(parts), inside_of(parts)
                rows.append([outcome.data.name, f"{inside:.1f}",
                             *(f"{value:.2f} ({value / inside:.0%})" for value in parts.values())])
        if rows:
            print("Milliseconds of a hybrid search inside the daemon and of its parts, means:\n")
            print(table(["set", "inside", *names], rows))

    def _categories(self, outcome: Outcome) -> dict[str, np.ndarray]:
        """Which questions are of each."""
        names = sorted({question.category for question in outcome.questions})
        return {name: np.array([question.category == name for question in outcome.questions]) for name in names}

    def _print_categories(self) -> None:
        column, rows, systems = self.names.index("any@10"), [], []
        for outcome in self.outcomes:
            categories = self._categories(outcome)
            if len(categories) < 2:
                continue
            systems = [one.system for one in outcome.answers]
            for name, mask in categories.items():
                found = [share(float(np.array(one.by_chunk)[mask, column].mean())) for one in outcome.answers]
                rows.append([outcome.data.name, name or "none", str(mask.sum()), *found])
        if rows:
            print("any@10 by chunk, by category:\n")
            print(table(["set", "category", "questions", *systems], rows))

    def save(self, out) -> None:
        """A line for each set and system."""
        def figures(found):
            return {name: [round(one.mean, 5), round(one.low, 5), round(one.high, 5)] for name, one in found.items()}

        for outcome in self.outcomes:
            differences = {}
            for mode, other, found in self._differences(outcome):
                differences.setdefault(mode, {})[other] = figures(found)
            for answers in outcome.answers:
                categories = {name: {"questions": int(mask.sum()), **dict(zip(self.names, np.round(
                    np.array(answers.by_chunk)[mask].mean(0), 5).tolist()))}
                    for name, mask in self._categories(outcome).items()}
                line = {"set": outcome.data.name, "split": outcome.data.split, "system": answers.system,
                        "memories": outcome.memories, "chunks": outcome.chunks, "tokens": outcome.tokens,
                        "questions": len(outcome.questions),
                        "by_chunk": figures(self._intervals(outcome, answers.by_chunk)),
                        "by_turn": figures(self._intervals(outcome, answers.by_turn)), "categories": categories}
                if answers.of_daemon:
                    line |= {"minus": differences[answers.system], "took_ms": metrics.percentiles(answers.took_ms),
                             "inside_ms": metrics.percentiles(answers.inside_ms)}
                if answers.parts_ms:
                    line["parts_ms"] = mean_parts(answers)
                out.write(json.dumps(line) + "\n")

    def save_each(self, out) -> None:
        """A line for each question, with the rank at which each system showed evidence first (null: not in the first 20)."""
        for outcome in self.outcomes:
            for i, question in enumerate(outcome.questions):
                ranks = {one.system: round(1 / one.by_chunk[i][-1]) if one.by_chunk[i][-1] else None
                         for one in outcome.answers}
                out.write(json.dumps({"set": outcome.data.name, "memory": question.memory, "id": question.id,
                                      "question": question.text, "category": question.category, "ranks": ranks},
                                     ensure_ascii=False) + "\n")


# ---- The command

def modes_of(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help="data sets, JSON lines")
    parser.add_argument("--modes", type=modes_of, default=list(MODES), help="of the daemon, separated by commas; may be empty")
    parser.add_argument("--arguments", type=json_object, default={}, metavar="JSON",
                        help='more arguments of every search, such as \'{"expand":"none"}\'')
    parser.add_argument("--dense", action="store_true", help="also the dense ranker")
    parser.add_argument("--limit", type=int, help="at most so many questions of a set, evenly spaced")
    parser.add_argument("--seed", type=int, default=1, help="of the resamples")
    parser.add_argument("--brief", action="store_true", help="prints less; --save keeps all")
    parser.add_argument("--parts", action="store_true", help="also the parts of a hybrid search's time")
    parser.add_argument("--save", type=Path, help="writes JSON lines, one a set and system")
    parser.add_argument("--each", type=Path, help="writes JSON lines, one a question, with its rank in each system")
    parser.add_argument("--memory", default="eval", help="what the names of the memories begin with")
    parser.add_argument("--socket", help="of a daemon that runs")
    parser.add_argument("--recalld", type=Path, default=ROOT / "build/release/recalld")
    parser.add_argument("--store", type=Path, help="where the store of an own recalld is made, for as long as it runs")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="of an own recalld, behind --")
    args = parser.parse_args()
    if args.limit is not None and args.limit < 1:
        parser.error("--limit: expected 1 or more")
    return args


def main():
    args = arguments()
    sets = [dataset.read(path).limited(args.limit) for path in args.data]
    if len({data.name for data in sets}) < len(sets):
        sys.exit("--data: two sets have the same name; give each its own")
    own = contextlib.nullcontext(Rpc(args.socket)) if args.socket else DaemonProcess(args.recalld, args.store, args.flags)
    with own as rpc:
        if rpc.call("memories.list", prefix=f"{args.memory}/", limit=1)["memories"]:
            sys.exit(f"there are memories that begin with {args.memory}/; choose another name with --memory")
        evaluation = Evaluation(rpc, args)
        report = Report([evaluation.run(data) for data in sets], args.seed)
    report.print(args.brief)
    for path, save in ((args.save, report.save), (args.each, report.save_each)):
        if path:
            with path.open("w", encoding="utf-8") as out:
                save(out)


if __name__ == "__main__":
    main()
