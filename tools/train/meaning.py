#!/usr/bin/env python3
"""Learns which pieces stand in the same surroundings: the file meaning.safetensors of a checkpoint (docs/search-quality.md).

Usage: meaning.py DATA_DIR TOKENIZER OUT [--dimensions 96] [--seed 1] [--least 30]

Reads the novels, dialogues and passages that models are trained on, no questions, and counts which pieces stand within ten
of each other. A row of the positive pointwise mutual information of these counts tells what a piece occurs with; the vectors
are its largest singular directions, times the roots of their values. A piece's weight is RARE / (RARE + its share of the
text), 0 for control pieces, the newline and pieces that occur fewer than --least times.

Left out: what prepare.py holds out, all meetings but those of QMSum's passages for training, Molweni's chats and PubMedQA's
abstracts: what sets that search is evaluated on are made of. Dialogues are held out by their number alone, and some are
there twice; of such a pair the other one is read. Writes to the directory OUT, with v pieces:

  vectors        [v, dimensions]  I8, times vectors_scale [v] F32
  weights        [v]              F32, 0 to 1

The same input, seed and machine give the same file. Needs 2 GB of memory and some minutes; numpy, sentencepiece, torch.
meaning_questions.py goes on from there.
"""
import argparse
import random
import sys
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file

import prepare
from export import SCALE, quantize
from lexical import SPECIAL_PIECES

FILE = "meaning.safetensors"
NEAR, FAR, FAR_SHARE = 5, 10, 0.6   # pieces apart that count whole, and that count so much
CONTEXT_POWER = 0.75                # of the share of a piece as a context: rare ones would tell too much
RARE = 1e-3                         # share of the text at which a piece weighs a half
ROUNDS, SPARE = 4, 16               # of the subspace iteration, and directions that are thrown away
AT_ONCE = 1 << 23                   # pairs that are counted at once
UNREAD = ("molweni_test", "pubmedqa")


# ---- Text

def passages(data: Path) -> Iterator[dict]:
    """Records of qa.jsonl.zst whose context may be read."""
    train, _ = prepare.split_squad(prepare.json_lines(data / "qa.jsonl.zst"))
    for record in train:
        if record["source"] not in UNREAD and not (record["source"] == "qmsum" and "test" in record["title"]):
            yield record


def dialogues(data: Path) -> Iterator[list[str]]:
    """Each its lines."""
    rng = random.Random(0)  # as prepare.py names speakers
    for i, dialogue in enumerate(prepare.json_lines(data / "dialogues.jsonl.zst")):
        lines = prepare.dialogue_lines(dialogue, rng)
        if i % prepare.DIALOGUES_HELD_EVERY and dialogue["source"] != "qmsum_meetings":
            yield lines


def novels(data: Path) -> Iterator[list[str]]:
    """Each its paragraphs."""
    for text in list(prepare.tar_texts(data / "novels.tar.zst", r"_\d{4}\.txt$").values())[:-prepare.NOVELS_HELD]:
        yield prepare.reflow(text).split("\n")


def texts(data: Path) -> Iterator[list[str]]:
    """Texts to read, each the lines of one."""
    for record in passages(data):
        yield [line for line in record["context"].split("\n") if line.strip()]
    yield from dialogues(data)
    yield from novels(data)


def pieces(read: Iterable[list[str]], tokenizer) -> np.ndarray:
    """All of the text, a newline behind each line."""
    newline, number = tokenizer.piece_to_id("\n"), np.min_scalar_type(tokenizer.get_piece_size())
    return np.concatenate([np.array([piece for ids in tokenizer.encode(lines) for piece in (*ids, newline)], number)
                           for lines in read])


# ---- Vectors

def together(text: np.ndarray, size: int) -> np.ndarray:
    """[size, size] how often two pieces stand near each other; symmetric, nothing for special pieces."""
    counts = np.zeros(size * size, np.float32)
    for apart in range(1, FAR + 1):
        for first in range(0, len(text) - apart, AT_ONCE):
            part = text[first:first + AT_ONCE + apart].astype(np.int64)
            pairs, number = np.unique(part[:-apart] * size + part[apart:], return_counts=True)
            counts[pairs] += number * (1.0 if apart <= NEAR else FAR_SHARE)
    counts = counts.reshape(size, size)
    counts[:SPECIAL_PIECES], counts[:, :SPECIAL_PIECES] = 0, 0
    counts += counts.T.copy()
    return counts


def information(counts: np.ndarray) -> np.ndarray:
    """In place: how much more often than by chance, as the logarithm; what is rarer than by chance counts as nothing."""
    own = counts.sum(1)
    context = own ** CONTEXT_POWER
    context /= max(context.sum(), 1e-30)
    for row, share in zip(counts, own):
        seen = row > 0
        row[seen] = np.maximum(np.log(row[seen] / (share * context[seen])), 0)
    return counts


def directions(matrix: np.ndarray, dimensions: int, seed: int) -> np.ndarray:
    """[n, dimensions] its left singular vectors, times the roots of their values."""
    width = min(dimensions + SPARE, len(matrix))
    basis = np.random.default_rng(seed).normal(size=(len(matrix), width)).astype(np.float32)
    for _ in range(ROUNDS):
        basis, _ = np.linalg.qr(matrix @ basis)
        basis, _ = np.linalg.qr(matrix.T @ basis)
    basis, _ = np.linalg.qr(matrix @ basis)
    left, values, _ = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left * np.sqrt(values))[:, :dimensions]


def weights(text: np.ndarray, size: int, least: int) -> np.ndarray:
    counts = np.bincount(text, minlength=size)
    found = RARE / (RARE + counts / len(text))
    found[counts < least] = 0
    found[:SPECIAL_PIECES] = 0
    return found.astype(np.float32)


def save(vectors: torch.Tensor, weights: torch.Tensor, out: Path) -> None:
    whole, scale = quantize(vectors)
    save_file({"vectors": whole, f"vectors{SCALE}": scale, "weights": weights.contiguous()}, out / f"{FILE}.new")
    (out / f"{FILE}.new").replace(out / FILE)  # whatever ends it, there is a whole file


def train(data: Path, tokenizer, out: Path, dimensions: int, seed: int, least: int) -> None:
    size = tokenizer.get_piece_size()
    if not 1 <= dimensions <= size:
        sys.exit(f"--dimensions: expected 1 to {size}, the pieces of the tokenizer, got {dimensions}")
    text = pieces(texts(data), tokenizer)
    vectors = directions(information(together(text, size)), dimensions, seed)
    if not np.isfinite(vectors).all():
        sys.exit("meaning: the vectors are not finite; is there text in DATA_DIR?")
    out.mkdir(parents=True, exist_ok=True)
    save(torch.from_numpy(np.ascontiguousarray(vectors)), torch.from_numpy(weights(text, size, least)), out)
    print(f"{out / FILE}: {size} pieces of {dimensions} dimensions from {len(text) / 1e6:.1f} M pieces of text, "
          f"{(out / FILE).stat().st_size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dimensions", type=int, default=96)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--least", type=int, default=30)
    args = parser.parse_args()
    train(args.data, sentencepiece.SentencePieceProcessor(model_file=str(args.tokenizer)), args.out, args.dimensions,
          args.seed, args.least)


if __name__ == "__main__":
    main()
