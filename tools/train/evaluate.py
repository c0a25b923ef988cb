#!/usr/bin/env python3
"""What a run can do: tasks by length, natural questions, bits a byte of held-out prose.

Usage: evaluate.py --prepared PREPARED --run RUN [--lengths 4096,65536,1048576] [--asks 50] [--kinds ...] [--seed 7]
                   [--save DIRECTORY/figures.json]

RUN holds config.json and model.safetensors. A memory is read as the daemon reads it: whole chunks from a carried state;
a question from a zero state; an answer from a zero state, the last 192 tokens, newline, question and <|recall|>, greedy,
over all complete chunks. Facts, keys and prose are held out: other seeds, other novels. A memory of 64 Mi tokens takes
17 GB of the GPU.
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

import figures
from export import read_weights
from kinds import KINDS, TasksAbout
from lexical import SPECIAL_PIECES
from losses import late_scores
from model import Config, build
from prepared import Prepared

CHUNK, TAIL = 64, 192
SEGMENT = {"cuda": 32768, "cpu": 8192}  # tokens that are read at once
ANSWER_MAX = 60


class Reader:
    """The model, and what evaluation needs of it."""

    def __init__(self, run: Path, device: str):
        self.device = torch.device(device)
        self.kept = torch.bfloat16 if self.device.type == "cuda" else torch.float32  # what memories hold
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
        count, segment = len(ids) // CHUNK, SEGMENT[reader.device.type]
        self.ids = ids[:count * CHUNK]
        width, groups = config.attention_head_dim, range(config.num_upper_groups)
        place = {"device": reader.device, "dtype": reader.kept}
        self.landmarks = [torch.empty(count, config.retrieval_dim, **place) for _ in groups]
        self.keys, self.values = (torch.empty(count, CHUNK, width, **place) for _ in range(2))
        self.state = self._zero_state()[:config.num_lower_layers]
        with reader.autocast():
            for begin in range(0, len(self.ids), segment):
                lower, self.state = model.lower(reader.tokens(self.ids[begin:begin + segment])[None], self.state)
                chunks = model.encode(lower)
                here = slice(begin // CHUNK, begin // CHUNK + lower.shape[1] // CHUNK)
                for group in groups:
                    self.landmarks[group][here] = model.landmarks(chunks, group)[0]
                self.keys[here] = chunks.keys.view(-1, CHUNK, width)
                self.values[here] = chunks.values.view(-1, CHUNK, width)

    def _zero_state(self) -> list:
        return self.reader.model.zero_state(1, self.reader.device, windows=True)

    def top(self, queries: torch.Tensor, k: int, group: int = 0, at_once: int = 1 << 16) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, r] -> scores and chunks [n, k], best first."""
        landmarks, best, chunks = self.landmarks[group], None, None
        for first in range(0, len(landmarks), at_once):
            part = landmarks[first:first + at_once]
            found = (queries.to(part.dtype) @ part.mT).float().topk(min(k, len(part)), dim=-1)
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
        state = for_rows(self.state if within else self._zero_state(), len(rows))
        with reader.autocast():
            hidden, _ = model.lower(tokens, state)
            embeddings = model.retrieval_queries(hidden[torch.arange(len(rows), device=reader.device), last])
            queries = model.backbone.layers[model.first_retrieval + 1].queries(hidden)
        spoken = (tokens >= SPECIAL_PIECES) & (torch.arange(tokens.shape[1], device=reader.device) < last[:, None])
        return embeddings, queries, spoken

    @torch.no_grad()
    def answer(self, questions: list[list[int]], prepared: Prepared) -> list[list[int]]:
        """Greedy answers, all questions side by side. The memory's end, the same for all, is read once; then every row goes
        on a token at a time, through its question and then its own answer."""
        reader = self.reader
        rows = [[prepared.newline, *question, prepared.recall] for question in questions]
        begins, place = [len(row) for row in rows], 0
        with reader.autocast():
            _, state = self._go_on(reader.tokens(self.ids[-TAIL:])[None], self._zero_state())
            state = for_rows(state, len(rows))
            while place < max(map(len, rows)):
                here = [[row[place] if place < len(row) else prepared.newline] for row in rows]
                following, state = self._go_on(reader.tokens(here), state)
                place += 1
                for row, begin, token in zip(rows, begins, following.tolist()):
                    if len(row) == place < begin + ANSWER_MAX and row[-1] != prepared.newline:
                        row.append(token)
        answers = [row[begin:] for row, begin in zip(rows, begins)]
        return [answer[:-1] if answer[-1] == prepared.newline else answer for answer in answers]

    def _go_on(self, tokens: torch.Tensor, state: list) -> tuple[torch.Tensor, list]:
        """[n, T] after a state of all blocks -> likeliest next tokens [n], state."""
        model, lower_blocks = self.reader.model, self.reader.config.num_lower_layers
        hidden, lower_state = model.lower(tokens, state[:lower_blocks])
        hidden, upper_state = self.upper(hidden, state[lower_blocks:])
        return model.logits(hidden[:, -1]).float().argmax(-1), lower_state + upper_state

    def upper(self, hidden: torch.Tensor, state: list) -> tuple[torch.Tensor, list]:
        """The upper layers, every token reading its best of all chunks: [n, T, d] after a state of their blocks ->
        [n, T, d] after the final norm, state."""
        model, config = self.reader.model, self.reader.config
        layers, after = iter(model.backbone.layers[model.first_retrieval:]), []
        for group in range(config.num_upper_groups):
            retrieval = next(layers)
            scores, chunks = self.top(retrieval.queries(hidden).flatten(0, 1), config.chunk_topk, group)
            weights = chunk_weights(retrieval, scores, chunks)
            for _ in range(config.stages_of_group):
                hidden = self.read(next(layers), hidden, weights, chunks)
                for _ in range(config.num_mamba_per_gca):
                    hidden, of_block = next(layers)(hidden, state[len(after)])
                    after.append(of_block)
        return model.backbone.norm_f(hidden), after

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


def for_rows(state: list, count: int) -> list:
    """A state of one sequence for `count` of them."""
    return [tuple(t.expand(count, *t.shape[1:]) for t in of_block) for of_block in state]


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
    if retrieval.stick:
        slope, margin = retrieval.stick
        scores = slope * (scores - scores.amax(-1, keepdim=True) + margin)
    passed = (F.softplus(scores)[:, None, :] * (chunks[:, None, :] >= chunks[:, :, None])).sum(-1)
    weights = torch.exp(scores - passed)
    return weights / weights.sum(-1, keepdim=True) if retrieval.stick else weights


# ---- Tasks by length

def haystack(prepared: Prepared, length: int, seed: int) -> np.ndarray:
    """Held-out novels first; what is longer goes on with the others, and then from the beginning. Two bytes a token."""
    text = prepared["held_prose"]
    if length > len(text):
        text = np.concatenate([text, prepared["prose"]])
    start = random.Random(seed).randrange(len(text))
    return np.resize(np.roll(text, -start), length)


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
    ids = np.concatenate([np.asarray(part, text.dtype) for part in out])
    found = []
    for index, task_asks in enumerate(wanted):
        for ask in task_asks:
            statement, first, last = ask.evidence
            base = begin[index, statement]
            found.append((ask.questions[0], ask.answer, ((base + first) // CHUNK, (base + last) // CHUNK)))
    return ids, found


@torch.no_grad()
def tasks_by_length(reader: Reader, prepared: Prepared, kinds, lengths, asks: int, seed: int, out: Path | None) -> None:
    for kind in kinds:
        for length in lengths:
            started = time.time()
            ids, found = hide(prepared, kind, length, asks, seed)
            if not found:
                print(f"{kind:12} {length:9} tokens: too short to ask anything", flush=True)
                continue
            questions, answers, evidence = zip(*found)
            memory = Memory(reader, ids)
            first = {}
            for within in (False, True):
                embeddings, _, _ = memory.ask(questions, prepared, within)
                best = memory.top(embeddings, 1)[1][:, 0].tolist()
                first[within] = float(np.mean([low <= chunk <= high for chunk, (low, high) in zip(best, evidence)]))
            wrong = []
            for question, answer, got in zip(questions, answers, memory.answer(questions, prepared)):
                said, right = prepared.model.decode(got).strip(), prepared.model.decode(answer).strip()
                if said != right:
                    wrong.append((prepared.model.decode(question), right, said))
            exact = len(found) - len(wrong)
            print(f"{kind:12} {length:9} tokens: {exact:3} of {len(found)} exact ({exact / len(found):.3f}), right chunk first "
                  f"{first[False]:.3f} alone {first[True]:.3f} within, {time.time() - started:.1f} s"
                  + (f"; e.g. {wrong[0]}" if wrong else ""), flush=True)
            figures.add(out, {"kind": kind, "length": length, "asks": len(found), "exact": exact / len(found),
                              "first_alone": first[False], "first_within": first[True], "seed": seed})


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


def found_in(scores: np.ndarray, gold: list[set[int]], counts=(1, 5, 10, 20)) -> dict[str, float]:
    """Share of questions with the evidence among the first k chunks."""
    order = np.argsort(-scores, 1, kind="stable")
    return {f"at_{k}": round(float(np.mean([bool(set(order[i, :k]) & right) for i, right in enumerate(gold)])), 4)
            for k in counts}


def z_scores(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.mean(1, keepdims=True)) / (scores.std(1, keepdims=True) + 1e-9)


@torch.no_grad()
def natural_questions(reader: Reader, prepared: Prepared, out: Path | None, contexts: int = 600, asks: int = 800) -> None:
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
        landmark.append((embeddings.to(reader.kept) @ memory.landmarks[0].mT).float().cpu().numpy())
        candidates = np.argsort(-context[i:i + 100], 1, kind="stable")[:, :50]
        for j in range(len(candidates)):
            keys = memory.keys[torch.as_tensor(candidates[j].copy(), device=reader.device)].float()
            scores = late_scores(queries[j:j + 1].float(), spoken[j:j + 1], keys[None])
            late[i + j, candidates[j]] = scores[0].cpu().numpy()
    landmark = np.concatenate(landmark)
    first = np.argsort(-context, 1, kind="stable")[:, :50]
    of_first = np.take_along_axis(late, first, 1)
    centred = np.full_like(late, -1e9)
    np.put_along_axis(centred, first, z_scores(of_first), 1)
    methods = {"landmarks alone": landmark, "BM25": lexical, "BM25 with context": context, "its 50, late alone": late}
    methods |= {f"with late x {weight}": np.where(centred > -1e8, context + weight * centred, -1e9)
                for weight in (0.25, 0.5, 1.0, 1.5, 2.0)}
    methods["with landmarks x 0.3"] = context + 0.3 * z_scores(landmark)
    print(f"natural questions: {len(asked)} over {count} chunks")
    for method, scores in methods.items():
        shares = found_in(scores, gold)
        print(f"  {method:<20} " + " ".join(f"@{name[3:]} {share:.3f}" for name, share in shares.items()), flush=True)
        figures.add(out, {"kind": "natural questions", "method": method, "chunks": count, "asks": len(asked), **shares})


# ---- Prose

@torch.no_grad()
def bits_per_byte(reader: Reader, prepared: Prepared, lengths, out: Path | None, tail: int = 4096) -> None:
    """Of the last 4 Ki tokens of held-out prose when the memory holds `length` of them. Every token reads the chunks before
    those last tokens, from the lower state that they left; the upper layers begin anew, as when generating."""
    model, text = reader.model, prepared["held_prose"]
    last = text[-tail:]
    for length in lengths:
        before = text[len(text) - max(length, 2 * tail):-tail]
        if len(before) + tail > len(text):
            break
        memory = Memory(reader, before)
        with reader.autocast():
            hidden, _ = model.lower(reader.tokens(last)[None], memory.state)
            zero = model.zero_state(1, reader.device)[reader.config.num_lower_layers:]
            logits = model.logits(memory.upper(hidden, zero)[0][:, :-1]).float()
        bits = F.cross_entropy(logits.flatten(0, 1), reader.tokens(last[1:]), reduction="sum").item() / math.log(2)
        size = len(prepared.model.decode(last[1:].tolist()).encode())
        print(f"prose after {len(before)} tokens: {bits / size:.3f} bits a byte", flush=True)
        figures.add(out, {"kind": "prose", "length": len(before), "bits_per_byte": bits / size})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--lengths", default="4096,65536,1048576")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--asks", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", type=Path, help="file that what was found is added to, a line of JSON each")
    parser.add_argument("--no-questions", action="store_true", help="leave the natural questions out")
    parser.add_argument("--no-prose", action="store_true", help="leave the bits a byte out")
    args = parser.parse_args()
    prepared, reader = Prepared(args.prepared), Reader(args.run, args.device)
    lengths = [int(length) for length in args.lengths.split(",") if length]
    if not args.no_questions:
        natural_questions(reader, prepared, args.save)
    if args.kinds:
        tasks_by_length(reader, prepared, args.kinds.split(","), lengths, args.asks, args.seed, args.save)
    if not args.no_prose:
        bits_per_byte(reader, prepared, lengths, args.save)


if __name__ == "__main__":
    main()
