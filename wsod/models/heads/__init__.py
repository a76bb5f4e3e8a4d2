"""What turns feature maps into logits. One file a head; HEADS names them."""

from __future__ import annotations

from wsod.models.heads.abn import ABN
from wsod.models.heads.base import Attached, Head, HeadNetwork, HeadOutput, Site
from wsod.models.heads.calm import CALM
from wsod.models.heads.lfi import LFI
from wsod.models.heads.linear import Linear
from wsod.models.heads.ltpa import LTPA
from wsod.registry import Registry

__all__ = ["HEADS", "Attached", "Head", "HeadNetwork", "HeadOutput", "Site"]

HEADS: Registry[type[Head]] = Registry(
    "head", {entry.name: entry for entry in (Linear, LFI, LTPA, ABN, CALM)}
)
