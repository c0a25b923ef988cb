"""Made facts, told in passing in a few turns between real dialogues, and questions in other words.

A fact is told as `lead | fact | reply`: the first and the last turn are somebody else's. Of every four wordings the first
two are for training and the last two are held out. In a template {k} is who tells it and {v} what is asked for.
"""
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "train"))

from dataset import DataSet, Evidence, Question  # noqa: E402
from lexicon import FIRST, Lexicon  # noqa: E402


@dataclass(frozen=True)
class Kind:
    """`tell` says it in passing, `plain` in words that its questions may share. `ask` names who told it; `about` asks the
    same of a memory with one user, without a word of `tell`."""
    name: str
    value: str
    tell: tuple[str, ...]
    plain: tuple[str, ...]
    ask: tuple[str, ...]
    about: tuple[str, ...]


def kind(name: str, value: str, tell: str, plain: str, ask: str, about: str) -> Kind:
    split = lambda text: tuple(part.strip() for part in text.strip().split("\n"))
    found = Kind(name, value, split(tell), split(plain), split(ask), split(about))
    assert len(found.tell) == len(found.plain) == len(found.ask) == len(found.about) == 4, name
    return found


KINDS = (
    kind("home", "city", """
        You look worn out! | We carried the last box up on Sunday. So it is {v} from now on, with a view of the canal. | Congratulations on the keys!
        Still in the old place? | No, I gave that up. I took a flat in {v}, two rooms and a tiny kitchen. | Sounds cosy.
        Did the removal van make it? | Barely. But the sofa is in, the cat has hidden under it, and {v} already feels right. | Send me the new address.
        How was the summer? | Busy, we relocated. The children started at their school in {v} last week. | That is a big step.""", """
        How is the family? | We all live in {v} now, and the little one has her own room. | Lovely.
        Are you still on the coast? | No, we settled in {v}. It is a big city, but our street is quiet. | You will get used to it.
        Where shall I send the parcel? | To {v}, please. That town has been my home since the autumn. | It leaves tomorrow.
        Any news from your side? | I moved to {v} with the whole household, piano and all. | What an effort!""", """
        Where does {k} live now?
        Which city has {k} settled in?
        What town is {k}'s home these days?
        Where has {k} moved to?""", """
        What is the hometown of the user nowadays?
        Which municipality do they inhabit?
        Whereabouts does this person reside at present?
        In which locality is the user domiciled?"""),
    kind("job", "job", """
        How do you make a living these days? | After the factory closed I retrained, and since May I earn my bread as a {v}. | Good for you.
        Big news? | I signed the contract yesterday, they took me on as a {v}. | You deserve it.
        You seem happier lately. | The new position suits me. Who would have thought that I would end up a {v}? | Not me!
        So what did you write on the form? | Under occupation I put {v}, what else after eleven years of it. | True enough.""", """
        Did you ever finish that course? | Yes, and now I work as a {v}, mostly nights. | Well done.
        Your hands look rough. | My profession leaves its marks, a {v} never has clean nails. | I can see that.
        Was it hard to find work? | It took months, but I work full time as a {v} again. | I am relieved.
        Would you learn it again? | Any day. Being a {v} is a fine trade, it feeds my family. | Good to hear.""", """
        What does {k} do for work?
        What is {k}'s profession?
        What kind of work does {k} do?
        Which trade does {k} follow?""", """
        Which vocation does the user pursue?
        What career has this person got?
        How does the user pay the bills?
        What employment does this person hold?"""),
    kind("allergy", "allergy", """
        Shall I bring anything on Friday? | Please nothing with {v}, my throat swells up within minutes. | I will be careful.
        You left early? | There was {v} about, and my eyes began to stream. I had to take the pills again. | Poor you.
        Why the bracelet? | So that a doctor knows. One contact with {v} put me into hospital once. | How frightening.
        Did you get the results back? | Yes, the skin reacted to {v} and to nothing else. | At least you know.""", """
        Is the cake all right for you? | Does it have {v} in it? I am allergic, sadly. | No, none at all.
        You keep away from the buffet? | For the sake of my health I stay clear of {v}. | A pity.
        What did the specialist find? | An allergy. I suffer from it whenever {v} is near. | At least it has a name.
        Another biscuit? | Is there {v} in them? My body does not tolerate that. | Then leave it.""", """
        What is {k} allergic to?
        What must {k} stay away from for health reasons?
        Which allergy does {k} suffer from?
        What can {k} not tolerate?""", """
        Is there an allergen that the user cannot tolerate?
        What should never be served to this person?
        Which substance is the user hypersensitive towards?
        What ought a cook to avoid when having this person over?"""),
    kind("food", "food", """
        What shall we cook for the party? | You know me. If there is {v}, I will not touch anything else. | Noted.
        You always order the same. | I cannot help it, a plate of {v} makes my whole week. | Then let us go there.
        Any wishes for your last evening? | My grandmother's {v}, please, I could eat the whole pot of it. | I shall ring her.
        What did you miss most abroad? | Honestly? {v}. I dreamt of it at night. | I believe it.""", """
        What are you having? | What I always have, {v}. It is my favorite of all foods. | You never change.
        Who ate the whole dish? | Me, I like {v} better than anything. | I ought to have known.
        Are you hungry? | For {v}, always. I would love to eat nothing else. | Come in, then.
        What can we do to cheer you up? | A meal of {v} would make me very happy. | Consider it done.""", """
        What is {k}'s favorite food?
        Which dish does {k} like best?
        What does {k} love to eat?
        Which meal would make {k} happy?""", """
        What is the preferred dish of the user?
        Which meal does this person enjoy above all?
        What cuisine should be prepared to please the user?
        Which delicacy delights this person?"""),
    kind("pet", "pet_name", """
        You sound out of breath. | I was chasing {v} round the garden, he has stolen a slipper again. | Dogs!
        Who is that barking? | Only {v}, she wants her walk and has no patience at all. | Give her a pat.
        Why can't you come along on Saturday? | Nobody to sit with {v}. He howls when he is left alone in the flat. | Bring him, then.
        How did it go at the shelter? | We came for a look and left with a puppy. {v} is asleep in the basket now. | I want pictures.""", """
        What is the noise in the background? | My dog. I called him {v}, and he answers to nothing else. | He is loud.
        Who is the animal in the picture? | That is our dog, {v} is the name, eleven years old. | What a face.
        Have you got company now? | A dog! The shelter gave him the name {v}, and we kept it. | How nice.
        Is it a boy or a girl? | The dog? A girl. She is called {v} after my aunt. | Your aunt must be proud.""", """
        What is {k}'s dog called?
        What is the name of {k}'s dog?
        What name does {k}'s dog have?
        How is {k}'s dog called?""", """
        What is the user's canine companion called?
        Which name was given to their animal?
        What is their hound's name?
        How does this person call their dog?"""),
    kind("instrument", "instrument", """
        The neighbours complained? | Only about the scales. I have the {v} out every evening at seven. | They will get used to it.
        What is in the huge case? | A {v}, borrowed from the school, until I can afford one of my own. | Play something!
        Your fingers look sore. | Two hours of {v} yesterday, my teacher is merciless before the recital. | It will be worth it.
        So you joined the orchestra? | They needed somebody on the {v}, and I had nothing better to do on Tuesdays. | I will come and listen.""", """
        Do you still make music? | I play the {v} in a small band on Fridays. | I did not know.
        Is that a hard instrument? | The {v}? I have been learning for two years and can do one song. | Keep going.
        Can we talk at six? | At six I practise, the {v} will not master itself. | Seven, then.
        What did you do at school? | Music, mainly. I play the {v} to this day. | You must show me.""", """
        Which instrument does {k} play?
        What instrument is {k} learning?
        Which musical instrument does {k} practise?
        What does {k} play in music?""", """
        What kind of music does the user make?
        Which instrument is this person learning?
        With what does the user make music?
        Which musical instrument has this person taken up?"""),
    kind("language", "language", """
        What are all these little cards? | Vocabulary. Fifty words of {v} a day, or I will never pass. | Impressive.
        Why the headphones? | A course in {v}. My in-laws speak nothing else. | That is love.
        You are mumbling. | I am repeating my {v} verbs, the test is on Thursday. | Do not let me disturb you.
        Ready for the year abroad? | Nearly. My {v} is still clumsy, but I can order a coffee and ask the way. | That is half of it.""", """
        Why do you travel there so often? | Because I am learning the language, my {v} gets better each time. | Clever.
        What do you do on the train? | I study, {v} at the moment, with a little book. | Every day?
        Is it true that you take lessons? | Yes, {v}. A foreign language keeps the mind young. | I should do that.
        Are you busy on Monday? | I have my course, I am picking up {v} step by step. | Another time.""", """
        Which language is {k} learning?
        What language does {k} study?
        Which foreign language is {k} working on?
        Which tongue is {k} picking up?""", """
        Which foreign tongue is the user studying?
        What idiom does this person want to master?
        Which foreign tongue does the user hope to master?
        What linguistic skill is this person acquiring?"""),
    kind("studies", "subject", """
        How long did you stay at the university? | Six years, {v} took me longer than it should have. | But you finished.
        What was on the diploma? | {v}, with honours, and I have never needed it since. | Nobody ever does.
        How come you know all that? | I sat through five years of lectures on {v} once. | It shows.
        Any regrets? | I would choose {v} again, even if my professors were dull. | Lucky you.""", """
        What brought you to this town? | The university. I came to study {v}. | And you stayed.
        Is that your certificate on the wall? | My degree in {v}, the subject of my youth. | Very elegant.
        What did your parents want? | Law. But I chose {v} as my major. | Good for you.
        You sound like an expert. | I was a student of {v}, it is a wide field. | I noticed.""", """
        What did {k} study?
        In which subject does {k} have a degree?
        What was {k}'s major?
        Which field was {k} a student of?""", """
        Which academic field does the user hold a degree in?
        What was this person's major?
        Which discipline did the user graduate in?
        What was the college major of this person?"""),
    kind("sport", "sport", """
        How did you hurt your knee? | At {v}, on Wednesday. I jumped for one that I should have left alone. | Put ice on it.
        Why are you so keen on Saturdays? | Because that is {v} with the others, rain or shine. | Rather you than me.
        New shoes? | My old ones were falling apart, and the {v} season opens next week. | They look fast.
        You are in good shape. | Thanks to {v}, three evenings a week since the winter. | I should join you.""", """
        Shall we meet on Saturday? | I play {v} on Saturdays, with the old team. | Sunday, then.
        Do you do any sport? | {v}, since I was twelve. | That explains it.
        Is the gym not enough? | It bores me. My sport is {v}. | To each their own.
        How do you stay so slim? | {v} keeps me fit, twice a week. | I should try.""", """
        Which sport does {k} play?
        What sport does {k} do?
        What is {k}'s sport?
        Which sport keeps {k} fit?""", """
        Which athletic activity does the user do?
        How does this person exercise?
        Which athletic pursuit does the user follow?
        What physical exercise does this person take?"""),
    kind("hobby", "hobby", """
        What do you do all weekend? | Mostly {v}. It empties my head after the office. | We all need that.
        The garage is full again! | I know, since I discovered {v} there is stuff everywhere. | Where will the car go?
        You were up early on Sunday. | {v} calls, I cannot stay in bed when the weather is like this. | You are mad.
        What would you do with a free month? | {v} from morning to night, as I did as a teenager. | No surprise there.""", """
        Do you have a hobby at all? | {v}, for many years now. | Tell me more.
        What do you like about Sundays? | That I have spare time for {v}. | I envy you.
        What would you do if you retired? | {v}, my favorite pastime, day in, day out. | Sounds peaceful.
        You are never at home. | My leisure belongs to {v}, as everybody knows. | Fair enough.""", """
        What is {k}'s hobby?
        What does {k} like to do in spare time?
        What is {k}'s favorite pastime?
        How does {k} spend leisure hours?""", """
        Which pastime is the user fond of?
        How is leisure spent by this person?
        What occupies the user's leisure?
        What recreation does this person enjoy?"""),
    kind("commute", "transport", """
        Were you stuck in the jam too? | Not me, I come in {v}, whatever the weather. | Clever.
        Why is your coat wet? | I go to the office {v} now, and the rain caught me at the bridge. | Here is a towel.
        Do you need the parking space? | No, take it. I get in {v} since the road works began. | That helps me a lot.
        How long does it take you in the mornings? | Forty minutes {v}, time enough for half a chapter. | Not bad.""", """
        Is the car for sale? | Yes, I get to work {v} these days. | I may know a buyer.
        How was the way in? | Long. I commute {v}, and everybody else did too. | I bet.
        Would you like a lift? | Thanks, but I travel {v} to the job. | As you like.
        Is parking hard there? | No idea, my commute is {v}. No other transport for me. | Very green.""", """
        How does {k} get to work?
        How does {k} commute?
        By which means does {k} travel to the job?
        What transport does {k} use for the commute?""", """
        Which means of transport does the user take to their job?
        What is their mode of travel to the workplace?
        Which vehicle or means brings the user to the workplace?
        What is this person's commute like?"""),
    kind("drink", "drink", """
        What can I get you? | A {v}, please. I never take anything else at this hour. | Coming up.
        The usual? | Of course, {v}. You could set your watch by me. | One moment.
        Anything from the bar? | Just my {v}, large, and whatever the others are having. | Be right back.
        You have a crate of it in the cellar? | I get through a lot of {v}, as you know. It keeps me going. | I will help you with it.""", """
        Are you thirsty? | I would like to drink {v}, if you have it. | I will see.
        Do you take wine? | No, {v} is my favorite drink. | Simple enough.
        What do they serve there? | Every beverage there is, but I prefer {v}. | I see.
        Is the glass for me? | No, mine. Someone poured me a {v}. | Cheers.""", """
        What does {k} like to drink?
        What is {k}'s favorite drink?
        Which beverage does {k} prefer?
        What should one pour for {k}?""", """
        Which beverage does the user favour?
        What would quench this person's thirst?
        Which beverage should be poured for the user?
        What refreshment does this person favour?"""),
    kind("spouse", "person", """
        Did you go to the ball on your own? | {v} had promised me a dance twenty years ago, at our wedding, and kept it last night. | How sweet.
        Who is the lucky one? | {v} said yes! We will marry in the spring. | I am so glad for you both.
        What is in the parcel? | Flowers, from {v}. Ten years since we exchanged rings. | You two!
        Could you stay a little longer? | {v} is waiting with the dinner, and our anniversary comes but once a year. | Then hurry home.""", """
        Are you alone tonight? | No, {v} is here. We have been married for nine years. | Say hello.
        Who is on the phone? | My spouse. {v} wants to know what is for dinner. | Typical.
        Whom do you trust most? | {v}, my partner in life, in everything. | Beautiful.
        When was the ceremony? | In June. I was the one to marry {v}, after all these years. | Congratulations!""", """
        Who is {k} married to?
        What is the name of {k}'s spouse?
        Who is {k}'s partner in life?
        Whom did {k} marry?""", """
        What is the user's spouse called?
        Who is this person's partner?
        To whom is the user wedded?
        Who is this person's better half?"""),
    kind("child", "person", """
        You look tired. | Little {v} has her first teeth coming, and none of us slept. | It passes.
        Can we meet at four? | Five is better, I fetch {v} from kindergarten before that. | Five it is.
        Whose drawings are these? | {v} made them at school for me. A horse, I am told. | A fine horse.
        What was all the noise last night? | We had fourteen girls here. {v} turned nine. | You are brave.""", """
        Do you have children? | A daughter. She is called {v}. | A pretty name.
        Who drew this? | My child. {v} is the name, as you can read in the corner. | So it is.
        Whom are you waiting for? | My daughter, the name is {v}, if they call her out. | I will listen.
        Is your girl at school already? | Little {v}? Yes, since September. | How time flies.""", """
        What is {k}'s daughter called?
        What is the name of {k}'s child?
        What is the name of {k}'s daughter?
        How is {k}'s little girl called?""", """
        What is the user's daughter called?
        Which name does their offspring bear?
        Which name did the user choose for the child?
        Who is this person's daughter?"""),
    kind("doctor", "person", """
        And the back? | Better, since {v} gave me those exercises and a new prescription. | I am glad.
        Is it serious? | {v} listened to my lungs and says that I shall live. | What a relief.
        Who told you to give up salt? | {v}, at the check-up. My blood pressure is too high. | Listen to that.
        You were at the surgery? | {v} wants to see me every month until the wound has closed. | Better safe than sorry.""", """
        Are you ill? | A little. My doctor, {v}, gave me tea and rest. | Get well soon.
        Can you recommend anybody? | I see {v}, a doctor with plenty of time. | Thank you.
        Who looked at your knee? | {v} treats me, the medical centre by the park. | Good choice.
        Do you trust the diagnosis? | {v} has been my physician for years, so yes. | All right.""", """
        Who is {k}'s doctor?
        Which doctor does {k} see?
        Who treats {k} medically?
        What is the name of {k}'s physician?""", """
        Who is the user's physician?
        Which medic treats them?
        Which physician attends to the user?
        Who is the medic of this person?"""),
    kind("holiday", "city", """
        Have you got plans for July? | Two weeks in {v}, the tickets are on the fridge already. | I am jealous.
        Why the guidebook? | We fly out to {v} on the twelfth, and I want to see everything. | Take good shoes.
        What are you counting down to? | Nine more days, then it is {v}, sun and no telephone. | Enjoy every minute.
        Did you manage to get a room? | Yes, a small hotel by the market in {v}, breakfast included. | Bring me a postcard.""", """
        Are you free in August? | No, I am going to {v}, my first vacation in years. | Enjoy it.
        Where is everybody? | Away, and I shall spend my own holidays in {v} soon. | Lucky you.
        What is in the suitcase? | Light things. We are travelling to {v} for the holiday. | Nice and warm.
        Have you been to the travel agent? | Yes, the next trip goes to {v}. | How exciting.""", """
        Where is {k} going on vacation?
        Where will {k} spend the holidays?
        Which place is {k} travelling to for a holiday?
        Where is {k}'s next trip going?""", """
        Which destination is the user's vacation?
        Where will they travel?
        What destination has the user chosen for the vacation?
        To which destination does this person travel?"""),
    kind("birthday", "date", """
        How old will you be? | Do not ask. But keep {v} free, there will be cake. | I would not miss it.
        What is your star sign, then? | Work it out: I came into the world on {v}, in a snowstorm. | That explains a lot.
        When are we to bring the balloons? | {v}, after six. And no jokes about candles this time. | I promise nothing.
        What did the passport office get wrong? | The year. {v} they had right, that is when my mother had me. | What a nuisance.""", """
        When shall we have the party? | My birthday is {v}, so some day around then. | I will make a note.
        How old is that photograph? | As old as me. I was born on {v}, it says so on the back. | How small you were!
        What do they need for the form? | The date of birth. {v}, in my case. | And the place.
        Why the cards? | {v}! That day I turn a year older. | Many happy returns.""", """
        When is {k}'s birthday?
        On what date was {k} born?
        What is {k}'s date of birth?
        On which day does {k} turn a year older?""", """
        When was the user born?
        Which day is this person's birthday?
        What is the date of birth of this person?
        On which day of the calendar was the user born?"""),
    kind("code", "pin", """
        I am standing at the gate. | Type {v}, then push hard, it sticks. | It opened!
        The alarm went off on me. | You have to enter {v} within thirty seconds. | Now you tell me.
        We could not get in on Monday. | They changed it over the weekend. It is {v} for all of us now. | I will write it down.
        How do the cleaners come in? | I gave them {v}, the panel is behind the plant. | All right.""", """
        Is there a bell? | No, the door wants a code. It is {v}. | Thank you.
        I am locked out. | The door code is {v}, as I mentioned. | It works.
        Does the key fit? | There is no key, the number {v} unlocks the entrance. | How modern.
        Who lets the painters in? | They have the entry code {v}. | Good.""", """
        Which code did {k} give for the door?
        What is the door code that {k} mentioned?
        Which number did {k} say unlocks the entrance?
        What entry code did {k} pass on?""", """
        Which digits unlock the entrance?
        What is the password of the building?
        Which secret number opens the door?
        What does the keypad at the entrance require?"""),
    kind("price", "price", """
        So the old car is gone? | Sold on Friday. I got {v} for it, more than I had hoped. | Well done.
        Was the roof expensive? | {v} in the end, with the gutter. | Ouch.
        What did the garage say? | {v} for the brakes alone. I nearly fainted. | That is robbery.
        Did you win the auction? | I did, the clock is mine for {v}. | It had better tick.""", """
        Did the repair cost much? | Too much money, {v}. | Dear me.
        How high was the bill? | The sum was {v}, with tax. | That is a lot.
        Did they pay you back? | The whole amount, {v}. | At last.
        What was on the tag? | Not in dollars, euros or pounds alone, but in all: {v}. | I see.""", """
        How much money did {k} mention?
        What sum did {k} name?
        What amount did {k} speak of?
        How many dollars, euros or pounds was it that {k} told of?""", """
        What sum of money changed hands?
        Which amount of cash was involved?
        How costly was it?
        What did the user pay or receive?"""),
    kind("meeting", "time", """
        When shall we start? | {v} sharp, the room is only ours for an hour. | I will be there.
        Did they move it again? | To {v}, since the director has to catch a plane. | Typical.
        Is there time for lunch before? | Hardly, they want us upstairs at {v}. | A sandwich, then.
        Who will unlock the hall? | The caretaker, and we begin rehearsing at {v}. | I shall not be late.""", """
        When does it begin? | The film starts, the time is {v}. | I will hurry.
        When do they expect us? | It was set for the hour of {v}. | Fine.
        When is the beginning? | The time of day is {v}, according to the poster. | Good.
        Am I late? | You are expected by {v}, so no. | What luck.""", """
        At what time does it start, according to {k}?
        For what hour did {k} say it was set?
        Which time of day did {k} name for the beginning?
        By when is one expected, as {k} told?""", """
        At which o'clock is the appointment?
        Which hour was agreed upon?
        Which hour was scheduled?
        What time is the event?"""),
    kind("book", "title", """
        You missed your stop? | I was too deep in {v}. Two hundred pages in one go. | It must be good.
        What is on your bedside table? | {v}, and I have not turned off the light before two all week. | You need sleep.
        What shall I take for the train? | Take {v}. I could not put it down. | I will look for it.
        Did you get to the end? | Last night. {v} made me cry, and I never cry. | Lend it to me.""", """
        What are you carrying? | A book, {v}. I talk about nothing else. | Is it long?
        What do you do in the evenings? | I am reading {v}, for the second time. | It must be good.
        Have you got a tip for me? | The novel {v}, I was quite taken with it. | Thanks.
        What was in the parcel? | A book with the title {v}, I read it in one night. | One night!""", """
        Which book did {k} talk about?
        What has {k} been reading?
        Which novel was {k} taken with?
        What is the title that {k} read?""", """
        Which novel did the user read?
        What literature was this person absorbed by?
        Which work of fiction has the user finished?
        What literature moved this person?"""),
    kind("car", "proper", """
        Whose is the thing in the yard? | Mine! A {v}, third hand, but the engine purrs. | Take me for a ride.
        Why are you covered in oil? | The {v} would not start, so I changed the plugs myself. | Handy.
        How will you get all that home? | The {v} swallows everything once the back seats are down. | If you say so.
        Did you pass the inspection? | Just so. They want new tyres on the {v} by June. | It could be worse.""", """
        How did you come? | I drive a {v} now, it stands outside. | The red one?
        Is that your car? | The {v}? Yes, it is a reliable make. | It looks it.
        Can you take the boxes? | My car is a {v}, it belongs to the larger ones. | Perfect.
        What was towed? | My vehicle, the {v}, from the bus lane. | Bad luck.""", """
        What car does {k} drive?
        What is the make of {k}'s car?
        Which car belongs to {k}?
        What is {k}'s vehicle?""", """
        Which automobile does the user own?
        What vehicle does this person drive?
        What brand of car has the user got?
        Which automobile is this person's?"""),
    kind("color", "color", """
        What took you so long at the shop? | They had to mix it. The bedroom will be {v}, wall to wall. | Bold.
        Which one shall I knit for you? | The {v} one, as ever. My whole wardrobe is like that. | Predictable.
        How will I find you in the crowd? | I will be the one in {v}, as always, hat included. | Easy enough.
        And the bathroom tiles? | {v}, I never grow tired of it. | You and your taste.""", """
        What shall I paint it? | {v}, my favorite color. | Good.
        Which one do you want? | The {v} one. I prefer that color. | Here you are.
        Do you like the scarf? | Very much, {v} is the colour that I like best. | I guessed so.
        What are you looking for? | A shade of {v}, I am so fond of it. | Try the next shelf.""", """
        What is {k}'s favorite color?
        Which color does {k} prefer?
        Which colour does {k} like best?
        What shade is {k} fond of?""", """
        Which hue does the user prefer?
        What is the favourite pigment of this person?
        What is the best-loved colour of the user?
        What tint is dear to this person?"""),
    kind("place", "room", """
        Where on earth are the passports? | I put them in the {v}, behind the jars, where no thief would look. | Nor would I.
        Have you seen the ladder? | It leans in the {v} since I changed the bulb. | I will fetch it.
        The spare keys are not on the hook! | They hang in the {v} now, because the hook came off. | Good to know.
        Where did the Christmas things go? | All in the {v}, three boxes with your name on them. | I had forgotten.""", """
        I miss the scissors. | Those missing things are in the {v}. | Found them.
        Did you tidy up? | Yes, and I put all of it in that part of the house, the {v}. | I see.
        Where can I find the tools? | All those things can be found in the {v}. | Thanks.
        Which room are the boxes in? | In that room there, the {v}. | Got it.""", """
        Where did {k} say the missing things are?
        In which part of the house did {k} put them?
        Where can the things be found, according to {k}?
        Which room did {k} point to?""", """
        What is the storage spot for the belongings?
        Which location hides the items?
        To which part of the house were the objects brought?
        Which location are the belongings stored at?"""),
)

PAIRS = (
    ("Which instruments do {a} and {b} play?", "instrument"), ("Where do {a} and {b} live?", "home"),
    ("What do {a} and {b} do for work?", "job"), ("What are {a} and {b} allergic to?", "allergy"),
    ("Which languages are {a} and {b} learning?", "language"), ("What are the dogs of {a} and {b} called?", "pet"),
    ("When are the birthdays of {a} and {b}?", "birthday"), ("Which sports do {a} and {b} play?", "sport"),
    ("Where are {a} and {b} going on vacation?", "holiday"), ("What are the hobbies of {a} and {b}?", "hobby"),
)
PEOPLE, FACTS_OF_EACH, PAIRS_ASKED = 30, 10, 60
PLAIN_SHARE = 0.6
FACTS_FILLER_WORDS = 60_000
USERS, USER_FILLER_WORDS = 16, 2_500


def of_split(wordings: tuple[str, ...], held: bool, rng: random.Random) -> str:
    return rng.choice(wordings[2:] if held else wordings[:2])


def words_of(corpora) -> Lexicon:
    """A lexicon with the words and names of the split's first dialogues."""
    said = [word for turns in corpora.dialogues[:600] for turn in turns for word in turn["content"].split()[1:]]
    fit = {word for word in said if word.isalpha() and 4 <= len(word) <= 10}
    words = {word for word in fit if word.islower()}
    names = {word for word in fit if word.istitle() and word.lower() not in words}
    return Lexicon(sorted(words), sorted(names), random.Random(0))


def exchange(template: str, value: str, teller: dict, other: dict) -> list[dict]:
    """The three turns of a telling; the fact is the second one."""
    lead, fact, reply = (part.strip() for part in template.split(" | "))
    fact = fact.replace("{v}", value)
    fact = fact[0].upper() + fact[1:]
    return [other | {"content": lead}, teller | {"content": fact}, other | {"content": reply}]


def data_set(corpora, rng: random.Random) -> DataSet:
    """One memory: people tell facts about themselves between dialogues of others. A question names who told it; its category
    says whether the fact was told plainly or in passing, or whether it asks for plain facts of two people, told far apart."""
    held = corpora.held
    data = DataSet("dialogue-facts", "made facts told in passing between dialogues; questions in other words", corpora.split)
    lexicon = words_of(corpora)
    lexicon.rng = rng
    people = rng.sample(FIRST[::2] if held else FIRST[1::2], PEOPLE)
    told = [(person, one) for person in people for one in rng.sample(KINDS, FACTS_OF_EACH)]
    rng.shuffle(told)
    filler, _ = corpora.filler(FACTS_FILLER_WORDS)
    places = sorted(rng.randrange(len(filler) + 1) for _ in told)
    turn_of: dict[tuple[str, str], int] = {}
    values: dict[tuple[str, str], str] = {}
    categories: dict[tuple[str, str], str] = {}
    memory = "chats"
    for i in range(len(filler) + 1):
        while places and places[0] == i:
            places.pop(0)
            person, one = told.pop()
            other = rng.choice([name for name in people if name != person])
            value = lexicon.value(one.value)
            plainly = rng.random() < PLAIN_SHARE
            said = exchange(of_split(one.plain if plainly else one.tell, held, rng), value, {"role": "user", "name": person},
                            {"role": "user", "name": other})
            numbers = [data.add_turn(memory, turn) for turn in said]
            turn_of[person, one.name], values[person, one.name] = numbers[1], value
            categories[person, one.name] = "plain" if plainly else "in passing"
        for turn in filler[i] if i < len(filler) else ():
            data.add_turn(memory, turn)
    by_name = {one.name: one for one in KINDS}
    for (person, name), turn in turn_of.items():
        text = of_split(by_name[name].ask, held, rng).replace("{k}", person)
        data.questions.append(Question(memory, text, [Evidence(turn)], categories[person, name], name,
                                       values[person, name]))
    pairs = []
    for text, name in PAIRS[1::2] if held else PAIRS[::2]:
        those = sorted(person for person, other in turn_of if other == name and categories[person, other] == "plain")
        pairs += [(text, name, a, b) for a in those for b in those if a < b]
    for text, name, a, b in rng.sample(pairs, min(PAIRS_ASKED, len(pairs))):
        evidence = [Evidence(turn_of[a, name]), Evidence(turn_of[b, name])]
        answer = f"{values[a, name]} and {values[b, name]}"
        data.questions.append(Question(memory, text.format(a=a, b=b), evidence, "two facts", name, answer))
    return data


def about_users(corpora, rng: random.Random) -> DataSet:
    """A memory for each of some users, who told one fact of each kind, and the questions of `about`."""
    held = corpora.held
    data = DataSet("users", split=corpora.split)
    lexicon = words_of(corpora)
    lexicon.rng = rng
    first = len(corpora.dialogues) // 2     # others than among the people's facts
    for number in range(USERS):
        memory = f"user-{number}"
        filler, first = corpora.filler(USER_FILLER_WORDS, first)
        told = list(KINDS)
        rng.shuffle(told)
        places = sorted(rng.randrange(len(filler) + 1) for _ in told)
        for i in range(len(filler) + 1):
            while places and places[0] == i:
                places.pop(0)
                one = told.pop()
                value = lexicon.value(one.value)
                said = exchange(of_split(one.tell, held, rng), value, {"role": "user"}, {"role": "assistant"})
                numbers = [data.add_turn(memory, turn) for turn in said]
                text = of_split(one.about, held, rng)
                data.questions.append(Question(memory, text, [Evidence(numbers[1])], one.name, "", value))
            for turn in filler[i] if i < len(filler) else ():
                data.add_turn(memory, turn)
    return data
