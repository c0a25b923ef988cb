"""The sets made of a small corpus of our own, in the shapes of the training text."""
import json
import random
import re
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
import corpora  # noqa: E402
import dialogue_facts  # noqa: E402
import prepare  # noqa: E402
from corpora import Corpora  # noqa: E402
from dataset import Evidence, Question  # noqa: E402

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "il")]


def compress(path: Path, records: list[dict]) -> None:
    raw = "\n".join(json.dumps(record) for record in records).encode()
    try:
        import zstandard
        path.write_bytes(zstandard.compress(raw))
    except ImportError:
        subprocess.run(["zstd", "-q", "-o", str(path)], input=raw, check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = random.Random(4)
    words = sorted({"".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))) for _ in range(500)})
    names = [word.capitalize() + "x" for word in words[::20] if 3 < len(word) < 10]

    def sentence() -> str:
        chosen = rng.choices(words, k=rng.randint(5, 12))
        chosen[0] = chosen[0].capitalize()
        chosen[2] = rng.choice(names)
        return " ".join(chosen) + "."

    def passage(source: str, title: str, number: int) -> dict:
        context = " ".join(sentence() for _ in range(8))
        qas = []
        for j in range(4):
            answer = " ".join(context.split()[4 + 9 * j:6 + 9 * j])
            qas.append({"q": f"What is told in part {j} of passage {number}?", "a": answer, "start": context.find(answer)})
        qas.append({"q": f"What is not told in passage {number}?", "a": "", "start": -1})
        return {"source": source, "title": title, "context": context, "qas": qas}

    records = [passage("squad_dev", f"Title {i % 8}", i) for i in range(32)]
    for i in range(10):
        records.append({"source": "pubmedqa", "title": str(9100 + i), "context": " ".join(sentence() for _ in range(6)),
                        "qas": [{"q": f"Does treatment {i} help?", "a": "It does.", "start": -1}]})
    for i in range(4):
        lines = [f"{rng.choice(('Ann', 'Bo'))}: {sentence()} {sentence()}" for _ in range(40)]
        told = lines[20].split(": ")[1]
        records.append({"source": "qmsum", "title": "data/ALL/jsonl/test.jsonl" if i % 2 else "data/x/train.jsonl",
                        "context": "\n".join(lines),
                        "qas": [{"q": f"What was said of matter {i}?", "a": told, "start": -1},
                                {"q": "Summarize the whole meeting.", "a": sentence(), "start": -1}]})
    for i in range(8):
        turns = [f"nick_{i}: {sentence().lower()[:-1]}", f"helper{i}: try version 9.{i} : it works", f"nick_{i}: thanks a lot"]
        if i == 5:      # goes on where another left off
            turns[0] = records[-1]["context"].split(" helper")[0]
        context = " ".join(turns)
        records.append({"source": "molweni_test", "title": "ubuntu", "context": context, "qas": [
            {"q": "Which version to try ?", "a": f"9.{i}", "start": context.find(f"9.{i}")},
            {"q": "Who helps ?", "a": f"helper{i}", "start": context.find(f"helper{i}")},
            {"q": "Why ?", "a": "", "start": -1}]})
    dialogues = [{"source": "own", "turns": [[rng.choice("AB"), sentence()] for _ in range(8)]} for _ in range(400)]
    dialogues[21] = dialogues[20]    # one that is held out and not
    path = tmp_path_factory.mktemp("data")
    compress(path / "qa.jsonl.zst", records)
    compress(path / "dialogues.jsonl.zst", dialogues)
    return path


@pytest.fixture(scope="module")
def parts(folder):
    return Corpora(folder, "heldout", 1), Corpora(folder, "train", 1)


def texts_of_evidence(data) -> list[str]:
    return [data.memories[q.memory][e.turn]["content"][e.begin:e.end] for q in data.questions for e in q.evidence]


def test_the_held_out_questions_are_those_of_the_training_code(parts):
    """prepare.passages and the draws of evaluate.natural_questions, over words instead of tokens."""
    records = prepare.json_lines(parts[0].directory / "qa.jsonl.zst")
    _, held = prepare.split_squad(records)
    vocabulary: dict[str, int] = {}
    words = lambda text: [vocabulary.setdefault(word, len(vocabulary)) for word in text.split()]
    arrays = prepare.passages("dv", held, words)
    rng = random.Random(1)
    chosen = list(range(len(arrays["dv_title"])))
    rng.shuffle(chosen)
    chosen = set(chosen[:600])
    questions = [i for i, context in enumerate(arrays["dv_qc"]) if int(context) in chosen]
    rng.shuffle(questions)
    offsets, names = arrays["dv_q_off"], list(vocabulary)
    said = [" ".join(names[w] for w in arrays["dv_q"][offsets[i]:offsets[i + 1]]) for i in questions]
    assert [question.text for question in parts[0].squad.questions] == said[:800] and len(said) == 32


def test_an_answer_stands_where_evidence_says(parts):
    for data in (parts[0].squad, parts[1].squad):
        assert texts_of_evidence(data) == [question.answer for question in data.questions] != []


def test_the_parts_share_no_passage_meeting_chat_or_dialogue(parts):
    for name in ("squad", "pubmed", "qmsum", "molweni"):
        held, train = (getattr(one, name) for one in parts)
        long = lambda data: {turn["content"] for turns in data.memories.values() for turn in turns
                             if len(turn["content"].split()) > 4}
        assert held.questions and train.questions and long(held).isdisjoint(long(train)), name
    held, train = (corpus.dialogues for corpus in parts)
    assert {turns[0]["content"] for turns in held}.isdisjoint(turns[0]["content"] for turns in train)


def test_evidence_of_a_question_about_an_abstract_is_the_abstract(parts):
    data = parts[0].pubmed
    numbers = [int(question.text.split()[2]) for question in data.questions]
    assert numbers == [0, 2, 4, 6, 8] and [q.evidence for q in data.questions] == [[Evidence(i)] for i in range(5)]


def test_evidence_of_a_meeting_is_the_passage_like_the_answer(parts):
    data = parts[0].qmsum
    assert [question.text for question in data.questions] == ["What was said of matter 1?", "What was said of matter 3?"]
    for question in data.questions:
        shown = " ".join(data.memories[question.memory][e.turn]["content"][e.begin:e.end] for e in question.evidence)
        assert question.answer in shown and len(shown.split()) <= corpora.EVIDENCE_WORDS


def test_a_chat_becomes_turns_and_evidence_a_place_in_one(parts):
    asked = 0
    for part in parts:
        data = part.molweni
        for question in data.questions:
            evidence, = question.evidence
            turn = data.memories["molweni"][evidence.turn]
            if question.text == "Who helps ?":
                assert turn["name"] == question.answer and evidence.begin is None
            else:
                assert turn["content"][evidence.begin:evidence.end] == question.answer
            asked += 1
    assert asked == 14      # eight chats of two questions, but the one that repeats another


def test_chat_turns_begin_with_a_speaker():
    parts = corpora.chat_turns("ann_: is it 9.04 ? bo[x]: yes : it is ann_: thanks")
    assert parts == [(0, "ann_: ", "is it 9.04 ?"), (19, "bo[x]: ", "yes : it is"), (38, "ann_: ", "thanks")]


def test_sentence_windows_are_as_long_as_they_may_be():
    turns = [{"content": "One two three. Four five."}, {"content": "Six"}, {"content": "Seven eight nine ten eleven twelve."}]
    assert corpora.sentence_windows(turns, 5) == [
        [Evidence(0, 0, 25)], [Evidence(0, 15, 25), Evidence(1, 0, 3)], [Evidence(1, 0, 3)], [Evidence(2, 0, 35)]]


def test_overlap_is_of_stemmed_content_words_near_the_evidence():
    turns = [{"content": "The boats were painted. " + "x " * 300}, {"content": "It cost nine pounds.", "name": "Runa"}]
    asked = lambda text, turn, begin=None, end=None: corpora.overlap(Question("m", text, [Evidence(turn, begin, end)]), turns)
    assert asked("What did the boat cost?", 1) == {"cost"}
    assert asked("What did Runa's boat say?", 1) == {"runa"}
    assert asked("Which boat is painted?", 1) == set()
    assert asked("Which boat is painted?", 0) == {"boat", "paint"}
    assert asked("Which boat is painted?", 0, 600, 602) == set()     # too far from it
    assert asked("What was it and who did that?", 0) == set()


def test_no_question_of_no_overlap_has_one(parts):
    for part in parts:
        data = part.no_overlap
        assert {question.category for question in data.questions} >= {"made"}
        for question in data.questions:
            assert not corpora.overlap(question, data.memories[question.memory])
            assert len(corpora.content_stems(question.text)) >= 2


def test_a_dialogue_fact_is_told_by_who_is_asked_about(parts):
    for part in parts:
        data = part.dialogue_facts
        turns = data.memories["chats"]
        for question in data.questions:
            for evidence in question.evidence:
                told = turns[evidence.turn]
                assert told["name"] in re.findall(r"\w+", question.text)
                value = next(v for v in question.answer.split(" and ") if v.lower() in told["content"].lower()) \
                    if len(question.evidence) > 1 else question.answer
                assert value.lower() in told["content"].lower()
        assert {(len(q.evidence), q.category) for q in data.questions} == {
            (1, "plain"), (1, "in passing"), (2, "two facts")}
        # A person tells a thing once, so that there is one answer.
        told_of = [(q.text, q.id) for q in data.questions if len(q.evidence) == 1]
        assert len(told_of) == len(set(told_of)) == dialogue_facts.PEOPLE * dialogue_facts.FACTS_OF_EACH


def test_the_parts_share_no_person_and_no_wording(parts):
    held, train = (part.dialogue_facts for part in parts)
    tellers = lambda data: {data.memories["chats"][e.turn]["name"] for q in data.questions for e in q.evidence}
    assert tellers(held).isdisjoint(tellers(train))
    for one in dialogue_facts.KINDS:
        for wordings in (one.tell, one.plain, one.ask, one.about):
            assert set(wordings[:2]).isdisjoint(wordings[2:]), one.name
            assert all("{v}" in wording and wording.count(" | ") == 2 for wording in (*one.tell, *one.plain))
            assert all("{k}" in wording for wording in one.ask)


def test_each_part_tells_and_asks_in_its_own_wordings(parts):
    def fits(text: str, wordings) -> bool:
        return any(re.fullmatch(re.escape(one).replace(r"\{v\}", ".+").replace(r"\{k\}", ".+"), text, re.IGNORECASE)
                   for one in wordings)

    by_name = {one.name: one for one in dialogue_facts.KINDS}
    for part, own in zip(parts, (slice(2, 4), slice(0, 2))):
        for question in part.dialogue_facts.questions:
            kind = by_name[question.id]
            for evidence in question.evidence:
                told = part.dialogue_facts.memories["chats"][evidence.turn]["content"]
                ways = {"plain": kind.plain[own], "in passing": kind.tell[own]}.get(
                    question.category, (*kind.plain[own], *kind.tell[own]))
                assert fits(told, [one.split(" | ")[1] for one in ways])
            if len(question.evidence) == 1:
                assert fits(question.text, kind.ask[own])
        made = [question for question in part.no_overlap.questions if question.category == "made"]
        assert made and all(fits(question.text, by_name[question.id].about[own]) for question in made)


def test_the_same_seed_makes_the_same_sets(folder, parts):
    again = Corpora(folder, "heldout", 1)
    assert again.dialogue_facts == parts[0].dialogue_facts and again.no_overlap == parts[0].no_overlap
    assert Corpora(folder, "heldout", 2).dialogue_facts != parts[0].dialogue_facts


def test_a_set_that_is_not_there_and_a_missing_file_are_named(folder, tmp_path):
    with pytest.raises(SystemExit, match="there is no weather; there are dialogue-facts, molweni"):
        corpora.make(folder, ["weather", "squad"], "heldout", 1)
    with pytest.raises(SystemExit, match="qa.jsonl.zst: there is no such file"):
        corpora.make(tmp_path, ["squad"], "heldout", 1)
