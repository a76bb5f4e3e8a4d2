"""Training images whose background tells the class: who takes the shortcut, and who looks at the object.

In training a corner of the background shows a pattern that speaks for the class (`shapes` with `bias`). Three
test sets of the same scenes: the cue `match`es the class as in training, is drawn at `random`, or `deceive`s
(always speaks for another class). After Bassi et al., Nature Communications 15:291, 2024, who do so with
photographs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from atcon.config import FinetuneConfig, config_from_tables
from atcon.experiments.base import Arm, Experiment, Measure
from atcon.experiments.predictions import Predictions
from atcon.experiments.readings import Cases, Number, Reading
from atcon.experiments.views import View, scores_of
from wsod.config import merge
from wsod.registry import Registry

__all__ = ["METHODS", "BackgroundBias"]

COMMON: Mapping[str, Any] = {
    "steps": 600,
    "batch": 32,
    "lr": 3e-3,
    "schedule": "cosine",
    "warmup": 30,
    "clip": 1.0,
    "evaluate_every": 1_000_000,
    "select": "last",
}
# every method begins as plain training does, and what it adds counts from here on
ADDED: Mapping[str, Any] = {"ramp": [80, 120]}

METHODS: Registry[Mapping[str, Any]] = Registry(
    "way to train",
    {
        "plain": {"objectives": {"supervised": {}}},
        "isnet": {"objectives": {"isnet": {"p": 0.7, "p_ramp": [80, 81], "decay": 1.0, "energy": 0.03}}},
        "rrr": {"batch_norm": "mixed", "objectives": {"supervised": {}, "rrr": {"weight": 1000.0, **ADDED}}},
        "gain": {"batch_norm": "mixed", "objectives": {"supervised": {}, "gain": {"weight": 10.0, **ADDED}}},
        "cam-loss": {"objectives": {"supervised": {}, "cam_loss": {"weight": 1.0, **ADDED}}},
        "atcon": {
            "batch_norm": "mixed",
            "objectives": {
                "supervised": {},
                "atcon": {"weight": 0.1, "mask_scale": "std", "mask_slope": 4.0, **ADDED},
            },
        },
    },
)
"""Stages by name, beside `COMMON`: all of the same length, from random weights. Weights (of ISNet: P) are
the best of three or four tried on `val` with one seed: docs/study-bias.md."""

SETS = ("match", "random", "deceive")
LRP = "lrp:first=zb"


@dataclass(frozen=True, kw_only=True)
class BackgroundBias(Experiment):
    """A background that tells the class in training, not in tests: plain, ISNet, RRR, GAIN, CAM-loss, ATCON.

    `unbiased` is plain training where the background tells nothing: what can be learned from the objects.
    Accuracy is that of the highest logit. The share of relevance on the background is of |R|, R the LRP of
    the true class (ε, z^B) summed over the colours; a point is the map's maximum, a hit inside the object's
    pixels.

    Args:
        bias: probability that the cue agrees with the class in training.
        methods: ways to train, of `METHODS`.
        train: what each of them sets otherwise.
        images: training images.
        tested: images of each test set.
        split: which split these are of; settings are chosen on `val`.
        arch: the network, from random weights.
        size: side of the classifier's input.
    """

    name: ClassVar[str] = "background-bias"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("match", "accuracy, cue matches"),
        Measure("random", "accuracy, cue at random"),
        Measure("deceive", "accuracy, cue deceives"),
        Measure("background", "relevance on background, cue deceives"),
        Measure("background_random", "the same, cue at random"),
        Measure("pointing", "pointing by LRP, cue deceives"),
        Measure("pointing_gradcam", "pointing by Grad-CAM, cue deceives"),
        Measure("mask_iou", "mask IoU of Grad-CAM, cue at random"),
        Measure("seconds", "s a step", percent=False),
    )

    data: str = "shapes:simple=true,kinds=4,upright=true,size=48"
    bias: float = 1.0
    methods: tuple[str, ...] = ("plain", "isnet", "rrr", "gain", "cam-loss", "atcon")
    train: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: int = 800
    tested: int = 200
    split: str = "test"
    arch: str = "tinynet"
    size: int = 32

    def __post_init__(self) -> None:
        for method in (*self.methods, *self.train):
            METHODS[method]  # an unknown one is found before any work starts

    def arms(self) -> tuple[Arm, ...]:
        views = (
            *(
                View(
                    cue,
                    self._spec(self.bias, self.tested, cue),
                    self.split,
                    maps=(LRP, "gradcam"),
                    config="quantus",
                    metrics=("attribution_localization", "pointing_game"),
                    predictions=True,
                )
                for cue in SETS
            ),
            View("masks", self._spec(self.bias, self.tested, "random"), self.split, metrics=("mask_iou",)),
        )
        arms = [Arm("unbiased", partial(self._config, "plain", 0.0), views)]
        return (
            *arms,
            *(Arm(method, partial(self._config, method, self.bias), views) for method in self.methods),
        )

    def _spec(self, bias: float, count: int, cue: str) -> str:
        """The data with a cue; without a bias it is drawn as often, and tells nothing."""
        from wsod.data import open_dataset

        classes = len(open_dataset(self.data).classes)
        settings = f"bias={bias or 1 / classes},cue={cue},count={count}"
        return f"{self.data}{',' if ':' in self.data else ':'}{settings}"

    def _config(self, method: str, bias: float, seed: int, home: Path) -> FinetuneConfig:
        model = {"arch": self.arch, "size": self.size}
        body = merge(merge(COMMON, METHODS[method]), self.train.get(method, {}))
        data = {"spec": self._spec(bias, self.images, "match"), "val_images": 32}
        table = {"data": data, "model": model, "stages": {method: body}, "seed": seed}
        return config_from_tables({**table, "recipe": self.name}, {}, self.name)

    def read(self, folder: Path) -> Mapping[str, Mapping[str, Reading]]:
        return {arm.name: self._readings(folder / arm.name) for arm in self.arms()}

    def _readings(self, home: Path) -> dict[str, Reading]:
        found: dict[str, Reading] = {}
        for cue in SETS:
            said = Predictions.load(home / cue / "logits.npz")
            if said is not None:
                hits = said.positive[range(len(said.images)), said.logits.argmax(1)]
                pairs = zip(said.images, hits, strict=True)
                found[cue] = Cases({(image, ""): float(hit) for image, hit in pairs})
        for name, cue in (("background", "deceive"), ("background_random", "random")):
            inside = scores_of(home / cue, "attribution_localization", LRP)
            found[name] = Cases({case: 1 - value for case, value in inside.values.items()})
        return {
            **found,
            "pointing": scores_of(home / "deceive", "pointing_game", LRP),
            "pointing_gradcam": scores_of(home / "deceive", "pointing_game", "gradcam"),
            "mask_iou": scores_of(home / "masks", "mask_iou"),
            "seconds": Number(_seconds(home / "history.jsonl")),
        }

    def contrasts(self) -> tuple[tuple[str, str], ...]:
        """Each way against plain training, and against training without a bias."""
        others = [method for method in self.methods if method != "plain"]
        pairs = [(method, "plain") for method in others if "plain" in self.methods]
        return (*pairs, *((method, "unbiased") for method in self.methods))


def _seconds(history: Path) -> float:
    """The median step."""
    lines = [json.loads(line) for line in history.read_text("utf-8").splitlines()]
    return float(median(line["seconds"] for line in lines if "seconds" in line))
