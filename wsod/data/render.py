"""Drawing for the generated data set: noise, outlines, textures, blending.

Every value comes from +, -, ×, ÷, square roots and comparisons of float32 arrays, which IEEE 754 fixes to the
bit; sines and matrix products, which differ between machines, are kept out. Scalars that need them (a
rotation) are rounded first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["OUTLINES", "TEXTURES", "Canvas", "Draw", "Stamp", "value_noise"]

Array = NDArray[np.float32]
Colour = NDArray[np.float32]
Outline = Callable[[Array, Array], Array]


class Draw:
    """Uniform numbers only: their stream is the part of numpy's generator that does not change."""

    def __init__(self, *key: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(self._generator.random())

    def integer(self, n: int) -> int:
        """One of 0..n-1."""
        return min(int(self() * n), n - 1)

    def array(self, *shape: int) -> Array:
        """Uniform in [0, 1)."""
        return self._generator.random(shape).astype(np.float32)

    def turn(self) -> tuple[float, float]:
        """(cosine, sine) of a uniform angle, rounded so that every libm gives the same bits."""
        angle = self(0.0, 2.0 * math.pi)
        return round(math.cos(angle) * 4096) / 4096, round(math.sin(angle) * 4096) / 4096

    def colour(self, value: tuple[float, float] = (0.15, 0.95), saturation: float = 0.8) -> Colour:
        """(3,) RGB of a uniform hue."""
        return hue(self(), self(0.1, saturation), self(*value))


def hue(h: float, saturation: float, value: float) -> Colour:
    """(3,) RGB of hue, saturation, value, all in [0, 1]."""
    spread = [abs((h * 6 + shift) % 6 - 3) - 1 for shift in (0, 4, 2)]
    return np.array([value * (1 - saturation * (1 - min(max(x, 0), 1))) for x in spread], np.float32)


def contrasting(draw: Draw, other: Colour, least: float = 0.3) -> Colour:
    """A colour whose mean differs from the other's by at least that much."""
    mean = float(other.mean())
    for _ in range(8):
        colour = draw.colour((0.05, 1.0))
        if abs(float(colour.mean()) - mean) >= least:
            return colour
    return np.full(3, 0.05 if mean > 0.5 else 0.95, np.float32)


def _smoothstep(x: Array) -> Array:
    smooth: Array = x * x * (np.float32(3) - np.float32(2) * x)
    return smooth


def value_noise(draw: Draw, height: int, width: int, cell: int) -> Array:
    """(height, width) smooth noise in [0, 1): random values every `cell` pixels, smoothstep between."""
    grid = draw.array(height // cell + 2, width // cell + 2)
    rows, columns = np.arange(height), np.arange(width)
    y, x = (_smoothstep((steps % cell).astype(np.float32) / np.float32(cell)) for steps in (rows, columns))
    top, bottom = grid[rows // cell], grid[rows // cell + 1]
    bands = top + (bottom - top) * y[:, None]
    left, right = bands[:, columns // cell], bands[:, columns // cell + 1]
    noise: Array = left + (right - left) * x
    return noise


class Canvas:
    """An image being painted: (height, width, 3) float32 in [0, 1]."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.pixels = np.zeros((height, width, 3), np.float32)
        self.x = np.arange(width, dtype=np.float32) + np.float32(0.5)
        self.y = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)

    def mix(self, amount: Array, colour: Colour, window: tuple[slice, slice] | None = None) -> None:
        """Blend a colour (or a field of colours) in by `amount` (h, w) in [0, 1]."""
        part = self.pixels[window] if window else self.pixels
        part += amount[..., None] * (colour - part)

    def line(self, draw: Draw) -> None:
        """A straight stroke across the whole image."""
        c, s = draw.turn()
        through = draw(0.1, 0.9) * self.width * c + draw(0.1, 0.9) * self.height * s
        distance = np.abs(self.x * np.float32(c) + self.y * np.float32(s) - np.float32(through))
        cover = (np.float32(draw(0.6, 2.5)) - distance).clip(0, 1)
        self.mix(cover * np.float32(draw(0.3, 0.8)), draw.colour())

    def grain(self, draw: Draw, amount: float) -> None:
        """Sensor noise, the same in all channels."""
        noise = draw.array(self.height, self.width) - np.float32(0.5)
        self.pixels += (noise * np.float32(amount))[..., None]

    def bytes(self) -> NDArray[np.uint8]:
        """(height, width, 3) uint8."""
        return (self.pixels.clip(0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


@dataclass(frozen=True)
class Stamp:
    """An outline at a place: its window in the image and its coverage there.

    Args:
        window: rows and columns of the image it touches.
        cover: (h, w) part of each pixel inside the outline, in the window.
        u, v: (h, w) object coordinates: the outline spans about [-1, 1].
        area: pixels of the whole outline, those beyond the image included.
    """

    window: tuple[slice, slice]
    cover: Array
    u: Array
    v: Array
    radius: float
    area: int

    @staticmethod
    def place(
        canvas: Canvas,
        outline: Outline,
        centre: tuple[float, float],
        radius: float,
        turn: tuple[float, float],
        aspect: float = 1.0,
    ) -> Stamp:
        """The outline turned, scaled and cut at the image's border."""
        reach = int(radius * 1.5) + 2
        x0, y0 = int(centre[0]) - reach, int(centre[1]) - reach
        c, s = np.float32(turn[0] / radius), np.float32(turn[1] / radius)
        dx = np.arange(x0, x0 + 2 * reach + 1, dtype=np.float32) + np.float32(0.5 - centre[0])
        dy = np.arange(y0, y0 + 2 * reach + 1, dtype=np.float32)[:, None] + np.float32(0.5 - centre[1])
        u, v = dx * c + dy * s, (dy * c - dx * s) * np.float32(aspect)
        cover = (np.float32(0.5) - outline(u, v) * np.float32(radius)).clip(0, 1)
        rows = slice(max(0, -y0), max(0, min(2 * reach + 1, canvas.height - y0)))
        columns = slice(max(0, -x0), max(0, min(2 * reach + 1, canvas.width - x0)))
        return Stamp(
            (slice(y0 + rows.start, y0 + rows.stop), slice(x0 + columns.start, x0 + columns.stop)),
            cover[rows, columns],
            u[rows, columns],
            v[rows, columns],
            radius,
            int(np.count_nonzero(cover > 0.5)),
        )


# --- outlines: signed distance (about), in units of the radius; negative inside --------------------------


_PENTAGON = (
    (0.0, 1.0),
    (0.95105652, 0.30901699),
    (0.58778525, -0.80901699),
    (-0.58778525, -0.80901699),
    (-0.95105652, 0.30901699),
)


def _half(u: Array, v: Array, c: float, s: float, offset: float) -> Array:
    line: Array = u * np.float32(c) + v * np.float32(s) - np.float32(offset)
    return line


def _radius(u: Array, v: Array) -> Array:
    radius: Array = np.sqrt(u * u + v * v)
    return radius


def _disc(u: Array, v: Array) -> Array:
    return _radius(u, v) - np.float32(0.95)


def _both(a: Array, b: Array) -> Array:
    inside: Array = np.maximum(a, b)
    return inside


def _either(a: Array, b: Array) -> Array:
    inside: Array = np.minimum(a, b)
    return inside


def _square(u: Array, v: Array) -> Array:
    return _both(np.abs(u), np.abs(v)) - np.float32(0.82)


def _triangle(u: Array, v: Array) -> Array:
    return _both(v - np.float32(0.6), _half(np.abs(u), v, 0.8660254, -0.5, 0.55))


def _star(u: Array, v: Array) -> Array:
    # a pentagram is where at most one of five half planes is left: the second largest distance
    first, *rest = (_half(u, v, c, s, 0.37) for c, s in _PENTAGON)
    second = _either(first, rest[0])
    first = _both(first, rest[0])
    for line in rest[1:]:
        second, first = _both(second, _either(first, line)), _both(first, line)
    return second


def _cross(u: Array, v: Array) -> Array:
    a, b = np.abs(u), np.abs(v)
    return _both(_both(a, b) - np.float32(0.98), _either(a, b) - np.float32(0.34))


def _ring(u: Array, v: Array) -> Array:
    ring: Array = np.abs(_radius(u, v) - np.float32(0.72)) - np.float32(0.27)
    return ring


def _crescent(u: Array, v: Array) -> Array:
    bite = u - np.float32(0.5)
    inner = np.sqrt(bite * bite + v * v) - np.float32(0.72)
    return _both(_radius(u, v) - np.float32(1), -inner)


def _arrow(u: Array, v: Array) -> Array:
    b = np.abs(v)
    head = _both(np.float32(-0.05) - u, _half(u, b, 0.70710678, 0.70710678, 0.68))
    shaft = _both(b - np.float32(0.26), np.abs(u + np.float32(0.45)) - np.float32(0.53))
    return _either(head, shaft)


def _bar(u: Array, v: Array) -> Array:
    return _both(np.abs(u) - np.float32(1), np.abs(v) - np.float32(0.4))


def _half_disc(u: Array, v: Array) -> Array:
    return _both(_radius(u, v) - np.float32(0.95), np.float32(-0.05) - v)


def _hexagon(u: Array, v: Array) -> Array:
    a, b = np.abs(u), np.abs(v)
    return _both(_half(a, b, 0.8660254, 0.5, 0.0), b) - np.float32(0.82)


def _drop(u: Array, v: Array) -> Array:
    return _both(_radius(u, v) - np.float32(0.95), np.float32(-0.6) - u * v * np.float32(2))


OUTLINES: dict[str, Outline] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "arrow": _arrow,
    "bar": _bar,
    "half-disc": _half_disc,
    "hexagon": _hexagon,
    "drop": _drop,
}

# --- textures: (h, w) mix of the two colours in [0, 1]; coordinates and `sharp` in periods --------------


def _wave(x: Array) -> Array:
    """Triangle wave of period 1 between 0 and 1."""
    wave: Array = np.abs((x - np.floor(x)) * np.float32(2) - np.float32(1))
    return wave


def _edge(x: Array, at: float, sharp: float) -> Array:
    return ((x - np.float32(at)) * np.float32(sharp) + np.float32(0.5)).clip(0, 1)


def _stripes(u: Array, v: Array, sharp: float, draw: Draw) -> Array:
    return _edge(_wave(u), 0.5, sharp)


def _checker(u: Array, v: Array, sharp: float, draw: Draw) -> Array:
    a, b = _edge(_wave(u * np.float32(0.6)), 0.5, sharp), _edge(_wave(v * np.float32(0.6)), 0.5, sharp)
    return a + b - np.float32(2) * a * b


def _dots(u: Array, v: Array, sharp: float, draw: Draw) -> Array:
    a, b = u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5)
    return _edge(np.sqrt(a * a + b * b) * np.float32(-2), -0.62, sharp)


def _rings(u: Array, v: Array, sharp: float, draw: Draw) -> Array:
    return _edge(_wave(_radius(u, v)), 0.5, sharp)


def _grain(u: Array, v: Array, sharp: float, draw: Draw) -> Array:
    return _edge(value_noise(draw, u.shape[0], u.shape[1], 3), 0.5, 3.0)


def _mesh(u: Array, v: Array, sharp: float, draw: Draw) -> Array:
    return _edge(np.maximum(_wave(u), _wave(v)), 0.72, sharp)


def _fade(u: Array, v: Array, sharp: float, draw: Draw) -> Array:
    return _wave(u * np.float32(0.35))


def _zigzag(u: Array, v: Array, sharp: float, draw: Draw) -> Array:
    return _edge(_wave(v + _wave(u * np.float32(0.8))), 0.5, sharp)


TEXTURES: dict[str, Callable[[Array, Array, float, Draw], Array]] = {
    "stripes": _stripes,
    "checker": _checker,
    "dots": _dots,
    "rings": _rings,
    "grain": _grain,
    "mesh": _mesh,
    "fade": _fade,
    "zigzag": _zigzag,
}
