"""Plain data as YAML text, so that contracts need no YAML library: maps, lists, text, numbers and booleans only."""

import json
import re
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*( [A-Za-z0-9_./(),;'-]+)*")
"""Text that means itself without quotes, whatever version of YAML reads it."""
_RESERVED = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def yaml_text(value: Any) -> str:
    """`value` as a YAML document. Raises TypeError for anything JSON could not hold, None and empty keys included."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in _entry(f"{_scalar(key)}:", item)]
    if isinstance(value, list) and value:
        return [line for item in value for line in _item(item)]
    return [_scalar(value)]


def _entry(key: str, item: Any) -> list[str]:
    if isinstance(item, dict) and item:
        return [key, *(f"  {line}" for line in _lines(item))]
    if isinstance(item, list) and item:
        return [key, *_lines(item)]
    return [f"{key} {_scalar(item)}"]


def _item(item: Any) -> list[str]:
    first, *rest = _lines(item)
    return [f"- {first}", *(f"  {line}" for line in rest)]


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _RESERVED
        if plain:
            return value
        if value.isprintable() and ('"' in value or "\\" in value):
            return "'" + value.replace("'", "''") + "'"
        return '"' + "".join(_escaped(character) for character in value) + '"'
    if value is None or not isinstance(value, bool | int | float | dict | list):
        raise TypeError(f"{value!r} has no place in a manifest")
    text = json.dumps(value, allow_nan=False)
    if isinstance(value, float) and "e" in text and "." not in text:
        return text.replace("e", ".0e")  # YAML 1.1 takes 1e-07 for a string
    return text


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    return f"\\U{ord(character):08x}"
