"""The operations of training that are worth kernels of their own, forward and backward, each beside its plain form.

    ssd  Mamba-2's scan in chunks of 64 (arXiv 2405.21060, section 6)
    hsa  attention inside each selected chunk, weighted by the chunks' weights (arXiv 2504.16795, section 3)
    swa  attention to the token itself and a window before it, by PyTorch's own kernels

The Triton kernels run on CUDA, and on the CPU where TRITON_INTERPRET is 1 (for tests); everything else takes the plain
form. Nothing of size length x length is kept. `python3 kernels.py` compares both on a GPU and times them; --tune tries
other launch shapes.
"""
import argparse
import math
import os

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

BLOCK = 64  # tokens a chunk; also the width of heads and states that the kernels take
LOWEST = -1e30  # an exponent that gives 0
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Warps and pipeline stages of each kernel.
LAUNCH = {
    "states": {"num_warps": 4, "num_stages": 3},
    "outputs": {"num_warps": 4, "num_stages": 2},
    "state_gradients": {"num_warps": 4, "num_stages": 3},
    "input_gradients": {"num_warps": 4, "num_stages": 2},
    "attend": {"num_warps": 4, "num_stages": 3},
    "query_gradients": {"num_warps": 4, "num_stages": 3},
    "key_gradients": {"num_warps": 4, "num_stages": 2},
}
STATE_PART = 16  # rows of a head's state that one program carries through the sequence


def runs_triton(tensor: torch.Tensor) -> bool:
    return triton is not None and (tensor.is_cuda or INTERPRETED)


# ---- Plain forms

def ssd_plain(xbc: torch.Tensor, dt: torch.Tensor, decay: torch.Tensor, init: torch.Tensor):
    """As `ssd`, for heads and states of any width. The length is a multiple of 64."""
    batch, length, heads = dt.shape
    width, states = init.shape[2:]
    chunks = length // BLOCK
    x, b, c = xbc.split([heads * width, states, states], -1)
    x = x.reshape(batch, chunks, BLOCK, heads, width).transpose(2, 3)          # [B, n, H, 64, P]
    b, c = (t.reshape(batch, chunks, 1, BLOCK, states) for t in (b, c))        # [B, n, 1, 64, N]
    dt = dt.view(batch, chunks, BLOCK, heads).transpose(2, 3)                  # [B, n, H, 64]
    total = (dt * decay[:, None]).cumsum(-1)                                   # log decay since the chunk's begin
    lower = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=xbc.device).tril()
    between = torch.exp((total[..., :, None] - total[..., None, :]).masked_fill(~lower, LOWEST))
    weights = (c @ b.mT).float() * between * dt[..., None, :]
    y = weights.to(xbc.dtype) @ x
    to_end = dt * torch.exp(total[..., -1:] - total)
    added = ((x.float() * to_end[..., None]).to(xbc.dtype).mT @ b).float()     # [B, n, H, P, N]
    state, before = init.float(), []
    for chunk in range(chunks):
        before.append(state)
        state = torch.exp(total[:, chunk, :, -1])[..., None, None] * state + added[:, chunk]
    carried = c @ torch.stack(before, 1).to(xbc.dtype).mT                      # [B, n, H, 64, P]
    y = y + carried * torch.exp(total)[..., None].to(xbc.dtype)
    return y.transpose(2, 3).reshape(batch, length, heads, width), state.detach()


def hsa_plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w: torch.Tensor, causal: bool) -> torch.Tensor:
    """As `hsa`, for heads of any width and query lengths that are no multiple of 64 unless causal."""
    batch, length, heads, width = q.shape
    chunks = w.shape[-1]
    if causal:
        own = torch.arange(length, device=w.device) // BLOCK
        w = w * (torch.arange(chunks, device=w.device) < own[:, None])
    scores = (q.transpose(1, 2) @ k[:, None].mT).float() / math.sqrt(width)    # [B, H, Lq, Lk]
    shares = torch.softmax(scores.unflatten(-1, (chunks, -1)), -1) * w[:, None, :, :, None].float()
    return (shares.flatten(-2).to(v.dtype) @ v[:, None]).transpose(1, 2)


# ---- The scan's kernels. H heads of 64, states of 64; a row of X holds x of all heads, then B, then C.

if triton is not None:

    @triton.jit
    def _states(X, DT, DA, INIT, STATES, FINAL, chunks, heads, row, PART: tl.constexpr):
        """Walks PART rows of one head's state through a sequence; STATES: before each chunk. Grid [B*H, 64/PART]"""
        head = tl.program_id(0) % heads
        sequence = tl.program_id(0) // heads
        r = tl.arange(0, 64)
        p = tl.program_id(1) * PART + tl.arange(0, PART)
        place = p[:, None] * 64 + r[None, :]
        state = tl.load(INIT + tl.program_id(0) * 4096 + place).to(tl.float32)
        for c in range(chunks):
            chunk = sequence * chunks + c
            t = chunk * 64 + r
            tl.store(STATES + (chunk * heads + head) * 4096 + place, state.to(STATES.dtype.element_ty))
            da = tl.load(DA + t * heads + head)
            to_end = tl.load(DT + t * heads + head) * tl.exp(tl.sum(da, 0) - tl.cumsum(da, 0))
            x = tl.load(X + t[:, None] * row + head * 64 + p[None, :])
            b = tl.load(X + t[:, None] * row + heads * 64 + r[None, :])
            x = (x.to(tl.float32) * to_end[:, None]).to(b.dtype)
            state = tl.exp(tl.sum(da, 0)) * state + tl.dot(tl.trans(x), b)
        tl.store(FINAL + tl.program_id(0) * 4096 + place, state)

    @triton.jit
    def _outputs(X, DT, DA, STATES, Y, heads, row, HEADS: tl.constexpr):
        """Outputs of one chunk, HEADS heads of it. Grid [B*chunks, H/HEADS]"""
        chunk = tl.program_id(0)
        r = tl.arange(0, 64)
        t = chunk * 64 + r
        b = tl.load(X + t[:, None] * row + heads * 64 + r[None, :])
        c = tl.load(X + t[:, None] * row + heads * 64 + 64 + r[None, :])
        products = tl.dot(c, tl.trans(b))
        for head in range(tl.program_id(1) * HEADS, tl.program_id(1) * HEADS + HEADS):
            x = tl.load(X + t[:, None] * row + head * 64 + r[None, :])
            state = tl.load(STATES + (chunk * heads + head) * 4096 + r[:, None] * 64 + r[None, :])
            dt = tl.load(DT + t * heads + head)
            total = tl.cumsum(tl.load(DA + t * heads + head), 0)
            between = tl.exp(tl.where(r[:, None] >= r[None, :], total[:, None] - total[None, :], -1e30))
            weights = products * between * dt[None, :]
            y = tl.dot(c, tl.trans(state)) * tl.exp(total)[:, None]
            y += tl.dot(weights.to(x.dtype), x)
            tl.store(Y + (t[:, None] * heads + head) * 64 + r[None, :], y.to(Y.dtype.element_ty))

    @triton.jit
    def _state_gradients(X, DA, DY, DSTATES, chunks, heads, row, PART: tl.constexpr):
        """The way back of _states; DSTATES: of the state after each chunk. Grid [B*H, 64/PART]"""
        head = tl.program_id(0) % heads
        sequence = tl.program_id(0) // heads
        r = tl.arange(0, 64)
        p = tl.program_id(1) * PART + tl.arange(0, PART)
        place = p[:, None] * 64 + r[None, :]
        gradient = tl.zeros([PART, 64], tl.float32)
        for i in range(chunks):
            chunk = sequence * chunks + chunks - 1 - i
            t = chunk * 64 + r
            tl.store(DSTATES + (chunk * heads + head) * 4096 + place, gradient.to(DSTATES.dtype.element_ty))
            da = tl.load(DA + t * heads + head)
            dy = tl.load(DY + (t[:, None] * heads + head) * 64 + p[None, :])
            c = tl.load(X + t[:, None] * row + heads * 64 + 64 + r[None, :])
            dy = (dy.to(tl.float32) * tl.exp(tl.cumsum(da, 0))[:, None]).to(c.dtype)
            gradient = tl.exp(tl.sum(da, 0)) * gradient + tl.dot(tl.trans(dy), c)

    @triton.jit
    def _input_gradients(X, DT, DA, STATES, DSTATES, DY, DX, DDT, DDA, heads, row):
        """Gradients of one chunk's inputs; those of B and C are summed over its heads on the chip. Grid [B*chunks]

        Two walks over the heads, as one would need more registers than there are; what the first finds for x, dt and
        the decay waits in DX, DDT and DDA.
        """
        chunk = tl.program_id(0)
        r = tl.arange(0, 64)
        t = chunk * 64 + r
        square = r[:, None] * 64 + r[None, :]
        b = tl.load(X + t[:, None] * row + heads * 64 + r[None, :])
        c = tl.load(X + t[:, None] * row + heads * 64 + 64 + r[None, :])

        # Inside the chunk: y = (C B' between dt) x
        products = tl.dot(c, tl.trans(b))
        d_products = tl.zeros([64, 64], tl.float32)
        for head in range(heads):
            x = tl.load(X + t[:, None] * row + head * 64 + r[None, :])
            dy = tl.load(DY + (t[:, None] * heads + head) * 64 + r[None, :])
            dt = tl.load(DT + t * heads + head)
            total = tl.cumsum(tl.load(DA + t * heads + head), 0)
            between = tl.exp(tl.where(r[:, None] >= r[None, :], total[:, None] - total[None, :], -1e30))
            d_weights = tl.dot(dy, tl.trans(x)) * between
            d_products += d_weights * dt[None, :]
            d_weights *= products
            weights = (products * between * dt[None, :]).to(x.dtype)
            dx = tl.dot(tl.trans(weights), dy)
            by_source = tl.sum(d_weights, 0)
            tl.store(DX + t[:, None] * row + head * 64 + r[None, :], dx.to(DX.dtype.element_ty))
            tl.store(DDT + t * heads + head, by_source)
            tl.store(DDA + t * heads + head, tl.sum(d_weights * dt[None, :], 1) - dt * by_source)
        d_products = d_products.to(b.dtype)
        db = tl.dot(tl.trans(d_products), c)
        dc = tl.dot(d_products, b)
        tl.debug_barrier()

        for head in range(heads):
            x = tl.load(X + t[:, None] * row + head * 64 + r[None, :])
            dy = tl.load(DY + (t[:, None] * heads + head) * 64 + r[None, :])
            state = tl.load(STATES + (chunk * heads + head) * 4096 + square)
            d_state = tl.load(DSTATES + (chunk * heads + head) * 4096 + square)
            dt = tl.load(DT + t * heads + head)
            da = tl.load(DA + t * heads + head)
            total = tl.cumsum(da, 0)
            last = tl.sum(da, 0)
            to_end = tl.exp(last - total)

            # What the state before gave: y += exp(total) C state'
            decayed = (dy.to(tl.float32) * tl.exp(total)[:, None]).to(x.dtype)
            part = tl.dot(decayed, state)
            dc += part
            d_total = tl.load(DDA + t * heads + head) + tl.sum(part * c.to(tl.float32), 1)

            # What the chunk gave to the state after: (x dt to_end)' B
            given = tl.dot(b, tl.trans(d_state)) * to_end[:, None]
            of_source = tl.sum(given * x.to(tl.float32), 1)
            d_total -= dt * of_source
            scaled = (x.to(tl.float32) * (dt * to_end)[:, None]).to(x.dtype)
            db += tl.dot(scaled, d_state)
            kept = tl.sum(tl.sum(state.to(tl.float32) * d_state.to(tl.float32), 1), 0)
            d_last = tl.sum(dt * of_source, 0) + tl.exp(last) * kept

            dx = tl.load(DX + t[:, None] * row + head * 64 + r[None, :]).to(tl.float32) + given * dt[:, None]
            ddt = tl.load(DDT + t * heads + head) + of_source
            dda = tl.sum(d_total, 0) - tl.cumsum(d_total, 0) + d_total + d_last
            tl.debug_barrier()
            tl.store(DX + t[:, None] * row + head * 64 + r[None, :], dx.to(DX.dtype.element_ty))
            tl.store(DDT + t * heads + head, ddt)
            tl.store(DDA + t * heads + head, dda)
        tl.store(DX + t[:, None] * row + heads * 64 + r[None, :], db.to(DX.dtype.element_ty))
        tl.store(DX + t[:, None] * row + heads * 64 + 64 + r[None, :], dc.to(DX.dtype.element_ty))

    # ---- HSA's kernels. A block is 64 queries of one sequence; each block visits the chunks that any of them selected.

    @triton.jit
    def _chunks_of_blocks(W, WEIGHTS, MARKS, CHUNKS, COUNTS, blocks, chunks, CAUSAL: tl.constexpr, WIDTH: tl.constexpr):
        """WEIGHTS: W [B*blocks, 64, chunks] with its last two axes swapped; MARKS: 1 at chunks to visit; CHUNKS: these,
        COUNTS of them. Grid [B*blocks]"""
        block = tl.program_id(0)
        r = tl.arange(0, 64)
        j = tl.arange(0, WIDTH)
        there = j < chunks
        if CAUSAL:
            there = there & (j < block % blocks)
        w = tl.load(W + (block * 64 + r[:, None]) * chunks + j[None, :], mask=there[None, :], other=0.0)
        tl.store(WEIGHTS + (block * chunks + j[None, :]) * 64 + r[:, None], w, mask=there[None, :])
        mark = (tl.max(w, 0) > 0).to(tl.int32)
        tl.store(MARKS + block * chunks + j, mark, mask=j < chunks)
        tl.store(CHUNKS + block * chunks + tl.cumsum(mark, 0) - 1, j, mask=mark > 0)
        tl.store(COUNTS + block, tl.sum(mark, 0))

    @triton.jit
    def _blocks_of_chunks(MARKS, BLOCKS, COUNTS, blocks, chunks, WIDTH: tl.constexpr):
        """BLOCKS: the blocks that visit a chunk, COUNTS of them. Grid [B*chunks]"""
        chunk = tl.program_id(0)
        i = tl.arange(0, WIDTH)
        mark = tl.load(MARKS + (chunk // chunks * blocks + i) * chunks + chunk % chunks, mask=i < blocks, other=0)
        tl.store(BLOCKS + chunk * blocks + tl.cumsum(mark, 0) - 1, i, mask=mark > 0)
        tl.store(COUNTS + chunk, tl.sum(mark, 0))

    @triton.jit
    def _attend(Q, K, V, WEIGHTS, CHUNKS, COUNTS, O, blocks, chunks, heads, scale):
        """Grid [H, B, blocks], the last blocks (that have most to visit) first"""
        head = tl.program_id(0)
        sequence = tl.program_id(1)
        block = sequence * blocks + blocks - 1 - tl.program_id(2)
        r = tl.arange(0, 64)
        square = r[:, None] * 64 + r[None, :]
        mine = ((block * 64 + r[:, None]) * heads + head) * 64 + r[None, :]
        q = tl.load(Q + mine)
        o = tl.zeros([64, 64], tl.float32)
        for visit in range(tl.load(COUNTS + block)):
            j = tl.load(CHUNKS + block * chunks + visit)
            k = tl.load(K + (sequence * chunks + j) * 4096 + square)
            v = tl.load(V + (sequence * chunks + j) * 4096 + square)
            w = tl.load(WEIGHTS + (block * chunks + j) * 64 + r)
            s = tl.dot(q, tl.trans(k)) * scale
            p = tl.exp2(s - tl.max(s, 1)[:, None])
            p = p * (w / tl.sum(p, 1))[:, None]
            o += tl.dot(p.to(v.dtype), v)
        tl.store(O + mine, o.to(O.dtype.element_ty))

    @triton.jit
    def _query_gradients(Q, K, V, WEIGHTS, CHUNKS, COUNTS, DO, DQ, DWEIGHTS, blocks, chunks, heads, scale,
                         softmax_scale):
        """Grid [H, B, blocks]. A weight's gradient is summed over heads in memory; one that is 0 gets none."""
        head = tl.program_id(0)
        sequence = tl.program_id(1)
        block = sequence * blocks + blocks - 1 - tl.program_id(2)
        r = tl.arange(0, 64)
        square = r[:, None] * 64 + r[None, :]
        mine = ((block * 64 + r[:, None]) * heads + head) * 64 + r[None, :]
        q = tl.load(Q + mine)
        do = tl.load(DO + mine)
        dq = tl.zeros([64, 64], tl.float32)
        for visit in range(tl.load(COUNTS + block)):
            j = tl.load(CHUNKS + block * chunks + visit)
            k = tl.load(K + (sequence * chunks + j) * 4096 + square)
            v = tl.load(V + (sequence * chunks + j) * 4096 + square)
            w = tl.load(WEIGHTS + (block * chunks + j) * 64 + r)
            s = tl.dot(q, tl.trans(k)) * scale
            p = tl.exp2(s - tl.max(s, 1)[:, None])
            p = p / tl.sum(p, 1)[:, None]
            dp = tl.dot(do, tl.trans(v))
            dw = tl.sum(p * dp, 1)
            tl.atomic_add(DWEIGHTS + (block * chunks + j) * 64 + r, dw, mask=w > 0)
            ds = p * (dp - dw[:, None]) * w[:, None]
            dq += tl.dot(ds.to(k.dtype), k)
        tl.store(DQ + mine, (dq * softmax_scale).to(DQ.dtype.element_ty))

    @triton.jit
    def _key_gradients(Q, K, V, WEIGHTS, BLOCKS, COUNTS, DO, DK, DV, blocks, chunks, heads, scale, softmax_scale,
                       HEADS: tl.constexpr):
        """Of one chunk's keys and values, summed over HEADS heads: DK [H/HEADS, B, Lk, 64]. Grid [H/HEADS, B, C]"""
        sequence = tl.program_id(1)
        chunk = sequence * chunks + tl.program_id(2)
        r = tl.arange(0, 64)
        square = r[:, None] * 64 + r[None, :]
        k = tl.load(K + chunk * 4096 + square)
        v = tl.load(V + chunk * 4096 + square)
        dk = tl.zeros([64, 64], tl.float32)
        dv = tl.zeros([64, 64], tl.float32)
        for visit in range(tl.load(COUNTS + chunk) * HEADS):
            block = sequence * blocks + tl.load(BLOCKS + chunk * blocks + visit // HEADS)
            head = tl.program_id(0) * HEADS + visit % HEADS
            theirs = ((block * 64 + r[:, None]) * heads + head) * 64 + r[None, :]
            q = tl.load(Q + theirs)
            do = tl.load(DO + theirs)
            w = tl.load(WEIGHTS + (block * chunks + tl.program_id(2)) * 64 + r)
            s = tl.dot(q, tl.trans(k)) * scale
            p = tl.exp2(s - tl.max(s, 1)[:, None])
            p = p / tl.sum(p, 1)[:, None]
            dp = tl.dot(do, tl.trans(v))
            dw = tl.sum(p * dp, 1)
            p = p * w[:, None]
            dv += tl.dot(tl.trans(p.to(v.dtype)), do)
            ds = p * (dp - dw[:, None])
            dk += tl.dot(tl.trans(ds.to(q.dtype)), q)
        out = (tl.program_id(0) * tl.num_programs(1) * chunks + chunk) * 4096 + square
        tl.store(DK + out, dk * softmax_scale)
        tl.store(DV + out, dv)


# ---- The scan

@torch.library.custom_op("recalld::ssd", mutates_args=())
def _ssd(xbc: torch.Tensor, dt: torch.Tensor, da: torch.Tensor,
         init: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    xbc, dt, da, init = (t.contiguous() for t in (xbc, dt, da, init))
    batch, length, heads = dt.shape
    chunks, row = length // BLOCK, xbc.shape[-1]
    y = xbc.new_empty(batch, length, heads, BLOCK)
    states = xbc.new_empty(batch, chunks, heads, BLOCK, BLOCK)
    final = torch.empty_like(init)
    _states[(batch * heads, BLOCK // STATE_PART)](xbc, dt, da, init, states, final, chunks, heads, row, PART=STATE_PART,
                                                  **LAUNCH["states"])
    together = next(n for n in (4, 3, 2, 1) if heads % n == 0)
    _outputs[(batch * chunks, heads // together)](xbc, dt, da, states, y, heads, row, HEADS=together,
                                                  **LAUNCH["outputs"])
    return y, states, final


@_ssd.register_fake
def _(xbc, dt, da, init):
    batch, length, heads = dt.shape
    return (xbc.new_empty(batch, length, heads, BLOCK), xbc.new_empty(batch, length // BLOCK, heads, BLOCK, BLOCK),
            init.new_empty(init.shape))


@torch.library.custom_op("recalld::ssd_backward", mutates_args=())
def _ssd_backward(xbc: torch.Tensor, dt: torch.Tensor, da: torch.Tensor, states: torch.Tensor,
                  dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    xbc, dt, da, states, dy = (t.contiguous() for t in (xbc, dt, da, states, dy))
    batch, length, heads = dt.shape
    chunks, row = length // BLOCK, xbc.shape[-1]
    d_states = torch.empty_like(states)
    dx, ddt, dda = torch.empty_like(xbc), torch.empty_like(dt), torch.empty_like(da)
    _state_gradients[(batch * heads, BLOCK // STATE_PART)](xbc, da, dy, d_states, chunks, heads, row, PART=STATE_PART,
                                                           **LAUNCH["state_gradients"])
    _input_gradients[(batch * chunks,)](xbc, dt, da, states, d_states, dy, dx, ddt, dda, heads, row,
                                        **LAUNCH["input_gradients"])
    return dx, ddt, dda


@_ssd_backward.register_fake
def _(xbc, dt, da, states, dy):
    return xbc.new_empty(xbc.shape), dt.new_empty(dt.shape), da.new_empty(da.shape)


def _keep_ssd(ctx, inputs, output):
    xbc, dt, da, _ = inputs
    ctx.save_for_backward(xbc, dt, da, output[1])


def _ssd_gradients(ctx, dy, d_states, d_final):
    xbc, dt, da, states = ctx.saved_tensors
    return *_ssd_backward(xbc, dt, da, states, dy.to(xbc.dtype)), None


_ssd.register_autograd(_ssd_gradients, setup_context=_keep_ssd)


def _ssd_of_a_token(xbc, dt, decay, init):
    """The recurrence itself."""
    heads, width, states = init.shape[1:]
    x, b, c = xbc[:, 0].float().split([heads * width, states, states], -1)
    step = dt[:, 0, :, None, None]  # [B, H, 1, 1]
    added = step * x.unflatten(-1, (heads, width))[..., None] * b[:, None, None]
    state = torch.exp(step * decay[:, None, None]) * init + added
    return (state @ c[:, None, :, None])[:, None, ..., 0].to(xbc.dtype), state.detach()


def ssd(xbc: torch.Tensor, dt: torch.Tensor, decay: torch.Tensor, init: torch.Tensor):
    """state_t = exp(dt_t decay) state + dt_t x_t B_t', y_t = state_t C_t, a head.

    xbc [B, L, H*P + 2N] = x of all heads | B | C · dt [B, L, H] fp32, above 0 · decay [H] fp32, below 0 · init
    [B, H, P, N] -> y [B, L, H, P], the state after the last token, fp32. No gradient goes through states.
    """
    length = xbc.shape[1]
    if length == 1:
        return _ssd_of_a_token(xbc, dt, decay, init.detach().float())
    short = -length % BLOCK
    if short:  # dt = 0 changes no state
        xbc, dt = F.pad(xbc, (0, 0, 0, short)), F.pad(dt, (0, 0, 0, short))
    init = init.detach().float()
    if runs_triton(xbc) and init.shape[2:] == (BLOCK, BLOCK):
        y, _, final = _ssd(xbc, dt, dt * decay, init)
        final = final.detach()
    else:
        y, final = ssd_plain(xbc, dt, decay, init)
    return (y[:, :length] if short else y), final


# ---- Hierarchical sparse attention

def _visits(w: torch.Tensor, causal: bool):
    """w [B, Lq, C] -> its blocks with the axes swapped [B, blocks, C, 64], chunks of each block and their number,
    blocks of each chunk and their number."""
    batch, length, chunks = w.shape
    blocks = length // BLOCK
    weights = w.new_empty(batch, blocks, chunks, BLOCK)
    numbers = {"dtype": torch.int32, "device": w.device}
    marks, of_blocks = (torch.empty(batch, blocks, chunks, **numbers) for _ in range(2))
    of_chunks = torch.empty(batch, chunks, blocks, **numbers)
    block_counts, chunk_counts = torch.empty(batch, blocks, **numbers), torch.empty(batch, chunks, **numbers)
    _chunks_of_blocks[(batch * blocks,)](w, weights, marks, of_blocks, block_counts, blocks, chunks, CAUSAL=causal,
                                         WIDTH=triton.next_power_of_2(chunks))
    _blocks_of_chunks[(batch * chunks,)](marks, of_chunks, chunk_counts, blocks, chunks,
                                         WIDTH=triton.next_power_of_2(blocks))
    return weights, of_blocks, block_counts, of_chunks, chunk_counts


def _scales(width: int) -> tuple[float, float]:
    """Of logits before exp2, and of gradients through them."""
    return width ** -0.5 * math.log2(math.e), width ** -0.5


@torch.library.custom_op("recalld::hsa", mutates_args=())
def _hsa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w: torch.Tensor, causal: bool) -> torch.Tensor:
    q, k, v, w = (t.contiguous() for t in (q, k, v, w))
    batch, length, heads, width = q.shape
    weights, of_blocks, counts, _, _ = _visits(w, causal)
    o = torch.empty_like(q)
    _attend[(heads, batch, length // BLOCK)](q, k, v, weights, of_blocks, counts, o, length // BLOCK, w.shape[-1],
                                             heads, _scales(width)[0], **LAUNCH["attend"])
    return o


@_hsa.register_fake
def _(q, k, v, w, causal):
    return q.new_empty(q.shape)


@torch.library.custom_op("recalld::hsa_backward", mutates_args=())
def _hsa_backward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w: torch.Tensor, do: torch.Tensor,
                  causal: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v, w, do = (t.contiguous() for t in (q, k, v, w, do))
    batch, length, heads, width = q.shape
    chunks, blocks = w.shape[-1], length // BLOCK
    weights, of_blocks, block_counts, of_chunks, chunk_counts = _visits(w, causal)
    dq, d_weights = torch.empty_like(q), torch.zeros_like(weights)
    _query_gradients[(heads, batch, blocks)](q, k, v, weights, of_blocks, block_counts, do, dq, d_weights, blocks,
                                             chunks, heads, *_scales(width), **LAUNCH["query_gradients"])
    together = next(n for n in (4, 3, 2, 1) if heads % n == 0)
    dk, dv = (torch.empty(heads // together, *k.shape, dtype=torch.float32, device=k.device) for _ in range(2))
    _key_gradients[(heads // together, batch, chunks)](q, k, v, weights, of_chunks, chunk_counts, do, dk, dv, blocks,
                                                       chunks, heads, *_scales(width), HEADS=together,
                                                       **LAUNCH["key_gradients"])
    dw = d_weights.transpose(2, 3).reshape(w.shape)
    return dq, dk.sum(0).to(k.dtype), dv.sum(0).to(v.dtype), dw


@_hsa_backward.register_fake
def _(q, k, v, w, do, causal):
    return tuple(t.new_empty(t.shape) for t in (q, k, v, w))


def _keep_hsa(ctx, inputs, output):
    *tensors, ctx.causal = inputs
    ctx.save_for_backward(*tensors)


def _hsa_gradients(ctx, do):
    q, k, v, w = ctx.saved_tensors
    return *_hsa_backward(q, k, v, w, do.to(q.dtype), ctx.causal), None


_hsa.register_autograd(_hsa_gradients, setup_context=_keep_hsa)


def hsa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w: torch.Tensor, causal: bool) -> torch.Tensor:
    """o = sum over chunks j of w_j softmax(q K_j' / sqrt(d)) V_j; a weight of 0 is a chunk that was not selected, and
    gets no gradient.

    q [B, Lq, H, d], k and v [B, Lk, d], w [B, Lq, Lk/64] -> [B, Lq, H, d]. With `causal` queries and keys are of one
    stream, and only chunks before the query's own are read; otherwise all with a weight. Lengths: multiples of 64.
    """
    if runs_triton(q) and q.shape[-1] == BLOCK:
        return _hsa(q, k.to(q.dtype), v.to(q.dtype), w.float(), causal)
    return hsa_plain(q, k, v, w, causal)


# ---- Sliding-window attention

def swa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    """Attention to the token itself and `window` tokens before it: k, v [B, H, L, d], q [B, H, n, d] of the last n tokens
    -> [B, H, n, d].

    Blocks as long as the window read themselves and the block before, so that PyTorch's fused kernels can be used.
    """
    batch, heads, length, width = k.shape
    tokens = q.shape[2]
    if tokens == 1:
        return F.scaled_dot_product_attention(q, k[:, :, -window - 1:], v[:, :, -window - 1:])
    if tokens < length:
        return swa(F.pad(q, (0, 0, length - tokens, 0)), k, v, window)[:, :, -tokens:]
    if length <= window + 1:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    short = -length % window
    blocks = (length + short) // window
    q = F.pad(q, (0, 0, 0, short)).view(batch * heads, blocks, window, width)

    def with_block_before(t):
        t = F.pad(t, (0, 0, window, short)).view(batch * heads, blocks + 1, window, width)
        return torch.cat([t[:, :-1], t[:, 1:]], 2)

    query = torch.arange(window, device=q.device)[:, None] + window
    key = torch.arange(2 * window, device=q.device)
    seen = (key <= query) & (key >= query - window)
    first = seen & (key >= window)
    mask = torch.cat([first[None], seen.expand(blocks - 1, -1, -1)])[None]
    out = F.scaled_dot_product_attention(q, with_block_before(k), with_block_before(v), attn_mask=mask)
    return out.view(batch, heads, length + short, width)[:, :, :length]


# ---- Checks and times

def ssd_inputs(device: str, dtype: torch.dtype, batch: int, length: int, heads: int):
    """xbc, dt, decay, init"""
    def normal(*shape):
        return torch.randn(*shape, device=device)
    xbc = torch.cat([normal(batch, length, heads * BLOCK), 0.3 * normal(batch, length, 2 * BLOCK)], -1).to(dtype)
    dt, decay = F.softplus(normal(batch, length, heads)), -torch.exp(normal(heads))
    return xbc, dt, decay, 0.1 * normal(batch, heads, BLOCK, BLOCK)


def hsa_inputs(device: str, dtype: torch.dtype, batch: int, queries: int, keys: int, heads: int, causal: bool,
               top: int):
    """q, k, v, w; spans of 16 tokens mostly select the same chunks, as they do in text."""
    q = torch.randn(batch, queries, heads, BLOCK, device=device).to(dtype)
    k, v = (torch.randn(batch, keys, BLOCK, device=device).to(dtype) for _ in range(2))
    chunks = keys // BLOCK
    scores = torch.randn(batch, queries // 16, chunks, device=device).repeat_interleave(16, 1)
    scores = scores + 0.3 * torch.randn(batch, queries, chunks, device=device)
    if causal:
        own = torch.arange(queries, device=device) // BLOCK
        scores = scores.masked_fill(torch.arange(chunks, device=device) >= own[:, None], LOWEST)
    best, index = scores.topk(min(top, chunks), -1)
    w = torch.zeros_like(scores).scatter(-1, index, torch.softmax(best, -1)) * (scores > LOWEST)
    return q, k, v, w


def gradients(function, inputs, direction: torch.Tensor):
    """Outputs of function(*inputs) and the gradients of those inputs that are to have one, in fp32."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    out[0].backward(direction.to(out[0].dtype))
    return [t.detach().float() for t in out] + [t.grad.float() for t in leaves if t.grad is not None]


def relative_errors(names: str, function, plain, inputs, direction) -> dict[str, float]:
    """Of the function against the plain form in fp32."""
    expected = gradients(plain, [t.float() for t in inputs], direction.float())
    got = gradients(function, inputs, direction)
    assert len(got) == len(expected) == len(names.split())
    return {name: float((a - b).norm() / b.norm()) for name, a, b in zip(names.split(), got, expected)}


def check(device: str, dtype: torch.dtype, batch: int = 2, length: int = 256, scan_heads: int = 3, heads: int = 2):
    """Relative errors of every output and gradient, by name."""
    torch.manual_seed(0)
    inputs = ssd_inputs(device, dtype, batch, length, scan_heads)
    direction = torch.randn(batch, length, scan_heads, BLOCK, device=device).to(dtype)

    def of_three(function):
        return lambda xbc, dt, decay: function(xbc, dt, decay, inputs[3])

    errors = {"ssd " + name: error for name, error in relative_errors(
        "y state dxbc ddt ddecay", of_three(ssd), of_three(ssd_plain), inputs[:3], direction).items()}
    for causal, queries in ((True, length), (False, 128)):
        inputs_hsa = hsa_inputs(device, dtype, batch, queries, length, heads, causal, top=3)
        selected = (inputs_hsa[3] > 0).float()
        direction = torch.randn(batch, queries, heads, BLOCK, device=device).to(dtype)

        def of_selected(function):
            return lambda q, k, v, w: function(q, k, v, w * selected, causal)

        errors |= {f"hsa {'causal' if causal else 'rows'} {name}": error for name, error in relative_errors(
            "o dq dk dv dw", of_selected(hsa), of_selected(hsa_plain), inputs_hsa, direction).items()}
    return errors


def time_ms(call, repeats: int = 20) -> float:
    """The median."""
    times = []
    for repeat in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        if repeat >= 3:
            times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def training_calls(batch: int, length: int):
    """name -> (what to time, given a function; the kernels; the plain form), at the starter's sizes."""
    xbc, dt, decay, init = ssd_inputs("cuda", torch.bfloat16, batch, length, 12)
    dy = torch.randn(batch, length, 12, BLOCK, device="cuda", dtype=torch.bfloat16)
    q, k, v, w = hsa_inputs("cuda", torch.bfloat16, batch, length, length, 6, True, top=8)
    do = torch.randn_like(q)
    for tensor in (xbc, dt, decay, q, k, v, w):
        tensor.requires_grad_()
    leaves = {"ssd": (xbc, dt, decay), "hsa": (q, k, v, w)}

    def forward(name, function):
        return function(xbc, dt, decay, init)[0] if name == "ssd" else function(q, k, v, w, True)

    def both(name, function):
        torch.autograd.grad(forward(name, function), leaves[name], dy if name == "ssd" else do)

    return {"ssd": (forward, both, ssd, ssd_plain), "hsa": (forward, both, hsa, hsa_plain)}


def tune(calls) -> None:
    """Times of forward and backward with other warps and stages, one kernel after the other."""
    for kernel, chosen in LAUNCH.items():
        name = "hsa" if kernel in ("attend", "query_gradients", "key_gradients") else "ssd"
        _, both, function, _ = calls[name]
        for warps in (4, 8):
            for stages in (1, 2, 3, 4):
                LAUNCH[kernel] = {"num_warps": warps, "num_stages": stages}
                try:
                    took = f"{time_ms(lambda: both(name, function)):.3f} ms"
                except Exception as error:  # too much shared memory
                    took = f"{type(error).__name__}"
                mark = " (chosen)" if LAUNCH[kernel] == chosen else ""
                print(f"{kernel:16} {warps} warps {stages} stages: {name} {took}{mark}", flush=True)
        LAUNCH[kernel] = chosen


def main() -> None:
    parser = argparse.ArgumentParser(description="Checks the kernels against their plain forms and times them.")
    parser.add_argument("--tune", action="store_true", help="try other launch shapes")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=4096)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("kernels: this needs a GPU; tests/test_kernels.py checks them without")
    worst = check("cuda", torch.bfloat16, 2, 1024, 12, 6)
    for name, error in worst.items():
        print(f"{name:20} {error:.2e}")
    if max(worst.values()) > 2e-2:
        raise SystemExit("kernels: a relative error is above 2e-2")
    calls = training_calls(args.batch, args.length)
    for name, (forward, both, function, plain) in calls.items():
        for what, call in (("forward", forward), ("forward and backward", both)):
            own, other = (time_ms(lambda f=f: call(name, f)) for f in (function, plain))
            print(f"{name} {what}: {own:.3f} ms, plain {other:.3f} ms ({other / own:.1f} x)", flush=True)
    if args.tune:
        tune(calls)


if __name__ == "__main__":
    main()
