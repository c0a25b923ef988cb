"""Trains a model on one GPU, by seconds or by steps, and saves it as it goes. See README.md for the whole recipe.

A run writes into its directory: config.json and model.safetensors (bf16, the reference's names; export.py makes a
checkpoint of them), run.json (arguments, figures), log.csv (a line every --log-every steps: means since the line before,
and whole answers of rows right by kind), resume.pt with --resumable.
"""
import argparse
import csv
import json
import math
import re
import shutil
import signal
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from data import MakerOptions, batches
from export import read_weights
from lexical import SPECIAL_PIECES, Lexical
from losses import Chunks, LateQuestions, contrast, evidence_of, late_interaction, towards_words, weight_of_evidence
from model import BLOCKS, Config, RAMba, Retrieval, build
from muon import Muon
from units import KINDS

CHUNK = 64
CONTEXT_SHARE = 0.3     # of the previous chunk's words in what a landmark is drawn towards
LATE_QUESTIONS = 12     # of 4,096 tokens
ROW_COPIES = 640        # answer tokens of rows whose retrieval is trained, a batch
CARRY_STATE = 0.5       # of the sequences go on with the state that the one before left
WARMUP_STEPS = 100
GRADIENT_NORM_MAX = 1.0
SAVE_SECONDS = 5        # that --within leaves for the last save
LAYER = re.compile(r"backbone\.layers\.\d+\.")


@dataclass
class Weights:
    """Of the losses. The next token of the stream and of rows has 1."""
    contrast: float = 0.5   # the evidence first, for questions in the stream, alone and in rows
    hold: float = 0.25      # and again at each token of the answer
    weigh: float = 0.25     # the evidence has all the weight there
    read: float = 0.2       # half of HSA's heads look at the token to copy
    lexical: float = 12.0   # landmarks and questions towards their words; falls to 0.3 of it over the whole schedule
    late: float = 0.5       # keys tell chunks apart


METRICS = ("next_token", "row_token", "first_stream", "first_alone", "first_row", "hold", "weight", "read", "copied",
           "row_exact", "contrast", "lexical", "late", "late_first")
BY_KIND = tuple(f"exact_{kind}" for kind in KINDS)  # whole answers of rows right


def gather_rows(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[B, n, w] at [B, m] (-1: any) -> [B, m, w]"""
    return values.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, values.shape[-1]))


def mean_of(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)


class Objective:
    """All losses of one batch. The bank holds landmarks and words of earlier batches; it is no parameter."""
    metrics = METRICS  # what a step is measured by

    def __init__(self, model, lexical: Lexical, weights: Weights, joined: int = 1):
        self.model, self.lexical, self.weights, self.joined = model, lexical, weights, joined

    def __call__(self, batch, state, bank_landmarks, bank_words, lexical_share):
        model, weights = self.model, self.weights
        ids = batch.ids
        sequences, length = ids.shape
        per_sequence = length // CHUNK
        device_type = ids.device.type
        chunk_words = self.lexical.chunks(ids.view(sequences, per_sequence, CHUNK))
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=device_type == "cuda"):
            out = model(ids, state, batch.rows, batch.copies, batch.row_copies, self.joined)
            flat_alone = batch.alone.flatten(0, 1)
            alone_at = batch.alone_meta[..., 0].flatten().clamp(min=0)
            alone, token_queries = model.questions(flat_alone, alone_at)

            next_token, row_token, copied, asked_rows, exact = self._next_tokens(out, batch)

            # Retrieval: for questions, and at each token of an answer.
            absolute = model.config.absolute_scores
            words = F.normalize(chunk_words.flatten(0, 1), dim=-1).to(torch.bfloat16)
            here = Chunks(out.landmarks.flatten(0, 1), words, per_sequence, sequences)
            everywhere = Chunks(torch.cat([here.landmarks, bank_landmarks.to(here.landmarks.dtype)]),
                                torch.cat([words, bank_words]), per_sequence, sequences)
            asked = model.retrieval_queries(gather_rows(out.lower, batch.asked[..., 0]))
            asked_evidence = evidence_of(batch.asked, batch.asked[..., 0] // CHUNK, batch.asked_alike)
            stream_loss, first_stream = contrast(asked.flatten(0, 1), asked_evidence, everywhere)
            alone_evidence = evidence_of(batch.alone_meta, batch.alone_meta[..., 3], batch.alone_alike)
            alone_loss, first_alone = contrast(alone, alone_evidence, everywhere)
            everything = torch.full_like(batch.row_recall[..., 0], per_sequence)
            row_evidence = evidence_of(batch.row_recall, everything, batch.row_alike)
            flat_lower = out.row_lower.flatten(0, 1)  # [B*G, T, d]
            row_asked = model.retrieval_queries(gather_rows(flat_lower, batch.row_recall[..., 0].view(-1, 1)))
            row_question_loss, first_row = contrast(row_asked.flatten(0, 1), row_evidence, everywhere)

            at, source = batch.copies.unbind(-1)
            source_chunk = torch.stack([at, source // CHUNK, source // CHUNK], -1)
            copied_from = evidence_of(source_chunk, at // CHUNK, batch.copies_alike)
            stream_hold, _ = contrast(model.retrieval_queries(gather_rows(out.lower, at)).flatten(0, 1), copied_from, here,
                                      raw=True, absolute=absolute)
            row_hold = self._row_hold(out.row_lower, batch, everywhere)
            stream_weigh, _ = weight_of_evidence(out.log_weights, batch.copies, CHUNK)
            row_weigh, row_weight_read = weight_of_evidence(out.row_log_weights.flatten(0, 1),
                                                            out.row_copies.flatten(0, 1), CHUNK)
            later_hold, later_weigh, _ = self._later_groups(out, batch, words)

            # Late interaction, for the first questions: real ones come first.
            spoken = (flat_alone >= SPECIAL_PIECES) & (torch.arange(flat_alone.shape[1], device=ids.device) < alone_at[:, None])
            question = torch.where(spoken, flat_alone, 0)
            said = self.lexical.questions(question)

            def of_first(values):
                few = max(1, LATE_QUESTIONS * length // MakerOptions.length)
                return values.unflatten(0, (sequences, -1))[:, :few].flatten(0, 1)

            late, late_first = late_interaction(
                LateQuestions(of_first(token_queries), of_first(spoken), of_first(self.lexical.terms(question)), of_first(said),
                              of_first(alone_evidence)),
                out.keys.reshape(sequences * per_sequence, CHUNK, -1), here,
                self.lexical.terms(ids.view(-1, CHUNK)), self.lexical.bm25)

        # Words.
        context = torch.cat([torch.zeros_like(chunk_words[:, :1]), chunk_words[:, :-1]], 1)
        lexical = towards_words(out.landmarks, chunk_words + CONTEXT_SHARE * context)
        lexical = lexical + towards_words(alone, said, batch.alone_meta[..., 0].flatten() >= 0)

        contrastive = stream_loss + alone_loss + row_question_loss
        loss = (next_token + row_token + weights.contrast * contrastive + weights.hold * (stream_hold + row_hold + later_hold) +
                weights.weigh * (stream_weigh + row_weigh + later_weigh) + weights.read * (out.read + out.row_read) +
                weights.lexical * lexical_share * lexical + weights.late * late)
        metrics = torch.stack([value.detach().float() for value in (
            next_token, row_token, first_stream, first_alone, first_row, stream_hold + row_hold, row_weight_read,
            out.read + out.row_read, copied, mean_of(exact.float(), asked_rows),
            contrastive, lexical, late, late_first)])
        by_kind = self._by_kind(asked_rows, exact, batch.row_kind)
        return loss, metrics, by_kind, out.state, here.landmarks.detach().to(torch.bfloat16), words

    def _next_tokens(self, out, batch):
        """Losses of the stream and of rows, the share of copied tokens that come first, which rows ask and which of these are
        exact."""
        logits = self.model.logits(out.hidden[:, :-1])
        token_loss = F.cross_entropy(logits.float().flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
        asked_from = batch.rows.shape[-1] - CHUNK - 1  # what comes before is the memory's end
        row_weight = batch.row_weight[:, :, asked_from:-1]
        row_next = batch.rows[:, :, asked_from + 1:]
        row_logits = self.model.logits(out.row_hidden[:, :, asked_from:-1])
        row_loss = F.cross_entropy(row_logits.float().flatten(0, 2), row_next.flatten(), reduction="none")
        return (mean_of(token_loss, batch.weight[:, :-1].flatten()), mean_of(row_loss, row_weight.flatten()),
                self._copied(logits, batch.ids, batch), *self._rows_exact(row_logits, row_next, row_weight))

    def _row_hold(self, hidden, batch, chunks: Chunks, group: int = 0) -> torch.Tensor:
        """Rows copy few tokens: those that do are taken together. hidden [B, G, T, d] before the group"""
        at, source = batch.row_copies.unbind(-1)
        sequence = torch.arange(at.shape[0], device=at.device)[:, None, None].expand(at.shape)
        valid = at >= 0
        evidence = torch.stack([torch.where(valid, sequence, -1), source // CHUNK, source // CHUNK,
                                torch.full_like(at, chunks.per_sequence), batch.row_copies_alike], -1).flatten(0, 2)
        asked = gather_rows(hidden.flatten(0, 1), at.flatten(0, 1))
        queries = self.model.retrieval_queries(asked, group).flatten(0, 1)
        chosen = valid.flatten().int().argsort(descending=True, stable=True)[:ROW_COPIES]
        return contrast(queries[chosen], evidence[chosen], chunks, raw=True,
                        absolute=self.model.config.absolute_scores)[0]

    def _later_groups(self, out, batch, words):
        """Hold and weight of groups after the first, which searches do not use; the mean weight of the evidence in rows, of
        the last group. words [B*C, r]"""
        model, (sequences, length) = self.model, batch.ids.shape
        hold = weigh = torch.zeros((), device=batch.ids.device)
        at, source = batch.copies.unbind(-1)
        copied_from = evidence_of(torch.stack([at, source // CHUNK, source // CHUNK], -1), at // CHUNK, batch.copies_alike)
        weight_read = hold
        for group in range(1, model.config.num_upper_groups):
            chunks = Chunks(out.group_landmarks[group].flatten(0, 1), words, length // CHUNK, sequences)
            asked = model.retrieval_queries(gather_rows(out.group_hidden[group], at), group).flatten(0, 1)
            hold = hold + contrast(asked, copied_from, chunks, raw=True, absolute=model.config.absolute_scores)[0]
            hold = hold + self._row_hold(out.row_group_hidden[group], batch, chunks, group)
            weigh = weigh + weight_of_evidence(out.group_log_weights[group], batch.copies, CHUNK)[0]
            row_weigh, weight_read = weight_of_evidence(out.row_group_log_weights[group].flatten(0, 1),
                                                        out.row_copies.flatten(0, 1), CHUNK)
            weigh = weigh + row_weigh
        return hold, weigh, weight_read

    @staticmethod
    def _copied(logits, ids, batch):
        """Share of the stream's copied tokens that come first, what is before them given."""
        at = batch.copies[..., 0]
        place = at.clamp(min=0, max=ids.shape[1] - 2)
        right = logits.detach().argmax(-1).gather(1, place) == ids.gather(1, place + 1)
        return mean_of(right.float(), at >= 0)

    @staticmethod
    def _rows_exact(logits, expected, weight):
        """Which rows ask, and whose whole answer comes first, what is before each token given: [B, G] bool."""
        wrong = (logits.detach().argmax(-1) != expected) & (weight > 0)
        asked = (weight > 0).any(-1)
        return asked, asked & ~wrong.any(-1)

    @staticmethod
    def _by_kind(asked, exact, kind):
        """Rows of each kind, and those that are exact: [2, kinds]."""
        counts = torch.zeros(2, len(KINDS), device=kind.device)
        rows = torch.stack([asked, exact]).flatten(1).float()
        return counts.scatter_add(1, kind.clamp(min=0).flatten().expand(2, -1), rows)


def read_by_answers_alone(model, name: str) -> bool:
    """Whether a parameter lies behind the first retrieval and neither chunks nor searches see it. Of the first HSA layer,
    searches score chunks by the queries of a question's tokens."""
    if name.startswith("backbone.norm_f."):
        return True
    layer = LAYER.match(name)
    if layer is None:
        return False
    place, part = int(layer[0].split(".")[2]), name[layer.end():]
    asks = part.startswith(("pre_norm.", "q_proj.", "q_norm."))
    return place > model.first_retrieval and not (place == model.first_retrieval + 1 and asks)


class AnswersObjective(Objective):
    """What answers read, where chunks and searches stay as they are."""
    metrics = ("next_token", "row_token", "hold", "weight", "read", "copied", "row_exact")

    def __call__(self, batch, state, bank_landmarks, bank_words, lexical_share):
        weights, ids = self.weights, batch.ids
        sequences, length = ids.shape
        words = F.normalize(self.lexical.chunks(ids.view(sequences, length // CHUNK, CHUNK)).flatten(0, 1), dim=-1)
        words = words.to(torch.bfloat16)
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=ids.device.type == "cuda"):
            out = self.model(ids, state, batch.rows, batch.copies, batch.row_copies, self.joined)
            next_token, row_token, copied, asked_rows, exact = self._next_tokens(out, batch)
            hold, weigh, weight_read = self._later_groups(out, batch, words)
        read = out.read + out.row_read
        loss = next_token + row_token + weights.hold * hold + weights.weigh * weigh + weights.read * read
        metrics = torch.stack([value.detach().float() for value in (
            next_token, row_token, hold, weight_read, read, copied, mean_of(exact.float(), asked_rows))])
        by_kind = self._by_kind(asked_rows, exact, batch.row_kind)
        return loss, metrics, by_kind, out.state, out.landmarks.detach().flatten(0, 1).to(torch.bfloat16), words


class Schedule:
    """Warm-up, constant, then linear to nothing over the last `decay` of the whole schedule, of which a run may be a
    part: from `begin` to `end`."""

    def __init__(self, args):
        self.args = args

    def progress(self, share: float) -> float:
        return self.args.begin + (self.args.end - self.args.begin) * min(1.0, share)

    def rate(self, step: int, progress: float) -> float:
        falling = min(1.0, max(0.02, (1 - progress) / self.args.decay)) if self.args.decay > 0 else 1.0
        return self.args.lr * min(1.0, (step + 1) / self.args.warmup) * falling


def places_of_shared(model) -> list[int]:
    """Of the layers that are no blocks: both architectures have them."""
    return [i for i, layer in enumerate(model.backbone.layers) if not isinstance(layer, tuple(BLOCKS.values()))]


def shared_weights(model, directory: Path, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a model with other blocks can take over, under its own names: embeddings, encoder, retrieval and the layers that
    read chunks, of these as many as both have."""
    if not (directory / "config.json").is_file():
        raise SystemExit(f"train: {directory} has no config.json, which says of which architecture its weights are")
    config = Config.from_reference(json.loads((directory / "config.json").read_text()))
    if config.model_type == model.config.model_type:
        return found
    with torch.device("meta"):
        there = places_of_shared(RAMba(config))
    name_of = {f"backbone.layers.{a}.": f"backbone.layers.{b}." for a, b in zip(there, places_of_shared(model))}
    parts = {name: LAYER.match(name) for name in found}
    return {name_of[part[0]] + name[part.end():] if part else name: found[name]
            for name, part in parts.items() if part is None or part[0] in name_of}


@torch.no_grad()
def begin_as_nothing(model, missing: list[str]) -> None:
    """Groups that a model has beyond the weights it goes on from: they add nothing yet, and retrieve as the first does."""
    own = dict(model.named_parameters())
    for name in missing:
        layer = LAYER.match(name)
        place = int(layer[0].split(".")[2]) if layer else 0
        if place <= model.first_retrieval or own[name].ndim == 0:
            continue
        of_first = f"backbone.layers.{model.first_retrieval}.{name[layer.end():]}"
        if isinstance(model.backbone.layers[place], Retrieval):
            own[name].copy_(own[of_first])
        elif name.endswith(("out_proj.weight", "o_proj.weight", "down_proj.weight")):
            own[name].zero_()


def load_weights(model, directory: Path) -> None:
    found = shared_weights(model, directory, {name: tensor.float() for name, tensor in read_weights(directory).items()})
    if not model.config.enable_pos_decay:
        found = {name: tensor for name, tensor in found.items() if not name.endswith(".pos_decay")}
    own = model.state_dict()
    other = sorted(name for name, tensor in found.items() if name in own and tensor.shape != own[name].shape)
    if other:
        raise SystemExit(f"train: {directory} has weights of another shape: {other[:4]} ...; the widths in --config must be "
                         "those of its config.json")
    missing, unexpected = model.load_state_dict(found, strict=False)
    begin_as_nothing(model, missing)
    if unexpected:
        raise SystemExit(f"train: {directory} has weights that the model lacks: {sorted(unexpected)[:4]} ...")
    print(f"weights of {directory}; new in this model: {sorted(missing) or 'none'}", flush=True)


def save(args, model, config, optimizers, step, history) -> None:
    out = args.out
    weights = {name: tensor.detach().to(torch.bfloat16).contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(weights, out / "model.safetensors.new")
    (out / "model.safetensors.new").replace(out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config.to_reference(), indent=1) + "\n")
    (out / "run.json").write_text(json.dumps({"arguments": {k: str(v) for k, v in vars(args).items()}, "step": step,
                                              "tokens": step * args.batch * args.length, "figures": history[-1:]}, indent=1))
    if args.resumable:
        torch.save({"model": model.state_dict(), "optimizers": [each.state_dict() for each in optimizers], "step": step},
                   out / "resume.pt.new")
        (out / "resume.pt.new").replace(out / "resume.pt")


def optimizers_for(model, lr: float):
    """Muon for the matrices of hidden layers, AdamW for embeddings, convolutions and vectors."""
    hidden, embeddings, small = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "embeddings" in name:
            embeddings.append(parameter)
        elif parameter.ndim == 2 and min(parameter.shape) > 1:
            hidden.append(parameter)
        else:
            small.append(parameter)
    groups = [{"params": embeddings, "weight_decay": 0.1}, {"params": small, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    on_gpu = next(model.parameters()).is_cuda
    rate = torch.tensor(lr, device="cuda") if on_gpu else lr
    return [Muon(hidden, rate), torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=on_gpu, capturable=on_gpu)]


def set_rate(optimizers, rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


class Step:
    """One step of training, over buffers that stay where they are. On a GPU it is captured as a graph after the first few:
    thousands of small kernels launched from Python would keep it waiting (0.46 instead of 0.67 M tokens/s on an H100)."""
    CAPTURE_AFTER = 3

    def __init__(self, args, model, config, objective, metrics, optimizers, device):
        self.args, self.model, self.objective, self.optimizers, self.device = args, model, objective, optimizers, device
        self.batch, self.graph, self.done = None, None, 0
        self.state = model.zero_state(args.batch, device)
        self.per_step = args.batch * (args.length // CHUNK)
        shape = (args.bank * self.per_step, config.retrieval_dim)
        self.bank_landmarks = torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.1
        self.bank_words = torch.zeros_like(self.bank_landmarks)
        self.place = torch.arange(self.per_step, device=device)  # of the next landmarks in the bank
        self.lexical_share = torch.ones((), device=device)
        self.totals = torch.zeros(len(metrics), device=device)
        self.of_kinds = torch.zeros(2, len(KINDS), device=device)

    def __call__(self, batch) -> None:
        if self.device.type == "cpu":
            self.batch = batch
            self._run()
            return
        batch = batch.pin_memory()  # a copy from pageable memory would wait for the GPU
        if self.batch is None:
            self.batch = batch.to(self.device)
        for f in fields(batch):
            getattr(self.batch, f.name).copy_(getattr(batch, f.name), non_blocking=True)
        if self.graph is not None:
            self.graph.replay()
        elif self.done < self.CAPTURE_AFTER or self.args.eager:
            self._on_side_stream()
        else:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._run()
            self.graph.replay()
        self.done += 1

    def _on_side_stream(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run()
        torch.cuda.current_stream().wait_stream(stream)

    def _run(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss, metrics, by_kind, state, landmarks, words = self.objective(
            self.batch, self.state, self.bank_landmarks, self.bank_words, self.lexical_share)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM_MAX, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            keep = (torch.rand(self.args.batch, device=self.device) < CARRY_STATE).float()
            for of_block, after in zip(self.state, self.model.masked_state(state, keep)):
                for buffer, value in zip(of_block, after):
                    buffer.copy_(value)
            self.bank_landmarks.index_copy_(0, self.place, landmarks)
            self.bank_words.index_copy_(0, self.place, words)
            self.place.add_(self.per_step).remainder_(len(self.bank_words))
            self.totals += metrics
            self.of_kinds += by_kind

    def figures(self) -> tuple[list[float], list[float | None]]:
        """Since they were asked for last: means of the metrics, and the share of each kind's rows that are exact, None where
        no row was of that kind."""
        means = [round(value, 4) for value in (self.totals / self.args.log_every).tolist()]
        asked, exact = self.of_kinds.tolist()
        self.totals.zero_()
        self.of_kinds.zero_()
        return means, [round(right / rows, 4) if rows else None for rows, right in zip(asked, exact)]


class Clock:
    """How much of a run is done. It starts once everything is compiled and captured, and ends early when told to stop."""

    def __init__(self, args):
        self.args, self.made, self.started, self.stopping = args, time.time(), None, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, *_) -> None:
        self.stopping = True

    def start(self, step: int) -> None:
        self.started, self.first_step = time.time(), step
        self.seconds = self.args.seconds
        if self.args.within:
            self.seconds = max(1.0, self.args.within - SAVE_SECONDS - (self.started - self.made))

    def share(self, step: int) -> float:
        if self.started is None:
            return 0.0
        return (step - self.first_step) / self.args.steps if self.args.steps else (time.time() - self.started) / self.seconds

    def tokens_per_s(self, step: int) -> float:
        done = step - self.first_step if self.started else 0
        return done * self.args.batch * self.args.length / (time.time() - self.started) if done else 0.0


def steps_done(args) -> int:
    """Of the run that goes on, read without touching the GPU."""
    kept = args.out / "resume.pt"
    return torch.load(kept, map_location="cpu", mmap=True)["step"] if args.resumable and kept.exists() else 0


def train(args) -> None:
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(args.prepared / "spm.model", args.out / "tokenizer.model")
    step = resumed = steps_done(args)
    # Its processes fork before CUDA begins.
    feed = batches(args.prepared, args.seed, args.batch, args.workers, MakerOptions(length=args.length), first=step)
    clock = Clock(args)
    device = torch.device(args.device)
    config = Config.from_reference(json.loads(args.config.read_text()))
    model = build(config, args.seed).to(device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    if args.init:
        load_weights(model, args.init)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not args.answers_only or read_by_answers_alone(model, name))
    optimizers = optimizers_for(model, args.lr)
    if resumed:
        kept = torch.load(args.out / "resume.pt", map_location=device)
        model.load_state_dict(kept["model"])
        for optimizer, was in zip(optimizers, kept["optimizers"]):
            optimizer.load_state_dict(was)
        args.warmup = 1
        print(f"resumed after step {step}", flush=True)

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(args.prepared / "spm.model"))
    prepared = np.load(args.prepared / "data.npz")
    corpus = np.concatenate([prepared[name][:4_000_000] for name in ("prose", "dial", "tr_ctx")])
    lexical = Lexical(tokenizer, corpus, config.retrieval_dim, CHUNK, device, args.prepared / "words.npz")
    weights = Weights(**{f.name: getattr(args, f.name) for f in fields(Weights)})
    objective = (AnswersObjective if args.answers_only else Objective)(model, lexical, weights, args.joined)
    metrics = objective.metrics
    if not (args.eager or args.no_compile):
        objective = torch.compile(objective.__call__)
    schedule = Schedule(args)

    one_step = Step(args, model, config, objective, metrics, optimizers, device)
    history, saved = [], time.time()
    with open(args.out / "log.csv", "a", newline="") as log_file:
        log = csv.writer(log_file)
        if log_file.tell() == 0:
            log.writerow(("step", "progress", "rate", "tokens_per_s", *metrics, *BY_KIND))
        for batch in feed:
            share = clock.share(step)
            if clock.stopping:
                print("told to stop", flush=True)
            if share >= 1 or clock.stopping:
                break
            progress = schedule.progress(share)
            rate = schedule.rate(step, progress)
            set_rate(optimizers, rate)
            one_step.lexical_share.fill_(max(0.3, 1 - progress))
            one_step(batch)
            step += 1
            if clock.started is None and step - resumed > Step.CAPTURE_AFTER + 1:
                torch.cuda.synchronize() if device.type == "cuda" else None
                clock.start(step)
                saved = clock.started

            if step % args.log_every == 0:
                figures, of_kinds = one_step.figures()
                speed = clock.tokens_per_s(step)
                log.writerow((step, round(progress, 4), rate, round(speed), *figures, *of_kinds))
                log_file.flush()
                kinds_seen = {kind: share for kind, share in zip(KINDS, of_kinds) if share is not None}
                history.append(dict(zip(metrics, figures), tokens_per_s=round(speed), row_exact_of=kinds_seen))
                if not all(map(math.isfinite, figures)):
                    raise SystemExit(f"train: a loss is not a number at step {step}; the last save stands")
                print(f"{step} {progress:.3f} {speed / 1e6:.3f} Mtok/s " +
                      " ".join(f"{name} {value:.3f}" for name, value in zip(metrics, figures)) + "\n  rows exact: " +
                      " ".join(f"{kind} {share:.3f}" for kind, share in kinds_seen.items()), flush=True)
            if time.time() - saved > args.save_every:
                save(args, model, config, optimizers, step, history)
                saved = time.time()
    save(args, model, config, optimizers, step, history)
    if device.type == "cuda":
        print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, {step} steps, "
              f"{step * args.batch * args.length / 1e6:.0f} M tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True, help="what prepare.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="directory of this run")
    parser.add_argument("--config", type=Path, required=True, help="config.json of the model")
    parser.add_argument("--init", type=Path, help="directory with model.safetensors to go on from; where its blocks are others, the rest is taken")
    parser.add_argument("--answers-only", action="store_true",
                        help="train what answers alone read, behind the first retrieval: chunks and searches stay as they are")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--steps", type=int, help="instead of --seconds")
    parser.add_argument("--within", type=float, help="instead of --seconds: of everything, compiling included")
    parser.add_argument("--begin", type=float, default=0.0, help="where this run begins in the schedule")
    parser.add_argument("--end", type=float, default=1.0, help="and ends")
    parser.add_argument("--decay", type=float, default=0.4, help="last share of the schedule, in which the rate falls")
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--warmup", type=int, default=WARMUP_STEPS)
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--length", type=int, default=4096, help="tokens a sequence")
    parser.add_argument("--joined", type=int, default=1,
                        help="sequences of a batch among whose chunks each row reads (must divide --batch)")
    parser.add_argument("--bank", type=int, default=64, help="steps whose landmarks are kept as negatives")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="neither compile nor capture the step as a graph")
    parser.add_argument("--no-compile", action="store_true", help="capture only: slower, and begins minutes earlier")
    parser.add_argument("--resumable", action="store_true", help="keep optimisers too, and go on from them")
    parser.add_argument("--save-every", type=float, default=150, help="seconds")
    parser.add_argument("--log-every", type=int, default=200)
    for field in fields(Weights):
        parser.add_argument(f"--{field.name}", type=float, default=field.default, help="weight of a loss")
    args = parser.parse_args()
    if args.joined < 1 or args.batch % args.joined:
        parser.error(f"--joined must divide --batch, got {args.joined} and {args.batch}")
    train(args)


if __name__ == "__main__":
    main()
