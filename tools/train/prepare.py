#!/usr/bin/env python3
"""Turns the training text into token ids, once: OUT/data.npz and OUT/spm.model, all that a training machine needs.

Usage: prepare.py DATA_DIR TOKENIZER OUT

DATA_DIR holds dialogues.jsonl.zst, qa.jsonl.zst, novels.tar.zst and babi-en.tar.zst. Ragged arrays come as NAME (uint16
ids) and NAME_off (int64 offsets). In data.npz:

  prose, held_prose      novels, the last eight by name held out
  dial, held_dial        dialogues, one turn a line as the daemon writes it, every twentieth held out
  tr_*, dv_*             passages with questions; dv_ is the held-out fourth of SQuAD's titles
    ctx, title [contexts]; q, a; qc: context of a question; qid: equal for equal questions; pos: token where the answer
    starts; at: token from which the answer's own tokens stand there, -1 when they do not
  babi_*                 bAbI's training files: line; q, a; begin, end: the lines told before the question; support: the
                         line that answers; at: as above, in that line; task
  words, names           lower-case words and names of the corpus, neither rare nor common, as UTF-8 lines
"""
import argparse
import io
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Iterable

import numpy as np
import sentencepiece

NOVELS_HELD = 8
DIALOGUES_HELD_EVERY = 20
SQUAD_TITLES_HELD_EVERY = 4
FIRST_NAMES = ("Ada Bruno Cleo Dora Emil Frida Gina Hans Ines Jakob Karla Ludo Mara Nico Olive Paul Ruth Sven Tilda "
               "Viktor").split()
SPEAKERS = {"user": "User", "system": "Assistant", "assistant": "Assistant", "wizard": "Assistant", "doctor": "Doctor",
            "patient": "Patient", "guest_family": "Guest", "guest_clinician": "Nurse"}


def decompress(path: Path) -> bytes:
    try:
        import zstandard
    except ImportError:
        return subprocess.run(["zstd", "-dc", str(path)], check=True, capture_output=True).stdout
    with path.open("rb") as file:
        return zstandard.ZstdDecompressor().stream_reader(file).read()


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in decompress(path).decode().split("\n") if line]


def tar_texts(path: Path, wanted: str) -> dict[str, str]:
    """The texts of the files whose name matches, sorted by name."""
    with tarfile.open(fileobj=io.BytesIO(decompress(path))) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and re.search(wanted, m.name)]
        members.sort(key=lambda member: member.name)
        return {m.name: tar.extractfile(m).read().decode("utf8", "replace") for m in members}


def ragged(name: str, rows: Iterable[list[int]]) -> dict[str, np.ndarray]:
    rows = list(rows)
    offsets = np.zeros(len(rows) + 1, np.int64)
    offsets[1:] = np.cumsum([len(row) for row in rows])
    flat = np.fromiter((token for row in rows for token in row), np.uint16, count=int(offsets[-1]))
    return {name: flat, name + "_off": offsets}


def find(part: list[int], whole: list[int], near: int) -> int:
    """Where `part` stands in `whole`, nearest to `near`; -1 when it does not."""
    places = [i for i in range(len(whole) - len(part) + 1) if whole[i:i + len(part)] == part]
    return min(places, key=lambda i: abs(i - near), default=-1)


def passages(prefix: str, records: list[dict], encode) -> dict[str, np.ndarray]:
    titles: dict[str, int] = {}
    same: dict[str, int] = {}
    contexts, title, questions, answers = [], [], [], []
    numbers: dict[str, list[int]] = {"qc": [], "qid": [], "pos": [], "at": []}
    for record in records:
        text = record["context"]
        ids = encode(text)
        for qa in record["qas"]:
            if qa["start"] is None or qa["start"] < 0 or not qa["a"]:
                continue
            answer = encode(qa["a"])
            position = min(len(encode(text[:qa["start"]])), len(ids) - 1)
            low = max(0, position - 8)
            found = find(answer, ids[low:position + 8 + len(answer)], position - low)
            questions.append(encode(qa["q"]))
            answers.append(answer)
            numbers["qc"].append(len(contexts))
            numbers["qid"].append(same.setdefault(" ".join(qa["q"].lower().split()), len(same)))
            numbers["pos"].append(position)
            numbers["at"].append(low + found if found >= 0 else -1)
        contexts.append(ids)
        title.append(titles.setdefault(f"{record['source']}/{record['title']}", len(titles)))
    print(f"{prefix}: {len(contexts)} contexts, {len(questions)} questions, "
          f"{np.mean(np.array(numbers['at']) >= 0):.3f} of their answers stand there token by token")
    return {f"{prefix}_title": np.array(title, np.int64),
            **{f"{prefix}_{name}": np.array(values, np.int64) for name, values in numbers.items()},
            **ragged(f"{prefix}_ctx", contexts), **ragged(f"{prefix}_q", questions), **ragged(f"{prefix}_a", answers)}


def split_squad(records: list[dict]) -> tuple[list[dict], list[dict]]:
    titles = sorted({r["title"] for r in records if r["source"] == "squad_dev"})
    held = set(titles[::SQUAD_TITLES_HELD_EVERY])
    is_held = [r["source"] == "squad_dev" and r["title"] in held for r in records]
    return ([r for r, out in zip(records, is_held) if not out], [r for r, out in zip(records, is_held) if out])


def reflow(text: str) -> str:
    """One paragraph a line; a text without blank lines stays as it is."""
    blocks = re.split(r"\n\s*\n", text)
    if len(text) > 5000 * len(blocks):
        return text
    return "\n".join(line for block in blocks if (line := " ".join(block.split())))


def dialogue_lines(dialogue: dict, rng: random.Random) -> list[str]:
    """`Name: text` a turn. Speakers that are mere letters or numbers get names, or are the user and the assistant."""
    speakers = list(dict.fromkeys(speaker for speaker, _ in dialogue["turns"]))
    unnamed = [s for s in speakers if re.fullmatch(r"[A-Z0-9]|agent_\d|User \d", s)]
    new = ["User", "Assistant"] if len(unnamed) == 2 and rng.random() < 0.4 else rng.sample(FIRST_NAMES, len(unnamed))
    names = {s: SPEAKERS.get(s, s) for s in speakers} | dict(zip(unnamed, new))
    return [f"{names[speaker]}: {' '.join(text.split())}" for speaker, text in dialogue["turns"] if text.strip()]


def babi(files: dict[str, str], encode) -> dict[str, np.ndarray]:
    lines, questions, answers = [], [], []
    numbers: dict[str, list[int]] = {name: [] for name in ("begin", "end", "support", "at", "task")}
    for name, text in files.items():
        task = int(re.search(r"qa(\d+)_", name).group(1))
        begin, line_of = 0, {}
        for row in filter(None, text.split("\n")):
            number, rest = row.split(" ", 1)
            if number == "1":
                begin, line_of = len(lines), {}
            rest = re.sub(r"\s*[|\t]\s*", "\t", rest.strip())  # task 1's file parts its fields with bars
            if "\t" not in rest:
                line_of[number] = len(lines)
                lines.append(encode(rest))
                continue
            question, answer, support = rest.split("\t")[:3]
            answer_ids = encode(answer)
            needed = [line_of[n] for n in support.split() if n in line_of]
            if not needed:
                continue
            holding = [line for line in needed if find(answer_ids, lines[line], 0) >= 0]
            line = (holding or needed)[-1]
            questions.append(encode(question))
            answers.append(answer_ids)
            for key, value in (("begin", begin), ("end", len(lines)), ("support", line), ("task", task),
                               ("at", find(answer_ids, lines[line], len(lines[line])))):
                numbers[key].append(value)
    print(f"babi: {len(lines)} lines, {len(questions)} questions")
    return {**{f"babi_{name}": np.array(values, np.int64) for name, values in numbers.items()},
            **ragged("babi_line", lines), **ragged("babi_q", questions), **ragged("babi_a", answers)}


def vocabulary(texts: list[str]) -> dict[str, np.ndarray]:
    """Words for keys and answers."""
    text = "\n".join(texts)
    words = Counter(re.findall(r"(?<![\w'])[a-z]{4,12}(?![\w'])", text))
    names = Counter(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{3,10}(?![\w'])", text))
    chosen = {"words": [w for w, n in words.items() if 3 <= n < 400],
              "names": [w for w, n in names.items() if 3 <= n < 400 and words[w.lower()] < n]}
    print(", ".join(f"{len(found)} {name}" for name, found in chosen.items()))
    return {name: np.frombuffer("\n".join(sorted(found)).encode(), np.uint8) for name, found in chosen.items()}


def prepare(data: Path, tokenizer: Path, out: Path) -> None:
    rng = random.Random(0)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    newline = model.piece_to_id("\n")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tokenizer, out / "spm.model")

    arrays: dict[str, np.ndarray] = {}
    train, held = split_squad(json_lines(data / "qa.jsonl.zst"))
    arrays |= passages("tr", train, model.encode) | passages("dv", held, model.encode)

    dialogues = [dialogue_lines(d, rng) for d in json_lines(data / "dialogues.jsonl.zst")]
    parts = {"dial": [d for i, d in enumerate(dialogues) if i % DIALOGUES_HELD_EVERY],
             "held_dial": dialogues[::DIALOGUES_HELD_EVERY]}
    for name, chosen in parts.items():
        arrays |= ragged(name, ([t for ids in model.encode(lines) for t in (*ids, newline)] for lines in chosen))

    novels = list(tar_texts(data / "novels.tar.zst", r"_\d{4}\.txt$").values())
    read, kept = novels[:-NOVELS_HELD], novels[-NOVELS_HELD:]
    rng.shuffle(read)
    # Every third novel keeps its line breaks: text comes in both shapes.
    read = [text if i % 3 == 2 else reflow(text) for i, text in enumerate(read)]
    arrays |= ragged("prose", model.encode(read)) | ragged("held_prose", model.encode([reflow(text) for text in kept]))
    arrays |= babi(tar_texts(data / "babi-en.tar.zst", r"_train\.txt$"), model.encode)
    arrays |= vocabulary(read[:40] + ["\n".join(lines) for lines in parts["dial"][::4]])

    np.savez_compressed(out / "data.npz", **arrays)
    for name in ("prose", "held_prose", "dial", "held_dial"):
        print(f"{name}: {len(arrays[name + '_off']) - 1} texts, {len(arrays[name]) / 1e6:.2f} M tokens")
    print(f"{out / 'data.npz'}: {(out / 'data.npz').stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    prepare(args.data, args.tokenizer, args.out)


if __name__ == "__main__":
    sys.exit(main())
