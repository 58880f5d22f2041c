"""The table of the small world: what can be asked, in which words, and what is true.

``{x}`` stands for the entity and ``{y}`` for what is said of it. Every answer is a short complete sentence, and the
words were chosen to be clear to the ear. Wordings under ``unseen`` must never be trained on, neither as text nor as
speech: they measure whether a model understands a question or has learned its wording by heart.

Facts that a recogniser writes down differently however well they are spoken ("after 5, 6" for "after five comes six",
"Rupi") were worded anew or left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

__all__ = ["RELATIONS", "Relation"]


@dataclass(frozen=True)
class Relation:
    """One kind of question."""

    name: str
    answer: str  # sentence with {x} and {y}
    train: tuple[str, ...]  # questions with {x}
    unseen: tuple[str, ...]  # questions with {x}, for evaluation only
    pairs: dict[str, str]  # {x} -> {y}


def _pairs(table: str) -> dict[str, str]:
    """``"a: b, c: d"`` as a dictionary, in order; a key may appear once."""
    rows = [row.split(":") for row in " ".join(table.split()).split(",")]
    pairs = {x.strip(): y.strip() for x, y in rows}
    assert len(pairs) == len(rows), "an entity is listed twice"
    return pairs


def _ask(topic: str) -> tuple[str, str, str, str]:
    """Training questions for relations that are asked by a noun phrase."""
    return (
        f"What is {topic}?",
        f"Tell me {topic}.",
        f"Can you tell me {topic}?",
        f"I want to know {topic}.",
    )


_NUMBERS = """
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
""".split()  # noqa: SIM905 - a table reads better than a list of quotes
_MONTHS = """
January February March April May June July August September October November December
""".split()  # noqa: SIM905
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()  # noqa: SIM905

RELATIONS: tuple[Relation, ...] = (
    Relation(
        "capital",
        "The capital of {x} is {y}.",
        (*_ask("the capital of {x}"), "Name the capital of {x}.", "What is the capital city of {x}?"),
        ("Which city is the capital of {x}?", "Do you know the capital of {x}?"),
        _pairs(
            """France: Paris, Spain: Madrid, Italy: Rome, Germany: Berlin, Poland: Warsaw, Greece: Athens, Norway: Oslo,
            Sweden: Stockholm, Finland: Helsinki, Denmark: Copenhagen, Portugal: Lisbon, Ireland: Dublin,
            Scotland: Edinburgh, England: London, Turkey: Ankara, Egypt: Cairo, Morocco: Rabat, Kenya: Nairobi,
            Ghana: Accra, India: New Delhi, China: Beijing, Japan: Tokyo, South Korea: Seoul, Thailand: Bangkok,
            Vietnam: Hanoi, Indonesia: Jakarta, Australia: Canberra, New Zealand: Wellington, Canada: Ottawa,
            Mexico: Mexico City, Argentina: Buenos Aires, Chile: Santiago, Peru: Lima, Colombia: Bogota, Cuba: Havana,
            Hungary: Budapest, Belgium: Brussels, Russia: Moscow, Romania: Bucharest, Croatia: Zagreb, Bulgaria: Sofia,
            Nepal: Kathmandu, Pakistan: Islamabad, the Philippines: Manila, Malaysia: Kuala Lumpur, Iraq: Baghdad,
            Lebanon: Beirut, Syria: Damascus, Libya: Tripoli, Uganda: Kampala, Jamaica: Kingston, Ecuador: Quito,
            Venezuela: Caracas, Senegal: Dakar, Panama: Panama City"""
        ),
    ),
    Relation(
        "continent",
        "{x} is in {y}.",
        (
            "Which continent is {x} in?",
            "What continent is {x} in?",
            "On which continent is {x}?",
            "Tell me the continent of {x}.",
            "Can you tell me which continent {x} is in?",
            "I want to know the continent of {x}.",
        ),
        ("Do you know which continent {x} is on?", "What is the continent of {x}?"),
        _pairs(
            """France: Europe, Spain: Europe, Italy: Europe, Germany: Europe, Poland: Europe, Greece: Europe,
            Norway: Europe, Sweden: Europe, Finland: Europe, Portugal: Europe, Ireland: Europe, Hungary: Europe,
            Belgium: Europe, Romania: Europe, Morocco: Africa, Kenya: Africa, Ghana: Africa, Nigeria: Africa,
            Ethiopia: Africa, Uganda: Africa, Senegal: Africa, Libya: Africa, Angola: Africa, Zambia: Africa,
            India: Asia, China: Asia, Japan: Asia, South Korea: Asia, Thailand: Asia, Vietnam: Asia, Nepal: Asia,
            Pakistan: Asia, Mongolia: Asia, Iraq: Asia, Malaysia: Asia, Canada: North America, Mexico: North America,
            Cuba: North America, Panama: North America, Jamaica: North America, Brazil: South America,
            Argentina: South America, Chile: South America, Peru: South America, Ecuador: South America"""
        ),
    ),
    Relation(
        "currency",
        "{x} uses the {y}.",
        (
            *_ask("the currency of {x}"),
            "What currency does {x} use?",
            "Which currency do people use in {x}?",
        ),
        ("Do you know the currency of {x}?", "In {x}, what currency do you pay with?"),
        _pairs(
            """Japan: yen, Mexico: peso, China: yuan, Russia: ruble, England: pound, France: euro,
            Germany: euro, Canada: dollar, Australia: dollar, Brazil: real, Kenya: shilling, South Africa: rand,
            Argentina: peso, Egypt: pound, Jordan: dinar, Iceland: krona, Italy: euro, Spain: euro,
            Finland: euro, Jamaica: dollar, New Zealand: dollar, Chile: peso, South Korea: won"""
        ),
    ),
    Relation(
        "language",
        "People in {x} speak {y}.",
        (
            "What language do people speak in {x}?",
            "Which language is spoken in {x}?",
            "Tell me the language of {x}.",
            "What is the language of {x}?",
            "Can you tell me the language of {x}?",
            "I want to know the language of {x}.",
        ),
        ("Do you know the language of {x}?", "In {x}, which language do people speak?"),
        _pairs(
            """France: French, Spain: Spanish, Italy: Italian, Germany: German, Poland: Polish, Greece: Greek,
            Norway: Norwegian, Sweden: Swedish, Finland: Finnish, Denmark: Danish, Portugal: Portuguese,
            Turkey: Turkish, Egypt: Arabic, China: Chinese, Japan: Japanese, Thailand: Thai, Vietnam: Vietnamese,
            Russia: Russian, Brazil: Portuguese, Mexico: Spanish, Cuba: Spanish, Hungary: Hungarian,
            Romania: Romanian, Australia: English, Syria: Arabic"""
        ),
    ),
    Relation(
        "opposite",
        "The opposite of {x} is {y}.",
        (*_ask("the opposite of {x}"), "Name the opposite of {x}.", "What word is the opposite of {x}?"),
        ("Do you know the opposite of {x}?", "Which word is the opposite of {x}?"),
        _pairs(
            """hot: cold, big: small, happy: sad, early: late, open: closed, rich: poor, young: old, strong: weak,
            full: empty, clean: dirty, easy: difficult, heavy: light, wide: narrow, deep: shallow, loud: quiet,
            first: last, inside: outside, always: never, love: hate, summer: winter, day: night, left: right, up: down,
            cheap: expensive, safe: dangerous, fast: slow, thick: thin, dry: wet, true: false, black: white,
            high: low, near: far, begin: end, push: pull, give: take, sweet: sour, brave: afraid, alive: dead,
            before: after, above: below, front: back, lost: found, question: answer, asleep: awake, win: lose"""
        ),
    ),
    Relation(
        "sound",
        "{x} says {y}.",
        (
            "What sound does {x} make?",
            "Which sound does {x} make?",
            "Tell me the sound of {x}.",
            "What is the sound of {x}?",
            "Can you tell me what sound {x} makes?",
            "I want to know the sound of {x}.",
        ),
        ("Do you know the sound of {x}?", "What kind of sound does {x} make?"),
        _pairs(
            """a dog: woof, a cat: meow, a cow: moo, a duck: quack, a pig: oink, a bee: buzz, a snake: hiss,
            a bird: tweet, a clock: tick tock, a bell: ding dong, a train: choo choo"""
        ),
    ),
    Relation(
        "color",
        "{x} is {y}.",
        (
            "What color is {x}?",
            "Which color is {x}?",
            "Tell me the color of {x}.",
            "What is the color of {x}?",
            "Can you tell me the color of {x}?",
            "I want to know the color of {x}.",
        ),
        ("Do you know the color of {x}?", "What color does {x} have?"),
        _pairs(
            """a banana: yellow, a tomato: red, the grass: green, the ocean: blue, snow: white, coal: black,
            a carrot: orange, chocolate: brown, milk: white, a lemon: yellow, a cucumber: green, a strawberry: red,
            a polar bear: white, a flamingo: pink, an elephant: gray, a pumpkin: orange, the night: black,
            a frog: green, a fire truck: red, a canary: yellow, an eggplant: purple, butter: yellow, spinach: green,
            coffee: brown, a cherry: red"""
        ),
    ),
    Relation(
        "baby",
        "A baby {x} is {y}.",
        (
            "What is a baby {x} called?",
            "What do you call a baby {x}?",
            "Tell me the name of a baby {x}.",
            "What is the name of a baby {x}?",
            "Can you tell me the name of a baby {x}?",
            "I want to know the name of a baby {x}.",
        ),
        ("Do you know what a baby {x} is called?", "What name does a baby {x} have?"),
        _pairs(
            """cat: a kitten, dog: a puppy, cow: a calf, sheep: a lamb, pig: a piglet, duck: a duckling, lion: a cub,
            kangaroo: a joey, goose: a gosling, frog: a tadpole, goat: a kid, chicken: a chick, bear: a cub,
            whale: a calf, human: an infant, elephant: a calf, horse: a foal"""
        ),
    ),
    Relation(
        "number_after",
        "The number after {x} is {y}.",
        (*_ask("the number after {x}"), "What number comes after {x}?", "Which number comes after {x}?"),
        ("Do you know the number after {x}?", "After {x}, which number comes next?"),
        dict(pairwise(_NUMBERS)),
    ),
    Relation(
        "number_before",
        "The number before {x} is {y}.",
        (*_ask("the number before {x}"), "What number comes before {x}?", "Which number comes before {x}?"),
        ("Do you know the number before {x}?", "Before {x}, which number comes first?"),
        dict(pairwise(_NUMBERS[::-1])),
    ),
    Relation(
        "month_after",
        "After {x} comes {y}.",
        (*_ask("the month after {x}"), "What month comes after {x}?", "Which month comes after {x}?"),
        ("Do you know the month after {x}?", "After {x}, which month comes next?"),
        dict(zip(_MONTHS, _MONTHS[1:] + _MONTHS[:1], strict=True)),
    ),
    Relation(
        "day_after",
        "After {x} comes {y}.",
        (*_ask("the day after {x}"), "What day comes after {x}?", "Which day comes after {x}?"),
        ("Do you know the day after {x}?", "After {x}, which day comes next?"),
        dict(zip(_DAYS, _DAYS[1:] + _DAYS[:1], strict=True)),
    ),
    Relation(
        "legs",
        "{x} has {y} legs.",
        (
            "How many legs does {x} have?",
            "Tell me how many legs {x} has.",
            "What is the number of legs of {x}?",
            "Can you tell me how many legs {x} has?",
            "I want to know how many legs {x} has.",
            "Count the legs of {x}.",
        ),
        ("Do you know how many legs {x} has?", "Which number of legs does {x} have?"),
        _pairs(
            """a spider: eight, a dog: four, a bird: two, an ant: six, a table: four, a snake: no, a fish: no,
            a horse: four, a beetle: six, a chicken: two"""
        ),
    ),
    Relation(
        "sides",
        "{x} has {y} sides.",
        (
            "How many sides does {x} have?",
            "Tell me how many sides {x} has.",
            "What is the number of sides of {x}?",
            "Can you tell me how many sides {x} has?",
            "I want to know how many sides {x} has.",
            "Count the sides of {x}.",
        ),
        ("Do you know how many sides {x} has?", "Which number of sides does {x} have?"),
        _pairs("a triangle: three, a square: four, a pentagon: five, a hexagon: six, an octagon: eight"),
    ),
    Relation(
        "home",
        "{x} lives in {y}.",
        (
            "Where does {x} live?",
            "In which place does {x} live?",
            "Tell me where {x} lives.",
            "What is the place where {x} lives?",
            "Can you tell me where {x} lives?",
            "I want to know where {x} lives.",
        ),
        ("Do you know where {x} lives?", "What place does {x} live in?"),
        _pairs(
            """a bee: a hive, a bird: a nest, a fish: the water, a camel: the desert, a monkey: the jungle,
            a shark: the ocean, a bat: a cave, a king: a castle, a cow: a barn, a spider: a web, a farmer: a farm,
            a deer: the forest, a worm: the soil"""
        ),
    ),
    Relation(
        "kind",
        "{x} is {y}.",
        (
            "What kind of thing is {x}?",
            "Which kind of thing is {x}?",
            "Tell me what kind of thing {x} is.",
            "Can you tell me what kind of thing {x} is?",
            "I want to know what kind of thing {x} is.",
            "What kind of thing do we call {x}?",
        ),
        ("Do you know what kind of thing {x} is?", "What sort of thing is {x}?"),
        _pairs(
            """a rose: a flower, a tulip: a flower, a peach: a fruit, a pear: a fruit, an orange: a fruit,
            a salmon: a fish, an eagle: a bird, a penguin: a bird, a sparrow: a bird, gold: a metal, silver: a metal,
            iron: a metal, a violin: an instrument, a piano: an instrument, a trumpet: an instrument, a hammer: a tool,
            a potato: a vegetable, an onion: a vegetable, tennis: a sport, football: a sport, a butterfly: an insect,
            a beetle: an insect, a shirt: a garment, a jacket: a garment, Venus: a planet, Saturn: a planet"""
        ),
    ),
)
