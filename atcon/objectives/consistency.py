"""Attention consistency (ATCON): the class evidence must stay where it is when the rest is masked away.

Mirzazadeh, Dubost et al., "ATCON: Attention Consistency for Vision Models", arXiv:2210.09705. Written from
the public code's behaviour, batched: two forwards for a whole batch, the first of them shared by Grad-CAM
and guided backpropagation, all of it differentiable.

For an image x with class c (the highest logit by default), s_c its logit, A the target layer's output:

1. M₁ = Σₖ αₖ Aₖ with αₖ = mean over cells of ∂s_c/∂Aₖ. No ReLU.
2. G = Σ over RGB of |guided gradient of s_c at x|.
3. T = σ(w·(G − θ)) with θ = mean(G) + std(G)/2, the soft mask.
4. M₂ = the same as M₁ of the masked image T·x, for the same class.
5. r = similarity of S(M₁) and S(M₂), S(M) = σ((M − mean M)/std M); loss = −mean r.

Standard deviations are unbiased, over one image. Inputs are normalised, so that masking means mean colour.
For a video, (N, 3, T, H, W), αₖ is a mean over the cells of each frame, maps are t×h×w; mean, deviation and
similarity are over all of their cells. In the reverse direction the attention map masks and the gradients are
compared: M₁ resized to the image takes the place of G in 3, and r is that of S(G) of x and of T·x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atcon.data import Batch
from atcon.objectives.base import Objective
from atcon.objectives.masking import MaskScale, blurred, moved, soft_mask
from atcon.objectives.saliency import ATTRIBUTIONS, Attribution, Pass, Rectifiers, attribute, opened
from atcon.objectives.similarity import SIMILARITIES, squashed
from wsod.errors import ConfigError, ModelError
from wsod.maps.tape import Tape
from wsod.models.classifier import Classifier

__all__ = ["Consistency", "Diagnostics", "class_activation", "consistency_loss", "require_independent_images"]

Diagnostics = dict[str, Tensor]
Similarity = Literal["pearson", "cosine", "ssim"]
Target = Literal["top1", "random"]
Fill = Literal["mean", "blur"]
Direction = Literal["forward", "reverse"]
Control = Literal["none", "random_mask", "shuffled_maps"]


def consistency_loss(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    mask_scale: MaskScale = "raw",
    mask_slope: float = 40.0,
    similarity: Similarity = "pearson",
    detach_mask: bool = False,
    detach_reference: bool = False,
    cam_relu: bool = False,
    target: Target = "top1",
    attribution: Attribution = "guided",
    mask_fill: Fill = "mean",
    direction: Direction = "forward",
    samples: int = 6,
    noise: float = 0.15,
    paper_compat: bool = False,
    rectifiers: Rectifiers = "calls",
    control: Control = "none",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Diagnostics]:
    """The ATCON objective of a batch. Defaults are those of the public code.

    Nothing is left behind: no hooks, no `.grad`, no changed mode or buffer. Dropout is off in the passes.

    Args:
        classifier: its batch norms must be in eval mode, so that images are independent of each other.
        images: (N, 3, H, W), preprocessed; or (N, 3, T, H, W) for a classifier of layout `NCTHW`.
        labels: which classes may be explained: None = any; (N,) int64, one an image; (N, C) multi-hot.
        mask_scale: `raw`: w multiplies G as it is, so that the mask's strength depends on the network;
            `std`: G is divided by its standard deviation first (a slope of 4 is sharp then).
        mask_slope: w.
        similarity: of the squashed maps: `pearson`, `cosine` or `ssim`.
        detach_mask: treat the mask as a constant: no second order through guided backpropagation.
        detach_reference: treat M₁ as a constant.
        cam_relu: ReLU on both class activation maps.
        target: the class explained, of those `labels` allows: the one of the highest logit, or a random one.
        attribution: G: of `guided` backpropagation, the plain `gradient`, `deconvnet`, `ig` (integrated
            gradients), `smoothgrad`.
        mask_fill: what masked pixels become: the `mean` colour (zero), or a `blur` of the image.
        direction: `forward`: G masks, attention maps are compared; `reverse`: the attention map masks (the
            public code then takes w = 32), G is compared.
        samples: points of `ig`, noisy copies of `smoothgrad`.
        noise: of `smoothgrad`, its deviation over the range of each image.
        paper_compat: `ig` as the public code computes it, which is zero but for rounding.
        rectifiers: how guided backpropagation finds ReLUs: by the `calls` of functions (modules that call
            them included), or by `modules`, where these compute in another way.
        control: what gains must be held against: `random_mask` moves each mask to a random place (around the
            image's edges), where it has nothing to do with the class; `shuffled_maps` compares each map with
            the masked map of the next image of those computed together (`accumulate` and the number of
            processes change which that is).
        generator: for `target = "random"`, noise and random masks; None = torch's global one.

    Returns:
        The scalar loss −mean r in [−1, 1], and detached diagnostics: `consistency` (N,), the r of each image
        (0 where a map is constant; those carry no gradient); `classes` (N,); `maps` and `masked_maps`
        (N, h, w), what is compared; `mask` (N, H, W); `mask_mean`, `mask_std`, `mask_min`, `mask_max`,
        `mask_over_half` (fraction above 0.5), `saliency_mean`, `saliency_std` (N,); `invalid` (), number of
        images left out; `relu_calls` (), how many ReLUs guided backpropagation passed.

    Raises:
        ModelError: for batch norm in training mode, a target layer of a single cell, or guided
            backpropagation in a network without a ReLU.
        ConfigError: for an unknown option or labels of another shape.
    """
    for name, value, known in (
        ("mask_scale", mask_scale, ("raw", "std")),
        ("similarity", similarity, tuple(SIMILARITIES)),
        ("attribution", attribution, tuple(ATTRIBUTIONS)),
        ("target", target, ("top1", "random")),
        ("mask_fill", mask_fill, ("mean", "blur")),
        ("direction", direction, ("forward", "reverse")),
        ("rectifiers", rectifiers, ("calls", "modules")),
        ("control", control, ("none", "random_mask", "shuffled_maps")),
    ):
        if value not in known:
            raise ConfigError(f"consistency_loss: {name}", "one of " + ", ".join(known), repr(value))
    if samples < 1:
        raise ConfigError("consistency_loss: samples", "at least 1", samples)
    if control == "shuffled_maps" and len(images) < 2:
        raise ConfigError("consistency_loss: control", "a batch of two images or more", "one image")
    require_independent_images(classifier)
    images = images.detach()
    rows = torch.arange(len(images), device=images.device)
    reverse = direction == "reverse"

    def saliency_of(tape: Tape, graph: bool) -> Tensor:
        work = Pass(tape, cases, graph, samples, noise, generator, paper_compat)
        with _full_precision(images):
            return _at_least_float(attribute(attribution, work)).abs().sum(1)

    with torch.enable_grad():
        tape = opened(classifier, images, attribution, rectifiers)
        classes = _choose(tape.logits.detach(), labels, target, generator)
        cases = torch.stack([rows, classes], 1)
        cam = class_activation(tape, cases, cam_relu)
        saliency = saliency_of(tape, not (detach_reference if reverse else detach_mask))
        with _full_precision(images):
            source = _resized(_at_least_float(cam), saliency) if reverse else saliency
            mask = soft_mask(source, mask_slope, mask_scale)
            if detach_mask:
                mask = mask.detach()
            if control == "random_mask":
                mask = moved(mask, images, generator)
            masked = images * mask[:, None]
            if mask_fill == "blur":
                masked = masked + blurred(images) * (1 - mask[:, None])
        again = opened(classifier, masked.to(images.dtype), attribution if reverse else None, rectifiers)
        reference = saliency if reverse else cam
        other = saliency_of(again, True) if reverse else class_activation(again, cases, cam_relu)
        with _full_precision(images):
            maps = _at_least_float(reference.detach() if detach_reference else reference)
            compared = other.roll(-1, 0) if control == "shuffled_maps" else other
            r, valid = _agreement(maps, _at_least_float(compared), similarity)
    loss = -r.mean()
    pixels = mask.detach().flatten(1)
    strength = saliency.detach().flatten(1)
    return loss, {
        "consistency": r.detach(),
        "classes": classes,
        "maps": maps.detach(),
        "masked_maps": other.detach(),
        "mask": mask.detach(),
        "mask_mean": pixels.mean(1),
        "mask_std": pixels.std(1),
        "mask_min": pixels.amin(1),
        "mask_max": pixels.amax(1),
        "mask_over_half": (pixels > 0.5).to(pixels.dtype).mean(1),
        "saliency_mean": strength.mean(1),
        "saliency_std": strength.std(1),
        "invalid": (~valid).sum(),
        "relu_calls": torch.tensor(tape.relu_calls),
    }


def _agreement(first: Tensor, second: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """(N,) similarity of squashed maps, 0 where one is constant, and (N,) whether neither is."""
    a, known_a = squashed(first)
    b, known_b = squashed(second)
    valid = known_a & known_b
    return torch.where(valid, SIMILARITIES[similarity](a, b), 0.0), valid


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (N, h, w) or (N, t, h, w) at the size of `like`, linearly."""
    mode = "bilinear" if maps.ndim == 3 else "trilinear"
    return F.interpolate(maps[:, None], like.shape[1:], mode=mode, align_corners=False)[:, 0]


def class_activation(tape: Tape, cases: Tensor, relu: bool) -> Tensor:
    """(N, h, w) Grad-CAM with its graph, the layer's features and their gradient both differentiable.

    (N, t, h, w) for a video: each frame with channel weights of its own.
    """
    weights = tape.gradient(cases, create_graph=True).mean((-2, -1), keepdim=True)
    features = tape.features
    if features[0, 0].numel() < 2:
        raise ModelError("target layer", "more than one cell", "1x1", "Choose a layer before the pooling.")
    cam = (weights * features).sum(1)
    return cam.relu() if relu else cam


def _choose(
    logits: Tensor, labels: Tensor | None, target: Target, generator: torch.Generator | None
) -> Tensor:
    """(N,) the class explained for each image."""
    allowed = torch.ones_like(logits, dtype=torch.bool)
    if labels is not None and labels.ndim == 1 and len(labels) == len(logits):
        allowed = F.one_hot(labels.long(), logits.shape[1]).bool()
    elif labels is not None:
        if labels.shape != logits.shape:
            raise ConfigError(
                "consistency_loss: labels",
                f"shape ({len(logits)},) or {tuple(logits.shape)}",
                tuple(labels.shape),
            )
        allowed = labels > 0.5
        if not allowed.any(1).all():
            raise ConfigError("consistency_loss: labels", "a class for every image", "an image of no class")
    if target == "random":
        return torch.multinomial(allowed.float(), 1, generator=generator)[:, 0]
    return logits.masked_fill(~allowed, -torch.inf).argmax(1)


def _at_least_float(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _full_precision(images: Tensor) -> torch.autocast:
    return torch.autocast(images.device.type, enabled=False)


def require_independent_images(classifier: nn.Module) -> None:
    """Refuse batch norm that uses batch statistics.

    Raises:
        ModelError: naming the layer.
    """
    for name, module in classifier.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ModelError(
                f"consistency_loss: {name}",
                "batch norm with running statistics, in eval mode",
                "batch statistics",
                "They mix the images of a batch; set batch_norm = 'frozen' (or call .eval()).",
            )


def _drawn(batch: Batch, labels: Tensor | None, classes: int, step: int) -> Tensor:
    """(N,) one of the allowed classes of each image."""
    if labels is None or labels.ndim == 1:
        allowed = [np.arange(classes)] * len(batch) if labels is None else labels[:, None].tolist()
    else:
        allowed = [row.nonzero()[:, 0].tolist() for row in labels]
    for row, choices in zip(batch.rows, allowed, strict=True):
        if not len(choices):
            raise ConfigError("atcon: use_labels", "a class for every image", f"none for image {row}")
    random = (np.random.default_rng((step, row)) for row in batch.rows)
    drawn = [int(each.choice(choices)) for each, choices in zip(random, allowed, strict=True)]
    return torch.tensor(drawn, device=batch.images.device)


@dataclass(frozen=True)
class Consistency(Objective):
    """ATCON: Grad-CAM of the image and of the image masked by guided backpropagation must agree.

    Args: as `consistency_loss`, and
        use_labels: explain classes the image shows (a random or the highest one of them) instead of the
            highest of all. The objective is unsupervised without it.
    """

    mask_scale: MaskScale = "raw"
    mask_slope: float = 40.0
    similarity: Similarity = "pearson"
    detach_mask: bool = False
    detach_reference: bool = False
    cam_relu: bool = False
    target: Target = "top1"
    attribution: Attribution = "guided"
    mask_fill: Fill = "mean"
    direction: Direction = "forward"
    samples: int = 6
    noise: float = 0.15
    paper_compat: bool = False
    rectifiers: Rectifiers = "calls"
    control: Control = "none"
    use_labels: bool = False

    name: ClassVar[str] = "atcon"
    needs: ClassVar[frozenset[str]] = frozenset({"second_order"})
    supervision: ClassVar[tuple[str, ...]] = ()
    citation: ClassVar[str] = "Mirzazadeh et al., arXiv:2210.09705"

    @property
    def requires(self) -> frozenset[str]:
        return self.needs | {"labels"} if self.use_labels else self.needs

    def __call__(self, classifier: Classifier, batch: Batch, step: int) -> dict[str, Tensor]:
        options: dict[str, Any] = {key: value for key, value in vars(self).items() if key != "use_labels"}
        labels = batch.targets if self.use_labels else None
        if self.target == "random":
            # by step and image, the same in whatever parts or processes the batch is computed
            options["target"], labels = "top1", _drawn(batch, labels, len(classifier.classes), step)
        drawn = self.attribution == "smoothgrad" or self.control == "random_mask"
        noise = torch.Generator().manual_seed(step) if drawn else None
        loss, found = consistency_loss(classifier, batch.images, labels, **options, generator=noise)
        watched = ("consistency", "mask_mean", "mask_std", "mask_min", "mask_max", "mask_over_half")
        logged = {f"{self.name}/{key}": found[key].mean() for key in watched}
        logged[f"{self.name}/invalid"] = found["invalid"] / len(batch)
        logged[f"{self.name}/relu_calls"] = found["relu_calls"].float()
        return {self.name: loss, **logged}
