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


MASKED_TWINS = {"iscam": iscam, "occlusion": occlusion, "rise": rise, "scorecam": scorecam, "sscam": sscam}
