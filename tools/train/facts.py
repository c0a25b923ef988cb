"""Facts that can be told and asked: words, values that cannot be guessed, and many ways to say each kind.

Text only. In a template {k} is the subject, {K} the same with a capital letter, {v} the answer; a slot stands at the
beginning or after a space, so that its tokens are those of the bare words.
"""
import random
from dataclasses import dataclass

FIRST = """Ana Ben Clara David Elena Felix Grace Hugo Iris Jonas Kira Leo Maya Nils Olga Pedro Quinn Rosa Sam Tara Umar
Vera Wade Xenia Yusuf Zoe Amir Bella Carlos Dina Emil Fiona Gus Hana Ivan Julia Karim Lena Marco Nora Oscar Priya Rafael
Sofia Tom Uma Victor Wendy Yara Zane Abel Birgit Cyrus Daphne Edgar Freya Goran Helga Imran Jade Kofi Luz Mina Noah Opal
Paulo Ravi Selma Tariq Ursula Vito Willa Ximena Yan Zelda Mary John Sandra Daniel Fred Bill Jeff Julie""".split()
LAST = """Abbott Barnes Castillo Dubois Eriksen Fischer Garcia Hughes Ito Jensen Kowalski Lindgren Moreau Novak Okafor
Petrov Quintero Rossi Silva Tanaka Usman Vargas Weber Xu Young Zimmer Adeyemi Bianchi Cohen Duarte Endo Farouk Gupta
Haddad Ivanov Jung Khan Larsen Mbeki Nguyen""".split()
LISTS: dict[str, list[str]] = {name: [w.strip() for w in text.replace("\n", " ").split(",")] for name, text in {
    "city": """Lisbon, Oslo, Kyoto, Nairobi, Toronto, Prague, Lima, Hanoi, Dublin, Cairo, Seville, Bergen, Austin,
        Quito, Zagreb, Manila, Perth, Geneva, Riga, Tunis, Boston, Milan, Osaka, Accra, Delhi, Helsinki, Porto, Krakow,
        Denver, Bogota, Seattle, Havana, Athens, Vienna, Sydney, Madrid, Munich, Lyon, Turin, Bristol, Tromso, Bodo,
        San Jose, New York, Cape Town, Buenos Aires, Leeds, Nantes, Basel, Malmo, Ghent, Izmir, Dakar, Lagos""",
    "food": """ramen, lasagna, paella, dumplings, falafel, pierogi, tacos, green curry, risotto, sushi, goulash,
        pancakes, moussaka, pho, ceviche, gnocchi, couscous, tamales, biryani, borscht, shakshuka, empanadas, fish soup,
        onion tart, apple pie, black pudding, roast duck, potato salad, mushroom stew, rye bread""",
    "drink": """green tea, black coffee, ginger beer, apple juice, hot chocolate, mint tea, tomato juice, oat milk,
        sparkling water, espresso, lemonade, cider, red wine, buttermilk, iced tea, plum brandy""",
    "job": """nurse, carpenter, pilot, librarian, chemist, plumber, translator, chef, architect, farmer, dentist,
        welder, journalist, botanist, lawyer, potter, surgeon, geologist, baker, tailor, electrician, actuary,
        beekeeper, sculptor, firefighter, bus driver, history teacher, ship captain, florist, clockmaker""",
    "pet": "cat, dog, parrot, rabbit, hamster, turtle, gecko, ferret, pony, goldfish, canary, tortoise",
    "pet_name": """Biscuit, Luna, Pepper, Mochi, Rusty, Shadow, Pickle, Nova, Ziggy, Olive, Bandit, Waffles, Comet,
        Hazel, Noodle, Pixel, Maple, Storm, Truffle, Basil, Captain, Duchess, Socks, Admiral""",
    "instrument": """violin, trumpet, cello, piano, guitar, harp, flute, banjo, drums, oboe, clarinet, saxophone,
        accordion, mandolin, double bass, bagpipes, viola, church organ""",
    "color": """teal, crimson, mustard, lavender, turquoise, maroon, olive, indigo, amber, coral, violet, beige,
        scarlet, emerald, navy, orange, purple, silver""",
    "hobby": """pottery, archery, kayaking, chess, birdwatching, knitting, fencing, gardening, climbing, calligraphy,
        surfing, astronomy, woodworking, juggling, beekeeping, origami, skating, cycling, painting, fishing, baking,
        diving, sailing, stamp collecting""",
    "thing": """umbrella, passport, laptop, bicycle, charger, camera, notebook, tent, kettle, jacket, suitcase, toolbox,
        telescope, headphones, football, apple, milk, spare key, flashlight, ladder, red folder, blue scarf""",
    "room": """attic, garage, basement, kitchen, drawer, closet, office, locker, trunk, shed, hallway, balcony,
        cupboard, bedroom, bathroom, garden, pantry, library, cellar""",
    "relative": """sister, brother, mother, father, aunt, uncle, cousin, boss, neighbor, roommate, landlord, dentist,
        teacher, coach, partner, manager, grandmother, grandfather, mentor, colleague, best friend, wife, husband""",
    "allergy": """peanuts, shellfish, gluten, penicillin, pollen, cats, lactose, soy, eggs, latex, dust, bee stings,
        strawberries, sesame, aspirin, wool""",
    "event": """dentist appointment, flight, wedding, job interview, exam, concert, deadline, house viewing,
        vaccination, parents' evening, board meeting, court date, haircut, reunion, driving test, picnic""",
    "lock": """garage, front door, safe, alarm, gym locker, phone, bank card, suitcase, boathouse, gate, server room,
        bike shed, back door, mailbox, cabin""",
    "item": """rent, electricity bill, new phone, repair, course, train ticket, sofa, carpet, guitar, window, flight,
        membership, hotel, boat, plumber, insurance""",
    "language": """Portuguese, Japanese, Swahili, Polish, Finnish, Arabic, Korean, Turkish, Greek, Dutch, Hindi, Welsh,
        Czech, Norwegian, Vietnamese, Spanish, Icelandic""",
    "subject": """marine biology, philosophy, civil engineering, economics, linguistics, medicine, art history,
        computer science, law, astrophysics, statistics, theology, geography, music theory""",
    "sport": "tennis, rugby, handball, cricket, hockey, volleyball, basketball, rowing, badminton, golf, football, judo",
    "vehicle": "van, motorbike, truck, car, scooter, boat, camper, tractor",
    "transport": "by bus, by train, by bicycle, on foot, by ferry, by tram, by car, by scooter, by subway",
    "month": "January, February, March, April, May, June, July, August, September, October, November, December",
    "day": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "attribute": """password, nickname, middle name, favorite word, locker combination, license plate, order number,
        username, hotel, street, company, team name, badge, flight number, wifi key, secret phrase, brand of coffee,
        band, supervisor, therapist, tutor, account number, tracking number, recipe, shop, project, code word,
        home town, last purchase, hero, tent color, serial number, reference, door code, extension, bus line, meeting
        point, favorite store, membership number, emergency contact, invoice number, safe word, domain, table number""",
    "adjective": """amber, ancient, bitter, brave, bright, calm, clever, cold, cruel, dusty, eager, early, faded, fancy,
        gentle, glossy, golden, grand, happy, heavy, hollow, humble, icy, jolly, keen, lazy, little, lonely, loud,
        mellow, misty, noisy, odd, pale, plain, proud, quick, quiet, rapid, rough, rusty, shy, silent, silver, sleepy,
        slow, smooth, stormy, sweet, tall, tiny, vast, wandering, warm, wild, wise, wooden, young""",
    "noun": """apple, river, engine, castle, pencil, mirror, tiger, ladder, button, forest, rocket, anchor, basket,
        candle, dragon, eagle, fabric, hammer, island, jungle, kernel, lemon, magnet, needle, orange, pebble, quartz,
        ribbon, saddle, temple, umbrella, valley, walnut, yogurt, zipper, bridge, cactus, donkey, feather, glacier,
        harbor, insect, kitten, lantern, meadow, nectar, oyster, parcel, quiver, rabbit, shovel, tunnel, vessel, window,
        lighthouse, orchard, ferry, windmill, archive, foundry, quarry, stable, chapel, brewery, sawmill""",
}.items()}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CODE_CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"


class Lexicon:
    """Draws words, keys and values. `rng` may be replaced between sequences."""

    def __init__(self, words: list[str], names: list[str], rng: random.Random):
        self.words, self.names, self.rng = words, names, rng

    def pick(self, name: str) -> str:
        return self.choice(LISTS[name])

    def choice(self, options):
        return options[int(self.rng.random() * len(options))]

    def word(self) -> str:
        return self.choice(self.words)

    def proper(self) -> str:
        return self.choice(self.names)

    def digits(self, low: int, high: int) -> str:
        """A number of `low` to `high` digits that does not begin with 0."""
        count = self.rng.randint(low, high)
        return str(self.rng.randrange(10 ** (count - 1), 10 ** count))

    def characters(self, alphabet: str, low: int, high: int) -> str:
        return "".join(self.rng.choices(alphabet, k=self.rng.randint(low, high)))

    def person(self) -> str:
        roll = self.rng.random()
        if roll < 0.55:
            return self.choice(FIRST)
        return f"{self.choice(FIRST)} {self.choice(LAST)}" if roll < 0.75 else self.proper()

    def date(self) -> str:
        roll, day = self.rng.random(), self.rng.randint(1, 28)
        if roll < 0.6:
            return f"{self.pick('month')} {day}"
        if roll < 0.75:
            return f"{self.rng.randint(1990, 2035)}-{self.rng.randint(1, 12):02d}-{day:02d}"
        return f"{self.pick('day')}, {self.pick('month')} {day}" if roll < 0.9 else f"{day} {self.pick('month')}"

    def time(self) -> str:
        hour, minute = self.rng.randint(1, 12), self.rng.randint(0, 59)
        return f"{hour}:{minute:02d} {self.choice(('am', 'pm'))}" if self.rng.random() < 0.6 else f"{hour + 8}:{minute:02d}"

    def code(self) -> str:
        roll = self.rng.random()
        if roll < 0.4:
            return self.characters(CODE_CHARACTERS, 4, 8)
        if roll < 0.6:
            return self.characters("0123456789abcdef", 6, 8)
        if roll < 0.8:
            return f"{self.characters(LETTERS, 2, 3)}-{self.digits(3, 4)}"
        return f"{self.digits(3, 3)}-{self.digits(4, 4)}"

    def phrase(self) -> str:
        words = " ".join(self.word() for _ in range(self.rng.randint(2, 3)))
        return words.title() if self.rng.random() < 0.4 else words

    def value(self, kind: str) -> str:
        """An answer of a kind that relations name: a list's name, one of the below, or `any`."""
        if kind == "any":
            kind = self.choice(("digits", "digits", "digits", "code", "word", "word", "phrase", "proper", "date", "time"))
        match kind:
            case "digits": return self.digits(3, 8)
            case "magic": return self.digits(7, 7) if self.rng.random() < 0.6 else self.digits(4, 8)
            case "pin": return self.digits(4, 6)
            case "short": return self.digits(2, 4)
            case "number": return self.digits(5, 5) if self.rng.random() < 0.6 else self.digits(3, 7)
            case "price": return f"{self.digits(2, 4)} {self.choice(('dollars', 'dollars', 'euros', 'pounds'))}"
            case "phone": return f"{self.digits(3, 3)}-{self.digits(4, 4)}"
            case "code": return self.code()
            case "word": return self.word()
            case "phrase": return self.phrase()
            case "proper": return self.proper()
            case "person": return self.person()
            case "date": return self.date()
            case "time": return self.time()
            case "seat": return f"{self.rng.randint(1, 40)}{self.choice('ABCDEF')}"
            case "title": return f"The {self.word().title()} {self.choice(('of', 'and the', 'under the'))} {self.word().title()}"
        # A closed list could be learned by heart, so that other words of the corpus stand in for half of them.
        if kind in ("city", "pet_name") and self.rng.random() < 0.5:
            return self.proper()
        return self.pick(kind)

    def key(self, kind: str) -> str:
        """A subject: `thing` (words, the-words, pairs, codes), `variable`, `person`, `relative`, `object`, or a list's name."""
        rng = self.rng
        if kind == "person":
            return self.person()
        if kind == "variable":
            roll = rng.random()
            if roll < 0.45:
                return self.characters(LETTERS, 3, 5)
            if roll < 0.6:
                return self.choice(LETTERS) + (self.digits(1, 2) if rng.random() < 0.5 else "")
            return self.word() if roll < 0.8 else f"{self.word()}_{self.word()}"
        if kind == "relative":
            return self.pick(kind)
        if kind != "thing":
            return f"the {self.pick('thing' if kind == 'object' else kind)}"
        roll = rng.random()
        if roll < 0.2:
            return self.word()
        if roll < 0.35:
            return f"the {self.word() if rng.random() < 0.5 else self.pick('noun')}"
        if roll < 0.5:
            return f"{self.pick('adjective')}-{self.pick('noun') if rng.random() < 0.5 else self.word()}"
        if roll < 0.62:
            return f"{self.pick('adjective')} {self.word()}"
        if roll < 0.7:
            return f"the {self.pick('noun')} and the {self.word()}"
        if roll < 0.8:
            return self.person()
        if roll < 0.86:
            return f"{self.choice(FIRST)} and {self.choice(FIRST)}"
        if roll < 0.93:
            return self.characters(LETTERS, 3, 5) if rng.random() < 0.5 else self.code()
        return f"{self.choice(('room', 'order', 'project', 'case', 'unit', 'gate'))} " + \
            (self.digits(2, 4) if rng.random() < 0.6 else self.proper())

    def similar_keys(self, count: int) -> list[str]:
        """Different keys that are easily confused."""
        rng, style = self.rng, self.rng.randrange(7)
        if style == 0:
            left = self.pick("adjective")
            make = lambda: f"{left} {self.word()}"
        elif style == 1:
            right = self.pick("noun")
            make = lambda: f"{self.pick('adjective')} {right}"
        elif style == 2:
            base = list(self.characters(CODE_CHARACTERS, 4, 6))
            def make() -> str:
                changed = list(base)
                for place in rng.sample(range(len(base)), 2):
                    changed[place] = self.choice(CODE_CHARACTERS)
                return "".join(changed)
        elif style == 3:
            noun, start = self.choice(("room", "order", "unit", "locker", "section", "ticket")), rng.randrange(10, 900)
            make = lambda: f"{noun} {start + rng.randrange(3 * count)}"
        elif style == 4:
            first = self.choice(FIRST)
            make = lambda: f"{first} {self.choice(LAST)}"
        elif style == 5:
            make = lambda: f"{self.pick('adjective')}-{self.pick('noun')}"
        else:
            make = lambda: self.key("thing")
        keys: dict[str, None] = {}
        for _ in range(4 * count):
            keys[make()] = None
            if len(keys) == count:
                break
        return list(keys)


@dataclass(frozen=True)
class Relation:
    """One kind of fact. `own`: said by the subject itself, a turn of its own; `me`: the question when that is the user;
    `now`: a newer value told with an update word; `all`: asks for every value; `many`: asks for several subjects {ks}."""
    name: str
    value: str
    key: str
    tell: tuple[str, ...]
    ask: tuple[str, ...]
    own: tuple[str, ...] = ()
    me: tuple[str, ...] = ()
    now: tuple[str, ...] = ()
    all: tuple[str, ...] = ()
    many: tuple[str, ...] = ()


def relation(name: str, value: str, key: str, tell: str, ask: str, **more: str) -> Relation:
    split = lambda text: tuple(part.strip() for part in text.split("|"))
    return Relation(name, value, key, split(tell), split(ask), **{field: split(text) for field, text in more.items()})


# The words that turn any statement into an update.
UPDATES = ("Correction: {s}", "Update: {s}", "Actually, {s}", "It changed: {s}", "New: {s}", "{s} Forget the old one.",
           "{s} This replaces what was said before.", "From now on: {s}", "Sorry, that was wrong. {s}")

PASS_KEY = relation(
    "pass key", "number", "none",
    "The pass key is {v}. Remember it. {v} is the pass key.|The passkey is {v}. Remember it.|Remember this: the pass key is {v}.",
    "What is the pass key?|What is the passkey?|What is the pass key? The pass key is",
    now="The pass key is now {v}.|The pass key was changed to {v}.")

NUMBERED = (
    relation("magic number", "magic", "thing",
             "One of the special magic numbers for {k} is: {v}.|The special magic number for {k} is {v}.|The special magic "
             "number for {k} is: {v}.|The magic number for {k} is {v}.|A special magic number for {k} is: {v}.|{v} is the "
             "special magic number for {k}.|Note that the magic number of {k} is {v}.",
             "What is the special magic number for {k} mentioned in the provided text?|What is the special magic number for "
             "{k}?|What is the magic number for {k}?|Which magic number belongs to {k}?|What is the special magic number for "
             "{k} mentioned in the text?",
             now="The special magic number for {k} is now {v}.|The magic number for {k} changed to {v}.|The new magic number for {k} is {v}.",
             all="What are all the special magic numbers for {k} mentioned in the provided text?|What are all the magic "
             "numbers for {k}?|List all special magic numbers for {k}.|Which magic numbers does {k} have?",
             many="What are the special magic numbers for {ks} mentioned in the provided text?|What are all the special "
             "magic numbers for {ks}?|What are the magic numbers for {ks}?"),
    relation("magic word", "word", "thing",
             "One of the special magic words for {k} is: {v}.|The special magic word for {k} is {v}.|The magic word for {k} is: {v}.",
             "What is the special magic word for {k} mentioned in the text?|What is the magic word for {k}?|Which word belongs to {k}?",
             now="The magic word for {k} is now {v}.|The magic word for {k} changed to {v}.",
             all="What are all the special magic words for {k} mentioned in the text?|Which magic words does {k} have?",
             many="What are the special magic words for {ks} mentioned in the text?|What are the magic words for {ks}?"),
    relation("key of", "magic", "thing",
             "The pass key for {k} is {v}. Remember it.|The passkey for {k} is {v}.|The pass key of {k} is {v}. {v} is the pass "
             "key of {k}.|Keep the key for {k} in mind: {v}.",
             "What is the pass key for {k}?|What is the passkey of {k}?|Which pass key goes with {k}?",
             now="The pass key for {k} is now {v}.|The pass key for {k} was changed to {v}.",
             all="What are all the pass keys for {k}?|List the pass keys for {k}.",
             many="What are the pass keys for {ks}?|Which pass keys belong to {ks}?"),
    relation("code", "pin", "thing",
             "The code for {k} is {v}.|{v} is the code for {k}.|You can open {k} with {v}.|The access code of {k} is {v}.|To get "
             "into {k}, enter {v}.|{K} has the code {v}.|The code to {k} is {v}, don't lose it.",
             "What is the code for {k}?|Which code opens {k}?|What is the access code of {k}?|How do I open {k}?",
             now="The code for {k} is now {v}.|The code for {k} changed to {v}.|They reset the code for {k} to {v}.",
             all="What are all the codes for {k}?|Which codes open {k}?|List every code for {k}.",
             many="What are the codes for {ks}?|Which codes open {ks}?"),
    relation("lock", "pin", "lock",
             "The code for {k} is {v}.|You can open {k} with {v}.|{K} opens with {v}.|I set the code of {k} to {v}.",
             "What is the code for {k}?|Which code opens {k}?|What was the code of {k} again?",
             now="The code for {k} is now {v}.|I changed the code of {k} to {v}.",
             all="What are all the codes for {k}?", many="What are the codes for {ks}?"),
    relation("price", "price", "item",
             "{K} costs {v}.|I paid {v} for {k}.|{K} came to {v}.|The price of {k} is {v}.|They want {v} for {k}.",
             "How much is {k}?|How much did I pay for {k}?|What does {k} cost?|What is the price of {k}?",
             now="{K} costs {v} now.|The price of {k} changed to {v}.|The price of {k} is now {v}.",
             all="What are all the prices of {k}?", many="What do {ks} cost?|What are the prices of {ks}?"),
    relation("cost", "price", "thing",
             "{K} costs {v}.|The price of {k} is {v}.|{K} is worth {v}.|They sold {k} for {v}.",
             "How much is {k}?|What does {k} cost?|What is the price of {k}?",
             now="{K} costs {v} now.|The price of {k} rose to {v}.|The price of {k} is now {v}.",
             all="What are all the prices of {k}?", many="What are the prices of {ks}?"),
    relation("number", "digits", "thing",
             "The number of {k} is {v}.|{K} has the number {v}.|Number {v} belongs to {k}.|{K} is listed as number {v}.|For {k} "
             "dial {v}.|The serial number of {k} is {v}.",
             "What is the number of {k}?|Which number belongs to {k}?|What number does {k} have?",
             now="The number of {k} is now {v}.|The number of {k} changed to {v}.|{K} got a new number: {v}.",
             all="What are all the numbers of {k}?|Which numbers belong to {k}?", many="What are the numbers of {ks}?"),
    relation("phone", "phone", "person",
             "You can reach {k} at {v}.|{K} can be called at {v}.|The phone number of {k} is {v}.|Call {k} on {v}.",
             "What is the phone number of {k}?|How can I reach {k}?|Which number do I call for {k}?",
             own="{k}: My number is {v}.|{k}: You can reach me at {v}.", me="What is my phone number?|Which number is mine?",
             now="The phone number of {k} is now {v}.|{K} has a new number, {v}.",
             all="What are all the phone numbers of {k}?", many="What are the phone numbers of {ks}?"),
    relation("variable", "number", "variable",
             "VAR {k} = {v}|Set {k} to {v}.|Let {k} = {v}|{k} = {v}|The variable {k} is assigned the value {v}.|Assign {v} to {k}.|"
             "The value of {k} is {v}.",
             "What value is assigned to {k}?|What is the value of {k}?|What value does {k} hold?|What is {k} set to?",
             now="{k} is now {v}.|Set {k} to {v} instead.|The value of {k} changed to {v}.|Reassign {k} to {v}.",
             all="What are all the values assigned to {k}?", many="What are the values of {ks}?"),
    relation("entry", "any", "thing",
             "{K} -> {v}|{K}: {v}|Remember that {k} means {v}.|They renamed {k} to {v}.|Set {k} to {v}.|{K} stands for {v}.|In our "
             "list {k} maps to {v}.|The entry for {k} reads {v}.|Write down {v} for {k}.",
             "What does {k} map to?|What is the entry for {k}?|What does {k} stand for?|What is the value of {k}?",
             now="{K} now maps to {v}.|The entry for {k} was changed to {v}.|{K} means {v} now.",
             all="What are all the entries for {k}?|List everything that {k} maps to.", many="What are the entries for {ks}?"),
    relation("appointment", "date", "event",
             "{K} is on {v}.|Don't forget {k} on {v}.|{K} takes place on {v}.|I have {k} on {v}.|They set {k} for {v}.",
             "When is {k}?|What date is {k}?|On which day is {k}?|What is the date of {k}?",
             now="{K} was moved to {v}.|{K} is now on {v}.|They changed the date of {k} to {v}.",
             all="What are all the dates of {k}?", many="When are {ks}?|What are the dates of {ks}?"),
    relation("hour", "time", "event",
             "{K} starts at {v}.|{K} begins at {v}.|Be there for {k} at {v}.|{K} is at {v}.",
             "At what time does {k} start?|What time is {k}?|When does {k} begin?",
             now="{K} starts at {v} now.|{K} was moved to {v}.", all="What are all the times of {k}?",
             many="At what times do {ks} start?"),
    relation("deadline", "date", "thing",
             "The deadline for {k} is {v}.|{K} is due on {v}.|{K} must be ready by {v}.|Finish {k} by {v}.",
             "What is the deadline for {k}?|When is {k} due?|By when must {k} be ready?",
             now="The deadline for {k} is now {v}.|The deadline for {k} was moved to {v}.",
             all="What are all the deadlines for {k}?", many="What are the deadlines for {ks}?"),
)

# Here {a} is an attribute drawn with the subject.
ATTRIBUTE = relation(
    "attribute", "any", "thing",
    "{K}'s {a} is {v}.|The {a} for {k} is {v}.|I wrote down {k}'s {a}: {v}.|{v} is the {a} of {k}.|For {k}, the {a} would be {v}, "
    "please keep it.|The {a} of {k} is {v}.|As {a} for {k} they chose {v}.|{K} has {v} as {a}.|{K}, {a}: {v}",
    "What is {k}'s {a}?|What is the {a} for {k}?|What is the {a} of {k}?|Which {a} does {k} have?|Which {a} did I give for {k}?",
    own="{k}: My {a} is {v}.|{k}: As {a} I use {v}.|{k}: Note my {a}, {v}.", me="What is my {a}?|Which {a} do I have?",
    now="{K}'s {a} is now {v}.|The {a} for {k} changed to {v}.|{K} got a new {a}: {v}.|The {a} of {k} was replaced by {v}.",
    all="What are all values of the {a} for {k}?|List every {a} of {k}.", many="What is the {a} for {ks}?|What is the {a} of {ks}?")

PERSONAL = (
    relation("home", "city", "person",
             "{K} moved to {v} last year.|{K} lives in {v}.|By the way, {k} just relocated to {v}.|{K} found a flat in {v}.|{K} has "
             "settled in {v}.", "Where does {k} live?|Which city did {k} move to?|In which city is {k} at home?",
             own="{k}: I moved to {v} in spring.|{k}: I live in {v}.|{k}: I've been living in {v} for a while.|{k}: We bought a "
             "house in {v}.", me="Where do I live?|Which city did I move to?|Where does the user live?",
             now="{K} lives in {v} now.|{K} moved again, to {v} this time.|{K} has moved to {v}."),
    relation("birthplace", "city", "person",
             "{K} grew up in {v}.|{K} comes from {v}.|{K} was raised in {v}.|{K} is originally from {v}.",
             "Where did {k} grow up?|Where does {k} come from?|Where is {k} from?",
             own="{k}: I grew up in {v}.|{k}: I'm originally from {v}.", me="Where did I grow up?|Where am I from?",
             now="It turns out that {k} grew up in {v}."),
    relation("food", "food", "person",
             "{K}'s favorite food is {v}.|{K} could eat {v} every day.|Nothing beats {v}, says {k}.|{K} loves {v} above all.",
             "What is {k}'s favorite food?|What food does {k} love most?|Which dish does {k} like best?",
             own="{k}: My favorite food is {v}.|{k}: I could eat {v} every day.|{k}: Honestly, I love {v}.",
             me="What is my favorite food?|Which dish do I like best?",
             now="{K}'s favorite food is now {v}.|These days {k} prefers {v}."),
    relation("drink", "drink", "person",
             "{K} always orders {v}.|{K}'s favorite drink is {v}.|{K} drinks nothing but {v}.|Bring {v} for {k}.",
             "What does {k} like to drink?|What is {k}'s favorite drink?|What does {k} always order?",
             own="{k}: I always drink {v}.|{k}: I'd like {v}, as ever.|{k}: My favorite drink is {v}.",
             me="What do I like to drink?|What is my favorite drink?", now="{K} switched to {v}.|{K} drinks {v} now."),
    relation("job", "job", "person",
             "{K} works as a {v}.|{K} got hired as a {v}.|{K} is a {v} by trade.|{K} earns a living as a {v}.|{K} trained as a {v}.",
             "What does {k} do for a living?|What is {k}'s job?|What does {k} work as?",
             own="{k}: I work as a {v}.|{k}: I'm a {v}.|{k}: I got a job as a {v}.",
             me="What do I do for a living?|What is my job?|What does the user work as?",
             now="{K} works as a {v} now.|{K} changed jobs and became a {v}.|{K} is a {v} now."),
    relation("employer", "proper", "person",
             "{K} works at {v}.|{K} took a position with {v}.|{K} has a desk at {v}.|{K} signed a contract with {v}.",
             "Where does {k} work?|Which company does {k} work for?|Who employs {k}?",
             own="{k}: I work at {v}.|{k}: I started at {v} last month.|{k}: My employer is {v}.",
             me="Where do I work?|Which company do I work for?", now="{K} works at {v} now.|{K} left and joined {v}."),
    relation("pet", "pet_name", "person",
             "{K} has a dog named {v}.|{K}'s dog is called {v}.|{K} adopted a dog and named it {v}.|{K} walks a dog called {v}.",
             "What is the name of {k}'s dog?|What is {k}'s dog called?|Which name did {k} give the dog?",
             own="{k}: My dog is called {v}.|{k}: I have a dog named {v}.|{k}: I named my dog {v}.",
             me="What is my dog called?|What is the name of my dog?", now="{K}'s dog is now called {v}."),
    relation("cat", "pet_name", "person",
             "{K} has a cat named {v}.|{K}'s cat is called {v}.|{K} took in a stray cat and calls it {v}.|{K} feeds a cat called {v}.",
             "What is the name of {k}'s cat?|What is {k}'s cat called?",
             own="{k}: My cat is called {v}.|{k}: We have a cat, {v}.|{k}: I got a cat named {v}.",
             me="What is my cat called?|What is the name of my cat?", now="{K}'s cat is now called {v}."),
    relation("instrument", "instrument", "person",
             "{K} plays the {v}.|{K} has been practicing the {v} for years.|{K} takes lessons on the {v}.|{K} bought a used {v}.",
             "Which instrument does {k} play?|What instrument is {k} learning?",
             own="{k}: I play the {v}.|{k}: I'm learning the {v}.|{k}: I practise the {v} every evening.",
             me="Which instrument do I play?|What instrument am I learning?", now="{K} plays the {v} now.|{K} switched to the {v}."),
    relation("birthday", "date", "person",
             "{K}'s birthday is on {v}.|{K} was born on {v}.|We celebrate {k}'s birthday on {v}.|{K} has a birthday on {v}.",
             "When is {k}'s birthday?|On what date was {k} born?|When was {k} born?",
             own="{k}: My birthday is on {v}.|{k}: I was born on {v}.", me="When is my birthday?|When was I born?",
             now="{K}'s birthday is really on {v}."),
    relation("hobby", "hobby", "person",
             "{K} took up {v} recently.|{K} is really into {v}.|{K} spends weekends with {v}.|{K}'s hobby is {v}.",
             "What hobby did {k} take up?|What is {k} into?|What does {k} do on weekends?|What is {k}'s hobby?",
             own="{k}: I took up {v}.|{k}: I'm really into {v}.|{k}: My hobby is {v}.",
             me="What is my hobby?|What do I do on weekends?", now="{K} gave that up for {v}.|{K} is into {v} now."),
    relation("color", "color", "person",
             "{K}'s favorite color is {v}.|{K} painted the bedroom {v}, a favorite color.|{K} always picks {v} over other colors.",
             "What is {k}'s favorite color?|Which color does {k} like best?",
             own="{k}: My favorite color is {v}.|{k}: I like {v} best of all colors.",
             me="What is my favorite color?|Which color do I like best?", now="{K}'s favorite color is now {v}."),
    relation("allergy", "allergy", "person",
             "{K} is allergic to {v}.|{K} has an allergy to {v}.|{K} can't be around {v} because of an allergy.|Careful, {k} does "
             "not tolerate {v}.", "What is {k} allergic to?|Which allergy does {k} have?|What must {k} avoid?",
             own="{k}: I'm allergic to {v}.|{k}: I have an allergy to {v}.|{k}: I can't stand {v}, it's an allergy.",
             me="What am I allergic to?|Which allergy do I have?|What is the user allergic to?",
             now="The test says that {k} is allergic to {v}."),
    relation("seat", "seat", "person",
             "{K}'s seat is {v}.|{K} will sit in seat {v}.|{K} booked seat {v}.|Seat {v} is for {k}.",
             "Which seat does {k} have?|What is {k}'s seat?|Where will {k} sit?",
             own="{k}: My seat is {v}.|{k}: I booked seat {v}.", me="Which seat do I have?|What is my seat?",
             now="{K}'s seat is now {v}.|{K} was moved to seat {v}."),
    relation("holiday", "city", "person",
             "{K} is going to {v} on vacation.|{K} booked a trip to {v}.|{K}'s next holiday is in {v}.|{K} will fly to {v} in summer.",
             "Where is {k} going on vacation?|Where did {k} book a trip to?|Where is {k}'s next holiday?",
             own="{k}: I'm going to {v} on vacation.|{k}: I booked a trip to {v}.|{k}: Next summer I fly to {v}.",
             me="Where am I going on vacation?|Where did I book a trip to?", now="{K} is going to {v} instead.|{K}'s trip now goes to {v}."),
    relation("book", "title", "person",
             "{K} is reading {v}.|{K} just finished the book {v}.|{K} recommended {v} to me.|{K} borrowed {v} from the library.",
             "Which book is {k} reading?|What book did {k} recommend?", own="{k}: I'm reading {v}.|{k}: I just bought the book {v}.",
             me="Which book am I reading?|What book did I buy?", now="{K} is reading {v} now."),
    relation("language", "language", "person",
             "{K} is learning {v}.|{K} takes a course in {v}.|{K} wants to speak {v} by summer.|{K} studies {v} in the evening.",
             "Which language is {k} learning?|What language does {k} study?",
             own="{k}: I'm learning {v}.|{k}: I take a {v} course.", me="Which language am I learning?",
             now="{K} is learning {v} now."),
    relation("studies", "subject", "person",
             "{K} studies {v}.|{K} has a degree in {v}.|{K} graduated in {v}.|{K} majored in {v}.",
             "What did {k} study?|In what does {k} have a degree?|What was {k}'s major?",
             own="{k}: I studied {v}.|{k}: I have a degree in {v}.", me="What did I study?|In what do I have a degree?",
             now="{K} changed to {v}."),
    relation("sport", "sport", "person",
             "{K} plays {v} on weekends.|{K} trains {v} twice a week.|{K}'s sport is {v}.|{K} joined a club for {v}.",
             "Which sport does {k} play?|What is {k}'s sport?", own="{k}: I play {v}.|{k}: My sport is {v}.",
             me="Which sport do I play?|What is my sport?", now="{K} plays {v} now."),
    relation("spouse", "person", "person",
             "{K} is married to {v}.|{K} married {v} in June.|{K}'s spouse is {v}.|{K} shares a home with {v}.",
             "Who is {k} married to?|Who is {k}'s spouse?", own="{k}: I'm married to {v}.|{k}: My spouse is called {v}.",
             me="Who am I married to?|What is my spouse called?", now="{K} is married to {v} now."),
    relation("child", "person", "person",
             "{K}'s daughter is called {v}.|{K} has a daughter named {v}.|{K} takes little {v}, the daughter, to school.",
             "What is {k}'s daughter called?|What is the name of {k}'s daughter?",
             own="{k}: My daughter is called {v}.|{k}: I have a daughter, {v}.", me="What is my daughter called?",
             now="{K}'s daughter now goes by {v}."),
    relation("doctor", "person", "person",
             "{K}'s doctor is {v}.|{K} sees {v} about the knee.|{K} has an appointment with {v}, the doctor.|{v} treats {k}.",
             "Who is {k}'s doctor?|Which doctor does {k} see?", own="{k}: My doctor is {v}.|{k}: I see {v} about my back.",
             me="Who is my doctor?|Which doctor do I see?", now="{K}'s doctor is now {v}.|{K} changed doctors, to {v}."),
    relation("car", "proper", "person",
             "{K} drives a {v}.|{K} bought a second-hand {v}.|{K}'s car is a {v}.|{K} parked the {v} outside.",
             "What car does {k} drive?|What is {k}'s car?", own="{k}: I drive a {v}.|{k}: My car is a {v}.",
             me="What car do I drive?|What is my car?", now="{K} drives a {v} now.|{K} sold it and bought a {v}."),
    relation("commute", "transport", "person",
             "{K} gets to work {v}.|{K} commutes {v}.|{K} travels to the office {v}.",
             "How does {k} get to work?|How does {k} commute?", own="{k}: I get to work {v}.|{k}: I commute {v}.",
             me="How do I get to work?", now="{K} commutes {v} now."),
    relation("meeting", "person", "person",
             "{K} met {v} yesterday.|{K} had lunch with {v}.|{K} ran into {v} at the station.|{K} talked to {v} for an hour.",
             "Who did {k} meet?|With whom did {k} have lunch?|Who did {k} talk to?",
             own="{k}: I met {v} yesterday.|{k}: I had lunch with {v}.", me="Who did I meet?|With whom did I have lunch?",
             now="In the end {k} met {v}."),
    relation("weight", "short", "person",
             "{K} weighs {v} pounds.|The scale says {v} pounds for {k}.|{K}'s weight is {v} pounds.",
             "How many pounds does {k} weigh?|What is {k}'s weight in pounds?", own="{k}: I weigh {v} pounds.",
             me="How many pounds do I weigh?", now="{K} weighs {v} pounds now."),
    relation("house number", "short", "person",
             "{K}'s house number is {v}.|{K} lives at number {v}.|Send it to {k} at number {v}.",
             "What is {k}'s house number?|At which number does {k} live?", own="{k}: My house number is {v}.|{k}: We live at number {v}.",
             me="What is my house number?", now="{K}'s house number is now {v}."),
    relation("gift", "thing", "person",
             "{K} wants a {v} for the birthday.|{K} wished for a {v}.|Let's give {k} a {v}.|A {v} would make {k} happy.",
             "What does {k} want for the birthday?|What gift did {k} wish for?", own="{k}: I'd love a {v} for my birthday.",
             me="What do I want for my birthday?", now="{K} would rather have a {v}."),
    relation("manager", "person", "thing",
             "{v} leads {k}.|{K} is led by {v}.|{v} is in charge of {k}.|{v} took over {k}.|The head of {k} is {v}.",
             "Who leads {k}?|Who is in charge of {k}?|Who is the head of {k}?",
             now="{v} leads {k} now.|{v} is the new head of {k}."),
    relation("place", "room", "object",
             "{K} is in the {v}.|I left {k} in the {v}.|I put {k} away in the {v}.|You will find {k} in the {v}.|Someone left {k} in the {v}.",
             "Where is {k}?|Where did I put {k}?|Where can {k} be found?",
             now="{K} is in the {v} now.|I moved {k} to the {v}."),
    relation("relative", "person", "relative",
             "User: My {k}'s name is {v}.|User: My {k} is called {v}.|User: I was talking with {v}, my {k}.|User: {v} is my {k}.|User: "
             "I'd like you to meet {v}, my {k}.",
             "What is my {k}'s name?|What is the name of my {k}?|Who is my {k}?", now="User: My {k} is now {v}.|User: I have a new {k}, {v}."),
    relation("relative home", "city", "relative",
             "User: My {k} lives in {v}.|User: My {k} moved to {v}.|User: I'm visiting my {k} in {v}.",
             "Where does my {k} live?|Which city does my {k} live in?", now="User: My {k} lives in {v} now."),
    relation("relative job", "job", "relative",
             "User: My {k} works as a {v}.|User: My {k} is a {v}.|User: My {k} became a {v}.",
             "What does my {k} do for a living?|What is my {k}'s job?", now="User: My {k} works as a {v} now."),
)

SAY_VARIABLE = ("VAR {k} = {v}", "VAR {k} = {v}", "Set {k} to {v}.", "Let {k} = {v}", "{k} = {v}", "Assign {v} to {k}.",
                "The variable {k} is assigned the value {v}.", "The value of {k} is {v}.")
SAY_ALIAS = ("VAR {k} = VAR {v}", "VAR {k} = {v}", "VAR {k} = VAR {v}", "Set {k} to {v}.", "Let {k} = {v}", "{k} = {v}",
             "Assign {v} to {k}.", "The variable {k} takes the value of {v}.", "{k} has the same value as {v}.", "Copy {v} to {k}.")
ASK_VARIABLE = ("What is the value of {k}?", "What value does VAR {k} hold?", "What value is assigned to {k}?",
                "What number is assigned to the variable {k}?", "What is {k}?")
ASK_HOLDERS = ("Find all variables that are assigned the value {v} in the text above.", "Which variables hold {v}?",
               "Which variables have the value {v}?", "List all variables that are assigned {v}.")
