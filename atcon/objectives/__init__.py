"""The terms a loss can be made of. Adding one: a file here and a line below."""

from __future__ import annotations

from atcon.objectives.base import Objective
from atcon.objectives.consistency import Consistency, consistency_loss
from atcon.objectives.supervised import Supervised, supervised_loss
from wsod.registry import Registry

__all__ = ["OBJECTIVES", "Objective", "consistency_loss", "supervised_loss"]

OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective", {entry.name: entry for entry in (Supervised, Consistency)}
)
