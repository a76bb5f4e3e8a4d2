"""What hiding parts of the image does to the score: one square at a time, or half of it at random."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from wsod.errors import ConfigError
from wsod.maps.sweep import Precision, ScoreKind, chunk_size, scores_of, sweeping
from wsod.maps.tape import Tape

__all__ = ["occlusion", "rise"]


def occlusion(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    window: float = 0.25,
    stride: float = 0.125,
    score: ScoreKind = "logit",
    chunk: int = 0,
    precision: Precision = "full",
    fold: bool = True,
) -> Tensor:
    """Mean over the windows that cover a pixel of s(x) - s(x with the window in the mean colour).

    Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014. One forward pass a
    window and image, for all classes together (49 windows by default).

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect.
        window: side of the window, as a share of each side of the image.
        stride: between windows, as a share of each side; the last window ends at the border.
        score: the class's `logit` or `probability`.
        chunk: occluded images a pass; 0 = what suits the device.
        precision: `bf16` runs them in bfloat16.
        fold: fold batch norms into convolutions where that is exact.

    Returns:
        (M, H, W).
    """
    if not (0 < window <= 1 and 0 < stride <= window):
        raise ConfigError("occlusion", "0 < stride <= window <= 1", f"stride {stride}, window {window}")
    spans = [_spans(side, window, stride) for side in tape.images.shape[2:]]
    boxes = [(y, x) for y in spans[0] for x in spans[1]]
    height, width = tape.images.shape[2:]
    rows, labels = cases.to(tape.images.device).unbind(1)
    dtype = tape.logits.dtype
    total = torch.zeros(len(cases), height, width, dtype=dtype, device=tape.images.device)
    count = torch.zeros(height, width, dtype=dtype, device=tape.images.device)
    for (y0, y1), (x0, x1) in boxes:
        count[y0:y1, x0:x1] += 1
    size = chunk_size(tape.images, chunk)
    with sweeping(tape, precision, fold) as forward:
        for row in sorted(set(rows.tolist())):
            mine = (rows == row).nonzero()[:, 0]
            image = tape.images[row : row + 1].detach()
            # by the same passes as the others: what is folded or rounded cancels
            whole = scores_of(tape, forward(image), score)[0, labels[mine]]
            for start in range(0, len(boxes), size):
                some = boxes[start : start + size]
                variants = image.repeat(len(some), 1, 1, 1)
                for variant, ((y0, y1), (x0, x1)) in zip(variants, some, strict=True):
                    variant[:, y0:y1, x0:x1] = 0
                drops = whole - scores_of(tape, forward(variants), score)[:, labels[mine]]
                for drop, ((y0, y1), (x0, x1)) in zip(drops, some, strict=True):
                    total[mine, y0:y1, x0:x1] += drop.to(dtype)[:, None, None]
    return total / count


def _spans(side: int, window: float, stride: float) -> list[tuple[int, int]]:
    length, step = max(1, round(window * side)), max(1, round(stride * side))
    starts = [*range(0, side - length, step), side - length]
    return [(start, start + length) for start in starts]


def rise(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    masks: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    seed: int = 0,
    score: ScoreKind = "probability",
    chunk: int = 0,
    precision: Precision = "full",
    fold: bool = True,
) -> Tensor:
    """Σ_n s(x⊙M_n)·M_n / (N·p) over random smooth masks M_n (Petsiuk et al., "RISE", BMVC 2018).

    Each mask is a grid of `cells`×`cells` that are 1 with probability p, bilinearly enlarged to one cell more
    than the image and shifted at random by less than a cell. One forward pass a mask and image, for all
    classes together. The masks come from a generator of their own, are the same for every image, and are made
    a chunk at a time. The paper takes 4000 masks for VGG16 and 8000 for ResNet-50.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect.
        masks: N.
        cells: of the grid, along each side.
        keep: p.
        seed: of the masks.
        score: the class's `probability`, as the paper, or `logit`.
        chunk: masked images a pass; 0 = what suits the device.
        precision: `bf16` runs them in bfloat16.
        fold: fold batch norms into convolutions where that is exact.

    Returns:
        (M, H, W).
    """
    if masks < 1 or cells < 1 or not 0 < keep <= 1:
        raise ConfigError(
            "rise", "masks and cells of at least 1, 0 < keep <= 1", f"{masks}, {cells} and {keep}"
        )
    height, width = tape.images.shape[2:]
    cell = math.ceil(height / cells), math.ceil(width / cells)
    generator = torch.Generator().manual_seed(seed)
    grids = (torch.rand(masks, cells, cells, generator=generator) < keep).to(tape.images.dtype)
    shifts = [torch.randint(side, (masks,), generator=generator).tolist() for side in cell]
    rows, labels = cases.to(tape.images.device).unbind(1)
    maps = torch.zeros(len(cases), height, width, dtype=tape.logits.dtype, device=tape.images.device)
    with sweeping(tape, precision, fold) as forward:
        size = chunk_size(tape.images, chunk)
        for start in range(0, masks, size):
            some = range(start, min(start + size, masks))
            enlarged = F.interpolate(
                grids[start : start + size].to(maps.device)[:, None],
                ((cells + 1) * cell[0], (cells + 1) * cell[1]),
                mode="bilinear",
                align_corners=False,
            )[:, 0]
            cut = torch.stack(
                [
                    one[shifts[0][n] : shifts[0][n] + height, shifts[1][n] : shifts[1][n] + width]
                    for one, n in zip(enlarged, some, strict=True)
                ]
            )
            for row in sorted(set(rows.tolist())):
                mine = (rows == row).nonzero()[:, 0]
                logits = forward(tape.images[row].detach() * cut[:, None])
                scores = scores_of(tape, logits, score)[:, labels[mine]].to(maps.dtype)
                maps[mine] += torch.einsum("nk,nhw->khw", scores, cut.to(maps.dtype))
    return maps / (masks * keep)
