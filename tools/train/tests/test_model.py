"""The model against the golden tensors of checkpoints, and against loops over tokens."""
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TRAIN = Path(__file__).resolve().parent.parent
SOURCE = TRAIN.parents[1]
STARTER = SOURCE / "tests/golden/starter"
CHECKPOINTS = {"starter": (STARTER, STARTER)} | {name: (SOURCE / "model" / name, SOURCE / "tests/golden" / name)
                                                 for name in ("default", "swa-hsa")}
sys.path.insert(0, str(TRAIN))
from export import over_stored, read_weights  # noqa: E402
from model import CHUNK, Config, Memory, RAMba, build, reading_loss  # noqa: E402

TINY = Config(hidden_size=128, num_heads=2, head_dim=128, state_size=32, vocab_size=200, num_lower_layers=1,
              num_upper_layers=2, num_mamba_per_gca=1, num_attention_heads=2, retrieval_dim=32, chunk_topk=2)
VARIANTS = {
    "mamba2": TINY,
    "swa": replace(TINY, model_type="swa_hsa", sliding_window=64, swa_kv_heads=1),
    "relative": replace(TINY, enable_softmax=False, stick_slope=2.0, stick_margin=4.0),
    "two groups": replace(TINY, num_upper_groups=2, enable_pos_decay=True),
    "mean landmarks": replace(TINY, enable_enc_cls=False, reset_hsa_residual=True, enable_softmax=False),
}


def tiny(name: str) -> RAMba:
    """With weights that are large enough for selections and attention to matter."""
    model = build(VARIANTS[name], 1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
        for layer in model.backbone.layers:
            if hasattr(layer, "pos_decay"):
                layer.pos_decay.fill_(-0.7)
    return model


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, TINY.vocab_size, shape)


def near(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> bool:
    assert got.shape == expected.shape
    return float((got - expected).norm() / expected.norm()) < tolerance


# ---- Checkpoints

@pytest.fixture(scope="module", params=CHECKPOINTS)
def shipped(request):
    checkpoint, golden_files = CHECKPOINTS[request.param]
    config = Config.from_reference(json.loads((checkpoint / "config.json").read_text()))
    model = RAMba(config)
    model.load_state_dict(read_weights(checkpoint))  # no name is missing, none is left
    golden = load_file(golden_files / "golden.safetensors")
    with torch.no_grad():
        ids = golden["input_ids"].long()[None]
        return model, golden, model(ids, model.zero_state(1, "cpu"))


def test_the_lower_half_is_the_golden_one(shipped):
    _, golden, out = shipped
    assert near(out.lower[0, ::16], golden["lower_hidden"])
    assert near(out.landmarks[0], golden["landmarks"])
    assert near(out.keys[0, 3 * CHUNK:4 * CHUNK], golden["chunk_k.3"])
    assert near(out.values[0, 3 * CHUNK:4 * CHUNK], golden["chunk_v.3"])
    if "ssm_state.0" in golden:
        conv, ssm = out.state[0]
        assert near(conv[0], golden["conv_state.0"]) and near(ssm[0], golden["ssm_state.0"])


def test_retrieval_and_the_upper_half_are_the_golden_ones(shipped):
    model, golden, out = shipped
    with torch.no_grad():
        assert near(out.scores[0, 1023], golden["retrieval_scores.1023"])
        visible = torch.arange(16) < torch.arange(1024)[:, None] // CHUNK
        weights = model.backbone.layers[model.first_retrieval].log_weights(out.scores, visible)[0].exp()
        assert near(weights[1023], golden["chunk_weights.1023"])
        for place, expected in zip((0, 63, 64, 300, 1023), golden["selected_chunks"]):
            assert weights[place].nonzero().flatten().flip(0).tolist() == [c for c in expected.tolist() if c >= 0]
        hidden = over_stored(model, out.lower, model.zero_state(1, "cpu"))[0]
        assert near(hidden[::16], golden["final_hidden"])
        logits = model.logits(hidden)
        assert near(logits[1023], golden["logits.1023"])
        losses = torch.nn.functional.cross_entropy(logits[:-1], golden["input_ids"].long()[1:], reduction="none")
        assert near(losses, golden["nll"])


def test_the_question_is_the_golden_one(shipped):
    model, golden, out = shipped
    ids = golden["query_ids"].long()
    padded = torch.cat([ids, torch.zeros(CHUNK - len(ids), dtype=torch.long)])[None]
    with torch.no_grad():
        embedding, queries = model.questions(padded, torch.tensor([len(ids) - 1]))
    assert near(embedding[0], golden["query_embedding"])
    assert near(out.landmarks[0] @ embedding[0] / math.sqrt(len(embedding[0])), golden["query_scores"])
    assert queries.shape == (1, CHUNK, model.config.num_attention_heads, model.config.attention_head_dim)


def test_a_config_goes_round():
    json_config = json.loads((STARTER / "config.json").read_text())
    written = Config.from_reference(json_config).to_reference()
    assert {key: written[key] for key in json_config} == json_config
    with pytest.raises(ValueError, match="enable_softmax1"):
        Config.from_reference({**json_config, "enable_softmax1": True})


# ---- Small models

def chunk_weights_by_hand(retrieval, scores, k):
    """Of the chunks selected from [chunks] scores, newest first: [(chunk, weight)]"""
    best = sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))[:k]
    best = sorted(best, reverse=True)
    values = scores[best]
    if retrieval.decays:
        values = values + torch.arange(len(best)) * retrieval.pos_decay
    if retrieval.softmax:
        return list(zip(best, torch.softmax(values, 0)))
    if retrieval.stick and best:
        slope, margin = retrieval.stick
        left, taken = 1.0, []
        for value in values:
            taken.append(left * torch.sigmoid(slope * (value - values.max() + margin)))
            left = left - taken[-1]
        return list(zip(best, torch.stack(taken) / sum(taken)))
    return list(zip(best, torch.exp(values - torch.nn.functional.softplus(values).cumsum(0))))


def upper_by_hand(model, hidden, state, memory, visible):
    """hidden [T, d] of one row or stream, memory of its sequence, visible: number of chunks that a token sees."""
    config, layers = model.config, iter(model.backbone.layers[model.first_retrieval:])
    keys, values = (t[0].unflatten(0, (-1, CHUNK)) for t in (memory.keys, memory.values))
    state = list(state)
    for group in range(config.num_upper_groups):
        retrieval = next(layers)
        marks = retrieval.lmk_k_norm(memory.summaries[0])
        chosen = []
        for i, query in enumerate(retrieval.queries(hidden)):
            scores = marks[:visible(i)] @ query / math.sqrt(config.retrieval_dim)
            chosen.append(chunk_weights_by_hand(retrieval, scores, config.chunk_topk))
        for _ in range(config.stages_of_group):
            hsa = next(layers)
            outs = []
            for queries, of_token in zip(hsa.queries(hidden), chosen):
                out = torch.zeros(config.num_attention_heads, config.attention_head_dim)
                for chunk, weight in of_token:
                    out += weight * (torch.softmax(queries @ keys[chunk].T / 8, -1) @ values[chunk])
                outs.append(out.flatten())
            attended = hidden + hsa.o_proj(torch.stack(outs))
            hidden = (attended if config.reset_hsa_residual else hidden) + hsa._mlp(hsa._mlp_norm(attended))
            for _ in range(config.num_mamba_per_gca):
                hidden = next(layers)(hidden[None], state.pop(0))[0][0]
    return model.backbone.norm_f(hidden)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_stream_and_rows_are_what_loops_over_tokens_give(name):
    model = tiny(name)
    ids, rows = tokens(2, 256), tokens(2, 2, CHUNK)
    zero = model.zero_state(1, "cpu")
    lower_blocks = model.config.num_lower_layers
    out = model(ids, model.zero_state(2, "cpu"), rows)
    for sequence in range(2):
        lower, _ = model.lower(ids[sequence:sequence + 1], zero)
        memory = model.encode(lower)
        expected = upper_by_hand(model, lower[0], zero[lower_blocks:], memory, lambda i: i // CHUNK)
        assert near(out.hidden[sequence], expected, 1e-5)
        for row in range(2):
            lower, _ = model.lower(rows[sequence, row:row + 1], zero)
            expected = upper_by_hand(model, lower[0], zero[lower_blocks:], memory, lambda i: 4)
            assert near(out.row_hidden[sequence, row], expected, 1e-5)
            assert near(out.row_lower[sequence, row], lower[0], 1e-5)
            scores = model.retrieval_queries(lower[0]) @ out.landmarks[sequence].T / math.sqrt(32)
            assert near(out.row_scores[sequence, row], scores, 1e-5)


@pytest.mark.parametrize("name", ["mamba2", "swa"])
@torch.no_grad()
def test_a_stream_in_pieces_with_its_state_is_the_stream(name):
    model = tiny(name)
    ids = tokens(2, 320)
    whole, _ = model.lower(ids, model.zero_state(2, "cpu"))
    _, state = model.lower(ids, model.zero_state(2, "cpu", windows=True))
    after, parts = model.zero_state(2, "cpu", windows=True), []
    for begin, end in ((0, 1), (1, 128), (128, 131), (131, 132), (132, 319), (319, 320)):
        part, after = model.lower(ids[:, begin:end], after)
        parts.append(part)
    assert near(torch.cat(parts, 1), whole, 1e-5)
    for block, block_whole in zip(after, state):
        assert len(block) == 2 and all(near(*pair, 1e-5) for pair in zip(block, block_whole))


@torch.no_grad()
def test_a_masked_state_begins_anew():
    model = tiny("mamba2")
    ids = tokens(2, 320)

    both = model(ids[:, :128], model.zero_state(2, "cpu")).state
    kept = model.masked_state(both, torch.tensor([1.0, 0.0]))
    assert len(kept) == 3 and torch.equal(kept[2][1][0], both[2][1][0]) and not kept[2][1][1].any()


@torch.no_grad()
def test_nothing_to_come_changes_what_was():
    for name in VARIANTS:
        model = tiny(name)
        ids = tokens(1, 256)
        other = ids.clone()
        other[:, 150:] = tokens(1, 106)
        one, two = (model(x, model.zero_state(1, "cpu")).hidden for x in (ids, other))
        assert torch.allclose(one[:, :150], two[:, :150], atol=1e-5)
        assert not torch.allclose(one[:, 150:], two[:, 150:], atol=1e-5)


def test_reading_looks_at_the_token_to_copy():
    torch.manual_seed(5)
    q, keys = torch.randn(2, 64, 4, 64), torch.randn(2, 128, 64)
    copies = torch.tensor([[[5, 70], [-1, -1]], [[63, 3], [0, 127]]])
    expected = []
    for sequence, place, source in ((0, 5, 70), (1, 63, 3), (1, 0, 127)):
        chunk = keys[sequence, source // 64 * 64:source // 64 * 64 + 64]
        logits = q[sequence, place, :2] @ chunk.T / 8
        expected.append(torch.nn.functional.cross_entropy(logits, torch.full((2,), source % 64)))
    assert torch.allclose(reading_loss(q, keys, copies), torch.stack(expected).mean(), atol=1e-5)


def test_row_copies_are_places_in_their_row():
    model = tiny("mamba2")
    ids, rows = tokens(1, 128), tokens(1, 2, CHUNK)
    copies = torch.tensor([[[[-1, -1]], [[9, 70]]]])
    out = model(ids, model.zero_state(1, "cpu"), rows, None, copies)
    lower, _ = model.lower(rows[0], model.zero_state(2, "cpu"))
    hsa = model.backbone.layers[model.first_retrieval + 1]
    first = reading_loss(hsa.queries(lower)[1:], out.keys, torch.tensor([[[9, 70]]]))
    alone = replace(TINY, num_upper_layers=1)
    shallow = RAMba(alone)
    shallow.load_state_dict({k: v for k, v in model.state_dict().items() if k in shallow.state_dict()})
    assert torch.allclose(shallow(ids, shallow.zero_state(1, "cpu"), rows, None, copies).row_read, first, atol=1e-5)
    assert out.read == 0 and out.row_read > 0


def test_rows_that_are_joined_read_among_the_chunks_of_their_neighbours():
    model = tiny("mamba2")
    ids, rows = tokens(4, 128), tokens(4, 2, CHUNK)
    copies = torch.tensor([[[[9, 70]], [[3, 1]]], [[[-1, -1]], [[12, 64]]]]).repeat(2, 1, 1, 1)
    joined = model(ids, model.zero_state(4, "cpu"), rows, None, copies, joined=2)
    assert joined.row_log_weights.shape == (4, 2, CHUNK, 4)
    assert joined.row_copies[1].tolist() == [[[-1, -1]], [[12, 64 + 128]]] and torch.equal(joined.row_copies[2], copies[2])
    # The same memory by hand: the second pair of sequences, one behind the other, each encoded from a zero state.
    alone = model(ids, model.zero_state(4, "cpu"))
    memory = Memory(alone.keys[2:].reshape(1, 256, -1), alone.values[2:].reshape(1, 256, -1),
                    model.encode(model.lower(ids, model.zero_state(4, "cpu"))[0]).summaries[2:].reshape(1, 4, -1))
    zero = model.zero_state(4, "cpu")
    lower, _ = model.lower(rows[2:].flatten(0, 1), zero)
    found = model.upper(lower, zero[TINY.num_lower_layers:], memory, False,
                        torch.tensor([[[9, 70], [CHUNK + 3, 1], [-1, -1], [3 * CHUNK + 12, 64 + 128]]]))
    assert torch.allclose(found.hidden, joined.row_hidden[2:].flatten(0, 1), atol=1e-5)
    assert not torch.allclose(joined.row_hidden, model(ids, model.zero_state(4, "cpu"), rows).row_hidden, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_learns_in_one_compiled_graph(name):
    model = tiny(name)
    ids, rows, copies = tokens(2, 256), tokens(2, 2, CHUNK), torch.tensor([[[200, 70]], [[-1, -1]]])
    row_copies = torch.tensor([[[[20, 5]], [[-1, -1]]]]).expand(2, -1, -1, -1)

    def step(ids, state, rows, copies, row_copies):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(ids, state, rows, copies, row_copies)
            asked, queries = model.questions(rows.flatten(0, 1), torch.full((4,), 7))
            told = sum(model.logits(hidden).float().logsumexp(-1).mean() for hidden in (out.hidden, out.row_hidden))
        return told + out.read + out.row_read + asked.float().square().mean() + queries.float().mean(), out.state

    state = model.zero_state(2, "cpu")
    loss, after = torch.compile(step, fullgraph=True, backend="eager")(ids, state, rows, copies, row_copies)
    loss.backward()
    assert [len(s) for s in after] == [len(s) for s in state]
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_names_of_the_sliding_window_family():
    names = {name for name in tiny("swa").state_dict() if name.startswith("backbone.layers.0.")}
    assert names == {"backbone.layers.0." + part for part in (
        "norm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
        "self_attn.o_proj.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight",
        "post_attention_layernorm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")}
    assert "backbone.layers.1.cls_emb" in tiny("swa").state_dict()
