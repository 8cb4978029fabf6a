"""What is true in the town: ten places, seven things to know about each, drawn from one seed."""

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Attribute = Literal["opens", "closes", "price", "street", "bus", "closed", "manager"]
Slot = tuple[str, Attribute]
"""A place and what is asked about it."""

ATTRIBUTES: tuple[Attribute, ...] = (
    "opens",
    "closes",
    "price",
    "street",
    "bus",
    "closed",
    "manager",
)
PLACES = (
    "museum",
    "pool",
    "theatre",
    "castle",
    "cinema",
    "zoo",
    "gallery",
    "garden",
    "stadium",
    "tower",
)
STREET_HEADS = (
    "Mill",
    "Oak",
    "River",
    "Church",
    "Bridge",
    "Hill",
    "King",
    "Station",
    "Rose",
    "Bell",
)
STREET_TAILS = ("Street", "Lane", "Road", "Square")
FIRST_NAMES = ("Anna", "Bruno", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Irma", "Jonas")
LAST_NAMES = ("Berg", "Holm", "Lind", "Marsh", "Novak", "Olsen", "Pavel", "Quist", "Rossi", "Stern")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
QUANTITIES = (2, 3, 4, 5)
"""How many tickets a question may ask the price of."""
NUM_HELDOUT_FACTS = 8
WORLD_SEED = 7
"""The town itself; changing it makes another town, so base model and raw files must be rebuilt."""


@dataclass(frozen=True)
class Town:
    """The fact table."""

    facts: dict[Slot, str]
    heldout: frozenset[Slot]
    """Facts that no demonstration, comparison or PPO prompt asks about."""
    candidates: dict[Attribute, tuple[str, ...]]
    """Every value an attribute takes somewhere in town: the source of plausible mistakes."""

    def value(self, place: str, attribute: Attribute) -> str:
        """Return what is true, as it is written in an answer."""
        return self.facts[(place, attribute)]

    def price(self, place: str) -> int:
        """Return the price of a ticket in crowns."""
        return int(self.value(place, "price").split()[0])

    def hours_open(self, place: str) -> int:
        """Return for how many hours a day the place is open."""
        opens = int(self.value(place, "opens").split()[0])
        closes = int(self.value(place, "closes").split()[0])
        return closes + 12 - opens


@lru_cache(maxsize=1)
def town() -> Town:
    """Return the town of ``WORLD_SEED``."""
    rng = random.Random(WORLD_SEED)
    num_places = len(PLACES)
    streets = [
        f"{head} {rng.choice(STREET_TAILS)}" for head in rng.sample(STREET_HEADS, num_places)
    ]
    last_names = rng.sample(LAST_NAMES, num_places)
    first_names = rng.sample(FIRST_NAMES, num_places)
    people = [f"{first} {last}" for first, last in zip(first_names, last_names, strict=True)]
    columns: dict[Attribute, list[str]] = {
        "opens": [f"{rng.randint(7, 11)} am" for _ in PLACES],
        "closes": [f"{rng.randint(4, 9)} pm" for _ in PLACES],
        "price": [f"{rng.randint(2, 9)} crowns" for _ in PLACES],
        "street": streets,
        "bus": [f"bus {number}" for number in rng.sample(range(11, 40), num_places)],
        "closed": [rng.choice(WEEKDAYS) for _ in PLACES],
        "manager": people,
    }
    facts = {
        (place, attribute): columns[attribute][i]
        for i, place in enumerate(PLACES)
        for attribute in ATTRIBUTES
    }
    heldout = frozenset(rng.sample(sorted(facts), NUM_HELDOUT_FACTS))
    candidates = {name: tuple(sorted(set(values))) for name, values in columns.items()}
    return Town(facts=facts, heldout=heldout, candidates=candidates)
