"""ATCON after training on few images: what it changes, against where it started and against controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal
from zlib import crc32

from atcon.config import FinetuneConfig, config_from_tables
from atcon.experiments.base import Arm, Experiment, Measure
from atcon.experiments.boxes import box_rows
from atcon.experiments.predictions import Predictions
from atcon.experiments.readings import Cases, Reading
from atcon.experiments.views import View, scores_of, stored_maps
from wsod.config import merge
from wsod.data import open_dataset
from wsod.metrics.miou_atcon import stretched
from wsod.registry import Registry
from wsod.results import Result

__all__ = ["VARIANTS", "SmallSets"]

SCRATCH: Mapping[str, Any] = {
    "steps": 150,
    "batch": 16,
    "lr": 2e-3,
    "schedule": "cosine",
    "warmup": 10,
    "evaluate_every": 1_000_000,
    "select": "last",
    "objectives": {"supervised": {}},
}
PRETRAINED: Mapping[str, Any] = {
    **SCRATCH,
    "steps": 60,
    "batch": 8,
    "lr": 2e-5,
    "head_lr": 2e-3,
    "batch_norm": "frozen",
}
FINETUNE: Mapping[str, Any] = {
    "steps": 20,
    "batch": 4,
    "lr": 3e-5,
    "head_lr": 5e-3,
    "batch_norm": "frozen",
    "evaluate_every": 1_000_000,
    "select": "last",
}
RAW: Mapping[str, Any] = {"mask_scale": "raw", "mask_slope": 40.0, "detach_mask": True}
STD: Mapping[str, Any] = {"mask_scale": "std", "mask_slope": 4.0, "detach_mask": True}

VARIANTS: Registry[Mapping[str, Any]] = Registry(
    "way to fine-tune",
    {
        "raw": {"objectives": {"atcon": RAW}},
        "std": {"objectives": {"atcon": STD}},
        "combining": {"objectives": {"supervised": {}, "atcon": RAW}},
        "bce": {"objectives": {"supervised": {}}},
        "random-mask": {"objectives": {"atcon": {**RAW, "control": "random_mask"}}},
        "shuffled-maps": {"objectives": {"atcon": {**RAW, "control": "shuffled_maps"}}},
        "half-contrast": {"objectives": {"atcon": {**RAW, "mask_slope": 0.0}}},
    },
)
"""Fine-tuning stages by name: ATCON with the mask of each scale, beside labels, and four controls.

Learning rates, number of steps and the detached mask are those of the setting that docs/study-atcon.md chose.
"""


@dataclass(frozen=True, kw_only=True)
class SmallSets(Experiment):
    """Start against fine-tuned, on 2 to 16 images a class (Mirzazadeh et al., ATCON, arXiv:2210.09705).

    Each seed draws its own training images. A start is trained on them with their labels; every way to
    fine-tune goes on from it on the same images. Scores are of Grad-CAM. Data with a `test` split is reported
    on it, and thresholds of F1 are chosen on `val`; else one half of `val` takes the place of each.

    Args:
        sizes: images a class.
        methods: ways to fine-tune, of `VARIANTS` or `variants`.
        variants: further ways: what is set otherwise than in the one of `VARIANTS` that its `base` names
            (`raw` where it names none).
        against: the methods that the others are compared with, beside the start.
        arch, weights, size, target_layer: of the classifier, as a recipe's `[model]` has them.
        start, train: what the stage of the start, and those of all ways to fine-tune, set otherwise.
        extra: what a run's `[data]` sets otherwise.
        part: `report`, or `tune` to score on the images that settings may be chosen on.
        images: the first N images of a split only; 0 = all.
    """

    name: ClassVar[str] = "small-sets"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("f1", "F1 at 0.5"),
        Measure("f1_tuned", "F1, tuned threshold"),
        Measure("mAP", "mAP"),
        Measure("miou_atcon", "mIoU, ATCON's rule, top class right"),
        Measure("miou_atcon_all", "mIoU, ATCON's rule, true classes"),
        Measure("mask_iou", "mask IoU, threshold of train"),
        Measure("pointing", "pointing game"),
        Measure("area", "foreground by ATCON's rule"),
    )

    data: str = "shapes:count=400"
    sizes: tuple[int, ...] = (2, 4, 8, 12, 16)
    methods: tuple[str, ...] = ("raw", "bce", "random-mask", "shuffled-maps")
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    against: tuple[str, ...] = ("bce", "random-mask", "shuffled-maps")
    arch: str = "smallnet"
    weights: str = "none"
    size: int = 0
    target_layer: str = ""
    start: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    part: Literal["tune", "report"] = "report"
    images: int = 0

    def __post_init__(self) -> None:
        for method in self.methods:
            self._stage(method)  # an unknown one is found before any work starts

    @cached_property
    def _has_test(self) -> bool:
        return "test" in open_dataset(self.data, "val").splits

    def arms(self) -> tuple[Arm, ...]:
        views = self._views(("gradcam",))
        arms = [Arm("center", None, self._views(("center",)))]
        for size in self.sizes:
            arms.append(Arm(f"{size}-start", partial(self._start, size), views))
            arms += [Arm(f"{size}-{m}", partial(self._finetune, size, m), views) for m in self.methods]
        return tuple(arms)

    def _views(self, maps: tuple[str, ...]) -> tuple[View, ...]:
        scored = [("val", "val")] + [("test", "test")] * (self._has_test and self.part == "report")
        return (
            View("train", self.data, "train", self.images, maps, metrics=("mask_iou",)),
            *(
                View(
                    name,
                    self.data,
                    split,
                    self.images,
                    maps,
                    metrics=("mask_iou", "miou_atcon", "pointing_game"),
                    threshold_from="train",
                    predictions=True,
                    save_maps=True,
                )
                for name, split in scored
            ),
        )

    def _start(self, per_class: int, seed: int, home: Path) -> FinetuneConfig:
        model = {name: getattr(self, name) for name in ("arch", "weights", "size", "target_layer")}
        body = merge(SCRATCH if self.weights == "none" else PRETRAINED, self.start)
        return self._config(per_class, seed, model, "start", body)

    def _finetune(self, per_class: int, method: str, seed: int, home: Path) -> FinetuneConfig:
        model = {"weights": str(home / f"{per_class}-start" / "ft.pt")}
        return self._config(per_class, seed, model, method, self._stage(method))

    def _stage(self, method: str) -> dict[str, Any]:
        own = dict(self.variants.get(method, {}))
        base = own.pop("base", "raw") if method in self.variants else method
        return merge(merge(merge(FINETUNE, VARIANTS[base]), self.train), own)

    def _config(
        self, per_class: int, seed: int, model: dict[str, Any], stage: str, body: dict[str, Any]
    ) -> FinetuneConfig:
        chosen = {"per_class": per_class, "subset_seed": seed, "val_images": 16}
        data = merge({"spec": self.data, "train": "train", "val": "val", **chosen}, self.extra)
        table = {"data": data, "model": model, "stages": {stage: body}, "seed": seed}
        return config_from_tables({**table, "recipe": self.name}, {}, self.name)

    def read(self, folder: Path) -> Mapping[str, Mapping[str, Reading]]:
        rows = {arm.name: self._readings(folder / arm.name) for arm in self.arms()}
        split = "test" if self._has_test and self.part == "report" else "val"
        found = _box_rows(self.data, split, self.images)
        return {**rows, **{name: self._kept(readings) for name, readings in found.items()}}

    def _readings(self, home: Path) -> dict[str, Reading]:
        view = home / ("test" if self._has_test and self.part == "report" else "val")
        maps = stored_maps(view, next(iter(Result.load(view).rows)).maps)
        claims = {(image, str(label)): stretched(values) > 0.5 for (image, label), values in maps.items()}
        found: dict[str, Reading] = {
            "miou_atcon": scores_of(view, "miou_atcon", top=True),
            "miou_atcon_all": scores_of(view, "miou_atcon"),
            "mask_iou": scores_of(view, "mask_iou"),
            "pointing": scores_of(view, "pointing_game"),
            "area": Cases({case: float(claim.mean()) for case, claim in claims.items()}),
        }
        said, tuned = (Predictions.load(path / "logits.npz") for path in (view, home / "val"))
        if said is not None and tuned is not None:
            chosen = tuned if self._has_test else tuned.only(self._half(tuned.images, "tune"))
            found |= {"f1": said.f1(), "f1_tuned": said.f1(chosen.best_cut()), "mAP": said.mean_ap()}
        return self._kept(found)

    def _kept(self, readings: Mapping[str, Reading]) -> dict[str, Reading]:
        """The readings on the images of this part."""
        if self._has_test:
            return dict(readings)
        ids = self._half(open_dataset(self.data, "val").ids, self.part)
        return {
            name: reading.only({unit for unit, image in reading.units.items() if image in ids})
            for name, reading in readings.items()
        }

    def _half(self, images: Sequence[str], part: str) -> set[str]:
        """The images of a half of `val`; which half an image is in follows from its name alone."""
        return {image for image in images if (crc32(image.encode()) % 2 == 0) == (part == "tune")}

    def contrasts(self) -> tuple[tuple[str, str], ...]:
        """Each way to fine-tune against its start and against the controls; the start against boxes."""
        pairs = []
        for size in self.sizes:
            pairs += [(f"{size}-start", other) for other in ("center", "centre box", "whole image")]
            for method in self.methods:
                others = [other for other in self.against if other in self.methods and other != method]
                pairs += [(f"{size}-{method}", f"{size}-{other}") for other in ("start", *others)]
        return tuple(pairs)


@cache
def _box_rows(data: str, split: str, images: int) -> dict[str, dict[str, Cases]]:
    """`box_rows`, the same for every seed."""
    return box_rows(open_dataset(data, "train"), open_dataset(data, split), images)
