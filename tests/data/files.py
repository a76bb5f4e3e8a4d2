"""Small data sets on disk, sound ones, for tests to read or to damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>"
    "<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


def write_image(path: Path, width: int = 20, height: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(height * width * 3).reshape(height, width, 3) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def write_mask(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def xml(objects: str, width: object = 20, height: object = 10) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{objects}</annotation>"


def voc_object(name: str = "dog", box: tuple = (1, 1, 20, 10), difficult: object = 0) -> str:
    return OBJECT.format(name=name, box=box, difficult=difficult)


def write_voc(root: Path) -> Path:
    """One image `a` of 20x10 with a dog, in the split val; a mask of it."""
    year = root / "VOC2012"
    write_image(year / "JPEGImages/a.jpg")
    for folder in ("Annotations", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    (year / "ImageSets/Main/val.txt").write_text("a\n")
    (year / "Annotations/a.xml").write_text(xml(voc_object()))
    mask = np.zeros((10, 20))
    mask[2:5, 3:9], mask[5, 3:9] = 12, 255
    write_mask(year / "SegmentationClass/a.png", mask)
    return year


def coco_content() -> dict:
    """One image of 20x10 with a polygon, a compressed and a plain run length."""
    annotation = {"image_id": 7, "iscrowd": 0, "bbox": [2, 3, 4, 5]}
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 10}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {**annotation, "id": 1, "category_id": 2, "segmentation": [[2, 3, 6, 3, 6, 8, 2, 8]]},
            {
                **annotation,
                "id": 2,
                "category_id": 5,
                "segmentation": {"size": [10, 20], "counts": [5, 5, 190]},
            },
            {
                **annotation,
                "id": 3,
                "category_id": 5,
                "iscrowd": 1,
                "segmentation": {"size": [10, 20], "counts": [0, 30, 170]},
            },
        ],
    }


def write_coco(root: Path, content: object) -> tuple[Path, Path]:
    write_image(root / "images/a.png")
    (root / "a.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return root / "a.json", root / "images"


WSOL = {
    "image_ids": "val/x.png\nval/y,z.png",
    "class_labels": "val/x.png,3\nval/y,z.png,0",
    "image_sizes": "val/y,z.png,20,10\nval/x.png,20,10",
    "localization": "val/y,z.png,1,2,20,10\nval/x.png,0,0,5,5\nval/y,z.png,3,3,4,4",
}


def write_wsol(root: Path, **lists: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in {**WSOL, **lists}.items():
        if text:
            (root / f"{name}.txt").write_text(text)
    return root


def write_folder(root: Path, **files: str) -> Path:
    """Images a.png and sub/b.jpg of 20x10, and the text files given (`boxes_csv=...`)."""
    write_image(root / "images/a.png")
    write_image(root / "images/sub/b.jpg")
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
