#!/usr/bin/env python3
"""Times the Triton kernels of Mamba-2's scan, to be set beside `kernels mamba2` on the same card.

Usage: ssd_scan_triton.py DIR

DIR holds the Python package mamba_ssm (github.com/state-spaces/mamba; its mamba_ssm/ops/triton is all that is used).
The forward scan is its five kernels in its own order, 32 heads of 64, state 128, bf16, in CUDA graphs of 24 calls;
medians of 15 replays. "cold" takes inputs in turn from more than the card's L2 cache holds, "warm" the same ones
again. Needs PyTorch and Triton.
"""
import statistics
import sys

import torch

CALLS, REPLAYS, COLD_BYTES = 24, 15, 256 << 20
HEADS, HEAD_DIM, STATE = 32, 64, 128


def scan(inputs, layer, chunk):
    """mamba_ssm's chunked scan, forward alone: y and the final states."""
    from mamba_ssm.ops.triton.ssd_bmm import _bmm_chunk_fwd
    from mamba_ssm.ops.triton.ssd_chunk_scan import _chunk_scan_fwd
    from mamba_ssm.ops.triton.ssd_chunk_state import _chunk_cumsum_fwd, _chunk_state_fwd
    from mamba_ssm.ops.triton.ssd_state_passing import _state_passing_fwd
    x, dt, b, c = inputs
    sums, steps = _chunk_cumsum_fwd(dt, layer["a"], chunk, dt_bias=layer["dt_bias"], dt_softplus=True)
    states = _chunk_state_fwd(b, x, steps, sums, states_in_fp32=True)
    shape = states.shape
    states, final = _state_passing_fwd(states.flatten(3), sums[:, :, :, -1], initial_states=layer["state"].flatten(2),
                                       chunk_size=chunk, out_dtype=c.dtype)
    products = _bmm_chunk_fwd(c, b, chunk, output_dtype=torch.float32)
    y, _ = _chunk_scan_fwd(products, x, steps, sums, c, states.view(shape), D=layer["d"])
    return y, final


def make_inputs(tokens):
    """Views of one row of channels a token, as a block's convolution leaves them, and dt."""
    inner = HEADS * HEAD_DIM
    row = torch.randn(1, tokens, inner + 2 * STATE, device="cuda", dtype=torch.bfloat16)
    x = row[..., :inner].view(1, tokens, HEADS, HEAD_DIM)
    b = row[..., inner:inner + STATE].view(1, tokens, 1, STATE)
    c = row[..., inner + STATE:].view(1, tokens, 1, STATE)
    return x, torch.randn(1, tokens, HEADS, device="cuda"), b, c


def time_us(call):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(CALLS):
            kept = call(i)
    times = []
    for replay in range(REPLAYS + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 2:
            times.append(begin.elapsed_time(end) * 1e3 / CALLS)
    del kept
    return statistics.median(times)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.path.insert(0, sys.argv[1])
    torch.manual_seed(0)
    layer = {"a": -torch.empty(HEADS, device="cuda").uniform_(1, 16), "d": torch.ones(HEADS, device="cuda"),
             "dt_bias": torch.empty(HEADS, device="cuda").uniform_(-6.9, -2.2),
             "state": torch.randn(1, HEADS, HEAD_DIM, STATE, device="cuda")}
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, graphs of {CALLS} calls, medians of {REPLAYS}")
    for tokens in (4096, 16384):
        places = COLD_BYTES // (tokens * (2 * HEADS * HEAD_DIM + 2 * STATE) * 2) + 1
        inputs = [make_inputs(tokens) for _ in range(max(2, places))]
        for chunk in (256, 128):
            for _ in range(3):  # compiles and tunes
                scan(inputs[0], layer, chunk)
            torch.cuda.synchronize()
            cold = time_us(lambda i: scan(inputs[i % len(inputs)], layer, chunk))
            warm = time_us(lambda _: scan(inputs[0], layer, chunk))
            print(f"Triton scan 32 heads, state 128, 1 x {tokens:5} tokens, chunk {chunk}: cold {cold:7.1f} us, "
                  f"warm {warm:7.1f} us", flush=True)


if __name__ == "__main__":
    main()
