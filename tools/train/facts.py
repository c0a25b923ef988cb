"""Kinds of facts that can be told and asked, with many ways to say each. Text only.

In a template {k} is the subject, {K} the same with a capital letter, {v} the answer; a slot stands at the beginning or
after a space, so that its tokens are those of the bare words.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One kind of fact.

    `own`: said by the subject itself, a turn of its own; `me`: the question when that is the user; `now`: a newer value
    told with an update word; `all`: asks for every value; `many`: asks for several subjects {ks}.
    """
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


# How a statement begins that is a turn of its own.
OWN_TURN = ("{k}: ", "User: ")

# The words that turn any statement into an update.
UPDATES = ("Correction: {s}", "Update: {s}", "Actually, {s}", "It changed: {s}", "New: {s}", "{s} Forget the old one.",
           "{s} This replaces what was said before.", "From now on: {s}", "Sorry, that was wrong. {s}")

PASS_KEY = relation("pass key", "number", "none",
                    "The pass key is {v}. Remember it. {v} is the pass key.|The passkey is {v}. Remember it.|"
                    "Remember this: the pass key is {v}.",
                    "What is the pass key?|What is the passkey?|What is the pass key? The pass key is",
                    now="The pass key is now {v}.|The pass key was changed to {v}.")

NUMBERED = (
    relation("magic number", "magic", "thing",
             "One of the special magic numbers for {k} is: {v}.|The special magic number for {k} is {v}.|"
             "The special magic number for {k} is: {v}.|The magic number for {k} is {v}.|"
             "A special magic number for {k} is: {v}.|{v} is the special magic number for {k}.|"
             "Note that the magic number of {k} is {v}.",
             "What is the special magic number for {k} mentioned in the provided text?|"
             "What is the special magic number for {k}?|What is the magic number for {k}?|"
             "Which magic number belongs to {k}?|What is the special magic number for {k} mentioned in the text?",
             now="The special magic number for {k} is now {v}.|The magic number for {k} changed to {v}.|"
                 "The new magic number for {k} is {v}.",
             all="What are all the special magic numbers for {k} mentioned in the provided text?|"
                 "What are all the magic numbers for {k}?|List all special magic numbers for {k}.|"
                 "Which magic numbers does {k} have?",
             many="What are the special magic numbers for {ks} mentioned in the provided text?|"
                  "What are all the special magic numbers for {ks}?|What are the magic numbers for {ks}?"),
    relation("magic word", "word", "thing",
             "One of the special magic words for {k} is: {v}.|The special magic word for {k} is {v}.|"
             "The magic word for {k} is: {v}.",
             "What is the special magic word for {k} mentioned in the text?|What is the magic word for {k}?|"
             "Which word belongs to {k}?",
             now="The magic word for {k} is now {v}.|The magic word for {k} changed to {v}.",
             all="What are all the special magic words for {k} mentioned in the text?|"
                 "Which magic words does {k} have?",
             many="What are the special magic words for {ks} mentioned in the text?|"
                  "What are the magic words for {ks}?"),
    relation("key of", "magic", "thing",
             "The pass key for {k} is {v}. Remember it.|The passkey for {k} is {v}.|"
             "The pass key of {k} is {v}. {v} is the pass key of {k}.|Keep the key for {k} in mind: {v}.",
             "What is the pass key for {k}?|What is the passkey of {k}?|Which pass key goes with {k}?",
             now="The pass key for {k} is now {v}.|The pass key for {k} was changed to {v}.",
             all="What are all the pass keys for {k}?|List the pass keys for {k}.",
             many="What are the pass keys for {ks}?|Which pass keys belong to {ks}?"),
    relation("code", "pin", "thing",
             "The code for {k} is {v}.|{v} is the code for {k}.|You can open {k} with {v}.|"
             "The access code of {k} is {v}.|To get into {k}, enter {v}.|{K} has the code {v}.|"
             "The code to {k} is {v}, don't lose it.",
             "What is the code for {k}?|Which code opens {k}?|What is the access code of {k}?|How do I open {k}?",
             now="The code for {k} is now {v}.|The code for {k} changed to {v}.|They reset the code for {k} to {v}.",
             all="What are all the codes for {k}?|Which codes open {k}?|List every code for {k}.",
             many="What are the codes for {ks}?|Which codes open {ks}?"),
    relation("lock", "pin", "lock",
             "The code for {k} is {v}.|You can open {k} with {v}.|{K} opens with {v}.|I set the code of {k} to {v}.",
             "What is the code for {k}?|Which code opens {k}?|What was the code of {k} again?",
             now="The code for {k} is now {v}.|I changed the code of {k} to {v}.",
             all="What are all the codes for {k}?",
             many="What are the codes for {ks}?"),
    relation("price", "price", "item",
             "{K} costs {v}.|I paid {v} for {k}.|{K} came to {v}.|The price of {k} is {v}.|They want {v} for {k}.",
             "How much is {k}?|How much did I pay for {k}?|What does {k} cost?|What is the price of {k}?",
             now="{K} costs {v} now.|The price of {k} changed to {v}.|The price of {k} is now {v}.",
             all="What are all the prices of {k}?",
             many="What do {ks} cost?|What are the prices of {ks}?"),
    relation("cost", "price", "thing",
             "{K} costs {v}.|The price of {k} is {v}.|{K} is worth {v}.|They sold {k} for {v}.",
             "How much is {k}?|What does {k} cost?|What is the price of {k}?",
             now="{K} costs {v} now.|The price of {k} rose to {v}.|The price of {k} is now {v}.",
             all="What are all the prices of {k}?",
             many="What are the prices of {ks}?"),
    relation("number", "digits", "thing",
             "The number of {k} is {v}.|{K} has the number {v}.|Number {v} belongs to {k}.|"
             "{K} is listed as number {v}.|For {k} dial {v}.|The serial number of {k} is {v}.",
             "What is the number of {k}?|Which number belongs to {k}?|What number does {k} have?",
             now="The number of {k} is now {v}.|The number of {k} changed to {v}.|{K} got a new number: {v}.",
             all="What are all the numbers of {k}?|Which numbers belong to {k}?",
             many="What are the numbers of {ks}?"),
    relation("phone", "phone", "person",
             "You can reach {k} at {v}.|{K} can be called at {v}.|The phone number of {k} is {v}.|Call {k} on {v}.",
             "What is the phone number of {k}?|How can I reach {k}?|Which number do I call for {k}?",
             own="{k}: My number is {v}.|{k}: You can reach me at {v}.",
             me="What is my phone number?|Which number is mine?",
             now="The phone number of {k} is now {v}.|{K} has a new number, {v}.",
             all="What are all the phone numbers of {k}?",
             many="What are the phone numbers of {ks}?"),
    relation("variable", "number", "variable",
             "VAR {k} = {v}|Set {k} to {v}.|Let {k} = {v}|{k} = {v}|The variable {k} is assigned the value {v}.|"
             "Assign {v} to {k}.|The value of {k} is {v}.",
             "What value is assigned to {k}?|What is the value of {k}?|What value does {k} hold?|What is {k} set to?",
             now="{k} is now {v}.|Set {k} to {v} instead.|The value of {k} changed to {v}.|Reassign {k} to {v}.",
             all="What are all the values assigned to {k}?",
             many="What are the values of {ks}?"),
    relation("entry", "any", "thing",
             "{K} -> {v}|{K}: {v}|Remember that {k} means {v}.|They renamed {k} to {v}.|Set {k} to {v}.|"
             "{K} stands for {v}.|In our list {k} maps to {v}.|The entry for {k} reads {v}.|Write down {v} for {k}.",
             "What does {k} map to?|What is the entry for {k}?|What does {k} stand for?|What is the value of {k}?",
             now="{K} now maps to {v}.|The entry for {k} was changed to {v}.|{K} means {v} now.",
             all="What are all the entries for {k}?|List everything that {k} maps to.",
             many="What are the entries for {ks}?"),
    relation("appointment", "date", "event",
             "{K} is on {v}.|Don't forget {k} on {v}.|{K} takes place on {v}.|I have {k} on {v}.|"
             "They set {k} for {v}.",
             "When is {k}?|What date is {k}?|On which day is {k}?|What is the date of {k}?",
             now="{K} was moved to {v}.|{K} is now on {v}.|They changed the date of {k} to {v}.",
             all="What are all the dates of {k}?",
             many="When are {ks}?|What are the dates of {ks}?"),
    relation("hour", "time", "event",
             "{K} starts at {v}.|{K} begins at {v}.|Be there for {k} at {v}.|{K} is at {v}.",
             "At what time does {k} start?|What time is {k}?|When does {k} begin?",
             now="{K} starts at {v} now.|{K} was moved to {v}.",
             all="What are all the times of {k}?",
             many="At what times do {ks} start?"),
    relation("deadline", "date", "thing",
             "The deadline for {k} is {v}.|{K} is due on {v}.|{K} must be ready by {v}.|Finish {k} by {v}.",
             "What is the deadline for {k}?|When is {k} due?|By when must {k} be ready?",
             now="The deadline for {k} is now {v}.|The deadline for {k} was moved to {v}.",
             all="What are all the deadlines for {k}?",
             many="What are the deadlines for {ks}?"),
)

# Those that any subject can have.
FREE_KEYS = tuple(one for one in NUMBERED if one.key in ("thing", "variable"))

# Here {a} is an attribute drawn with the subject.
ATTRIBUTE = relation("attribute", "any", "thing",
                     "{K}'s {a} is {v}.|The {a} for {k} is {v}.|I wrote down {k}'s {a}: {v}.|{v} is the {a} of {k}.|"
                     "For {k}, the {a} would be {v}, please keep it.|The {a} of {k} is {v}.|"
                     "As {a} for {k} they chose {v}.|{K} has {v} as {a}.|{K}, {a}: {v}",
                     "What is {k}'s {a}?|What is the {a} for {k}?|What is the {a} of {k}?|Which {a} does {k} have?|"
                     "Which {a} did I give for {k}?",
                     own="{k}: My {a} is {v}.|{k}: As {a} I use {v}.|{k}: Note my {a}, {v}.",
                     me="What is my {a}?|Which {a} do I have?",
                     now="{K}'s {a} is now {v}.|The {a} for {k} changed to {v}.|{K} got a new {a}: {v}.|"
                         "The {a} of {k} was replaced by {v}.",
                     all="What are all values of the {a} for {k}?|List every {a} of {k}.",
                     many="What is the {a} for {ks}?|What is the {a} of {ks}?")

PERSONAL = (
    relation("home", "city", "person",
             "{K} moved to {v} last year.|{K} lives in {v}.|By the way, {k} just relocated to {v}.|"
             "{K} found a flat in {v}.|{K} has settled in {v}.",
             "Where does {k} live?|Which city did {k} move to?|In which city is {k} at home?",
             own="{k}: I moved to {v} in spring.|{k}: I live in {v}.|{k}: I've been living in {v} for a while.|"
                 "{k}: We bought a house in {v}.",
             me="Where do I live?|Which city did I move to?|Where does the user live?",
             now="{K} lives in {v} now.|{K} moved again, to {v} this time.|{K} has moved to {v}."),
    relation("birthplace", "city", "person",
             "{K} grew up in {v}.|{K} comes from {v}.|{K} was raised in {v}.|{K} is originally from {v}.",
             "Where did {k} grow up?|Where does {k} come from?|Where is {k} from?",
             own="{k}: I grew up in {v}.|{k}: I'm originally from {v}.",
             me="Where did I grow up?|Where am I from?",
             now="It turns out that {k} grew up in {v}."),
    relation("food", "food", "person",
             "{K}'s favorite food is {v}.|{K} could eat {v} every day.|Nothing beats {v}, says {k}.|"
             "{K} loves {v} above all.",
             "What is {k}'s favorite food?|What food does {k} love most?|Which dish does {k} like best?",
             own="{k}: My favorite food is {v}.|{k}: I could eat {v} every day.|{k}: Honestly, I love {v}.",
             me="What is my favorite food?|Which dish do I like best?",
             now="{K}'s favorite food is now {v}.|These days {k} prefers {v}."),
    relation("drink", "drink", "person",
             "{K} always orders {v}.|{K}'s favorite drink is {v}.|{K} drinks nothing but {v}.|Bring {v} for {k}.",
             "What does {k} like to drink?|What is {k}'s favorite drink?|What does {k} always order?",
             own="{k}: I always drink {v}.|{k}: I'd like {v}, as ever.|{k}: My favorite drink is {v}.",
             me="What do I like to drink?|What is my favorite drink?",
             now="{K} switched to {v}.|{K} drinks {v} now."),
    relation("job", "job", "person",
             "{K} works as a {v}.|{K} got hired as a {v}.|{K} is a {v} by trade.|{K} earns a living as a {v}.|"
             "{K} trained as a {v}.",
             "What does {k} do for a living?|What is {k}'s job?|What does {k} work as?",
             own="{k}: I work as a {v}.|{k}: I'm a {v}.|{k}: I got a job as a {v}.",
             me="What do I do for a living?|What is my job?|What does the user work as?",
             now="{K} works as a {v} now.|{K} changed jobs and became a {v}.|{K} is a {v} now."),
    relation("employer", "proper", "person",
             "{K} works at {v}.|{K} took a position with {v}.|{K} has a desk at {v}.|{K} signed a contract with {v}.",
             "Where does {k} work?|Which company does {k} work for?|Who employs {k}?",
             own="{k}: I work at {v}.|{k}: I started at {v} last month.|{k}: My employer is {v}.",
             me="Where do I work?|Which company do I work for?",
             now="{K} works at {v} now.|{K} left and joined {v}."),
    relation("pet", "pet_name", "person",
             "{K} has a dog named {v}.|{K}'s dog is called {v}.|{K} adopted a dog and named it {v}.|"
             "{K} walks a dog called {v}.",
             "What is the name of {k}'s dog?|What is {k}'s dog called?|Which name did {k} give the dog?",
             own="{k}: My dog is called {v}.|{k}: I have a dog named {v}.|{k}: I named my dog {v}.",
             me="What is my dog called?|What is the name of my dog?",
             now="{K}'s dog is now called {v}."),
    relation("cat", "pet_name", "person",
             "{K} has a cat named {v}.|{K}'s cat is called {v}.|{K} took in a stray cat and calls it {v}.|"
             "{K} feeds a cat called {v}.",
             "What is the name of {k}'s cat?|What is {k}'s cat called?",
             own="{k}: My cat is called {v}.|{k}: We have a cat, {v}.|{k}: I got a cat named {v}.",
             me="What is my cat called?|What is the name of my cat?",
             now="{K}'s cat is now called {v}."),
    relation("instrument", "instrument", "person",
             "{K} plays the {v}.|{K} has been practicing the {v} for years.|{K} takes lessons on the {v}.|"
             "{K} bought a used {v}.",
             "Which instrument does {k} play?|What instrument is {k} learning?",
             own="{k}: I play the {v}.|{k}: I'm learning the {v}.|{k}: I practise the {v} every evening.",
             me="Which instrument do I play?|What instrument am I learning?",
             now="{K} plays the {v} now.|{K} switched to the {v}."),
    relation("birthday", "date", "person",
             "{K}'s birthday is on {v}.|{K} was born on {v}.|We celebrate {k}'s birthday on {v}.|"
             "{K} has a birthday on {v}.",
             "When is {k}'s birthday?|On what date was {k} born?|When was {k} born?",
             own="{k}: My birthday is on {v}.|{k}: I was born on {v}.",
             me="When is my birthday?|When was I born?",
             now="{K}'s birthday is really on {v}."),
    relation("hobby", "hobby", "person",
             "{K} took up {v} recently.|{K} is really into {v}.|{K} spends weekends with {v}.|{K}'s hobby is {v}.",
             "What hobby did {k} take up?|What is {k} into?|What does {k} do on weekends?|What is {k}'s hobby?",
             own="{k}: I took up {v}.|{k}: I'm really into {v}.|{k}: My hobby is {v}.",
             me="What is my hobby?|What do I do on weekends?",
             now="{K} gave that up for {v}.|{K} is into {v} now."),
    relation("color", "color", "person",
             "{K}'s favorite color is {v}.|{K} painted the bedroom {v}, a favorite color.|"
             "{K} always picks {v} over other colors.",
             "What is {k}'s favorite color?|Which color does {k} like best?",
             own="{k}: My favorite color is {v}.|{k}: I like {v} best of all colors.",
             me="What is my favorite color?|Which color do I like best?",
             now="{K}'s favorite color is now {v}."),
    relation("allergy", "allergy", "person",
             "{K} is allergic to {v}.|{K} has an allergy to {v}.|{K} can't be around {v} because of an allergy.|"
             "Careful, {k} does not tolerate {v}.",
             "What is {k} allergic to?|Which allergy does {k} have?|What must {k} avoid?",
             own="{k}: I'm allergic to {v}.|{k}: I have an allergy to {v}.|{k}: I can't stand {v}, it's an allergy.",
             me="What am I allergic to?|Which allergy do I have?|What is the user allergic to?",
             now="The test says that {k} is allergic to {v}."),
    relation("seat", "seat", "person",
             "{K}'s seat is {v}.|{K} will sit in seat {v}.|{K} booked seat {v}.|Seat {v} is for {k}.",
             "Which seat does {k} have?|What is {k}'s seat?|Where will {k} sit?",
             own="{k}: My seat is {v}.|{k}: I booked seat {v}.",
             me="Which seat do I have?|What is my seat?",
             now="{K}'s seat is now {v}.|{K} was moved to seat {v}."),
    relation("holiday", "city", "person",
             "{K} is going to {v} on vacation.|{K} booked a trip to {v}.|{K}'s next holiday is in {v}.|"
             "{K} will fly to {v} in summer.",
             "Where is {k} going on vacation?|Where did {k} book a trip to?|Where is {k}'s next holiday?",
             own="{k}: I'm going to {v} on vacation.|{k}: I booked a trip to {v}.|{k}: Next summer I fly to {v}.",
             me="Where am I going on vacation?|Where did I book a trip to?",
             now="{K} is going to {v} instead.|{K}'s trip now goes to {v}."),
    relation("book", "title", "person",
             "{K} is reading {v}.|{K} just finished the book {v}.|{K} recommended {v} to me.|"
             "{K} borrowed {v} from the library.",
             "Which book is {k} reading?|What book did {k} recommend?",
             own="{k}: I'm reading {v}.|{k}: I just bought the book {v}.",
             me="Which book am I reading?|What book did I buy?",
             now="{K} is reading {v} now."),
    relation("language", "language", "person",
             "{K} is learning {v}.|{K} takes a course in {v}.|{K} wants to speak {v} by summer.|"
             "{K} studies {v} in the evening.",
             "Which language is {k} learning?|What language does {k} study?",
             own="{k}: I'm learning {v}.|{k}: I take a {v} course.",
             me="Which language am I learning?",
             now="{K} is learning {v} now."),
    relation("studies", "subject", "person",
             "{K} studies {v}.|{K} has a degree in {v}.|{K} graduated in {v}.|{K} majored in {v}.",
             "What did {k} study?|In what does {k} have a degree?|What was {k}'s major?",
             own="{k}: I studied {v}.|{k}: I have a degree in {v}.",
             me="What did I study?|In what do I have a degree?",
             now="{K} changed to {v}."),
    relation("sport", "sport", "person",
             "{K} plays {v} on weekends.|{K} trains {v} twice a week.|{K}'s sport is {v}.|{K} joined a club for {v}.",
             "Which sport does {k} play?|What is {k}'s sport?",
             own="{k}: I play {v}.|{k}: My sport is {v}.",
             me="Which sport do I play?|What is my sport?",
             now="{K} plays {v} now."),
    relation("spouse", "person", "person",
             "{K} is married to {v}.|{K} married {v} in June.|{K}'s spouse is {v}.|{K} shares a home with {v}.",
             "Who is {k} married to?|Who is {k}'s spouse?",
             own="{k}: I'm married to {v}.|{k}: My spouse is called {v}.",
             me="Who am I married to?|What is my spouse called?",
             now="{K} is married to {v} now."),
    relation("child", "person", "person",
             "{K}'s daughter is called {v}.|{K} has a daughter named {v}.|"
             "{K} takes little {v}, the daughter, to school.",
             "What is {k}'s daughter called?|What is the name of {k}'s daughter?",
             own="{k}: My daughter is called {v}.|{k}: I have a daughter, {v}.",
             me="What is my daughter called?",
             now="{K}'s daughter now goes by {v}."),
    relation("doctor", "person", "person",
             "{K}'s doctor is {v}.|{K} sees {v} about the knee.|{K} has an appointment with {v}, the doctor.|"
             "{v} treats {k}.",
             "Who is {k}'s doctor?|Which doctor does {k} see?",
             own="{k}: My doctor is {v}.|{k}: I see {v} about my back.",
             me="Who is my doctor?|Which doctor do I see?",
             now="{K}'s doctor is now {v}.|{K} changed doctors, to {v}."),
    relation("car", "proper", "person",
             "{K} drives a {v}.|{K} bought a second-hand {v}.|{K}'s car is a {v}.|{K} parked the {v} outside.",
             "What car does {k} drive?|What is {k}'s car?",
             own="{k}: I drive a {v}.|{k}: My car is a {v}.",
             me="What car do I drive?|What is my car?",
             now="{K} drives a {v} now.|{K} sold it and bought a {v}."),
    relation("commute", "transport", "person",
             "{K} gets to work {v}.|{K} commutes {v}.|{K} travels to the office {v}.",
             "How does {k} get to work?|How does {k} commute?",
             own="{k}: I get to work {v}.|{k}: I commute {v}.",
             me="How do I get to work?",
             now="{K} commutes {v} now."),
    relation("meeting", "person", "person",
             "{K} met {v} yesterday.|{K} had lunch with {v}.|{K} ran into {v} at the station.|"
             "{K} talked to {v} for an hour.",
             "Who did {k} meet?|With whom did {k} have lunch?|Who did {k} talk to?",
             own="{k}: I met {v} yesterday.|{k}: I had lunch with {v}.",
             me="Who did I meet?|With whom did I have lunch?",
             now="In the end {k} met {v}."),
    relation("weight", "short", "person",
             "{K} weighs {v} pounds.|The scale says {v} pounds for {k}.|{K}'s weight is {v} pounds.",
             "How many pounds does {k} weigh?|What is {k}'s weight in pounds?",
             own="{k}: I weigh {v} pounds.",
             me="How many pounds do I weigh?",
             now="{K} weighs {v} pounds now."),
    relation("house number", "short", "person",
             "{K}'s house number is {v}.|{K} lives at number {v}.|Send it to {k} at number {v}.",
             "What is {k}'s house number?|At which number does {k} live?",
             own="{k}: My house number is {v}.|{k}: We live at number {v}.",
             me="What is my house number?",
             now="{K}'s house number is now {v}."),
    relation("gift", "thing", "person",
             "{K} wants a {v} for the birthday.|{K} wished for a {v}.|Let's give {k} a {v}.|"
             "A {v} would make {k} happy.",
             "What does {k} want for the birthday?|What gift did {k} wish for?",
             own="{k}: I'd love a {v} for my birthday.",
             me="What do I want for my birthday?",
             now="{K} would rather have a {v}."),
    relation("manager", "person", "thing",
             "{v} leads {k}.|{K} is led by {v}.|{v} is in charge of {k}.|{v} took over {k}.|The head of {k} is {v}.",
             "Who leads {k}?|Who is in charge of {k}?|Who is the head of {k}?",
             now="{v} leads {k} now.|{v} is the new head of {k}."),
    relation("place", "room", "object",
             "{K} is in the {v}.|I left {k} in the {v}.|I put {k} away in the {v}.|You will find {k} in the {v}.|"
             "Someone left {k} in the {v}.",
             "Where is {k}?|Where did I put {k}?|Where can {k} be found?",
             now="{K} is in the {v} now.|I moved {k} to the {v}."),
    relation("relative", "person", "relative",
             "User: My {k}'s name is {v}.|User: My {k} is called {v}.|User: I was talking with {v}, my {k}.|"
             "User: {v} is my {k}.|User: I'd like you to meet {v}, my {k}.",
             "What is my {k}'s name?|What is the name of my {k}?|Who is my {k}?",
             now="User: My {k} is now {v}.|User: I have a new {k}, {v}."),
    relation("relative home", "city", "relative",
             "User: My {k} lives in {v}.|User: My {k} moved to {v}.|User: I'm visiting my {k} in {v}.",
             "Where does my {k} live?|Which city does my {k} live in?",
             now="User: My {k} lives in {v} now."),
    relation("relative job", "job", "relative",
             "User: My {k} works as a {v}.|User: My {k} is a {v}.|User: My {k} became a {v}.",
             "What does my {k} do for a living?|What is my {k}'s job?",
             now="User: My {k} works as a {v} now."),
)

SAY_VARIABLE = ("VAR {k} = {v}", "VAR {k} = {v}", "Set {k} to {v}.", "Let {k} = {v}", "{k} = {v}", "Assign {v} to {k}.",
                "The variable {k} is assigned the value {v}.", "The value of {k} is {v}.")
SAY_ALIAS = ("VAR {k} = VAR {v}", "VAR {k} = {v}", "VAR {k} = VAR {v}", "Set {k} to {v}.", "Let {k} = {v}", "{k} = {v}",
             "Assign {v} to {k}.", "The variable {k} takes the value of {v}.", "{k} has the same value as {v}.",
             "Copy {v} to {k}.")
ASK_VARIABLE = ("What is the value of {k}?", "What value does VAR {k} hold?", "What value is assigned to {k}?",
                "What number is assigned to the variable {k}?", "What is {k}?")
ASK_HOLDERS = ("Find all variables that are assigned the value {v} in the text above.", "Which variables hold {v}?",
               "Which variables have the value {v}?", "List all variables that are assigned {v}.")
