"""What export.py writes: 8-bit rows near their originals, names and files that recalld reads, golden tensors of the
exported weights themselves."""
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

TRAIN = Path(__file__).resolve().parent.parent
STARTER = TRAIN.parents[1] / "tests/golden/starter"
sys.path.insert(0, str(TRAIN))
import export  # noqa: E402
import figures  # noqa: E402
from model import Config, RAMba, build  # noqa: E402

LARGEST_ERROR = 1 / 254 + 2**-8  # of 8 bits, and of bf16 after them

SMALL = Config(hidden_size=64, num_heads=2, num_lower_layers=1, num_upper_layers=1, num_mamba_per_gca=1,
               num_attention_heads=1, retrieval_dim=32)
WINDOWED = replace(SMALL, model_type="swa_hsa", sliding_window=128, enable_pos_decay=True)


def run_directory(path: Path, config: Config) -> Path:
    path.mkdir()
    weights = {name: t.to(torch.bfloat16) for name, t in build(config, 3).state_dict().items()}
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config.to_reference()))
    (path / "run.json").write_text(json.dumps({"step": 12, "tokens": 3_000_000,
                                               "figures": [{"copied": 0.93, "tokens_per_s": 1_100_000}]}))
    for exact in (0.5, 0.91):  # the later one counts
        figures.add(path / "figures.json", {"kind": "numbered", "length": 65536, "asks": 200, "exact": exact,
                                            "first_alone": 0.98, "first_within": 0.97})
    figures.add(path / "figures.json", {"kind": "prose", "length": 8192, "bits_per_byte": 1.2345})
    figures.add(path / "figures.json", {"kind": "natural questions", "method": "BM25", "chunks": 9, "asks": 4, "at_1": 0.25,
                                        "at_5": 0.5, "at_10": 0.75, "at_20": 1.0})
    shutil.copy(STARTER / "tokenizer.model", path / "tokenizer.model")
    return path


def test_an_8_bit_row_is_near_its_original():
    torch.manual_seed(0)
    rows = torch.randn(300, 77) * torch.logspace(-6, 6, 300)[:, None]
    rows[7] = 0
    rows[8, 3] = 1e6
    q, scale = export.quantize(rows)
    assert q.dtype == torch.int8 and scale.dtype == torch.float32 and q.shape == rows.shape and scale.shape == (300,)
    error = (scale[:, None] * q - rows).abs().amax(1)
    assert bool((error <= rows.abs().amax(1) / 254 * (1 + 1e-5)).all())
    assert not q[7].any() and q[8].tolist().count(127) == 1


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("config", [SMALL, WINDOWED], ids=["ramba", "swa_hsa"])
def test_a_checkpoint_is_whole(tmp_path, config, int8):
    run, out = run_directory(tmp_path / "run", config), tmp_path / "out"
    golden_files = tmp_path / "golden" if int8 else out
    export.export(run, out, int8, golden=golden_files if int8 else None)
    shipped = {"MODEL_CARD.md", "config.json", "model.safetensors", "tokenizer.model"}
    golden_names = {"golden.safetensors", "golden.txt", "tokenizer_golden.json"}
    assert {file.name for file in out.iterdir()} == (shipped if int8 else shipped | golden_names)
    assert golden_names <= {file.name for file in golden_files.iterdir()}
    original, held = load_file(run / "model.safetensors"), load_file(out / "model.safetensors")
    read = export.read_weights(out)
    assert read.keys() == original.keys()
    for name, tensor in original.items():
        if int8 and tensor.ndim == 2:
            assert held[name].dtype == torch.int8 and held[name + "_scale"].shape == tensor.shape[:1]
        else:
            assert held[name].dtype == torch.bfloat16 and torch.equal(held[name], tensor)
    assert export.largest_error(original, read)[0] <= (LARGEST_ERROR if int8 else 0)
    assert Config.from_reference(json.loads((out / "config.json").read_text())) == config

    card = (out / "MODEL_CARD.md").read_text()
    for words in ("12 steps, 3 M tokens", "| copied | 0.93 |", "| numbered | 65536 | 200 | 0.910 | 0.980 | 0.970 |",
                  "| 8192 | 1.234 |", "| BM25 | 4 | 9 | 0.250 | 0.500 | 0.750 | 1.000 |", "CDLA-Sharing-1.0"):
        assert words in card
    assert "{" not in card and "0.500 | 0.980" not in card

    # The golden tensors are those of the weights as they are stored.
    golden = load_file(golden_files / "golden.safetensors")
    model = RAMba(config)
    model.load_state_dict(read)
    with torch.no_grad():
        state = model.zero_state(1, "cpu")
        again = model(golden["input_ids"].long()[None], state)
        hidden = export.over_stored(model, again.lower, state)
    assert torch.allclose(hidden[0, ::16], golden["final_hidden"], atol=1e-5)
    assert not torch.allclose(again.hidden[0, ::16], golden["final_hidden"], atol=1e-5)  # bf16 shows
    assert golden["selected_chunks"].tolist()[0] == [-1] * 8 and golden["selected_chunks"].tolist()[2] == [0] + [-1] * 7
    assert abs(float(golden["chunk_weights.1023"].sum()) - 1) < 1e-5
    assert ("ssm_state.0" in golden) == (config.model_type == "ramba")
    told = json.loads((golden_files / "tokenizer_golden.json").read_text())
    assert (golden_files / "golden.txt").read_text().startswith(told["tokens_of"]) and len(told["ids"]) > 50


def test_what_was_not_trained_is_stored_as_before(tmp_path):
    run, again = run_directory(tmp_path / "run", SMALL), run_directory(tmp_path / "again", SMALL)
    export.export(run, tmp_path / "out", int8=True)
    weights = {name: value.to(torch.bfloat16) for name, value in export.read_weights(tmp_path / "out").items()}
    trained = "backbone.layers.3.q_proj.weight"
    weights[trained] = weights[trained] * 1.5
    save_file(weights, again / "model.safetensors")
    export.export(again, tmp_path / "later", int8=True)
    before, later = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "later"))
    assert {name for name in before if not torch.equal(before[name], later[name])} == {trained, trained + export.SCALE}


def test_the_starters_size_fits_in_8_bits(tmp_path):
    weights = export.read_weights(STARTER)
    save_file(export.stored(weights, int8=True), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size <= 24e6
    assert export.largest_error(weights, export.read_weights(tmp_path))[0] <= LARGEST_ERROR


def test_the_sliding_window_model_takes_12_mb_in_8_bits(tmp_path):
    config = Config.from_reference(json.loads((TRAIN / "configs/swa_hsa.json").read_text()))
    assert config.model_type == "swa_hsa" and config.sliding_window == 512 and config.swa_kv_heads == 1
    save_file(export.stored(build(config, 1).state_dict(), int8=True), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size < 12e6
