"""The README's picture: one case by several methods, stacked from a run's overlays.

make quickstart
python docs/make_readme_picture.py runs/quickstart-…/atcon test_00000_cross.png docs/images/overlays.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

METHODS = ("gradcam", "layercam", "guidedbackprop")


def stack(run: Path, case: str, target: Path) -> None:
    """Write RUN/overlays/METHOD/CASE of all METHODS, one below the other."""
    pictures = []
    for method in METHODS:
        with Image.open(run / "overlays" / method / case) as picture:
            pictures.append(picture.convert("RGB"))
    width = max(picture.width for picture in pictures)
    sheet = Image.new("RGB", (width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target, quality=90)


if __name__ == "__main__":
    stack(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
