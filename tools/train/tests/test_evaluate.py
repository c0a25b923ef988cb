"""Answers read a token at a time are those of reading everything again for each, and what is found is kept."""
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

TRAIN = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TRAIN))
import evaluate  # noqa: E402
import figures  # noqa: E402
from evaluate import ANSWER_MAX, CHUNK, TAIL, Memory, Reader, hide  # noqa: E402
from model import Config, build  # noqa: E402


@pytest.fixture(params=["ramba", "swa_hsa"])
def reader(request, small_config, tmp_path) -> Reader:
    config = replace(Config.from_reference(small_config), model_type=request.param, sliding_window=128, swa_kv_heads=1)
    model = build(config, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)  # so that every answer is another
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config.to_reference()))
    return Reader(tmp_path, "cpu")


@torch.no_grad()
def answer_by_reading_again(reader: Reader, ids: np.ndarray, question: list[int], prepared) -> list[int]:
    model, lower_blocks = reader.model, reader.config.num_lower_layers
    zero = model.zero_state(1, "cpu")
    memory = model.encode(model.lower(torch.from_numpy(ids.astype(np.int64))[None], zero)[0])
    answer: list[int] = []
    while len(answer) < ANSWER_MAX:
        row = torch.tensor([[*ids[-TAIL:].tolist(), prepared.newline, *question, prepared.recall, *answer]])
        found = model.upper(model.lower(row, zero)[0], zero[lower_blocks:], memory, False)
        token = int(model.logits(found.hidden[0, -1]).argmax())
        if token == prepared.newline:
            break
        answer.append(token)
    return answer


def test_answers_and_questions_are_those_of_reading_everything_again(monkeypatch, small, reader):
    monkeypatch.setitem(evaluate.SEGMENT, "cpu", 256)
    ids, found = hide(small, "numbered", 1024, 3, 7)
    questions = [question for question, _, _ in found]
    memory = Memory(reader, ids)
    assert memory.keys.dtype == torch.float32 and len(found) == 3
    expected = [answer_by_reading_again(reader, memory.ids, question, small) for question in questions]
    assert memory.answer(questions, small) == expected
    assert len({tuple(answer) for answer in expected}) > 1

    model = reader.model
    with torch.no_grad():
        whole = torch.from_numpy(memory.ids.astype(np.int64))[None]
        asked = [small.newline, *questions[0], small.recall]
        for within, before in ((False, whole[:, :0]), (True, whole)):
            lower, _ = model.lower(torch.cat([before, torch.tensor([asked])], 1), model.zero_state(1, "cpu"))
            query = model.retrieval_queries(lower[0, -1])
            assert torch.allclose(memory.ask(questions, small, within)[0][0], query, atol=1e-3)


def test_what_is_hidden_is_where_it_is_said_to_be(small):
    for kind in ("passkey", "numbered", "multi_query"):
        ids, found = hide(small, kind, 16384, 20, 7)
        assert len(ids) == 16384 and ids.dtype == small["held_prose"].dtype and len(found) == 20
        for _, answer, (first, last) in found:
            part = ids[first * CHUNK:(last + 1) * CHUNK].tolist()
            if kind != "multi_query":
                assert any(part[i:i + len(answer)] == answer for i in range(len(part)))


def test_what_is_found_is_printed_and_kept(small, reader, tmp_path, capsys):
    out = tmp_path / "kept" / "figures.json"
    for _ in range(2):
        evaluate.tasks_by_length(reader, small, ["numbered"], [1024, 2048], 3, 7, out)
    evaluate.bits_per_byte(reader, small, [2048], out, tail=256)
    assert "right chunk first" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 5
    records = figures.read(out)
    assert [(record["kind"], record["length"]) for record in figures.of_tasks(records)] == [("numbered", 1024),
                                                                                          ("numbered", 2048)]
    assert all(record["asks"] == 3 and 0 <= record[name] <= 1 for record in figures.of_tasks(records)
               for name in figures.OF_TASKS[1:])
    assert records[-1]["kind"] == "prose" and records[-1]["bits_per_byte"] > 0
