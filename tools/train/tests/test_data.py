"""Sequences made from a small corpus of our own: what they promise holds for every one of them."""
import random
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data as sequences  # noqa: E402
import facts  # noqa: E402
import prepare  # noqa: E402
from data import C, G, L, QL, RA, S, T, TAIL, Maker, MakerOptions, batches  # noqa: E402
from lexicon import Lexicon  # noqa: E402
from prepared import Prepared  # noqa: E402
from stories import Story  # noqa: E402
from tasks import TaskMaker  # noqa: E402
from units import KINDS, Coder  # noqa: E402

@pytest.fixture(scope="session")
def made(small) -> list[sequences.Batch]:
    maker = Maker(small, 11)
    return [maker.batch(8) for _ in range(6)]


def each(made):
    """Every sequence of the batches as a dict of numpy arrays."""
    for batch in made:
        for i in range(len(batch.ids)):
            yield {f.name: getattr(batch, f.name)[i].numpy() for f in fields(batch)}


def question_of_row(one, i: int) -> tuple[int, ...]:
    return tuple(one["rows"][i, TAIL + 1:one["row_recall"][i, 0]].tolist())


def answer_of_row(one, i: int) -> list[int]:
    last = int(np.flatnonzero(one["row_weight"][i])[-1])
    return one["rows"][i, one["row_recall"][i, 0] + 1:last + 1].tolist()


def test_held_out_text_is_not_trained_on(small):
    assert len(small["held_prose_off"]) - 1 == prepare.NOVELS_HELD and len(small["prose_off"]) - 1 == 4
    assert len(small["held_dial_off"]) - 1 == 3 and len(small["dial_off"]) - 1 == 57
    held = {small.row("dv_ctx", i).tobytes() for i in range(len(small["dv_ctx_off"]) - 1)}
    read = {small.row("tr_ctx", i).tobytes() for i in range(len(small["tr_ctx_off"]) - 1)}
    assert len(held) == 4 and not held & read
    lines = small.model.decode(small["babi_line"].tolist())
    assert "Held out" not in lines and "?" not in lines and len(small["babi_task"]) == 10


def test_copies_point_at_equal_tokens_in_an_earlier_chunk(made):
    seen = 0
    for one in each(made):
        pairs = one["copies"][one["copies"][:, 0] >= 0]
        seen += len(pairs)
        assert (one["ids"][pairs[:, 0] + 1] == one["ids"][pairs[:, 1]]).all()
        assert (pairs[:, 1] // S < pairs[:, 0] // S).all()
    assert seen > 1000


def test_questions_in_the_stream_come_after_their_evidence(small, made):
    seen = 0
    for one in each(made):
        for recall, first, last in one["asked"][one["asked"][:, 0] >= 0]:
            seen += 1
            assert one["ids"][recall] == small.recall and 0 <= first <= last < recall // S
    assert seen > 200


def test_rows_end_as_generate_needs_them(small, made):
    seen = 0
    for one in each(made):
        for i in range(G):
            recall = one["row_recall"][i, 0]
            if recall < 0:
                assert not one["rows"][i].any() and not one["row_weight"][i].any()
                continue
            seen += 1
            row, answer = one["rows"][i], answer_of_row(one, i)
            assert (row[:TAIL] == one["ids"][L - TAIL:]).all() and row[TAIL] == small.newline
            assert row[recall] == small.recall and recall > TAIL + 1
            end = recall + 1 + len(answer)
            assert answer and row[end] == small.newline and not row[end + 1:].any()
            weighted = np.flatnonzero(one["row_weight"][i])
            assert weighted.tolist() == list(range(recall, end))
            pairs = one["row_copies"][i][one["row_copies"][i][:, 0] >= 0]
            assert (row[pairs[:, 0] + 1] == one["ids"][pairs[:, 1]]).all()
            assert ((pairs[:, 0] >= recall) & (pairs[:, 0] < end - 1)).all()
    assert seen > 100


def test_evidence_chunks_hold_the_answer(made):
    """Of answers in one piece every copied token lies in the evidence chunks, and the whole answer is copied."""
    whole = {KINDS.index(kind) for kind in ("numbered", "personal", "multi_key", "updated", "story")}
    seen = 0
    for one in each(made):
        for i in np.flatnonzero(np.isin(one["row_kind"], list(whole))):
            recall, first, last = one["row_recall"][i]
            pairs = one["row_copies"][i][one["row_copies"][i][:, 0] >= 0]
            assert len(pairs) == len(answer_of_row(one, i))
            assert (pairs[:, 1] // S >= first).all() and (pairs[:, 1] // S <= last).all()
            seen += 1
    assert seen > 40


def test_questions_alone_are_bounded_by_marks(small, made):
    pseudo = 0
    for one in each(made):
        for i in np.flatnonzero(one["alone_meta"][:, 0] >= 0):
            at, first, last, available = one["alone_meta"][i]
            assert at < QL and one["alone"][i, 0] == small.newline and one["alone"][i, at] == small.recall
            assert not one["alone"][i, at + 1:].any()
            assert 0 <= first <= last < C and last < available <= C
            pseudo += available == C
    assert pseudo > 300


def test_no_question_of_a_batch_has_two_answers(small, made):
    for batch in made:
        answers: dict[tuple[int, ...], list[int]] = {}
        for one in each([batch]):
            for i in np.flatnonzero((one["row_kind"] >= 0) & (one["row_kind"] != KINDS.index("copy"))):
                question, answer = question_of_row(one, i), answer_of_row(one, i)
                assert answers.setdefault(question, answer) == answer
            for (recall, *_), kind in zip(one["asked"], one["asked_kind"]):
                if recall >= 0 and kind != KINDS.index("copy"):
                    newlines = np.flatnonzero(one["ids"] == small.newline)
                    begin = newlines[newlines < recall][-1] + 1
                    end = newlines[newlines > recall][0]
                    question = tuple(one["ids"][begin:recall].tolist())
                    answer = one["ids"][recall + 1:end].tolist()
                    assert answers.setdefault(question, answer) == answer


def test_same_seed_gives_the_same_batch(small):
    one, same, other = (Maker(small, seed).batch(4) for seed in (5, 5, 6))
    assert all(torch.equal(getattr(one, f.name), getattr(same, f.name)) for f in fields(one))
    assert not torch.equal(one.ids, other.ids)


def test_batches_do_not_depend_on_the_number_of_workers(small):
    found = []
    for workers in (1, 3):
        stream = batches(small, 7, 2, workers)
        found.append([next(stream) for _ in range(4)])
        stream.close()
    for one, other in zip(*found):
        assert all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    assert not torch.equal(found[0][0].ids, found[0][1].ids)


def test_a_dead_worker_is_reported(small, monkeypatch):
    monkeypatch.setattr(sequences, "WORKER_PATIENCE_S", 0.2)
    monkeypatch.setattr(Maker, "batch", lambda self, count: sys.exit(3))
    with pytest.raises(RuntimeError, match="exit code 3"):
        next(batches(small, 7, 2, 1))


def tasks_of(small, name: str, count: int):
    maker = TaskMaker(small, random.Random(9))
    return [maker.make(name) for _ in range(count)]


@pytest.mark.parametrize("name", list(sequences.task_shares()))
def test_parts_of_answers_are_tokens_of_their_statements(small, name):
    for task in tasks_of(small, name, 100):
        assert task.keys and (task.asks or name in ("passage", "story"))
        for ask in task.asks:
            assert ask.answer and ask.questions
            for at, count, statement, place in ask.parts:
                assert ask.answer[at:at + count] == task.statements[statement].tokens[place:place + count]


@pytest.mark.parametrize("name", ["numbered", "personal", "multi_key", "multi_value", "variables", "updated", "story"])
def test_filled_templates_are_what_the_tokenizer_gives(small, name):
    for task in tasks_of(small, name, 100):
        for ids in [s.tokens for s in task.statements] + [q for a in task.asks for q in a.questions]:
            assert ids == small.model.encode(small.model.decode(ids))


def test_questions_with_two_answers_about_one_passage_are_not_asked(small):
    asked = {small.model.decode(ask.questions[0]) for task in tasks_of(small, "passage", 300) for ask in task.asks}
    assert "What is told in part 0 of passage 21?" in asked and "What is told in part 0 of passage 20?" not in asked
    assert "What is told in part 1 of passage 20?" in asked


def test_updated_facts_give_the_newest(small):
    told_again = 0
    for task in tasks_of(small, "updated", 200):
        (ask,) = task.asks
        newest = len(task.statements) - 1
        assert ask.evidence[0] == newest and [part[2] for part in ask.parts] == [newest]
        told_again += newest > 0
    assert told_again > 150


def test_several_values_are_listed_newest_first(small):
    for task in tasks_of(small, "multi_value", 100):
        (ask,) = task.asks
        told = len(task.statements)
        assert [part[2] for part in ask.parts] == list(reversed(range(told)))
        assert ask.rivals == [list(range(older)) for older in reversed(range(told))]
        values = [small.model.decode(ask.answer[at:at + count]) for at, count, _, _ in ask.parts]
        assert small.model.decode(ask.answer) == ", ".join(values)
        assert ask.evidence[0] == told - 1


def test_chunks_that_only_age_tells_apart_are_marked(made):
    """The tokens of the older values' chunks lie before the evidence, and only such asks have any."""
    seen = 0
    for one in each(made):
        kinds = [KINDS[kind] for kind in one["row_kind"] if kind >= 0]
        for kind, (_, first, last), alike in zip(kinds, one["row_recall"], one["row_alike"]):
            chunks = [chunk for chunk in range(64) if int(alike) >> chunk & 1]
            assert not chunks or kind in ("updated", "multi_value")
            assert all(chunk <= last for chunk in chunks)
            seen += len(chunks) > 0
        assert (one["copies_alike"][one["copies"][:, 0] < 0] == -1).all()
    assert seen > 0


def test_variables_are_answered_with_their_hops(small):
    hops = 0
    for task in tasks_of(small, "variables", 100):
        told = [small.model.decode(statement.tokens) for statement in task.statements]
        for ask in task.asks:
            names = small.model.decode(ask.answer).split(" = ")
            for name, (_, _, statement, _) in zip(names, ask.parts):
                assert name.split(", ")[0] in told[statement]
            hops += len(names) == 2 and names[1].isdecimal()
    assert hops > 80


def test_stories_are_answered_by_the_last_sentence_about_it(small):
    seen = 0
    for seed in range(50):
        maker = TaskMaker(small, random.Random(seed))
        story = Story(maker.lexicon, maker.coder)
        story.write(12)
        lines = [small.model.decode(statement.tokens) for statement in story.statements]
        for ask in story.asks():
            question, answer = small.model.decode(ask.questions[0]), small.model.decode(ask.answer)
            person = question.split()[2].rstrip("?")
            if question.startswith("Where is ") and person in story.people:
                verbs = ("went", "moved", "travelled", "journeyed", "walked", "headed")
                went = [line for line in lines if any(f"{person} {verb} " in line for verb in verbs)]
                assert went[-1] == lines[ask.evidence[0]] and went[-1].endswith(f"the {answer}.")
                seen += 1
    assert seen > 50


def test_needle_questions_of_the_evaluator_are_among_the_templates():
    by_name = {relation.name: relation for relation in facts.NUMBERED}
    assert "One of the special magic numbers for {k} is: {v}." in by_name["magic number"].tell
    assert "What is the special magic number for {k}?" in by_name["magic number"].ask
    assert "The code for {k} is {v}." in by_name["code"].tell and "What is the code for {k}?" in by_name["code"].ask
    assert "Set {k} to {v}." in by_name["variable"].tell and "What value is assigned to {k}?" in by_name["variable"].ask
    assert "{K} costs {v}." in by_name["cost"].tell and "How much is {k}?" in by_name["cost"].ask
    assert len(facts.PERSONAL) >= 20


def test_stories_have_as_many_places_as_people_need_to_move(small):
    coder = Coder(small.model)
    for seed in range(3000):
        lexicon = Lexicon(small.words, small.names, random.Random(seed))
        lexicon.pick = lambda kind: "hall" if lexicon.rng.random() < 0.9 else "attic"  # words meet again and again
        lexicon.word = lambda: lexicon.choice(["yard", "mill", "barn", "tower", "cave"])
        story = Story(lexicon, coder)
        story.write(8)
        assert len(set(story.places)) >= 3


def test_short_sequences_promise_the_same_and_ask_as_much_a_token(small, made):
    maker = Maker(small, 11, MakerOptions(length=512))
    batches_made = [maker.batch(16) for _ in range(12)]
    assert batches_made[0].ids.shape == (16, 512) and batches_made[0].rows.shape == (16, 1, T)
    assert batches_made[0].row_copies.shape == (16, 1, RA, 2) and batches_made[0].alone.shape == (16, 4, QL)
    asked = 0
    for one in each(batches_made):
        pairs = one["copies"][one["copies"][:, 0] >= 0]
        assert (one["ids"][pairs[:, 0] + 1] == one["ids"][pairs[:, 1]]).all()
        assert (pairs[:, 1] // S < pairs[:, 0] // S).all()
        questions = one["asked"][one["asked"][:, 0] >= 0]
        assert (one["ids"][questions[:, 0]] == small.recall).all()
        assert (questions[:, 2] < questions[:, 0] // S).all()
        asked += len(questions)
        known = one["alone_meta"][one["alone_meta"][:, 0] >= 0]
        assert (known[:, 2] < known[:, 3]).all() and (known[:, 3] <= 512 // S).all()
        if one["row_recall"][0, 0] >= 0:
            assert (one["rows"][0, :TAIL] == one["ids"][512 - TAIL:]).all() and one["row_recall"][0, 2] < 512 // S
    long_asked = sum(int((batch.asked[..., 0] >= 0).sum()) for batch in made)
    share = asked / (192 * 512) / (long_asked / (48 * L))
    assert 0.6 < share < 1.6
    with pytest.raises(ValueError, match="multiple of 64"):
        MakerOptions(length=500)
