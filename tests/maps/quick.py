"""Options that make a method of many forward passes cheap enough to be tested everywhere."""

from __future__ import annotations

__all__ = ["quick"]

_OPTIONS = {
    "extremalperturbation": "iterations=3,step=4,sigma=5,blur=3,levels=3",
    "iscam": "steps=2",
    "rise": "masks=30,cells=4",
    "sscam": "samples=2,noise=0.5",
}


def quick(name: str) -> str:
    """The method's name, with options where it has some here."""
    return f"{name}:{_OPTIONS[name]}" if name in _OPTIONS else name
