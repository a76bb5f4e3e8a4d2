"""The ordinary head: one linear layer (or 1×1 convolution) that gives a logit a class."""

from __future__ import annotations

from torch import nn

from wsod.errors import ModelError

__all__ = ["attach_linear", "final_layer", "replace_module"]


def final_layer(network: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Path and module of the layer that gives the logits: the last linear layer or 1×1 convolution.

    Raises:
        ModelError: where the network has neither.
    """
    found: tuple[str, nn.Linear | nn.Conv2d] | None = None
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        ):
            found = path, module
    if found is None:
        raise ModelError(type(network).__name__, "a linear layer or 1x1 convolution for the logits", "none")
    return found


def replace_module(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` in the place of `network`'s submodule at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def attach_linear(network: nn.Module, classes: int, target_layer: str) -> nn.Module:
    """`network` with that many outputs; its final layer is replaced only where the count differs.

    Args:
        network: a classifier whose last linear layer gives the logits.
        classes: number of classes.
        target_layer: unused here; heads that read the feature maps need it.
    """
    path, layer = final_layer(network)
    new: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Conv2d):
        if layer.out_channels == classes:
            return network
        new = nn.Conv2d(layer.in_channels, classes, 1, bias=layer.bias is not None)
        nn.init.normal_(new.weight, std=0.01)
        if new.bias is not None:
            nn.init.zeros_(new.bias)
    else:
        if layer.out_features == classes:
            return network
        new = nn.Linear(layer.in_features, classes, bias=layer.bias is not None)
    replace_module(network, path, new.to(layer.weight.device, layer.weight.dtype))
    return network
