"""fusion.py on made-up features: the part that tells is found, no weight is below 0, scores are calibrated."""
import json
import sys

import numpy as np
import pytest

import fusion


def made(count, seed=0, strangers=0.3, split="train"):
    """Lines as dump writes them: evidence stands higher by `tokens` and a little by `bm25`, and lower by `landmark`."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        stranger = rng.random() < strangers
        size = int(rng.integers(5, 40))
        evidence = np.zeros(size, int)
        if not stranger:
            evidence[rng.integers(size)] = 1
        features = []
        for is_evidence in evidence:
            each = dict(zip(fusion.ORDER + fusion.SEARCH, rng.normal(size=len(fusion.ORDER + fusion.SEARCH))))
            each["tokens"] += 3 * is_evidence
            each["bm25"] += is_evidence
            each["landmark"] -= is_evidence
            features.append(each | {"best_bm25": 5.0, "best_tokens": 4.0 - 3 * stranger, "best_landmark": 2.0})
        yield {"set": f"set {number % 2}", "split": split, "half": -1 if stranger else number % 4 // 2,
               "wanted": int(evidence.sum()), "chunks": list(range(size)), "evidence": evidence.tolist(), "features": features}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["fusion.py", *map(str, words)])
    fusion.main()


def test_fit_finds_what_tells_and_scores_are_calibrated_on_other_questions(tmp_path, monkeypatch, capsys):
    write(tmp_path / "train", made(600))
    write(tmp_path / "other", made(600, seed=1, split="heldout"))
    run(monkeypatch, "fit", tmp_path / "train", "--out", tmp_path / "fusion.json")
    weights = json.loads((tmp_path / "fusion.json").read_text())
    assert set(weights["order"]) == set(fusion.ORDER) and min(weights["order"].values()) >= 0
    assert max(weights["order"], key=weights["order"].get) == "tokens"
    assert weights["order"]["tokens"] > weights["order"]["bm25"] > 0 == weights["order"]["landmark"]
    assert weights["score"]["best_tokens"] > 0 and weights["learned_from"] == ["set 0 (train)", "set 1 (train)"]
    capsys.readouterr()

    run(monkeypatch, "test", tmp_path / "other", "--weights", tmp_path / "fusion.json")
    out = capsys.readouterr().out
    hybrid = next(line for line in out.splitlines() if "| hybrid |" in line).split(" | ")
    landmark = next(line for line in out.splitlines() if "| landmark |" in line).split(" | ")
    assert float(hybrid[4]) > 0.7 > 0.4 > float(landmark[4])
    errors = [float(line.split(" | ")[1]) for line in out.split("ECE")[1].splitlines() if line.startswith("| set")]
    assert len(errors) == 2 and max(errors) < 0.05


def test_weights_without_meaning_and_a_set_of_strangers_alone_are_tested(tmp_path, monkeypatch, capsys):
    write(tmp_path / "train", made(200))
    strangers = [line | {"set": "set 2"} for line in made(60, seed=3) if line["half"] < 0]
    write(tmp_path / "other", [*made(100, seed=1), *strangers])
    run(monkeypatch, "fit", tmp_path / "train", "--out", tmp_path / "fusion.json")
    weights = json.loads((tmp_path / "fusion.json").read_text())
    figures = {}
    for way, missing in (("zero", 0), ("missing", None)):
        weights["order"] |= {"meaning": missing, "topic": missing}
        order = {name: weight for name, weight in weights["order"].items() if weight is not None}
        (tmp_path / "fusion.json").write_text(json.dumps(weights | {"order": order}))
        capsys.readouterr()
        run(monkeypatch, "test", tmp_path / "other", "--weights", tmp_path / "fusion.json")
        figures[way] = capsys.readouterr().out
    assert figures["zero"] == figures["missing"]
    of_strangers = [line for line in figures["missing"].splitlines() if line.startswith("| set 2")]
    assert len(of_strangers) == 2 and of_strangers[0].startswith("| set 2 | train | 0 |")


def test_what_the_checkpoint_was_trained_to_answer_teaches_no_weight_of_it(tmp_path, monkeypatch):
    def lines(much):
        for line in made(300):
            if line["set"] == "set 0":
                for each, is_evidence in zip(line["features"], line["evidence"]):
                    each["landmark"] += much * is_evidence
            yield line
    weights = {}
    for much in (0, 5):
        for known in ((), ("--known", "set 0")):
            write(tmp_path / "train", lines(much))
            run(monkeypatch, "fit", tmp_path / "train", "--out", tmp_path / "fusion.json", *known)
            weights[much, bool(known)] = json.loads((tmp_path / "fusion.json").read_text())
    assert weights[5, False]["order"]["landmark"] > 0
    assert weights[5, True] == weights[0, True] and weights[5, True]["order"]["landmark"] == 0
    for known, message in ((("set 0", "set 1"), "the score needs"), (("set 7",), "no features of set 7")):
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, "fit", tmp_path / "train", "--out", tmp_path / "fusion.json", "--known", *known)


def test_calibration_error_is_the_mean_distance_of_bins():
    p, y = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0, 0, 1, 0])
    assert fusion.calibration_error(p, y) == pytest.approx(0.5 * 0.05 + 0.5 * 0.45)


def test_a_half_leaves_the_other_half_out(tmp_path, monkeypatch):
    write(tmp_path / "train", made(40))

    class Args:
        features, sets, half = [tmp_path / "train"], None, fusion.half_of("set 0:1")
    found = {(one.set, one.half) for one in fusion.chosen(Args)}
    assert found == {("set 0", 1), ("set 0", -1), ("set 1", 0), ("set 1", 1), ("set 1", -1)}


def test_a_line_that_is_none_is_named(tmp_path):
    write(tmp_path / "train", [*made(1), {"set": "x"}])
    with pytest.raises(SystemExit, match="train:2: KeyError"):
        fusion.read([tmp_path / "train"])
