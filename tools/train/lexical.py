"""What chunks and questions say, word by word: fixed random projections of their BM25 vectors over word stems.

They are what landmarks and question embeddings are drawn towards (it needs no questions), they tell which "negatives"
of the contrastive losses hold the evidence too, and they choose the candidates that late interaction learns to rank.
Stems rather than pieces bring the forms of a word together. A word's direction is the sum of those of its pieces (a
stem's, of its commonest word's), so that a model learns it for words that it never saw: a hash of such words would be
noise, and the rarest words weigh most. With directions for each place of a piece in its word, landmarks came no nearer
to their words than a cosine of .2.
"""
import math
import re
import zlib
from pathlib import Path

import numpy as np
import torch

SPECIAL_PIECES = 8      # the first pieces: control tokens and the newline; they say nothing
CHUNK_SATURATION = 1.2  # BM25's k1
PROJECTION_SEED = 7
UNKNOWN_STEMS = 1 << 14  # terms that words which the corpus lacks share by their hash
PIECES = 12  # of a word's that count
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: it has an inverse modulo 2^64
INVERSE = np.uint64(pow(int(MULTIPLIER), -1, 1 << 64))
LONGEST = 64  # pieces in a row of tokens that is looked at at once

# Classes of pieces.
BREAK, BEGIN, CONTINUE = 0, 1, 2


def stem(word: str) -> str:
    """Light English stemming: enough to bring the forms of a word together."""
    for suffix in ("ing", "edly", "ed", "es", "s", "ly"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[:-len(suffix)]
    return word


def piece_classes(tokenizer) -> np.ndarray:
    """Whether a piece begins a word, goes on with one, or breaks it (punctuation, control tokens)."""
    classes = np.full(tokenizer.get_piece_size(), BREAK)
    for i in range(SPECIAL_PIECES, len(classes)):
        piece = tokenizer.id_to_piece(i)
        if re.fullmatch(r"\u2581\w*", piece):
            classes[i] = BEGIN
        elif re.fullmatch(r"\w+", piece):
            classes[i] = CONTINUE
    return classes


def signed(value: np.uint64) -> int:
    return int(np.array(value, np.uint64).view(np.int64))


class WordHasher:
    """The words of rows of tokens: a 64-bit hash at the last piece of each word, and where those pieces are.

    A word is a run of pieces; with p_0 .. p_n its hash is the sum of (p_i + 1) M^i modulo 2^64.
    """

    def __init__(self, classes: torch.Tensor):
        self.classes = classes
        device = classes.device
        powers, inverses, power, inverse = [], [], np.uint64(1), np.uint64(1)
        with np.errstate(over="ignore"):
            for _ in range(LONGEST):
                powers.append(signed(power))
                inverses.append(signed(inverse))
                power, inverse = power * MULTIPLIER, inverse * INVERSE
        self.powers = torch.tensor(powers, dtype=torch.int64, device=device)
        self.inverses = torch.tensor(inverses, dtype=torch.int64, device=device)

    def __call__(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[..., n <= 64] -> hashes [..., n] int64, is_last [..., n] bool, start [..., n] of the word, -1 outside of one."""
        n = tokens.shape[-1]
        kind = self.classes[tokens]
        within = kind != BREAK
        before = torch.nn.functional.pad(within[..., :-1], (1, 0))
        begins = within & ((kind == BEGIN) | ~before)
        next_begins = torch.nn.functional.pad(begins[..., 1:] | ~within[..., 1:], (0, 1), value=True)
        is_last = within & next_begins
        place = torch.arange(n, device=tokens.device)
        start = torch.where(begins, place, 0).cummax(-1).values
        sums = ((tokens + 1) * self.powers[:n]).masked_fill(~within, 0).cumsum(-1)
        before_start = torch.where(start > 0, sums.gather(-1, (start - 1).clamp(min=0)), 0)
        return (sums - before_start) * self.inverses[start], is_last, torch.where(within, start, -1)


class Lexical:
    def __init__(self, tokenizer, corpus: np.ndarray, dim: int, chunk: int, device, cache: Path | None = None):
        """corpus: tokens, from which the words and their rarity are learned; that takes a minute, which `cache`, a file
        that is read or else written, spares the next run over the same corpus."""
        learned = None
        if cache and cache.exists():
            learned = dict(np.load(cache))
            if learned["corpus"] != zlib.crc32(corpus):
                learned = None
        if learned is None:
            learned = self._learn(tokenizer, corpus, chunk)
            if cache:
                np.savez(cache, corpus=zlib.crc32(corpus), **learned)
        holding, count = learned["holding"], int(learned["chunks"])
        idf = np.log(1 + (count - holding + 0.5) / (holding + 0.5))
        idf = np.concatenate([[0.0], idf, np.full(UNKNOWN_STEMS, math.log(1 + 2 * count))])
        generator = torch.Generator().manual_seed(PROJECTION_SEED)
        pieces = torch.randn(tokenizer.get_piece_size(), dim, generator=generator) / math.sqrt(dim)
        pieces *= torch.from_numpy(-np.log(learned["share"] + 1e-7)).float()[:, None]  # rarer ones count more
        padded = torch.cat([pieces, torch.zeros(1, dim)]).to(device)  # -1: none
        directions = sum(padded[torch.from_numpy(column.astype(np.int64)).to(device)] for column in learned["ids"].T)
        self.known = len(idf) - UNKNOWN_STEMS
        self.idf = torch.from_numpy(idf).float().to(device)       # [terms]; those of unknown words come last
        self.hasher = WordHasher(torch.from_numpy(piece_classes(tokenizer)).to(device))
        self.words = torch.from_numpy(learned["words"]).to(device)      # [words] hashes, ascending
        self.stems = torch.from_numpy(learned["stems"] + 1).to(device)  # [words] terms; term 0 is none
        directions = torch.nn.functional.normalize(directions, dim=-1) * self.idf[1:self.known, None]
        self.vectors = torch.cat([torch.zeros(1, dim, device=device), directions])
        self.pieces = pieces.to(device)                           # [pieces, dim]

    @classmethod
    def _learn(cls, tokenizer, corpus: np.ndarray, chunk: int) -> dict[str, np.ndarray]:
        """words: hashes, ascending; stems: the number of each word's; holding: chunks that have a stem, of `chunks`; ids
        [stems, PIECES]: pieces of its commonest word, -1 behind them; share: of all tokens, of each piece."""
        hasher = WordHasher(torch.from_numpy(piece_classes(tokenizer)))
        tokens = torch.from_numpy(corpus[:len(corpus) // chunk * chunk].astype(np.int64)).view(-1, chunk)
        hashes, is_last, _ = hasher(tokens)
        words, inverse, counts = np.unique(hashes[is_last].numpy(), return_inverse=True, return_counts=True)
        stems, texts = cls._stems(tokenizer, tokens, is_last, inverse, len(words))
        rows = np.repeat(np.arange(len(tokens)), is_last.sum(1).numpy())
        seen = np.unique(rows * (stems.max() + 1) + stems[inverse]) % (stems.max() + 1)
        share = np.bincount(tokens.flatten().numpy(), minlength=tokenizer.get_piece_size()) / tokens.numel()
        return {"words": words, "stems": stems, "holding": np.bincount(seen, minlength=stems.max() + 1),
                "chunks": np.array(len(tokens)), "ids": cls._pieces(tokenizer, texts, stems, counts), "share": share}

    @staticmethod
    def _stems(tokenizer, tokens, is_last, inverse, count) -> tuple[np.ndarray, list[str]]:
        """Of each distinct word the number of its stem, and its text."""
        flat, last = tokens.flatten().numpy(), np.flatnonzero(is_last.flatten().numpy())
        example = np.zeros(count, np.int64)
        example[inverse] = last  # any place where the word ends
        classes = piece_classes(tokenizer)
        numbers, of_word, texts = {}, np.zeros(count, np.int64), []
        chunk = tokens.shape[1]
        for word, end in enumerate(example):
            begin = end
            while classes[flat[begin]] != BEGIN and begin % chunk and classes[flat[begin - 1]] != BREAK:
                begin -= 1
            text = tokenizer.decode(flat[begin:end + 1].tolist()).strip().lower()
            of_word[word] = numbers.setdefault(stem(text), len(numbers))
            texts.append(text)
        return of_word, texts

    @staticmethod
    def _pieces(tokenizer, texts, stems, counts) -> np.ndarray:
        """[stems, PIECES]: of each stem the pieces of its commonest word."""
        commonest = np.zeros(stems.max() + 1, np.int64)
        order = np.argsort(counts, kind="stable")
        commonest[stems[order]] = order  # the last one stays
        ids = np.full((len(commonest), PIECES), -1, np.int16)
        for row, encoded in zip(ids, tokenizer.encode([texts[word] for word in commonest])):
            row[:len(encoded)] = encoded[:PIECES]
        return ids

    def terms(self, tokens: torch.Tensor) -> torch.Tensor:
        """[..., n] tokens -> [..., n] the word's term at its last piece, else 0."""
        hashes, is_last, _ = self.hasher(tokens)
        return self._terms(hashes, is_last)

    def _terms(self, hashes, is_last) -> torch.Tensor:
        place = torch.searchsorted(self.words, hashes).clamp(max=len(self.words) - 1)
        unknown = self.known + (hashes ^ (hashes >> 29)) % UNKNOWN_STEMS
        terms = torch.where(self.words[place] == hashes, self.stems[place], unknown)
        return torch.where(is_last, terms, 0)

    def _sum(self, tokens: torch.Tensor, share) -> torch.Tensor:
        hashes, is_last, start = self.hasher(tokens)
        terms = self._terms(hashes, is_last)
        counts = (terms[..., :, None] == terms[..., None, :]).sum(-1).float()
        vectors = torch.where((terms < self.known)[..., None], self.vectors[terms.clamp(max=self.known - 1)],
                              self._unknown(tokens, start) * self.idf[-1])
        return (vectors * share(counts)[..., None]).sum(-2)

    def _unknown(self, tokens: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """[..., n, dim] at each last piece of a word its direction, by its pieces."""
        pieces = self.pieces[tokens].masked_fill((start < 0)[..., None], 0)
        sums = torch.nn.functional.pad(pieces.cumsum(-2), (0, 0, 1, 0))
        before = sums.gather(-2, start.clamp(min=0)[..., None].expand_as(pieces))
        return torch.nn.functional.normalize(sums[..., 1:, :] - before, dim=-1)

    def bm25(self, question: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        """Terms [N, T] of questions, [N, K, S] of chunks -> [N, K], each distinct word once."""
        counts = (question[:, None, :, None] == chunk[:, :, None, :]).sum(-1).float()  # [N, K, T]
        repeated = (question[:, :, None] == question[:, None, :]).sum(-1).float()
        weight = (self.idf[question] / repeated)[:, None]
        return (weight * counts * (CHUNK_SATURATION + 1) / (counts + CHUNK_SATURATION)).sum(-1)

    def chunks(self, tokens: torch.Tensor) -> torch.Tensor:
        """[..., chunk] tokens -> [..., dim], each word's count saturated as BM25 does."""
        return self._sum(tokens, lambda counts: (CHUNK_SATURATION + 1) / (counts + CHUNK_SATURATION))

    def questions(self, tokens: torch.Tensor) -> torch.Tensor:
        """[..., n] tokens, special ones ignored -> [..., dim], each distinct word once."""
        return self._sum(tokens, lambda counts: 1 / counts)
