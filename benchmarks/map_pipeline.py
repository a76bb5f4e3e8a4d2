"""`wsod maps` from files on disk to maps on disk, for `bench_maps.py`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wsod import evaluation
from wsod.models import Classifier, save_checkpoint

__all__ = ["images_a_second"]

BATCH = 16
SIZE = (500, 375)  # as VOC's


def images_a_second(classifier: Classifier, count: int, device: str) -> dict[str, Any]:
    """Grad-CAM of `count` photographs' worth of noise, beside bare forward passes of as many tensors.

    Wall time: decoding runs in threads beside the network. Both are run once before, for what is loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        photos, checkpoint = Path(folder) / "photos", Path(folder) / "ft.pt"
        photos.mkdir()
        rng = np.random.default_rng(0)
        for n in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
            coarse.resize(SIZE, Image.Resampling.BICUBIC).save(photos / f"{n:05}.jpg", quality=92)
        save_checkpoint(checkpoint, classifier, recipe={}, metrics={}, provenance={})

        def ours(turn: int) -> None:
            evaluation.compute_maps(
                ["gradcam"],
                Path(folder) / f"maps{turn}",
                data=f"folder:{photos}",
                labels="predicted",
                checkpoint=checkpoint,
                device=device,
                batch_size=BATCH,
            )

        side = classifier.preprocess.size
        images = torch.randn(BATCH, 3, side, side, device=device)

        def floor(turn: int) -> None:
            with torch.no_grad():
                for _ in range(max(1, count // BATCH)):
                    classifier(images)

        times = {"ours": _wall(ours, device), "floor": _wall(floor, device)}
    rates = {
        "ours": count / times["ours"],
        "floor": max(1, count // BATCH) * BATCH / times["floor"],
    }
    print(
        f"wsod maps, {count} files: {rates['ours']:.1f} images a second, "
        f"bare forward {rates['floor']:.1f} (ratio {rates['floor'] / rates['ours']:.2f})"
    )
    return {
        "name": "wsod maps, end to end",
        "ours_s": 1 / rates["ours"],
        "peer": "bare forward",
        "peer_s": 1 / rates["floor"],
        "ratio": rates["ours"] / rates["floor"],
        "floor_s": 1 / rates["floor"],
    }


def _wall(work: Callable[[int], None], device: str) -> float:
    """The faster of two runs, after one that is not counted."""
    best = float("inf")
    for turn in range(3):
        start = time.perf_counter()
        work(turn)
        if device != "cpu":
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - start)
    return best
