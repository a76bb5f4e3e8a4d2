"""Layer-wise relevance propagation: shares of the score, handed back from layer to layer to the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wsod.errors import ConfigError, ModelError
from wsod.maps.backprop import Reduce, over_colours
from wsod.maps.derivatives import full
from wsod.maps.relevance import relevance_mode
from wsod.maps.rules import AlphaBeta, Box, BoxBias, Composite, Epsilon, Flat, Gamma, LayerRule, ZPlus
from wsod.maps.tape import Tape

__all__ = ["First", "RuleName", "composite", "lrp", "relevance", "relevances"]

RuleName = Literal["epsilon", "epsilon-plus", "gamma", "alpha-beta"]
First = Literal["same", "flat", "zb"]


def composite(
    tape: Tape,
    rule: RuleName = "epsilon",
    first: First = "same",
    *,
    epsilon: float = 1e-2,
    gamma: float = 0.25,
    alpha: float = 2.0,
    zb_bias: BoxBias = "cancel",
) -> Composite:
    """The rules of `lrp` by name, for the tape's network.

    Args:
        tape: the pass; its classifier says how images were normalised, and so their bounds for z^B.
        rule: see `lrp`.
        first: see `lrp`.
        epsilon: see `lrp`.
        gamma: see `lrp`.
        alpha: see `lrp`.
        zb_bias: see `lrp`.

    Raises:
        ConfigError: for another name, or a value out of range.
    """
    if epsilon < 0 or gamma < 0 or alpha < 1:
        got = f"epsilon={epsilon}, gamma={gamma}, alpha={alpha}"
        raise ConfigError("lrp", "epsilon and gamma of at least 0, alpha of at least 1", got)
    convolutions: dict[str, LayerRule | None] = {
        "epsilon": None,
        "epsilon-plus": ZPlus(),
        "gamma": Gamma(gamma),
        "alpha-beta": AlphaBeta(alpha),
    }
    if rule not in convolutions:
        raise ConfigError("rule", " or ".join(convolutions), repr(rule))
    if zb_bias not in ("cancel", "absorb"):
        raise ConfigError("zb_bias", "cancel or absorb", repr(zb_bias))
    preprocess = tape.classifier.preprocess
    low, high = (
        tuple((bound - mean) / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True))
        for bound in (0.0, 1.0)
    )
    entries: dict[str, LayerRule | None] = {
        "same": None,
        "flat": Flat(),
        "zb": Box(low, high, epsilon, zb_bias),
    }
    if first not in entries:
        raise ConfigError("first", " or ".join(entries), repr(first))
    if rule == "epsilon":
        return Composite(first=entries[first], epsilon=epsilon)
    return Composite(convolutions[rule], Epsilon(epsilon), entries[first])


def relevance(tape: Tape, cases: Tensor, rules: Composite, *, create_graph: bool = False) -> Tensor:
    """Relevance of every input value, (M, 3, H, W); its sum is the score, less what biases and ε absorb.

    Args: as `relevances`.
    """
    return relevances(tape, cases, rules, create_graph=create_graph)[0]


def relevances(
    tape: Tape,
    cases: Tensor,
    rules: Composite,
    layers: Sequence[str] = (),
    *,
    scores: Tensor | None = None,
    create_graph: bool = False,
) -> list[Tensor]:
    """Relevance of every input value, and of the outputs of further layers, from the same backward pass.

    Args:
        tape: a forward pass that needs `input_gradient` and `relevance`, made with these `layers`.
        cases: (M, 2) rows of (row, label); with `scores`, of (row, column of `scores`).
        rules: such as `composite` makes.
        layers: paths of layers.
        scores: (N, K) computed from `tape.logits`, to be explained instead of the logits; relevance then
            starts from the derivative of the score by the logits.
        create_graph: differentiable; the tape has to be made with `create_graph=True`.

    Returns:
        (M, 3, H, W), then (M, D, h, w) for each layer.

    Raises:
        ModelError: for networks with operations that relevance cannot be shared through.
    """
    mode = relevance_mode(tape, "lrp")
    entry = mode.entry
    if entry is None or not entry.requires_grad or entry.shape != tape.images.shape:
        raise ModelError(
            f"{tape.classifier.arch}, lrp",
            "a first layer that is run on the image",
            "another",
            "Use gradient.",
        )
    if isinstance(rules.first, Box) and not torch.equal(entry, tape.images):
        got = "one run on something computed from it"
        raise ModelError(f"{tape.classifier.arch}, z^B", "a first layer on the image", got, "Use first=flat.")
    inner = [tape.output(layer) for layer in layers]
    with mode.switch.set(rules):
        found = tape.derivatives((rules, *layers), [entry, *inner], cases, create_graph, scores)
    rows = cases[:, 0].to(entry.device)
    shared = []
    for place, (values, sent) in enumerate(zip([entry, *inner], found, strict=True)):
        if sent is None:
            raise ModelError(
                f"{tape.classifier.arch}, lrp", "logits that depend on the image", "none that do"
            )
        # the rules of the first layer alone give relevance itself; all else is a factor of the values
        factor = place > 0 or rules.first is None
        shared.append(full(values if create_graph else values.detach())[rows] * sent if factor else sent)
    return shared


def lrp(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    rule: RuleName = "epsilon",
    first: First = "same",
    epsilon: float = 1e-2,
    gamma: float = 0.25,
    alpha: float = 2.0,
    zb_bias: BoxBias = "cancel",
    reduce: Reduce = "signed",
    relu: bool = False,
    smooth: float = 0.0,
) -> Tensor:
    """Relevance R_i = Σ_j (share of input i in output j)·R_j, from the logit to the pixels, summed over RGB.

    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
    Propagation", PLoS ONE 2015; the shares are in `wsod.maps.rules`. The rules for the layers:

    - `epsilon`: the epsilon rule in its function form (Bassi et al., "Faster ISNet", 2024): image × gradient,
      the gradient through each ReLU times a / (a + ε). ε = 0 gives image × gradient; the layer of the logits
      and poolings have no ε. One forward and one backward pass.
    - `epsilon-plus`: epsilon for fully connected layers, z+ for convolutions. About two passes more than the
      forward, each convolution being run once more and transposed.
    - `gamma`, `alpha-beta`: the same with these rules for convolutions. Four passes more.

    Batch normalisation is folded into the layer before it, or the affine map that it is; max-pooling gives
    all to the winner; sums, averages and concatenations share in proportion.

    Differs from the paper: one ε in absolute terms, as in the implementations in use.

    Args:
        tape: a forward pass that needs `input_gradient` and `relevance`.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the relevance.
        rule: `epsilon`, `epsilon-plus`, `gamma` or `alpha-beta`.
        first: the first layer's rule: the `same`, `flat` (smooth maps), or `zb` (z^B, between black and
            white).
        epsilon: ε, of the scale of the activations.
        gamma: γ.
        alpha: α; β is α - 1.
        zb_bias: in z^B, biases `cancel` (relevance is kept), or positive ones `absorb` relevance, as in the
            code of ISNet's authors.
        reduce: over the colours: the sum (`signed`), the sum of absolute values (`sum`), or the largest.
        relu: keep positive relevance alone, after the colours are summed.
        smooth: standard deviation of a last Gaussian blur, as a share of each side.

    Returns:
        (M, H, W); the sum of `reduce="signed"` is the score, less what biases and ε absorb.

    Raises:
        ModelError: for networks with other activations than ReLUs, attention, gates or layer norms.
    """
    rules = composite(tape, rule, first, epsilon=epsilon, gamma=gamma, alpha=alpha, zb_bias=zb_bias)
    maps = over_colours(relevance(tape, cases, rules, create_graph=create_graph), reduce)
    maps = maps.relu() if relu else maps
    return _blur(maps, smooth) if smooth else maps


def _blur(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian of `sigma` times each side, cut at three standard deviations; the sum of a map is kept."""
    for axis in (-1, -2):
        spread = sigma * maps.shape[axis]
        radius = max(1, round(3 * spread))
        steps = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
        kernel = torch.exp(-((steps / spread) ** 2) / 2)
        shape = (1, 1, 1, -1) if axis == -1 else (1, 1, -1, 1)
        padding = (0, radius) if axis == -1 else (radius, 0)
        # each pixel's share of what reaches beyond the border is spread over what lies inside
        ones = torch.ones_like(maps[:1, None])
        inside = F.conv2d(ones, kernel.reshape(shape), padding=padding)
        maps = F.conv2d(maps[:, None] / inside, kernel.reshape(shape), padding=padding)[:, 0]
    return maps
