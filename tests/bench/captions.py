"""Distinct captions as the web writes them: alt texts, titles and sentences, some with accents, quotes or entities."""

from __future__ import annotations

import random

SUBJECTS = """cat dog horse woman man girl boy couple family bicycle sailboat lighthouse bridge church kitchen sofa lamp
teapot guitar violin laptop phone sneaker dress handbag necklace watch pizza cupcake salad coffee sunflower rose oak
mountain glacier waterfall beach desert skyline train tractor motorcycle helicopter owl heron butterfly elephant
tiger penguin turtle astronaut footballer dancer chef carpenter nurse""".split()
ADJECTIVES = """red blue green golden rusty vintage modern tiny giant wooden striped fluffy smiling old young abandoned
colourful handmade elegant cozy misty snowy sunlit rainy black-and-white minimalist rustic luxury cheap waterproof
stainless organic antique floral geometric watercolor""".split()
ACTIONS = """sitting on|standing near|running past|looking at|leaning against|painted on|printed on|reflected in|flying
over|sleeping under|waiting by|playing with|walking through|hanging above|resting beside""".replace("\n", " ").split(
    "|"
)
PLACES = """Paris Kyoto Lisbon Oslo Marrakesh Vermont Yosemite Tuscany Brooklyn Havana Cusco Reykjavík Zürich Málaga
Kraków Orléans São-Paulo Istanbul Cape-Town Edinburgh""".split()
STYLES = """photo illustration drawing stock-image close-up print poster wallpaper logo sticker t-shirt render icon
screenshot mug tapestry""".split()
ENDINGS = [
    "",
    ".",
    "!",
    " | Etsy",
    " - Pinterest",
    "...",
    " (2019)",
    " [4K]",
    " – eBay",
    " #travel #love",
    " &amp; more",
]


def captions(num: int, seed: int = 0) -> list[str]:
    """Return `num` distinct captions, the same for the same seed."""
    rng = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < num:
        made[_caption(rng)] = None
    return list(made)


def _caption(rng: random.Random) -> str:
    subject, other = rng.sample(SUBJECTS, 2)
    adjective, another = rng.sample(ADJECTIVES, 2)
    style, place = rng.choice(STYLES), rng.choice(PLACES)
    number = rng.randint(1, 9999)
    sentence = f"A {adjective} {subject} {rng.choice(ACTIONS)} the {another} {other}"
    return rng.choice(
        [
            f"{sentence} in {place}{rng.choice(ENDINGS)}",
            f"{sentence}, {style} {number}",
            f"{subject.title()} {other.title()} {style.title()} {number / 10:.1f}x{number}mm{rng.choice(ENDINGS)}",
            f"{rng.choice(['Free', 'Best', 'Women’s', 'Kid’s', 'DIY'])} {adjective} {subject} {style} from {place}",
            f"IMG_{number:04d}.jpg: it's the {adjective} {subject}, isn't it? {place.upper()}",
        ]
    )
