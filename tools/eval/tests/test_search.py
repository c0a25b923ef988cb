"""The harness against a daemon of plain words, and against the real one where it is built."""
import json
import os
from pathlib import Path
from types import SimpleNamespace

import dataset
import metrics
import pytest
import search
from daemon_process import RpcError
from dataset import DataSet, Evidence, Question

BINARY = Path(os.environ.get("RECALLD", search.ROOT / "build/release/recalld"))


class WordDaemon:
    """A chunk is three words of the text; modes `first` and `hybrid` return the chunks in order, `last` backwards, others do
    not exist."""

    def __init__(self):
        self.turns, self.deleted, self.waited = {}, [], False

    def chunks(self, memory):
        text = "".join(f"{turn.get('name') or 'User'}: {turn['content']}\n" for turn in self.turns[memory])
        words = text.split(" ")
        whole = [" ".join(words[i:i + 3]) + " " for i in range(0, len(words), 3)]
        whole[-1] = whole[-1][:-1]
        return [{"chunk": i, "text": one, "tokens": [3 * i, 3 * i + 3]} for i, one in enumerate(whole)]

    def request(self, method, **params):
        return getattr(self, method.replace(".", "_"))(**params)

    call = request

    def append(self, memory, turns, wait="durable"):
        self.turns.setdefault(memory, []).extend(turns)
        self.waited = wait == "searchable"
        return {"tokens": sum(len(turn["content"].split()) for turn in turns)}

    def chunks_list(self, memory, limit, cursor="0"):
        assert self.waited
        stored, first = self.chunks(memory)[:-1], int(cursor)
        page = {"chunks": stored[first:first + 2]}
        return page | ({"next_cursor": str(first + 2)} if first + 2 < len(stored) else {})

    def search(self, memory, query, limit, mode, explain=False):
        if mode not in ("first", "last", "hybrid"):
            raise RpcError("search", {"code": -32602, "message": f"mode: {mode} search does not exist in this version yet"})
        results = self.chunks(memory)[::-1 if mode == "last" else 1][:limit]
        if explain:
            results = [one | {"why": {"took": {"query_ms": 0.25, "words_ms": 0.5}}} for one in results]
        return {"results": results, "took_ms": 1.5}

    def memories_delete(self, memory, wait):
        self.deleted.append(memory)


def boats() -> DataSet:
    data = DataSet("boats")
    data.add_turn("harbour", {"content": "the ferry leaves at nine from the pier", "name": "Runa"})
    data.add_turn("harbour", {"content": "and the barge sleeps in the shed"})
    data.add_turn("other", {"content": "nobody asks about this"})
    # "Runa: the ferry | leaves at nine | from the pier\nUser: | and the barge | sleeps in the | shed\n"
    data.questions = [
        Question("harbour", "when does the ferry go?", [Evidence(0, 20, 24)], "time", "q1"),
        Question("harbour", "where is the barge?", [Evidence(1)], "place", "q2"),
        Question("harbour", "who is the captain?", [], "nothing")]
    return data


def run(data, modes, **more):
    daemon = WordDaemon()
    args = SimpleNamespace(**{"modes": modes, "dense": False, "memory": "eval", "arguments": {}, "parts": False} | more)
    return daemon, search.Evaluation(daemon, args).run(data)


def test_parts_of_a_hybrid_search_and_the_rest_are_what_it_took():
    _, outcome = run(boats(), ["first", "hybrid"], parts=True)
    answers = {one.system: one for one in outcome.answers}
    assert not answers["first"].parts_ms
    assert search.mean_parts(answers["hybrid"]) == {"query": 0.25, "words": 0.5, "rest": 0.75}


def figures(outcome, system, by="chunk"):
    answers = next(one for one in outcome.answers if one.system == system)
    return [dict(zip(metrics.names(), row)) for row in getattr(answers, f"by_{by}")]


def test_evidence_is_found_where_the_daemon_shows_it():
    _, outcome = run(boats(), ["first", "last"])
    time, place = figures(outcome, "first")
    assert time["mrr"] == 1 / 2 and time["any@1"] == 0 and time["all@5"] == 1
    assert place["mrr"] == 1 / 4 and place["any@5"] == 1 and place["all@5"] == 0 and place["all@10"] == 1
    time, place = figures(outcome, "last")
    assert time["mrr"] == 1 / 5 and place["mrr"] == 1
    # A turn is shown by any of its chunks.
    time, place = figures(outcome, "first", "turn")
    assert time["mrr"] == 1 and place["mrr"] == 1 / 4 and place["all@5"] == 1


def test_only_asked_memories_are_appended_and_all_are_deleted():
    daemon, outcome = run(boats(), ["first"])
    assert list(daemon.turns) == daemon.deleted == ["eval/boats/harbour"]
    assert outcome.memories == 1 and outcome.chunks == 6 and [question.id for question in outcome.questions] == ["q1", "q2"]


def test_a_mode_that_does_not_exist_is_told_and_left_out(capsys):
    _, outcome = run(boats(), ["landmark", "first"])
    assert "mode landmark is left out: search: mode: landmark search does not exist" in capsys.readouterr().err
    assert [one.system for one in outcome.answers][:2] == ["first", "BM25"]


def test_another_error_ends_the_program(monkeypatch):
    def fail(*_, **__):
        raise RpcError("search", {"code": -32003, "message": "the disk is gone"})
    monkeypatch.setattr(WordDaemon, "search", fail)
    with pytest.raises(SystemExit, match="search: the disk is gone"):
        run(boats(), ["first"])


def test_baselines_rank_the_same_chunks():
    _, outcome = run(boats(), ["first"])
    # "ferry" stands in the first chunk, the time in the second: context helps.
    time, place = figures(outcome, "BM25")
    assert time["any@1"] == 0 and place["any@1"] == 1
    assert {one.system for one in outcome.answers} == {
        "first", "BM25", "BM25 stemmed", "BM25 + context", "BM25 + context, stemmed"}


def test_tables_and_saved_lines_say_the_same(tmp_path, capsys):
    _, outcome = run(boats(), ["first", "last"])
    report = search.Report([outcome], 1)
    report.print()
    printed = capsys.readouterr().out
    assert "| boats | first | .000 | 1.000 |" in printed and "By turn" in printed
    assert "| boats | last - first |" in printed and "| boats | place | 1 | 1.000 |" in printed
    report.print(brief=True)
    printed = capsys.readouterr().out
    assert "| boats | first | .000 | 1.000 [1.000, 1.000] |" in printed and "By turn" not in printed
    assert "| boats | last - BM25 |" in printed and "| boats | last - BM25 stemmed |" not in printed
    with (tmp_path / "saved").open("w") as out:
        report.save(out)
    lines = [json.loads(line) for line in (tmp_path / "saved").open()]
    first = lines[0]
    assert first["memories"] == 1
    assert first["system"] == "first" and first["questions"] == 2 and first["by_chunk"]["mrr"][0] == 0.375
    assert first["minus"]["last"]["any@1"][0] == -0.5 and first["categories"]["time"]["any@5"] == 1
    assert "minus" not in lines[2] and lines[2]["system"] == "BM25"
    with (tmp_path / "each").open("w") as out:
        report.save_each(out)
    each = [json.loads(line) for line in (tmp_path / "each").open()]
    assert [line["ranks"]["first"] for line in each] == [2, 4]


def test_a_result_that_spans_chunks_shows_all_of_them(monkeypatch):
    merged = {"results": [{"chunk": 3, "tokens": [9, 18]}], "took_ms": 1.0}
    monkeypatch.setattr(WordDaemon, "search", lambda *_, **__: merged)
    _, outcome = run(boats(), ["first"])
    assert figures(outcome, "first")[1]["all@1"] == 1


@pytest.mark.parametrize("value, text", [(0.5, ".500"), (1.0, "1.000"), (-0.0625, "-.062"), (0.0, ".000")])
def test_shares_are_short(value, text):
    assert search.share(value) == text


def test_names_of_memories_hold_what_a_name_may():
    assert search.memory_name("eval", "my set", "a:b/c") == "eval/my-set/a-b/c"


@pytest.mark.skipif(not BINARY.is_file(), reason="recalld is not built; RECALLD names another binary")
def test_the_real_daemon_finds_a_fact_among_others(tmp_path, monkeypatch, capsys):
    data = DataSet("facts")
    things = ["lighthouse", "orchard", "granary", "ferry", "belfry", "quarry", "stable", "cellar", "chapel", "brewery"]
    for i, thing in enumerate(things):
        turn = data.add_turn("m", {"content": f"The code for the {thing} is {60417 + 311 * i}.", "name": "Runa"})
        data.add_turn("m", {"content": "Über Nacht kam Regen, und das Boot blieb im Hafen; nobody went out before noon, I believe."})
        data.questions.append(Question("m", f"What is the code for the {thing}?", [Evidence(turn)]))
    dataset.write(data, tmp_path / "facts.jsonl")
    monkeypatch.setattr("sys.argv", ["search.py", "--data", str(tmp_path / "facts.jsonl"), "--modes", "landmark,nosuch",
                                     "--recalld", str(BINARY), "--store", str(tmp_path), "--save", str(tmp_path / "saved")])
    search.main()
    lines = [json.loads(line) for line in (tmp_path / "saved").open()]
    landmark = next(line for line in lines if line["system"] == "landmark")
    assert landmark["by_turn"]["any@5"][0] > 0.5 and landmark["took_ms"]["p50"] > 0
    assert "mode nosuch is left out" in capsys.readouterr().err
    assert not list(tmp_path.glob("recalld-eval-*"))
