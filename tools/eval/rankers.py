"""What recalld is compared with, over the same chunks: BM25 in some forms, and a dense ranker. Needs numpy.

A ranker scores all chunks of a memory for all its questions: (texts, questions) -> [questions, chunks], higher is better.
"""
import math
import re
import sys
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np

K1, B = 1.2, 0.75


def words(text: str) -> list[str]:
    """Runs of a-z and digits, lower case; no stop words, no stemming."""
    return re.findall(r"[a-z0-9]+", text.lower())


@lru_cache(1)
def _stemmer():
    try:
        import snowballstemmer
    except ImportError:
        sys.exit("stemming needs the package snowballstemmer; pip install -r tools/eval/requirements.txt")
    return snowballstemmer.stemmer("english")


@lru_cache(1 << 18)
def stem(word: str) -> str:
    return _stemmer().stemWord(word)


def stems(text: str) -> list[str]:
    return [stem(word) for word in words(text)]


def bm25(texts: list[str], questions: list[str], split=words) -> np.ndarray:
    """k1 1.2, b 0.75, each distinct word of the question once, idf log(1 + (n - df + 0.5) / (df + 0.5))."""
    documents = [Counter(split(text)) for text in texts]
    lengths = np.array([max(1, sum(document.values())) for document in documents], float)
    norm = K1 * (1 - B + B * lengths / lengths.mean())
    postings: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for i, document in enumerate(documents):
        for word, count in document.items():
            postings[word][0].append(i)
            postings[word][1].append(count)
    weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    scores = np.zeros((len(questions), len(texts)))
    for row, question in zip(scores, questions):
        for word in set(split(question)):
            if word not in postings:
                continue
            if word not in weights:
                at, counts = np.array(postings[word][0]), np.array(postings[word][1], float)
                idf = math.log(1 + (len(texts) - len(at) + 0.5) / (len(at) + 0.5))
                weights[word] = at, idf * counts * (K1 + 1) / (counts + norm[at])
            at, weight = weights[word]
            row[at] += weight
    return scores


def z_scores(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.mean(1, keepdims=True)) / (scores.std(1, keepdims=True) + 1e-9)


def around(texts: list[str]) -> list[str]:
    """Each chunk with its two neighbours."""
    return [" ".join(texts[max(0, i - 1):i + 2]) for i in range(len(texts))]


def bm25_with_context(texts: list[str], questions: list[str], split=words, weight: float = 1.0) -> np.ndarray:
    return z_scores(bm25(texts, questions, split)) + weight * z_scores(bm25(around(texts), questions, split))


class WordLlama:
    """Static word vectors that the wheel of wordllama carries, averaged: cosine of question and chunk. Loads no file from
    elsewhere (the package's own loader would: it looks for its tokenizer in a folder of another name)."""

    def __init__(self):
        try:
            import wordllama
            from safetensors import safe_open
        except ImportError:
            sys.exit("--dense needs the package wordllama; pip install -r tools/eval/requirements.txt, or leave it out")
        folder = Path(wordllama.__file__).parent
        with safe_open(folder / "weights/l2_supercat_256.safetensors", framework="np") as file:
            vectors = file.get_tensor("embedding.weight")
        tokenizer = wordllama.WordLlama.load_tokenizer(folder / "tokenizers/l2_supercat_tokenizer_config.json")
        self.model = wordllama.WordLlamaInference(vectors, tokenizer)

    def __call__(self, texts: list[str], questions: list[str]) -> np.ndarray:
        one, other = self.model.embed(questions, norm=True), self.model.embed(texts, norm=True)
        return np.asarray(one) @ np.asarray(other).T


def baselines(dense: bool) -> dict:
    found = {
        "BM25": bm25,
        "BM25 stemmed": lambda texts, questions: bm25(texts, questions, stems),
        "BM25 + context": bm25_with_context,
        "BM25 + context, stemmed": lambda texts, questions: bm25_with_context(texts, questions, stems),
    }
    return found | ({"dense (wordllama)": WordLlama()} if dense else {})


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """[questions, count] the chunks with the highest scores, best first; ties go to the lower number."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]
