"""What can be done to a batch before the objectives see it. Adding one: a file here and a line below."""

from __future__ import annotations

from atcon.transforms.base import Transform
from atcon.transforms.cutmix import CutMix
from atcon.transforms.has import HideAndSeek
from wsod.registry import Registry

__all__ = ["TRANSFORMS", "CutMix", "HideAndSeek", "Transform"]

TRANSFORMS: Registry[type[Transform]] = Registry(
    "transform", {entry.name: entry for entry in (HideAndSeek, CutMix)}
)
