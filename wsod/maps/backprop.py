"""Maps at the input's resolution, from one backward pass to the image."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from wsod.errors import ConfigError
from wsod.maps.gradcam import gradcam
from wsod.maps.tape import Tape

__all__ = [
    "Reduce",
    "deconvnet",
    "gradient",
    "guidedbackprop",
    "guidedgradcam",
    "inputxgradient",
    "over_colours",
]

Reduce = Literal["max", "sum", "signed"]


def over_colours(attribution: Tensor, reduce: Reduce) -> Tensor:
    """(M, 3, H, W) → (M, H, W): the largest absolute value, the sum of absolute values, or the plain sum."""
    if reduce == "max":
        return attribution.abs().amax(1)
    if reduce == "sum":
        return attribution.abs().sum(1)
    if reduce == "signed":
        return attribution.sum(1)
    raise ConfigError("reduce", "max, sum or signed", repr(reduce))


def gradient(tape: Tape, cases: Tensor, *, create_graph: bool = False, reduce: Reduce = "max") -> Tensor:
    """max over RGB of |∂s/∂x| (Simonyan et al., "Deep Inside Convolutional Networks", 2014).

    Args:
        tape: a forward pass that needs `input_gradient`.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient.
        reduce: over the colours.

    Returns:
        (M, H, W).
    """
    return over_colours(tape.input_gradient(cases, create_graph=create_graph), reduce)


def inputxgradient(
    tape: Tape, cases: Tensor, *, create_graph: bool = False, reduce: Reduce = "signed"
) -> Tensor:
    """Σ over RGB of x·∂s/∂x, x the normalised image (Shrikumar et al., "Not Just a Black Box", 2016).

    Args:
        tape: a forward pass that needs `input_gradient`.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient.
        reduce: over the colours.

    Returns:
        (M, H, W).
    """
    images = tape.images[cases[:, 0].to(tape.images.device)]
    return over_colours(images * tape.input_gradient(cases, create_graph=create_graph), reduce)


def guidedbackprop(
    tape: Tape, cases: Tensor, *, create_graph: bool = False, reduce: Reduce = "max"
) -> Tensor:
    """The gradient with rectifiers passing back only what is positive, where their input was (guided rule).

    Springenberg et al., "Striving for Simplicity", ICLR 2015 workshop. ReLU6 and LeakyReLU follow the rule
    with their own gates.

    Args:
        tape: a forward pass that needs `input_gradient`.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient.
        reduce: over the colours.

    Returns:
        (M, H, W).

    Raises:
        ModelError: for networks with GELU, SiLU and the like.
    """
    attribution = tape.input_gradient(cases, rule="guided", create_graph=create_graph)
    return over_colours(attribution, reduce)


def deconvnet(tape: Tape, cases: Tensor, *, create_graph: bool = False, reduce: Reduce = "max") -> Tensor:
    """The gradient with rectifiers passing back what is positive (Zeiler & Fergus, ECCV 2014).

    Args:
        tape: a forward pass that needs `input_gradient`.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient.
        reduce: over the colours.

    Returns:
        (M, H, W).

    Raises:
        ModelError: for networks with GELU, SiLU and the like.
    """
    attribution = tape.input_gradient(cases, rule="deconvnet", create_graph=create_graph)
    return over_colours(attribution, reduce)


def guidedgradcam(tape: Tape, cases: Tensor, *, create_graph: bool = False, reduce: Reduce = "max") -> Tensor:
    """Grad-CAM, bilinearly upsampled, times guided backpropagation (Selvaraju et al., ICCV 2017).

    Args:
        tape: a forward pass that needs `input_gradient`.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradients.
        reduce: over the colours.

    Returns:
        (M, H, W).

    Raises:
        ModelError: for networks with GELU, SiLU and the like.
    """
    attribution = tape.input_gradient(cases, rule="guided", create_graph=create_graph)
    coarse = gradcam(tape, cases, create_graph=create_graph)
    size = attribution.shape[-2:]
    fine = F.interpolate(coarse[:, None], size=size, mode="bilinear", align_corners=False)
    return over_colours(fine * attribution, reduce)
