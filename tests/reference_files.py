"""The reference vectors as files of the kinds users have: metadata lists, devkits, JSON, maps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from tests.data.files import voc_object, write_mask, xml
from wsod.cli import main
from wsod.protocols import load_protocol


def evaluate(out: Path, maps: object, data: str, config: object, *more: object) -> dict[str, Any]:
    """`wsod evaluate`: the scores of result.json by metric, and under `cases` the lines of cases.jsonl."""
    options = ["--maps", maps, "--data", data, "--config", config, "--out", out, *more]
    done = CliRunner().invoke(main, ["evaluate", *map(str, options)])
    assert done.exit_code == 0, done.output
    result = json.loads((out / "result.json").read_text())
    assert not result["skipped"]
    lines = (out / "cases.jsonl").read_text().splitlines()
    return {**result["rows"][0]["scores"], "cases": [json.loads(line) for line in lines]}


def case_scores(scores: Mapping[str, Any], metric: str) -> dict[tuple[str, str], float]:
    return {(c["image"], c["label"]): c["scores"][metric] for c in scores["cases"] if metric in c["scores"]}


def write_protocol(path: Path, base: str, metric: str, **options: object) -> Path:
    """A copy of a protocol that has one of its metrics, with some options changed."""
    protocol = load_protocol(base)
    table = {**protocol.metrics[metric], **options}
    lines = ['description = "a variant"', "[maps]"]
    lines += [f"{key} = {_toml(value)}" for key, value in vars(protocol.maps).items()]
    lines += [f"[metrics.{metric}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    path.write_text("\n".join(lines))
    return path


def _toml(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def save_map(folder: Path, name: str, values: Any) -> None:
    """An array, or what irn and SEAM save: a dictionary in a pickled .npy."""
    file = folder / f"{name}.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, values, allow_pickle=isinstance(values, dict))


def write_wsol(
    folder: Path,
    images: Iterable[tuple[str, int]],
    boxes: Mapping[str, Sequence[Sequence[float]]] | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
    masks: Mapping[str, Sequence[tuple[str, str]]] | None = None,
) -> Path:
    """The WSOL benchmark's lists; sizes are (width, height), masks (mask, ignore) paths."""
    images = list(images)
    lists = {
        "image_ids": [name for name, _ in images],
        "class_labels": [f"{name},{label}" for name, label in images],
        "image_sizes": [f"{name},{w},{h}" for name, (w, h) in (sizes or {}).items()],
        "localization": [
            f"{name}," + ",".join(map(str, row))
            for name, rows in {**(boxes or {}), **(masks or {})}.items()
            for row in rows
        ],
    }
    folder.mkdir(parents=True)
    for name, lines in lists.items():
        if lines:
            (folder / f"{name}.txt").write_text("\n".join(lines))  # no final newline, as published
    return folder


def write_devkit(
    root: Path,
    images: Mapping[str, tuple[Sequence[int], Sequence[Mapping[str, Any]]]],
    truth: Mapping[str, np.ndarray] | None = None,
) -> str:
    """VOC2007 with `(width, height), objects` by image, without photos; masks where given. Its spec."""
    year = root / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation"):
        (year / folder).mkdir(parents=True)
    for name, ((width, height), objects) in images.items():
        text = "".join(voc_object(o["name"], o["bndbox"], o.get("difficult", 0)) for o in objects)
        (year / "Annotations" / f"{name}.xml").write_text(xml(text, width, height))
    (year / "ImageSets/Main/test.txt").write_text("\n".join(images) + "\n")
    (year / "ImageSets/Segmentation/test.txt").write_text("\n".join(truth or {}) + "\n")
    for name, values in (truth or {}).items():
        write_mask(year / "SegmentationClass" / f"{name}.png", values)
    return f"voc2007:{root / 'VOCdevkit'}"
