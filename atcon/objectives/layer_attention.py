"""Layer attention consistency: an inner layer must look where the last one does, not where another class is.

Wang et al., "Sharpen Focus: Learning with Attention Separability and Consistency", ICCV 2019, in the form
that the public code of ATCON holds itself against, two of its errors put right: the mask's threshold is on
the scaled map, and labels belong to the images they are used with.

For an image of class c, A_T and A_in the rectified Grad-CAMs of c at the last and an inner layer,
Ã = (A − min A + ε)/(max A − min A + ε) with constant extrema, and m = ε + σ(w·(Ã_T − 0.55)):

- form `ratio`: θ − (Σ Ã_in·m + ε)/(Σ Ã_in + ε);
- form `dice`: −2·Σ Ã_in·m / (Σ Ã_in + Σ m);
- with `separation`, plus 2·Σ min(A_T, A_conf)·m / Σ (A_T + A_conf), A_conf that of the class of the highest
  logit that the image does not show.

An image without a class, or whose A_T is constant (no evidence for the class), gives 0 and is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atcon.data import Batch
from atcon.objectives.base import Objective
from atcon.objectives.consistency import require_independent_images
from wsod.errors import ConfigError, ModelError
from wsod.maps.tape import Tape
from wsod.models.classifier import Classifier

__all__ = ["LayerAttention", "inner_layer", "layer_attention_loss"]

Form = Literal["ratio", "dice"]


def layer_attention_loss(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    form: Form = "ratio",
    separation: bool = False,
    layer: str = "",
    inner: str = "",
    slope: float = 100.0,
    theta: float = 0.8,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The layer attention objective of a batch; beside a classification loss.

    Args:
        classifier: its batch norms must be in eval mode, so that images are independent of each other.
        images: (N, 3, H, W), preprocessed.
        labels: (N,) class indices, or (N, C) multi-hot: the first class of an image counts, and an image
            without one gives 0.
        form: `ratio` or `dice`.
        separation: add the term that keeps the most confusing class apart.
        layer: path of the last layer; empty = the target layer. The public code has `layer4.2.conv3`.
        inner: path of the inner layer; empty = the block before. The public code has `layer4.1.conv3`.
        slope: w of the mask.
        theta: θ of the ratio.

    Returns:
        The scalar mean over images, and detached diagnostics: `consistency` and `separation` (N,), the terms
        of each image; `classes`, `confused` (N,); `maps`, `inner_maps` (N, h, w), scaled; `known` (N,) bool,
        whether the image counts.

    Raises:
        ModelError: for batch norm in training mode, or where no inner layer can be told.
        ConfigError: for an unknown form, or labels of another shape.
    """
    if form not in ("ratio", "dice"):
        raise ConfigError("layer_attention_loss: form", "ratio or dice", repr(form))
    require_independent_images(classifier)
    last = layer or classifier.target_layer
    before = inner or inner_layer(classifier.network, last)
    with torch.enable_grad():
        tape = Tape(classifier, images.detach(), layers=[last, before], create_graph=True)
        shown = _multi_hot(labels, tape.logits)
        classes = shown.int().argmax(1)
        top, low = _attention(tape, classes, [last, before])
        known = shown.any(1) & (top.detach().flatten(1).std(1) > 0)
        with torch.autocast(images.device.type, enabled=False):
            eps = torch.finfo(torch.float32).eps
            scaled, inside = _scaled(top, eps), _scaled(low, eps)
            mask = eps + torch.sigmoid(slope * (scaled - 0.55))
            mask_in = mask
            if mask.shape != inside.shape:
                resized = F.interpolate(scaled[:, None], inside.shape[1:], mode="bilinear")[:, 0]
                mask_in = eps + torch.sigmoid(slope * (resized - 0.55))
            common = (inside * mask_in).sum((1, 2))
            if form == "ratio":
                consistency = theta - (common + eps) / (inside.sum((1, 2)) + eps)
            else:
                consistency = -2 * common / (inside + mask_in).sum((1, 2))
        confused = _confused(tape.logits.detach(), shown)
        apart = torch.zeros_like(consistency)
        if separation:
            (other,) = _attention(tape, confused, [last])
            with torch.autocast(images.device.type, enabled=False):
                shared = torch.minimum(top, other) * mask
                apart = 2 * shared.sum((1, 2)) / ((top + other).sum((1, 2)) + eps)
                # an image of every class has no other to be kept apart from
                apart = torch.where(shown.all(1), 0.0, apart)
        consistency, apart = (torch.where(known, term, 0.0) for term in (consistency, apart))
        loss = (consistency + apart).mean()
    return loss, {
        "consistency": consistency.detach(),
        "separation": apart.detach(),
        "classes": classes,
        "confused": confused,
        "maps": scaled.detach(),
        "inner_maps": inside.detach(),
        "known": known,
    }


def inner_layer(network: nn.Module, layer: str) -> str:
    """The block before: the last but one child of a sequence of several, else the sibling before.

    Raises:
        ModelError: where there is neither.
    """
    module = network.get_submodule(layer)
    children = [name for name, _ in module.named_children()]
    if isinstance(module, nn.Sequential) and len(children) > 1:
        return f"{layer}.{children[-2]}"
    parent, _, own = layer.rpartition(".")
    siblings = [name for name, _ in network.get_submodule(parent).named_children()]
    if siblings.index(own) == 0:
        raise ModelError(f"layer {layer}", "a layer before it", "none", "Name one with inner.")
    return f"{parent}.{siblings[siblings.index(own) - 1]}".lstrip(".")


def _attention(tape: Tape, classes: Tensor, layers: list[str]) -> list[Tensor]:
    """Rectified Grad-CAM (N, h, w) of each image's class at each of these layers."""
    cases = torch.stack([torch.arange(len(classes), device=classes.device), classes], 1)
    gradients = tape.gradients(cases, layers, create_graph=True)
    features = [tape.features_at(layer) for layer in layers]
    pairs = zip(gradients, features, strict=True)
    return [(g.mean((2, 3), keepdim=True) * a).sum(1).relu() for g, a in pairs]


def _scaled(maps: Tensor, eps: float) -> Tensor:
    low, high = (extreme.detach() for extreme in maps.flatten(1).aminmax(dim=1))
    return (maps - low[:, None, None] + eps) / (high - low + eps)[:, None, None]


def _multi_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """(N, C) bool."""
    if labels.shape == logits.shape:
        return labels > 0.5
    if labels.shape == logits.shape[:1]:
        return F.one_hot(labels.long(), logits.shape[1]).bool()
    shapes = f"shape ({len(logits)},) or {tuple(logits.shape)}"
    raise ConfigError("layer_attention_loss: labels", shapes, tuple(labels.shape))


def _confused(logits: Tensor, shown: Tensor) -> Tensor:
    """(N,) the class of the highest logit among those the image does not show."""
    return logits.masked_fill(shown, -torch.inf).argmax(1)


@dataclass(frozen=True)
class LayerAttention(Objective):
    """Layer attention consistency (ATCON's baseline): an inner layer's Grad-CAM must lie in the last one's.

    Args: as `layer_attention_loss`.
    """

    form: Form = "ratio"
    separation: bool = False
    layer: str = ""
    inner: str = ""
    slope: float = 100.0
    theta: float = 0.8

    name: ClassVar[str] = "layer_attention"
    needs: ClassVar[frozenset[str]] = frozenset({"labels", "second_order"})
    supervision: ClassVar[tuple[str, ...]] = ("image labels",)
    citation: ClassVar[str] = "Wang et al., ICCV 2019"

    def __call__(self, classifier: Classifier, batch: Batch, step: int) -> dict[str, Tensor]:
        loss, found = layer_attention_loss(classifier, batch.images, batch.targets, **vars(self))
        logged = {f"{self.name}/{key}": found[key].mean() for key in ("consistency", "separation")}
        logged[f"{self.name}/unknown"] = 1 - found["known"].float().mean()
        return {self.name: loss, **logged}
