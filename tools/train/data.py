#!/usr/bin/env python3
"""Training sequences: things told, questions about them later, and where each answer's evidence lies.

Usage: data.py PREPARED [--sequences 200] [--show 4] [--length 4096]
Prints the time a sequence takes, counts by kind, and samples.

L tokens a sequence, S a chunk, C chunks. In sequences of another length L there are as many R, A, Q and G a token; in
short ones what is told stands close together. Everything is int64 unless said, and -1 means absent:
  ids         [L]         tokens
  weight      [L]         float32, of the loss of predicting ids[p + 1] at p
  asked       [R, 3]      questions inside the stream: position of <|recall|>, first and last evidence chunk
  asked_kind  [R]         index into KINDS
  copies      [A, 2]      (p, e): ids[p + 1] is to be copied from ids[e]; e's chunk comes before p's
  alone       [Q, QL]     newline, question, <|recall|>, then zeros: real questions first, then pseudo-questions
  alone_meta  [Q, 4]      index of <|recall|>, first and last evidence chunk, available (chunks >= it are not there yet)
  rows        [G, T]      the last 192 tokens, newline, question, <|recall|>, answer, newline, then zeros
  row_weight  [G, T]      float32, > 0 from <|recall|> to the token before the closing newline
  row_recall  [G, 3]      position of <|recall|> in the row, first and last evidence chunk
  row_copies  [G, RA, 2]  (p in the row, e in ids), any chunk
  row_kind    [G]         index into KINDS
  *_alike                 of each question and each copy: bit c is set when chunk c says the same with another value, so
                          that only age tells it apart from the evidence
Evidence in several places is that of the answer's first part; copies of each part point to its own.
"""
import argparse
import multiprocessing
import queue
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from itertools import accumulate
from pathlib import Path
from typing import Iterator

import numpy as np
import torch

from prepared import Prepared
from tasks import TaskMaker
from units import KINDS, QUESTION_ANSWER_MAX, QUESTION_MAX, Ask, Task

S, L = 64, 4096
C = L // S
R, A, Q, QL = 48, 320, 32, 64
G, T, TAIL, RA = 4, 256, 192, 64

TEXT_WEIGHT, COPY_WEIGHT, ANSWER_WEIGHT = 0.3, 1.0, 2.0
SPEAKERS = "User User User Assistant Assistant Ana Ben Clara David Elena Felix Grace Hugo Mary John".split()
LEADS = ("What", "Who", "When did", "Where", "How", "Why did", "Which", "What is", "What was", "Do you remember",
         "Tell me about", "What did they say about", "Who was", "How many", "What kind of", "Where did", "", "", "")
STYLES = ("dense", "dense", "dense", "medium", "medium", "medium", "sparse")
SHORT = 1024         # tokens; in sequences up to this long everything is dense
LENGTH_MIN = 512     # a row's tail, and some chunks before it
FILLERS = {"dense": (0, 0, 0, 10, 30), "medium": (0, 0, 10, 40, 120, 250), "sparse": (60, 120, 250, 400, 600)}
PSEUDO_WIDTHS = np.array((10, 16, 24, 32, 48))  # tokens of the span that a pseudo-question is about
SENTENCES_MAX = 45   # tokens of prose on each side of a fact that stands in it
WORKER_PATIENCE_S = 5
ROW_NUMBERED = ("numbered", "multi_key")
FOCI = ("numbered", "personal", "personal", "multi_key", "variables", "variables", "updated")
FOCUS = 0.8          # of the tasks of a focused sequence


def task_shares() -> dict[str, float]:
    return {"numbered": 0.19, "personal": 0.13, "multi_key": 0.16, "multi_value": 0.12, "variables": 0.16,
            "updated": 0.16, "story": 0.03, "babi": 0.02, "passage": 0.03}


@dataclass(frozen=True)
class MakerOptions:
    length: int = L                     # of a sequence, a multiple of S
    plain: float = 0.15                 # share of sequences that are text alone
    passages: float = 0.40              # share with questions over passages; the rest is facts and tasks
    passage_tasks: float = 0.65         # in those: share of passages among the tasks
    tasks: dict[str, float] = field(default_factory=task_shares)
    focused: float = 0.4                # share of sequences with facts most of which are of one kind, easily confused
    self_copy: float = 0.04             # chance of a half-remembered passage at each step of a sequence
    rows_numbered: float = 0.35         # share of rows that ask for numbered facts
    rows_asked_before: float = 0.3      # share of rows whose question may have been asked in the stream
    rows_self_copy: float = 0.06
    real_alone_max: int = 26            # of Q

    def __post_init__(self) -> None:
        if not LENGTH_MIN <= self.length <= L or self.length % S:
            raise ValueError(f"data: a sequence must have a multiple of {S} tokens, {LENGTH_MIN} to {L}")

    def scaled(self, count: int) -> int:
        """What a sequence of L tokens has `count` of, a sequence of this length has so many of."""
        return max(1, count * self.length // L)


@dataclass
class Sequence:
    ids: np.ndarray
    weight: np.ndarray
    asked: np.ndarray
    asked_alike: np.ndarray
    asked_kind: np.ndarray
    copies: np.ndarray
    copies_alike: np.ndarray
    alone: np.ndarray
    alone_meta: np.ndarray
    alone_alike: np.ndarray
    rows: np.ndarray
    row_weight: np.ndarray
    row_recall: np.ndarray
    row_alike: np.ndarray
    row_copies: np.ndarray
    row_copies_alike: np.ndarray
    row_kind: np.ndarray


@dataclass
class Batch:
    """Sequences stacked: each field of Sequence with the batch in front."""
    ids: torch.Tensor
    weight: torch.Tensor
    asked: torch.Tensor
    asked_alike: torch.Tensor
    asked_kind: torch.Tensor
    copies: torch.Tensor
    copies_alike: torch.Tensor
    alone: torch.Tensor
    alone_meta: torch.Tensor
    alone_alike: torch.Tensor
    rows: torch.Tensor
    row_weight: torch.Tensor
    row_recall: torch.Tensor
    row_alike: torch.Tensor
    row_copies: torch.Tensor
    row_copies_alike: torch.Tensor
    row_kind: torch.Tensor

    def _map(self, change) -> "Batch":
        return Batch(*(change(getattr(self, f.name)) for f in fields(self)))

    def pin_memory(self) -> "Batch":
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass
class Told:
    """A task in a sequence: where its statements begin, and which of its asks the stream still owes."""
    task: Task
    places: list[int] = field(default_factory=list)
    waiting: list[Ask] = field(default_factory=list)
    asked: list[tuple[Ask, int]] = field(default_factory=list)  # with the position of <|recall|>

    def complete(self) -> bool:
        return len(self.places) == len(self.task.statements)

    def chunks(self, ask: Ask) -> tuple[int, int]:
        statement, first, last = ask.evidence
        return (self.places[statement] + first) // S, (self.places[statement] + last) // S

    def last_token(self, ask: Ask) -> int:
        ends = [self.places[ask.evidence[0]] + ask.evidence[2]]
        ends += [self.places[statement] + place + count - 1 for _, count, statement, place in ask.parts]
        return max(ends)

    def alike(self, ask: Ask, part: int = 0) -> int:
        """The chunks of the rivals of a part, a bit each."""
        bits = 0
        for statement in ask.rivals[part] if ask.rivals else ():
            begin = self.places[statement]
            for chunk in range(begin // S, (begin + len(self.task.statements[statement].tokens) - 1) // S + 1):
                bits |= 1 << chunk
        return bits - (1 << 64) if bits >> 63 else bits

    def copies(self, ask: Ask, recall: int) -> list[tuple[int, int, int]]:
        """(p, e, alike)"""
        return [(recall + at + i, self.places[statement] + place + i, self.alike(ask, part))
                for part, (at, count, statement, place) in enumerate(ask.parts) for i in range(count)]


class Page:
    """A sequence while it is written."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ids = np.zeros(size, np.int64)
        self.weight = np.full(size, TEXT_WEIGHT, np.float32)
        self.marked = np.zeros(size, bool)  # facts and questions: no half-remembered passages from here
        self.length = 0
        self.asked: list[tuple[int, int, int, int, int]] = []  # with kind and alike
        self.copies: list[tuple[int, int, int]] = []
        self.open: list[Told] = []          # not all told yet
        self.told: list[Told] = []

    def left(self) -> int:
        return self.size - self.length

    def put(self, tokens, marked: bool = False) -> int:
        """Appends tokens, which must fit, and returns where they begin."""
        begin, end = self.length, self.length + len(tokens)
        self.ids[begin:end] = tokens
        if marked:
            self.marked[begin:end] = True
        self.length = end
        return begin


class Maker:
    """Makes sequences and batches. The same prepared data, seed and options give the same ones."""

    def __init__(self, prepared: Path | str | Prepared, seed: int | str, options: MakerOptions | None = None) -> None:
        self.data = prepared if isinstance(prepared, Prepared) else Prepared(prepared)
        self.options = options or MakerOptions()
        self.asked_max, self.copies_max, self.alone_count, self.row_count = map(self.options.scaled, (R, A, Q, G))
        self.real_alone_max = self.options.scaled(self.options.real_alone_max)
        self.length, self.chunks = self.options.length, self.options.length // S
        self.short = self.length <= SHORT
        self.tasks = TaskMaker(self.data, random.Random(0))
        coder = self.tasks.coder
        self._speakers = [coder(name + ":") for name in SPEAKERS]
        self._leads = [coder(lead) if lead else [] for lead in LEADS]
        self._question_mark = coder("x?")[-1]
        self._task_names, self._task_weights = list(self.options.tasks), list(accumulate(self.options.tasks.values()))
        self._keys: set[str | int] = set()
        self._focus: str | None = None  # the kind that most tasks of the sequence are of
        self.reseed(seed)

    def reseed(self, seed: int | str) -> None:
        self.rng = random.Random(seed)
        self.numpy_rng = np.random.default_rng(self.rng.getrandbits(64))
        self.tasks.reseed(self.rng)

    def batch(self, count: int) -> Batch:
        self._keys = set()
        made = [self._sequence() for _ in range(count)]
        return Batch(*(torch.from_numpy(np.stack([getattr(one, f.name) for one in made])) for f in fields(Sequence)))

    def sequence(self) -> Sequence:
        self._keys = set()
        return self._sequence()

    def _sequence(self) -> Sequence:
        page, roll = Page(self.length), self.rng.random()
        if roll < self.options.plain:
            page.put(self._text(self.length))
            page.weight[:] = COPY_WEIGHT
        else:
            self._write(page, roll < self.options.plain + self.options.passages)
        return self._finish(page)

    # Text that asks nothing.

    def _choice(self, options):
        return options[int(self.rng.random() * len(options))]

    def _cut(self, name: str, starts: np.ndarray, count: int) -> np.ndarray:
        text = self.data[name]
        begin = min(int(self._choice(starts)), max(0, len(text) - count))
        return text[begin:begin + count]

    def _text(self, count: int) -> np.ndarray:
        if self.rng.random() < 0.4:
            return self._cut("prose", self.data.sentence_starts, count)
        return self._cut("dial", self.data.turn_starts, count)

    def _sentences(self) -> np.ndarray:
        """One or two whole sentences of prose, or the last tokens of longer ones."""
        starts, count = self.data.sentence_starts, self._choice((1, 1, 2))
        i = self.rng.randrange(len(starts) - count)
        end = int(starts[i + count])
        return self.data["prose"][max(int(starts[i]), end - SENTENCES_MAX):end]

    def _fill(self, page: Page, count: int) -> None:
        """Text and a newline, at most `count` tokens."""
        count = min(count, page.left())
        if count > 0:
            page.put(self._text(count - 1))
            page.put([self.data.newline])

    # The stream of facts, passages and questions.

    def _write(self, page: Page, passages: bool) -> None:
        rng, options = self.rng, self.options
        style = rng.choice(STYLES) if not self.short else "dense"
        told_until = rng.choice((0.15, 0.3, 0.6)) * self.length if rng.random() < 0.15 else self.length
        ask_share = rng.choice((0.3, 0.4, 0.5))
        self._focus = rng.choice(FOCI) if not passages and rng.random() < options.focused else None
        pool = self.data.by_title[int(self.data["tr_title"][self._choice(self.data.contexts)])] if passages else None
        while page.left() > 40:
            if page.length > min(400, self.length // 2) and rng.random() < options.self_copy and self._self_copy(page):
                continue
            if len(page.asked) < self.asked_max and rng.random() < ask_share and self._ask(page):
                continue
            if page.length > told_until:
                self._fill(page, self._choice(FILLERS["dense" if self.short else "sparse"]))
            elif page.open and rng.random() < 0.5:
                self._tell_next(page, style)
            else:
                self._start(page, style, pool)
        self._fill(page, page.left())

    def _start(self, page: Page, style: str, pool: np.ndarray | None) -> None:
        """Begins a new task, or writes text when none fits."""
        for _ in range(3 if page.left() > 150 else 1):
            task = self._new_task(pool)
            room = 2 * task.tokens if task.spacing == "spread" and len(task.statements) > 1 else task.tokens
            if task.asks and room < page.left() - 40 and self._keys.isdisjoint(task.keys):
                break
        else:
            self._fill(page, min(60, page.left()))
            return
        self._keys.update(task.keys)
        told = Told(task)
        if task.spacing == "spread":
            page.open.append(told)
            self._tell_next(page, style, told)
        else:
            newline = [self.data.newline]
            if len(task.statements) == 1 and self.rng.random() < 0.3:
                page.put(self._choice(self._speakers))
            for statement in task.statements:
                told.places.append(page.put(statement.tokens, task.asks[0].kind != "passage"))
                if task.spacing == "line" or statement.own_turn:
                    page.put(newline)
            page.put(newline)
            self._told(page, told)

    def _new_task(self, pool: np.ndarray | None) -> Task:
        rng = self.rng
        if pool is not None and rng.random() < self.options.passage_tasks:
            return self._fitting(self.tasks.passage(int(self._choice(pool)) if rng.random() < 0.6 else None))
        focus = self._focus if self._focus in self.options.tasks and rng.random() < FOCUS else None
        name = focus or rng.choices(self._task_names, cum_weights=self._task_weights)[0]
        return self._fitting(self.tasks.make(name))

    def _fitting(self, task: Task) -> Task:
        """The task with only such questions as fit into a row and among the questions alone."""
        for ask in task.asks:
            longest = min(QUESTION_MAX, QUESTION_ANSWER_MAX - len(ask.answer))
            ask.questions = [question for question in ask.questions if len(question) <= longest]
        task.asks = [ask for ask in task.asks if ask.questions and len(ask.answer) <= RA]
        return task

    def _told(self, page: Page, told: Told) -> None:
        """All statements are there: the stream will ask for most."""
        page.told.append(told)
        told.waiting = [ask for ask in told.task.asks if self.rng.random() < 0.8]

    def _tell_next(self, page: Page, style: str, told: Told | None = None) -> None:
        """One more statement of an open task: alone on a line, as a turn, or in the middle of prose."""
        told = told or self._choice(page.open)
        statement = told.task.statements[len(told.places)]
        tokens, newline, roll = statement.tokens, [self.data.newline], self.rng.random()
        if len(tokens) + 140 > page.left():
            page.open.remove(told)
            self._fill(page, 30)
            return
        if statement.own_turn or roll < 0.3:
            told.places.append(page.put(tokens, True))
        elif roll < 0.75:
            page.put(self._choice(self._speakers), True)
            told.places.append(page.put(tokens, True))
        else:
            before, after = self._sentences(), self._sentences()
            page.put(before)
            told.places.append(page.put(tokens, True))
            page.put(after)
        page.put(newline)
        self._fill(page, self._choice(FILLERS[style]))
        if told.complete():
            page.open.remove(told)
            self._told(page, told)

    def _ask(self, page: Page) -> bool:
        """Asks for something told in an earlier chunk; false when nothing is ready."""
        ready = [told for told in page.told if told.waiting]
        if not ready:
            return False
        told = self._choice(ready)
        ask = self._choice(told.waiting)
        question = self._choice(ask.questions)
        recall = page.length + 1 + len(question)
        if recall + len(ask.answer) + 2 > self.length or told.last_token(ask) // S >= recall // S:
            return False
        newline = self.data.newline
        page.put([newline, *question, self.data.recall, *ask.answer, newline], True)
        page.weight[recall:recall + len(ask.answer) + 1] = ANSWER_WEIGHT
        page.asked.append((recall, *told.chunks(ask), KINDS.index(ask.kind), told.alike(ask)))
        page.copies += told.copies(ask, recall)
        told.waiting.remove(ask)
        told.asked.append((ask, recall))
        return True

    # A passage half remembered, and how it went on.

    def _remembered(self, page: Page, limit: int) -> tuple[np.ndarray, int, int] | None:
        """The beginning of a passage before `limit` with words dropped, where it ends, and how many tokens follow."""
        begin = self.rng.randrange(limit)
        count, more = self._choice((6, 8, 12, 16, 24)), self._choice((4, 4, 8, 16, 32))
        end = begin + count
        if end + more > limit or page.marked[begin:end + more].any():
            return None
        span = page.ids[begin:end]
        words = np.cumsum(self.data.word_starts[span])
        keep = self.numpy_rng.random(count + 1)[words] < 0.85
        cue = span[keep & (span > self.data.newline)]
        return (cue, end, more) if len(cue) >= 4 else None

    def _self_copy(self, page: Page) -> bool:
        if len(page.asked) == self.asked_max or (found := self._remembered(page, page.length - S)) is None:
            return False
        cue, end, more = found
        recall = page.length + 1 + len(cue)
        if recall + more + 2 > self.length or (end + more - 1) // S >= recall // S:
            return False
        newline = self.data.newline
        answer = page.ids[end:end + more].tolist()
        page.put([newline, *cue.tolist(), self.data.recall, *answer, newline], True)
        page.weight[recall:recall + more] = COPY_WEIGHT
        page.asked.append((recall, (end - len(cue)) // S, (end - 1) // S, KINDS.index("copy"), 0))
        page.copies += [(recall + i, end + i, 0) for i in range(more)]
        return True

    # What goes with the finished stream.

    def _finish(self, page: Page) -> Sequence:
        asked = np.full((self.asked_max, 5), -1, np.int64)
        asked[:len(page.asked)] = np.array(page.asked, np.int64).reshape(-1, 5)
        copies = np.full((self.copies_max, 3), -1, np.int64)
        kept = page.copies[:self.copies_max]
        copies[:len(kept)] = np.array(kept, np.int64).reshape(-1, 3)
        return Sequence(page.ids, page.weight, asked[:, :3].copy(), asked[:, 4].copy(), asked[:, 3].copy(),
                        copies[:, :2].copy(), copies[:, 2].copy(), *self._alone(page), *self._rows(page))

    def _alone(self, page: Page) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids, meta = np.zeros((self.alone_count, QL), np.int64), np.full((self.alone_count, 4), -1, np.int64)
        alike = np.zeros(self.alone_count, np.int64)
        real = []
        for told in page.told:
            known = {id(ask): recall // S for ask, recall in told.asked}
            real += [(self._choice(ask.questions), *told.chunks(ask), known.get(id(ask), self.chunks), told.alike(ask))
                     for ask in told.task.asks]
        self.rng.shuffle(real)
        chosen = real[:self.real_alone_max]
        chosen += self._pseudo_questions(page, self.alone_count - len(chosen))
        for i, (question, first, last, available, alike[i]) in enumerate(chosen):
            ids[i, :len(question) + 2] = [self.data.newline, *question, self.data.recall]
            meta[i] = (len(question) + 1, first, last, available)
        return ids, meta, alike

    def _pseudo_questions(self, page: Page, wanted: int) -> list[tuple[list[int], int, int, int, int]]:
        """Noisy questions about random spans: rare words are kept more often, sometimes out of order."""
        rng, noise = self.rng, self.numpy_rng
        tries, width = 2 * wanted + 4, 48
        widths = PSEUDO_WIDTHS[noise.integers(0, len(PSEUDO_WIDTHS), tries)]
        begins = noise.integers(0, self.length - width, tries)
        columns = np.arange(width)
        spans = begins[:, None] + columns
        inside = columns < widths[:, None]
        usable = ~(page.marked[spans] & inside).any(1)
        tokens = page.ids[spans]
        # A span begins and ends inside a word perhaps: only words whose beginning lies in it, and not the last.
        starts = self.data.word_starts[tokens] & inside
        words = np.cumsum(starts, 1)
        whole = inside & (words > 0) & (words < words[:, -1:]) & (tokens > self.data.newline)
        keeps = noise.random((tries, width)) < self.data.rarity[tokens] * noise.uniform(0.5, 1.2, (tries, 1))
        first_of_word = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
        kept = whole & np.take_along_axis(keeps, first_of_word, 1)
        found = []
        for i in np.flatnonzero(usable):
            places = np.flatnonzero(kept[i])[:QL - 12]
            if len(found) == wanted:
                break
            if len(places) < 3 or words[i, places[0]] == words[i, places[-1]]:
                continue
            first, last = int(begins[i] + places[0]) // S, int(begins[i] + places[-1]) // S
            roll = rng.random()
            if roll < 0.25:
                places = places[np.argsort(noise.random(width + 1)[words[i, places]], kind="stable")]
            elif roll < 0.4:
                turn = np.searchsorted(words[i, places], words[i, self._choice(places)])
                places = np.roll(places, -turn)
            question = [*self._choice(self._leads), *tokens[i, places].tolist()]
            if rng.random() < 0.7:
                question.append(self._question_mark)
            found.append((question, first, last, self.chunks, 0))
        return found

    def _rows(self, page: Page) -> tuple[np.ndarray, ...]:
        count = self.row_count
        rows, weight = np.zeros((count, T), np.int64), np.zeros((count, T), np.float32)
        recalls, copies = np.full((count, 3), -1, np.int64), np.full((count, RA, 3), -1, np.int64)
        alike, kinds = np.zeros(count, np.int64), np.full(count, -1, np.int64)
        for i, (question, answer, pairs, first, last, kind, alike[i]) in enumerate(self._row_asks(page)):
            recall = TAIL + 1 + len(question)
            tokens = [self.data.newline, *question, self.data.recall, *answer, self.data.newline]
            rows[i, :TAIL] = page.ids[self.length - TAIL:]
            rows[i, TAIL:TAIL + len(tokens)] = tokens
            weight[i, recall:recall + len(answer) + 1] = 1
            recalls[i] = (recall, first, last)
            pairs = [(recall + p, e, bits) for p, e, bits in pairs[:RA]]
            copies[i, :len(pairs)] = np.array(pairs, np.int64).reshape(-1, 3)
            kinds[i] = KINDS.index(kind)
        return rows, weight, recalls, alike, copies[..., :2].copy(), copies[..., 2].copy(), kinds

    def _row_asks(self, page: Page) -> list[tuple]:
        """A few (question, answer, (place in the answer, e, alike) of its copies, first and last chunk, kind, alike)."""
        rng, options = self.rng, self.options
        pools: dict[str, tuple[list, list]] = {}    # of each kind: not asked yet, asked before
        for told in page.told:
            before = {id(ask) for ask, _ in told.asked}
            for ask in told.task.asks:
                pools.setdefault(ask.kind, ([], []))[id(ask) in before].append((told, ask))
        found = []
        while len(found) < self.row_count:
            if pools and rng.random() >= options.rows_self_copy:
                numbered = rng.random() < options.rows_numbered
                kind = self._choice([k for k in pools if (k in ROW_NUMBERED) == numbered] or list(pools))
                fresh, before = pools[kind]
                pool = before if before and (not fresh or rng.random() < options.rows_asked_before) else fresh
                told, ask = pool.pop(rng.randrange(len(pool)))
                if not fresh and not before:
                    del pools[kind]
                question = self._choice(ask.questions)
                found.append((question, ask.answer, told.copies(ask, 0), *told.chunks(ask), ask.kind, told.alike(ask)))
                continue
            for _ in range(20):
                if (copy := self._row_self_copy(page)) is not None:
                    found.append(copy)
                    break
            else:
                break
        return found

    def _row_self_copy(self, page: Page) -> tuple | None:
        """A half-remembered passage whose rest ends with its sentence."""
        remembered = self._remembered(page, self.length - 40)
        if remembered is None:
            return None
        cue, end, _ = remembered
        ends = np.flatnonzero(np.isin(page.ids[end + 3:end + 28], self.data.sentence_ends))
        if len(ends) == 0 or page.marked[end:end + 32].any():
            return None
        count = int(ends[0]) + 4
        answer = page.ids[end:end + count].tolist()
        if len(cue) + count > QUESTION_ANSWER_MAX or self.data.newline in answer:
            return None
        copies = [(i, end + i, 0) for i in range(count)]
        return cue.tolist(), answer, copies, (end - len(cue)) // S, (end - 1) // S, "copy", 0


def _work(prepared: Prepared, seed: int, batch: int, options: MakerOptions, first: int, step: int, out) -> None:
    # Ended by whoever reads, whatever signals mean there.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    maker = Maker(prepared, seed, options)
    index = first
    while True:
        maker.reseed(f"{seed}/{index}")
        made = maker.batch(batch)
        out.put([getattr(made, f.name).numpy() for f in fields(Batch)])
        index += step


def batches(prepared: Path | str | Prepared, seed: int, batch: int, workers: int, options: MakerOptions | None = None,
            first: int = 0, ahead: int = 4) -> Iterator[Batch]:
    """Batches `first`, `first + 1`, ... for ever; each depends on the seed and its own number alone.

    Worker processes are forked, so start this before CUDA is in use, and end when the iterator is closed.
    """
    data = prepared if isinstance(prepared, Prepared) else Prepared(prepared)
    data.warm()
    context = multiprocessing.get_context("fork")
    queues = [context.Queue(ahead) for _ in range(workers)]
    processes = [context.Process(target=_work, daemon=True,
                                 args=(data, seed, batch, options or MakerOptions(), first + i, workers, queues[i]))
                 for i in range(workers)]
    for process in processes:
        process.start()
    return _collect(processes, queues)


def _collect(processes, queues) -> Iterator[Batch]:
    try:
        while True:
            for process, waiting in zip(processes, queues):
                while True:
                    try:
                        arrays = waiting.get(timeout=WORKER_PATIENCE_S)
                        break
                    except queue.Empty:
                        if not process.is_alive():
                            raise RuntimeError(f"a data worker died with exit code {process.exitcode}") from None
                yield Batch(*(torch.from_numpy(array) for array in arrays))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--show", type=int, default=4, help="sequences to print questions of")
    parser.add_argument("--length", type=int, default=L, help="tokens of a sequence")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    data = Prepared(args.prepared)
    data.warm()
    maker = Maker(data, args.seed, MakerOptions(length=args.length))
    maker.batch(8)
    began = time.process_time()
    made = [maker.batch(8) for _ in range(max(1, args.sequences // 8))]
    count = 8 * len(made)
    print(f"{(time.process_time() - began) * 1e3 / count:.2f} ms of CPU time a sequence")

    def by_kind(name: str) -> str:
        counts = Counter(kind for batch in made for kind in getattr(batch, name).flatten().tolist() if kind >= 0)
        return ", ".join(f"{KINDS[kind]} {n / count:.2f}" for kind, n in counts.most_common())

    print("a sequence asks:", by_kind("asked_kind"))
    print("its rows ask:", by_kind("row_kind"))
    for name in ("asked", "copies", "alone_meta", "row_copies"):
        values = torch.cat([getattr(batch, name) for batch in made])
        print(f"{name}: {(values[..., 0] >= 0).sum() / count:.1f} a sequence")
    real = torch.cat([batch.weight for batch in made])
    print(f"weight: {(real == ANSWER_WEIGHT).sum() / count:.0f} answer tokens a sequence")
    for i in range(min(args.show, count)):
        _show(data, made[i // 8], i % 8)


def _show(data: Prepared, batch: Batch, i: int) -> None:
    decode = lambda ids: data.model.decode([int(t) for t in ids])
    ids = batch.ids[i]
    print("---", repr(decode(ids[:160])), "...", repr(decode(ids[-60:])))
    for j in range(batch.rows.shape[1]):
        recall, first, last = batch.row_recall[i, j].tolist()
        if recall >= 0:
            row, answer_end = batch.rows[i, j], int(batch.row_weight[i, j].nonzero().max())
            print(f"row {KINDS[batch.row_kind[i, j]]}: {decode(row[TAIL + 1:recall])!r} -> "
                  f"{decode(row[recall + 1:answer_end + 1])!r} in {decode(ids[first * S:(last + 1) * S])!r}")
    for j in (0, batch.alone.shape[1] - 1):
        at, first, last, available = batch.alone_meta[i, j].tolist()
        if at >= 0:
            evidence = decode(ids[first * S:(last + 1) * S])
            print(f"alone ({available}): {decode(batch.alone[i, j, 1:at])!r} in {evidence!r}")


if __name__ == "__main__":
    main()
