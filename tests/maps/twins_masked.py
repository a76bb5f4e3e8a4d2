"""Perturbation methods again, one masked image at a time through the unfolded network."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.maps.twins import enlarged, grid, run
from wsod.models import Classifier

Array = NDArray[np.float64]


def score(classifier: Classifier, image: Tensor, label: int) -> float:
    with torch.no_grad():
        return float(classifier.network(image[None])[0, label])


def mask_of(channel: Array, size: tuple[int, int]) -> Array:
    large = enlarged(channel, size)
    span = large.max() - large.min()
    return (large - large.min()) / span if span else np.zeros(size)


def weighted(classifier: Classifier, image: Tensor, label: int, variants: list) -> Array:
    output, _ = run(classifier, image)
    a = grid(classifier, output.detach()).numpy()
    scores = []
    for channel in a:
        mask = mask_of(channel, tuple(image.shape[1:]))
        seen = [score(classifier, image * torch.from_numpy(vary(mask)), label) for vary in variants]
        scores.append(np.mean(seen))
    weights = np.exp(np.array(scores) - max(scores))
    weights /= weights.sum()
    return np.maximum(sum(w * channel for w, channel in zip(weights, a, strict=True)), 0)


def scorecam(classifier: Classifier, image: Tensor, label: int) -> Array:
    return weighted(classifier, image, label, [lambda mask: mask])


def sscam(classifier: Classifier, image: Tensor, label: int) -> Array:
    generator = torch.Generator().manual_seed(0)
    fields = [torch.randn(image.shape[1:], generator=generator).double().numpy() for _ in range(2)]
    return weighted(classifier, image, label, [lambda mask, f=field: mask + 0.5 * f for field in fields])


def iscam(classifier: Classifier, image: Tensor, label: int) -> Array:
    return weighted(classifier, image, label, [lambda mask, n=n: mask * n / 2 for n in (1, 2)])


def occlusion(classifier: Classifier, image: Tensor, label: int) -> Array:
    height, width = image.shape[1:]
    h, w = height // 4, width // 4
    whole = score(classifier, image, label)
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for y in range(0, height - h + 1, h // 2):
        for x in range(0, width - w + 1, w // 2):
            hidden = image.clone()
            hidden[:, y : y + h, x : x + w] = 0
            total[y : y + h, x : x + w] += whole - score(classifier, hidden, label)
            count[y : y + h, x : x + w] += 1
    return total / count


@lru_cache
def rise_masks(height: int, width: int, masks: int = 30, cells: int = 4) -> list[Array]:
    generator = torch.Generator().manual_seed(0)
    grids = torch.rand(masks, cells, cells, generator=generator) < 0.5
    tall, wide = -(-height // cells), -(-width // cells)
    down = torch.randint(tall, (masks,), generator=generator)
    right = torch.randint(wide, (masks,), generator=generator)
    found = []
    for n in range(masks):
        large = enlarged(grids[n].double().numpy(), ((cells + 1) * tall, (cells + 1) * wide))
        found.append(large[int(down[n]) :, int(right[n]) :][:height, :width])
    return found


def rise(classifier: Classifier, image: Tensor, label: int) -> Array:
    out = np.zeros(image.shape[1:])
    for mask in rise_masks(*image.shape[1:]):
        with torch.no_grad():
            logits = classifier.network((image * torch.from_numpy(mask))[None])[0]
        out += float(logits[label].exp() / logits.exp().sum()) * mask
    return out / (30 * 0.5)


def blurred(plane: Array, sigma: float) -> Array:
    reach = int(np.ceil(3 * sigma))
    weights = {d: np.exp(-d * d / (2 * sigma**2)) for d in range(-reach, reach + 1)}
    norm = sum(weights.values())
    height, width = plane.shape
    down, both = np.zeros_like(plane), np.zeros_like(plane)
    for d, weight in weights.items():
        rows = [min(max(y + d, 0), height - 1) for y in range(height)]
        down += weight / norm * plane[rows]
    for d, weight in weights.items():
        columns = [min(max(x + d, 0), width - 1) for x in range(width)]
        both += weight / norm * down[:, columns]
    return both


def extremalperturbation(classifier: Classifier, image: Tensor, label: int) -> Array:
    """Three steps of the ascent, cell by cell."""
    height, width = image.shape[1:]
    h, w, step, sigma = height // 4, width // 4, 4, 5.0
    levels = [image, *(torch.tensor(np.stack([blurred(p, s) for p in image.numpy()])) for s in (1.5, 3.0))]
    cells = [(y, x) for y in range(h) for x in range(w)]
    corners = torch.tensor(
        np.stack([enlarged(np.eye(h * w)[n].reshape(h, w), (height, width)) for n in range(h * w)])
    )
    wanted = torch.zeros(h * w, dtype=torch.float64)
    wanted[h * w - round(0.1 * h * w) :] = 1

    around = [(down, right) for down in range(-4, 5) for right in range(-4, 5)]
    places = torch.tensor(
        [[min(max(y + d, 0), h - 1) * w + min(max(x + r, 0), w - 1) for d, r in around] for y, x in cells]
    )
    kernel = torch.tensor([np.exp(-2 * max(0, step * np.hypot(d, r) / sigma - 0.5) ** 2) for d, r in around])

    def mask_of_heights(heights: Tensor) -> Tensor:
        raised = heights[places] * kernel
        return (raised * torch.exp(raised / 0.05)).sum(1) / torch.exp(raised / 0.05).sum(1)

    heights, velocity, weight = torch.full((h * w,), 0.5, dtype=torch.float64), 0.0, 300.0
    for _ in range(3):
        heights = heights.detach().requires_grad_()
        mask = mask_of_heights(heights)
        large = torch.einsum("n,nhw->hw", mask, corners)
        place = 2 * (1 - large)
        first = levels[0] * (1 - place) + levels[1] * place
        second = levels[1] * (2 - place) + levels[2] * (place - 1)
        shown = torch.where(place < 1, first, second)
        ranked, own = sorted(mask.tolist()), mask.tolist()
        alike = [[wanted[i] for i, value in enumerate(ranked) if abs(value - mine) < 3.6e-15] for mine in own]
        target = torch.tensor([float(sum(some)) / len(some) for some in alike], dtype=torch.float64)
        gain = classifier.network(shown[None])[0, label] - weight * ((mask - target) ** 2).mean()
        (gradient,) = torch.autograd.grad(gain, heights)
        velocity = 0.9 * velocity + gradient
        heights = (heights.detach() + 0.01 * velocity).clamp(0, 1)
        weight *= 1.0035
    return mask_of_heights(heights).detach().reshape(h, w).numpy()


MASKED_TWINS = {
    "extremalperturbation": extremalperturbation,
    "iscam": iscam,
    "occlusion": occlusion,
    "rise": rise,
    "scorecam": scorecam,
    "sscam": sscam,
}
