"""Mutations that keep JSON sound, so that what lies behind its parser is reached."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from typing import Any

__all__ = ["mutated"]

# what a careless or hostile writer puts where something else belongs
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**64), 10**400, 0.5, 1e-320, 1e308, math.inf, math.nan,
    "", "a", "\0", "7", "../a", "\ud800", "x" * 300, [], {}, [[]], [0], [1, 2, 3, 4], [1e9] * 6,
    {"size": [1, 1]},
]  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container within, with each of its keys."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def mutated(data: bytes, seed: int) -> bytes | None:
    """One line of JSON with a value replaced, moved, repeated or left out; None where there is none.

    Lines end in a line feed or, where bytes stand for several files, in NUL.
    """
    chance = random.Random(seed)
    parts = re.split(rb"([\0\n])", data)
    line = 2 * chance.randrange((len(parts) + 1) // 2)
    try:
        whole = [json.loads(parts[line])]
    except (ValueError, RecursionError):
        return None
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = _places(whole)
        holder, key = chance.choice(places)
        other, from_key = chance.choice(places)
        kind = chance.randrange(5)
        if kind == 0 and holder is not whole:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 2:
            holder[key] = copy.deepcopy(other[from_key])
        elif kind == 3 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * chance.choice((-1, 1, 2, 1000)) + chance.choice((0, 1, -1))
        else:
            holder[key] = copy.deepcopy(chance.choice(VALUES))
    parts[line] = json.dumps(whole[0]).encode()
    return b"".join(parts)
