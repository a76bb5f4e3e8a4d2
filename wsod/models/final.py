"""The layer that gives the logits."""

from __future__ import annotations

from torch import nn

from wsod.errors import ModelError

__all__ = ["final_layer"]


def final_layer(network: nn.Module, outputs: int | None = None) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Path and module of the layer that gives the logits: the last linear layer or 1×1 convolution.

    Args:
        network: a classifier.
        outputs: its number of classes, where known: a layer with as many outputs goes before later ones.

    Raises:
        ModelError: where the network has no such layer.
    """
    found: list[tuple[str, nn.Linear | nn.Conv2d]] = []
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        ):
            found.append((path, module))
    if not found:
        raise ModelError(type(network).__name__, "a linear layer or 1x1 convolution for the logits", "none")
    fitting = [(path, layer) for path, layer in found if len(layer.weight) == outputs]
    return (fitting or found)[-1]
