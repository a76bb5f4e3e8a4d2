"""Damage that decoders pass over: Pillow reads a PNG's pixels without their checksums.

A JPEG has no checksums. What is cut short is refused by Pillow; bits that changed, or a piece that is missing
between two sound ones, show as wrong pixels alone (libjpeg warns of some, and Pillow does not tell).
"""

from __future__ import annotations

import zlib

__all__ = ["png_damage"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_damage(content: bytes) -> str:
    """What is wrong with a PNG's parts that make the picture, in words; nothing where they are sound.

    Parts whose names begin in lower case, such as comments, may be damaged: no pixel depends on them.
    """
    place = len(_SIGNATURE)
    while place + 8 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        kind = content[place + 4 : place + 8]
        if kind == b"IEND":
            break
        if kind[:1].isupper():
            if end + 4 > len(content):
                return f"{kind.decode('latin1')!r} cut short"
            if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
                return f"{kind.decode('latin1')!r} with another checksum"
        place = end + 4
    return ""
