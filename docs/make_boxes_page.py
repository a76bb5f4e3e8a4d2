"""The pictures of docs/boxes.md: what each choice of `heatmap_to_boxes` does on three photos.

    python docs/make_boxes_page.py PHOTOS WEIGHTS.safetensors docs/images

PHOTOS holds the three files named below; WEIGHTS is an ImageNet state dict of torchvision's mobilenet_v2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

import wsod
from wsod.data import read_image
from wsod.scoremaps import resize_map

PHOTOS = (("coral_cat_720p.jpg", 285), ("coral_pets.jpg", 195), ("gradcam_both.png", 281))
WIDTH, GAP, LINE = 200, 6, 16
FONT = ImageFont.truetype(findfont("DejaVu Sans"), 11)


class Photo(NamedTuple):
    pixels: Image.Image
    size: tuple[int, int]
    maps: dict[str, np.ndarray]


def load(folder: Path, weights: Path) -> list[Photo]:
    """The photos with the maps of their class at 15x15 cells, and a finer one."""
    classifier = wsod.load_classifier(weights, arch="mobilenet_v2", size=449)
    finer = wsod.load_classifier(weights, arch="mobilenet_v2", size=449, target_layer="features.13")
    photos = []
    for name, label in PHOTOS:
        image = read_image(folder / name)
        tensor, _ = classifier.preprocess(image)
        maps = {
            method: wsod.attention_maps(network, tensor[None], [label], methods=[method]).maps[method][0]
            for method, network in (("cam", classifier), ("layercam", finer))
        }
        arrays = {method: values.detach().numpy() for method, values in maps.items()}
        shown = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
        photos.append(Photo(shown, (shown.height, shown.width), arrays))
    return photos


def heat(photo: Photo, values: np.ndarray) -> Image.Image:
    scores = resize_map(values, photo.size, "nearest" if values.shape != photo.size else "bilinear")
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    colours = colormaps["inferno"](scores)[..., :3] * 255
    return Image.fromarray((0.4 * np.asarray(photo.pixels) + 0.6 * colours).astype(np.uint8))


def claim(photo: Photo, mask: np.ndarray, boxes: np.ndarray) -> Image.Image:
    """The photo dark outside the mask, the mask's outline in white, boxes in pink."""
    if mask.shape != photo.size:
        scale = np.array(photo.size[::-1] * 2) / np.array(mask.shape[::-1] * 2)
        mask, boxes = resize_map(mask, photo.size, "nearest") > 0.5, boxes * scale
    pixels = np.asarray(photo.pixels).astype(float)
    pixels[~mask] *= 0.5
    pixels[ndimage.binary_dilation(mask) & ~mask] = 255
    picture = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in boxes:
        draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=(255, 64, 129), width=2)
    return picture


def sheet(path: Path, heads: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> None:
    """Pictures in columns under their heads, few colours so that the file stays small."""
    top = max(head.count("\n") + 1 for head in heads) * LINE + 4
    heights = [row[0].height + GAP for row in rows]
    page = Image.new("RGB", ((WIDTH + GAP) * len(heads) - GAP, top + sum(heights) - GAP), "white")
    draw = ImageDraw.Draw(page)
    for column, head in enumerate(heads):
        left = column * (WIDTH + GAP)
        draw.multiline_text((left + 2, 2), head, fill="black", font=FONT, spacing=3)
        for place, row in enumerate(rows):
            page.paste(row[column], (left, top + sum(heights[:place])))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {page.width}x{page.height}, {path.stat().st_size / 1000:.0f} kB")


def columns(
    photos: Sequence[Photo], method: str, choices: Sequence[dict[str, Any]]
) -> list[list[Image.Image]]:
    """A row a photo: its map, then mask and boxes of each choice."""
    rows = []
    for photo in photos:
        row = [heat(photo, resize_map(photo.maps[method], photo.size))]
        for choice in choices:
            options = {"size": photo.size, **choice}
            level = {key: options[key] for key in ("threshold", "rule", "size") if key in options}
            heatmap = photo.maps[method]
            if options.get("rule") == "absolute":  # a level needs a scale
                heatmap = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
            mask = wsod.heatmap_to_mask(heatmap, **level)
            row.append(claim(photo, mask, wsod.heatmap_to_boxes(heatmap, **options)[0]))
        rows.append(row)
    return rows


def thresholds(photos: Sequence[Photo], out: Path) -> None:
    choices: list[dict[str, Any]] = [{"threshold": t} for t in (0.1, 0.2, 0.35, 0.5, 0.7)]
    heads = ["map (cam)", *(f"threshold={c['threshold']}" for c in choices)]
    sheet(out / "boxes-threshold.png", heads, columns(photos, "cam", choices))


def rules(photos: Sequence[Photo], out: Path) -> None:
    choices: list[dict[str, Any]] = [
        {"rule": name} for name in ("max", "mean_std", "otsu", "percentile", "absolute")
    ]
    heads = [
        "map (cam)",
        "max (0.2)",
        "mean_std (1)",
        "otsu",
        "percentile (80)",
        "absolute (0.5)\nof a min-maxed map",
    ]
    sheet(out / "boxes-rules.png", heads, columns(photos, "cam", choices))


def components(photos: Sequence[Photo], out: Path) -> None:
    base = {"rule": "percentile", "threshold": 90}
    merged, largest = {"merge_iou": 0.0}, {"components": "largest"}
    more: list[dict[str, Any]] = [{}, largest, {"min_area": 250}, merged, {**merged, **largest}]
    heads = [
        "a finer map (layercam)",
        'components="all"',
        'components="largest"',
        "min_area=250",
        "merge_iou=0",
        'merge_iou=0,\ncomponents="largest"',
    ]
    sheet(out / "boxes-components.png", heads, columns(photos, "layercam", [{**base, **c} for c in more]))


def sizes(photos: Sequence[Photo], out: Path) -> None:
    rows = []
    for photo in photos:
        raw = photo.maps["cam"]
        row = [heat(photo, raw)]
        for size in (None, photo.size):
            mask = wsod.heatmap_to_mask(raw, 0.35, size=size)
            row.append(claim(photo, mask, wsod.heatmap_to_boxes(raw, 0.35, size=size)[0]))
        rows.append(row)
    heads = [
        "15x15 cells",
        "size=None: boxes in cells,\nhere drawn at the image's scale",
        "size=(height, width)",
    ]
    sheet(out / "boxes-size.png", heads, rows)


def main(folder: Path, weights: Path, out: Path) -> None:
    photos = load(folder, weights)
    pages: tuple[Callable[[Sequence[Photo], Path], None], ...] = (thresholds, rules, components, sizes)
    for page in pages:
        page(photos, out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
