"""A network that classifies, with what is needed to look into it: its target layer and preprocessing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsod.config import plain
from wsod.errors import ModelError
from wsod.models.final import final_layer
from wsod.models.preprocess import Preprocess
from wsod.registry import nearest

__all__ = ["Classifier", "Layout", "evaluation_mode", "resolve_layer"]

Layout = Literal["NCHW", "NHWC", "tokens", "NCTHW"]
Task = Literal["multiclass", "multilabel"]


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Every part of `module` in evaluation mode, and back in its own afterwards."""
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def resolve_layer(network: nn.Module, path: str) -> str:
    """The full path of a submodule; a negative number counts children from the end (`features.-2`).

    Raises:
        ModelError: where there is none, with the nearest path that exists.
    """
    module, parts = network, []
    for part in path.split("."):
        children = dict(module.named_children())
        if part.startswith("-") and part[1:].isdigit() and int(part[1:]) <= len(children):
            part = list(children)[int(part)]
        if part not in children:
            paths = [name for name, _ in network.named_modules() if name]
            hint = nearest(path, paths)
            if "Did you mean" not in hint:
                hint = "Its outer modules are: " + ", ".join(dict(network.named_children())) + "."
            raise ModelError("target layer", f"a module of {type(network).__name__}", repr(path), hint)
        module = children[part]
        parts.append(part)
    return ".".join(parts)


class Classifier(nn.Module):
    """An image classifier and what maps need to know about it.

    Args:
        network: (N, 3, H, W) → logits (N, C); an output with a `logits` attribute will do.
        arch: the name it was built by (`resnet50`, `timm:NAME`, `module:factory`), or a class name.
        head: its head's name in `wsod.models.heads.HEADS`.
        head_options: the head's options that are not its defaults.
        blocks: options of the blocks in it, by their names in `wsod.models.blocks.BLOCKS`.
        classes: class names, in the order of the logits.
        task: `multiclass` (softmax) or `multilabel` (sigmoid).
        target_layer: path in `network` of the module whose output is the feature map.
        preprocess: how its input is made from an image.
        layout: how that output is laid out: `NCHW`, `NHWC`, `tokens` (N, prefix + h·w, D), or `NCTHW`, of
            videos, for training objectives alone.
        prefix: tokens before the grid (class and register tokens).
        attention_layer: path in `network` of the module whose output is the head's attention, or None.
        supervision: what its training used, for the column of that name in tables.

    Attributes:
        loaded: what was loaded into it, in words.
        sha256: of the file it was loaded from, or None.

    Raises:
        ModelError: where the target layer does not exist.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        arch: str,
        classes: Sequence[str],
        target_layer: str,
        head: str = "linear",
        head_options: Mapping[str, Any] | None = None,
        blocks: Mapping[str, Mapping[str, Any]] | None = None,
        task: Task = "multiclass",
        preprocess: Preprocess | None = None,
        layout: Layout = "NCHW",
        prefix: int = 0,
        attention_layer: str | None = None,
        supervision: tuple[str, ...] = ("image labels",),
    ) -> None:
        super().__init__()
        self.network = network
        self.arch, self.head = arch, head
        self.head_options, self.blocks = dict(head_options or {}), dict(blocks or {})
        self.task: Task = task
        self.classes = tuple(str(name) for name in classes)
        self.target_layer = resolve_layer(network, target_layer)
        self.preprocess = preprocess or Preprocess()
        self.layout, self.prefix = layout, prefix
        self.attention_layer, self.supervision = attention_layer, supervision
        self.loaded = "random weights"
        self.sha256: str | None = None

    def about(self) -> dict[str, Any]:
        """What a result's provenance keeps of it."""
        about = {
            "arch": self.arch,
            "head": self.head,
            "head_options": self.head_options or None,
            "blocks": self.blocks or None,
            "task": self.task,
            "classes": len(self.classes),
            "target_layer": self.target_layer,
            "preprocess": plain(self.preprocess),
            "loaded": self.loaded,
            "sha256": self.sha256,
        }
        return {key: value for key, value in about.items() if value is not None}

    def forward(self, images: Tensor, auxiliary: bool = False) -> Any:
        """(N, 3, H, W) → logits (N, C), before softmax or sigmoid.

        Args:
            images: preprocessed.
            auxiliary: give a tuple: the logits, and those of further classifiers in the network that are
                trained with the same labels and not asked later (ABN's branch).
        """
        output: Any = self.network(images)
        found = (getattr(output, "logits", output), *getattr(output, "auxiliary", ()))
        for logits in found:
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise ModelError(self.arch, "logits of shape (N, classes)", _describe(logits))
        return found if auxiliary else found[0]

    def head_parameters(self) -> list[nn.Parameter]:
        """What did not come with the architecture: a head's own parameters, or the last layer's."""
        trunk = getattr(self.network, "trunk", None)
        if self.head == "linear" or not isinstance(trunk, nn.Module):
            return list(final_layer(self.network, len(self.classes))[1].parameters())
        inside = {id(parameter) for parameter in trunk.parameters()}
        return [parameter for parameter in self.network.parameters() if id(parameter) not in inside]

    def grid(self, features: Tensor) -> Tensor:
        """The target layer's output as feature maps (N, D, h, w): tokens dropped and folded, NHWC turned.

        Raises:
            ModelError: where the output is no grid.
        """
        where = f"{self.arch}, layer {self.target_layer}"
        if not isinstance(features, Tensor):
            raise ModelError(where, "a tensor as output", _describe(features), "Choose another target layer.")
        if features.ndim == 4:
            # a LayerNorm or attention block inside an NHWC network; its convolutions give NCHW
            if self.layout == "NHWC" and not self._gives_nchw():
                return features.permute(0, 3, 1, 2)
            return features
        if features.ndim == 5 and self.layout == "NCTHW":
            return features
        if features.ndim == 3:
            shape = self._token_grid(features.shape[1] - self.prefix)
            if self.layout == "tokens" and shape:
                grid = features[:, self.prefix :].transpose(1, 2)
                return grid.reshape(len(features), features.shape[2], *shape)
        raise ModelError(
            where,
            "feature maps (N, D, h, w) or tokens on the network's or a square grid",
            _describe(features),
            "Choose a target layer before the pooling.",
        )

    def ungrid(self, grid: Tensor, like: Tensor) -> Tensor:
        """The inverse of `grid`: (B, D, h, w) in the target layer's own layout.

        Args:
            grid: feature maps.
            like: (B, ...) an output of the target layer; tokens before the grid are taken from it.
        """
        if like.ndim == 3:
            return torch.cat([like[:, : self.prefix], grid.flatten(2).transpose(1, 2).to(like.dtype)], 1)
        if self.layout == "NHWC" and not self._gives_nchw():
            grid = grid.permute(0, 2, 3, 1)
        return grid.to(like.dtype)

    def _token_grid(self, tokens: int) -> tuple[int, int] | None:
        """(h, w) of that many patches: what the network says (timm's do), or a square."""
        embedding = getattr(self.network, "patch_embed", None)
        shape = getattr(embedding, "grid_size", None)
        if isinstance(shape, tuple | list) and len(shape) == 2 and shape[0] * shape[1] == tokens:
            return shape[0], shape[1]
        side = math.isqrt(max(tokens, 0))
        return (side, side) if side and side * side == tokens else None

    def _gives_nchw(self) -> bool:
        module = self.network.get_submodule(self.target_layer)
        return isinstance(module, nn.Conv2d) or type(module).__name__ == "Permute"


def _describe(output: object) -> str:
    if isinstance(output, torch.Tensor):
        return "a tensor of shape " + "x".join(map(str, output.shape))
    return type(output).__name__
