"""Ablations cost the same, go on where they stopped, and give a table and a picture."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TRAIN))
import ablate  # noqa: E402
from model import Config  # noqa: E402


def test_every_ablation_is_a_model_and_costs_what_the_recipe_does():
    config = json.loads((TRAIN / "configs/ablation.json").read_text())
    for ablation in ablate.ABLATIONS.values():
        Config.from_reference(config | ablation.config)
        cost = ablate.sequences_of(ablation.length, 8) * ablate.tokens_of(ablation.length)
        assert abs(cost / (8 * (4096 + 4 * 256)) - 1) < 0.02
    assert ablate.ABLATIONS["short"].length // 64 == config["chunk_topk"]
    assert ablate.sequences_of(4096, 8) == 8


def call(small, folder: Path, *more: str) -> None:
    ablate.main(["--prepared", str(small.folder), "--runs", str(folder / "runs"), "--config", str(folder / "config.json"),
                 "--only", "short", "--steps", "1", "--batch", "1", "--workers", "1", "--log-every", "2", "--device", "cpu",
                 "--eager", "--kinds", "numbered", "--asks", "2", *more])


def test_runs_are_trained_once_and_go_on_where_they_stopped(small, small_config, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(small_config))
    call(small, tmp_path, "--lengths", "1024")
    called = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **more: called.append(command[1:]) or real(command, **more))
    call(small, tmp_path, "--lengths", "1024,2048")
    assert [Path(command[0]).name for command in called] == ["evaluate.py"] and "2048" in called[0]
    rows = ablate.read_csv(tmp_path / "runs/ablations.csv")
    assert [(row["name"], row["kind"], row["length"], row["asks"]) for row in rows] == [("short", "numbered", 1024, 2),
                                                                                       ("short", "numbered", 2048, 2)]
    assert int(rows[0]["steps"]) == 6 and int(rows[0]["tokens"]) == 6 * 7 * 512
    with pytest.raises(SystemExit, match="another way"):
        call(small, tmp_path, "--lengths", "1024", "--seed", "2")
    assert len(called) == 1


def rows_of_two() -> list[dict]:
    return [{"name": name, "kind": kind, "length": length, "exact": exact, "first_alone": 0.9}
            for name, exact in (("full", 0.8), ("mean", 0.6)) for kind in ("passkey", "numbered")
            for length in (4096, 1 << 20)]


def test_the_table_has_a_line_a_run():
    lines = ablate.table(rows_of_two()).splitlines()
    assert lines[0] == "| run | what is other | numbered 4 Ki | numbered 1 Mi | passkey 4 Ki | passkey 1 Mi |"
    assert lines[2].startswith("| full | the recipe | 0.80 / 0.90 |") and lines[3].startswith("| mean |") and len(lines) == 4


def test_the_same_figures_give_the_same_picture(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("one.svg", "two.svg"):
        ablate.plot(rows_of_two(), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert b"</svg>" in (tmp_path / "one.svg").read_bytes()
