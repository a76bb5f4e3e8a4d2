"""What a block is: something a network's features pass through on their way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import ClassVar

from torch import nn

from wsod.models.classifier import resolve_layer

__all__ = ["Block", "insert"]


class Block(ABC):
    """A module put behind layers of a network. Concrete blocks are frozen dataclasses of their options.

    Attributes:
        name: its name in `BLOCKS`.
        summary: one line for `wsod list blocks`.
        supervision: what training it uses.
        citation: where it was published.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    supervision: ClassVar[tuple[str, ...]] = ("image labels",)
    citation: ClassVar[str] = ""

    @abstractmethod
    def places(self, network: nn.Module, layer: str) -> tuple[str, ...]:
        """Paths of the layers it goes behind; `layer` is the architecture's feature layer."""

    @abstractmethod
    def make(self) -> nn.Module:
        """One such module, (N, C, h, w) → the same shape."""


def insert(network: nn.Module, block: Block, layer: str) -> None:
    """Put the block behind each of its layers, in place: PATH becomes PATH.layer and PATH.NAME.

    Raises:
        ModelError: for a path that does not exist.
    """
    for place in [resolve_layer(network, path) for path in block.places(network, layer)]:
        parent, _, name = place.rpartition(".")
        owner = network.get_submodule(parent)
        both = OrderedDict([("layer", owner.get_submodule(name)), (block.name, block.make())])
        setattr(owner, name, nn.Sequential(both))
