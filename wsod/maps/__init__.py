"""Attention maps of image classifiers: one forward pass, many methods."""

from __future__ import annotations

from wsod.maps.extract import Attention, attention_maps, tape_for
from wsod.maps.method import MapMethod
from wsod.maps.registry import METHODS
from wsod.maps.tape import Tape

__all__ = ["METHODS", "Attention", "MapMethod", "Tape", "attention_maps", "tape_for"]
