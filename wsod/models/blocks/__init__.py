"""What features pass through on their way. One file a block; BLOCKS names them."""

from __future__ import annotations

from wsod.models.blocks.adl import ADL
from wsod.models.blocks.base import Block, insert
from wsod.registry import Registry

__all__ = ["BLOCKS", "Block", "insert"]

BLOCKS: Registry[type[Block]] = Registry("block", {entry.name: entry for entry in (ADL,)})
