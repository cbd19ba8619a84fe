"""Parameters: NAME=VALUE pairs as they are typed, read into plain values."""
import json
import math
import re

WHOLE = 2 ** 63  # whole numbers beyond this do not fit a tensor


def parse_parameters(pairs: list[str]) -> dict:
    """``["seed=3", "model=rte"]`` -> ``{"seed": 3, "model": "rte"}``.

    Values are JSON where they can be read so, else text. Raises ValueError, naming the parameter,
    unless a pair reads NAME=VALUE, NAME comes once, and a number is finite and fits 64 bits.
    """
    values: dict = {}
    for pair in pairs:
        if not re.match(r"[A-Za-z_][\w.]*=", pair):
            raise ValueError(f"parameter {pair!r} is not of the form NAME=VALUE")
        name, text = pair.split("=", 1)
        if name in values:
            raise ValueError(f"parameter {name} is given twice")
        values[name] = _value(name, text)
    return values


def _value(name: str, text: str) -> object:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"parameter {name} is {text}; it must be a finite number")
    if isinstance(value, int) and not -WHOLE <= value < WHOLE:
        raise ValueError(f"parameter {name} is {text}; whole numbers must fit 64 bits")
    return value
