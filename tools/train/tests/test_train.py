"""The run itself on the CPU: what it logs and saves, and that it goes on where it stopped."""
import csv
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

TRAIN = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TRAIN))
import train  # noqa: E402
from units import KINDS  # noqa: E402


def run(monkeypatch, small, out: Path, config: dict, *more: str) -> None:
    (out.parent / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "argv", [
        "train.py", "--prepared", str(small.folder), "--out", str(out), "--config", str(out.parent / "config.json"),
        "--device", "cpu", "--eager", "--batch", "3", "--length", "512", "--bank", "2", "--workers", "1", "--log-every", "3",
        "--steps", "1", "--seed", "3", *more])
    train.main()


def test_a_run_logs_kinds_of_rows_and_goes_on_with_the_data_that_follows(monkeypatch, small, small_config, tmp_path):
    first_of_feed = []
    real = train.batches

    def watched(*arguments, first=0):
        first_of_feed.append(first)
        return real(*arguments, first=first)

    monkeypatch.setattr(train, "batches", watched)
    monkeypatch.setattr(train.Step, "CAPTURE_AFTER", 0)  # steps before the first that counts
    out = tmp_path / "run"
    for _ in range(2):
        run(monkeypatch, small, out, small_config, "--resumable")
    steps = json.loads((out / "run.json").read_text())["step"]
    assert first_of_feed == [0, steps // 2] and torch.load(out / "resume.pt")["step"] == steps == 6
    assert (out / "tokenizer.model").read_bytes() == (small.folder / "spm.model").read_bytes()
    with open(out / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [3, 6]
    assert any(row[f"exact_{kind}"] for row in rows for kind in KINDS)
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in train.BY_KIND if row[name])


def test_rows_are_counted_by_kind_and_only_whole_answers_are_exact():
    expected = torch.tensor([[[1, 2, 0], [1, 2, 0], [3, 0, 0], [0, 0, 0]]])
    weight = torch.tensor([[[1.0, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]])
    said = torch.tensor([[[1, 2, 3], [1, 3, 0], [3, 1, 1], [0, 0, 0]]])
    logits = torch.nn.functional.one_hot(said, 4).float()
    asked, exact = train.Objective._rows_exact(logits, expected, weight)
    assert asked.tolist() == [[True, True, True, False]] and exact.tolist() == [[True, False, True, False]]
    copy = KINDS.index("copy")
    counts = train.Objective._by_kind(asked, exact, torch.tensor([[0, 0, copy, -1]]))
    assert counts[:, 0].tolist() == [2, 1] and counts[:, copy].tolist() == [1, 1] and counts.sum() == 5


def test_steps_are_counted_on_where_a_run_is_resumable(tmp_path):
    args = type("Args", (), {"out": tmp_path, "resumable": False})
    torch.save({"step": 7, "model": {}}, tmp_path / "resume.pt")
    assert train.steps_done(args) == 0
    args.resumable = True
    assert train.steps_done(args) == 7


def test_a_run_that_is_told_to_stop_saves_first(monkeypatch, small, small_config, tmp_path):
    real = train.batches

    def interrupted(*arguments, first=0):
        for number, batch in enumerate(real(*arguments, first=first)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(train, "batches", interrupted)
    run(monkeypatch, small, tmp_path / "run", small_config, "--steps", "1000")
    assert json.loads((tmp_path / "run/run.json").read_text())["step"] == 2
    assert (tmp_path / "run/model.safetensors").exists()


def test_another_architecture_begins_with_what_both_have(monkeypatch, small, small_config, tmp_path, capsys):
    run(monkeypatch, small, tmp_path / "ramba", small_config)
    config = train.Config.from_reference(small_config | {"model_type": "swa_hsa", "sliding_window": 128, "swa_kv_heads": 1,
                                                          "num_lower_layers": small_config["num_lower_layers"] + 1})
    model, fresh = train.build(config, 5), train.build(config, 5).state_dict()
    train.load_weights(model, tmp_path / "ramba")
    taken = train.read_weights(tmp_path / "ramba")
    layer = {name.split(".")[2]: name for name in taken if name.endswith((".cls_emb", ".lmk_q_norm.weight"))}
    assert len(layer) == 2
    for place, name in layer.items():
        own = name.replace(f".layers.{place}.", f".layers.{int(place) + 1}.")
        assert torch.equal(model.state_dict()[own], taken[name])
    assert torch.equal(model.state_dict()["backbone.embeddings.weight"], taken["backbone.embeddings.weight"])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, fresh[name])}
    assert not any(name.startswith(f"backbone.layers.{i}.") for name in changed for i in range(config.num_lower_layers))
    assert "new in this model: ['backbone.layers.0." in capsys.readouterr().out

    with pytest.raises(SystemExit, match="of another shape: .*the widths"):
        train.load_weights(train.build(replace(config, retrieval_dim=2 * config.retrieval_dim), 5), tmp_path / "ramba")
    (tmp_path / "ramba" / "config.json").unlink()
    with pytest.raises(SystemExit, match="has no config.json"):
        train.load_weights(model, tmp_path / "ramba")


def test_groups_beyond_the_weights_begin_as_nothing(monkeypatch, small, small_config, tmp_path):
    run(monkeypatch, small, tmp_path / "one", small_config)
    config = train.Config.from_reference(small_config)
    two = replace(config, num_upper_layers=2 * config.num_upper_layers, num_upper_groups=2)
    before, after = train.build(config, 1), train.build(two, 2)
    for model in (before, after):
        train.load_weights(model, tmp_path / "one")
    ids = torch.randint(10, config.vocab_size, (1, 256), generator=torch.Generator().manual_seed(3))
    hidden = [model(ids, model.zero_state(1, "cpu")).hidden for model in (before, after)]
    assert torch.equal(*hidden)
    second = after.backbone.layers[after.first_retrieval + 1 + config.stages_of_group * (1 + config.num_mamba_per_gca)]
    assert torch.equal(second.ln.weight, after.backbone.layers[after.first_retrieval].ln.weight)


def test_training_answers_alone_changes_nothing_that_searches_use(monkeypatch, small, small_config, tmp_path):
    run(monkeypatch, small, tmp_path / "one", small_config)
    two = small_config | {"num_upper_layers": 2 * small_config["num_upper_layers"], "num_upper_groups": 2}
    run(monkeypatch, small, tmp_path / "two", two, "--answers-only", "--init", str(tmp_path / "one"))
    config = train.Config.from_reference(small_config)
    models = [train.build(config, 1), train.build(train.Config.from_reference(two), 1)]
    for model, name in zip(models, ("one", "two")):
        train.load_weights(model, tmp_path / name)
    ids = torch.randint(10, config.vocab_size, (2, 128), generator=torch.Generator().manual_seed(3))
    outs = [model(ids, model.zero_state(2, "cpu")) for model in models]
    for part in ("lower", "landmarks", "keys", "values", "scores"):
        assert torch.equal(*(getattr(out, part) for out in outs)), part
    asked = [model.questions(ids, torch.tensor([100, 90])) for model in models]
    for before, after in zip(*asked):
        assert torch.equal(before, after)
    assert not torch.equal(*(out.hidden for out in outs))
    changed = {name for name, value in models[0].state_dict().items() if not torch.equal(value, models[1].state_dict()[name])}
    assert changed and all(train.read_by_answers_alone(models[0], name) for name in changed)
    for name, metrics in (("one", train.Objective.metrics), ("two", train.AnswersObjective.metrics)):
        heads = (tmp_path / name / "log.csv").read_text().splitlines()[0].split(",")
        assert tuple(heads[4:]) == metrics + train.BY_KIND, "what is not trained is not measured"
