"""BroadCAM: a CAM whose weights are not the classifier's, but fitted in closed form to image labels.

Lin et al., "BroadCAM: Outcome-agnostic Class Activation Mapping for Small-scale Weakly Supervised
Applications", arXiv:2309.03509. Written from a description of the method.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsod.errors import ConfigError
from wsod.maps.fitted import Fitted
from wsod.maps.method import combine, rectify
from wsod.maps.tape import Tape
from wsod.memory import room_for
from wsod.models.classifier import Classifier, resolve_layer

__all__ = ["Statistics", "broadcam", "fit_broadcam", "stacked"]

# channels that vary less get no weight
_CONSTANT = 1e-12


class Statistics:
    """n, Σz, Σzzᵀ, Σy, Σzyᵀ of pooled features and labels, in float64: all that the fit needs of the images.

    Args:
        channels: D, the length of z.
        classes: C, the length of y.
    """

    def __init__(self, channels: int, classes: int) -> None:
        self.count = 0
        self.z, self.y = (torch.zeros(n, dtype=torch.float64) for n in (channels, classes))
        self.zz = torch.zeros(channels, channels, dtype=torch.float64)
        self.zy = torch.zeros(channels, classes, dtype=torch.float64)

    def update(self, z: Tensor, y: Tensor) -> None:
        """Add images: (N, D) and (N, C)."""
        z, y = z.detach().cpu().double(), y.detach().cpu().double()
        self.count += len(z)
        self.z += z.sum(0)
        self.y += y.sum(0)
        self.zz += z.T @ z
        self.zy += z.T @ y

    def merge(self, other: Statistics) -> None:
        """Add the images of another."""
        self.count += other.count
        for name in ("z", "y", "zz", "zy"):
            getattr(self, name).add_(getattr(other, name))

    def solve(self, alpha: float, group: int = 0) -> Tensor:
        """(D, C) weights V of the ridge regression of y on z, penalty α·n on columns of unit variance.

        V = diag(1/(√n·σ))·(R + α·I)⁻¹·r, R the correlations of the channels, r = (Σzyᵀ - n·μ·ȳᵀ)/(√n·σ).

        With `group` g, *enhancement nodes* are regressed on too: for each class the channels in descending
        order of V, cut into groups of g; a node is the sum of a group's standardised channels, weighted by V.
        They are linear in z, so all of it folds into one V, and R says all about them.

        Args:
            alpha: α.
            group: g; 0 = none.

        Raises:
            ConfigError: for fewer than two images, or an option out of range.
        """
        if alpha <= 0 or group < 0 or self.count < 2:
            got = f"alpha={alpha}, group={group}, {self.count} images"
            raise ConfigError("broadcam", "alpha above 0, group of at least 0, two images or more", got)
        n = self.count
        mean = self.z / n
        variance = self.zz.diagonal() / n - mean**2
        alive = variance > _CONSTANT * torch.maximum(mean**2, torch.ones_like(mean))
        scale = torch.where(alive, 1 / (n * variance.clamp(min=_CONSTANT)).sqrt(), 0.0)
        correlation = (self.zz - n * torch.outer(mean, mean)) * scale[:, None] * scale
        target = (self.zy - torch.outer(mean, self.y)) * scale[:, None]
        weights = _ridge(correlation, target, alpha)
        if group:
            nodes = _nodes(weights * scale[:, None], group)
            spread = (nodes * (correlation @ nodes)).sum(0)
            # a ridge on columns of unit length does not see how else a node is shifted or scaled
            nodes = nodes[:, spread > 0] / spread[spread > 0].sqrt()
            crossed = correlation @ nodes
            whole = torch.cat(
                [torch.cat([correlation, crossed], 1), torch.cat([crossed.T, nodes.T @ crossed], 1)]
            )
            both = _ridge(whole, torch.cat([target, nodes.T @ target]), alpha)
            weights = both[: len(scale)] + nodes @ both[len(scale) :]
        return weights * scale[:, None]


def _ridge(gram: Tensor, target: Tensor, alpha: float) -> Tensor:
    penalised = gram + alpha * torch.eye(len(gram), dtype=gram.dtype)
    return torch.cholesky_solve(target, torch.linalg.cholesky(penalised))


def _nodes(weights: Tensor, group: int) -> Tensor:
    """(D, C·m): for each class m groups of channels by descending weight, a column each."""
    learned = weights[:, weights.any(0)]
    groups = int((learned > 0).sum(0).min()) // group if learned.numel() else 0
    columns = []
    for one in learned.T:
        order = one.argsort(descending=True, stable=True)
        for first in range(0, groups * group, group):
            column = torch.zeros_like(one)
            members = order[first : first + group]
            column[members] = one[members] / group
            columns.append(column)
    return torch.stack(columns, 1) if columns else weights[:, :0]


def stacked(maps: Sequence[Tensor]) -> Tensor:
    """(N, ΣD, h, w): rectified feature maps side by side, on the grid of the first."""
    size = maps[0].shape[2:]
    parts = [maps[0].relu()]
    for other in maps[1:]:
        same = other.shape[2:] == size
        resized = other if same else F.interpolate(other, size=size, mode="bilinear", align_corners=False)
        parts.append(resized.relu())
    return torch.cat(parts, 1)


def fit_broadcam(
    classifier: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    layers: str = "",
    alpha: float = 50.0,
    group: int = 0,
) -> Fitted:
    """One forward pass over images with labels, and one solve; no gradient, no use of the classifier's head.

    Args:
        classifier: its features are read, in evaluation mode.
        batches: images (N, 3, H, W), preprocessed, and multi-hot labels (N, C).
        layers: paths joined by `+`, the finest grid first; empty = the target layer. The paper takes the
            last two stages (`layer3+layer4` of a ResNet).
        alpha: penalty; 50 in the paper.
        group: channels an enhancement node; 0 = none (256 in the paper).

    Differs from the paper: enhancement is off by default. It is linear in the features, so that the whole is
    a CAM with ridge weights either way.
    """
    paths = tuple(resolve_layer(classifier.network, path) for path in layers.split("+") if path)
    paths = paths or (classifier.target_layer,)
    found: Statistics | None = None
    room = room_for(classifier, "images of a fit at once")

    def pooled(images: Tensor) -> Tensor:
        with torch.no_grad():
            tape = Tape(classifier, images, layers=paths)
            return stacked([tape.features_at(path).detach() for path in paths]).mean((2, 3))

    for images, labels in batches:
        z = torch.cat(list(room.over(images, pooled)))
        found = found or Statistics(z.shape[1], labels.shape[1])
        found.update(z, labels)
    if found is None:
        raise ConfigError("broadcam", "images to fit it to", "none")
    about = {"alpha": alpha, "group": group, "images": found.count, "positives": found.y.tolist()}
    tensors = {"weights": found.solve(alpha, group).float()}
    return Fitted("broadcam", tuple(classifier.classes), paths, tensors, about)


def broadcam(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    fit: str | Fitted = "",
    layers: Sequence[str] = (),
    relu: bool = True,
) -> Tensor:
    """ReLU Σ_d V[d, k]·A_d, A the rectified features of one or more layers, V fitted to image labels.

    V is found by `wsod fit broadcam` (`fit_broadcam`). A class that no image of the fit showed has a map of
    zeros.

    Args:
        tape: a forward pass made with the layers of the fit.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect; there is no derivative in it.
        fit: the file that `wsod fit` wrote.
        layers: of the fit; set by `METHODS`.
        relu: clip negative values.

    Returns:
        (M, h, w), on the grid of the first layer.

    Raises:
        ConfigError: without a fit.
        CheckpointError: where it is not one, or of other classes.
    """
    fitted = Fitted.given(fit, "broadcam", tape.classifier)
    features = stacked([tape.features_at(path) for path in layers or fitted.layers])
    learned = fitted.tensor("weights", features.shape[1], len(fitted.classes))
    weights = learned.to(features.device, features.dtype).T[cases[:, 1].to(features.device)]
    return rectify(combine(weights, tape.select(cases, features)), relu)
