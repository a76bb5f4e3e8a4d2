"""`wsod evaluate` beside its parts alone: decoding, and the network's forward passes. Wall time an image.

The parts overlap where there are cores for them: run it with OMP_NUM_THREADS one below the number of cores.
An image's time is a difference, of a longer and a shorter run: what is loaded and compiled once drops out.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import Row, options
from PIL import Image

from wsod.data import open_dataset
from wsod.evaluation import evaluate
from wsod.metrics.warmup import warm_up
from wsod.models import build_classifier, load_classifier, save_checkpoint
from wsod.pipeline import ahead

FEW, MANY, BATCH = 16, 64, 16
SIZE = (500, 375)  # as VOC's
CLASSES = ("cat", "dog")


def photographs(folder: Path, count: int) -> None:
    """Noise of a photograph's size on disk, each with two boxes."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = ["image,label,x0,y0,x1,y1"]
    for n in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"images/{n:05}.jpg", quality=92)
        lines += [f"{n:05},cat,20,30,200,300", f"{n:05},dog,220,30,480,340"]
    (folder / "boxes.csv").write_text("\n".join(lines))


def an_image(work: Callable[[int], object]) -> float:
    """Wall seconds an image."""
    times = []
    for count in (FEW, MANY):
        start = time.perf_counter()
        work(count)
        times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / (MANY - FEW)


def main() -> None:
    chosen = options(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder / "data", MANY)
        network = build_classifier("resnet50", CLASSES, task="multilabel", weights="none")
        save_checkpoint(folder / "ft.pt", network, recipe={}, metrics={}, provenance={})
        dataset = open_dataset(f"folder:{folder / 'data'}")
        classifier = load_classifier(folder / "ft.pt")
        preprocess, side = classifier.preprocess, classifier.preprocess.size
        images = torch.randn(BATCH, 3, side, side)
        warm_up()

        def decode(count: int) -> None:
            for _ in ahead(lambda n: preprocess(dataset.image(n)), range(count), 2, 2 * BATCH):
                pass

        def forward(count: int) -> None:
            with torch.no_grad():
                for _ in range(count // BATCH):
                    classifier(images)

        def whole(count: int) -> None:
            evaluate(
                ["cam"],
                data=dataset.spec,
                checkpoint=folder / "ft.pt",
                limit=count,
                batch_size=BATCH,
                device="cpu",
                metrics=["max_box_acc_v2", "pointing_game", "energy_pointing_game"],
            )

        turns = {"decode": decode, "forward": forward, "evaluate": whole}
        for work in turns.values():
            work(BATCH)
        times: dict[str, list[float]] = {key: [] for key in turns}
        for _ in range(chosen.rounds):
            for key, work in turns.items():
                times[key].append(an_image(work))
    ms = {key: 1000 * statistics.median(values) for key, values in times.items()}
    larger = max(ms["decode"], ms["forward"])
    print(f"ms an image, median of {chosen.rounds}: " + ", ".join(f"{k} {v:.1f}" for k, v in ms.items()))
    ratios = sorted(
        w / max(d, f) for d, f, w in zip(times["decode"], times["forward"], times["evaluate"], strict=True)
    )
    rounds = f"rounds: {ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"evaluate / larger of the parts: {ms['evaluate'] / larger:.2f} ({rounds})")
    cores = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{torch.get_num_threads()} threads of the network, {cores}")
    row: Row = {
        "name": "wsod evaluate, end to end",
        "ours_s": ms["evaluate"] / 1000,
        "peer": "larger of decoding and forward",
        "peer_s": larger / 1000,
        "ratio": larger / ms["evaluate"],
        "floor_s": larger / 1000,
    }
    if chosen.json:
        import json

        chosen.json.write_text(json.dumps([row], indent=1) + "\n")


if __name__ == "__main__":
    main()
