"""What retrieval and reading are trained on, beside the next token.

B sequences, C chunks a sequence, r the width of landmarks, N questions, M chunks remembered from earlier steps. A row of
`evidence` says where the answer to a question lies: sequence, first chunk, last chunk, and the number of chunks that it
may see.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Two chunks that say the same (cosine of their BM25 vectors): copies of one passage, shifted by up to half a chunk.
SAME_WORDS = 0.4
HIDDEN = -1e30


@dataclass
class Chunks:
    """Chunks that questions are compared with, those of the batch first."""
    landmarks: torch.Tensor  # [B*C (+ M), r]
    words: torch.Tensor      # [B*C (+ M), r] BM25 vectors of unit length
    per_sequence: int        # C
    sequences: int           # B


def evidence_of(meta: torch.Tensor, available: torch.Tensor) -> torch.Tensor:
    """[B, n, >=3] (place or -1, first, last) and [B, n] -> [B*n, 4]; -1 in the first column: no question."""
    sequence = torch.arange(meta.shape[0], device=meta.device)[:, None].expand(meta.shape[:2])
    sequence = torch.where(meta[..., 0] >= 0, sequence, -1)
    return torch.stack([sequence, meta[..., 1], meta[..., 2], available], -1).flatten(0, 1)


def contrast(queries: torch.Tensor, evidence: torch.Tensor, chunks: Chunks) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the evidence among all chunks: [N, r], [N, 4] -> mean loss, share ranked first.

    A chunk that says the same as the evidence is no negative. Without this, what is learned towards the end of a run,
    when landmarks stand still, is to tell copies of one passage apart.
    """
    sequence, first, last, available = evidence.unbind(-1)
    valid = sequence >= 0
    scores = (queries @ chunks.landmarks.mT.to(queries.dtype)).float() / math.sqrt(queries.shape[-1])
    index = torch.arange(chunks.landmarks.shape[0], device=queries.device)[None]
    offset = index - (sequence.clamp(min=0) * chunks.per_sequence)[:, None]  # in the question's own sequence
    own = (offset >= 0) & (offset < chunks.per_sequence)
    positive = own & (offset >= first[:, None]) & (offset <= last[:, None])
    base = sequence.clamp(min=0) * chunks.per_sequence
    alike = torch.maximum(*(chunks.words[base + place.clamp(min=0)] @ chunks.words.mT for place in (first, last)))
    ignored = (own & (offset >= available[:, None])) | ((alike > SAME_WORDS) & ~positive)
    scores = scores.masked_fill(ignored, HIDDEN)
    right = scores.masked_fill(~positive, HIDDEN)
    loss = torch.logsumexp(scores, -1) - torch.logsumexp(right, -1)
    count = valid.sum().clamp(min=1)
    found = (right.amax(-1) >= scores.amax(-1)) & valid
    return (loss * valid).sum() / count, found.sum() / count


def towards_words(embeddings: torch.Tensor, words: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """1 - cosine to the BM25 vectors, averaged: [..., r], [..., r], [...] bool."""
    distance = 1 - F.cosine_similarity(embeddings.float(), words.float(), dim=-1)
    return distance.mean() if valid is None else (distance * valid).sum() / valid.sum().clamp(min=1)


@dataclass
class LateQuestions:
    """Questions for late interaction."""
    queries: torch.Tensor   # [N, T, heads, d] of each question token, by the first HSA layer
    spoken: torch.Tensor    # [N, T] bool: tokens of the question itself
    words: torch.Tensor     # [N, r] BM25 vector
    evidence: torch.Tensor  # [N, 4]


LATE_CANDIDATES = 24
LATE_SCALE = 8.0  # of scores before the softmax over candidates


def late_scores(queries: torch.Tensor, spoken: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """For each question token the best key of a chunk over all heads, averaged over the question's tokens.

    queries [N, T, heads, d], spoken [N, T], keys [N, K, S, d] of K candidates -> [N, K]
    """
    logits = torch.einsum("nthd,nksd->nkths", queries, keys) / math.sqrt(queries.shape[-1])
    best = logits.flatten(3).amax(-1).float()  # [N, K, T]
    return (best * spoken[:, None]).sum(-1) / spoken.sum(-1).clamp(min=1)[:, None]


def late_interaction(questions: LateQuestions, keys: torch.Tensor, chunks: Chunks) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the evidence among the chunks of the batch that share most words with the question, as BM25 finds
    its candidates. keys [B*C, S, d] -> mean loss, share ranked first."""
    sequence, first, _, available = questions.evidence.unbind(-1)
    valid = sequence >= 0
    batch = chunks.sequences * chunks.per_sequence
    base = sequence.clamp(min=0) * chunks.per_sequence
    right = base + first.clamp(min=0)
    words = chunks.words[:batch]
    index = torch.arange(batch, device=words.device)[None]
    offset = index - base[:, None]
    hidden = (offset >= first[:, None]) & (offset <= questions.evidence[:, 2:3])  # all of the evidence
    hidden |= (offset >= available[:, None]) & (offset < chunks.per_sequence)
    hidden |= words[right] @ words.mT > SAME_WORDS
    ranked = (questions.words.to(words.dtype) @ words.mT).float().masked_fill(hidden, HIDDEN)
    others = ranked.topk(LATE_CANDIDATES - 1, dim=-1).indices
    candidates = torch.cat([right[:, None], others], 1)  # [N, K], the evidence first
    scores = late_scores(questions.queries, questions.spoken, keys[candidates].to(questions.queries.dtype)) * LATE_SCALE
    loss = torch.logsumexp(scores, -1) - scores[:, 0]
    count = valid.sum().clamp(min=1)
    return (loss * valid).sum() / count, ((scores.argmax(-1) == 0) & valid).sum() / count
