"""One picture, many map methods: a contact sheet, and a preview of it in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.text import Text

from wsod.boxes.convert import heatmap_to_boxes
from wsod.data import read_image
from wsod.device import pick_device
from wsod.errors import ConfigError
from wsod.registry import nearest
from wsod.report.overlays import CLAIM, draw_boxes, font, heat
from wsod.scoremaps import MapProcessing
from wsod.types import AttentionMaps

if TYPE_CHECKING:
    from wsod.maps import MapMethod
    from wsod.models import Classifier

__all__ = ["Tile", "contact_sheet", "maps_of_image", "preview"]

PANEL, GAP, CAPTION = 240, 8, 22
COLUMNS = 5


@dataclass(frozen=True)
class Tile:
    """One map of the picture.

    Args:
        method: its name.
        label: the class it is of; empty for a map without a classifier.
        scores: (height, width) score map of the picture's size.
        boxes: (N, 4) box of the largest component above the threshold.
    """

    method: str
    label: str
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]


def maps_of_image(
    path: Path,
    methods: Sequence[str],
    *,
    checkpoint: Path | None = None,
    labels: Sequence[str] = (),
    threshold: float = 0.2,
    arch: str | None = None,
    target_layer: str | None = None,
    size: int | None = None,
    device: str = "auto",
) -> tuple[Image.Image, list[Tile]]:
    """A photo, and its maps by every method for every class asked for.

    Args:
        path: any picture.
        methods: names of map methods.
        checkpoint: the classifier; controls need none.
        labels: class names; none = the predicted class.
        threshold: of the boxes, a fraction of the map's maximum.
        arch: architecture of a plain state dict.
        target_layer: module path that overrides the architecture's own.
        size: input side in pixels.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: an unknown method or class, or no checkpoint where one is needed.
        DataError: no picture.
    """
    from wsod.maps import METHODS

    found: dict[str, MapMethod] = {name: METHODS[name] for name in methods}
    image = read_image(path, exif=True)
    asking = [name for name, method in found.items() if not method.is_control]
    if asking and checkpoint is None:
        hint = "Pass --checkpoint ft.pt, or a state dict with --arch NAME."
        raise ConfigError(f"--maps {asking[0]}", "a classifier", "no --checkpoint", hint)
    maps: list[tuple[str, str, AttentionMaps, int]] = []
    if asking and checkpoint is not None:
        from wsod.models import load_classifier

        where = pick_device(device)
        options: dict[str, Any] = {"arch": arch, "target_layer": target_layer, "size": size, "device": where}
        maps = _computed(load_classifier(checkpoint, **options), image, asking, labels, where)
    pixels = np.asarray(image, np.float64) / 255
    for name, method in found.items():
        if method.is_control:
            values = method.control((image.height, image.width), image_id=path.stem, image=pixels)
            one = AttentionMaps(path.stem, (image.height, image.width), np.zeros(1, np.int64), values[None])
            maps.append((name, "", one, 0))
    maps.sort(key=lambda item: (item[1], list(found).index(item[0])))
    tiles = []
    for name, label, one, k in maps:
        scores = MapProcessing().score(one, k).scores
        boxes = np.zeros((0, 4))
        if scores.any():
            boxes = heatmap_to_boxes(scores, threshold, components="largest")[0]
        tiles.append(Tile(name, label, scores, boxes))
    return image, tiles


def _computed(
    classifier: Classifier, image: Image.Image, methods: Sequence[str], labels: Sequence[str], device: str
) -> list[tuple[str, str, AttentionMaps, int]]:
    import torch

    from wsod.maps import attention_maps

    names = classifier.classes
    for label in labels:
        if label not in names:
            raise ConfigError(
                "--label", "a class of the classifier", repr(label), nearest(label, list(names))
            )
    tensor, region = classifier.preprocess(image)
    batch = tensor[None].to(device)
    if labels:
        wanted = [names.index(label) for label in labels]
    else:
        with torch.no_grad():
            wanted = [int(classifier(batch)[0].argmax())]
    attention = attention_maps(classifier, batch, [wanted], list(methods))
    size = image.height, image.width
    maps = []
    for name, stack in attention.maps.items():
        one = AttentionMaps("image", size, np.array(wanted), stack.float().cpu().numpy(), None, region)
        maps += [(name, names[label], one, k) for k, label in enumerate(wanted)]
    return maps


def contact_sheet(image: Image.Image, tiles: Sequence[Tile], columns: int = COLUMNS) -> Image.Image:
    """The picture and its maps in a grid, each with its box, method and class."""
    scale = PANEL / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    panels = [(image, "image", np.zeros((0, 4)))]
    pixels = np.asarray(image)
    panels += [
        (
            Image.fromarray(heat(pixels, tile.scores)),
            ", ".join(filter(None, (tile.method, tile.label))),
            tile.boxes,
        )
        for tile in tiles
    ]
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    cell = size[0] + GAP, size[1] + CAPTION
    sheet = Image.new("RGB", (GAP + columns * cell[0], GAP + rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (panel, caption, boxes) in enumerate(panels):
        left, top = GAP + i % columns * cell[0], GAP + i // columns * cell[1]
        small = panel.resize(size, Image.Resampling.BICUBIC)
        draw_boxes(small, boxes, CLAIM, scale)
        sheet.paste(small, (left, top))
        draw.text((left, top + size[1] + 2), _cut(caption, size[0]), fill="black", font=font(12))
    return sheet


def _cut(text: str, width: int) -> str:
    """The text, shortened to that many pixels."""
    if font(12).getlength(text) <= width:
        return text
    while text and font(12).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def preview(sheet: Image.Image, width: int) -> Text:
    """The sheet in half blocks, two pixels a character, `width` characters wide."""
    height = max(2, round(sheet.height * width / sheet.width / 2) * 2)
    pixels = np.asarray(sheet.resize((width, height), Image.Resampling.LANCZOS)).reshape(
        height // 2, 2, width, 3
    )
    text = Text(no_wrap=True)
    for upper, lower in pixels:
        for top, bottom in zip(upper.tolist(), lower.tolist(), strict=True):
            colours = ("#{:02x}{:02x}{:02x}".format(*colour) for colour in (top, bottom))
            text.append("▀", style="{} on {}".format(*colours))
        text.append("\n")
    return text
