"""RAMba and its sliding-window sibling in PyTorch, for training: the mathematics of the model folder, with gradients.

Parameters carry the reference implementation's names, so that a checkpoint is a plain state_dict. Shapes: B sequences,
L tokens (a multiple of 64), C = L/64 chunks, G rows a sequence of T tokens each, d the hidden size, r the retrieval
width, H attention heads.
"""
import math
from dataclasses import asdict, dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import nn

import kernels

CHUNK = 64
HIDDEN = -1e30  # a score that nothing selects


@dataclass
class Config:
    """config.json, with the reference's keys; the defaults are the starter's."""
    model_type: str = "ramba"  # or "swa_hsa": sliding-window attention in the place of Mamba-2
    hidden_size: int = 384
    expand: int = 2
    head_dim: int = 64
    num_heads: int = 12
    state_size: int = 64
    conv_kernel: int = 4
    n_groups: int = 1
    vocab_size: int = 8192
    tie_word_embeddings: bool = True
    layer_norm_epsilon: float = 1e-5
    rms_norm_eps: float = 1e-5
    num_lower_layers: int = 4
    num_upper_layers: int = 4
    num_upper_groups: int = 1
    num_mamba_per_gca: int = 2
    encoder_layers: int = 1
    num_attention_heads: int = 6
    num_kv_heads: int = 1
    attention_head_dim: int = 64
    retrieval_dim: int = 256
    chunk_size: int = CHUNK
    chunk_topk: int = 8
    enable_softmax: bool = True
    stick_slope: float = 0.0   # above 0: stick-breaking over scores counted from the best one
    stick_margin: float = 0.0  # likewise: chunks less than this below it compete by age
    enable_softmax1: bool = False
    enable_pos_decay: bool = False
    enable_qk_norm: bool = True
    enable_lmk_norm: bool = True
    enable_enc_cls: bool = True
    enc_prenorm: bool = False
    mask_slide_window: bool = False
    hsa_mlp: bool = True
    reset_hsa_residual: bool = False
    singlehead_retrieval: bool = True
    rope_theta: float = 10000.0
    encoder_bias: bool = False
    sliding_window: int = 512  # of swa_hsa: tokens before the token itself, a multiple of 64
    swa_kv_heads: int = 0      # of swa_hsa; 0: num_attention_heads
    recall_token_id: int = 3
    newline_token_id: int = 6
    tokenizer: str = "sentencepiece"
    torch_dtype: str = "bfloat16"

    # What is not trained here.
    FIXED = {"n_groups": 1, "tie_word_embeddings": True, "num_kv_heads": 1, "chunk_size": CHUNK,
             "enable_softmax1": False, "enable_qk_norm": True, "enable_lmk_norm": True, "enc_prenorm": False,
             "mask_slide_window": False, "hsa_mlp": True, "singlehead_retrieval": True, "encoder_bias": False}

    def __post_init__(self):
        for key, value in self.FIXED.items():
            if getattr(self, key) != value:
                raise ValueError(f"config: {key} must be {value} to be trained here, got {getattr(self, key)}")
        if self.model_type not in BLOCKS:
            raise ValueError(f"config: model_type must be one of {sorted(BLOCKS)}, got {self.model_type}")
        if (self.stick_slope > 0) != (self.stick_margin > 0) or (self.enable_softmax and self.stick_slope):
            raise ValueError("config: stick_slope and stick_margin are of stick-breaking, both or neither above 0")
        if self.encoder_layers < 1:
            raise ValueError("config: encoder_layers must be above 0")
        if self.num_heads * self.head_dim != self.expand * self.hidden_size:
            raise ValueError("config: num_heads * head_dim must be expand * hidden_size")
        if self.num_upper_layers % (self.num_upper_groups * self.num_mamba_per_gca):
            raise ValueError("config: num_upper_layers must be a multiple of num_upper_groups * num_mamba_per_gca")
        if self.sliding_window < CHUNK or self.sliding_window % CHUNK:
            raise ValueError(f"config: sliding_window must be a multiple of {CHUNK}, got {self.sliding_window}")
        self.swa_kv_heads = self.swa_kv_heads or self.num_attention_heads
        if self.num_attention_heads % self.swa_kv_heads:
            raise ValueError("config: num_attention_heads must be a multiple of swa_kv_heads")

    @classmethod
    def from_reference(cls, json: dict) -> "Config":
        names = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in json.items() if key in names})

    def to_reference(self) -> dict:
        out = asdict(self)
        if not self.stick_slope:
            del out["stick_slope"], out["stick_margin"]
        if self.model_type == "ramba":
            del out["sliding_window"], out["swa_kv_heads"]
        return out

    @property
    def absolute_scores(self) -> bool:
        """Whether a chunk's weight depends on where its score lies, and not only on how it compares with the others."""
        return not self.enable_softmax and not self.stick_slope

    @property
    def mlp_size(self) -> int:
        return self.hidden_size * 8 // 3 // 64 * 64

    @property
    def stages_of_group(self) -> int:
        """HSA layers, each with its blocks, after one retrieval."""
        return self.num_upper_layers // self.num_mamba_per_gca // self.num_upper_groups


# ---- Parts

class RMSNorm(nn.Module):
    """In fp32, whatever the type of x."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def together(x: torch.Tensor, *layers: nn.Linear) -> torch.Tensor:
    """One product for layers of one input, their outputs side by side."""
    return F.linear(x, torch.cat([layer.weight for layer in layers]))


def rope(x: torch.Tensor, theta: float, first: int = 0) -> torch.Tensor:
    """Turns x [..., T, width] by the angles of positions first .. first+T-1 (halves). Only differences of positions
    matter."""
    tokens, width = x.shape[-2:]
    frequencies = theta ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angles = torch.arange(first, first + tokens, device=x.device, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


class Mlp(nn.Module):
    """SwiGLU"""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = linear(config.hidden_size, config.mlp_size)
        self.up_proj = linear(config.hidden_size, config.mlp_size)
        self.down_proj = linear(config.mlp_size, config.hidden_size)

    def forward(self, x):
        gate, up = together(x, self.gate_proj, self.up_proj).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class SelfAttention(nn.Module):
    """With RoPE and an RMSNorm of each head's q and k. window: None reads everything, both ways."""

    def __init__(self, config: Config, heads: int, kv_heads: int, width: int, window: int | None):
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, width
        self.window, self.theta = window, config.rope_theta
        self.q_proj = linear(config.hidden_size, heads * width)
        self.k_proj, self.v_proj = (linear(config.hidden_size, kv_heads * width) for _ in range(2))
        self.o_proj = linear(heads * width, config.hidden_size)
        self.q_norm, self.k_norm = (RMSNorm(width, config.rms_norm_eps) for _ in range(2))

    def forward(self, x, before=()):
        """[n, T, d] -> [n, T, d], before; before: keys and values [n, heads, <= window, width] of the tokens before, if
        these are read too; not turned yet."""
        count, tokens, _ = x.shape
        qkv = together(x, self.q_proj, self.k_proj, self.v_proj).view(count, tokens, -1, self.width).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 1)
        q, k, earlier = self.q_norm(q), self.k_norm(k), 0
        if before:
            earlier = before[0].shape[2]
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
            before = k[:, :, -self.window:], v[:, :, -self.window:]
        q, k = rope(q, self.theta, earlier), rope(k, self.theta)
        if self.kv_heads < self.heads:  # each is shared by neighbours
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        if self.window is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = kernels.swa(q, k, v, self.window)
        return self.o_proj(out.transpose(1, 2).reshape(count, tokens, -1)), before


# ---- Blocks: forward(hidden [n, T, d], state) -> hidden, state. A state is a tuple of tensors [n, ...].

class Conv1d(nn.Module):
    """Of each channel alone, over a token and those before it, as shifted products."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        """[n, T + width - 1, channels] -> [n, T, channels]"""
        width = self.weight.shape[-1]
        tokens = x.shape[1] - width + 1
        weight = self.weight[:, 0].to(x.dtype)
        return self.bias.to(x.dtype) + sum(x[:, i:i + tokens] * weight[:, i] for i in range(width))


class Mamba2Mixer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.heads, self.head_dim, self.states = config.num_heads, config.head_dim, config.state_size
        self.inner = self.heads * self.head_dim
        self.channels = self.inner + 2 * self.states
        self.in_proj = linear(config.hidden_size, self.inner + self.channels + self.heads)
        self.conv1d = Conv1d(self.channels, config.conv_kernel)
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = RMSNorm(self.inner, config.layer_norm_epsilon)
        self.out_proj = linear(self.inner, config.hidden_size)

    def forward(self, x, state):
        """x [n, T, d], state: last inputs of the convolution [n, width - 1, channels], SSM state [n, H, P, N]"""
        before, ssm = state
        gate, xbc, dt = self.in_proj(x).split([self.inner, self.channels, self.heads], -1)
        xbc = torch.cat([before.to(xbc.dtype), xbc], 1)
        before = xbc[:, xbc.shape[1] - before.shape[1]:].detach().float()
        xbc = F.silu(self.conv1d(xbc))
        dt = F.softplus(dt.float() + self.dt_bias.float())
        y, ssm = kernels.ssd(xbc, dt, -torch.exp(self.A_log.float()), ssm)
        inputs = xbc[..., :self.inner].unflatten(-1, (self.heads, self.head_dim))
        y = (y + inputs * self.D.to(xbc.dtype)[:, None]).flatten(2)
        return self.out_proj(self.norm(y * F.silu(gate))), (before, ssm)


class Mamba2Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = Mamba2Mixer(config)

    def forward(self, hidden, state):
        out, state = self.mixer(self.norm(hidden), state)
        return hidden + out, state

    def zero_state(self, count: int, device, windows: bool = False) -> tuple[torch.Tensor, ...]:
        mixer = self.mixer
        return (torch.zeros(count, mixer.conv1d.weight.shape[-1] - 1, mixer.channels, device=device),
                torch.zeros(count, mixer.heads, mixer.head_dim, mixer.states, device=device))


class SlidingWindowBlock(nn.Module):
    """In training its windows begin where the sequence does. A state that is not empty, the keys and values of the last
    window, is read and carried on."""

    def __init__(self, config: Config):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, config.num_attention_heads, config.swa_kv_heads,
                                       config.attention_head_dim, config.sliding_window)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, hidden, state):
        attended, state = self.self_attn(self.norm(hidden), state)
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), state

    def zero_state(self, count: int, device, windows: bool = False) -> tuple[torch.Tensor, ...]:
        nothing = torch.zeros(count, self.self_attn.kv_heads, 0, self.self_attn.width, device=device)
        return (nothing, nothing) if windows else ()


BLOCKS = {"ramba": Mamba2Block, "swa_hsa": SlidingWindowBlock}


# ---- Chunks

class EncoderLayer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        heads = config.num_attention_heads
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, heads, heads, config.hidden_size // heads, None)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))[0]
        return x + self.mlp(self.post_attention_layernorm(x))


class Encoder(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


@dataclass
class Memory:
    """What is kept of chunks."""
    keys: torch.Tensor       # [B, L, 64]
    values: torch.Tensor     # [B, L, 64]
    summaries: torch.Tensor  # [B, C, r] landmarks before a group's norm

    def joined(self, count: int) -> "Memory":
        """Of each `count` neighbouring sequences one, with the chunks of the first as the oldest."""
        return Memory(*(t.reshape(t.shape[0] // count, -1, t.shape[-1]) for t in (self.keys, self.values, self.summaries)))


class Chunking(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        if config.enable_enc_cls:
            self.cls_emb = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.has_cls = config.enable_enc_cls
        self.encoder = Encoder(config)
        self.proj_k = linear(config.hidden_size, config.attention_head_dim)
        self.proj_v = linear(config.hidden_size, config.attention_head_dim)
        self.k_rmsnorm = RMSNorm(config.attention_head_dim, config.rms_norm_eps)
        self.lmk_ln = linear(config.hidden_size, config.retrieval_dim)

    def forward(self, hidden) -> Memory:
        """[B, L, d] after the lower layers"""
        batch, length, width = hidden.shape
        x = hidden.reshape(-1, CHUNK, width)
        if self.has_cls:
            x = torch.cat([x, self.cls_emb.flatten().to(x.dtype).expand(x.shape[0], 1, width)], 1)
        x = self.encoder(x)
        summary = x[:, CHUNK] if self.has_cls else x.mean(1)
        tokens = x[:, :CHUNK].reshape(batch, length, width)
        keys, values = together(tokens, self.proj_k, self.proj_v).chunk(2, -1)
        return Memory(self.k_rmsnorm(keys), values, self.lmk_ln(summary).view(batch, length // CHUNK, -1))


class Retrieval(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.top, self.softmax = config.chunk_topk, config.enable_softmax
        self.stick = (config.stick_slope, config.stick_margin) if config.stick_slope else None
        self.pre_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ln = linear(config.hidden_size, config.retrieval_dim)
        self.lmk_q_norm, self.lmk_k_norm = (RMSNorm(config.retrieval_dim, config.rms_norm_eps) for _ in range(2))
        if config.enable_pos_decay:
            self.pos_decay = nn.Parameter(torch.zeros(1))
        self.decays = config.enable_pos_decay

    def queries(self, hidden):
        """[..., d] -> [..., r]"""
        return self.lmk_q_norm(self.ln(self.pre_norm(hidden)))

    def scores(self, hidden, landmarks):
        """[B, n, d] and [B, C, r] -> [B, n, C]. Summed and kept in fp32: in bf16 many would tie."""
        queries = self.queries(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return queries.float() @ landmarks.float().mT / math.sqrt(queries.shape[-1])

    def log_weights(self, scores, visible):
        """Of the selected chunks, HIDDEN elsewhere. scores [B, n, C], visible: bool, of a shape that spreads to theirs"""
        masked = scores.detach().masked_fill(~visible, HIDDEN)
        best = masked.topk(min(self.top, masked.shape[-1]), -1).indices
        selected = torch.zeros_like(masked).scatter(-1, best, 1.0).bool() & visible
        if self.decays:
            newer = selected.flip(-1).cumsum(-1).flip(-1) - selected.long()  # selected chunks that are newer
            scores = scores + newer * self.pos_decay
        if self.softmax:
            return torch.log_softmax(scores.masked_fill(~selected, HIDDEN), -1).masked_fill(~selected, HIDDEN)
        if self.stick:
            slope, margin = self.stick
            best = scores.masked_fill(~selected, HIDDEN).amax(-1, keepdim=True)
            scores = slope * (scores - best + margin)
        broken = torch.where(selected, F.softplus(scores), 0.0).flip(-1).cumsum(-1).flip(-1)
        logs = (scores - broken).masked_fill(~selected, HIDDEN)
        if self.stick:
            logs = logs - torch.logsumexp(logs, -1, keepdim=True)
        return logs.masked_fill(~selected, HIDDEN)


def reading_loss(q: torch.Tensor, keys: torch.Tensor, copies: torch.Tensor) -> torch.Tensor:
    """Half of the heads should look, inside the right chunk, at the very token to be copied.

    q [B, n, H, 64], keys [B, L, 64], copies [B, A, 2]: (query's place or -1, key's place) -> mean cross-entropy
    """
    heads, width = q.shape[2] // 2 or 1, q.shape[3]
    valid = copies[..., 0] >= 0
    at, source = copies.clamp(min=0).unbind(-1)
    queries = q[:, :, :heads].gather(1, at[..., None, None].expand(-1, -1, heads, width))
    chunks = keys.unflatten(1, (-1, CHUNK)).gather(1, (source // CHUNK)[..., None, None].expand(-1, -1, CHUNK, width))
    logits = (queries @ chunks.to(queries.dtype).mT).float() / math.sqrt(width)  # [B, A, heads, 64]
    right = (source % CHUNK)[..., None, None].expand(-1, -1, heads, 1)
    losses = -torch.log_softmax(logits, -1).gather(-1, right)[..., 0].mean(-1)
    return (losses * valid).sum() / valid.sum().clamp(min=1)


class Hsa(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.heads, self.width = config.num_attention_heads, config.attention_head_dim
        self.reset_residual = config.reset_hsa_residual
        self.pre_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.q_proj = linear(config.hidden_size, self.heads * self.width)
        self.q_norm = RMSNorm(self.width, config.rms_norm_eps)
        self.o_proj = linear(self.heads * self.width, config.hidden_size)
        self._mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._mlp = Mlp(config)

    def queries(self, hidden):
        """[..., d] -> [..., H, 64]"""
        return self.q_norm(self.q_proj(self.pre_norm(hidden)).unflatten(-1, (self.heads, self.width)))

    def forward(self, hidden, memory: Memory, weights, causal: bool, copies):
        """hidden [B, n, d], weights [B, n, C], copies [B, A, 2] or None -> hidden, reading loss"""
        q = self.queries(hidden)
        read = reading_loss(q, memory.keys, copies) if copies is not None else 0.0
        out = kernels.hsa(q, memory.keys, memory.values, weights, causal)
        attended = hidden + self.o_proj(out.flatten(2))
        # The bypassing residual: what was read goes through the MLP alone.
        stays = attended if self.reset_residual else hidden
        return stays + self._mlp(self._mlp_norm(attended)), read


# ---- The model

@dataclass
class Output:
    hidden: torch.Tensor     # [B, L, d] after the final norm
    lower: torch.Tensor      # [B, L, d] before retrieval
    landmarks: torch.Tensor  # [B, C, r] of the first group, with lmk_k_norm
    keys: torch.Tensor       # [B, L, 64]
    values: torch.Tensor     # [B, L, 64]
    state: list              # after the last token, a block each, lower blocks first
    scores: torch.Tensor     # [B, L, C] of the first group, not masked
    log_weights: torch.Tensor  # [B, L, C] of chunks when they are read, of the first group
    read: torch.Tensor       # reading loss, 0 without copies
    # Of each group: its landmarks, and what its retrieval asks with.
    group_landmarks: list = field(default_factory=list)  # [B, C, r]
    group_hidden: list = field(default_factory=list)     # [B, L, d]
    group_log_weights: list = field(default_factory=list)  # [B, L, C]
    # With rows:
    row_hidden: torch.Tensor | None = None  # [B, G, T, d]
    row_lower: torch.Tensor | None = None   # [B, G, T, d]
    row_scores: torch.Tensor | None = None   # [B, G, T, C], of all chunks that the row reads among
    row_log_weights: torch.Tensor | None = None  # likewise
    row_copies: torch.Tensor | None = None   # as given, the places of sources among those chunks
    row_read: torch.Tensor | None = None
    row_group_hidden: list = field(default_factory=list)  # [B, G, T, d]
    row_group_log_weights: list = field(default_factory=list)  # [B, G, T, C]


@dataclass
class Upper:
    """What the upper layers find."""
    hidden: torch.Tensor
    state: list
    scores: list        # of each group
    log_weights: list   # of each group
    group_hidden: list  # before each group
    read: torch.Tensor


class Backbone(nn.Module):
    """Layers in the order in which they run: lower blocks, chunking, then for each group its retrieval and its HSA
    layers, each followed by its blocks."""

    def __init__(self, config: Config):
        super().__init__()
        block = BLOCKS[config.model_type]
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = [block(config) for _ in range(config.num_lower_layers)] + [Chunking(config)]
        for _ in range(config.num_upper_groups):
            layers.append(Retrieval(config))
            for _ in range(config.stages_of_group):
                layers += [Hsa(config), *(block(config) for _ in range(config.num_mamba_per_gca))]
        self.layers = nn.ModuleList(layers)
        self.norm_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)


class RAMba(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.first_retrieval = config.num_lower_layers + 1

    @torch.no_grad()
    def init_weights(self, seed: int) -> "RAMba":
        """Small normal matrices, smaller still where a block adds to the residual stream."""
        generator = torch.Generator().manual_seed(seed)
        blocks = self.config.num_lower_layers + self.config.num_upper_layers
        for name, parameter in self.named_parameters():
            adds = name.endswith(("out_proj.weight", "self_attn.o_proj.weight", ".mlp.down_proj.weight"))
            if adds and "encoder" not in name:
                parameter.normal_(std=0.02 / math.sqrt(2 * blocks), generator=generator)
            elif name.endswith("conv1d.weight"):
                parameter.normal_(std=self.config.conv_kernel ** -0.5, generator=generator)
            elif parameter.ndim > 1:
                parameter.normal_(std=0.02, generator=generator)
            elif name.endswith("dt_bias"):  # softplus of it: 0.001 to 0.1, evenly in its logarithm
                low, high = math.log(0.001), math.log(0.1)
                step = torch.exp(low + (high - low) * torch.rand(parameter.shape, generator=generator))
                parameter.copy_(step + torch.log(-torch.expm1(-step)))
            elif name.endswith("A_log"):
                parameter.copy_(torch.log(torch.arange(1, len(parameter) + 1)))
        return self

    # States

    def _blocks(self):
        return [layer for layer in self.backbone.layers if isinstance(layer, tuple(BLOCKS.values()))]

    def zero_state(self, count: int, device, windows: bool = False) -> list:
        """With `windows` those of sliding attention go on from one call to the next, too."""
        return [block.zero_state(count, device, windows) for block in self._blocks()]

    @staticmethod
    def masked_state(state: list, keep: torch.Tensor) -> list:
        """keep [B]: 1 goes on, 0 begins anew"""
        return [tuple(t * keep.view(-1, *[1] * (t.ndim - 1)) for t in of_block) for of_block in state]

    # Parts of forward

    def lower(self, ids: torch.Tensor, state: list):
        """[n, T] -> [n, T, d], state. Of the state only the lower blocks' part is read."""
        hidden = self.backbone.embeddings(ids)
        if torch.is_autocast_enabled(ids.device.type):
            hidden = hidden.to(torch.bfloat16)
        after = []
        for i in range(self.config.num_lower_layers):
            hidden, of_block = self.backbone.layers[i](hidden, state[i])
            after.append(of_block)
        return hidden, after

    def encode(self, hidden: torch.Tensor) -> Memory:
        return self.backbone.layers[self.config.num_lower_layers](hidden)

    def landmarks(self, memory: Memory, group: int = 0) -> torch.Tensor:
        return self._retrieval(group).lmk_k_norm(memory.summaries)

    def _retrieval(self, group: int) -> Retrieval:
        stage = 1 + self.config.num_mamba_per_gca
        return self.backbone.layers[self.first_retrieval + group * (1 + self.config.stages_of_group * stage)]

    def retrieval_queries(self, hidden: torch.Tensor, group: int = 0) -> torch.Tensor:
        """[..., d] before the group -> [..., r]"""
        return self._retrieval(group).queries(hidden)

    def upper(self, hidden: torch.Tensor, state: list, memory: Memory, causal: bool, copies=None) -> Upper:
        """hidden [B*G, T, d] after the lower layers, state of the upper blocks, copies [B, A, 2] of places in G*T.

        With `causal` (G = 1) a token sees the chunks before its own, otherwise all.
        """
        batch, chunks = memory.summaries.shape[:2]
        rows, tokens, width = hidden.shape
        visible = torch.ones((), dtype=torch.bool, device=hidden.device)
        if causal:
            own = torch.arange(tokens, device=hidden.device) // CHUNK
            visible = torch.arange(chunks, device=hidden.device) < own[:, None]
        after, scores, logs, before, reads, at = [], [], [], [], [], self.first_retrieval
        for group in range(self.config.num_upper_groups):
            retrieval = self.backbone.layers[at]
            at += 1
            before.append(hidden.reshape(batch, -1, width))
            scores.append(retrieval.scores(before[-1], self.landmarks(memory, group)))
            logs.append(retrieval.log_weights(scores[-1], visible))
            weights = logs[-1].exp()
            for _ in range(self.config.stages_of_group):
                hsa = self.backbone.layers[at]
                hidden, read = hsa(hidden.reshape(batch, -1, width), memory, weights, causal, copies)
                hidden = hidden.view(rows, tokens, width)
                reads.append(read)
                at += 1
                for _ in range(self.config.num_mamba_per_gca):
                    hidden, of_block = self.backbone.layers[at](hidden, state[len(after)])
                    after.append(of_block)
                    at += 1
        read = sum(reads) / len(reads)
        if copies is None:
            read = hidden.new_zeros((), dtype=torch.float32)
        return Upper(self.backbone.norm_f(hidden), after, scores, logs, before, read)

    # Fronts

    def forward(self, ids: torch.Tensor, state: list, rows: torch.Tensor | None = None,
                copies: torch.Tensor | None = None, row_copies: torch.Tensor | None = None, joined: int = 1) -> Output:
        """ids [B, L], rows [B, G, T] that ask the whole sequence from a zero state, copies [B, A, 2], row_copies
        [B, G, RA, 2]: (place in the stream or the row, place in ids), -1 for none. Rows of `joined` neighbouring sequences
        read among the chunks of all of these."""
        lower_blocks = self.config.num_lower_layers
        lower, lower_state = self.lower(ids, state)
        memory = self.encode(lower)
        found = self.upper(lower, state[lower_blocks:], memory, True, copies)
        marks = [self.landmarks(memory, group) for group in range(self.config.num_upper_groups)]
        out = Output(hidden=found.hidden, lower=lower, landmarks=marks[0], keys=memory.keys, values=memory.values,
                     state=lower_state + found.state, scores=found.scores[0], log_weights=found.log_weights[0],
                     read=found.read, group_landmarks=marks, group_hidden=found.group_hidden,
                     group_log_weights=found.log_weights)
        if rows is None:
            return out

        batch, count, tokens = rows.shape
        zero = self.zero_state(batch * count, ids.device)
        row_lower, _ = self.lower(rows.flatten(0, 1), zero)
        if row_copies is not None:
            at, source = row_copies.unbind(-1)
            sequence = (torch.arange(batch, device=at.device) % joined)[:, None, None]
            row = count * sequence + torch.arange(count, device=at.device)[:, None]
            source = torch.where(source >= 0, source + ids.shape[1] * sequence, -1)
            out.row_copies = torch.stack([at, source], -1)
            row_copies = torch.stack([torch.where(at >= 0, at + tokens * row, -1), source], -1)
            row_copies = row_copies.reshape(batch // joined, -1, 2)
        found = self.upper(row_lower, zero[lower_blocks:], memory.joined(joined), False, row_copies)
        shape = (batch, count, tokens, -1)
        out.row_hidden, out.row_lower = found.hidden.view(shape), row_lower.view(shape)
        out.row_scores, out.row_log_weights = found.scores[0].view(shape), found.log_weights[0].view(shape)
        out.row_read = found.read
        out.row_group_hidden = [hidden.view(shape) for hidden in found.group_hidden]
        out.row_group_log_weights = [logs.view(shape) for logs in found.log_weights]
        return out

    def questions(self, ids: torch.Tensor, at: torch.Tensor):
        """ids [N, QL], read from a zero state, at [N]: place of <|recall|> -> retrieval embedding [N, r], queries of
        the first HSA layer at each token [N, QL, H, 64]"""
        hidden, _ = self.lower(ids, self.zero_state(ids.shape[0], ids.device))
        asked = hidden.gather(1, at[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]
        return self.retrieval_queries(asked), self.backbone.layers[self.first_retrieval + 1].queries(hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., d] after the final norm -> [..., vocabulary], by the tied head"""
        return F.linear(hidden, self.backbone.embeddings.weight)


def build(config: Config, seed: int) -> RAMba:
    return RAMba(config).init_weights(seed)
