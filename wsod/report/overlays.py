"""Pictures of cases: the image, its map, the mask at the run's threshold, predicted and true boxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsod.boxes.convert import heatmap_to_boxes
from wsod.output import shortened, write_bytes
from wsod.scoremaps import MapProcessing
from wsod.store import folder_name
from wsod.types import AttentionMaps, Sample

__all__ = ["CLAIM", "draw_boxes", "drawn_processing", "font", "heat", "overlay", "save_overlays"]

TRUTH, CLAIM = (0, 230, 118), (255, 64, 129)
PANEL = 320  # pixels: the longer side of a panel
MARGIN, HEAD, CAPTION = 8, 26, 18
CAPTIONS = ("image, true boxes (green)", "attention map", "mask", "boxes: claimed (pink), true (green)")
BARE = ("image", "attention map", "mask", "claimed boxes")


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The lettering of all pictures."""
    # comes with matplotlib, and has the letters of most class names
    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def heat(image: NDArray[np.uint8], scores: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(H, W, 3) the picture under the colours of its (H, W) score map."""
    colours = colormaps["inferno"](scores)[..., :3] * 255
    weight = 0.35 + 0.4 * scores[..., None]
    return np.asarray(image * (1 - weight) + colours * weight, np.uint8)


def _masked(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    grey = np.repeat(image.mean(2, keepdims=True) * 0.35, 3, 2)
    return np.asarray(np.where(mask[..., None], image, grey), np.uint8)


def draw_boxes(
    panel: Image.Image, boxes: NDArray[np.float64], colour: tuple[int, int, int], scale: float
) -> None:
    """Outline (N, 4) boxes, given in pixels of a picture that the panel shows `scale` times as large."""
    draw = ImageDraw.Draw(panel)
    for x0, y0, x1, y1 in boxes * scale:
        draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=colour, width=2)


def overlay(
    image: Image.Image,
    scores: NDArray[np.float64],
    truth: NDArray[np.float64],
    *,
    threshold: float,
    title: str = "",
) -> Image.Image:
    """Four panels side by side: image with true boxes, map, mask, predicted (pink) on true (green) boxes.

    Args:
        image: the picture, RGB.
        scores: (height, width) score map in [0, 1], of the image's size.
        truth: (N, 4) true boxes.
        threshold: mask and boxes are the pixels above this score.
        title: printed above.
    """
    pixels = np.asarray(image.convert("RGB"))
    mask = scores > threshold
    claims = (
        heatmap_to_boxes(scores, threshold=threshold, rule="absolute")[0] if mask.any() else np.zeros((0, 4))
    )
    scale = PANEL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pictures = (pixels, heat(pixels, scores), _masked(pixels, mask), pixels)
    panels = [Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC) for picture in pictures]
    draw_boxes(panels[0], truth, TRUTH, scale)
    draw_boxes(panels[3], truth, TRUTH, scale)
    draw_boxes(panels[3], claims, CLAIM, scale)
    sheet = Image.new("RGB", (MARGIN + 4 * (size[0] + MARGIN), HEAD + size[1] + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 5), title, fill="black", font=font(13))
    for i, (panel, caption) in enumerate(zip(panels, CAPTIONS if len(truth) else BARE, strict=True)):
        left = MARGIN + i * (size[0] + MARGIN)
        sheet.paste(panel, (left, HEAD))
        draw.text((left, HEAD + size[1] + 2), caption, fill="dimgray", font=font(11))
    return sheet


def save_overlays(
    folder: Path,
    items: Iterable[tuple[Sample, Image.Image, Mapping[str, AttentionMaps]]],
    thresholds: Mapping[str, float],
    processing: MapProcessing,
    classes: Sequence[str],
    limit: int,
) -> list[Path]:
    """Write FOLDER/METHOD/IMAGE_CLASS.png for the first `limit` cases of each method; returns the paths."""
    drawn: dict[str, int] = {}
    paths = []
    shown = drawn_processing(processing)
    for sample, image, maps in items:
        for name, one in maps.items():
            for k, label in enumerate(one.labels):
                if drawn.get(name, 0) >= limit:
                    continue
                drawn[name] = drawn.get(name, 0) + 1
                scores = shown.score(one, k).scores
                title = f"{classes[label]} — {name}, threshold {thresholds[name]:.2f}  ({sample.image_id})"
                picture = overlay(
                    image, scores, sample.boxes_of(int(label)), threshold=thresholds[name], title=title
                )
                stem = shortened(f"{sample.image_id}_{classes[label]}".replace("/", "_"))
                path = folder / folder_name(name) / f"{stem}.png"
                file = BytesIO()
                picture.save(file, "PNG")
                write_bytes(path, file.getvalue(), held=True)
                paths.append(path)
    return paths


def drawn_processing(processing: MapProcessing) -> MapProcessing:
    """How maps are made scores for pictures: of the whole image, whatever frame the protocol scores in."""
    normalise = "minmax" if processing.normalise == "none" else processing.normalise
    return MapProcessing(resize=processing.resize, normalise=normalise, order=processing.order)
