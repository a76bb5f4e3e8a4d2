"""Bad image files, as bytes: cut short, bombs, other depths and colours, formats that run programs."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

PIXELS = (np.arange(30 * 40 * 3).reshape(30, 40, 3) * 7 % 251).astype(np.uint8)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(PIXELS) if image is None else image).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG that claims what it is told to."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def grey_png(depth: int) -> bytes:
    """A sound grey PNG of 8x8 with few bits a pixel: the value 1 everywhere."""
    row = b"\0" + {2: b"\x55\x55", 4: b"\x11\x11\x11\x11"}[depth]
    return png(8, 8, depth=depth, colour=0, data=row * 8)


def cut_short() -> Iterator[tuple[str, bytes]]:
    """PNG and JPEG cut at every tenth of their bytes."""
    for kind in ("PNG", "JPEG"):
        whole = encoded(kind)
        for tenth in range(10):
            yield f"{kind} cut at {tenth}/10", whole[: len(whole) * tenth // 10]


def unreadable() -> Iterator[tuple[str, bytes]]:
    """What no reader of ours may take for a picture, however it is named."""
    yield from cut_short()
    sound = encoded("PNG")
    yield "text", b"no image"
    yield "nothing", b""
    yield "HTML", b"<html><body>404</body></html>"
    yield "SVG", b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>"
    yield "PDF", b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n"
    yield (
        "PostScript",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\nshowpage\n",
    )
    yield "a PNG's head alone", sound[:33]
    yield "a PNG with a wrong checksum", sound[:40] + bytes([sound[40] ^ 255]) + sound[41:]
    yield "a PNG of no width", png(0, 8)
    yield "a PNG of an odd depth", png(8, 8, depth=3)
    yield "a PNG of an odd colour type", png(8, 8, colour=7)
    yield "a PNG bomb", png(60_000, 60_000)
    yield "a PNG beyond all bounds", png(2**31 - 1, 2**31 - 1)
    yield "a PNG over the limit of pixels", png(20_000, 6_000)
    yield "a BMP bomb", encoded("BMP")[:18] + struct.pack("<ii", 50_000, 50_000) + encoded("BMP")[26:]
    yield "a GIF of no frame", encoded("GIF")[:13] + b";"
    yield "a TIFF without directory", b"II*\0\xff\xff\xff\x7f"
    yield "a WebP cut short", encoded("WEBP")[:60]
    yield "a JPEG of markers alone", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\xff\xd9"
    yield "an MZ program", b"MZ" + bytes(100)
    yield "a zip", b"PK\x03\x04" + bytes(40)


def deep() -> Iterator[tuple[str, bytes]]:
    """More than 8 bits in one channel: no image of the usual kind."""
    values = (np.arange(1200).reshape(30, 40) * 50).astype(np.uint16)
    yield "16-bit PNG", encoded("PNG", Image.fromarray(values))
    yield "16-bit TIFF", encoded("TIFF", Image.fromarray(values))
    yield "32-bit TIFF", encoded("TIFF", Image.fromarray(values.astype(np.int32)))
    yield "float TIFF", encoded("TIFF", Image.fromarray(values.astype(np.float32)))


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("JPEG", exif=exif)


def broken_exif() -> bytes:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\xff\xff\0\x06\0\0\xff\xff"
    return encoded("JPEG", exif=exif)
