"""Public data sets fetched by torchvision."""

from __future__ import annotations

import os
from pathlib import Path

from wsod.errors import ConfigError, DataError

__all__ = ["download"]

ELSEWHERE = {
    "shapes": "It is generated: nothing to download.",
    "coco": "Fetch images and annotations from cocodataset.org, then use coco:IMAGES,ANNOTATIONS.json.",
    "wsol": "Its lists are in the WSOL benchmark's repository, its images with ImageNet, CUB and OpenImages.",
    "folder": "It is your own data.",
}
IMAGE_SETS = {"voc2007": ("trainval", "test"), "voc2012": ("trainval",), "svhn": ("train", "test")}


def download(name: str, root: Path | None = None) -> str:
    """Fetch and unpack a data set with torchvision's own download (checksums included).

    Args:
        name: `voc2007` (trainval and test), `voc2012` (trainval; its test annotations are not public) or
            `svhn` (cropped digits, train and test).
        root: the folder to hold `VOCdevkit` or the digits' files; None = $WSOD_DATA.

    Returns:
        The spec that opens it.

    Raises:
        ConfigError: for a data set torchvision does not fetch, saying where it comes from.
        DataError: where the download fails.
    """
    if name not in IMAGE_SETS:
        hint = ELSEWHERE.get(name, "")
        raise ConfigError("download", " or ".join(IMAGE_SETS), repr(name), hint)
    if root is None:
        if not os.environ.get("WSOD_DATA"):
            raise ConfigError("download", "a folder", "none", "Name one, or set $WSOD_DATA.")
        root = Path(os.environ["WSOD_DATA"])
    # torch is needed nowhere else in this package
    from torchvision.datasets import SVHN, VOCDetection

    try:
        root.mkdir(parents=True, exist_ok=True)
        for image_set in IMAGE_SETS[name]:
            if name == "svhn":
                SVHN(str(root), image_set, download=True)
            else:
                VOCDetection(str(root), year=name.removeprefix("voc"), image_set=image_set, download=True)
    except (OSError, RuntimeError, EOFError) as error:
        hint = "Check the connection, or put its files there yourself."
        raise DataError(f"{name} in {root}", "a complete download", error, hint) from error
    return f"{name}:{root}"
