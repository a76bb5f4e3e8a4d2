"""Options that make a method cheap enough to be tested everywhere, or give it something to show."""

from __future__ import annotations

__all__ = ["quick"]

_OPTIONS = {
    # random weights: the class may have nothing over its neighbours
    "finercam": "relu=false",
    "shapleycam": "relu=false",
}


def quick(name: str) -> str:
    """The method's name, with options where it has some here."""
    return f"{name}:{_OPTIONS[name]}" if name in _OPTIONS else name
