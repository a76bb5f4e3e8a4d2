"""L-CAM: a 1×1 convolution learned after the classifier, whose map keeps the classifier's answer.

Gkartzonika, Gkalelis and Mezaris, "Learning Visual Explanations for DCNN-Based Image Classifiers Using an
Attention Mechanism", ECCV Workshops 2022. Written from a description of the method.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsod.errors import ConfigError
from wsod.maps.derivatives import full, recording
from wsod.maps.fitted import Fitted
from wsod.maps.method import combine
from wsod.maps.tape import Tape
from wsod.models.classifier import Classifier

__all__ = ["Masked", "area", "fit_lcam", "lcam", "variation"]

Masked = Literal["features", "image"]


def area(masks: Tensor, power: float = 0.3) -> Tensor:
    """Mean of (a + 5e-4)^ρ over masks (B, h, w) in [0, 1]."""
    return (masks + 5e-4).pow(power).mean()


def variation(masks: Tensor) -> Tensor:
    """[Σ (Δ_y a)² + Σ (Δ_x a)² + 0.3·Σ a² on the border] / (2B) of masks (B, h, w)."""
    down, right = masks.diff(dim=1).square().sum(), masks.diff(dim=2).square().sum()
    border = masks.square().sum() - masks[:, 1:-1, 1:-1].square().sum()
    return (down + right + 0.3 * border) / (2 * len(masks))


def fit_lcam(
    classifier: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    masked: Masked = "features",
    labels: Literal["predicted", "truth"] = "predicted",
    epochs: int = 1,
    lr: float = 1e-2,
    classification: float = 1.5,
    size: float = 2.0,
    smoothness: float = 0.01,
    power: float = 0.3,
) -> Fitted:
    """a = σ(W·F + b), so that the classifier still says y when it sees only a_y; W and b (K classes) learned.

    λ₁·CE(s', y) + λ₂·mean((a_y + 5e-4)^ρ) + λ₃·TV(a_y), where s' are the logits of a_y⊙F (`features`; the
    paper's Fm), or of the image a_y⊙x, a_y stretched to [0, 1], resized, and black where it is 0 (`image`;
    the paper's Img). The classifier is a constant, in evaluation mode. Stochastic gradient descent, Nesterov
    momentum 0.9, weight decay 5e-4, a step a batch.

    Args:
        classifier: any with a grid of features.
        batches: images (N, 3, H, W), preprocessed, and multi-hot labels (N, C); gone through
            `epochs` times.
        masked: what the mask is laid on.
        labels: y is the class of the highest logit, or each class that an image is labelled with in turn.
        epochs: passes over the images.
        lr: learning rate, times 0.95 after each epoch.
        classification: λ₁.
        size: λ₂.
        smoothness: λ₃.
        power: ρ.

    Differs from the paper: lr 1e-2 where 64 images a batch and up to 26 epochs have 1e-4; multi-label
    classifiers have the loss -log σ(s'_y). Differs from its code: only a_y is regularised, not each image's
    maps of the batch's other classes.

    Raises:
        ConfigError: for an option out of range, or without images.
    """
    if masked not in ("features", "image") or labels not in ("predicted", "truth"):
        got = f"masked={masked!r}, labels={labels!r}"
        raise ConfigError("lcam", "masked features or image, labels predicted or truth", got)
    if epochs < 1 or lr <= 0:
        raise ConfigError("lcam", "epochs of at least 1 and lr above 0", f"epochs={epochs}, lr={lr}")
    layer: nn.Conv2d | None = None
    optimiser: torch.optim.Optimizer | None = None
    count = 0
    last: dict[str, float] = {}
    for epoch in range(epochs):
        for images, truth in batches:
            with recording():
                tape = Tape(classifier, images)
                features = tape.features.detach()
                if layer is None or optimiser is None:
                    layer = nn.Conv2d(features.shape[1], tape.logits.shape[1], 1).to(features)
                    _begin(layer)
                    optimiser = torch.optim.SGD(
                        layer.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4
                    )
                cases = _cases(tape.logits.detach(), truth if labels == "truth" else None)
                count += len(images) if epoch == 0 else 0
                if not len(cases):
                    continue
                rows, classes = cases.unbind(1)
                masks = layer(features)[rows, classes].sigmoid()
                scores = _masked_scores(tape, masks, rows, masked)
                if classifier.task == "multilabel":
                    error = -F.logsigmoid(scores.gather(1, classes[:, None])).mean()
                else:
                    error = F.cross_entropy(scores, classes)
                loss = classification * error + size * area(masks, power) + smoothness * variation(masks)
                optimiser.zero_grad()
                torch.autograd.backward(loss, inputs=list(layer.parameters()))
                optimiser.step()
                last = {"loss": float(loss.detach()), "area": float(masks.detach().mean())}
        if optimiser is not None:
            for group in optimiser.param_groups:
                group["lr"] *= 0.95
    if layer is None:
        raise ConfigError("lcam", "images to fit it to", "none")
    about: dict[str, Any] = {"masked": masked, "labels": labels, "epochs": epochs, "images": count}
    tensors = {"weights": layer.weight.detach()[:, :, 0, 0].float(), "bias": _bias(layer).float()}
    return Fitted(
        "lcam", tuple(classifier.classes), (classifier.target_layer,), tensors, {**about, "last": last}
    )


def _begin(layer: nn.Conv2d) -> None:
    """Small weights, the same in each fit: stretching a constant mask to [0, 1] would have no slope."""
    start = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.weight.copy_(0.01 * start)
        _bias(layer).zero_()


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias.detach()


def _cases(logits: Tensor, truth: Tensor | None) -> Tensor:
    """(M, 2) rows of (row, label)."""
    if truth is not None:
        return truth.to(logits.device).nonzero()
    return torch.stack([torch.arange(len(logits), device=logits.device), logits.argmax(1)], 1)


def _masked_scores(tape: Tape, masks: Tensor, rows: Tensor, masked: Masked) -> Tensor:
    """(M, C) logits of each case's image where only its mask (M, h, w) is left; parameters are constants."""
    classifier, shown = tape.classifier, tape.images.detach()[rows]
    if masked == "image":
        low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
        spread = high - low
        # a constant mask is laid on as it is
        varies = spread.detach() > 1e-8
        stretched = torch.where(varies, (masks - low) / torch.where(varies, spread, 1.0), masks)
        kept = F.interpolate(
            stretched[:, None], size=shown.shape[2:], mode="bilinear", align_corners=False
        ).to(shown)
        preprocess = classifier.preprocess
        black = [-mean / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)]
        floor = shown.new_tensor(black).reshape(1, -1, 1, 1)
        return full(tape.run(floor + kept * (shown - floor), [], True))

    def laid_over(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        # what is before is a constant; from here on there is a graph
        torch.set_grad_enabled(True)
        output = output.detach()
        return classifier.ungrid(classifier.grid(output) * masks[:, None], output)

    return full(tape.run(shown, [(classifier.target_layer, laid_over)], False))


def lcam(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    fit: str | Fitted = "",
    layers: Sequence[str] = (),
) -> Tensor:
    """Σ_d W[k, d]·F_d + b_k, W and b learned so that σ of it keeps the classifier's answer (`fit_lcam`).

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect; there is no derivative in it.
        fit: the file that `wsod fit lcam` wrote.
        layers: of the fit; set by `METHODS`.

    Returns:
        (M, h, w), before the sigmoid.

    Raises:
        ConfigError: without a fit.
        CheckpointError: where it is not one, or of other classes.
    """
    fitted = Fitted.given(fit, "lcam", tape.classifier)
    (path,) = layers or fitted.layers
    features = tape.features_at(path)
    labels = cases[:, 1].to(features.device)
    count = len(fitted.classes)
    weights = fitted.tensor("weights", count, features.shape[1]).to(features)[labels]
    bias = fitted.tensor("bias", count).to(features)[labels]
    return combine(weights, tape.select(cases, features)) + bias[:, None, None]
