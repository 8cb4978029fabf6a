"""How a fact is put into a clause."""

from rlhf_core.demo.facts import Attribute

NUM_VARIANTS = 2

_STATEMENTS: dict[Attribute, tuple[str, ...]] = {
    "opens": ("the {p} opens at {v}", "you can enter the {p} from {v}"),
    "closes": ("the {p} closes at {v}", "you can stay at the {p} until {v}"),
    "price": ("a ticket to the {p} costs {v}", "you pay {v} to enter the {p}"),
    "street": ("the {p} is on {v}", "you will find the {p} on {v}"),
    "bus": ("{v} goes to the {p}", "take {v} to the {p}"),
    "closed": ("the {p} is closed on {v}", "on {v} the {p} is closed"),
    "manager": ("{v} runs the {p}", "the {p} is run by {v}"),
}


def state_fact(place: str, attribute: Attribute, value: str, variant: int = 0) -> str:
    """Return a clause such as ``the museum opens at 9 am``, without capital or full stop."""
    return _STATEMENTS[attribute][variant].format(p=place, v=value)


def state_total(place: str, quantity: int, crowns: int) -> str:
    """Return a clause such as ``3 tickets to the museum cost 12 crowns``."""
    return f"{quantity} tickets to the {place} cost {crowns} crowns"


def state_hours(place: str, hours: int) -> str:
    """Return a clause such as ``the museum is open for 8 hours``."""
    return f"the {place} is open for {hours} hours"
