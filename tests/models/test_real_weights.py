"""Networks with real ImageNet weights on real ImageNet validation images."""

from __future__ import annotations

import csv

import pytest
from PIL import Image

from tests.conftest import SHARED, needs_shared
from wsod.maps import attention_maps
from wsod.models import load_classifier

FILES = {
    "mobilenet_v2": "mobilenet_v2_tf2ptq_fp16.safetensors",
    "squeezenet1_0": "squeezenet1_0_deepcompressed.safetensors",
}


@needs_shared
@pytest.mark.parametrize(("arch", "least"), [("mobilenet_v2", 0.55), ("squeezenet1_0", 0.45)])
@pytest.mark.slow
def test_top1_and_maps_on_the_object(arch, least):
    folder = SHARED / "data" / "wsol_real" / "ilsvrc_val_mini"
    classifier = load_classifier(SHARED / "data" / "weights" / FILES[arch], arch=arch, size=225)
    assert len(classifier.classes) == 1000
    metadata = folder / "metadata"
    labels = dict(csv.reader((metadata / "class_labels.txt").read_text().splitlines()))
    boxes: dict[str, list[list[float]]] = {}
    for name, *box in csv.reader((metadata / "localization.txt").read_text().splitlines()):
        boxes.setdefault(name, []).append([float(value) for value in box])
    right = inside = 0
    for name, label in labels.items():
        with Image.open(folder / "images" / name) as image:
            tensor, _ = classifier.preprocess(image)
            width, height = image.size
        found = attention_maps(classifier, tensor[None], [int(label)], ["cam"])
        right += int(found.logits.argmax()) == int(label)
        values = found.maps["cam"][0]
        row, column = divmod(int(values.argmax()), values.shape[1])
        x, y = (column + 0.5) / values.shape[1] * width, (row + 0.5) / values.shape[0] * height
        inside += any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes[name])
    assert right / len(labels) >= least
    assert inside / len(labels) >= 0.8


@needs_shared
def test_imagenet_class_names_agree():
    names = (SHARED / "data" / "wsol_real" / "imagenet_class_names.txt").read_text().splitlines()
    file = SHARED / "data" / "weights" / FILES["squeezenet1_0"]
    classes = load_classifier(file, arch="squeezenet1_0").classes
    agree = sum(a.lower() in b.lower() for a, b in zip(classes, names, strict=True))
    assert agree > 980
