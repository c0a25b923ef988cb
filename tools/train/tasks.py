"""Makes tasks: what is told (statements), what is asked, and which tokens of which statement answer it."""
import random

import facts
from facts import Relation
from lexicon import Lexicon
from prepared import Prepared
from stories import Story, story_keys
from units import Ask, Coder, Statement, Task

PASSAGE_MAX = 900           # tokens of a passage; a longer one is cut
# bAbI tasks about the same people and things, or the same map: two of them could answer one question differently.
BABI_PEOPLE = ["Mary", "John", "Sandra", "Daniel", "Fred", "Bill", "Jeff", "Julie"]
BABI_THINGS = ["football", "apple", "milk"]
BABI_ABOUT_PEOPLE = (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
BABI_ABOUT_MAPS = (4, 19)


def place_of(part: list[int], tokens: list[int]) -> int:
    """Where `part` first stands in tokens, -1 where it does not."""
    return next((i for i in range(len(tokens) - len(part) + 1) if tokens[i:i + len(part)] == part), -1)


class TaskMaker:
    """Makes tasks at random. Keys that two tasks share must not meet in one batch: see `Task.keys`."""

    def __init__(self, prepared: Prepared, rng: random.Random) -> None:
        self.data = prepared
        self.coder = Coder(prepared.model)
        self.lexicon = Lexicon(prepared.words, prepared.names, rng)
        self.rng = rng

    def reseed(self, rng: random.Random) -> None:
        self.rng = self.lexicon.rng = rng

    def make(self, name: str) -> Task:
        return getattr(self, name)()

    def _choice(self, options):
        return options[int(self.rng.random() * len(options))]

    def _questions(self, templates: tuple[str, ...], words: dict[str, str], count: int = 2) -> list[list[int]]:
        chosen = self.rng.sample(templates, count) if len(templates) > count else templates
        return [self.coder.fill(template, words)[0] for template in chosen]

    def _relation(self, relations: tuple[Relation, ...] = facts.NUMBERED) -> Relation:
        return facts.ATTRIBUTE if self.rng.random() < 0.3 else self._choice(relations)

    def _words(self, relation: Relation, key: str | None = None) -> dict[str, str]:
        words = {"k": key or self.lexicon.key(relation.key), "v": self.lexicon.value(relation.value)}
        if relation is facts.ATTRIBUTE:
            words["a"] = self.lexicon.pick("attribute")
        return words

    def _tell(self, template: str, words: dict[str, str]) -> tuple[Statement, int]:
        ids, starts = self.coder.fill(template, words)
        return Statement(ids, template.startswith(facts.OWN_TURN)), starts["v"]

    def _whole(self, kind: str, questions: list[list[int]], answers: list[tuple[str, int, int]],
               statements: list[Statement], keys: list[str] | None = None) -> Ask:
        """An ask whose answer is the values in this order: (value, statement, its place there), each behind its key, if
        there are keys: what is to be found next has been written then."""
        answer: list[int] = []
        parts = []
        for i, (value, statement, place) in enumerate(answers):
            answer += self.coder.comma if answer else []
            if keys:
                ids = self.coder(keys[i])
                told = place_of(ids, statements[statement].tokens)
                parts += [(len(answer), len(ids), statement, told)] if told >= 0 else []
                answer += [*ids, *self.coder.colon]
            ids = self.coder(value)
            parts.append((len(answer), len(ids), statement, place))
            answer += ids
        first = answers[0][1]
        return Ask(kind, questions, answer, parts, (first, 0, len(statements[first].tokens) - 1))

    def numbered(self) -> Task:
        if self.rng.random() < 0.04:
            relation, words, keys = facts.PASS_KEY, {"v": self.lexicon.value("number")}, ["pass key"]
        else:
            relation = self._relation()
            words = self._words(relation)
            keys = [words["k"]]
        statement, place = self._tell(self._choice(relation.tell), words)
        ask = self._whole("numbered", self._questions(relation.ask, words), [(words["v"], 0, place)], [statement])
        return Task(keys, [statement], [ask])

    def _personal(self) -> tuple[Relation, dict[str, str], tuple[str, ...], tuple[str, ...], list[str]]:
        """A relation with its subject; the statements and questions that fit who speaks; the keys."""
        relation = facts.ATTRIBUTE if self.rng.random() < 0.1 else self._choice(facts.PERSONAL)
        key = self.lexicon.person() if relation is facts.ATTRIBUTE else None
        words = self._words(relation, key)
        tell, ask = relation.tell, relation.ask
        if relation.own and self.rng.random() < 0.5:
            tell = relation.own
            if self.rng.random() < 0.4:
                words["k"], ask = "User", relation.me
        keys = [f"{words['k']}|{words.get('a', relation.name)}"]
        if relation is facts.ATTRIBUTE and words["k"] != "User":
            keys.append(words["k"])     # its numbered facts have attributes too
        return relation, words, tell, ask, keys

    def personal(self) -> Task:
        _, words, tell, ask, keys = self._personal()
        statement, place = self._tell(self._choice(tell), words)
        asked = self._whole("personal", self._questions(ask, words), [(words["v"], 0, place)], [statement])
        return Task(keys, [statement], [asked])

    def multi_key(self) -> Task:
        """Many facts of one kind under similar keys; some are asked alone, some together."""
        rng, relation = self.rng, self._relation(facts.FREE_KEYS)
        count = rng.choice((3, 4, 5, 6, 8, 10, 14))
        keys = self.lexicon.similar_keys(count)
        shared = self._words(relation)
        template = self._choice(relation.tell) if rng.random() < 0.6 else None
        statements, places, values = [], [], []
        for key in keys:
            words = shared | {"k": key, "v": self.lexicon.value(relation.value)}
            statement, place = self._tell(template or self._choice(relation.tell), words)
            statements.append(statement)
            places.append(place)
            values.append(words["v"])
        asks = []
        for i in rng.sample(range(len(keys)), min(len(keys), 4)):
            questions = self._questions(relation.ask, shared | {"k": keys[i]})
            asks.append(self._whole("multi_key", questions, [(values[i], i, places[i])], statements))
        for _ in range(rng.randint(1, 2)):
            chosen = rng.sample(range(len(keys)), min(len(keys), rng.choice((2, 2, 3, 4))))
            if len(chosen) < 2:
                continue
            names = [keys[i] for i in chosen]
            names = ", ".join(names[:-1]) + (", and " if len(names) > 2 else " and ") + names[-1]
            question = self.coder.fill(self._choice(relation.many), shared | {"ks": names})[0]
            answers = [(values[i], i, places[i]) for i in chosen]
            asks.append(self._whole("multi_query", [question], answers, statements, [keys[i] for i in chosen]))
        return Task(keys, statements, asks, rng.choice(("spread", "spread", "line", "running")))

    def multi_value(self) -> Task:
        """One subject, several values, all asked for, the newest first: retrieval prefers what is newer."""
        relation = self._relation()
        words = self._words(relation)
        template = self._choice(relation.tell) if self.rng.random() < 0.5 else None
        values = list({self.lexicon.value(relation.value): None for _ in range(self.rng.randint(2, 4))})
        told = [self._tell(template or self._choice(relation.tell), words | {"v": value}) for value in values]
        statements = [statement for statement, _ in told]
        answers = [(value, i, place) for i, (value, (_, place)) in enumerate(zip(values, told))][::-1]
        asked = relation.all if len(values) > 1 else relation.ask
        ask = self._whole("multi_value", self._questions(asked, words), answers, statements)
        ask.rivals = [list(range(i)) for _, i, _ in answers]
        return Task([words["k"]], statements, [ask])

    def updated(self) -> Task:
        """The same fact told two or three times with other values; the newest counts, said to be new or not."""
        rng = self.rng
        if rng.random() < 0.5:
            relation, words, tell, ask, keys = self._personal()
        else:
            relation = self._relation()
            words = self._words(relation)
            tell, ask, keys = relation.tell, relation.ask, [words["k"]]
        values = list({(self.lexicon.value(relation.value)): None for _ in range(rng.choice((2, 2, 3)))})
        template = self._choice(tell) if rng.random() < 0.4 else None
        silent = rng.random() < 0.5
        statements: list[Statement] = []
        for i, value in enumerate(values):
            chosen = template or self._choice(tell)
            if i > 0 and not silent:
                chosen = self._updating(chosen, () if tell is relation.own else relation.now)
            statement, place = self._tell(chosen, words | {"v": value})
            statements.append(statement)
        last = len(values) - 1
        asked = self._whole("updated", self._questions(ask, words), [(values[last], last, place)], statements)
        asked.rivals = [list(range(last))]
        return Task(keys, statements, [asked])

    def _updating(self, template: str, now: tuple[str, ...]) -> str:
        if now and self.rng.random() < 0.6:
            return self._choice(now)
        speaker, rest = "", template
        if template.startswith(facts.OWN_TURN):
            speaker, rest = template.split(": ", 1)
            speaker += ": "
        update = self._choice(facts.UPDATES)
        if update.startswith("Actually") and not rest.startswith(("I ", "I'", "VAR")):
            rest = rest[:1].lower() + rest[1:] if rest[0] != "{" else rest.replace("{K}", "{k}", 1)
        return speaker + update.replace("{s}", rest)

    def variables(self) -> Task:
        """A chain of two (sometimes three) variables; the answer names each hop and then the value."""
        rng = self.rng
        count = 3 if rng.random() < 0.15 else 2
        names = self._distinct(lambda: self.lexicon.key("variable"), count)
        value = self.lexicon.value("number")
        say, alias = self._choice(facts.SAY_VARIABLE), self._choice(facts.SAY_ALIAS)
        if rng.random() < 0.5:
            say, alias = facts.SAY_VARIABLE[0], facts.SAY_ALIAS[0]
        statement, place = self._tell(say, {"k": names[0], "v": value})
        statements, names_at, reads_at = [statement], [self._slot(say, {"k": names[0], "v": value}, "k")], [place]
        for source, name in zip(names, names[1:]):
            words = {"k": name, "v": source}
            statement, place = self._tell(alias, words)
            statements.append(statement)
            names_at.append(self._slot(alias, words, "k"))
            reads_at.append(place)
        asks = [self._hops(names, value, i, statements, reads_at) for i in range(count)]
        holders = [(name, i, names_at[i]) for i, name in enumerate(names)]
        asks.append(self._whole("variables", self._questions(facts.ASK_HOLDERS, {"v": value}, 1), holders, statements))
        return Task([*names, value], statements, asks[1:] if rng.random() < 0.7 else asks)

    def _slot(self, template: str, words: dict[str, str], slot: str) -> int:
        return self.coder.fill(template, words)[1][slot]

    def _hops(self, names: list[str], value: str, asked: int, statements: list[Statement], reads_at: list[int]) -> Ask:
        """`A = 51234` for a variable that was set from A; `51234` for A itself."""
        answer: list[int] = []
        parts = []
        for hop in range(asked, -1, -1):
            ids = self.coder(names[hop - 1] if hop else value)
            answer += self.coder("=") if answer else []
            parts.append((len(answer), len(ids), hop, reads_at[hop]))
            answer += ids
        questions = self._questions(facts.ASK_VARIABLE, {"k": names[asked]})
        return Ask("variables", questions, answer, parts, (asked, 0, len(statements[asked].tokens) - 1))

    def _distinct(self, make, count: int) -> list[str]:
        found: dict[str, None] = {}
        while len(found) < count:
            found[make()] = None
        return list(found)

    def passage(self, context: int | None = None) -> Task:
        """A passage with up to four of its questions."""
        data, rng = self.data, self.rng
        context = int(self._choice(data.contexts)) if context is None else context
        first, last = int(data.question_of[context]), int(data.question_of[context + 1])
        ids = data.row("tr_ctx", context)
        begin, pos, at = 0, data["tr_pos"], data["tr_at"]
        if len(ids) > PASSAGE_MAX:
            centre = int(pos[rng.randrange(first, last)])
            begin = min(max(0, centre - rng.randrange(PASSAGE_MAX)), len(ids) - PASSAGE_MAX)
        tokens = ids[begin:begin + PASSAGE_MAX].tolist()
        keys = [-1 - context, *data["tr_qid"][first:last].tolist()]
        asks: list[Ask] = []
        for i in rng.sample(range(first, last), min(12, last - first)):
            answer = data.row("tr_a", i).tolist()
            place, length = int(pos[i]) - begin, len(answer)
            if place < 0 or place + length > len(tokens) or keys.count(int(data["tr_qid"][i])) > 1:
                continue    # cut off, or asked about this passage with more than one answer
            found = int(at[i]) - begin if at[i] >= 0 else -1
            parts = [(0, length, 0, found)] if 0 <= found <= len(tokens) - length else []
            place = found if parts else place
            asks.append(Ask("passage", [data.row("tr_q", i).tolist()], answer, parts, (0, place, place + length - 1)))
            if len(asks) == 4:
                break
        return Task(keys, [Statement(tokens)], asks, "line")

    def babi(self) -> Task:
        """A story of bAbI's training files up to one of its questions."""
        data = self.data
        i = self.rng.randrange(len(data["babi_task"]))
        begin, end, support, at = (int(data[f"babi_{name}"][i]) for name in ("begin", "end", "support", "at"))
        statements = [Statement(data.row("babi_line", line).tolist()) for line in range(begin, end)]
        answer, line = data.row("babi_a", i).tolist(), support - begin
        parts = [(0, len(answer), line, at)] if at >= 0 else []
        ask = Ask("babi", [data.row("babi_q", i).tolist()], answer, parts, (line, 0, len(statements[line].tokens) - 1))
        task = int(data["babi_task"][i])
        spacing = self._choice(("line", "running", "spread" if len(statements) < 12 else "line"))
        if task in BABI_ABOUT_PEOPLE:
            keys = story_keys(BABI_PEOPLE, BABI_THINGS)
        else:
            keys = ["babi|map" if task in BABI_ABOUT_MAPS else f"babi|{task}"]
        return Task(keys, statements, [ask], spacing)

    def story(self) -> Task:
        story = Story(self.lexicon, self.coder)
        story.write(self.rng.choice((4, 6, 8, 12, 16, 24)))
        asks = story.asks()
        self.rng.shuffle(asks)
        return Task(story.keys(), story.statements, asks[:3], self._choice(("line", "running", "spread")))
