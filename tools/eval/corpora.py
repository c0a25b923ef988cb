"""Data sets made of the text that the models are trained and evaluated on (dialogues.jsonl.zst, qa.jsonl.zst).

Each comes as `heldout` or `train`; the two share no passage, meeting, dialogue, or wording of a made fact. Needs numpy,
sentencepiece (for tools/train/prepare.py) and snowballstemmer.
"""
import random
import re
import sys
from functools import cached_property
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT / "tools" / "train"))   # behind this folder, which has a tasks.py too

import dialogue_facts  # noqa: E402
import prepare  # noqa: E402
import rankers  # noqa: E402
from convert import groups, held_out  # noqa: E402
from dataset import DataSet, Evidence, Question  # noqa: E402

SQUAD_PASSAGES, SQUAD_QUESTIONS = 600, 800      # as in tools/train/evaluate.py
EVIDENCE_WORDS = 100            # of a passage of a meeting that evidence is taken to be
FILLER_WORDS_MAX = 1200         # of a dialogue among made or short ones
NEAR_CHARACTERS = 300           # around evidence: a chunk with it hardly reaches further (64 tokens of 4 to 5 characters)
CONTENT_WORDS_MIN = 2           # of a question without overlap: "what is it?" shares nothing with anything
STOP_WORDS = frozenset("""a about above after again all also am an and any are aren as at be because been before being
    below between both but by can cannot could couldn d did didn do does doesn doing don done down during each else ever
    every few for from further get got had hadn has hasn have haven having he her here hers herself him himself his how
    however i if in into is isn it its itself just like ll m many may me might more most much must my myself need neither
    no nor not now o of off often on once one only or other our ours ourselves out over own per quite rather re s same shall
    she should shouldn since so some something such t than that the their theirs them themselves then there these they
    thing things this those though through thus till to too under until up upon us use used user ve very was wasn we well
    were weren what when where whether which while who whom whose why will with within without won would wouldn yes yet you
    your yours yourself yourselves""".split())


def content_stems(text: str) -> set[str]:
    """The stems of its words that are no function words."""
    return {rankers.stem(word) for word in rankers.words(text) if word not in STOP_WORDS}


class Corpora:
    """The records of a directory, and the sets made of them."""

    def __init__(self, directory: Path, split: str, seed: int):
        self.directory, self.split, self.seed = directory, split, seed
        self.held = split == "heldout"

    def _lines(self, name: str) -> list[dict]:
        path = self.directory / name
        if not path.is_file():
            sys.exit(f"read {path}: there is no such file; name the directory that has it")
        return prepare.json_lines(path)

    @cached_property
    def passages(self) -> list[dict]:
        return self._lines("qa.jsonl.zst")

    @cached_property
    def dialogues(self) -> list[list[dict]]:
        """The turns of those of the split, every twentieth held out, meetings left out; mixed."""
        found, texts = [], set()
        rng = random.Random(0)
        for i, record in enumerate(self._lines("dialogues.jsonl.zst")):
            lines = prepare.dialogue_lines(record, rng)
            first = "\n".join(line.split(": ", 1)[-1] for line in lines[:3])
            is_held = i % prepare.DIALOGUES_HELD_EVERY == 0
            if is_held:
                texts.add(first)
            if is_held != self.held or record["source"] == "qmsum_meetings" or len(lines) < 4:
                continue
            found.append((first, lines))
        if not self.held:   # some dialogues are there twice
            found = [one for one in found if one[0] not in texts]
        random.Random(f"dialogues {self.seed}").shuffle(found)
        return [[turn_of(line) for line in lines] for _, lines in found]

    def filler(self, words: int, first: int = 0):
        """Dialogues from number `first` on, about so many words of them: (dialogues, the number after the last)."""
        chosen, size = [], 0
        while size < words and first < len(self.dialogues):
            turns = self.dialogues[first]
            first += 1
            own = sum(len(turn["content"].split()) for turn in turns)
            if own <= FILLER_WORDS_MAX:
                chosen.append(turns)
                size += own
        return chosen, first

    # ---- Passages

    @cached_property
    def all_of_squad(self) -> DataSet:
        """Passages and questions as tools/train/evaluate.py draws them, all questions."""
        data = DataSet("squad", "SQuAD: passages one after another; evidence is the answer's place", self.split)
        train, held = prepare.split_squad(self.passages)
        records = held if self.held else [record for record in train if record["source"] == "squad_dev"]
        rng = random.Random(1)
        chosen = list(range(len(records)))
        rng.shuffle(chosen)
        chosen = set(chosen[:SQUAD_PASSAGES])
        turn_of_context = {i: data.add_turn("squad", {"content": records[i]["context"]}) for i in sorted(chosen)}
        asked = [(i, qa) for i, record in enumerate(records) for qa in record["qas"]
                 if qa["start"] is not None and qa["start"] >= 0 and qa["a"]]
        asked = [(i, qa) for i, qa in asked if i in chosen]
        rng.shuffle(asked)
        for i, qa in asked:
            evidence = Evidence(turn_of_context[i], qa["start"], qa["start"] + len(qa["a"]))
            data.questions.append(Question("squad", qa["q"].strip(), [evidence], "", "", qa["a"]))
        return data

    @cached_property
    def squad(self) -> DataSet:
        """Held out: the very passages and questions of tools/train/evaluate.py. Train: as many of the other titles."""
        every = self.all_of_squad
        return DataSet(every.name, every.about, every.split, every.memories, every.questions[:SQUAD_QUESTIONS])

    @cached_property
    def pubmed(self) -> DataSet:
        """Abstracts in one memory, every second one held out. Their questions have no place in the text: any part counts."""
        data = DataSet("pubmed", "PubMedQA: abstracts, one after another; evidence is the abstract", self.split)
        records = [record for record in self.passages if record["source"] == "pubmedqa"]
        held = held_out((record["title"] for record in records), 2)
        for record in records:
            if (record["title"] in held) == self.held:
                turn = data.add_turn("pubmed", {"content": " ".join(record["context"].split())})
                for qa in record["qas"]:
                    data.questions.append(Question("pubmed", qa["q"].strip(), [Evidence(turn)], "", "", qa["a"]))
        return data

    # ---- Meetings

    @cached_property
    def qmsum(self) -> DataSet:
        """Meetings of QMSum's test part, or of the others. The file says nothing about where the answer lies: evidence is
        taken to be the sentences, about a hundred words, that share most with the written answer."""
        data = DataSet("qmsum", "QMSum: meetings; evidence is the passage most like the written answer", self.split)
        records = [record for record in self.passages if record["source"] == "qmsum"]
        for i, record in enumerate(records):
            if ("test" in record["title"]) != self.held:
                continue
            memory = f"meeting-{i}"
            for line in record["context"].split("\n"):
                if line.strip():
                    data.add_turn(memory, meeting_turn(line))
            asked = [qa for qa in record["qas"] if not about_whole_meeting(qa["q"])]
            if not asked:
                del data.memories[memory]
                continue
            windows = sentence_windows(data.memories[memory], EVIDENCE_WORDS)
            texts = [" ".join(data.memories[memory][one.turn]["content"][one.begin:one.end] for one in window)
                     for window in windows]
            scores = rankers.bm25(texts, [qa["a"] for qa in asked], rankers.stems)
            for qa, row in zip(asked, scores):
                data.questions.append(Question(memory, qa["q"].strip(), windows[int(row.argmax())], "", "", qa["a"]))
        return data

    # ---- Short chats

    @cached_property
    def molweni(self) -> DataSet:
        """Dialogues about Ubuntu among other dialogues, all in one memory."""
        data = DataSet("molweni", "Molweni: chats of several people about Ubuntu, among dialogues about other things",
                       self.split)
        records = [record for record in self.passages if record["source"] == "molweni_test"]
        parts = [chat_turns(record["context"]) for record in records]
        group = groups([[text for _, _, text in part if len(text.split()) > 3] for part in parts])
        held = set(sorted(set(group))[::2])
        seen: set[str] = set()
        chats = []
        for record, part, of in zip(records, parts, group):
            texts = {text for _, _, text in part if len(text.split()) > 3}
            # Chats overlap: what stands in two of them would be evidence twice.
            if (of in held) == self.held and seen.isdisjoint(texts):
                seen |= texts
                chats.append((record, part))
        filler, _ = self.filler(40_000)
        order: list = [*chats, *filler]
        random.Random(f"molweni {self.seed}").shuffle(order)
        for one in order:
            if isinstance(one, list):
                for turn in one:
                    data.add_turn("molweni", turn)
                continue
            record, part = one
            places = [(begin, begin + len(head) + len(text), len(head), data.add_turn("molweni", said(head, text)))
                      for begin, head, text in part]
            for qa in record["qas"]:
                if qa["start"] < 0 or not qa["a"].strip() or record["context"].count(qa["a"]) > 1:
                    continue
                end = qa["start"] + len(qa["a"])
                found = [(qa["start"] - begin - head, end - begin - head, turn) for begin, last, head, turn in places
                         if begin <= qa["start"] and end <= last]
                if not found:   # over the bounds of turns
                    continue
                first, last, turn = found[0]
                evidence = Evidence(turn, first, last) if first >= 0 else Evidence(turn)    # the speaker is the answer
                data.questions.append(Question("molweni", qa["q"].strip(), [evidence], "", "", qa["a"]))
        return data

    # ---- Made facts

    @cached_property
    def dialogue_facts(self) -> DataSet:
        return dialogue_facts.data_set(self, random.Random(f"dialogue facts {self.split} {self.seed}"))

    @cached_property
    def no_overlap(self) -> DataSet:
        """Real questions of SQuAD without a content word that stands near their evidence, and made ones about a memory's
        user. Meetings are left out, as nothing overlaps where their evidence was guessed wrong; so is what the checkpoint was
        trained to answer, as it may know it by heart."""
        data = DataSet("no-overlap", "questions that share no content word with what stands around their evidence",
                       self.split)
        made = dialogue_facts.about_users(self, random.Random(f"no overlap {self.split} {self.seed}"))
        for source in (self.all_of_squad, made):
            memories = source.memories
            for question in source.questions:
                if len(content_stems(question.text)) < CONTENT_WORDS_MIN or overlap(question, memories[question.memory]):
                    continue
                memory = f"{source.name}/{question.memory}"
                data.memories[memory] = memories[question.memory]
                category = "made" if source is made else source.name
                data.questions.append(Question(memory, question.text, question.evidence, category, question.category,
                                               question.answer))
        return data


def near(evidence: Evidence, turns: list[dict], characters: int = NEAR_CHARACTERS) -> str:
    """The text that a chunk with some of the evidence could show."""
    def line(turn: dict) -> str:
        return f"{turn.get('name', '')} {turn['content']}\n"

    content = turns[evidence.turn]["content"]
    begin, end = (0, len(content)) if evidence.begin is None else (evidence.begin, evidence.end)
    before, after = f"{turns[evidence.turn].get('name', '')} {content[:begin]}", content[end:]
    number = evidence.turn
    while len(before) < characters and number > 0:
        number -= 1
        before = line(turns[number]) + before
    number = evidence.turn
    while len(after) < characters and number + 1 < len(turns):
        number += 1
        after += "\n" + line(turns[number])
    return before[-characters:] + content[begin:end] + after[:characters]


def overlap(question: Question, turns: list[dict]) -> set[str]:
    """The stemmed content words of a question that stand near its evidence."""
    there = set().union(*(content_stems(near(one, turns)) for one in question.evidence))
    return content_stems(question.text) & there


def turn_of(line: str) -> dict:
    """Of a line of prepare.dialogue_lines."""
    name, content = line.split(": ", 1) if ": " in line else ("User", line)
    role = "assistant" if name == "Assistant" else "user"
    return {"role": role, "content": content} | ({} if name in ("User", "Assistant") else {"name": name[:60]})


def meeting_turn(line: str) -> dict:
    name, _, content = line.partition(": ")
    if not content.strip() or len(name) > 60:
        return {"content": line.strip()}
    return {"name": name.strip(), "content": content.strip()}


def about_whole_meeting(question: str) -> bool:
    return bool(re.search(r"(whole|entire) meeting|summari[sz]e the meeting|main (discussion|topics)|of the meeting\W*$",
                          question.lower()))


def sentence_windows(turns: list[dict], words: int) -> list[list[Evidence]]:
    """From each sentence on, as many as have so many words together, each turn's part as one piece of evidence."""
    sentences = []      # turn, begin, end, words
    for number, turn in enumerate(turns):
        for found in re.finditer(r"\S.*?(?:[.?!]+(?=\s)|$)", turn["content"], re.DOTALL):
            sentences.append((number, found.start(), found.end(), len(found[0].split())))
    windows = []
    for first in range(len(sentences)):
        size, parts = 0, {}
        for number, begin, end, own in sentences[first:]:
            if size and size + own > words:
                break
            size += own
            parts[number] = (parts.get(number, (begin,))[0], end)
        windows.append([Evidence(number, begin, end) for number, (begin, end) in parts.items()])
    return windows


def chat_turns(context: str) -> list[tuple[int, str, str]]:
    """(where it begins, `name: `, what was said) of each turn of a chat that is written on one line."""
    starts = [found.start(1) for found in re.finditer(r"(?:^| )([^\s:]+: )", context)]
    parts = []
    for begin, end in zip(starts, [*starts[1:], len(context)]):
        text = context[begin:end].rstrip()
        head, _, rest = text.partition(": ")
        if rest.strip():
            parts.append((begin, f"{head}: ", rest))
    return parts


def said(head: str, text: str) -> dict:
    return {"name": head[:-2], "content": text}


def make(directory: Path, names: list[str], split: str, seed: int) -> list[DataSet]:
    corpora = Corpora(directory, split, seed)
    known = {"squad", "pubmed", "qmsum", "molweni", "dialogue-facts", "no-overlap"}
    if unknown := set(names) - known:
        sys.exit(f"--sets: there is no {' nor '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return [getattr(corpora, name.replace("-", "_")) for name in names]
