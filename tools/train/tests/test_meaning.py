"""meaning.py on a tiny corpus: what stands in the same surroundings comes near, held-out text is not read, and the same
input gives the same file."""
import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import meaning
import prepare
from conftest import compress, tar_of

TOKENIZER = prepare.Path(__file__).resolve().parents[3] / "tests/golden/starter/tokenizer.model"


def cosine(vectors, a, b):
    return float(vectors[a] @ vectors[b] / (np.linalg.norm(vectors[a]) * np.linalg.norm(vectors[b])))


def made(length=40_000, seed=0):
    """Pieces 20 and 21 stand among 30 to 39, 22 among 40 to 49."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(length // 8):
        one = rng.integers(3)
        parts.append(rng.integers(30, 40, 8) + 10 * (one == 2))
        parts[-1][4] = 20 + one
    return np.concatenate(parts).astype(np.uint16)


def test_pieces_of_the_same_surroundings_come_near():
    vectors = meaning.directions(meaning.information(meaning.together(made(), 60)), 8, 1)
    assert vectors.shape == (60, 8)
    assert cosine(vectors, 20, 21) > 0.9 > 0.5 > cosine(vectors, 20, 22)
    assert np.allclose(vectors[:meaning.SPECIAL_PIECES], 0, atol=1e-6)


def test_counts_are_those_of_pairs_and_far_ones_count_less():
    counts = meaning.together(np.array([20, 21, 21] + [22] * 4 + [23], np.uint16), 30)
    assert np.array_equal(counts, counts.T)
    assert counts[20, 21] == 2 and counts[20, 22] == 3 + np.float32(meaning.FAR_SHARE)
    assert counts[20, 23] == np.float32(meaning.FAR_SHARE) and counts[21, 21] == 2  # both ways


def test_rare_pieces_weigh_most_and_those_hardly_seen_nothing():
    text = np.array([20] * 9_900 + [21] * 90 + [22] * 10, np.uint16)
    found = meaning.weights(text, 30, 30)
    assert 0 < found[20] < found[21] < 1 and found[22] == 0 and found[23] == 0 and not found[:8].any()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Texts that tell by one word whether they may be read."""
    folder = tmp_path_factory.mktemp("meaning")
    said = [["A", "The harbour is quiet today."], ["B", "So is the market by the river."]]
    dialogues = [{"source": "qmsum_meetings" if i == 7 else "own",
                  "turns": said + [["A", "heldout" if i == 7 or i % prepare.DIALOGUES_HELD_EVERY == 0 else "readme"]]}
                 for i in range(60)]
    records = [{"source": source, "title": title, "context": text, "qas": []} for source, title, text in (
        ("squad_dev", "a", "heldout"), ("squad_dev", "b", "readme"), ("molweni_test", "x", "heldout"),
        ("pubmedqa", "x", "heldout"), ("qmsum", "test/1", "heldout"), ("qmsum", "train/1", "readme"))]
    novels = {f"en/A{i:02d}_T_19{i:02d}.txt": "readme\n\n" * 3 if i < 4 else "heldout" for i in range(12)}
    compress(folder / "qa.jsonl.zst", "\n".join(map(json.dumps, records)).encode())
    compress(folder / "dialogues.jsonl.zst", "\n".join(map(json.dumps, dialogues)).encode())
    compress(folder / "novels.tar.zst", tar_of(novels))
    return folder


def test_nothing_that_is_held_out_is_read(corpus):
    text = "\n".join(line for lines in meaning.texts(corpus) for line in lines)
    assert text.count("readme") > 50 and "heldout" not in text


def test_the_same_input_gives_the_same_file(corpus, tmp_path, monkeypatch):
    files = []
    for out in (tmp_path / "a", tmp_path / "b"):
        monkeypatch.setattr(sys, "argv", ["meaning.py", str(corpus), str(TOKENIZER), str(out), "--dimensions", "4"])
        meaning.main()
        files.append((out / meaning.FILE).read_bytes())
    assert files[0] == files[1]
    tensors = load_file(tmp_path / "a" / meaning.FILE)
    size = tensors["weights"].shape[0]
    assert tensors["vectors"].dtype == np.int8 and tensors["vectors"].shape == (size, 4)
    assert tensors["vectors_scale"].dtype == tensors["weights"].dtype == np.float32
