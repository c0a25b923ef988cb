#!/usr/bin/env python3
"""The tasks of tools/train/evaluate.py asked of a running recalld, by length of its memory.

Usage: tasks.py [--lengths 4Ki,16Ki,64Ki] [--kinds passkey,...] [--together] [--asks 50] [--seed 7] [--save FILE]
                [--prepared DIR | --text FILE...] [--socket PATH | --recalld BINARY [--data DIR]] [-- FLAG OF RECALLD...]

Facts are told between prose, each statement a turn of its own, those of a task in order and anywhere. Once everything
is encoded, each question is searched for (does the first result hold the turn with the answer?) and answered (is it the
answer and nothing else?), one at a time.

Without --together there is one memory for each kind and length. With it, one memory of all kinds grows from length to
length: every stretch tells tasks of its own about keys of its own, at most a third of its tokens, and at each length
--asks of every kind are asked, spread evenly over all of the memory. A short memory has room for fewer.

Prose is what --prepared (of tools/train/prepare.py) holds out and then the rest of it, the files of --text, or made up;
it begins anew where it ends. Only with --prepared the facts are those of evaluate.py; else their words are the
tokenizer's. Without --socket it starts a recalld with an empty store under --data and ends it. Memories are deleted
once they were asked, but for that of --together, which stays in a daemon of --socket. Needs numpy and sentencepiece.
"""
import argparse
import contextlib
import functools
import json
import random
import re
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "train"))

import numpy as np  # noqa: E402
import sentencepiece  # noqa: E402

from daemon_process import DaemonProcess, Rpc  # noqa: E402
from kinds import KINDS, TasksAbout  # noqa: E402
from prepared import Prepared  # noqa: E402

CHUNK = 64
TURN_WORDS = 300            # of a turn of prose
TURN_TOKENS_MIN = 8         # a shorter one is left out
BATCH_TURNS = 64            # of an append
LAST = 96                   # tokens of prose at the end, so that every statement lies in complete chunks
ANSWER_MAX = 60             # tokens
UNFIT_MAX = 500             # tasks in a row with keys that others have: there are no more of this kind


# ---- Prose

class Words:
    """What TaskMaker needs of Prepared where there is none: a tokenizer, and its own words and names."""

    def __init__(self, model):
        self.model = model
        pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
        self.words = sorted(piece[1:] for piece in pieces if re.fullmatch("\u2581[a-z]{4,12}", piece))
        self.names = sorted(piece[1:] for piece in pieces if re.fullmatch("\u2581[A-Z][a-z]{3,10}", piece))


def prepared_lines(prepared, seed):
    """Held-out novels first, from a place of the seed's, then the others."""
    for name in ("held_prose", "prose"):
        ids = prepared[name]
        ends = np.flatnonzero(ids == prepared.newline)
        bounds = list(zip([0, *ends + 1], [*ends, len(ids)]))
        first = random.Random(seed).randrange(len(bounds)) if name == "held_prose" else 0
        for begin, end in bounds[first:] + bounds[:first]:
            yield prepared.model.decode(ids[begin:end].tolist())


def text_lines(paths):
    for path in paths:
        yield from path.read_text(encoding="utf-8", errors="replace").split("\n")


def made_up_lines(seed):
    """Sentences of our own without end; nobody in them has a name, so that no fact is told by chance."""
    rng = random.Random(f"prose {seed}")
    who = """the ferryman|an old gardener|the night porter|a painter from the hills|the youngest clerk|our neighbour|
        the innkeeper|a travelling tinker|the schoolmistress|two fishermen|the miller's boy|a stranger""".split("|")
    did = """looked for|mended|forgot about|talked of|carried home|counted|wrapped up|waited for|laughed about|
        described|wanted to sell|was fond of|had never seen|dreamt of""".split("|")
    what = """the broken fence|a basket of pears|the last boat|a letter without a stamp|the long winter|a lame horse|
        the music from the square|a coat with three pockets|the road over the pass|an empty birdcage|the smell of rain|
        a jar of honey|the bells|a pair of boots""".split("|")
    where = """by the mill|at the end of the pier|under the lime trees|in the narrow lane|behind the bakery|on the stairs|
        near the locks|at the edge of the wood|in the crowded waiting room|beside the stove""".split("|")
    when = """before the snow came|late in the evening|once the guests had left|all through the spring|at first light|
        while the soup was boiling|long after midnight|on the way back|that same week|as the fog lifted""".split("|")
    end = ", and nobody asked why.|, as people do.|, though it was of no use.|.|.|.|; only much later did this matter."
    one = lambda words: rng.choice(words).strip()
    while True:
        sentences = []
        for _ in range(rng.randint(3, 9)):
            text = f"{one(who)} {one(did)} {one(what)} {one(where)} {one(when)}"
            if rng.random() < 0.3:
                text = f"{one(when)} {one(who)} {one(did)} {one(what)}"
            sentences.append(text[0].upper() + text[1:] + one(end.split("|")))
        yield " ".join(sentences)


class Prose:
    """Turns of prose without end; what ends begins anew."""

    def __init__(self, lines, size):
        """lines() gives them from the beginning."""
        self.turns, self.size, self.rest = self._turns(lines), size, ""

    @staticmethod
    def _turns(lines):
        while True:
            words, any_words = [], False
            for line in lines():
                words += line.split()
                any_words = any_words or bool(words)
                while len(words) >= TURN_WORDS:
                    yield " ".join(words[:TURN_WORDS])
                    del words[:TURN_WORDS]
            if not any_words:
                sys.exit("the prose has no words; name files with text")
            if words:
                yield " ".join(words)

    def take(self, room):
        """The next words, a turn of at most `room` tokens; nothing if there is too little room."""
        if room < TURN_TOKENS_MIN:
            return None
        turn = said(self.rest or next(self.turns))
        self.rest = ""
        if self.size(turn) <= room:
            return turn
        words = turn["content"].split(" ")
        low, high = 0, len(words)  # so many words fit, so many do not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.size(said(" ".join(words[:middle]))) <= room else (low, middle)
        self.rest = " ".join(words[low:])
        return said(" ".join(words[:low])) if low else None


# ---- Facts

def said(content):
    return {"role": "user", "content": content}


def turn_of(text, own_turn):
    """A statement as a turn, by its speaker where it names one."""
    speaker, content = text.split(": ", 1) if own_turn else ("User", text)
    return said(content) if speaker == "User" else {"role": "user", "name": speaker, "content": content}


@dataclass
class Told:
    """A question whose answer was told, and where: turn of the memory, and about which token."""
    kind: str
    question: str
    answer: str
    task: int
    statement: int
    turn: int = -1
    token: int = -1


class Facts:
    """Tasks of some kinds that never share a key, as many as are wanted."""

    def __init__(self, source, kinds, asks, seed, size):
        self.makers = {kind: TasksAbout(source, random.Random(f"evaluate {kind} {seed}"), KINDS[kind][2]) for kind in kinds}
        self.model, self.asks, self.seed, self.size = source.model, asks, seed, size
        self.used = set()

    def _task(self, kind):
        """One with new keys that is asked about, or none: (keys, turns, asks)."""
        task_name, asked_kind, _ = KINDS[kind]
        for _ in range(UNFIT_MAX):
            task = self.makers[kind].make(task_name)
            asks = [ask for ask in task.asks if ask.kind == asked_kind]
            if asks and self.used.isdisjoint(task.keys) and "pass key" not in task.keys:
                return task.keys, [turn_of(self.model.decode(s.tokens), s.own_turn) for s in task.statements], asks
        return None

    def plan(self, tokens):
        """For a stretch of so many: its statements (place from 0 to 1, task, statement, turn) in order, and what is asked.

        At most a third of the tokens are told, and no kind is told much more than another.
        """
        rng = random.Random(f"places {' '.join(self.makers)} {self.seed} {tokens}")
        room, told = tokens // 3, dict.fromkeys(self.makers, 0)
        kept, tasks, asked = dict.fromkeys(self.makers, 0), [], []
        while told:
            kind = min(told, key=told.get)
            found = self._task(kind)
            size = sum(map(self.size, found[1])) if found else 0
            if not found or size > room:
                del told[kind]
                continue
            keys, turns, asks = found
            self.used.update(keys)
            asks = asks[:self.asks - kept[kind]]
            asked += [Told(kind, self.model.decode(ask.questions[0]), self.model.decode(ask.answer).strip(), len(tasks),
                           ask.evidence[0]) for ask in asks]
            tasks.append(turns)
            room -= size
            told[kind] += size
            kept[kind] += len(asks)
            if kept[kind] == self.asks:
                del told[kind]
        statements = [(where, i, j, turn) for i, turns in enumerate(tasks)
                      for j, (where, turn) in enumerate(zip(sorted(rng.random() for _ in turns), turns))]
        return sorted(statements, key=lambda statement: statement[:3]), asked


def spread(told, count, tokens):
    """At most `count`, those nearest to evenly spaced places of the memory."""
    left = sorted(told, key=lambda one: one.token)
    if len(left) <= count:
        return left
    chosen = []
    for i in range(count):
        nearest = min(left, key=lambda one: abs(one.token - (i + 0.5) / count * tokens))
        left.remove(nearest)
        chosen.append(nearest)
    return sorted(chosen, key=lambda one: one.token)


# ---- The memory

class Memory:
    """A memory of the daemon that grows, and what was told in it."""

    def __init__(self, rpc, name, prose, facts, size):
        self.rpc, self.name, self.prose, self.facts, self.size = rpc, name, prose, facts, size
        self.tokens, self.told = 0, []

    def grow(self, length):
        """Appends up to a length and waits until all of it is encoded: tokens per second."""
        begun, before, batch = time.monotonic(), self.tokens, []
        for turn, asked in self._stretch(self.tokens, length):
            batch.append((turn, asked))
            if len(batch) == BATCH_TURNS:
                self._append(batch)
                batch = []
        if batch:
            self._append(batch)
        self._wait(length)
        return (self.tokens - before) / (time.monotonic() - begun)

    def _stretch(self, begin, end):
        """(turn, asks that it answers) from token `begin` up to `end`."""
        statements, asked = self.facts.plan(end - begin)
        about = defaultdict(list)
        for one in asked:
            about[one.task, one.statement].append(one)
        room, prose = end - begin - sum(self.size(turn) for *_, turn in statements), 0  # tokens of prose: all, and so far
        for where, task, statement, turn in statements:
            while said_now := self.prose.take(int(where * (room - LAST)) - prose):
                prose += self.size(said_now)
                yield said_now, []
            yield turn, about[task, statement]
        while said_now := self.prose.take(room - prose):
            prose += self.size(said_now)
            yield said_now, []

    def _append(self, batch):
        reply = self.rpc.call("append", memory=self.name, turns=[turn for turn, _ in batch])
        token = self.tokens
        for i, (turn, asked) in enumerate(batch):
            for one in asked:
                one.turn, one.token = reply["first_turn"] + i, token
                self.told.append(one)
            token += self.size(turn)
        self.tokens += reply["tokens"]

    def _wait(self, length):
        shown = time.monotonic()
        while True:
            memory = self.rpc.call("memories.get", memory=self.name)
            if memory["encoded_chunks"] == memory["chunks"]:
                return
            if time.monotonic() - shown > 20:
                shown = time.monotonic()
                share = memory["encoded_chunks"] / memory["chunks"]
                problem = self.rpc.call("health").get("problem", "")
                print(f"{length} tokens: {share:.0%} encoded {problem}", file=sys.stderr, flush=True)
            time.sleep(0.05)

    def ask(self, one):
        """(answered exactly, found first, milliseconds of the answer and of the search, what was answered)."""
        begun = time.perf_counter()
        found = self.rpc.call("search", memory=self.name, query=one.question, limit=8)["results"]
        between = time.perf_counter()
        text = self.rpc.call("generate", memory=self.name, prompt=one.question, max_tokens=ANSWER_MAX)["text"].strip()
        answer_ms, search_ms = 1e3 * (time.perf_counter() - between), 1e3 * (between - begun)
        first = bool(found) and any(turn["turn"] == one.turn for turn in found[0]["turns"])
        return text == one.answer, first, answer_ms, search_ms, text


def median_and_95th(values):
    values = sorted(values)
    return values[len(values) // 2], values[min(len(values) - 1, int(0.95 * len(values)))]


def mib(size):
    return f"{size / (1 << 20):.0f} MiB"


def device_bytes(stats):
    """What of the GPU's memory is taken; 0 without one."""
    parts = ("weights", "states", "landmarks", "cache", "workspace")
    return sum(stats["gpu"][f"{part}_bytes"] for part in parts) if "gpu" in stats else 0


def report(memory, kind, length, rate, asked, args, save):
    """Prints and saves a row."""
    if not asked:
        print(f"{kind:12} {length:9}    0")
        return
    exact, first = (sum(one[column] for one in asked) for column in (0, 1))
    answer_ms, search_ms = (median_and_95th([one[column] for one in asked]) for column in (2, 3))
    print(f"{kind:12} {length:9} {len(asked):4}  {exact / len(asked):.3f}  {first / len(asked):.3f}"
          f"  {answer_ms[0]:8.1f} {answer_ms[1]:8.1f}  {search_ms[0]:8.1f} {search_ms[1]:8.1f}", flush=True)
    if save:
        stats = memory.rpc.call("stats")
        save.write(json.dumps({
            "kind": kind, "length": length, "tokens": memory.tokens, "together": args.together, "seed": args.seed,
            "asks": len(asked), "exact": exact, "first": first,
            "answer_ms": answer_ms[0], "answer_ms_95th": answer_ms[1],
            "search_ms": search_ms[0], "search_ms_95th": search_ms[1], "append_tokens_per_s": rate,
            "resident_bytes": stats["resident_bytes"], "resident_bytes_max": memory.rpc.resident_bytes_max(),
            "device": stats["device"], "device_bytes": device_bytes(stats), "model_hash": stats["model_hash"]}) + "\n")
        save.flush()


def ask_all(memory, kinds, length, rate, args, save):
    """Asks at this length; a row for each kind, one for all of them, and what the daemon takes."""
    asked_of_all = []
    for kind in kinds:
        asked = []
        for one in spread([one for one in memory.told if one.kind == kind], args.asks, memory.tokens):
            exact, first, *_, text = row = memory.ask(one)
            asked.append(row)
            if args.wrong and not exact:
                print(f"  {kind}: {one.question} {one.answer!r}, not {text!r}{'' if first else ', not first'}")
        report(memory, kind, length, rate, asked, args, save)
        asked_of_all += asked
    if len(kinds) > 1:
        report(memory, "all", length, rate, asked_of_all, args, save)
    stats, highest = memory.rpc.call("stats"), memory.rpc.resident_bytes_max()
    print(f"{'':12} {memory.tokens:9} tokens appended and encoded, {rate:.0f} a second; "
          f"resident {mib(stats['resident_bytes'])}, {mib(highest)} at most so far; "
          + (f"{mib(device_bytes(stats))} of {stats['gpu']['name']}" if "gpu" in stats else "no GPU"), flush=True)


def length_of(text):
    found = re.fullmatch(r"(\d+)(Ki|Mi)?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a number of tokens, such as 4096 or 4Ki, not {text}")
    return int(found[1]) << {None: 0, "Ki": 10, "Mi": 20}[found[2]]


def lengths_of(text):
    return sorted({length_of(part) for part in text.split(",")})


def kinds_of(text):
    kinds = text.split(",")
    if unknown := set(kinds) - set(KINDS):
        raise argparse.ArgumentTypeError(f"there is no {' nor '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    return kinds


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=lengths_of, default="4Ki,16Ki,64Ki", help="tokens; Ki and Mi are understood")
    parser.add_argument("--kinds", type=kinds_of, default=",".join(KINDS))
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--asks", type=int, default=50, help="of a kind at a length")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--save", type=Path, help="writes JSON lines")
    parser.add_argument("--wrong", action="store_true", help="also print what was not answered exactly")
    prose = parser.add_mutually_exclusive_group()
    prose.add_argument("--prepared", type=Path)
    prose.add_argument("--text", type=Path, nargs="+")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "model/default/tokenizer.model",
                        help="of the daemon's model; --prepared has its own")
    parser.add_argument("--socket", help="of a daemon that runs")
    parser.add_argument("--memory", default="tasks", help="the name of the memory, or what their names begin with")
    parser.add_argument("--recalld", type=Path, default=ROOT / "build/release/recalld")
    parser.add_argument("--data", type=Path, help="where the store of an own recalld is made, for as long as it runs")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="of an own recalld, behind --")
    return parser.parse_args()


def main():
    args = arguments()
    source = Prepared(args.prepared) if args.prepared else \
        Words(sentencepiece.SentencePieceProcessor(model_file=str(args.tokenizer)))

    @functools.lru_cache(1 << 17)
    def tokens_of(line):
        return len(source.model.encode(line)) + 1

    def size(turn):
        return tokens_of(f"{turn.get('name', 'User')}: {turn['content']}")

    def memory_of(name, kinds):
        def lines():
            return prepared_lines(source, args.seed) if args.prepared else text_lines(args.text) if args.text else \
                made_up_lines(args.seed)

        return Memory(rpc, name, Prose(lines, size), Facts(source, kinds, args.asks, args.seed, size), size)

    own = contextlib.nullcontext(Rpc(args.socket)) if args.socket else DaemonProcess(args.recalld, args.data, args.flags)
    with own as rpc, args.save.open("w") if args.save else contextlib.nullcontext() as save:
        if rpc.call("memories.list", prefix=args.memory, limit=1)["memories"]:
            sys.exit(f"there are memories that begin with {args.memory}; choose another name with --memory")
        print("kind            length asks  exact  first    answer ms, 95th    search ms, 95th")
        if args.together:
            memory = memory_of(args.memory, args.kinds)
            for length in args.lengths:
                ask_all(memory, args.kinds, length, memory.grow(length), args, save)
            return
        for kind in args.kinds:
            for length in args.lengths:
                memory = memory_of(f"{args.memory}/{kind}/{length}", [kind])
                ask_all(memory, [kind], length, memory.grow(length), args, save)
                rpc.call("memories.delete", memory=memory.name)


if __name__ == "__main__":
    main()
