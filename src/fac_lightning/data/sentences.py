"""Endless varied English sentences to be spoken by a synthesizer: a small grammar over a large vocabulary.

A speech codec must meet every sound in every neighbourhood, not good prose. So templates (questions, answers, plain
statements) are filled with words drawn evenly, and further words, for example those of a synthesizer's own
pronouncing dictionary, may be mixed in.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

__all__ = ["dictionary_words", "make_sentences", "spoken_number"]

_WORDS: dict[str, str] = {
    "name": """Alice Ben Carla David Emma Frank Grace Henry Isabel Jack Karen Liam Maria Noah Olivia Peter Quentin Rose
    Samuel Theresa Ursula Victor Wendy Xavier Yvonne Zachary Anna Bruno Chloe Dennis Ethan Fiona George Hannah Ivan
    Julia Kevin Laura Martin Nina Oscar Paula Robert Sophie Thomas Vera Walter Joyce Keith Ruth""",
    "country": """France Spain Italy Germany Poland Greece Norway Sweden Finland Denmark Portugal Ireland Scotland
    Turkey Egypt Morocco Kenya Nigeria Ghana Ethiopia India China Japan Korea Thailand Vietnam Indonesia Australia
    Canada Mexico Brazil Argentina Chile Peru Colombia Cuba Iceland Austria Hungary Belgium Switzerland Russia Ukraine
    Romania Croatia Israel Jordan Nepal Pakistan Mongolia""",
    "city": """Paris Madrid Rome Berlin Warsaw Athens Oslo Stockholm Helsinki Copenhagen Lisbon Dublin Edinburgh Ankara
    Cairo Rabat Nairobi Abuja Accra Delhi Beijing Tokyo Seoul Bangkok Hanoi Jakarta Canberra Ottawa Lima Bogota Havana
    Vienna Budapest Brussels Moscow Kiev Bucharest Zagreb Jerusalem London Chicago Boston Houston Seattle Denver Geneva
    Venice Sydney Montreal Shanghai""",
    "colour": """red orange yellow green blue purple pink brown black white grey silver golden violet turquoise crimson
    beige navy scarlet ivory""",
    "animal": """dog cat horse cow sheep goat pig chicken duck goose mouse rabbit fox wolf bear lion tiger elephant
    giraffe zebra monkey kangaroo koala penguin dolphin whale shark octopus turtle frog snake lizard eagle owl parrot
    sparrow bee butterfly spider camel donkey squirrel hedgehog badger otter""",
    "currency": "dollar euro pound yen franc peso rupee krone zloty real rand shilling",
    "food": """bread cheese butter soup rice pasta pizza salad chicken fish beef cake chocolate coffee tea milk juice
    apples oranges cherries grapes potatoes carrots onions garlic pepper sugar honey yogurt mushrooms sausages
    pancakes cookies lemons peaches strawberries walnuts cabbage""",
    "month": """January February March April May June July August September October November December""",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "thing": """table chair window door kitchen garden bridge river mountain valley forest beach island road street
    station airport hospital school library museum theatre church castle village market factory office computer phone
    camera radio letter book page picture mirror clock watch lamp candle bottle glass plate knife spoon fork basket
    blanket pillow jacket shirt dress shoe hat glove scarf umbrella ring necklace box bag purse wallet key lock hammer
    nail saw rope ladder bucket brush broom engine wheel bicycle truck train boat ship plane rocket tractor fence wall
    roof chimney floor ceiling stairs cellar tower cave rock stone sand shell wave cloud storm thunder lightning rain
    snow ice wind breeze sun moon star planet flower rose tulip leaf branch root seed grass field farm barn pond lake
    stream path tunnel corner square circle triangle line edge shape surface pattern colour sound voice song piano
    guitar violin drum trumpet flute dance story poem joke question answer idea thought dream memory reason choice
    plan project budget contract invoice message report lesson exam teacher student doctor nurse lawyer judge farmer
    baker butcher carpenter plumber painter singer actor writer poet pilot sailor soldier captain manager neighbour
    cousin uncle aunt brother sister father mother child baby crowd team club party wedding journey holiday weather
    temperature pressure energy power machine metal copper iron steel plastic paper cotton wool leather wood oil gas
    fuel fire smoke ash dust mud oxygen virus vaccine muscle bone heart brain stomach shoulder elbow knee ankle thumb
    tongue tooth throat""",
    "adjective": """big small tall short long wide narrow thick thin heavy light bright dark hot cold warm cool wet dry
    soft hard rough smooth sharp dull loud quiet fast slow early late young old new ancient modern fresh rotten sweet
    sour bitter salty clean dirty empty full open closed cheap expensive rich poor strong weak brave shy kind cruel
    happy sad angry calm proud lazy busy clever foolish honest funny serious strange usual rare common simple complex
    easy difficult safe dangerous healthy sick beautiful ugly huge tiny round square flat steep shallow deep broken
    precious curious gentle polite generous nervous famous useful hopeless wooden electric enormous""",
    "did": """found lost bought sold carried dropped lifted pushed pulled opened closed painted washed cleaned broke
    fixed built moved borrowed returned hid showed sent received wrapped threw caught kicked touched watched noticed
    ignored followed chased left reached crossed climbed measured counted weighed described remembered forgot loved
    hated wanted needed used saved wasted changed checked finished started stopped shared stole chose judged""",
    "do": """find lose buy sell carry drop lift push pull open close paint wash clean break fix build move borrow return
    hide show send receive wrap throw catch kick touch watch notice ignore follow chase leave reach cross climb measure
    count weigh describe remember forget love hate want need use save waste change check finish start stop share
    choose judge join visit enjoy arrange""",
    "doing": """running walking jumping swimming singing dancing cooking reading writing drawing sleeping working
    shopping fishing hiking sailing driving flying climbing cycling gardening painting knitting laughing shouting
    waiting studying travelling skating measuring breathing choosing""",
    "adverb": """quickly slowly quietly loudly carefully carelessly gently roughly suddenly finally usually often never
    always rarely almost already perhaps together alone outside inside upstairs yesterday today tomorrow tonight
    recently surely clearly easily badly perfectly politely eagerly anxiously""",
    "place": """near under behind above beside beyond across inside outside below against through towards around""",
    "subject": """history science music biology physics chemistry geography mathematics language medicine law art
    economics philosophy psychology engineering architecture astronomy cooking football tennis chess basketball""",
    "job": """teacher doctor nurse engineer chef artist musician scientist pilot driver gardener dentist librarian
    journalist designer programmer photographer firefighter""",
    "feeling": "glad sorry afraid certain pleased surprised worried excited grateful delighted ashamed jealous",
    "unit": "metres miles grams kilograms litres degrees minutes hours seconds weeks years inches pounds percent",
    "who": "I you we they",
    "poss": "my your his her our their",
}

_TEMPLATES = """
The {adjective} {thing} {did} the {colour} {thing}.
{name} {did} a {adjective} {thing} {place} the {thing}.
The {thing} and the {thing} are {place} the {adjective} {thing}.
Why did {name} {do} the {adjective} {thing}?
Did {who} {do} {poss} {thing} {adverb}?
Can you {do} the {thing} on {day}?
How many {unit} are there in {number} {unit}?
What is the capital of {country}?
The capital of {country} is {city}.
The currency of {country} is the {currency}.
{country} pays with the {currency}, not the {currency}.
A {animal} is more {adjective} than a {animal}, I think.
The {colour} {animal} {did} the {adjective} {animal}.
{number} plus {number} is {number}.
{number} minus {number} equals {number}.
What is {number} times {number}?
The answer is {number}.
It costs {number} {currency}s and {number} cents.
The meeting starts at {number} on {day} the {ordinal} of {month}.
My birthday is on the {ordinal} of {month}.
I was born in {year}, in {city}.
The train from {city} to {city} leaves at {hour} {minute}.
In {month}, the weather in {city} is {adjective} and {adjective}.
I would like some {food}, please, with {food} and {food}.
{name} likes {food}, but {name} prefers {food}.
Sure, here is a {adjective} recipe for {food} with {food}.
Of course, I can help you {do} the {thing}.
I am {feeling} that {who} {did} {poss} {thing}.
Sorry, I do not know how to {do} a {thing}.
Could you please {do} the {thing} more {adverb}?
Thank you, {name}, have a {adjective} day.
Hello {name}, how can I help you today?
You sound {feeling}, is everything all right with {poss} {thing}?
Mix {colour} and {colour}, and you get {colour}.
The opposite of {adjective} is {adjective}.
{doing} and {doing} are {poss} favourite hobbies.
{who} should try {doing} with a {job} in {country}.
A {job} needs a {thing} and a {adjective} {thing}.
{name} studies {subject} and {subject} in {city}.
She {adverb} {did} the {thing}, then he {did} the {thing}.
Please turn the {thing} to {number} {unit}.
There were {number} {animal}s {place} the {thing}.
It takes {number} {unit} to {do} the {thing}.
If it rains on {day}, {who} will {do} the {thing} {adverb}.
Don't {do} that {thing}, it's {adjective}!
Yes, a {thing} is usually {adjective} and {colour}.
No, {who} never {did} the {thing} in {month}.
{adverb}, the {job} {did} {poss} {adjective} {animal}.
Both the {adjective} {job} and the {job} went {doing}.
Here are {number} {thing}s, {number} {animal}s and one {animal}.
The {ordinal} {thing} was {adjective}, the {ordinal} was not.
{thing}, {thing}, {animal}, {thing}.
{extra} {extra}, {extra}, and {extra}.
The {extra} {thing} of {extra} is {extra}.
{name} said {extra} before the {extra} {animal}.
{who} think the {extra} {extra} was {adjective}.
What does {extra} mean, and where is the {extra}?
{extra} is not the same as {extra}.
"""


def _listed(words: str) -> list[str]:
    return words.split()


_ONES = _listed("""zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""")
_TENS = _listed("zero ten twenty thirty forty fifty sixty seventy eighty ninety")
_ORDINALS = _listed("""first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth
fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth""")
_SLOT = re.compile(r"\{(\w+)\}")


def spoken_number(value: int) -> str:
    """English words of a whole number from 0 to 999999, as they are read aloud.

    Raises:
        ValueError: If ``value`` is out of range.
    """
    if not 0 <= value < 1_000_000:
        raise ValueError(f"spoken_number takes 0 to 999999, got {value}")
    if value < 20:
        return _ONES[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return _TENS[tens] + (f" {_ONES[ones]}" if ones else "")
    size, word = (100, "hundred") if value < 1000 else (1000, "thousand")
    head, rest = divmod(value, size)
    return f"{spoken_number(head)} {word}" + (f" {spoken_number(rest)}" if rest else "")


def _number(rng: random.Random) -> str:
    return spoken_number(rng.randrange(10 ** rng.choice((1, 2, 2, 2, 3, 3, 4, 5))))


def _fill(template: str, rng: random.Random, vocabulary: dict[str, Sequence[str]]) -> str:
    def word(match: re.Match[str]) -> str:
        slot = match.group(1)
        if slot == "number":
            return _number(rng)
        if slot == "ordinal":
            return rng.choice(_ORDINALS)
        if slot == "year":
            return f"{_ONES[rng.choice((18, 19))]} {spoken_number(rng.randrange(10, 100))}"
        if slot == "hour":
            return spoken_number(rng.randrange(1, 13))
        if slot == "minute":
            return spoken_number(rng.randrange(10, 60))
        return rng.choice(vocabulary[slot])

    sentence = _SLOT.sub(word, template)
    return sentence[0].upper() + sentence[1:]


def make_sentences(count: int, seed: int = 0, extra_words: Sequence[str] = ()) -> list[str]:
    """Different sentences, the same for the same arguments; a longer list starts with the shorter one.

    Args:
        count: How many.
        seed: Which list.
        extra_words: Words for the templates that take any word; without them the built-in nouns serve.
    """
    rng = random.Random(seed)
    vocabulary: dict[str, Sequence[str]] = {slot: words.split() for slot, words in _WORDS.items()}
    vocabulary["extra"] = list(extra_words) or vocabulary["thing"]
    templates = [line for line in _TEMPLATES.splitlines() if line]
    sentences: dict[str, None] = {}
    while len(sentences) < count:
        sentences[_fill(rng.choice(templates), rng, vocabulary)] = None
    return list(sentences)


def dictionary_words(source: str) -> list[str]:
    """Plain words (3 to 12 lower-case letters) among the keys of a JSON mapping, in alphabetical order.

    Args:
        source: Path of a JSON file, or "package:path inside it" for a file that comes with an installed package;
            gzip if the name ends so.

    Raises:
        ValueError: If there is no such file or it holds no such word.
    """
    package, _, inside = source.rpartition(":")
    try:
        data = (files(package).joinpath(inside) if package else Path(source)).read_bytes()
    except (OSError, ModuleNotFoundError) as error:
        raise ValueError(f"word list {source!r} cannot be read: {error}") from error
    keys = json.loads(gzip.decompress(data) if source.endswith(".gz") else data)
    words = sorted(key for key in keys if 3 <= len(key) <= 12 and key.isascii() and key.isalpha() and key.islower())
    if not words:
        raise ValueError(f"word list {source!r} holds no word of 3 to 12 lower-case letters")
    return words
