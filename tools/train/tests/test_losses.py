"""Retrieval losses and the words of chunks, on small tensors."""
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import torch

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))
from lexical import Lexical, WordHasher, piece_classes, stem  # noqa: E402
from losses import Chunks, contrast, evidence_of, late_scores, weight_of_evidence  # noqa: E402
from muon import orthogonalise  # noqa: E402

TOKENIZER = str(HERE.parents[3] / "tests/golden/starter/tokenizer.model")


def chunks_of(landmarks, words):
    return Chunks(torch.tensor(landmarks), torch.tensor(words), per_sequence=2, sequences=1)


def test_the_evidence_is_told_from_other_chunks_but_not_from_its_copy():
    query = torch.tensor([[4.0, 0.0]])
    landmarks = [[2.0, 2.0], [0.0, 4.0], [8.0, 0.0]]  # two of the sequence, then one from the bank that is nearer
    evidence = torch.tensor([[0, 0, 0, 2, 0]])
    loss, first = contrast(query, evidence, chunks_of(landmarks, [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    assert loss > 5 and first == 0
    loss, first = contrast(query, evidence, chunks_of(landmarks, [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))  # it says the same
    assert loss < 0.01 and first == 1


def test_chunks_that_are_not_there_yet_are_no_negatives():
    query = torch.tensor([[4.0, 0.0]])
    landmarks, words = [[2.0, 2.0], [8.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]
    loss, _ = contrast(query, torch.tensor([[0, 0, 0, 1, 0]]), chunks_of(landmarks, words))
    assert loss < 0.01
    loss, _ = contrast(query, torch.tensor([[0, 0, 0, 2, 0]]), chunks_of(landmarks, words))
    assert loss > 5
    loss, _ = contrast(query, torch.tensor([[0, 0, 0, 2, 0b10]]), chunks_of(landmarks, words))  # an older value
    assert loss < 0.01


def test_scores_themselves_count_where_each_chunk_takes_its_sigmoid():
    query, evidence = torch.tensor([[4.0, 0.0]]), torch.tensor([[0, 0, 0, 2, 0]])
    words = [[1.0, 0.0], [0.0, 1.0]]

    def loss(right, other):
        chunks = chunks_of([[right, 0.0], [other, 0.0]], words)
        return [float(contrast(query, evidence, chunks, raw=True, absolute=absolute)[0]) for absolute in (False, True)]

    assert max(loss(4.0, -4.0)) < 0.01               # scores of 11 and -11
    relative, absolute = loss(8.0, 4.0)              # both above 0: the order is right, but a newer chunk would be read
    assert relative < 0.01 and absolute > 5
    relative, absolute = loss(-4.0, -8.0)            # both below: nothing would be read
    assert relative < 0.01 and absolute > 5


def test_a_chunk_with_little_weight_teaches_and_one_not_selected_does_not():
    logs = torch.tensor([[[-200.0, 0.0], [-1e30, 0.0]]], requires_grad=True)
    loss, _ = weight_of_evidence(logs, torch.tensor([[[0, 3], [1, 3]]]), 64)
    loss.backward()
    assert torch.isclose(loss, torch.tensor(100.0)) and logs.grad[0, :, 0].tolist() == [-0.5, 0.0]


def test_all_the_weight_belongs_to_the_evidence():
    weights = torch.tensor([[[0.25, 0.75], [1.0, 0.0]]])
    loss, share = weight_of_evidence(weights.log(), torch.tensor([[[0, 70], [1, 3], [-1, -1]]]), 64)
    assert torch.isclose(share, torch.tensor(0.875)) and torch.isclose(loss, -torch.tensor(0.75).log() / 2)


def test_places_without_a_question_count_for_nothing():
    meta = torch.tensor([[[5, 0, 0], [-1, -1, -1]]])
    evidence = evidence_of(meta, torch.tensor([[2, 2]]), torch.zeros(1, 2, dtype=torch.int64))
    assert evidence[:, 0].tolist() == [0, -1]
    query = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    loss, first = contrast(query, evidence, chunks_of([[4.0, 0.0], [0.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]))
    assert loss < 0.01 and first == 1


def test_late_scores_take_the_best_key_of_each_token_over_the_heads():
    queries = torch.zeros(1, 2, 2, 4)
    queries[0, 0, 1, 0], queries[0, 1, 0, 1] = 2.0, 100.0  # the second token is not the question's own
    keys = torch.zeros(1, 2, 3, 4)
    keys[0, 0, 2, 0], keys[0, 1, 1, 0] = 3.0, 1.0
    scores = late_scores(queries, torch.tensor([[True, False]]), keys)
    assert torch.allclose(scores, torch.tensor([[3.0, 1.0]]))


def test_words_are_the_same_wherever_they_stand_and_whatever_their_form():
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=TOKENIZER)
    hasher = WordHasher(torch.from_numpy(piece_classes(tokenizer)))

    def words(text):
        hashes, is_last, _ = hasher(torch.tensor(tokenizer.encode(text)))
        return hashes[is_last].tolist()

    one, two = words("the lighthouse keeper, tired"), words("a tired keeper of the lighthouse")
    assert len(one) == 4 and len(two) == 6
    assert set(one) <= set(two) and one[1] == two[5]
    assert stem("attacks") == stem("attacking") == stem("attacked") == "attack"

    text = "She attacks. They attacked the mill. Nobody was attacking a quiet mill by the river then. " * 12
    corpus = np.array(tokenizer.encode(text))
    lexical = Lexical(tokenizer, corpus, 16, 64, "cpu")

    def vector(question):
        return lexical.questions(torch.tensor(tokenizer.encode(question))[None])[0]

    assert torch.allclose(vector("attacks"), vector("attacking")) and vector("attacks").norm() > 0
    assert torch.allclose(vector("mill mill"), vector("mill"), atol=1e-6)  # each distinct word once
    assert vector("zyqlo").norm() > 0 and torch.allclose(vector("the zyqlo"), vector("zyqlo") + vector("the"), atol=1e-4)
    assert not torch.allclose(vector("1963"), vector("1964"), atol=1e-2)  # their order is for contrast to tell

    def terms(words):
        return lexical.terms(torch.tensor(tokenizer.encode(words))[None])

    scores = lexical.bm25(terms("attacking the river river zyqlo"),
                          torch.nn.utils.rnn.pad_sequence([terms(one)[0] for one in ("a river", "they attacked", "zyqlo zyqlo",
                                                                                     "nothing")], True)[None])[0]
    idf = {word: float(lexical.idf[terms(word).max()]) for word in ("river", "attacks", "zyqlo")}
    assert torch.allclose(scores, torch.tensor([idf["river"], idf["attacks"], idf["zyqlo"] * 2 * 2.2 / 3.2, 0.0]), atol=1e-4)
    assert not torch.allclose(vector("river"), vector("mill"))


def test_muon_brings_singular_values_near_one():
    update = orthogonalise(torch.randn(2, 48, 16, generator=torch.Generator().manual_seed(1)))
    assert update.shape == (2, 48, 16)
    values = torch.linalg.svdvals(update.float())
    assert values.min() > 0.5 and values.max() < 1.4
