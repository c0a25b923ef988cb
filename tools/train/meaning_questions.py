#!/usr/bin/env python3
"""Brings questions near the chunks that answer them: goes on from the meaning.safetensors that meaning.py made.

Usage: meaning_questions.py DATA_DIR TOKENIZER DIR [--steps 1000] [--batch 96] [--seed 1]

Reads DIR/meaning.safetensors and replaces it. What is trained are the vectors and the weights of pieces, by the two
comparisons that the daemon makes (model/meaning.h): for each piece of the question the best cosine in the chunk, or
BESIDE of it in a chunk beside; and the cosine of the weighted sums. Each must find the right one of a batch's chunks
(cross-entropy), and no piece may go far from where it was. Two fifths of a batch are questions about passages with the
chunk that holds the answer, by eights about one title, so that chunks about the same matter are told apart. The others
have no annotation: a turn of a dialogue that asks, and the chunk behind it; another turn, and the chunk before it; a
stretch of a novel, and the chunk before it.

Reads what meaning.py reads, and the questions of those passages: no question of a set that search is evaluated on. The
questions of every eighth title of SQuADShifts are kept for the figures that it prints: the evidence first, and in the
first ten, by each comparison. The same input, seed and machine give the same file. Takes some minutes on a CPU.
"""
import argparse
import math
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import meaning
from export import SCALE

CHUNK = 64
BESIDE = 0.75              # as beside_share in model/meaning.cc
QUESTION_MAX = 32          # pieces
LEAST_TEXT = 32            # pieces of dialogues, and of novels
OF_PASSAGES = 0.4          # of a batch
OF_ONE_TITLE = 8
TITLE_ASKS_MAX = 40        # a title with more is not drawn more often
KEPT_SOURCE, KEPT_EVERY = "squadshifts_new_wiki", 8
OF_DIALOGUES = 0.8         # of what is not about passages
THAT_ASK = 0.6             # of these
LEFT_OUT = 0.15            # of the pieces of what is no question
RATE, RATE_OF_WEIGHTS, RATE_OF_SCALES = 1e-3, 5e-3, 1e-2
SCALES = (25.0, 10.0)      # of the two comparisons, at first
TOPIC_SHARE = 0.5          # of the loss, where the pieces' has 1
PULL, PULL_OF_WEIGHTS = 3.0, 0.03  # back to where it began: what is rare in questions is known from text alone


# ---- What is read

class Pairs:
    """Questions, and the chunk of each: between the two beside it, 3 * CHUNK pieces, 0 where there is no text."""

    def __init__(self, data: Path, tokenizer, seed: int):
        self.rng = random.Random(seed)
        self.titles: dict[tuple, list] = defaultdict(list)  # (context, [(question, place of the answer)])
        self.kept = []
        kept = sorted({r["title"] for r in meaning.passages(data) if r["source"] == KEPT_SOURCE})[::KEPT_EVERY]
        for record in meaning.passages(data):
            context = tokenizer.encode(record["context"])
            asked = [(tokenizer.encode(qa["q"])[:QUESTION_MAX],
                      min(len(tokenizer.encode(record["context"][:qa["start"]])), len(context) - 1))
                     for qa in record["qas"] if qa["a"] and qa["start"] is not None and qa["start"] >= 0]
            if not asked:
                continue
            if record["source"] == KEPT_SOURCE and record["title"] in kept:
                self.kept.append((context, asked))
            else:
                self.titles[record["source"], record["title"]].append((context, asked))
        self.names = list(self.titles)
        self.shares = [min(TITLE_ASKS_MAX, sum(len(asked) for _, asked in self.titles[name])) ** 0.75
                       for name in self.names]
        newline = tokenizer.piece_to_id("\n")
        self.said = meaning.pieces(meaning.dialogues(data), tokenizer).astype(np.int64)
        self.turns = np.concatenate([[0], np.flatnonzero(self.said == newline) + 1])  # where each begins, and the end
        asks = [piece for piece in range(tokenizer.get_piece_size()) if tokenizer.id_to_piece(piece).endswith("?")]
        self.asking = np.flatnonzero(np.isin(self.said[self.turns[1:] - 2], asks))
        self.prose = meaning.pieces(meaning.novels(data), tokenizer).astype(np.int64)
        if len(self.prose) < LEAST_TEXT or len(self.said) < LEAST_TEXT:
            raise SystemExit(f"meaning_questions: too little text in {data}: {len(self.said)} pieces of dialogues and "
                             f"{len(self.prose)} of novels, at least {LEAST_TEXT} of each are wanted")

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[size, longest question], [size, 3 * CHUNK]; the pieces of a question, 0 behind them."""
        found = []
        while self.names and len(found) < size * OF_PASSAGES:
            found += self._about_a_title()
        while len(found) < size:
            pair = self._said() if self.rng.random() < OF_DIALOGUES else self._told()
            found += [pair] if pair else []
        questions = [list(question) for question, _ in found[:size]]
        rows = np.zeros((size, max(map(len, questions))), np.int64)
        for row, question in zip(rows, questions):
            row[:len(question)] = question
        return torch.from_numpy(rows), torch.from_numpy(np.stack([chunks for _, chunks in found[:size]]))

    @staticmethod
    def _window(text: np.ndarray, first: int) -> np.ndarray:
        """Three chunks of it from `first` on, which may lie before its beginning."""
        out = np.zeros(3 * CHUNK, np.int64)
        begin, end = max(0, first), min(len(text), first + 3 * CHUNK)
        out[begin - first:end - first] = text[begin:end]
        return out

    def _about_a_title(self) -> list:
        contexts, found = self.titles[self.rng.choices(self.names, self.shares)[0]], []
        for _ in range(OF_ONE_TITLE):
            context, asked = self.rng.choice(contexts)
            question, place = self.rng.choice(asked)
            found.append((question, self._window(np.array(context), place - self.rng.randrange(CHUNK) - CHUNK)))
        return found

    def _some(self, pieces: np.ndarray) -> list[int]:
        kept = [piece for piece in pieces.tolist() if self.rng.random() > LEFT_OUT]
        return (kept or pieces.tolist())[:QUESTION_MAX]

    def _said(self):
        """A turn that asks, and what follows; or another one between what is before it and what follows."""
        if len(self.asking) and self.rng.random() < THAT_ASK:
            turn = int(self.rng.choice(self.asking))
            begin, end = self.turns[turn], self.turns[turn + 1]
            if not 4 <= end - begin <= 40:
                return None
            return self.said[begin:end - 1].tolist()[:QUESTION_MAX], \
                np.concatenate([np.zeros(CHUNK, np.int64), self._window(self.said, end)[:2 * CHUNK]])
        turn = self.rng.randrange(len(self.turns) - 1)
        begin, end = self.turns[turn], self.turns[turn + 1]
        if not 8 <= end - begin <= 60:
            return None
        before = self._window(self.said[:begin], begin - 2 * CHUNK)
        before[2 * CHUNK:] = self._window(self.said, end)[:CHUNK]
        before[:CHUNK] = 0
        return self._some(self.said[begin:end - 1]), before

    def _told(self):
        size = self.rng.randrange(10, 28)
        at = self.rng.randrange(len(self.prose) - size)
        before = self._window(self.prose[:at], at - 2 * CHUNK)
        before[2 * CHUNK:] = self._window(self.prose, at + size)[:CHUNK]
        return self._some(self.prose[at:at + size]), before


# ---- What is compared

class Pieces(torch.nn.Module):
    """A vector and a weight for each piece; those without a weight stay without."""

    def __init__(self, vectors: torch.Tensor, weights: torch.Tensor):
        super().__init__()
        self.count = (weights > 0).float()
        lengths = vectors.norm(dim=-1)[weights > 0]
        self.length = lengths.median() if len(lengths) else torch.ones(())
        self.vectors = torch.nn.Parameter(vectors / self.length)
        self.logits = torch.nn.Parameter(torch.logit(weights.clamp(1e-3, 1 - 1e-3)))
        self.scales = torch.nn.Parameter(torch.tensor(SCALES).log())
        self.began = self.vectors.detach().clone(), self.logits.detach().clone()

    def distance(self) -> torch.Tensor:
        """From where it began, squared, of the pieces that count."""
        of_vectors, of_logits = ((now - began) ** 2 for now, began in zip((self.vectors, self.logits), self.began))
        each = PULL * of_vectors.sum(-1) + PULL_OF_WEIGHTS * of_logits
        return (each * self.count).sum() / self.count.sum().clamp(min=1)

    def weights(self) -> torch.Tensor:
        return torch.sigmoid(self.logits) * self.count

    def forward(self, questions: torch.Tensor, chunks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, l], [m, 3 * CHUNK] -> pieces' best cosines [n, m], cosines of sums [n, m]"""
        weights = self.weights()
        three = chunks.view(-1, 3, CHUNK)
        asked, of_question = torch.unique(questions, return_inverse=True)
        there, of_chunk = torch.unique(three, return_inverse=True)
        units = F.normalize(self.vectors, dim=-1)
        cosines = (units[asked] @ units[there].T)[:, of_chunk]               # [asked, m, 3, CHUNK]
        best = cosines.masked_fill(weights[three] == 0, -1).amax(-1).clamp(min=0)
        best = torch.maximum(best[..., 1], BESIDE * torch.maximum(best[..., 0], best[..., 2]))
        # As in model/meaning.cc: a piece that is there again counts again in the sum, but not in what is found.
        again = (questions[:, :, None] == questions[:, None, :]).tril(-1).any(-1)
        share = weights[questions].masked_fill(again, 0)
        share = share / share.sum(1, keepdim=True).clamp(min=1e-6)
        found = torch.einsum("nl,nlm->nm", share, best[of_question])
        much = self.vectors * weights[:, None]
        return found, F.normalize(much[questions].sum(1), dim=-1) @ F.normalize(much[three[:, 1]].sum(1), dim=-1).T


@torch.no_grad()
def figures(pieces: Pieces, kept: list) -> str:
    """Of the kept questions, over the chunks of their contexts laid one after another."""
    text, asked = [], []
    for context, questions in kept:
        asked += [(question, (len(text) + place) // CHUNK) for question, place in questions]
        text += context
    count = -(-len(text) // CHUNK)
    padded = np.zeros((count + 2) * CHUNK, np.int64)
    padded[CHUNK:CHUNK + len(text)] = text
    chunks = torch.from_numpy(padded).unfold(0, 3 * CHUNK, CHUNK)
    ranks = [[], []]
    for question, evidence in asked:
        for into, scores in zip(ranks, pieces(torch.tensor([question]), chunks.contiguous())):
            into.append(int((scores[0] > scores[0, evidence]).sum()))
    def share(into, below):
        return np.mean([rank < below for rank in into])

    return "; ".join(f"{name} {share(into, 1):.3f} first, {share(into, 10):.3f} in ten"
                     for name, into in zip(("pieces", "sums"), ranks))


def train(pieces: Pieces, pairs: Pairs, steps: int, batch: int) -> None:
    rates = (RATE, RATE_OF_WEIGHTS, RATE_OF_SCALES)
    optimizer = torch.optim.Adam([{"params": [part], "lr": rate} for part, rate in
                                  zip((pieces.vectors, pieces.logits, pieces.scales), rates)], betas=(0.9, 0.99))
    right = torch.arange(batch)
    for step in range(steps):
        best, sums = pieces(*pairs.batch(batch))
        scales = pieces.scales.exp()
        loss = F.cross_entropy(best * scales[0], right) + TOPIC_SHARE * F.cross_entropy(sums * scales[1], right) + \
            pieces.distance()
        if not math.isfinite(loss.item()):
            raise SystemExit(f"meaning_questions: the loss is {loss.item()} at step {step}; is there text in DATA_DIR?")
        optimizer.zero_grad()
        loss.backward()
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * min(1.0, 2 * (steps - step) / steps)
        optimizer.step()
        if step % 100 == 99:
            print(f"{step + 1} loss {loss.item():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.batch < 2 or args.steps < 1:
        parser.error("--batch: expected 2 or more, --steps 1 or more")
    if not (args.directory / meaning.FILE).is_file():
        parser.error(f"there is no {args.directory / meaning.FILE}; meaning.py makes it")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(args.tokenizer))
    found = load_file(args.directory / meaning.FILE)
    if len(found["weights"]) != tokenizer.get_piece_size():
        raise SystemExit(f"meaning_questions: {args.directory / meaning.FILE} is of another tokenizer; see meaning.py")
    pieces = Pieces(found["vectors"].float() * found[f"vectors{SCALE}"][:, None], found["weights"])
    pairs = Pairs(args.data, tokenizer, args.seed)
    if pairs.kept:
        print(f"before: {figures(pieces, pairs.kept)}", flush=True)
    train(pieces, pairs, args.steps, args.batch)
    with torch.no_grad():
        meaning.save(pieces.vectors * pieces.length, pieces.weights(), args.directory)
    if pairs.kept:
        print(f"after: {figures(pieces, pairs.kept)}")


if __name__ == "__main__":
    main()
