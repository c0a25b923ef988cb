"""The units of a task in tokens, and the coder that fills templates without encoding the same words again."""
from dataclasses import dataclass, field

KINDS = ("numbered", "personal", "multi_key", "multi_query", "multi_value", "variables", "updated", "passage", "story",
         "babi", "copy")
QUESTION_MAX = 56           # tokens of a question
QUESTION_ANSWER_MAX = 61    # of question and answer together: a row of 256 holds 192 others and three marks


@dataclass
class Statement:
    tokens: list[int]
    own_turn: bool = False  # begins with its speaker


@dataclass
class Ask:
    """One question, in several wordings. `parts`: (place in the answer, tokens, statement, place in the statement).

    `rivals`, of each part, if any: statements that say the same with another value and that only age tells apart from it.
    """
    kind: str
    questions: list[list[int]]
    answer: list[int]
    parts: list[tuple[int, int, int, int]]
    evidence: tuple[int, int, int]  # statement, first and last token in it
    rivals: list[list[int]] = field(default_factory=list)


@dataclass
class Task:
    """Statements are told in this order: `spread` over the sequence, each a `line`, or `running` on one line."""
    keys: list[str | int]
    statements: list[Statement]
    asks: list[Ask]
    spacing: str = "spread"
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = sum(len(statement.tokens) + 1 for statement in self.statements)


class Coder:
    """Text to ids, with a cache of the words that come again."""

    CACHE_MAX = 50_000

    def __init__(self, model) -> None:
        self._encode = model.encode
        self._digits = [model.piece_to_id(str(digit)) for digit in range(10)]
        self._space = model.piece_to_id("\u2581")
        self._cache: dict[str, list[int]] = {}
        self._templates: dict[str, list[tuple[str, list[int]]]] = {}
        self.comma, self.colon = self._tail(","), self._tail(":")

    def __call__(self, text: str) -> list[int]:
        if text.isdecimal():
            return [self._space, *(self._digits[ord(digit) - 48] for digit in text)]
        ids = self._cache.get(text)
        if ids is None and " " in text:  # no piece reaches over a space
            return [token for word in text.split(" ") for token in self(word)]
        if ids is None:
            if len(self._cache) >= self.CACHE_MAX:
                self._cache.clear()
            ids = self._cache[text] = self._encode(text)
        return ids

    def _tail(self, text: str) -> list[int]:
        """The ids of text that follows a word without a space."""
        return self._encode("x" + text)[len(self._encode("x")):]

    def _template(self, template: str) -> list[tuple[str, list[int]]]:
        """Its pieces: a slot's name and nothing, or no name and ids."""
        pieces: list[tuple[str, list[int]]] = []
        for i, piece in enumerate(template.replace("}", "{").split("{")):
            if i % 2:
                pieces.append((piece, []))
            elif piece.strip():
                apart = i == 0 or piece[0] == " "
                pieces.append(("", self._encode(piece.strip()) if apart else self._tail(piece.rstrip())))
        self._templates[template] = pieces
        return pieces

    def fill(self, template: str, words: dict[str, str]) -> tuple[list[int], dict[str, int]]:
        """The ids of a filled template, and where each slot begins (its first use)."""
        ids: list[int] = []
        starts: dict[str, int] = {}
        for slot, literal in self._templates.get(template) or self._template(template):
            if not slot:
                ids += literal
            elif slot == "K":
                ids += self(words["k"][0].upper() + words["k"][1:])
            else:
                starts.setdefault(slot, len(ids))
                ids += self(words[slot])
        return ids, starts
