#!/usr/bin/env python3
"""Brings public data sets, and the text in data/, to the shape that search.py asks (docs/search-quality.md).

Usage: convert.py squad FILE OUT                SQuAD's JSON (1.1 or 2.0): each paragraph a turn, all in one memory
       convert.py locomo FILE OUT               LoCoMo's JSON: each conversation a memory
       convert.py longmemeval FILE OUT          LongMemEval's JSON: each question with its haystack a memory
       convert.py qmsum FILE OUT                QMSum's JSON lines: each meeting a memory, its specific queries
       convert.py data DIR OUT_DIR [--sets squad,pubmed,...] [--seed 1]
                                                what is made of dialogues.jsonl.zst and qa.jsonl.zst: OUT_DIR/NAME.jsonl

--split heldout or train takes one part, so that what is tuned on the one can be evaluated on the other: they share no
passage, conversation, session with an answer, or wording of a made fact. QMSum's files are parts already. Without --split
all of FILE is taken; `data` takes heldout. Standard library; `data` needs numpy, sentencepiece and snowballstemmer.
"""
import argparse
import ast
import json
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path

import dataset
from dataset import DataSet, Evidence, Question

HELD_EVERY = {"squad": 4, "locomo": 2, "longmemeval": 2}    # of titles, conversations, groups of questions
LOCOMO_CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}


def held_out(values, every: int) -> set:
    """Every so manyth of the distinct values, sorted, from the first on."""
    return set(sorted(set(values))[::every])


def in_split(value, held: set, split: str | None) -> bool:
    return split is None or (value in held) == (split == "heldout")


def groups(keys: list[list]) -> list[int]:
    """For each list of keys the number of its group: lists that share a key, directly or through others, are of one."""
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict = {}
    for i, own in enumerate(keys):
        for key in own:
            a, b = sorted((root(i), root(first.setdefault(key, i))))
            parent[b] = a
    return [root(i) for i in range(len(keys))]


def load_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"read {path}: {getattr(error, 'strerror', None) or error}")


def need(record, member: str, where: str):
    if not isinstance(record, dict) or member not in record:
        sys.exit(f"{where}: there is no {member}; is this file of the format that was named?")
    return record[member]


# ---- Public formats

def squad(path: Path, split: str | None) -> DataSet:
    data = DataSet("squad", "SQuAD: paragraphs, one after another; evidence is the answer's place", split or "")
    articles = need(load_json(path), "data", str(path))
    held = held_out((need(article, "title", f"{path}: data") for article in articles), HELD_EVERY["squad"])
    for article in articles:
        if not in_split(article["title"], held, split):
            continue
        for paragraph in need(article, "paragraphs", article["title"]):
            context = need(paragraph, "context", article["title"])
            turn = data.add_turn("squad", {"content": context})
            for qa in need(paragraph, "qas", article["title"]):
                places = {(a["answer_start"], a["answer_start"] + len(a["text"])) for a in qa["answers"] if a["text"]}
                if qa.get("is_impossible") or not places:
                    continue
                # Annotators differ: the first one's place counts.
                begin = qa["answers"][0]["answer_start"]
                end = begin + len(qa["answers"][0]["text"])
                if not (begin, end) in places or context[begin:end] != qa["answers"][0]["text"]:
                    sys.exit(f"{path}: question {qa.get('id')}: its answer does not stand at character {begin}")
                data.questions.append(Question("squad", qa["question"].strip(), [Evidence(turn, begin, end)], "",
                                               str(qa.get("id", "")), qa["answers"][0]["text"]))
    return data


def locomo(path: Path, split: str | None) -> DataSet:
    data = DataSet("locomo", "LoCoMo: conversations of two people over months", split or "")
    samples = load_json(path)
    if not isinstance(samples, list):
        sys.exit(f"{path}: expected an array of conversations")
    name_of = lambda i: str(need(samples[i], "sample_id", f"{path}: [{i}]"))
    held = held_out((name_of(i) for i in range(len(samples))), HELD_EVERY["locomo"])
    lost = 0
    for i, sample in enumerate(samples):
        memory = re.sub(r"[^A-Za-z0-9._-]", "-", name_of(i))
        if not in_split(name_of(i), held, split):
            continue
        conversation = need(sample, "conversation", memory)
        sessions = sorted(int(m[1]) for key in conversation if (m := re.fullmatch(r"session_(\d+)", key)))
        turn_of = {}
        for session in sessions:
            begun = datetime.strptime(need(conversation, f"session_{session}_date_time", memory).strip(),
                                      "%I:%M %p on %d %B, %Y")
            for j, said in enumerate(conversation[f"session_{session}"]):
                caption = f" [picture: {said['blip_caption']}]" if said.get("blip_caption") else ""
                content = (need(said, "text", memory) + caption).strip()
                if not content:
                    continue
                time = (begun + timedelta(seconds=20 * j)).isoformat() + "Z"
                turn_of[said["dia_id"]] = data.add_turn(memory, {"role": "user", "name": said["speaker"], "content": content,
                                                                 "time": time})
        for qa in need(sample, "qa", memory):
            # Some name several turns in one string, or write D30:05.
            named = [f"D{int(a)}:{int(b)}" for text in qa.get("evidence", []) for a, b in re.findall(r"D:?(\d+):(\d+)", text)]
            turns = sorted({turn_of[one] for one in named if one in turn_of})
            if not turns:
                lost += 1
                continue
            category = LOCOMO_CATEGORIES.get(qa.get("category"), str(qa.get("category", "")))
            data.questions.append(Question(memory, need(qa, "question", memory), [Evidence(turn) for turn in turns], category,
                                           "", str(qa.get("answer", qa.get("adversarial_answer", "")))))
    if lost:
        print(f"{path}: {lost} questions without evidence that is there are left out", file=sys.stderr)
    return data


def longmemeval(path: Path, split: str | None) -> DataSet:
    data = DataSet("longmemeval", "LongMemEval: a question and the sessions that it is asked of", split or "")
    items = load_json(path)
    if not isinstance(items, list):
        sys.exit(f"{path}: expected an array of questions")
    # Questions about the same sessions stay together.
    group = groups([listed(need(item, "answer_session_ids", f"{path}: [{i}]")) for i, item in enumerate(items)])
    held = held_out(group, HELD_EVERY["longmemeval"])
    lost = 0
    for item, of in zip(items, group):
        if not in_split(of, held, split):
            continue
        id_ = str(need(item, "question_id", str(path)))
        memory, evidence = re.sub(r"[^A-Za-z0-9._-]", "-", id_), []
        sessions = list(zip(need(item, "haystack_sessions", id_), listed(need(item, "haystack_dates", id_))))
        sessions.sort(key=lambda one: longmemeval_time(one[1]))
        for session, date in sessions:
            for j, said in enumerate(session):
                if not said["content"].strip():
                    continue
                time = (longmemeval_time(date) + timedelta(seconds=20 * j)).isoformat() + "Z"
                turn = data.add_turn(memory, {"role": said["role"], "content": said["content"], "time": time})
                if said.get("has_answer"):
                    evidence.append(Evidence(turn))
        # Questions whose id ends so ask for what was never said.
        if id_.endswith("_abs"):
            evidence = []
        elif not evidence:
            lost += 1
            del data.memories[memory]
            continue
        data.questions.append(Question(memory, need(item, "question", id_), evidence, item.get("question_type", ""), id_,
                                       str(item.get("answer", ""))))
    if lost:
        print(f"{path}: {lost} questions without a turn that has the answer are left out", file=sys.stderr)
    return data


def listed(value) -> list:
    """Some copies have lists as text."""
    return list(ast.literal_eval(value) if isinstance(value, str) else value)


def longmemeval_time(text: str) -> datetime:
    """Such as 2023/05/20 (Sat) 02:21."""
    return datetime.strptime(re.sub(r"\s*\(\w+\)\s*", " ", text.strip()), "%Y/%m/%d %H:%M")


def qmsum(path: Path, split: str | None) -> DataSet:
    if split:
        sys.exit(f"{path}: QMSum comes in parts; take train.jsonl to tune and test.jsonl to evaluate, without --split")
    data = DataSet("qmsum-annotated", "QMSum: meetings; evidence is what annotators marked")
    with path.open(encoding="utf-8") as lines:
        meetings = [json.loads(line) for line in lines if line.strip()]
    for i, meeting in enumerate(meetings):
        memory, turn_of = f"meeting-{i}", {}
        for number, said in enumerate(need(meeting, "meeting_transcripts", memory)):
            if said["content"].strip():
                turn_of[number] = data.add_turn(memory, {"content": said["content"].strip(), "name": said["speaker"].strip()})
        for query in need(meeting, "specific_query_list", memory):
            turns = sorted({turn_of[n] for first, last in query["relevant_text_span"]
                            for n in range(int(first), int(last) + 1) if n in turn_of})
            if turns:
                data.questions.append(Question(memory, query["query"].strip(), [Evidence(turn) for turn in turns], "", "",
                                               query["answer"]))
    return data


FORMATS = {"squad": squad, "locomo": locomo, "longmemeval": longmemeval, "qmsum": qmsum}


# ---- The command

def told(data: DataSet, path: Path) -> None:
    turns = sum(map(len, data.memories.values()))
    print(f"{path}: {len(data.memories)} memories, {turns} turns, {len(data.questions)} questions"
          + (f", {data.split}" if data.split else ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="format", required=True)
    for name in FORMATS:
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        command.add_argument("out", type=Path)
        command.add_argument("--name", help="of the set")
        command.add_argument("--split", choices=("heldout", "train"))
    command = commands.add_parser("data")
    command.add_argument("directory", type=Path, help="with dialogues.jsonl.zst and qa.jsonl.zst")
    command.add_argument("out", type=Path, help="directory")
    command.add_argument("--sets", default="squad,pubmed,qmsum,molweni,dialogue-facts,no-overlap")
    command.add_argument("--split", choices=("heldout", "train"), default="heldout")
    command.add_argument("--seed", type=int, default=1, help="of what is made up")
    args = parser.parse_args()
    if args.format == "data":
        import corpora  # needs more than the standard library
        made = corpora.make(args.directory, args.sets.split(","), args.split, args.seed)
        args.out.mkdir(parents=True, exist_ok=True)
        for data in made:
            dataset.write(data, args.out / f"{data.name}.jsonl")
            told(data, args.out / f"{data.name}.jsonl")
        return
    data = FORMATS[args.format](args.file, args.split)
    data.name = args.name or data.name
    if not data.questions:
        sys.exit(f"{args.file}: no questions with evidence")
    dataset.write(data, args.out)
    told(data, args.out)


if __name__ == "__main__":
    main()
