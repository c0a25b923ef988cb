"""Where turns and evidence lie in a memory's chunks, by characters. Standard library only.

The daemon reads a memory as one text, each turn `NAME: content` and a newline, and cuts it by tokens; the texts of its
chunks, one after another, are that text again. So the characters of evidence tell the chunks that hold it.
"""
import sys
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from dataset import Evidence

SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool"}


def speaker(turn: dict) -> str:
    return turn.get("name") or SPEAKERS[turn.get("role", "user")]


@dataclass
class ChunkMap:
    """`texts`: of all chunks, the open one at the end; `turns_of`: the turns that each shows a character of."""
    texts: list[str]
    starts: list[int]               # of chunks, in characters of the whole text
    contents: list[tuple[int, int]]    # of turns: where the content begins and ends
    turns_of: list[set[int]]

    @classmethod
    def of(cls, memory: str, turns: list[dict], chunk_texts: list[str]) -> "ChunkMap":
        """`chunk_texts`: of the stored chunks; what follows them is the open chunk."""
        parts, contents, at = [], [], 0
        for turn in turns:
            head, content = f"{speaker(turn)}: ", turn["content"]
            parts += [head, content, "\n"]
            contents.append((at + len(head), at + len(head) + len(content)))
            at += len(head) + len(content) + 1
        whole, stored = "".join(parts), "".join(chunk_texts)
        if not whole.startswith(stored):
            same = next((i for i, (a, b) in enumerate(zip(whole, stored)) if a != b), min(len(whole), len(stored)))
            sys.exit(f"memory {memory}: its chunks are not the text of its turns from character {same} on; does the memory "
                     "hold other turns already?")
        texts = list(chunk_texts)
        if stored != whole:
            texts.append(whole[len(stored):])
        starts = [0, *accumulate(len(text) for text in texts)][:len(texts)]
        made = cls(texts, starts, contents, [set() for _ in texts])
        for turn, (begin, end) in enumerate(contents):
            for chunk in made.chunks(begin, end):
                made.turns_of[chunk].add(turn)
        return made

    def chunks(self, begin: int, end: int) -> range:
        """Those with at least one of the characters [begin, end)."""
        last = bisect_right(self.starts, end - 1) - 1
        first = bisect_right(self.starts, begin) - 1
        return range(first, last + 1)

    def chunks_of(self, evidence: Evidence) -> set[int]:
        begin, end = self.contents[evidence.turn]
        if evidence.begin is not None:
            begin, end = begin + evidence.begin, begin + evidence.end
        return set(self.chunks(begin, end))
