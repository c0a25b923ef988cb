"""Small files of our own in the public formats."""
import convert
import dataset
import pytest
from dataset import Evidence


def squad_file(json_file, titles=("Bees",)):
    context = "Bees dance. They dance to show where food is."
    articles = []
    for title in titles:
        qas = [
            {"id": f"{title}-1", "question": " Why do bees dance? ", "is_impossible": False,
             "answers": [{"text": "to show where food is", "answer_start": 23}, {"text": "food", "answer_start": 37}]},
            {"id": f"{title}-2", "question": "Why do wasps dance?", "is_impossible": True, "answers": []}]
        articles.append({"title": title, "paragraphs": [{"context": f"{context} {title}.", "qas": qas}]})
    return json_file("squad.json", {"version": "2.0", "data": articles})


def test_squad_points_at_the_first_answer_and_leaves_out_what_has_none(json_file):
    data = convert.squad(squad_file(json_file), None)
    question, = data.questions
    turn, = data.memories["squad"]
    assert question.text == "Why do bees dance?" and question.id == "Bees-1"
    evidence, = question.evidence
    assert turn["content"][evidence.begin:evidence.end] == question.answer == "to show where food is"


def test_an_answer_that_does_not_stand_there_is_named(json_file):
    path = json_file("squad.json", {"data": [{"title": "T", "paragraphs": [{"context": "abc", "qas": [
        {"id": "x", "question": "q", "answers": [{"text": "c", "answer_start": 0}]}]}]}]})
    with pytest.raises(SystemExit, match="question x: its answer does not stand at character 0"):
        convert.squad(path, None)


def test_squad_holds_out_every_fourth_title(json_file):
    path = squad_file(json_file, [f"T{i}" for i in range(9)])
    held, train, every = (convert.squad(path, split) for split in ("heldout", "train", None))
    assert [q.id for q in held.questions] == ["T0-1", "T4-1", "T8-1"]
    texts = lambda data: {turn["content"] for turn in data.memories["squad"]}
    assert texts(held).isdisjoint(texts(train)) and texts(held) | texts(train) == texts(every)


def locomo_sample(name="conv-1"):
    return {
        "sample_id": name,
        "conversation": {
            "speaker_a": "Mira", "speaker_b": "Jon",
            "session_2_date_time": "10:00 am on 12 June, 2023",
            "session_2": [{"speaker": "Jon", "dia_id": "D2:1", "text": "The kiln broke."}],
            "session_1_date_time": "1:05 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Mira", "dia_id": "D1:1", "text": "Look what I made!", "img_url": ["x"],
                 "blip_caption": "a blue bowl", "query": "bowl"},
                {"speaker": "Jon", "dia_id": "D1:2", "text": "Lovely."}],
            "session_3_date_time": "9:00 am on 1 July, 2023"},
        "qa": [
            {"question": "What did Mira make?", "answer": "a bowl", "evidence": ["D1:1"], "category": 4},
            {"question": "What broke after the bowl?", "answer": "kiln", "evidence": ["D1:01; D2:1"], "category": 1},
            {"question": "When?", "answer": 2023, "evidence": ["D9:9"], "category": 2},
            {"question": "What did Jon make?", "adversarial_answer": "a bowl", "evidence": ["D1:1"], "category": 5}],
        "event_summary": {}, "observation": {}, "session_summary": {}}


def test_locomo_orders_sessions_and_resolves_evidence(json_file, capsys):
    data = convert.locomo(json_file("locomo.json", [locomo_sample()]), None)
    turns = data.memories["conv-1"]
    assert [turn["content"] for turn in turns] == ["Look what I made! [picture: a blue bowl]", "Lovely.", "The kiln broke."]
    assert [turn["name"] for turn in turns] == ["Mira", "Jon", "Jon"]
    assert turns[1]["time"] == "2023-05-08T13:05:20Z" and turns[2]["time"] == "2023-06-12T10:00:00Z"
    assert [(q.category, q.evidence) for q in data.questions] == [
        ("single-hop", [Evidence(0)]), ("multi-hop", [Evidence(0), Evidence(2)]), ("adversarial", [Evidence(0)])]
    assert "1 questions without evidence" in capsys.readouterr().err


def test_locomo_splits_by_conversation(json_file):
    path = json_file("locomo.json", [locomo_sample(f"conv-{i}") for i in range(5)])
    held, train = (set(convert.locomo(path, split).memories) for split in ("heldout", "train"))
    assert held == {"conv-0", "conv-2", "conv-4"} and train == {"conv-1", "conv-3"}


def longmemeval_item(id_, answers, sessions=("s1", "s2")):
    said = {"s1": [{"role": "user", "content": "I bought a green tent.", "has_answer": True},
                   {"role": "assistant", "content": "Nice!", "has_answer": False}],
            "s2": [{"role": "user", "content": "Rain again."}, {"role": "assistant", "content": ""}]}
    return {"question_id": id_, "question_type": "single-session-user", "question": "Which colour is my tent?",
            "answer": "green", "question_date": "2023/06/01 (Thu) 10:00", "haystack_session_ids": list(sessions),
            "haystack_dates": ["2023/05/21 (Sun) 09:30", "2023/05/20 (Sat) 02:21"],
            "haystack_sessions": [said[one] for one in ("s1", "s2")], "answer_session_ids": answers}


def test_longmemeval_orders_by_date_and_marks_what_has_the_answer(json_file):
    path = json_file("long.json", [longmemeval_item("q1", ["a"]), longmemeval_item("q2_abs", ["b"])])
    data = convert.longmemeval(path, None)
    turns = data.memories["q1"]
    assert [turn["content"] for turn in turns] == ["Rain again.", "I bought a green tent.", "Nice!"]
    assert turns[0]["time"] == "2023-05-20T02:21:00Z" and turns[2]["role"] == "assistant"
    assert [question.evidence for question in data.questions] == [[Evidence(1)], []]


def test_longmemeval_leaves_out_what_nobody_marked_and_reads_lists_as_text(json_file, capsys):
    unmarked, item = longmemeval_item("q1", ["a"]), longmemeval_item("q2", "['b']")
    unmarked["haystack_sessions"] = [[{"role": "user", "content": "I bought a green tent."}], []]
    item["haystack_dates"] = str(item["haystack_dates"])
    data = convert.longmemeval(json_file("long.json", [unmarked, item]), None)
    assert list(data.memories) == ["q2"] and [question.id for question in data.questions] == ["q2"]
    assert data.memories["q2"][0]["time"] == "2023-05-20T02:21:00Z"
    assert "1 questions without a turn that has the answer" in capsys.readouterr().err


def test_longmemeval_keeps_questions_about_one_session_together(json_file):
    answers = [["a"], ["b"], ["a", "c"], ["d"], ["c"], ["e"]]
    path = json_file("long.json", [longmemeval_item(f"q{i}", of) for i, of in enumerate(answers)])
    held, train = (convert.longmemeval(path, split) for split in ("heldout", "train"))
    names = lambda data: {question.id for question in data.questions}
    assert names(held) == {"q0", "q2", "q4", "q3"} and names(train) == {"q1", "q5"}


def test_qmsum_takes_marked_turns(json_file):
    meeting = {"topic_list": [], "general_query_list": [{"query": "Summarize.", "answer": "All."}],
               "specific_query_list": [
                   {"query": "What of the lid?", "answer": "It is red.", "relevant_text_span": [["0", "0"], ["2", "3"]]},
                   {"query": "And the price?", "answer": "?", "relevant_text_span": []}],
               "meeting_transcripts": [{"speaker": "Ann", "content": "The lid."}, {"speaker": "Bo", "content": " "},
                                       {"speaker": "Bo", "content": "Red."}, {"speaker": "Ann", "content": "Good."}]}
    data = convert.qmsum(json_file("qmsum.jsonl", [meeting]), None)
    question, = data.questions
    assert [data.memories["meeting-0"][one.turn]["content"] for one in question.evidence] == ["The lid.", "Red.", "Good."]
    with pytest.raises(SystemExit, match="comes in parts"):
        convert.qmsum(json_file("qmsum.jsonl", [meeting]), "train")


@pytest.mark.parametrize("format_, value, message", [
    ("squad", {"rows": []}, "there is no data"), ("locomo", {}, "expected an array"), ("longmemeval", [{}], "answer_session_ids"),
])
def test_a_file_of_another_format_is_named(json_file, format_, value, message):
    path = json_file("other.json", value)
    with pytest.raises(SystemExit, match=message):
        convert.FORMATS[format_](path, None)


def test_the_command_writes_a_set_that_can_be_read(json_file, tmp_path, monkeypatch, capsys):
    path = json_file("locomo.json", [locomo_sample()])
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr("sys.argv", ["convert.py", "locomo", str(path), str(out), "--name", "chats"])
    convert.main()
    assert dataset.read(out).name == "chats"
    assert "1 memories, 3 turns, 3 questions" in capsys.readouterr().out
