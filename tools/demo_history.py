#!/usr/bin/env python3
"""Makes up eight months of chat between a person and an assistant, for tools/demo.sh.

Usage: demo_history.py [--seed N]              the history, a turn a line: {"role", "content", "time"}
       demo_history.py [--seed N] --questions  a fact a line, tab-separated: its turn, a question, the answer

About 30,000 tokens of talk about cooking, work, the garden and so on, with five facts told once each, far apart, as
turns of their own. The same seed gives the same history. Python's standard library only.
"""
import argparse
import datetime
import json
import random
import re

# (where in the history, what the person says, what is asked later, what the answer must hold)
FACTS = [
    (0.08, "The code for the boat shed is 4718.", "What is the code for the boat shed?", "4718"),
    (0.29, "My piano teacher is called Ottilie.", "What is the name of my piano teacher?", "Ottilie"),
    (0.50, "Theo is allergic to hazelnuts.", "What is Theo allergic to?", "hazelnuts"),
    (0.71, "I put the spare house key in the blue teapot.", "Where did I put the spare house key?", "blue teapot"),
    (0.92, "I paid 385 euros for the accordion repair.", "How much did I pay for the accordion repair?", "385 euros"),
]
ACKNOWLEDGED = ["Noted.", "Good to know, I will keep it in mind.", "Thanks for telling me.", "All right, I have that "
                "now."]

CONVERSATIONS = 240  # one a day
FIRST_DAY = datetime.datetime(2026, 1, 5)

# A conversation is an opening, an answer of three pieces of advice, and an end of a remark and a last word, all on one
# theme. A slot such as {dish} keeps its word throughout a conversation.
THEMES = [
    dict(
        slots=dict(
            dish=["leek soup", "mushroom risotto", "lentil stew", "onion tart", "fish pie", "potato salad",
                  "carrot curry", "bean chili", "pumpkin gratin", "spinach lasagna", "barley broth", "tomato sauce"],
            trouble=["too salty", "rather bland", "watery", "burnt at the bottom", "a little bitter", "far too thick"],
            guests=["four colleagues", "my cousins", "the people from upstairs", "two old friends", "the book club"]),
        openings=["I want to make {dish} on Saturday, because {guests} are coming. Last time it came out {trouble}. "
                  "What should I do differently?",
                  "My {dish} turned out {trouble} again. I followed the recipe to the letter, more or less, and "
                  "{guests} were polite about it.",
                  "Can {dish} be made a day ahead? {guests} will be here right after work and I would like to sit "
                  "down with them."],
        advice=["Take the heat down earlier than the recipe says, and give it ten minutes more instead.",
                "Season in three small steps, at the start, in the middle and just before it goes to the table.",
                "A spoon of vinegar at the very end wakes up almost any dish.",
                "If it is {trouble}, a boiled potato or a splash of cream will carry a good part of that away.",
                "Most of the flavour of {dish} comes from the first quarter of an hour, so let the onions take their "
                "time.",
                "It keeps well overnight when you cool it quickly and cover it while it is still a bit warm."],
        ends=[("That makes sense, I always rush the onions. I will try it with half the stock first.",
               "Good plan. For {guests} I would make a third more than you think you need."),
              ("I have vinegar but no cream in the house. Would yoghurt do as well?",
               "Yoghurt does, if you take the pot off the stove first so that it does not curdle."),
              ("Fine, then I will cook it the evening before and only warm it up.",
               "Yes, that works. Warm it slowly, stir now and then, and taste once more before you serve it.")]),
    dict(
        slots=dict(
            plant=["tomato seedlings", "the old rose", "the fig tree", "the courgettes", "the lavender hedge",
                   "the raspberries", "the apple tree", "the sweet peas", "the chard", "the hydrangea"],
            sign=["yellow leaves", "brown edges", "tiny holes", "white dust on the stems", "hardly any buds",
                  "long thin shoots"],
            spot=["along the south wall", "behind the compost", "next to the rain barrel", "under the walnut",
                  "on the balcony"]),
        openings=["I looked after {plant} {spot} this morning and found {sign}. It rained for most of the week. Is "
                  "that something to worry about?",
                  "What would you do about {sign} on {plant}? The place {spot} gets sun until about three.",
                  "I am thinking of moving {plant}. The place {spot} is free now, but I do not want to lose a whole "
                  "season over it."],
        advice=["Start with the soil: push a finger in as far as it goes, and water only when it comes out dry.",
                "With {sign} the cause is more often too much water than too little.",
                "Cut away what looks worst, with a clean blade, and leave the rest alone for a fortnight.",
                "A thin layer of compost around the stem does more than any bottle from the shop.",
                "If you move anything, do it on a dull day, with as much earth around the roots as you can lift.",
                "Look at the underside of the leaves in the evening, because that is where the culprits sit."],
        ends=[("The soil is soaked, I must admit. I watered by habit, rain or no rain.",
               "Then let it dry out and see. Plants forgive a dry week sooner than a wet one."),
              ("I cut off three branches now. It looks naked, but tidy.",
               "It will fill out again by the time the days get long."),
              ("There were indeed small green things under the leaves, dozens of them.",
               "Wash them off with a hose, three days in a row, and most of them will not come back.")]),
    dict(
        slots=dict(
            client=["the harbour museum", "the tram company", "the housing cooperative", "the dairy",
                    "the city archive", "the choir association", "the observatory", "the weather service"],
            piece=["quarterly report", "floor plan", "grant proposal", "budget table", "opening speech", "survey",
                   "slide deck"],
            snag=["half of the numbers are missing", "nobody answers my mail", "the deadline was moved forward",
                  "two departments contradict each other", "the template changed again"]),
        openings=["I am stuck with the {piece} for {client}, since {snag}. How would you go on from here?",
                  "Tomorrow I have to present the {piece} to {client}. The problem is that {snag}, and I have forty "
                  "minutes at most.",
                  "Could you help me to write a short mail to {client}? It should say that the {piece} will be late "
                  "because {snag}, without sounding like an excuse."],
        advice=["Write down the one sentence that {client} should remember, and let everything else lead up to it.",
                "Say openly what you do not know yet, and by when you will know it.",
                "Put the tables into an appendix, so that the first page can be read standing up.",
                "A mail of four lines gets an answer, and a mail of forty gets put aside.",
                "Ask for ten minutes on the phone rather than for another round of comments.",
                "Send the {piece} as it is to one person you trust, and ask only what is unclear."],
        ends=[("Right, I was hiding behind the tables. I will turn it around tonight.",
               "Good luck with {client}. Leave the last five minutes for questions and do not fill them yourself."),
              ("I called them instead and it was settled in five minutes, which is a bit embarrassing.",
               "Nothing to be ashamed of. Put the outcome in writing today, so that both of you have it."),
              ("The one sentence is harder than the other twenty pages together.",
               "It usually is, and the other pages become shorter once you have it.")]),
    dict(
        slots=dict(
            distance=["five kilometres", "eight kilometres", "half an hour", "the lake loop", "twelve kilometres",
                      "the hill route"],
            ache=["my left knee", "my shins", "the sole of my foot", "my lower back", "my right hip"],
            weather=["drizzle", "a head wind", "bright frost", "fog over the fields",
                     "the first warm air of the year", "sleet"]),
        openings=["I ran {distance} in {weather} this morning, slower than last week. Afterwards I felt it in {ache}. "
                  "Should I take a break?",
                  "How do I get from where I am to a half marathon by autumn? At the moment I manage {distance}, and "
                  "then comes the trouble with {ache}.",
                  "There was {weather} today and I went out all the same. After {distance} I had to walk the rest, "
                  "because of {ache}."],
        advice=["Stiff is fine, sharp is not, so judge it again tomorrow morning on the stairs.",
                "Run the slow days slowly enough to talk in whole sentences.",
                "Add no more than a tenth a week, and every fourth week take some of it off again.",
                "Two short sessions of strength work do more for it than new shoes.",
                "Write down how you slept before each run, since that explains most of the bad ones.",
                "Warm up by walking for five minutes, above all in {weather}."],
        ends=[("On the stairs it was gone. I will do two easy days anyway.",
               "Two easy days cost nothing. Tell me how {distance} feels at the weekend."),
              ("Talking in whole sentences means that I am slower than the dogs in the park.",
               "Then you are doing it right. The speed comes by itself after a couple of months."),
              ("I slept five hours, so there is your explanation.",
               "Sleep first, then distance, then speed, in that order.")]),
    dict(
        slots=dict(
            book=["the novel about the lighthouse keepers", "that thick history of salt",
                  "the crime story set in a monastery",
                  "the diary of the mountain doctor", "the essays on maps", "the one about the twin sisters",
                  "the biography of the clockmaker"],
            view=["slow, but I cannot put it down", "clever and a little cold", "better than the reviews say",
                  "hard going after page one hundred", "full of people with the same name"],
            where=["on the train", "in bed", "in the waiting room", "at the kitchen table",
                   "on the bench by the canal"]),
        openings=["I have started {book}. So far it is {view}. I read it {where}, twenty pages at a time. Do you "
                  "think I should go on?",
                  "What should I read after {book}? I found it {view}, and I would like something shorter now.",
                  "We talked about {book} at the club yesterday. Most of them called it {view}, and I was the only "
                  "one who disagreed."],
        advice=["Give a book fifty pages, and after that you owe it nothing.",
                "If twenty pages {where} is your rhythm, choose something with short chapters.",
                "Try a book of letters next, because it lets you stop anywhere.",
                "Being the only one who disagrees is the best reason to have a club.",
                "Write a line about each chapter on the last page, and you will not need to leaf back.",
                "Sometimes a translation is to blame, so compare the first page of another one."],
        ends=[("Letters are a good idea. My grandmother kept hundreds of them in a hat box.",
               "Hat boxes are the finest libraries. You could begin with those."),
              ("I gave it another fifty pages and now I like even the slow parts.",
               "Then stay with it. A book that is {view} often has its best part at the end."),
              ("The translation is from the fifties and it shows in every dialogue.",
               "A newer one may read quite differently, and the library can get it within a week.")]),
    dict(
        slots=dict(
            town=["Trieste", "Gdansk", "Bergen", "Ghent", "Ljubljana", "Porto", "Tartu", "Lucerne", "Bilbao"],
            days=["three days", "a long weekend", "five days", "a week"],
            wish=["see the market halls", "walk along the water", "visit the small museums", "do nothing at all",
                  "take the night train"]),
        openings=["I have {days} off in spring and think of {town}. I would like to {wish} and avoid the crowds. Does "
                  "that work?",
                  "What would you pack for {days} in {town}? I want to {wish} and take hand luggage only.",
                  "The trip to {town} is off for now, the fares have doubled. We only wanted to {wish} for {days}."],
        advice=["Go in the middle of the week, when the rooms cost less and the cafes have time for you.",
                "Stay near the station in {town}, because everything that you want to see is within half an hour on "
                "foot.",
                "Two pairs of shoes, one jacket against rain and half of the shirts that you planned.",
                "Book only the first night and the way back, and leave the days between open.",
                "The fares fall again about six weeks before, if you can bear to wait.",
                "For {days} one good plan a day is enough, and a bad one is soon forgotten."],
        ends=[("Half of the shirts it is. Last time I carried four of them through {town} and back, unworn.",
               "Then there is room for something to bring back."),
              ("I found a room over a bakery, which settles the question of breakfast.",
               "A bakery below also settles when you get up. Enjoy {town}."),
              ("Six weeks before is when I usually lose my nerve and pay.",
               "Set a limit now and buy on the first day below it, then you can stop looking.")]),
    dict(
        slots=dict(
            machine=["the washing machine", "the old bicycle", "the boiler", "the kitchen tap", "the vacuum cleaner",
                     "the sewing machine", "the dishwasher", "the coffee grinder"],
            noise=["a grinding noise", "a high whistle", "a slow drip", "a knocking in the wall", "a smell of rubber"],
            tool=["an adjustable spanner", "a torch", "a bucket and a rag", "a flat screwdriver",
                  "some plumber's tape"]),
        openings=["There is {noise} whenever I use {machine}. It began on Monday. I own {tool} and not much else.",
                  "I took {machine} apart because of {noise}, and now there is one screw left over. How bad is that?",
                  "Is it worth having {machine} mended? It is eleven years old, and {noise} comes and goes."],
        advice=["Before anything else, pull the plug or close the valve.",
                "Take a picture after every step, so that the way back is only the pictures in reverse.",
                "Nine times out of ten {noise} comes from a worn seal, which is the cheapest part of all.",
                "With {tool} you can at least open the cover and see whether something is loose.",
                "Type the number from the label into a search for spare parts, and compare three shops.",
                "Old machines are worth mending once more, but put money aside for the next one."],
        ends=[("It was a seal indeed, hard as wood. The new one is in the post.",
               "Keep the old seal until the new one has been in for a week."),
              ("I found a coin and two hairpins in there. The noise has gone.",
               "Coins and hairpins are the classic. Check the pockets and it will stay quiet."),
              ("The screw belonged to the cover, I saw it on the third picture.",
               "The pictures pay off every time. Well done.")]),
    dict(
        slots=dict(
            language=["Finnish", "Portuguese", "Polish", "Greek", "Japanese", "Welsh"],
            hurdle=["the endings", "the numbers", "the sound of it on the phone", "the word order",
                    "the verbs of motion"],
            habit=["ten words a day", "one song a week", "the news for slow listeners", "a page of a children's book"]),
        openings=["My {language} is standing still, and it is {hurdle} that defeats me. I do {habit}. What else could "
                  "I try?",
                  "In the {language} class we did {hurdle} today. I understood every rule and got every exercise "
                  "wrong.",
                  "How long does it take until {language} feels natural? I have kept up {habit} since the winter."],
        advice=["Say whole sentences aloud, even to the kettle, because single words do not stick.",
                "Leave {hurdle} alone for a month and only listen, as children do.",
                "Keep {habit}, but fix the time of day, so that it needs no decision.",
                "Find one person to talk to for half an hour a week, and agree not to switch languages.",
                "Write three lines each evening about what happened, with the words that you have.",
                "It feels natural in patches, first at the market, then on the phone, and last in a quarrel."],
        ends=[("The kettle now knows how to order a train ticket.",
               "Then the kettle is ahead of most beginners."),
              ("I wrote three lines about the rain. It took me half an hour and I was proud of it.",
               "Keep the lines. In summer you will read them again and be surprised."),
              ("A neighbour of my colleague speaks it. We will meet for tea.",
               "Tea is perfect, nobody minds a pause over tea.")]),
    dict(
        slots=dict(
            expense=["heating", "eating out", "train tickets", "books and magazines", "presents", "the phone bill"],
            aim=["a new mattress", "a month without work", "a better microphone",
                 "the roof of the shed at my parents' house", "a folding bicycle"],
            amount=["a tenth", "about a fifth", "nearly a quarter", "a good third"]),
        openings=["I added up what I spent last month, and {amount} of it went into {expense}. I would like to save "
                  "for {aim}. Where would you begin?",
                  "Is there a simple way to keep track of {expense}? I do not want another app, and I am saving for "
                  "{aim}.",
                  "Good news, what I spend on {expense} fell to {amount}. What is left goes to {aim}."],
        advice=["Move the money on the first of the month, not what is left of it on the last.",
                "A sheet of paper on the fridge is enough for {expense}, with one stroke each time.",
                "Look at the three largest items only, for the small ones follow by themselves.",
                "Give {aim} an account of its own, so that you can watch it grow.",
                "Wait a week before you buy anything that you saw by chance.",
                "Do not cut what you enjoy, cut what you forget about."],
        ends=[("The sheet on the fridge has eleven strokes already, and it is only the ninth.",
               "Eleven honest strokes are better than none. See what next month brings."),
              ("I cancelled two subscriptions that I had forgotten about since last year.",
               "Then begin with those two and leave the rest as it is."),
              ("The account is called {aim} now, which makes it harder to take from.",
               "That is half of the trick. The other half is patience.")]),
    dict(
        slots=dict(
            evening=["could not fall asleep", "woke up at four", "lay awake until two", "fell asleep on the sofa"],
            reason=["the street lamp", "too much coffee", "a head full of lists", "the neighbours' party",
                    "the change of the clocks"],
            remedy=["a book without a plot", "the radio at its lowest", "a short walk", "warm milk",
                    "cold feet out of the blanket"]),
        openings=["I {evening} again, probably because of {reason}. I tried {remedy}, without much success. Any ideas?",
                  "Tell me something calm, please. I {evening}, and {reason} does not help.",
                  "How many hours do people really need? I {evening} three times this week and felt fine twice."],
        advice=["Get up at the same time for a week, whatever the night was like.",
                "Put the lists on paper before supper, and they will stop reading themselves to you.",
                "No coffee after two is a dull rule, and it works.",
                "Try {remedy} once more, but away from the bed.",
                "A curtain and a pair of ear plugs are cheaper than any cure.",
                "After twenty minutes awake, sit in another room until you are tired again."],
        ends=[("I wrote the lists down, there were three of them, and one was about the other two.",
               "A list about lists is a sign that the day was long enough."),
              ("Seven hours last night. I do not dare to say it aloud.",
               "I did not hear a thing. Sleep well tonight too."),
              ("The same time every day, even on Sunday? That is harsh.",
               "Only for a week, and then you may be kind to your Sundays again.")]),
]


def conversation(rng, theme):
    """(role, content) of four turns."""
    word = {slot: rng.choice(words) for slot, words in theme["slots"].items()}

    def said(template):
        text = template.format_map(word)
        return re.sub(r"(?:^|[.?!] )[a-z]", lambda start: start[0].upper(), text)

    opening, advice, end = rng.choice(theme["openings"]), rng.sample(theme["advice"], 3), rng.choice(theme["ends"])
    return [("user", said(opening)), ("assistant", said(" ".join(advice))),
            ("user", said(end[0])), ("assistant", said(end[1]))]


def history(seed):
    """(the turns, the turn number of each fact)"""
    rng = random.Random(seed)
    turns, turn_of_fact = [], []
    told = {int(place * CONVERSATIONS): statement for place, statement, _, _ in FACTS}
    theme = None
    for number in range(CONVERSATIONS):
        clock = FIRST_DAY + datetime.timedelta(days=number, minutes=rng.randrange(7 * 60, 22 * 60))
        theme = rng.choice([t for t in THEMES if t is not theme])
        talk = conversation(rng, theme)
        if number in told:
            turn_of_fact.append(len(turns) + len(talk))
            talk += [("user", told[number]), ("assistant", rng.choice(ACKNOWLEDGED))]
        for role, content in talk:
            turns.append({"role": role, "content": content, "time": clock.strftime("%Y-%m-%dT%H:%M:%SZ")})
            clock += datetime.timedelta(seconds=rng.randrange(20, 240))
    return turns, turn_of_fact


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--questions", action="store_true")
    args = parser.parse_args()
    turns, turn_of_fact = history(args.seed)
    if args.questions:
        for turn, (_, _, question, answer) in zip(turn_of_fact, FACTS):
            print(turn, question, answer, sep="\t")
    else:
        for turn in turns:
            print(json.dumps(turn, ensure_ascii=False))


if __name__ == "__main__":
    main()
