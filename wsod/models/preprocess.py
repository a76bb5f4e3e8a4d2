"""Image → the tensor a classifier expects, and the part of the image that tensor shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from wsod.errors import ConfigError, DataError
from wsod.types import MAX_PIXELS

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Preprocess", "Region", "Triple"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Region = tuple[float, float, float, float]
Triple = tuple[float, float, float]

_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """Resize, scale to [0, 1], normalise. Resizing is Pillow's, antialiased, as torchvision's on PIL images.

    The default mode is `squash`: a map must speak of every pixel of the image, and boxes near the border
    are lost to a centre crop. `crop` gives the classification accuracy published for a network.

    Args:
        size: side of the input in pixels.
        mode: `squash` the whole image to size×size; `shorter`: shorter side to `size`, aspect kept (images of
            different shapes then cannot share a batch); `crop`: shorter side to `resize`, centre crop of
            size×size; `letterbox`: longer side to `size`, the rest filled with the mean colour.
        mean: subtracted after division by 255, per channel.
        std: divided by, per channel.
        interpolation: `nearest`, `bilinear`, `bicubic` or `lanczos`.
        resize: the shorter side before a `crop`; 0 = round(size / 0.875), ImageNet's 256 for 224.
    """

    size: int = 224
    mode: Literal["squash", "shorter", "crop", "letterbox"] = "squash"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    resize: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if self.mode not in ("squash", "shorter", "crop", "letterbox"):
            raise ConfigError("preprocess: mode", "squash, shorter, crop or letterbox", repr(self.mode))
        if self.interpolation not in _RESAMPLE:
            raise ConfigError("preprocess: interpolation", ", ".join(_RESAMPLE), repr(self.interpolation))
        if self.size < 1 or (self.resize and self.resize < self.size):
            raise ConfigError("preprocess", "size >= 1 and resize >= size", f"{self.size}, {self.resize}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError("preprocess", "three means and three positive stds", f"{self.mean}, {self.std}")

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, Region | None]:
        """Preprocess one image.

        Returns:
            The (3, H, W) float32 tensor, and the region (x0, y0, x1, y1) it shows in pixels of the original
            image: None for the whole image, inside it for a crop, reaching outside for a letterbox.
        """
        image = image if image.mode == "RGB" else image.convert("RGB")
        width, height = image.size
        resample = _RESAMPLE[self.interpolation]
        region: Region | None = None
        if self.mode == "squash":
            pixels = np.asarray(image.resize((self.size, self.size), resample), np.float32)
        elif self.mode == "letterbox":
            pixels, region = self._letterbox(image, resample)
        else:
            target = self.size if self.mode == "shorter" else self.resize or round(self.size / 0.875)
            short = min(width, height)
            # the longer side is truncated, as torchvision's Resize does
            w = target if width == short else int(target * width / short)
            h = target if height == short else int(target * height / short)
            if w * h > MAX_PIXELS:
                got = f"one of {width}x{height}"
                raise DataError(
                    f"{self.mode} to {target}", f"an image of at most {MAX_PIXELS} pixels then", got
                )
            pixels = np.asarray(image.resize((w, h), resample), np.float32)
            if self.mode == "crop":
                left, top = round((w - self.size) / 2), round((h - self.size) / 2)
                pixels = pixels[top : top + self.size, left : left + self.size]
                sx, sy = width / w, height / h
                region = (left * sx, top * sy, (left + self.size) * sx, (top + self.size) * sy)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        normalised = (pixels / np.float32(255) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1))), region

    def _letterbox(
        self, image: Image.Image, resample: Image.Resampling
    ) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], Region]:
        width, height = image.size
        scale = self.size / max(width, height)
        w, h = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (self.size - w) // 2, (self.size - h) // 2
        pixels = np.empty((self.size, self.size, 3), np.float32)
        pixels[:] = np.array(self.mean, np.float32) * 255  # zero once normalised
        pixels[top : top + h, left : left + w] = np.asarray(image.resize((w, h), resample), np.float32)
        sx, sy = width / w, height / h
        return pixels, (-left * sx, -top * sy, (self.size - left) * sx, (self.size - top) * sy)
