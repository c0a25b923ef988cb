"""What retrieval and reading are trained on, beside the next token.

B sequences, C chunks a sequence, r the width of landmarks, N questions, M chunks remembered from earlier steps. A row of
`evidence` says where the answer to a question lies: sequence, first chunk, last chunk, the number of chunks that it may
see, and as bits those chunks that only age tells apart from the evidence.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Two chunks that say the same (cosine of their BM25 vectors): copies of one passage, shifted by up to half a chunk.
SAME_WORDS = 0.4
HIDDEN = -1e30
CONTRAST_SCALE = 40.0
ABSOLUTE_SHARE = 0.5  # of the loss on scores themselves beside that on their order


@dataclass
class Chunks:
    """Chunks that questions are compared with, those of the batch first."""
    landmarks: torch.Tensor  # [B*C (+ M), r]
    words: torch.Tensor      # [B*C (+ M), r] BM25 vectors of unit length
    per_sequence: int        # C
    sequences: int           # B


def evidence_of(meta: torch.Tensor, available: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """[B, n, >=3] (place or -1, first, last), [B, n], [B, n] -> [B*n, 5]; -1 in the first column: no question."""
    sequence = torch.arange(meta.shape[0], device=meta.device)[:, None].expand(meta.shape[:2])
    sequence = torch.where(meta[..., 0] >= 0, sequence, -1)
    return torch.stack([sequence, meta[..., 1], meta[..., 2], available, alike], -1).flatten(0, 1)


def in_own_sequence(evidence: torch.Tensor, count: int, per_sequence: int):
    """Of `count` chunks, [N, count] each: which are the evidence, and which can be no negatives for what lies in the
    question's own sequence: not there yet, or told apart by age alone."""
    sequence, first, last, available, alike = (column[:, None] for column in evidence.unbind(-1))
    offset = torch.arange(count, device=evidence.device) - sequence.clamp(min=0) * per_sequence
    own = (offset >= 0) & (offset < per_sequence)
    positive = own & (offset >= first) & (offset <= last)
    alike = (alike >> offset.clamp(min=0, max=63)) & 1 == 1
    return positive, own & ((offset >= available) | alike) & ~positive


def contrast(queries: torch.Tensor, evidence: torch.Tensor, chunks: Chunks,
             raw: bool = False, absolute: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the evidence among all chunks: [N, r], [N, 5] -> mean loss, share ranked first.

    A chunk that says the same as the evidence is no negative. Without this, what is learned towards the end of a run,
    when landmarks stand still, is to tell copies of one passage apart.

    Cosines are compared, times CONTRAST_SCALE: the scores themselves grow so sharp, to read one chunk only, that nothing
    but the hardest negatives would count. `raw` compares the scores, and `absolute` adds what stick-breaking needs, where
    each chunk takes the sigmoid of its score: the evidence above 0, and all others below.
    """
    sequence, first, last = evidence.unbind(-1)[:3]
    valid = sequence >= 0
    if raw:
        scores = (queries @ chunks.landmarks.mT.to(queries.dtype)).float() / math.sqrt(queries.shape[-1])
    else:
        directions = F.normalize(chunks.landmarks.float(), dim=-1).to(queries.dtype)
        scores = (F.normalize(queries.float(), dim=-1).to(queries.dtype) @ directions.mT).float() * CONTRAST_SCALE
    positive, ignored = in_own_sequence(evidence, chunks.landmarks.shape[0], chunks.per_sequence)
    base = sequence.clamp(min=0) * chunks.per_sequence
    copies = torch.maximum(*(chunks.words[base + place.clamp(min=0)] @ chunks.words.mT for place in (first, last)))
    ignored = ignored | ((copies > SAME_WORDS) & ~positive)
    scores = scores.masked_fill(ignored, HIDDEN)
    right = scores.masked_fill(~positive, HIDDEN)
    loss = torch.logsumexp(scores, -1) - torch.logsumexp(right, -1)
    if absolute:
        others = torch.logsumexp(scores.masked_fill(positive, HIDDEN), -1)
        loss = loss + ABSOLUTE_SHARE * (F.softplus(others) + F.softplus(-torch.logsumexp(right, -1)))
    count = valid.sum().clamp(min=1)
    found = (right.amax(-1) >= scores.amax(-1)) & valid
    return (loss * valid).sum() / count, found.sum() / count


def towards_words(embeddings: torch.Tensor, words: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """1 - cosine to the BM25 vectors, averaged: [..., r], [..., r], [...] bool."""
    distance = 1 - F.cosine_similarity(embeddings.float(), words.float(), dim=-1)
    return distance.mean() if valid is None else (distance * valid).sum() / valid.sum().clamp(min=1)


LOG_WEIGHT_MIN = -1e3  # what is not selected is below


def weight_of_evidence(logs: torch.Tensor, copies: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """At each token of an answer, the chunk that it is copied from has all the weight with which chunks are read.

    This is what teaches `pos_decay`, or the scores that stick-breaking needs, and landmarks of chunks that only age tells
    apart to score alike.
    logs [B, n, C] of weights, copies [B, A, 2] (place in n or -1, place of the source) -> mean of -log, mean weight
    """
    at, source = copies.clamp(min=0).unbind(-1)
    valid = copies[..., 0] >= 0
    of_evidence = logs.flatten(1).gather(1, at * logs.shape[-1] + source // chunk)
    read = valid & (of_evidence > LOG_WEIGHT_MIN)
    count = valid.sum().clamp(min=1)
    return -torch.where(read, of_evidence, 0).sum() / count, (of_evidence.exp() * valid).sum() / count


@dataclass
class LateQuestions:
    """Questions for late interaction."""
    queries: torch.Tensor   # [N, T, heads, d] of each question token, by the first HSA layer
    spoken: torch.Tensor    # [N, T] bool: tokens of the question itself
    terms: torch.Tensor     # [N, T] its words, as `Lexical.terms` gives them
    words: torch.Tensor     # [N, r] BM25 vector
    evidence: torch.Tensor  # [N, 5]


LATE_CANDIDATES = 32
LATE_SCALE = 8.0    # of scores before the softmax over candidates
BM25_SCALE = 0.3    # of BM25 beside them: what is learned is what it lacks


def late_scores(queries: torch.Tensor, spoken: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """For each question token the best key of a chunk over all heads, averaged over the question's tokens.

    queries [N, T, heads, d], spoken [N, T], keys [N, K, S, d] of K candidates -> [N, K]
    """
    logits = torch.einsum("nthd,nksd->nkths", queries, keys) / math.sqrt(queries.shape[-1])
    best = logits.flatten(3).amax(-1).float()  # [N, K, T]
    return (best * spoken[:, None]).sum(-1) / spoken.sum(-1).clamp(min=1)[:, None]


def late_interaction(questions: LateQuestions, keys: torch.Tensor, chunks: Chunks, terms: torch.Tensor,
                     bm25) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the evidence among the chunks of the batch that share most words with the question, as BM25 finds
    its candidates, by late interaction and BM25 together. keys [B*C, S, d], terms [B*C, S], bm25(terms [N, T], terms
    [N, K, S]) -> mean loss, share ranked first."""
    sequence, first = questions.evidence.unbind(-1)[:2]
    valid = sequence >= 0
    batch = chunks.sequences * chunks.per_sequence
    right = sequence.clamp(min=0) * chunks.per_sequence + first.clamp(min=0)
    words = chunks.words[:batch]
    positive, ignored = in_own_sequence(questions.evidence, batch, chunks.per_sequence)
    hidden = positive | ignored | (words[right] @ words.mT > SAME_WORDS)
    ranked = (questions.words.to(words.dtype) @ words.mT).float().masked_fill(hidden, HIDDEN)
    others = ranked.topk(min(LATE_CANDIDATES - 1, batch - 1), dim=-1).indices
    candidates = torch.cat([right[:, None], others], 1)  # [N, K], the evidence first
    scores = late_scores(questions.queries, questions.spoken, keys[candidates].to(questions.queries.dtype)) * LATE_SCALE
    scores = scores + BM25_SCALE * bm25(questions.terms, terms[candidates])
    loss = torch.logsumexp(scores, -1) - scores[:, 0]
    count = valid.sum().clamp(min=1)
    return (loss * valid).sum() / count, ((scores.argmax(-1) == 0) & valid).sum() / count
