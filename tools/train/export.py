#!/usr/bin/env python3
"""Makes a checkpoint that recalld loads out of a run.

Usage: export.py RUN OUT [--golden DIRECTORY] [--int8] [--cost TEXT] [--figures FILE]

RUN holds config.json, model.safetensors and tokenizer.model, and perhaps run.json and figures.json (what evaluate.py
--save wrote; --figures names another), whose figures go into the model card. OUT gets model.safetensors, config.json,
tokenizer.model and MODEL_CARD.md, and RUN's fusion.json and meaning.safetensors where it has them; those in OUT stay otherwise, and a fusion.json is told. For the
tests of the daemon DIRECTORY, or OUT where none is named, gets golden.safetensors, golden.txt and tokenizer_golden.json:
what the exported weights give in fp32 on the CPU.

With --int8 a matrix NAME is stored as whole numbers q (I8) beside NAME_scale (F32, one a row): x = scale * q, which
recalld rounds to bf16 as it loads. What is no matrix stays bf16.
"""
import argparse
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import figures
from model import CHUNK, Config, RAMba

GOLDEN_TEXT = Path(__file__).with_name("golden.txt")
GOLDEN_TOKENS = 1024
GOLDEN_PLACES = (0, 63, 64, 300, 1023)  # tokens whose selected chunks are kept
GOLDEN_QUESTION = "What is the code of the barn door?"
SCALE = "_scale"


# ---- Weights

def quantize(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, m] -> int8 [n, m], fp32 scale [n]: each row's largest becomes 127."""
    matrix = matrix.float()
    scale = (matrix.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.round(matrix / scale[:, None]).clamp(-127, 127).to(torch.int8), scale


def stored(weights: dict[str, torch.Tensor], int8: bool) -> dict[str, torch.Tensor]:
    """As they go into the file."""
    out = {}
    for name, tensor in weights.items():
        if int8 and tensor.ndim == 2:
            out[name], out[name + SCALE] = quantize(tensor)
        else:
            out[name] = tensor.to(torch.bfloat16).contiguous()
    return out


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's weights in fp32, whichever way they are stored: the values that recalld computes with."""
    found = load_file(directory / "model.safetensors")

    def value(name, tensor):
        if tensor.dtype == torch.int8:
            tensor = (tensor * found[name + SCALE][:, None]).to(torch.bfloat16)
        return tensor.float()

    return {name: value(name, tensor) for name, tensor in found.items() if not name.endswith(SCALE)}


def largest_error(weights: dict[str, torch.Tensor], read: dict[str, torch.Tensor]) -> tuple[float, str]:
    """Of a row, relative to its largest value; and where."""
    worst = (0.0, "")
    for name, tensor in weights.items():
        rows, got = (t.float().reshape(t.shape[0], -1) if t.ndim > 1 else t.float()[None] for t in (tensor, read[name]))
        error = (got - rows).abs().amax(1) / rows.abs().amax(1).clamp(min=1e-30)
        worst = max(worst, (float(error.max()), name))
    return worst


# ---- Golden tensors

def tokens_of(text: str, tokenizer, newline: int) -> list[int]:
    """Each line as a turn of its own."""
    return [token for line in text.splitlines() for token in [*tokenizer.encode(line), newline]]


def over_stored(model: RAMba, lower: torch.Tensor, state: list) -> torch.Tensor:
    """lower [B, L, d], the state before it -> [B, L, d] after the final norm, where keys and values of chunks are read as
    stores keep them, in bf16."""
    memory = model.encode(lower)
    stored = replace(memory, keys=memory.keys.bfloat16().float(), values=memory.values.bfloat16().float())
    return model.upper(lower, state[model.config.num_lower_layers:], stored, causal=True).hidden


@torch.no_grad()
def golden_tensors(model: RAMba, tokenizer, text: str) -> dict[str, torch.Tensor]:
    """By the names that tests/model/golden_test.cc compares; of the hidden states every 16th token."""
    config = model.config
    ids = tokens_of(text, tokenizer, config.newline_token_id)[:GOLDEN_TOKENS]
    if len(ids) < GOLDEN_TOKENS:
        raise SystemExit(f"export: the golden text has {len(ids)} tokens and needs {GOLDEN_TOKENS}")
    ids = torch.tensor(ids)
    last = GOLDEN_TOKENS - 1
    state = model.zero_state(1, "cpu")
    out = model(ids[None], state)
    hidden = over_stored(model, out.lower, state)[0]
    visible = torch.arange(GOLDEN_TOKENS // CHUNK) < torch.arange(GOLDEN_TOKENS)[:, None] // CHUNK
    weights = model.backbone.layers[model.first_retrieval].log_weights(out.scores, visible)[0].exp()
    selected = torch.full((len(GOLDEN_PLACES), config.chunk_topk), -1, dtype=torch.int32)
    for row, place in zip(selected, GOLDEN_PLACES):
        chunks = weights[place].nonzero().flatten().flip(0)
        row[:len(chunks)] = chunks
    logits = model.logits(hidden)
    question = torch.tensor([config.newline_token_id, *tokenizer.encode(GOLDEN_QUESTION), config.recall_token_id])
    embedding = model.questions(question[None], torch.tensor([len(question) - 1]))[0][0]
    golden = {
        "input_ids": ids.int(), "lower_hidden": out.lower[0, ::16], "landmarks": out.landmarks[0],
        "chunk_k.3": out.keys[0, 3 * CHUNK:4 * CHUNK], "chunk_v.3": out.values[0, 3 * CHUNK:4 * CHUNK],
        f"retrieval_scores.{last}": out.scores[0, last], "selected_chunks": selected,
        f"chunk_weights.{last}": weights[last], "final_hidden": hidden[::16], f"logits.{last}": logits[last],
        "nll": F.cross_entropy(logits[:-1], ids[1:], reduction="none"),
        "query_ids": question.int(), "query_embedding": embedding,
        "query_scores": out.landmarks[0] @ embedding / math.sqrt(config.retrieval_dim)}
    if out.state[0]:
        conv, ssm = out.state[0]
        golden |= {"conv_state.0": conv[0], "ssm_state.0": ssm[0]}
    return {name: tensor.contiguous().clone() for name, tensor in golden.items()}


def write_golden(out: Path, model: RAMba, tokenizer) -> None:
    text = GOLDEN_TEXT.read_text()
    save_file(golden_tensors(model, tokenizer, text), out / "golden.safetensors")
    (out / "golden.txt").write_text(text)
    part = text[:400]
    (out / "tokenizer_golden.json").write_text(json.dumps({"tokens_of": part, "ids": tokenizer.encode(part)}))


# ---- The model card

PAPER = """Hierarchical Sparse Attention:
[arXiv 2504.16795](https://arxiv.org/abs/2504.16795)."""
PAPER_OF_SWA = """Sliding windows with Hierarchical Sparse
Attention: [arXiv 2510.17196](https://arxiv.org/abs/2510.17196)."""

CARD = """# {title}

{parameters:.2f} M parameters, {storage}: {lower} lower and {upper} upper {blocks} of width {hidden},
{encoder}{cls}, {hsa} over retrieved chunks (one K/V head of {head}){groups}, retrieval vectors of
width {retrieval}, chunks of {chunk} tokens, the best {top} of them read. {paper} The tokenizer is SentencePiece BPE with {vocabulary} pieces.

**Meant for** finding passages in English conversations and prose and copying short answers out of them, inside
`recalld`.

## Limits

It retrieves and copies; it knows and reasons little, and what it generates may be made up. English only: it has seen
hardly any other language. Its training contexts were 4,096 tokens long; what lies beyond is extrapolation, measured
below where figures are given. Text of its sources may shape what it says: dialogues written by crowd workers, old
novels with the views of their time.

## How text looked in training

Turns as `Name: text` lines, each ended by the newline piece. A question asked of memory is newline, question,
`<|recall|>`, read from a zero recurrent state; to answer, the last 192 tokens of the memory come before it. The answer
ends with a newline piece.

## Cost

{cost}

## Figures

{figures}

## What it was trained on

Facts, stories and questions from generators of the project, and text of these sources, which keeps its licence. What
lies beside the model for hybrid searches, `meaning.safetensors` and `fusion.json`, was made from the same:

| source | licence |
|---|---|
| Schema-Guided Dialogue (google-research-datasets/dstc8-schema-guided-dialogue) | CC BY-SA 4.0 |
| Self-dialogue corpus (jfainberg/self_dialogue_corpus) | BSD-3-Clause |
| STAR (RasaHQ/STAR), MultiWOZ 2.1 (budzianowski/multiwoz), QMSum (Yale-LILY/QMSum), PolicyQA, PubMedQA | MIT |
| Taskmaster 3 and 4, Synthetic-Persona-Chat (both google-research-datasets) | CC BY 4.0 |
| MTS-Dialog (abachaa/MTS-Dialog), CaSiNo (kushalchawla/CaSiNo) | CC BY 4.0 |
| Topical-Chat (alexa/Topical-Chat) | CDLA-Sharing-1.0 |
| SQuAD 1.1, three quarters of the titles of its development set | CC BY-SA 4.0 |
| Molweni, CovidQA | Apache-2.0 |
| QED over Natural Questions | CC BY-SA 3.0 |
| SQuADShifts, new Wikipedia part | Wikipedia text; the repository that carries it names no licence |
| English novels, 1840 to 1925 (list: computationalstylistics/100_english_novels) | public domain |
"""


def flat(values, name: str = "") -> list[tuple[str, object]]:
    """Nested JSON -> (path, number or text)"""
    if isinstance(values, dict):
        return [pair for key, value in values.items() for pair in flat(value, f"{name} {key}".strip())]
    if isinstance(values, list):
        return [pair for i, value in enumerate(values) for pair in flat(value, f"{name} {i}".strip())]
    return [(name, values)]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def table(title: str, heads: tuple[str, ...], rows: list[tuple]) -> str:
    """Empty without rows."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (heads, ("---",) * len(heads), *rows)]
    return "\n".join([f"{title}:", "", *lines]) if rows else ""


def tables_of(records: list[dict], trained: dict) -> list[str]:
    """What evaluate.py found, and the last line of training."""
    tasks = [(r["kind"], r["length"], r["asks"], *(f"{r[name]:.3f}" for name in figures.OF_TASKS[1:]))
             for r in figures.of_tasks(records)]
    natural = [(r["method"], r["asks"], r["chunks"], *(f"{r[f'at_{k}']:.3f}" for k in (1, 5, 10, 20)))
               for r in records if r["kind"] == "natural questions"]
    prose = [(r["length"], f"{r['bits_per_byte']:.3f}") for r in records if r["kind"] == "prose"]
    return [text for text in (
        table("Tasks by the tokens of the memory that they are hidden in: whole answers, and the right chunk first when the "
              "question is read alone or within the memory",
              ("task", "tokens", "asks", "exact", "first alone", "first within"), tasks),
        table("Questions about passages, the right chunk among the first",
              ("method", "asks", "chunks", "1", "5", "10", "20"), natural),
        table("Held-out prose", ("tokens before", "bits a byte"), prose),
        table("At the end of training, on training text, as train.py names it", ("what", "value"),
              flat((trained.get("figures") or [{}])[-1]))) if text]


def plural(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def model_card(config: Config, parameters: int, int8: bool, run: Path, cost: str | None, found: Path) -> str:
    trained = read_json(run / "run.json")
    if cost is None:
        cost = "Not recorded."
        if "step" in trained:
            millions = trained["tokens"] / 1e6
            cost = f"The last run: {trained['step']} steps, {millions:.0f} M tokens of the stream, on one GPU."
            if trained.get("figures"):
                cost += f" {trained['figures'][-1]['tokens_per_s'] / 1e6:.2f} M tokens/s."
    swa = config.model_type == "swa_hsa"
    blocks = f"sliding-window layers (window {config.sliding_window})" if swa else "Mamba-2 layers"
    return CARD.format(
        title="recalld's checkpoint: " + ("SWA + HSA" if swa else "RAMba"), parameters=parameters / 1e6,
        storage="matrices in 8 bits with a scale a row" if int8 else "bf16", lower=config.num_lower_layers,
        upper=config.num_upper_layers, blocks=blocks, hidden=config.hidden_size, encoder=plural(config.encoder_layers, "chunk encoder layer"),
        cls=" with a CLS token" if config.enable_enc_cls else "",
        groups="" if config.num_upper_groups == 1 else f" in {config.num_upper_groups} groups that retrieve anew",
        hsa=plural(config.num_upper_layers // config.num_mamba_per_gca, "attention layer"), paper=PAPER_OF_SWA if swa else PAPER,
        head=config.attention_head_dim,
        retrieval=config.retrieval_dim, chunk=config.chunk_size, top=config.chunk_topk, vocabulary=config.vocab_size,
        cost=cost, figures="\n\n".join(tables_of(figures.read(found), trained)) or "None recorded.")


# ---- All of it

def export(run: Path, out: Path, int8: bool, cost: str | None = None, found: Path | None = None,
           golden: Path | None = None) -> None:
    golden = golden or out
    config = Config.from_reference(json.loads((run / "config.json").read_text()))
    weights = read_weights(run)
    for directory in (out, golden):
        directory.mkdir(parents=True, exist_ok=True)
    save_file(stored(weights, int8), out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config.to_reference(), indent=1) + "\n")
    shutil.copyfile(run / "tokenizer.model", out / "tokenizer.model")
    if (run / "meaning.safetensors").exists():
        shutil.copyfile(run / "meaning.safetensors", out / "meaning.safetensors")
    if (run / "fusion.json").exists():
        shutil.copyfile(run / "fusion.json", out / "fusion.json")
    elif (out / "fusion.json").exists():
        print(f"{out}/fusion.json was learned with other weights and stays; fusion.py learns it anew")
    exported = read_weights(out)
    model = RAMba(config).eval()
    model.load_state_dict(exported)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    write_golden(golden, model, tokenizer)
    card = model_card(config, sum(t.numel() for t in weights.values()), int8, run, cost, found or run / "figures.json")
    (out / "MODEL_CARD.md").write_text(card)
    for file in (out / "model.safetensors", golden / "golden.safetensors"):
        file.chmod(0o644)  # the library writes them for their owner alone
    error, where = largest_error(weights, exported)
    size = (out / "model.safetensors").stat().st_size
    print(f"{out}: {size / 1e6:.2f} MB; largest error of a row's largest value {error:.2e} ({where or 'none'})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--golden", type=Path, metavar="DIRECTORY", help="where golden tensors go; default: OUT")
    parser.add_argument("--int8", action="store_true", help="store matrices in 8 bits")
    parser.add_argument("--cost", help="what training took, for the model card; default: what run.json says")
    parser.add_argument("--figures", type=Path, help="what evaluate.py --save wrote; default: RUN/figures.json")
    args = parser.parse_args()
    if args.figures and not args.figures.exists():
        parser.error(f"{args.figures} does not exist; write it with evaluate.py --save")
    export(args.run, args.out, args.int8, args.cost, args.figures, args.golden)


if __name__ == "__main__":
    main()
