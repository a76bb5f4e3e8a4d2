"""Memory of a run by its number of images: every metric alone, and all that a run keeps of its cases.

Each counts in a process of its own; what is printed is the peak of resident memory beyond where it was before
the first image. Images are small and few are different: what is kept of one does not depend on its pixels.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import kilobytes

from wsod.board import Board
from wsod.data import open_dataset
from wsod.data.dataset import Dataset
from wsod.metrics import METRICS
from wsod.metrics.base import Metric, Scene
from wsod.metrics.faithfulness import FaithfulnessMetric
from wsod.protocols import load_protocol
from wsod.types import AttentionMaps, Sample

COUNTS = (1_000, 10_000, 100_000)
KEPT = {
    "box_ap": "COCO's matching sorts all boxes of all images",
    "voc_ap": "average precision sorts all boxes' scores",
}
"""Metrics that cannot be counts alone, and why."""
BOARDS = ("default", "max-box-acc-v2", "pxap", "miou-irn")
Scenes = list[tuple[Sample, AttentionMaps]]


class _Nobody:
    """A classifier that answers anything: nothing is kept of its answers."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def frame(self, image_id: str) -> tuple[tuple[int, int], None]:
        return (64, 64), None

    def __call__(self, views: Any) -> Any:
        return np.full((sum(1 for _ in views), self.classes), 0.5)


def scenes(dataset: Dataset) -> Scenes:
    """Eight images with their maps."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(8):
        sample = dataset[index]
        labels = np.array(sample.classes)
        others = [c for c in range(len(dataset.classes)) if c not in sample.classes]
        values = rng.random((len(labels), 7, 7), np.float32)
        ranking = np.array([*labels, *others])
        found.append((sample, AttentionMaps(sample.image_id, sample.size, labels, values, ranking)))
    return found


def grown(count: Callable[[int], None], counts: tuple[int, ...]) -> list[int]:
    """Bytes beyond the start, at the peak, after so many images each."""
    before, done, found = kilobytes("VmRSS"), 0, []
    for target in counts:
        for number in range(done, target):
            count(number)
        done = target
        found.append(max(0, 1024 * (kilobytes("VmHWM") - before)))
    return found


def of_metric(name: str, counts: tuple[int, ...]) -> tuple[list[int], int]:
    """Growth, and cases an image, of one metric."""
    dataset = open_dataset("shapes:size=64")
    metric: Metric = METRICS[name](classes=len(dataset.classes))
    if isinstance(metric, FaithfulnessMetric):
        metric.attach(_Nobody(len(dataset.classes)))
    found = scenes(dataset)
    ids = [f"val/{n:08}" for n in range(counts[-1])]  # a data set has them anyway
    measured = []
    for sample, maps in found:
        metric.prepare([Scene(maps, sample, [maps])])
        measured.append(metric.measure(maps, sample))
    named = [replace(sample, image_id="") for sample, _ in found]
    cases = sum(len(maps.labels) for _, maps in found)

    def count(number: int) -> None:
        sample = named[number % 8]
        object.__setattr__(sample, "image_id", ids[number])
        one = measured[number % 8]
        metric.count(deepcopy(one) if name in KEPT else one, sample)

    return grown(count, counts), cases


def of_board(name: str, counts: tuple[int, ...]) -> tuple[list[int], int]:
    """Growth of a row by a protocol: its metrics, and the evidence of its cases."""
    dataset = open_dataset("shapes:size=64")
    board = Board("random", load_protocol(name).build(len(dataset.classes)))
    found = scenes(dataset)
    ids = [f"val/{n:08}" for n in range(counts[-1])]
    measured = [board.measure(maps, sample) for sample, maps in found]
    named = [replace(sample, image_id="") for sample, _ in found]

    def count(number: int) -> None:
        sample = named[number % 8]
        object.__setattr__(sample, "image_id", ids[number])
        board.count(measured[number % 8], found[number % 8][1], sample)

    return grown(count, counts), sum(len(maps.labels) for _, maps in found)


def _child(what: str, name: str, counts: tuple[int, ...], answer: Any) -> None:
    answer.send((of_metric if what == "metric" else of_board)(name, counts))


def measured(what: str, name: str, counts: tuple[int, ...]) -> dict[str, Any]:
    """A row of the table, from a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(what, name, counts, theirs))
    process.start()
    growth, cases = ours.recv()
    process.join()
    earlier = (counts[-2], growth[-2]) if len(counts) > 1 else (0, 0)
    per_case = (growth[-1] - earlier[1]) / ((counts[-1] - earlier[0]) * cases / 8)
    return {
        "name": name if what == "metric" else f"a row of {name}",
        "images": list(counts),
        "bytes": growth,
        "bytes_a_case": per_case,
        "why": KEPT.get(name, "") if what == "metric" else "cases.jsonl, intervals, strata",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--only", nargs="+", help="metrics or protocols")
    options = parser.parse_args()
    counts = tuple(options.images)
    rows = []
    print(f"{'':<32}" + "".join(f"{count:>10,}" for count in counts) + "   bytes/case   grows because")
    for what, names in (("metric", tuple(METRICS)), ("board", BOARDS)):
        for name in names:
            if options.only and name not in options.only:
                continue
            row = measured(what, name, counts)
            rows.append(row)
            curve = "".join(f"{size / 2**20:>10.1f}" for size in row["bytes"])
            print(f"{row['name']:<32}{curve}{row['bytes_a_case']:>13.0f}   {row['why']}", flush=True)
    print("MiB of resident memory at the peak, beyond the start")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
