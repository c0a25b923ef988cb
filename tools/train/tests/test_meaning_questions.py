"""meaning_questions.py: its comparisons are the daemon's, it brings questions near what answers them, reads nothing that
is held out, and gives the same file for the same input."""
import sys

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.numpy import load_file

import meaning
import meaning_questions
from meaning_questions import BESIDE, CHUNK, Pairs, Pieces
from test_meaning import TOKENIZER, corpus  # noqa: F401


def random_pieces(count: int, dimensions: int, seed: int) -> Pieces:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, generator=generator) * 0.9 + 0.05
    weights[:9] = 0
    return Pieces(torch.randn(count, dimensions, generator=generator), weights)


def test_the_comparisons_are_those_of_the_daemon():
    """model/meaning.cc as plain loops."""
    pieces = random_pieces(40, 6, 1)
    rng = np.random.default_rng(2)
    questions, chunks = torch.zeros(3, 5, dtype=torch.long), torch.zeros(4, 3 * CHUNK, dtype=torch.long)
    for row in questions:
        row[:4] = torch.from_numpy(rng.permutation(32)[:4] + 8)
        row[4] = row[1]  # a piece that the question has twice
    chunks[:, :150] = torch.from_numpy(rng.integers(0, 40, (4, 150)))
    chunks[3, CHUNK:2 * CHUNK] = 0  # nothing there, but something beside it
    with torch.no_grad():
        best, sums = pieces(questions, chunks)
    vectors, weights = pieces.vectors.detach().numpy(), pieces.weights().detach().numpy()
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for i, question in enumerate(questions.tolist()):
        asked = [piece for piece in question if weights[piece] > 0]
        for j, chunk in enumerate(chunks.tolist()):
            three = [[piece for piece in chunk[k * CHUNK:(k + 1) * CHUNK] if weights[piece] > 0] for k in range(3)]
            found = 0.0
            for piece in set(asked):
                near = [max([0.0, *(float(units[piece] @ units[other]) for other in part)]) for part in three]
                found += weights[piece] * max(near[1], BESIDE * near[0], BESIDE * near[2])
            assert best[i, j] == pytest.approx(found / sum(weights[piece] for piece in set(asked)), abs=1e-5)
            a = sum(weights[piece] * vectors[piece] for piece in asked)
            b = sum((weights[piece] * vectors[piece] for piece in three[1]), np.zeros(6))
            lengths = np.linalg.norm(a) * np.linalg.norm(b)
            assert sums[i, j] == pytest.approx(a @ b / lengths if lengths > 0 else 0, abs=1e-5)


def test_the_pull_is_the_squared_way_of_pieces_that_count():
    pieces = random_pieces(12, 4, 5)
    assert pieces.distance().item() == 0
    with torch.no_grad():
        pieces.vectors[2] += 1  # has no weight
        pieces.vectors[10, 1] += 0.5
        pieces.logits[11] -= 2
    expected = (meaning_questions.PULL * 0.25 + meaning_questions.PULL_OF_WEIGHTS * 4) / 3
    assert pieces.distance().item() == pytest.approx(expected)


class OneAnswerEach:
    """Piece 10 + i asks for chunks with piece 20 + i among others."""

    def __init__(self):
        self.rng = np.random.default_rng(3)

    def batch(self, size: int):
        questions = torch.arange(size)[:, None] + 10
        chunks = self.rng.integers(30, 33, (size, 3 * CHUNK))
        chunks[:, CHUNK + 7] = np.arange(size) + 20
        return questions, torch.from_numpy(chunks)


def test_questions_come_near_what_answers_them_and_pieces_without_weight_stay_so(monkeypatch):
    monkeypatch.setattr(meaning_questions, "PULL", 0.0)  # random vectors have to go far
    monkeypatch.setattr(meaning_questions, "PULL_OF_WEIGHTS", 0.0)
    pieces = random_pieces(40, 16, 4)
    before = pieces(*OneAnswerEach().batch(8))[0].argmax(1)
    meaning_questions.train(pieces, OneAnswerEach(), 1000, 8)
    after = pieces(*OneAnswerEach().batch(8))[0].argmax(1)
    assert (before == torch.arange(8)).sum() < 5 and (after == torch.arange(8)).all()
    weights = pieces.weights().detach()
    assert not weights[:9].any() and ((weights >= 0) & (weights <= 1)).all()


def test_the_same_input_gives_the_same_file_and_nothing_held_out_is_asked(corpus, tmp_path, monkeypatch):  # noqa: F811
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    pairs = Pairs(corpus, tokenizer, 1)
    assert not pairs.kept and "heldout" not in tokenizer.decode(pairs.said.tolist() + pairs.prose.tolist())
    command = ["meaning.py", str(corpus), str(TOKENIZER), str(tmp_path / "a"), "--dimensions", "4"]
    monkeypatch.setattr(sys, "argv", command)
    meaning.main()
    start = (tmp_path / "a" / meaning.FILE).read_bytes()
    files = []
    for out in ("b", "c"):
        (tmp_path / out).mkdir()
        (tmp_path / out / meaning.FILE).write_bytes(start)
        monkeypatch.setattr(sys, "argv", ["meaning_questions.py", str(corpus), str(TOKENIZER), str(tmp_path / out),
                                          "--steps", "3", "--batch", "4"])
        meaning_questions.main()
        files.append((tmp_path / out / meaning.FILE).read_bytes())
    assert files[0] == files[1] != start
    assert load_file(tmp_path / "b" / meaning.FILE)["vectors"].dtype == np.int8


@pytest.mark.parametrize("more, told", [(["--batch", "1"], "2 or more"), (["--steps", "0"], "1 or more"),
                                        ([], "meaning.py makes it")])
def test_what_cannot_be_done_is_said(more, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["meaning_questions.py", str(tmp_path), str(TOKENIZER), str(tmp_path), *more])
    with pytest.raises(SystemExit):
        meaning_questions.main()
    assert told in capsys.readouterr().err
