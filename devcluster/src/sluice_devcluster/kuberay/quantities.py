"""Kubernetes resource quantities: as many of their forms as pod templates here use."""

import math
from collections.abc import Iterable
from fractions import Fraction

BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
DECIMAL = {"m": Fraction(1, 1000), "": Fraction(1), "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9)}


def parse(quantity: str | int | float) -> Fraction:
    """The value of a quantity such as `200m`, `2`, `1.5Gi`. Raises ValueError."""
    text = str(quantity)
    for unit, factor in BINARY.items():
        if text.endswith(unit):
            return Fraction(text[: -len(unit)]) * factor
    number = text.rstrip("mkMG")
    return Fraction(number) * DECIMAL[text[len(number) :]]


def whole(quantity: str | int | float) -> int:
    """The value, rounded up."""
    return math.ceil(parse(quantity))


def total_cpu(quantities: Iterable[str | int | float]) -> str:
    """A sum in canonical form: `2`, or `2400m`."""
    value = sum((parse(q) for q in quantities), Fraction(0))
    return str(int(value)) if value.denominator == 1 else f"{math.ceil(value * 1000)}m"


def total_memory(quantities: Iterable[str | int | float]) -> str:
    """A sum in the largest binary unit that divides it."""
    value = math.ceil(sum((parse(q) for q in quantities), Fraction(0)))
    for unit, factor in reversed(BINARY.items()):
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return str(value)
