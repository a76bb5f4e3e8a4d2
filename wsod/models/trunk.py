"""The part of a network that gives the feature maps, taken out of it: what heads are put on.

Most networks are a chain of modules, each fed with the output of the one before. Whether this one is a chain
as far as the feature layer is not guessed: the chain is run beside the network, and has to give the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from wsod.errors import ModelError
from wsod.models.classifier import evaluation_mode, resolve_layer

__all__ = ["Steps", "chain", "example", "nest", "output_shapes", "refine"]

Steps = list[tuple[str, nn.Module]]


def example(module: nn.Module, size: int, channels: int = 3) -> Tensor:
    """(1, channels, size, size) noise where `module`'s parameters are; the global generator is left alone."""
    like = next(module.parameters(), torch.zeros(()))
    noise = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)


def chain(network: nn.Module, layer: str, size: int) -> Steps:
    """Paths and modules of the chain that leads from the image to `layer`, containers opened.

    Args:
        network: built, with the input side `size`.
        layer: path of the last step.
        size: of the images it is checked with.

    Raises:
        ModelError: where the network is no such chain up to there, or its output is no grid.
    """
    layer = resolve_layer(network, layer)
    steps: Steps = []
    _walk(network, "", layer, steps)
    images, expected = example(network, size), []
    handle = network.get_submodule(layer).register_forward_hook(lambda *call: expected.append(call[2]))
    where = f"{type(network).__name__}, layer {layer}"
    hint = "Heads of their own go on convolutional networks; choose another layer by the head's option."
    try:
        with evaluation_mode(network), torch.no_grad():
            network(images)
            handle.remove()
            found = nest(steps)(images)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
        raise ModelError(where, "a chain of modules from the image to the layer", error, hint) from error
    finally:
        handle.remove()
    same = len(expected) == 1 and isinstance(expected[0], Tensor) and expected[0].shape == found.shape
    if not same or float((expected[0] - found).abs().max()) > 1e-3 * float(found.abs().max()):
        raise ModelError(where, "a chain of modules from the image to the layer", "other values", hint)
    if found.ndim != 4:
        raise ModelError(where, "feature maps (N, D, h, w)", f"a tensor of {found.ndim} dimensions", hint)
    return steps


def _walk(module: nn.Module, path: str, layer: str, steps: Steps) -> bool:
    """Append the steps of `module` in order; whether `layer` was reached."""
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if type(child).forward is nn.Sequential.forward and len(child):  # type: ignore[arg-type]
            if _walk(child, inner, layer, steps) or inner == layer:
                return True
        else:
            steps.append((inner, child))
            if inner == layer or layer.startswith(f"{inner}."):
                return True
    return False


def nest(steps: Steps) -> nn.Sequential:
    """The steps as one module, in which every step has its old path."""
    root = nn.Sequential()
    for path, module in steps:
        *parents, name = path.split(".")
        place = root
        for part in parents:
            if part not in place._modules:
                place.add_module(part, nn.Sequential())
            place = cast(nn.Sequential, place.get_submodule(part))
        place.add_module(name, module)
    return root


def output_shapes(modules: Sequence[nn.Module], images: Tensor) -> list[tuple[int, int, int]]:
    """(channels, h, w) after each module of a chain, in evaluation mode."""
    shapes = []
    x = images
    with torch.no_grad():
        for module in modules:
            with evaluation_mode(module):
                x = module(x)
            shapes.append((x.shape[1], x.shape[2], x.shape[3]))
    return shapes


def refine(module: nn.Module, inputs: Tensor, grid: int, *, first: bool = False) -> None:
    """Leave out halvings until the output's height is at least `grid`, the last of them first. In place.

    A convolution's or overlapping pooling's stride becomes 1, a pooling without overlap is passed by. Weights
    keep their shape and meaning; what comes after sees a finer grid than it was trained on (no dilation).

    Args:
        module: a chain.
        inputs: (1, C, h, w) an example of its input.
        grid: cells the output has to have.
        first: the first halving is left out first, as LFI-CAM's public code does.

    Raises:
        ModelError: where no halving is left.
    """
    while (height := output_shapes([module], inputs)[0][1]) < grid:
        halvings = _halvings(module, inputs)
        if not halvings:
            hint = "Ask for a coarser grid, or another layer, by the head's options."
            raise ModelError("trunk", f"a grid of {grid} cells", f"{height} without any stride", hint)
        shape = halvings[0 if first else -1][1]
        for path, reached in halvings:
            if reached == shape:
                _keep_grid(module, path)


def _halvings(module: nn.Module, inputs: Tensor) -> list[tuple[str, tuple[int, int]]]:
    """Path and (input, output) height of every layer with a stride, in the order in which they run."""
    found: list[tuple[str, tuple[int, int]]] = []
    handles = []
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):

            def note(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
                if output.shape[2] < given[0].shape[2] and _side(layer.stride) > 1:
                    found.append((path, (given[0].shape[2], output.shape[2])))

            handles.append(layer.register_forward_hook(note))
    try:
        output_shapes([module], inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _side(value: Any) -> int:
    """Of a stride or kernel size, which may be one number or two."""
    return int(value[0] if isinstance(value, tuple) else value)


def _keep_grid(module: nn.Module, path: str) -> None:
    layer: Any = module.get_submodule(path)
    if not isinstance(layer, nn.Conv2d) and _side(layer.kernel_size) == _side(layer.stride):
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, nn.Identity())
    else:
        layer.stride = (1, 1)
