"""BM25 by hand, its forms, and the dense ranker where it is installed."""
import math
import socket

import numpy as np
import pytest
import rankers

TEXTS = ["the cat sat on the mat", "a dog", "the dog and the dog ran far away today"]


def test_bm25_is_what_the_formula_says():
    got = rankers.bm25(TEXTS, ["Dog, dog! cats"])
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean = (6 + 2 + 9) / 3
    weight = lambda count, length: idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / mean))
    np.testing.assert_allclose(got, [[0, weight(1, 2), weight(2, 9)]])


def test_stems_meet_where_words_do_not():
    assert rankers.bm25(TEXTS, ["cats"]).max() == 0
    assert rankers.best(rankers.bm25(TEXTS, ["cats"], rankers.stems), 1).tolist() == [[0]]
    assert rankers.bm25(TEXTS, ["cats"], rankers.stems)[0, 0] > 0


def test_context_lifts_the_chunk_whose_neighbours_fit():
    texts = ["boats in the harbour", "it costs ten pounds", "sails and ropes", "a hat", "it costs ten pounds", "a coat"]
    question = ["what costs ten pounds in the harbour with sails"]
    plain, context = rankers.bm25(texts, question)[0], rankers.bm25_with_context(texts, question)[0]
    assert plain[1] == plain[4]
    assert context[1] > context[4]
    around = rankers.bm25(rankers.around(texts), question)
    np.testing.assert_allclose(context, (rankers.z_scores(plain[None]) + rankers.z_scores(around))[0])


def test_around_stops_at_the_ends():
    assert rankers.around(["a", "b", "c"]) == ["a b", "a b c", "b c"]


def test_ties_go_to_the_lower_number():
    assert rankers.best(np.array([[1.0, 3.0, 3.0, 2.0]]), 3).tolist() == [[1, 2, 3]]


def test_the_dense_ranker_needs_no_network(monkeypatch):
    pytest.importorskip("wordllama")
    def refuse(*_):
        raise AssertionError("it wanted the network")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    scores = rankers.WordLlama()(["a kitten slept on the rug", "the invoice is due on Monday"], ["when must the bill be paid?"])
    assert scores.shape == (1, 2) and scores[0, 1] > scores[0, 0]
