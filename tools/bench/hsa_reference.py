#!/usr/bin/env python3
"""Times the reference's attention to chunks and its retrieval beside our kernels, on one card in one run.

Usage: hsa_reference.py --reference DIR [--kernels PROGRAM]

DIR holds the code of the paper's authors (arXiv 2504.16795; github.com/RamstorageAI/long-context-modeling, commit
c40400c; its ops/hsa_triton.py is all that is used, and imports triton, einops and pytest). PROGRAM is our
build/release/tools/bench/kernels unless another is given; its parts `landmarks` and `hsa` run first, and their lines
are read.

- Attention: the function HSA of that file, forward, 16 query heads, 1 KV head, width 64, chunks of 64 tokens, one token
  of 1024 chunks (decode) and 4096 tokens of 64 and of 1024 (prefill). Its asserts wait for the GPU, and a CUDA graph
  cannot be made of them: Python is started again with -O, which leaves them out. Selections of a prefill: those of the
  shipped model, which PROGRAM writes; random ones; and those that share all but one chunk with the token before, every
  second time. What it computes is compared with plain PyTorch first.
- Retrieval: matrix product, mask, top-k, sort, gather and stick-breaking, as the paper describes them, in PyTorch: our
  own lines. Of two ways to write the product the faster one counts.

Both as ours are timed: CUDA graphs of 24 calls, medians of 15 replays. "cold": calls take inputs of their own in turn,
and 256 MiB are read through the L2 cache before each replay; "warm": the same inputs again. Retrieval also without a
graph ("eager"). The exit status is 1 when the reference computes something else or one of our kernels did not agree
with its twin, and on an H200 also when a ratio misses its goal. Needs PyTorch and Triton, of which 3.6 compiles that
file and 3.9, which has no block pointers any more, does not.
"""
import argparse
import array
import math
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile

if __debug__:
    os.execv(sys.executable, [sys.executable, "-O", *sys.argv])

import torch

CALLS, REPLAYS, COLD_BYTES = 24, 15, 256 << 20
HEADS, WIDTH, CHUNK = 16, 64, 64
PREFILL_TOKENS = 4096
NEAR = 2e-2  # of the greatest value


# ---- Time

def median_us(run, prepare=None):
    """Of one call of CALLS, which run() enqueues."""
    times = []
    for replay in range(REPLAYS + 2):
        if prepare:
            prepare()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if replay >= 2:
            times.append(begin.elapsed_time(end) * 1e3 / CALLS)
    return statistics.median(times)


def graph_of(call):
    """A CUDA graph of CALLS calls, and what the last one returned, which must live as long."""
    for place in range(3):  # compiles, and allocates what is allocated once
        call(place)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for place in range(CALLS):
            kept = call(place)
    return graph, kept


def cold_and_warm(call, places):
    """call(place), us."""
    through_cache = torch.ones(COLD_BYTES // 4, device="cuda", dtype=torch.int32)
    cold, kept_cold = graph_of(lambda i: call(i % places))
    warm, kept_warm = graph_of(lambda _: call(0))
    times = median_us(cold.replay, lambda: through_cache.sum()), median_us(warm.replay)
    del kept_cold, kept_warm
    return times


def eager_us(call):
    def run():
        for _ in range(CALLS):
            call(0)
    return median_us(run)


# ---- Retrieval

def stick_breaking(scores):
    """Shares from scores, newest chunk first: exp(s_i - softplus(s_0) - ... - softplus(s_i)), in fp32."""
    scores = scores.float()
    return torch.exp(scores - torch.nn.functional.softplus(scores).cumsum(-1))


class Retrieval:
    def __init__(self, chunks, dim, k):
        self.chunks, self.dim, self.k = chunks, dim, k
        self.places = max(1, min(CALLS, COLD_BYTES // (chunks * dim * 2)))
        self.landmarks = [torch.randn(chunks, dim, device="cuda", dtype=torch.bfloat16) for _ in range(self.places)]
        self.query = torch.randn(dim, device="cuda", dtype=torch.bfloat16)
        self.position = torch.tensor(chunks * CHUNK, device="cuda")  # of the token that asks: all chunks end before it
        ways = [lambda i: self.landmarks[i] @ self.query, lambda i: self.query[None] @ self.landmarks[i].T]
        for way in ways:
            way(0)
        self.product = min(ways, key=eager_us)

    def __call__(self, place):
        scores = self.product(place).view(-1) / math.sqrt(self.dim)
        ends = torch.arange(1, self.chunks + 1, device="cuda") * CHUNK
        scores = scores.masked_fill(ends > self.position, -math.inf)
        best = scores.topk(self.k).indices
        best = best.sort(descending=True).values  # newest first
        hidden = (best + 1) * CHUNK > self.position
        best = best.masked_fill(hidden, 0)
        return best, stick_breaking(scores.gather(-1, best).masked_fill(hidden, -math.inf))


# ---- Attention

def random_selections(tokens, chunks, k):
    """[tokens, k] distinct chunks, newest first."""
    return torch.rand(tokens, chunks, device="cuda").topk(k).indices.sort(descending=True).values


def shared_selections(tokens, chunks, k, seed):
    chance = random.Random(seed)
    now, rows = sorted(chance.sample(range(chunks), k), reverse=True), []
    for token in range(tokens):
        if token > 0 and chance.random() < 0.5:
            gone = chance.randrange(k)
            kept = [chunk for place, chunk in enumerate(now) if place != gone]
            other = chance.randrange(chunks)
            while other in kept:
                other = chance.randrange(chunks)
            now = sorted([*kept, other], reverse=True)
        rows.append(now)
    return torch.tensor(rows, device="cuda")


def model_selections(kernels, chunks, k):
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "selections"
        subprocess.run([kernels, "model-selections", str(chunks), str(k), str(file)], check=True)
        values = array.array("I")
        values.frombytes(file.read_bytes())
    return torch.tensor(values.tolist(), device="cuda").view(PREFILL_TOKENS, k)


class Attention:
    def __init__(self, hsa, tokens, chunks, selections):
        """selections(place): [tokens, k]"""
        self.hsa = hsa

        def values(*shape):
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

        chosen = selections(0)
        touched = min(chunks, chosen.numel()) * CHUNK * WIDTH * 2 * 2
        self.places = max(4, min(CALLS, COLD_BYTES // touched))
        self.inputs = []
        for place in range(self.places):
            indices = selections(place).view(1, tokens, 1, -1).contiguous()
            self.inputs.append((values(1, tokens, HEADS, WIDTH), values(1, chunks * CHUNK, 1, WIDTH),
                                values(1, chunks * CHUNK, 1, WIDTH),
                                stick_breaking(torch.randn(indices.shape, device="cuda")), indices))

    def __call__(self, place):
        q, k, v, weights, indices = self.inputs[place]
        return self.hsa(q, k, v, weights, indices, 0.0, CHUNK, None)

    def agrees(self):
        """Of some tokens, with plain PyTorch in fp32."""
        q, k, v, weights, indices = self.inputs[0]
        found = self(0)
        for token in range(0, q.shape[1], max(1, q.shape[1] // 8)):
            expected = torch.zeros(HEADS, WIDTH, device="cuda")
            for chunk, weight in zip(indices[0, token, 0].tolist(), weights[0, token, 0]):
                rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
                logits = q[0, token].float() @ k[0, rows, 0].float().T / math.sqrt(WIDTH)
                expected += weight * (logits.softmax(-1) @ v[0, rows, 0].float())
            if not (found[0, token].float() - expected).abs().max() <= NEAR * expected.abs().max():
                return False
        return True


# ---- Ours

class Ours:
    def __init__(self, kernels):
        """Runs our program; what it printed is read line by line."""
        self.text = ""
        self.failed = False
        for part in ("landmarks", "hsa"):
            done = subprocess.run([kernels, part], stdout=subprocess.PIPE, text=True)
            self.failed |= done.returncode != 0
            self.text += done.stdout
        print(self.text, end="", flush=True)

    def times(self, begin):
        """Cold and warm, us, of the line that begins so."""
        found = re.search(r"^\s*" + begin + r"[^\n]*?as the CPU; cold +([\d.]+) us.*?warm +([\d.]+) us", self.text, re.M)
        if not found:
            sys.exit(f"hsa_reference: our program printed no line that begins with {begin!r}")
        return float(found[1]), float(found[2])


class Table:
    def __init__(self):
        self.missed = []

    def row(self, name, reference, ours, goal=None, eager=None):
        ratios = [theirs / own for theirs, own in zip(reference, ours)]
        line = (f"{name:34} reference cold {reference[0]:8.2f} us, warm {reference[1]:8.2f}; ours {ours[0]:8.2f}, "
                f"{ours[1]:8.2f}; ratio {ratios[0]:6.2f}, {ratios[1]:6.2f}")
        if eager is not None:
            line += f"; eager {eager:8.2f} us, {eager / ours[1]:6.2f} x ours warm"
        if goal is not None:
            line += f"; goal {goal} {'met' if ratios[0] >= goal else 'MISSED'}"
            if ratios[0] < goal:
                self.missed.append(name)
        print(line, flush=True)


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, type=pathlib.Path)
    parser.add_argument("--kernels", default=root / "build/release/tools/bench/kernels", type=pathlib.Path)
    options = parser.parse_args()
    if not (options.reference / "ops/hsa_triton.py").is_file():
        sys.exit(f"hsa_reference: there is no {options.reference}/ops/hsa_triton.py; see --help for where it comes from")
    if not options.kernels.is_file():
        sys.exit(f"hsa_reference: there is no {options.kernels}; build the target bench_kernels, or name it with --kernels")
    if not torch.cuda.is_available():
        sys.exit("hsa_reference: PyTorch finds no GPU")
    sys.path.insert(0, str(options.reference.resolve()))
    from ops.hsa_triton import HSA
    import triton

    options.kernels = options.kernels.resolve()
    ours = Ours(options.kernels)
    wrong = ours.failed
    if ours.failed:
        print("our program says that a kernel disagreed, or failed")
    torch.manual_seed(0)
    card = torch.cuda.get_device_name()
    print(f"\n{card}, PyTorch {torch.__version__}, Triton {triton.__version__}; graphs of {CALLS} calls, medians of "
          f"{REPLAYS}; ratios: reference / ours")
    table = Table()
    with torch.no_grad():
        for chunks, dim, goal in ((1 << 20, 1024, 1.7), (1 << 17, 1024, None), (1 << 14, 1024, 3.0),
                                  (1 << 10, 1024, None), (1 << 20, 256, None), (1 << 14, 256, None)):
            path = Retrieval(chunks, dim, 8)
            table.row(f"retrieval {chunks:7} x {dim:4}, k 8", cold_and_warm(path, path.places),
                      ours.times(rf"{chunks} x +{dim}, k +8:"), goal, eager_us(path))
            print(f"{'':34} its product alone: eager {eager_us(path.product):8.2f} us")
            del path
            torch.cuda.empty_cache()

        def attend(name, tokens, chunks, selections, begin, goal):
            attention = Attention(HSA, tokens, chunks, selections)
            agrees = attention.agrees()
            if not agrees:
                print(f"{name}: the reference computes something else than is expected of it")
            table.row(name, cold_and_warm(attention, attention.places), ours.times(begin), goal)
            torch.cuda.empty_cache()
            return agrees

        for k, goal in ((8, 3.0), (64, 12.0)):
            wrong |= not attend(f"decode, k {k}", 1, 1024, lambda _: random_selections(1, 1024, k),
                                rf"1 tokens, 16 heads, k +{k}:", goal)
        for chunks, goal in ((64, 1.5), (1024, 1.2)):
            by_model = model_selections(options.kernels, chunks, 8)
            for choice, selections in (("model", lambda _: by_model),
                                       ("random", lambda _: random_selections(PREFILL_TOKENS, chunks, 8)),
                                       ("shared", lambda i: shared_selections(PREFILL_TOKENS, chunks, 8, i))):
                wrong |= not attend(f"prefill 4096, k 8 of {chunks}, {choice}", PREFILL_TOKENS, chunks, selections,
                                    rf"k +8 of +{chunks} chunks, {choice} ", goal if choice == "model" else None)
    if table.missed:
        print("goals missed" + ("" if "H200" in card else ", which are meant for an H200") + ": " + "; ".join(table.missed))
    sys.exit(1 if wrong or (table.missed and "H200" in card) else 0)


if __name__ == "__main__":
    main()
