"""The smooth mask of a given area through which the class is seen best, found by gradient ascent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from wsod.errors import ConfigError
from wsod.maps.sweep import ScoreKind, ready, scores_of
from wsod.maps.tape import Tape
from wsod.memory import room_for
from wsod.models.classifier import Classifier

__all__ = ["extremalperturbation"]

_TEMPERATURE = 1 / 20
_WEIGHT, _GROWTH = 300.0, 1.0035
_RATE, _MOMENTUM = 0.01, 0.9


def extremalperturbation(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    areas: Sequence[float] | float = (0.1,),
    iterations: int = 800,
    step: int = 7,
    sigma: float = 21.0,
    blur: float = 20.0,
    levels: int = 8,
    score: ScoreKind = "logit",
    chunk: int = 8,
    fold: bool = True,
) -> Tensor:
    """Σ over areas a of the mask m with argmax s(m⊗x) - λ·mean (vecsort(m) - r_a)².

    Fong, Patrick & Vedaldi, "Understanding Deep Networks via Extremal Perturbations and Smooth Masks", ICCV
    2019. m⊗x blurs each pixel the more, the smaller m is there (a pyramid of Gaussians up to `blur`). m is a
    smooth maximum (temperature 1/20) of bumps exp(-2·max(0, d/σ - 1/2)²), d pixels from the cells of a grid
    whose heights in [0, 1] are what is optimised, by ascent with momentum 0.9 from 1/2. r_a is zero but for
    its last share a. λ starts at 300 and grows by 0.35 % an iteration. One forward and one backward pass to
    the input for each iteration, case and area (800 by default); nothing is random.

    Differs from the paper: the mask and its sorted values are those on the grid, enlarged bilinearly. Beyond
    the border the grid's edge is repeated, and equal values share their places in the sorting, so that the
    score alone breaks the symmetry of the start. Bump, temperature, λ and its growth, rate and momentum are
    those of the authors' TorchRay, read for comparison; it starts from heights of 1, damps the momentum
    (each step is a tenth of ours), mirrors the image at every second step, cuts a bump off one grid cell
    beyond σ, and takes zeros and a margin beyond the border, which counts towards the area.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect.
        areas: shares of the image, in (0, 1); the paper's pointing game sums 0.025, 0.05, 0.1 and 0.2.
        iterations: of the ascent.
        step: pixels between grid cells.
        sigma: σ in pixels.
        blur: standard deviation of the strongest blur, in pixels.
        levels: of the pyramid.
        score: the class's `logit` or `probability`.
        chunk: masks optimised at once.
        fold: fold batch norms into convolutions where that is exact.

    Returns:
        (M, h, w), one value a cell of the grid, in [0, number of areas].
    """
    shares = [areas] if isinstance(areas, int | float) else list(areas)
    good = shares and all(0 < share < 1 for share in shares) and iterations > 0
    if not good or step < 1 or sigma <= 0 or blur <= 0 or levels < 2 or chunk < 1:
        raise ConfigError(
            "extremalperturbation",
            "areas in (0, 1), positive iterations, step, sigma, blur and chunk, 2 levels or more",
            {"areas": shares, "iterations": iterations, "step": step, "sigma": sigma, "levels": levels},
        )
    height, width = tape.images.shape[2:]
    jobs = [(index, share) for index in range(len(cases)) for share in shares]
    total = torch.zeros(len(cases), math.ceil(height / step), math.ceil(width / step))
    maps = total.to(tape.images.device, tape.logits.dtype)
    with torch.inference_mode(False), ready(tape, "full", fold) as classifier:

        def found(some: list[tuple[int, float]]) -> tuple[Tensor, Tensor]:
            which = torch.tensor([index for index, _ in some])
            rows, labels = cases[which].to(tape.images.device).unbind(1)
            pyramids = _pyramid(tape.images.detach()[rows], blur, levels)
            template = torch.tensor([share for _, share in some]).to(maps)
            ascent = _Ascent(tape, classifier, pyramids, labels, template, step, sigma, score)
            return which, ascent.run(iterations, maps.shape[1:])

        room = room_for(tape.classifier, "masks at once")
        for start in range(0, len(jobs), chunk):
            for which, masks in room.over(jobs[start : start + chunk], found):
                maps.index_add_(0, which.to(maps.device), masks.to(maps.dtype))
    return maps


def _pyramid(images: Tensor, blur: float, levels: int) -> Tensor:
    """(N, L, 3, H, W): the images under Gaussians of standard deviation 0 … `blur`, edges repeated."""
    found = [images]
    for level in range(1, levels):
        sigma = blur * level / (levels - 1)
        reach = math.ceil(3 * sigma)
        offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
        kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
        blurred = F.pad(images, (0, 0, reach, reach), mode="replicate")
        blurred = F.conv2d(blurred, kernel[..., None], groups=images.shape[1])
        blurred = F.pad(blurred, (reach, reach, 0, 0), mode="replicate")
        found.append(F.conv2d(blurred, kernel[:, :, None], groups=images.shape[1]))
    return torch.stack(found, 1)


class _Ascent:
    """The optimisation of some masks side by side; each is as it would be alone."""

    def __init__(
        self,
        tape: Tape,
        classifier: Classifier,
        pyramids: Tensor,
        labels: Tensor,
        areas: Tensor,
        step: int,
        sigma: float,
        score: ScoreKind,
    ) -> None:
        self.tape, self.classifier, self.pyramids, self.labels = tape, classifier, pyramids, labels
        self.areas, self.score = areas, score
        # beyond it a bump is below 1e-6
        reach = math.ceil(3.2 * sigma / step)
        offsets = torch.arange(-reach, reach + 1, dtype=pyramids.dtype, device=pyramids.device) * step
        distance = torch.hypot(offsets[:, None], offsets[None, :])
        self.bumps = torch.exp(-2 * (distance / sigma - 0.5).clamp(min=0) ** 2).flatten()[None, :, None]
        self.reach = reach

    def smooth(self, heights: Tensor) -> Tensor:
        """(N, h, w) in [0, 1]: Σ f·exp(f/T) / Σ exp(f/T) over the bumps f that reach a cell."""
        # edges repeated: equal heights make a flat mask, which prefers neither border nor centre
        padded = F.pad(heights[:, None], (self.reach,) * 4, mode="replicate")
        raised = F.unfold(padded, 2 * self.reach + 1) * self.bumps
        return (raised * (raised / _TEMPERATURE).softmax(1)).sum(1).view_as(heights)

    def shown(self, masks: Tensor) -> Tensor:
        """(N, 3, H, W): each pixel from between the two levels of the pyramid that its mask asks for."""
        size = self.pyramids.shape[3:]
        large = F.interpolate(masks[:, None], size, mode="bilinear", align_corners=False)
        place = (1 - large) * (self.pyramids.shape[1] - 1)
        levels = torch.arange(self.pyramids.shape[1], dtype=place.dtype, device=place.device)
        weights = (1 - (place - levels[None, :, None, None]).abs()).clamp(min=0)
        return torch.einsum("nlhw,nlchw->nchw", weights, self.pyramids)

    def run(self, iterations: int, size: Sequence[int]) -> Tensor:
        """The masks (N, h, w) after so many steps."""
        heights = torch.full((len(self.labels), *size), 0.5).to(self.pyramids).requires_grad_()
        velocity = torch.zeros_like(heights, requires_grad=False)
        cells = heights[0].numel()
        ranks = torch.arange(1, cells + 1, device=heights.device)
        wanted = (ranks[None] > cells - (self.areas * cells).round()[:, None]).to(heights.dtype)
        weight = _WEIGHT
        which = torch.arange(len(self.labels), device=heights.device)
        for _ in range(iterations):
            with torch.enable_grad():
                masks = self.smooth(heights)
                scores = scores_of(self.tape, self.classifier(self.shown(masks)), self.score)
                far = (masks.flatten(1) - _places(masks.detach().flatten(1), wanted)).pow(2).mean(1)
                gain = (scores[which, self.labels] - weight * far).sum()
                (gradient,) = torch.autograd.grad(gain, heights)
            velocity = _MOMENTUM * velocity + gradient
            heights = (heights.detach() + _RATE * velocity).clamp(0, 1).requires_grad_()
            weight *= _GROWTH
        with torch.no_grad():
            return self.smooth(heights)


def _places(values: Tensor, wanted: Tensor) -> Tensor:
    """(N, n): what each value should be, by its rank; values equal up to rounding share a mean."""
    ranked, order = values.sort(1)
    apart = (ranked[:, 1:] - ranked[:, :-1] > 16 * torch.finfo(values.dtype).eps).long()
    group = F.pad(apart.cumsum(1), (1, 0))
    total = torch.zeros_like(values).scatter_add_(1, group, wanted)
    count = torch.zeros_like(values).scatter_add_(1, group, torch.ones_like(values))
    return torch.zeros_like(values).scatter_(1, order, (total / count.clamp(min=1)).gather(1, group))
