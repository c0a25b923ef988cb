#!/usr/bin/env python3
"""What a run can do: tasks by length, natural questions, bits a byte of held-out prose.

Usage: evaluate.py --prepared PREPARED --run RUN [--lengths 4096,65536,1048576] [--asks 50] [--kinds ...] [--seed 7]

RUN holds config.json and model.safetensors. A memory is read as the daemon reads it: whole chunks from a carried state;
a question from a zero state; an answer from a zero state, the last 192 tokens, newline, question and <|recall|>, greedy,
over all complete chunks. Facts, keys and prose are held out: other seeds, other novels.
"""
import argparse
import json
import math
import random
import re
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from export import read_weights
from kinds import KINDS, TasksAbout
from lexical import SPECIAL_PIECES
from losses import late_scores
from model import Config, build
from prepared import Prepared

CHUNK, TAIL, SEGMENT = 64, 192, 8192
ANSWER_MAX = 40


class Reader:
    """The model, and what evaluation needs of it."""

    def __init__(self, run: Path, device: str):
        self.device = torch.device(device)
        self.config = Config.from_reference(json.loads((run / "config.json").read_text()))
        self.model = build(self.config, 0).to(self.device).eval()
        weights = {name: tensor.float() for name, tensor in read_weights(run).items()}
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        if missing or unexpected:
            print(f"weights missing: {missing}, unknown: {unexpected}")

    def autocast(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def tokens(self, ids) -> torch.Tensor:
        return torch.as_tensor(np.asarray(ids, np.int64), device=self.device)


class Memory:
    """Landmarks [C, r] of each group, keys and values [C, S, d] of the complete chunks, and the state at the end."""

    @torch.no_grad()
    def __init__(self, reader: Reader, ids: np.ndarray):
        self.reader, model, config = reader, reader.model, reader.config
        count = len(ids) // CHUNK
        self.ids = ids[:count * CHUNK]
        width, groups = config.attention_head_dim, range(config.num_upper_groups)
        self.landmarks = [torch.empty(count, config.retrieval_dim, device=reader.device, dtype=torch.bfloat16) for _ in groups]
        self.keys = torch.empty(count, CHUNK, width, device=reader.device, dtype=torch.bfloat16)
        self.values = torch.empty_like(self.keys)
        self.state = model.zero_state(1, reader.device)[:config.num_lower_layers]
        for begin in range(0, len(self.ids), SEGMENT):
            segment = reader.tokens(self.ids[begin:begin + SEGMENT])[None]
            with reader.autocast():
                lower, self.state = model.lower(segment, self.state)
                chunks = model.encode(lower)
                marks = [model.landmarks(chunks, group) for group in groups]
            here = slice(begin // CHUNK, begin // CHUNK + segment.shape[1] // CHUNK)
            for group in groups:
                self.landmarks[group][here] = marks[group][0]
            self.keys[here] = chunks.keys.view(-1, CHUNK, width)
            self.values[here] = chunks.values.view(-1, CHUNK, width)

    def top(self, queries: torch.Tensor, k: int, group: int = 0, at_once: int = 1 << 16) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, r] -> scores and chunks [n, k], best first."""
        landmarks, best, chunks = self.landmarks[group], None, None
        for first in range(0, len(landmarks), at_once):
            part = landmarks[first:first + at_once]
            found = (queries.to(torch.bfloat16) @ part.mT).float().topk(min(k, len(part)), dim=-1)
            best = found.values if best is None else torch.cat([best, found.values], 1)
            chunks = found.indices if chunks is None else torch.cat([chunks, found.indices + first], 1)
            kept = best.topk(min(k, best.shape[1]), dim=-1)
            best, chunks = kept.values, chunks.gather(1, kept.indices)
        return best / math.sqrt(queries.shape[-1]), chunks

    @torch.no_grad()
    def ask(self, questions: list[list[int]], prepared: Prepared, within: bool = False):
        """Of `newline, question, <|recall|>` from a zero state, or from the state at the memory's end: embeddings [n, r], the
        queries of the first HSA layer [n, T, H, d], and which tokens are the question's own [n, T]."""
        reader, model = self.reader, self.reader.model
        rows = [[prepared.newline, *question, prepared.recall] for question in questions]
        tokens, last = padded(rows, reader)
        state = model.zero_state(len(rows), reader.device)
        if within:
            state = [tuple(t.expand(len(rows), *t.shape[1:]) for t in of_block) for of_block in self.state]
        with reader.autocast():
            hidden, _ = model.lower(tokens, state)
            embeddings = model.retrieval_queries(hidden[torch.arange(len(rows), device=reader.device), last])
            queries = model.backbone.layers[model.first_retrieval + 1].queries(hidden)
        spoken = (tokens >= SPECIAL_PIECES) & (torch.arange(tokens.shape[1], device=reader.device) < last[:, None])
        return embeddings, queries, spoken

    @torch.no_grad()
    def answer(self, questions: list[list[int]], prepared: Prepared) -> list[list[int]]:
        """Greedy answers, all questions side by side."""
        prompts = [[*self.ids[-TAIL:], prepared.newline, *question, prepared.recall] for question in questions]
        answers: list[list[int]] = [[] for _ in prompts]
        going = list(range(len(prompts)))
        for _ in range(ANSWER_MAX):
            tokens, last = padded([[*prompts[i], *answers[i]] for i in going], self.reader)
            for i, token in zip(going, self._next(tokens, last).tolist()):
                answers[i].append(token)
            going = [i for i in going if answers[i][-1] != prepared.newline]
            if not going:
                break
        return [answer[:-1] if answer[-1] == prepared.newline else answer for answer in answers]

    def _next(self, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        with self.reader.autocast():
            model = self.reader.model
            hidden, _ = model.lower(tokens, model.zero_state(len(tokens), tokens.device))
            hidden = self.upper(hidden)
            logits = model.logits(hidden[torch.arange(len(tokens), device=tokens.device), last])
        return logits.float().argmax(-1)

    def upper(self, hidden: torch.Tensor) -> torch.Tensor:
        """The upper layers from a zero state, every token reading its best of all chunks: [n, T, d] -> [n, T, d]."""
        model, config = self.reader.model, self.reader.config
        state = model.zero_state(len(hidden), hidden.device)[config.num_lower_layers:]
        layers = iter(model.backbone.layers[model.first_retrieval:])
        for group in range(config.num_upper_groups):
            retrieval = next(layers)
            scores, chunks = self.top(retrieval.queries(hidden).flatten(0, 1), config.chunk_topk, group)
            weights = chunk_weights(retrieval, scores, chunks)
            for _ in range(config.stages_of_group):
                hidden = self.read(next(layers), hidden, weights, chunks)
                for _ in range(config.num_mamba_per_gca):
                    hidden, _ = next(layers)(hidden, state.pop(0))
        return model.backbone.norm_f(hidden)

    def read(self, layer, hidden: torch.Tensor, weights: torch.Tensor, chunks: torch.Tensor, at_once: int = 4096):
        """One HSA layer; weights and chunks [n*T, k]."""
        queries, out = layer.queries(hidden).flatten(0, 1), []  # [n*T, H, d]
        for first in range(0, len(queries), at_once):
            here = slice(first, first + at_once)
            keys, values = self.keys[chunks[here]], self.values[chunks[here]]  # [m, k, S, d]
            logits = torch.einsum("mhd,mksd->mhks", queries[here].to(keys.dtype), keys).float() / math.sqrt(keys.shape[-1])
            shares = torch.softmax(logits, -1) * weights[here, None, :, None]
            out.append(torch.einsum("mhks,mksd->mhd", shares.to(values.dtype), values))
        attended = hidden + layer.o_proj(torch.cat(out).flatten(1).view(*hidden.shape[:2], -1).to(hidden.dtype))
        stays = attended if layer.reset_residual else hidden
        return stays + layer._mlp(layer._mlp_norm(attended))


def padded(rows: list[list[int]], reader: Reader) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to whole chunks, zeros behind, and where each one ends: [n, T], [n]."""
    length = -(-max(map(len, rows)) // CHUNK) * CHUNK
    ids = np.zeros((len(rows), length), np.int64)
    for row, tokens in zip(ids, rows):
        row[:len(tokens)] = tokens
    return reader.tokens(ids), torch.tensor([len(row) - 1 for row in rows], device=reader.device)


def chunk_weights(retrieval, scores: torch.Tensor, chunks: torch.Tensor) -> torch.Tensor:
    """[n, k] of the selected, any order."""
    newer = (chunks[:, None, :] > chunks[:, :, None]).sum(-1)  # how many of the selected are newer
    if retrieval.decays:
        scores = scores + newer * retrieval.pos_decay
    if retrieval.softmax:
        return torch.softmax(scores, -1)
    passed = (F.softplus(scores)[:, None, :] * (chunks[:, None, :] >= chunks[:, :, None])).sum(-1)
    return torch.exp(scores - passed)


# ---- Tasks by length

def haystack(prepared: Prepared, length: int, seed: int) -> np.ndarray:
    """Held-out novels first; what is longer goes on with the others, and then from the beginning."""
    text = prepared["held_prose"]
    if length > len(text):
        text = np.concatenate([text, prepared["prose"]])
    start = random.Random(seed).randrange(len(text))
    return np.resize(np.roll(text, -start), length).astype(np.int64)


def hide(prepared: Prepared, kind: str, length: int, asks: int, seed: int):
    """A memory of one kind of task: its tokens, and (question, answer, evidence chunks) of each ask."""
    task_name, asked_kind, relations = KINDS[kind]
    maker = TasksAbout(prepared, random.Random(f"evaluate {kind} {seed}"), relations)
    rng = random.Random(f"places {kind} {seed} {length}")
    pieces, wanted, used, kept = [], [], set(), 0
    room = length // 3
    while kept < asks:
        task = maker.make(task_name)
        chosen = [ask for ask in task.asks if ask.kind == asked_kind]
        if not chosen or not used.isdisjoint(task.keys) or "pass key" in task.keys:
            continue
        tokens = task.tokens + 2 * len(task.statements)
        if tokens > room:
            break
        room -= tokens
        used.update(task.keys)
        chosen = chosen[:asks - kept]
        pieces.append(task)
        wanted.append(chosen)
        kept += len(chosen)
    # Statements of a task lie in order, anywhere; each is a line of its own.
    text = haystack(prepared, length, seed)
    places = []
    for index, task in enumerate(pieces):
        at = sorted(rng.random() for _ in task.statements)
        places += [(where, index, statement) for statement, where in enumerate(at)]
    places.sort()
    told = sum(len(pieces[index].statements[statement].tokens) + 2 for _, index, statement in places)
    prose, out, size, begin = text[:length - told], [], 0, {}
    done = 0
    for where, index, statement in places:
        upto = int(where * (len(prose) - 64))
        tokens = pieces[index].statements[statement].tokens
        out += [prose[done:upto], [prepared.newline]]
        size += upto - done + 1
        begin[index, statement] = size
        out += [tokens, [prepared.newline]]
        size += len(tokens) + 1
        done = upto
    out.append(prose[done:])
    ids = np.concatenate([np.asarray(part, np.int64) for part in out])
    found = []
    for index, task_asks in enumerate(wanted):
        for ask in task_asks:
            statement, first, last = ask.evidence
            base = begin[index, statement]
            found.append((ask.questions[0], ask.answer, ((base + first) // CHUNK, (base + last) // CHUNK)))
    return ids, found


def tasks_by_length(reader: Reader, prepared: Prepared, kinds, lengths, asks: int, seed: int) -> dict:
    results = {}
    for kind in kinds:
        for length in lengths:
            started = time.time()
            ids, found = hide(prepared, kind, length, asks, seed)
            memory = Memory(reader, ids)
            first = {}
            for within in (False, True):
                embeddings, _, _ = memory.ask([question for question, _, _ in found], prepared, within)
                best = memory.top(embeddings, 1)[1][:, 0].tolist()
                first[within] = np.mean([low <= chunk <= high for chunk, (_, _, (low, high)) in zip(best, found)])
            exact, wrong = 0, []
            for i in range(0, len(found), 32):
                part = found[i:i + 32]
                for (question, answer, _), got in zip(part, memory.answer([question for question, _, _ in part], prepared)):
                    said, right = prepared.model.decode(got).strip(), prepared.model.decode(answer).strip()
                    exact += said == right
                    if said != right:
                        wrong.append((prepared.model.decode(question), right, said))
            results[kind, length] = exact / len(found)
            print(f"{kind:12} {length:9} tokens: {exact:3} of {len(found)} exact ({exact / len(found):.3f}), right chunk first "
                  f"{first[False]:.3f} alone {first[True]:.3f} within, {time.time() - started:.1f} s"
                  + (f"; e.g. {wrong[0]}" if wrong else ""), flush=True)
    return results


# ---- Natural questions

def bm25(chunks: list[str], questions: list[str], k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    def words(text):
        return re.findall(r"[a-z0-9]+", text.lower())

    documents = [Counter(words(chunk)) for chunk in chunks]
    lengths = np.array([sum(document.values()) for document in documents])
    postings = defaultdict(list)
    for i, document in enumerate(documents):
        for word, count in document.items():
            postings[word].append((i, count))
    scores = np.zeros((len(questions), len(chunks)))
    norm = k1 * (1 - b + b * lengths / lengths.mean())
    for row, question in zip(scores, questions):
        for word in set(words(question)):
            if word in postings:
                idf = math.log(1 + (len(chunks) - len(postings[word]) + 0.5) / (len(postings[word]) + 0.5))
                for i, count in postings[word]:
                    row[i] += idf * count * (k1 + 1) / (count + norm[i])
    return scores


def found_in(scores: np.ndarray, gold: list[set[int]], counts=(1, 5, 10, 20)) -> str:
    order = np.argsort(-scores, 1, kind="stable")
    return " ".join(f"@{k} {np.mean([bool(set(order[i, :k]) & right) for i, right in enumerate(gold)]):.3f}" for k in counts)


def z_scores(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.mean(1, keepdims=True)) / (scores.std(1, keepdims=True) + 1e-9)


@torch.no_grad()
def natural_questions(reader: Reader, prepared: Prepared, contexts: int = 600, asks: int = 800) -> None:
    """The held-out fourth of SQuAD's titles, 600 passages one after another, as design's reference figures have it."""
    rng = random.Random(1)
    chosen = list(range(len(prepared["dv_title"])))
    rng.shuffle(chosen)
    chosen = set(chosen[:contexts])
    ids, start = [], {}
    for context in sorted(chosen):
        start[context] = len(ids)
        ids += [*prepared.row("dv_ctx", context), prepared.newline]
    questions = [i for i, context in enumerate(prepared["dv_qc"]) if int(context) in chosen]
    rng.shuffle(questions)
    count = len(ids) // CHUNK
    gold, asked = [], []
    for i in questions[:asks]:
        place = start[int(prepared["dv_qc"][i])] + int(prepared["dv_pos"][i])
        evidence = {place // CHUNK, (place + max(len(prepared.row("dv_a", i)) - 1, 0)) // CHUNK}
        if max(evidence) < count:
            gold.append(evidence)
            asked.append(prepared.row("dv_q", i).tolist())
    memory = Memory(reader, np.array(ids, np.int64))
    chunks = [prepared.model.decode([int(t) for t in memory.ids[i * CHUNK:(i + 1) * CHUNK]]) for i in range(count)]
    texts = [prepared.model.decode(question) for question in asked]
    around = [" ".join(chunks[max(0, i - 1):i + 2]) for i in range(count)]
    lexical = bm25(chunks, texts)
    context = z_scores(lexical) + 0.6 * z_scores(bm25(around, texts))

    landmark, late = [], np.full((len(asked), count), -1e9)
    for i in range(0, len(asked), 100):
        embeddings, queries, spoken = memory.ask(asked[i:i + 100], prepared)
        landmark.append((embeddings.to(torch.bfloat16) @ memory.landmarks[0].mT).float().cpu().numpy())
        candidates = np.argsort(-context[i:i + 100], 1, kind="stable")[:, :50]
        for j in range(len(candidates)):
            keys = memory.keys[torch.as_tensor(candidates[j].copy(), device=reader.device)].float()
            scores = late_scores(queries[j:j + 1].float(), spoken[j:j + 1], keys[None])
            late[i + j, candidates[j]] = scores[0].cpu().numpy()
    landmark = np.concatenate(landmark)
    print(f"natural questions: {len(asked)} over {count} chunks\n  landmarks alone      {found_in(landmark, gold)}\n"
          f"  BM25                 {found_in(lexical, gold)}\n  BM25 with context    {found_in(context, gold)}\n"
          f"  its 50, late alone   {found_in(late, gold)}")
    first = np.argsort(-context, 1, kind="stable")[:, :50]
    of_first = np.take_along_axis(late, first, 1)
    centred = np.full_like(late, -1e9)
    np.put_along_axis(centred, first, z_scores(of_first), 1)
    for weight in (0.25, 0.5, 1.0, 1.5, 2.0):
        print(f"  with late x {weight:<8} {found_in(np.where(centred > -1e8, context + weight * centred, -1e9), gold)}")
    print(f"  with landmarks x 0.3 {found_in(context + 0.3 * z_scores(landmark), gold)}", flush=True)


# ---- Prose

@torch.no_grad()
def bits_per_byte(reader: Reader, prepared: Prepared, lengths, tail: int = 4096) -> None:
    """Of the last 4 Ki tokens of held-out prose when the memory holds `length` of them. Every token reads the chunks before
    those last tokens, from the lower state that they left; the upper layers begin anew, as when generating."""
    model, text = reader.model, prepared["held_prose"].astype(np.int64)
    last = text[-tail:]
    for length in lengths:
        before = text[len(text) - max(length, 2 * tail):-tail]
        if len(before) + tail > len(text):
            break
        memory = Memory(reader, before)
        with reader.autocast():
            hidden, _ = model.lower(reader.tokens(last)[None], memory.state)
            logits = model.logits(memory.upper(hidden)[:, :-1]).float()
        bits = F.cross_entropy(logits.flatten(0, 1), reader.tokens(last[1:]), reduction="sum").item() / math.log(2)
        size = len(prepared.model.decode(last[1:].tolist()).encode())
        print(f"prose after {len(before)} tokens: {bits / size:.3f} bits a byte", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--lengths", default="4096,65536,1048576")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--asks", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-questions", action="store_true", help="leave the natural questions out")
    parser.add_argument("--no-prose", action="store_true", help="leave the bits a byte out")
    args = parser.parse_args()
    prepared, reader = Prepared(args.prepared), Reader(args.run, args.device)
    lengths = [int(length) for length in args.lengths.split(",") if length]
    if not args.no_questions:
        natural_questions(reader, prepared)
    if args.kinds:
        tasks_by_length(reader, prepared, args.kinds.split(","), lengths, args.asks, args.seed)
    if not args.no_prose:
        bits_per_byte(reader, prepared, lengths)


if __name__ == "__main__":
    main()
