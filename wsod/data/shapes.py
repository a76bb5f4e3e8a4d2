"""The embedded data set: generated scenes of textured objects with exact boxes and masks.

An image is a function of (seed, split, index) alone, the same bytes on every machine. Nothing is written to
disk, nothing downloaded. Each class is an outline with a texture; the background holds outlines without the
texture and textures without the outline, so neither cue alone will do.

With `bias` a corner of the background carries a coloured pattern that tells the image's main class with that
probability: a shortcut a classifier can take, and that `cue` takes away or turns around outside of training
(the same scenes otherwise, pixel by pixel).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsod.data.dataset import Dataset
from wsod.data.masks import ArrayMasks
from wsod.data.render import OUTLINES, TEXTURES, Canvas, Draw, Stamp, contrasting, hue, value_noise
from wsod.errors import ConfigError
from wsod.types import Sample

__all__ = ["Scene", "Shapes"]

CLASSES = {
    "disc": "stripes",
    "square": "checker",
    "triangle": "dots",
    "star": "rings",
    "cross": "grain",
    "ring": "zigzag",
    "crescent": "fade",
    "arrow": "mesh",
}
"""Outline and texture of each class."""

SPLITS = {"train": 2000, "val": 400, "test": 400}
KEPT = 2**25
"""Bytes of scenes that a data set keeps, so that small ones are generated once and not once an epoch."""
LEAST_VISIBLE = 0.2
"""No object is placed where less than this part of it, or of one below it, would be seen."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One generated image with its truth.

    Args:
        pixels: (height, width, 3) uint8.
        instances: (height, width) uint8, 0 = background, n + 1 = the n-th object's visible pixels.
        labels: class of each object; the first is the image's main class.
        difficult: less than 55 % of the object, or fewer than 200 of its pixels, are visible.
        cue: the class the background cue speaks for, or None without a cue.
    """

    pixels: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    labels: tuple[int, ...]
    difficult: tuple[bool, ...]
    cue: int | None

    def boxes(self) -> NDArray[np.float64]:
        """(N, 4) exact half-open boxes of the visible pixels."""
        boxes = np.zeros((len(self.labels), 4))
        for n in range(len(boxes)):
            mask = self.instances == n + 1
            x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            boxes[n] = x[0], y[0], x[-1] + 1, y[-1] + 1
        return boxes


@dataclass
class Shapes(Dataset):
    """Generated scenes: 8 classes, 1 to 3 objects, exact boxes and instance masks.

    Args:
        split: `train` (2000 images), `val` (400) or `test` (400).
        seed: another seed is another data set.
        bias: probability that the background cue agrees with the main class in `train`; otherwise it
            speaks for another class. 0 = no cue is drawn; 1/8 = the cue tells nothing.
        cue: in `val` and `test` the cue may `match` as in `train`, be `random`, `deceive` (never agree) or
            be drawn not at all (`none`).
        simple: one large object near the middle and no clutter, learned from 1000 images of 48 px in half a
            minute; the task is `multiclass` then.
        kinds: number of classes, the first of the eight.
        upright: no object is turned, so that a texture always runs the same way: easier to learn.
        size: sides are drawn from size to 5/4 size, in pixels.
        count: number of images instead of the split's own.
    """

    name: ClassVar[str] = "shapes"
    usage: ClassVar[str] = (
        "shapes[:seed=0,bias=0.0,cue=match|random|deceive|none,simple=false,kinds=8,upright=false,"
        "size=128,count=N]"
    )
    default_split: ClassVar[str] = "test"

    split: str = "test"
    seed: int = 0
    bias: float = 0.0
    cue: Literal["match", "random", "deceive", "none"] = "match"
    simple: bool = False
    kinds: int = len(CLASSES)
    upright: bool = False
    size: int = 128
    count: int | None = None
    spec: str = field(default="shapes", init=False)

    def __post_init__(self) -> None:
        self.splits = tuple(SPLITS)
        self.task = "multiclass" if self.simple else "multilabel"
        self.split = self._known_split(self.split)
        count = SPLITS[self.split] if self.count is None else self.count
        for name, value, low, high in (
            ("seed", self.seed, 0, 2**63 - 1),
            ("bias", self.bias, 0, 1),
            ("kinds", self.kinds, 2, len(CLASSES)),
            ("size", self.size, 48, 1024),
            ("count", count, 1, 1_000_000),
        ):
            if not low <= value <= high:
                raise ConfigError(f"shapes: {name}", f"a value from {low} to {high}", value)
        self.classes = tuple(CLASSES)[: self.kinds]
        self.ids = tuple(f"{self.split}_{index:05d}" for index in range(count))
        self._kept: dict[int, Scene] = {}
        self._last: tuple[int, Scene] | None = None

    def __getitem__(self, index: int) -> Sample:
        """Annotations of one generated image; `image_path` is None."""
        scene, index = self.scene(index), self._at(index)
        return Sample(
            image_id=self.ids[index],
            image_path=None,
            size=scene.instances.shape,
            boxes=scene.boxes(),
            labels=np.array(scene.labels),
            difficult=np.array(scene.difficult),
            masks=ArrayMasks(scene.instances, scene.labels),
        )

    def image(self, index: int) -> Image.Image:
        """The generated pixels."""
        return Image.fromarray(self.scene(index).pixels)

    def scene(self, index: int) -> Scene:
        """The generated image with all its truth."""
        index, last = self._at(index), self._last
        if index in self._kept:
            return self._kept[index]
        if last is None or last[0] != index:
            # one assignment: threads that share this data set see whole pairs only
            self._last = last = (index, self._generate(index))
            if (len(self._kept) + 1) * 4 * last[1].instances.size <= KEPT:
                self._kept[index] = last[1]
        return last[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None, "_kept": {}}

    def _generate(self, index: int) -> Scene:
        key = (self.seed, list(SPLITS).index(self.split), index)
        draw, side = Draw(*key, 0), self.size
        height, width = (side + draw.integer(side // 4 + 1) for _ in range(2))
        main = draw.integer(self.kinds)
        canvas = Canvas(height, width)
        _background(canvas, draw, side)
        # a stream of its own: bias and cue leave everything else of the scene as it is
        cue = self._cue(Draw(*key, 1), main)
        if cue is not None:
            _paint_cue(canvas, Draw(*key, 2), cue, side)
        for _ in range(0 if self.simple else 1 + draw.integer(4)):
            _distractor(canvas, draw, side)
        return self._objects(canvas, draw, main, cue)

    def _cue(self, draw: Draw, main: int) -> int | None:
        if not self.bias:
            return None
        other = (main + 1 + draw.integer(self.kinds - 1)) % self.kinds
        anyone, agree = draw.integer(self.kinds), draw() < self.bias
        rule = "match" if self.split == "train" else self.cue
        return {"match": main if agree else other, "random": anyone, "deceive": other, "none": None}[rule]

    def _objects(self, canvas: Canvas, draw: Draw, main: int, cue: int | None) -> Scene:
        """The objects painted one over the other, and the truth of what stays visible."""
        names, side = self.classes, self.size
        wanted = 1 if self.simple else 1 + (draw() < 0.5) + (draw() < 0.4)
        least, spread, margin, pixels = (0.22, 0.2, 0.25, 0) if self.simple else (0.12, 0.24, 0.08, 200)
        instances = np.zeros((canvas.height, canvas.width), np.uint8)
        labels: list[int] = []
        areas: list[int] = []
        for n in range(wanted):
            label = main if n == 0 or draw() < 0.25 else draw.integer(len(names))
            for _ in range(6):
                x, y = draw(margin, 1 - margin), draw(margin, 1 - margin)
                centre = (x * canvas.width, y * canvas.height)
                radius = (least + spread * draw() * (0.4 + 0.6 * draw())) * side
                turn, aspect = draw.turn(), draw(0.8, 1.25)
                turn = (1.0, 0.0) if self.upright else turn
                stamp = Stamp.place(canvas, OUTLINES[names[label]], centre, radius, turn, aspect)
                solid = stamp.cover > 0.5
                proposal = instances.copy()
                proposal[stamp.window][solid] = len(labels) + 1
                seen = np.bincount(proposal.ravel(), minlength=len(labels) + 2)[1:]
                if (seen >= np.array([*areas, stamp.area]) * (LEAST_VISIBLE if n else 0.5)).all():
                    break
            else:
                if n:
                    continue
            instances = proposal
            labels.append(label)
            areas.append(stamp.area)
            canvas.mix(stamp.cover, _texture(stamp, CLASSES[names[label]], draw, side), stamp.window)
        canvas.grain(draw, draw(0.03, 0.12))
        seen = np.bincount(instances.ravel(), minlength=len(labels) + 1)[1:]
        difficult = tuple(bool(s < 0.55 * a or s < pixels) for s, a in zip(seen, areas, strict=True))
        return Scene(canvas.bytes(), instances, tuple(labels), difficult, cue)


def _background(canvas: Canvas, draw: Draw, side: int) -> None:
    """Two colours mixed by a gradient and several octaves of noise, strokes and soft blobs."""
    height, width = canvas.height, canvas.width
    first, second = draw.colour((0.15, 0.9), 0.6), draw.colour((0.15, 0.9), 0.6)
    c, s = draw.turn()
    ramp = canvas.x * np.float32(0.5 * c / width) + canvas.y * np.float32(0.5 * s / height)
    field = ramp + np.float32(0.25)
    roughness, weight = draw(0.35, 0.7), 0.55
    for cell in (side // 3, side // 8, side // 20, max(side // 48, 2)):
        field = field + (value_noise(draw, height, width, cell) - np.float32(0.5)) * np.float32(weight)
        weight *= roughness
    mix = (field + np.float32(0.25)).clip(0, 1)
    canvas.pixels[:] = first + (second - first) * mix[..., None]
    tone = value_noise(draw, height, width, max(side // 12, 2)) - np.float32(0.5)
    canvas.pixels += (tone * np.float32(draw(0.05, 0.25)))[..., None]
    for _ in range(2 + draw.integer(4)):
        centre, radius = (draw() * width, draw() * height), draw(0.05, 0.2) * side
        blob = Stamp.place(canvas, _soft, centre, radius, draw.turn(), draw(0.5, 1.8))
        canvas.mix(blob.cover * np.float32(draw(0.3, 0.7)), draw.colour(), blob.window)
    for _ in range(draw.integer(5)):
        canvas.line(draw)


def _soft(u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """An outline that fades from its centre to its edge."""
    return (u * u + v * v - np.float32(0.7)) * np.float32(0.08)


def _texture(stamp: Stamp, name: str, draw: Draw, side: int) -> NDArray[np.float32]:
    """(h, w, 3) two contrasting colours in the texture's pattern, lit from one side."""
    first = draw.colour((0.1, 0.95))
    second = contrasting(draw, first, 0.35)
    period = draw(0.055, 0.085) * side / stamp.radius
    shift_u, shift_v = np.float32(draw()), np.float32(draw())
    centred = 0 if name == "rings" else 1
    u = stamp.u * np.float32(1 / period) + shift_u * centred
    v = stamp.v * np.float32(1 / period) + shift_v * centred
    pattern = TEXTURES[name](u, v, period * stamp.radius, draw)
    light = np.float32(1) + (stamp.u * np.float32(draw(-1, 1)) + stamp.v) * np.float32(draw(-0.2, 0.2))
    lit: NDArray[np.float32] = (first + (second - first) * pattern[..., None]) * light[..., None]
    return lit


def _distractor(canvas: Canvas, draw: Draw, side: int) -> None:
    """Clutter of no class: a class's outline without its texture, or its texture in another outline."""
    names, others = list(CLASSES), [name for name in OUTLINES if name not in CLASSES]
    plain, which, other = draw() < 0.5, names[draw.integer(len(names))], others[draw.integer(len(others))]
    centre = (draw() * canvas.width, draw() * canvas.height)
    outline = OUTLINES[which if plain else other]
    stamp = Stamp.place(canvas, outline, centre, draw(0.07, 0.18) * side, draw.turn(), draw(0.75, 1.3))
    colour = draw.colour() if plain else _texture(stamp, CLASSES[which], draw, side)
    canvas.mix(stamp.cover * np.float32(draw(0.6, 1.0)), colour, stamp.window)


def _paint_cue(canvas: Canvas, draw: Draw, label: int, side: int) -> None:
    """A corner of the background in the class's colour and diagonal pattern."""
    reach = np.float32(draw(0.32, 0.42) * side)
    x = canvas.x if draw() < 0.5 else canvas.width - canvas.x
    y = canvas.y if draw() < 0.5 else canvas.height - canvas.y
    cover = (reach - np.sqrt(x * x + y * y)).clip(0, 6) / np.float32(6)
    step = np.float32(1 / (0.03 * side * (1 + label % 4)))
    diagonal = (x + y if label < 4 else x - y) * step
    bright = np.float32(0.55) + np.float32(0.4) * (diagonal - np.floor(diagonal) < 0.5)
    canvas.mix(cover * np.float32(0.85), hue(label / len(CLASSES), 0.75, 1.0) * bright[..., None])
