"""Words, keys, and values that cannot be guessed, drawn at random."""
import random

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
    "sport": """tennis, rugby, handball, cricket, hockey, volleyball, basketball, rowing, badminton, golf, football,
        judo""",
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
ANY_KINDS = ("digits", "digits", "digits", "code", "word", "word", "phrase", "proper", "date", "time")
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
        return f"{self.pick('day')} {self.pick('month')} {day}" if roll < 0.9 else f"{day} {self.pick('month')}"

    def time(self) -> str:
        hour, minute = self.rng.randint(1, 12), self.rng.randint(0, 59)
        if self.rng.random() < 0.6:
            return f"{hour}:{minute:02d} {self.choice(('am', 'pm'))}"
        return f"{hour + 8}:{minute:02d}"

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
            kind = self.choice(ANY_KINDS)
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
            case "title":
                link = self.choice(("of", "and the", "under the"))
                return f"The {self.word().title()} {link} {self.word().title()}"
        # A closed list could be learned by heart, so that other words of the corpus stand in for half of them.
        if kind in ("city", "pet_name") and self.rng.random() < 0.5:
            return self.proper()
        return self.pick(kind)

    def key(self, kind: str) -> str:
        """A subject: `thing` (words, pairs, codes), `variable`, `person`, `relative`, `object`, or a list's name."""
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
