"""Small stories of people, places and things that move; each question is answered by the last sentence about it."""
from dataclasses import dataclass, field

from lexicon import FIRST, Lexicon
from units import Ask, Coder, Statement

GO = ("{p} went to the {l}.", "{p} moved to the {l}.", "{p} travelled to the {l}.", "{p} journeyed to the {l}.",
      "{p} went back to the {l}.", "{p} walked over to the {l}.", "After that {p} went to the {l}.",
      "Then {p} headed for the {l}.")
TAKE = ("{p} picked up the {o}.", "{p} got the {o} there.", "{p} took the {o} there.", "{p} grabbed the {o}.")
DROP = ("{p} dropped the {o}.", "{p} put down the {o} there.", "{p} left the {o} there.", "{p} discarded the {o}.")
PUT = ("{p} put the {o} in the {l}.", "{p} left the {o} in the {l}.", "{p} hid the {o} in the {l}.")
GIVE = ("{p} gave the {o} to {q}.", "{p} handed the {o} to {q}.", "{p} passed the {o} to {q}.")


def story_keys(people: list[str], things: list[str]) -> list[str]:
    """Whom and what a story is about; the things as facts about their places name them."""
    return [f"story|{person}" for person in people] + [f"the {thing}|place" for thing in things]


@dataclass
class Said:
    """A value and the place where it was said: statement, first token."""
    value: str
    statement: int
    place: int


@dataclass
class Story:
    lexicon: Lexicon
    coder: Coder
    statements: list[Statement] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = self.lexicon.rng
        self.people = rng.sample(FIRST, rng.randint(2, 5))
        self.places = self._words("room", rng.randint(3, 6))
        self.things = self._words("thing", rng.randint(1, 3))
        self.where: dict[str, list[Said]] = {person: [] for person in self.people}
        self.holder: dict[str, Said] = {}    # who has the thing
        self.lies: dict[str, Said] = {}      # where a thing that nobody has lies, when a sentence says so
        self.holds: dict[str, list[Said]] = {person: [] for person in self.people}

    def keys(self) -> list[str]:
        return story_keys(self.people, self.things)

    def _words(self, kind: str, count: int) -> list[str]:
        """Different ones."""
        words: dict[str, None] = {}
        while len(words) < count:
            words[self.lexicon.pick(kind) if self.lexicon.rng.random() < 0.7 else self.lexicon.word()] = None
        return list(words)

    def _say(self, templates: tuple[str, ...], **words: str) -> dict[str, Said]:
        ids, starts = self.coder.fill(self.lexicon.choice(templates), words)
        self.statements.append(Statement(ids))
        return {slot: Said(words[slot], len(self.statements) - 1, place) for slot, place in starts.items()}

    def write(self, sentences: int) -> None:
        rng = self.lexicon.rng
        for _ in range(sentences):
            person, thing = self.lexicon.choice(self.people), self.lexicon.choice(self.things)
            held, roll = self.holder.get(thing), rng.random()
            if roll < 0.55 or not self.where[person]:
                here = self.where[person][-1].value if self.where[person] else None
                place = self.lexicon.choice([p for p in self.places if p != here])
                self.where[person].append(self._say(GO, p=person, l=place)["l"])
            elif held is None:
                if roll < 0.75:
                    self.lies[thing] = self._say(PUT, p=person, o=thing, l=self.lexicon.choice(self.places))["l"]
                else:
                    self._take(thing, self._say(TAKE, p=person, o=thing))
            elif roll < 0.75 and len(self.people) > 1:
                other = self.lexicon.choice([p for p in self.people if p != held.value])
                said = self._say(GIVE, p=held.value, o=thing, q=other)
                self._leave(thing)
                self._take(thing, {"p": said["q"], "o": said["o"]})
            elif self.where[held.value]:
                owner = held.value
                self._say(DROP, p=owner, o=thing)
                self._leave(thing)
                self.lies.pop(thing, None)
                self.lies[thing] = self.where[owner][-1]

    def _take(self, thing: str, said: dict[str, Said]) -> None:
        self.holder[thing] = said["p"]
        self.holds[said["p"].value].append(said["o"])
        self.lies.pop(thing, None)

    def _leave(self, thing: str) -> None:
        held = self.holder.pop(thing)
        self.holds[held.value] = [said for said in self.holds[held.value] if said.value != thing]

    def _ask(self, question: str, said: Said, **words: str) -> Ask:
        ids = self.coder(said.value)
        last = len(self.statements[said.statement].tokens) - 1
        return Ask("story", [self.coder.fill(question, words)[0]], list(ids),
                   [(0, len(ids), said.statement, said.place)], (said.statement, 0, last))

    def asks(self) -> list[Ask]:
        found = []
        for person, went in self.where.items():
            if went:
                found.append(self._ask("Where is {p}?", went[-1], p=person))
            if len(went) > 1 and [said.value for said in went].count(went[-1].value) == 1:
                found.append(self._ask("Where was {p} before the {l}?", went[-2], p=person, l=went[-1].value))
            if len(self.holds[person]) == 1:
                found.append(self._ask("What is {p} carrying?", self.holds[person][0], p=person))
        for thing in self.things:
            held = self.holder.get(thing)
            if held is not None:
                found.append(self._ask("Who has the {o}?", held, o=thing))
                if self.where[held.value]:
                    found.append(self._ask("Where is the {o}?", self.where[held.value][-1], o=thing))
            elif thing in self.lies:
                found.append(self._ask("Where is the {o}?", self.lies[thing], o=thing))
        return found
