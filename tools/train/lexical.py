"""What chunks and questions say, word by word: fixed random projections of their BM25 vectors over word stems.

They are what landmarks and question embeddings are drawn towards (it needs no questions), they tell which "negatives"
of the contrastive losses hold the evidence too, and they choose the candidates that late interaction learns to rank.
Stems rather than pieces bring the forms of a word together. A word's direction is made of its pieces and their places
in it (a stem's, of those of its commonest word), so that a model can learn it for words that it never saw: a hash of
such words would be noise, and the rarest words weigh most.
"""
import math
import re

import numpy as np
import torch

SPECIAL_PIECES = 8      # the first pieces: control tokens and the newline; they say nothing
CHUNK_SATURATION = 1.2  # BM25's k1
PROJECTION_SEED = 7
UNKNOWN_STEMS = 1 << 14  # terms that words which the corpus lacks share by their hash
PLACES = 12  # of pieces in a word that have directions of their own
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
    def __init__(self, tokenizer, corpus: np.ndarray, dim: int, chunk: int, device):
        """corpus: tokens, from which the words and their rarity are learned."""
        self.hasher = WordHasher(torch.from_numpy(piece_classes(tokenizer)))
        tokens = torch.from_numpy(corpus[:len(corpus) // chunk * chunk].astype(np.int64)).view(-1, chunk)
        hashes, is_last, _ = self.hasher(tokens)
        words, inverse, counts = np.unique(hashes[is_last].numpy(), return_inverse=True, return_counts=True)
        stems, texts = self._stems(tokenizer, tokens, is_last, inverse, len(words))
        rows = np.repeat(np.arange(len(tokens)), is_last.sum(1).numpy())
        seen = np.unique(rows * (stems.max() + 1) + stems[inverse]) % (stems.max() + 1)
        holding = np.bincount(seen, minlength=stems.max() + 1)
        idf = np.log(1 + (len(tokens) - holding + 0.5) / (holding + 0.5))
        idf = np.concatenate([[0.0], idf, np.full(UNKNOWN_STEMS, math.log(1 + 2 * len(tokens)))])

        generator = torch.Generator().manual_seed(PROJECTION_SEED)
        pieces = torch.randn(tokenizer.get_piece_size(), dim, generator=generator) / math.sqrt(dim)
        share = np.bincount(tokens.flatten().numpy(), minlength=len(pieces)) / tokens.numel()
        pieces = pieces * torch.from_numpy(-np.log(share + 1e-7)).float()[:, None]  # rarer ones count more
        places = torch.stack([pieces.roll(place, 1) for place in range(PLACES)])
        directions = self._of_stems(tokenizer, texts, stems, counts, places)
        self.known = len(idf) - UNKNOWN_STEMS
        idf = torch.from_numpy(idf).float()
        self.hasher = WordHasher(torch.from_numpy(piece_classes(tokenizer)).to(device))
        self.words = torch.from_numpy(words).to(device)           # [words] hashes, ascending
        self.stems = torch.from_numpy(stems + 1).to(device)       # [words] terms; term 0 is none
        self.idf = idf.to(device)                                 # [terms]; those of unknown words come last
        self.vectors = torch.cat([torch.zeros(1, dim), directions * idf[1:self.known, None]]).to(device)
        self.places = places.to(device)                           # [places, pieces, dim]

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
    def _of_stems(tokenizer, texts, stems, counts, places) -> torch.Tensor:
        """[stems, dim]: of each stem the direction of its commonest word."""
        commonest = np.zeros(stems.max() + 1, np.int64)
        order = np.argsort(counts, kind="stable")
        commonest[stems[order]] = order  # the last one stays
        ids = np.full((len(commonest), PLACES), -1)
        for row, encoded in zip(ids, tokenizer.encode([texts[word] for word in commonest])):
            row[:len(encoded)] = encoded[:PLACES]
        ids, directions = torch.from_numpy(ids), torch.zeros(len(commonest), places.shape[-1])
        for place in range(PLACES):
            there = ids[:, place] >= 0
            directions[there] += places[place, ids[there, place]]
        return torch.nn.functional.normalize(directions, dim=-1)

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
        place = (torch.arange(tokens.shape[-1], device=tokens.device) - start).clamp(max=PLACES - 1)
        pieces = self.places[place, tokens].masked_fill((start < 0)[..., None], 0)
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
