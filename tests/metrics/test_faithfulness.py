"""Metrics that ask the classifier, and map stability, against twins that take one image at a time."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from wsod import evaluate
from wsod.config import dump_toml
from wsod.data import open_dataset
from wsod.errors import ConfigError, DataError
from wsod.maps import attention_maps
from wsod.metrics import METRICS
from wsod.metrics.base import Scene
from wsod.metrics.faithfulness import FaithfulnessMetric
from wsod.metrics.probe import View
from wsod.models import Classifier, build_classifier, save_checkpoint
from wsod.models.preprocess import Preprocess
from wsod.probe import ClassifierProbe
from wsod.results import Result
from wsod.scoremaps import resize_map
from wsod.types import AttentionMaps

IMAGES, STEPS, SIDE = 5, 7, 64


@cache
def network(task: str = "multilabel") -> Classifier:
    torch.manual_seed(0)
    classifier = build_classifier("smallnet", open_dataset("shapes").classes, task=task, size=SIDE)  # type: ignore[arg-type]
    dataset = open_dataset("shapes")
    images = torch.stack([classifier.preprocess(dataset.image(index))[0] for index in range(16)])
    with torch.no_grad():
        # random weights, with statistics of these images and logits that differ between them
        for _ in range(30):
            classifier.train()(images)
        logits = classifier.eval()(images)
        last = [m for m in classifier.modules() if isinstance(m, torch.nn.Linear)][-1]
        last.weight *= 2 / logits.std(0).mean()
        last.bias -= classifier(images).mean(0)
    return classifier


@pytest.fixture(scope="module", params=["multilabel", "multiclass"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("model") / "ft.pt"
    save_checkpoint(path, network(request.param), recipe={}, metrics={}, provenance={})
    return request.param, path


def probability(task: str, pixels: torch.Tensor, label: int) -> float:
    with torch.no_grad():
        logits = network(task)(pixels[None].float())[0].double()
    return float((logits.sigmoid() if task == "multilabel" else logits.softmax(0))[label])


def each_case(task: str, twin: Callable[[str, torch.Tensor, np.ndarray, int], float]) -> float:
    """The mean of a twin over (input, score map at the input, label), an image and a label at a time."""
    dataset, scores = open_dataset("shapes"), []
    for index in range(IMAGES):
        pixels, _ = network(task).preprocess(dataset.image(index))
        for label in dataset[index].classes:
            found = attention_maps(network(task), pixels[None], [label], ["layercam"]).maps["layercam"]
            raw = F.interpolate(found[None].double(), (SIDE, SIDE), mode="bilinear")[0, 0].numpy()
            score = (raw - raw.min()) / (raw.max() - raw.min())
            scores.append(twin(task, pixels, score, label))
    return float(np.mean(scores))


def masked(task: str, pixels: torch.Tensor, score: np.ndarray, label: int) -> tuple[float, float]:
    return probability(task, pixels, label), probability(task, pixels * torch.from_numpy(score), label)


def average_drop(*case: Any) -> float:
    whole, part = masked(*case)
    return max(0.0, whole - part) / whole


def increase(*case: Any) -> float:
    whole, part = masked(*case)
    return float(whole < part)


def curve(task: str, start: torch.Tensor, end: torch.Tensor, score: np.ndarray, label: int) -> float:
    """Trapezoids under the probability while pixels of `start` become those of `end`, one by one."""
    order = sorted(range(SIDE * SIDE), key=lambda i: (-score.flat[i], i))
    image, found, done = start.clone(), [probability(task, start, label)], 0
    for step in range(1, STEPS + 1):
        until = round(step * SIDE * SIDE / STEPS)
        for place in order[done:until]:
            image[:, place // SIDE, place % SIDE] = end[:, place // SIDE, place % SIDE]
        done = until
        found.append(probability(task, image, label))
    return sum((a + b) / 2 / STEPS for a, b in pairwise(found))


def blurred(pixels: torch.Tensor) -> torch.Tensor:
    sigma = 5 * SIDE / 224
    radius = int(4 * sigma + 0.5)
    taps = torch.exp(-(torch.arange(-radius, radius + 1).double() ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    padded = F.pad(pixels[None].double(), [radius] * 4, mode="replicate")[0][:, None]
    rows = F.conv2d(padded, taps[None, None, :, None])
    return F.conv2d(rows, taps[None, None, None, :])[:, 0].float()


def insertion(task: str, pixels: torch.Tensor, score: np.ndarray, label: int) -> float:
    return curve(task, blurred(pixels), pixels, score, label)


def deletion(task: str, pixels: torch.Tensor, score: np.ndarray, label: int) -> float:
    return curve(task, pixels, torch.zeros_like(pixels), score, label)


FAITHFULNESS_TWINS: dict[str, Callable[..., float] | None] = {
    "average_drop": average_drop,
    "increase_in_confidence": increase,
    "insertion": insertion,
    "deletion": deletion,
    "map_stability": None,  # has its own, below
}
ASKING = [name for name, twin in FAITHFULNESS_TWINS.items() if twin is not None]


def protocol(folder: Path, **options: dict[str, Any]) -> str:
    chosen = {name: {"steps": STEPS} if name in ("insertion", "deletion") else {} for name in ASKING}
    table = {"description": "asking the classifier", "metrics": {**chosen, **options}}
    (folder / "asking.toml").write_text(dump_toml(table))
    return str(folder / "asking.toml")


def scores(result: Result, row: int = 0) -> dict[str, float]:
    return {name: score["value"] for name, score in result.rows[row].scores.items()}


@pytest.mark.slow
def test_they_equal_their_twins(checkpoint: tuple[str, Path], tmp_path: Path) -> None:
    task, path = checkpoint
    options: dict[str, Any] = {"checkpoint": path, "limit": IMAGES, "config": protocol(tmp_path)}
    result = evaluate("layercam", out=tmp_path, **options)
    for name in ASKING:
        wanted = each_case(task, FAITHFULNESS_TWINS[name])  # type: ignore[arg-type]
        assert scores(result)[name] == pytest.approx(wanted, abs=1e-5), name
    assert 0.01 < scores(result)["average_drop"] < 0.99
    assert result.rows[0].supervision == ("image labels",)
    # the batch is a matter of speed alone
    one = evaluate("layercam", batch_size=1, **options)
    assert scores(one) == pytest.approx(scores(result), abs=1e-5)
    # stored maps are shown to the classifier as computed ones are
    evaluate("layercam", out=tmp_path / "kept", save_maps=True, **options)
    stored = evaluate(tmp_path / "kept" / "maps" / "layercam", **options)
    assert scores(stored) == pytest.approx(scores(result), abs=1e-6)


def test_black_is_the_product_in_pixels(tmp_path: Path) -> None:
    task = "multiclass"
    path = tmp_path / "ft.pt"
    save_checkpoint(path, network(task), recipe={}, metrics={}, provenance={})
    prepared = network(task).preprocess
    mean, std = (torch.tensor(x)[:, None, None] for x in (prepared.mean, prepared.std))

    def twin(task: str, pixels: torch.Tensor, score: np.ndarray, label: int) -> float:
        whole = probability(task, pixels, label)
        visible = ((pixels * std + mean) * torch.from_numpy(score) - mean) / std
        return max(0.0, whole - probability(task, visible, label)) / whole

    config = protocol(tmp_path, average_drop={"baseline": "black"})
    result = evaluate("layercam", checkpoint=path, limit=IMAGES, config=config, metrics=["average_drop"])
    assert scores(result)["average_drop"] == pytest.approx(each_case(task, twin), abs=1e-5)
    mean_colour = evaluate("layercam", checkpoint=path, limit=IMAGES, metrics=["average_drop"])
    assert scores(mean_colour) != pytest.approx(scores(result), abs=1e-4)


class Counting(ClassifierProbe):
    """Remembers how many views each forward pass had."""

    batches: list[int]

    def _shown(self, views: list[View]) -> torch.Tensor:
        self.batches.append(len(views))
        return super()._shown(views)


@pytest.mark.slow
def test_a_map_of_ones_drops_nothing_and_an_answer_of_zero_everything() -> None:
    drop, increase = (METRICS[name](classes=8) for name in ("average_drop", "increase_in_confidence"))
    probe = ClassifierProbe(network(), open_dataset("shapes"), batch_size=8)
    sample = open_dataset("shapes")[0]
    probe.load(sample)
    whole = probe([View(sample.image_id)])[0]
    for metric in (drop, increase):
        assert isinstance(metric, FaithfulnessMetric)
        answers = probe(metric.views(sample.image_id, np.ones((SIDE, SIDE))))
        assert [metric.score(float(y), answers[:, k]) for k, y in enumerate(whole)] == [0.0] * 8
    assert drop.score(0.25, np.zeros(1)) == 1.0
    assert increase.score(0.25, np.zeros(1)) == 0.0


def test_cases_and_metrics_share_forwards() -> None:
    dataset = open_dataset("shapes")
    probe = Counting(network(), dataset, batch_size=8)
    probe.batches = []
    rng = np.random.default_rng(0)
    scenes = []
    for index in range(6):
        sample = dataset[index]
        probe.load(sample)
        labels = np.array(sample.classes)
        maps = AttentionMaps(sample.image_id, sample.size, labels, rng.random((len(labels), 4, 4)))
        scenes.append(Scene(maps, sample))
    count = sum(len(scene.maps.labels) for scene in scenes)
    metrics = [METRICS[name](classes=8) for name in ("average_drop", "increase_in_confidence")]
    for metric in metrics:
        assert isinstance(metric, FaithfulnessMetric)
        metric.attach(probe)
        metric.prepare(scenes)
        for scene in scenes:
            metric.update(scene.maps, scene.sample)
    # one view an image and one a case, for both metrics, in full batches but the last
    assert sum(probe.batches) == 6 + count
    assert probe.batches[:-1] == [8] * (len(probe.batches) - 1)
    assert pickle.loads(pickle.dumps(metrics[0]))._probe is None


@pytest.mark.parametrize("mode", ["crop", "letterbox", "shorter"])
def test_the_map_lies_where_the_classifier_looks(mode: str) -> None:
    """A map of the whole image, in the pixels of a cropped or padded input."""
    dataset, sample = open_dataset("shapes"), open_dataset("shapes")[0]
    classifier = build_classifier("smallnet", dataset.classes, size=SIDE).eval()
    classifier.preprocess = Preprocess(size=SIDE, mode=mode)  # type: ignore[arg-type]
    height, width = sample.size
    ramp = np.add.outer(np.arange(height), 2.0 * np.arange(width))[None]
    probe = ClassifierProbe(classifier, dataset)
    probe.load(sample)
    (rows, columns), region = probe.frame(sample.image_id)
    metric = METRICS["average_drop"](classes=8)
    assert isinstance(metric, FaithfulnessMetric)
    metric.attach(probe)
    maps = AttentionMaps(sample.image_id, sample.size, [sample.classes[0]], ramp)
    got = metric._at_input(maps, 0).scores
    x0, y0, x1, y1 = region or (0, 0, width, height)
    # the ramp at the place in the image that each input pixel shows; outside the image its minimum
    xs = x0 + (np.arange(columns) + 0.5) * (x1 - x0) / columns - 0.5
    ys = y0 + (np.arange(rows) + 0.5) * (y1 - y0) / rows - 0.5
    wanted = np.add.outer(ys.clip(0, height - 1), 2 * xs.clip(0, width - 1))
    inside = np.logical_and.outer((ys > -0.5) & (ys < height - 0.5), (xs > -0.5) & (xs < width - 0.5))
    wanted[~inside] = wanted[inside].min()
    np.testing.assert_allclose(got, (wanted - wanted.min()) / np.ptp(wanted), atol=1e-9)
    # a map that was made from this very input covers it
    own = AttentionMaps(sample.image_id, sample.size, [0], np.eye(6)[None], region=region)
    np.testing.assert_allclose(
        metric._at_input(own, 0).scores, _minmax(resize_map(np.eye(6), (rows, columns)))
    )


def _minmax(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / np.ptp(values)


def test_blending_is_exact_at_both_ends() -> None:
    dataset = open_dataset("shapes")
    probe = ClassifierProbe(network(), dataset)
    sample = dataset[0]
    probe.load(sample)
    pixels, _ = network().preprocess(dataset.image(0))
    nothing, everything = np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), np.float32)
    views = [View(sample.image_id, everything, kind) for kind in ("mean", "black", "blur")]  # type: ignore[arg-type]
    shown = probe._shown([*views, View(sample.image_id), View(sample.image_id, nothing, "blur")])
    for image in shown[:4]:
        assert torch.equal(image, pixels)
    torch.testing.assert_close(shown[4], blurred(pixels), atol=1e-5, rtol=1e-5)


def test_map_stability_is_the_iou_of_masks(tmp_path: Path) -> None:
    dataset, rng = open_dataset("shapes"), np.random.default_rng(0)
    from wsod.store import MapStore

    raw: dict[str, dict[tuple[str, int], np.ndarray]] = {name: {} for name in "abc"}
    for name in raw:
        store = MapStore(tmp_path / name, len(dataset.classes))
        for index in range(6):
            sample = dataset[index]
            values = rng.random((len(sample.classes), 9, 9)) ** 2
            raw[name].update({(sample.image_id, k): v for k, v in zip(sample.classes, values, strict=True)})
            store.write(AttentionMaps(sample.image_id, sample.size, np.array(sample.classes), values))
        store.finish({})
    folders = [str(tmp_path / name) for name in raw]
    result = evaluate(folders, limit=6, config="map-stability", out=tmp_path / "run")

    def mask(name: str, case: tuple[str, int]) -> np.ndarray:
        sample = dataset[dataset.ids.index(case[0])]
        full = F.interpolate(torch.from_numpy(raw[name][case])[None, None], sample.size, mode="bilinear")[
            0, 0
        ]
        return np.asarray(_minmax(full.numpy()) > 100 / 255)

    for row, name in enumerate(raw):
        overlaps = []
        for case in raw[name]:
            own = [(mask(name, case), mask(other, case)) for other in raw if other != name]
            overlaps.append(np.mean([(a & b).sum() / (a | b).sum() for a, b in own]))
        assert scores(result, row)["map_stability"] == pytest.approx(np.mean(overlaps), abs=1e-12)
        assert result.rows[row].scores["map_stability"]["count"] == len(overlaps)
    shutil.copytree(folders[0], tmp_path / "copy")
    copies = evaluate([folders[0], tmp_path / "copy"], limit=6, config="map-stability")
    assert scores(copies)["map_stability"] == 1.0


def test_what_is_missing_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected two rows of maps or more, got one"):
        evaluate("center", config="map-stability")
    with pytest.raises(ConfigError, match=r"metrics that ask the classifier: expected a classifier"):
        evaluate("center", metrics=["average_drop"])
    with pytest.raises(ConfigError, match="insertion: steps: expected at least 1"):
        evaluate("center", config=protocol(tmp_path, insertion={"steps": 0}))
    with pytest.raises(ConfigError, match=r"threshold|heatmap"):
        METRICS["map_stability"](classes=2, threshold=2.0)
    metric, sample = METRICS["average_drop"](classes=8), open_dataset("shapes")[0]
    maps = AttentionMaps(
        sample.image_id, sample.size, np.array(sample.classes), np.eye(4)[None].repeat(len(sample.classes), 0)
    )
    with pytest.raises(ConfigError, match="a classifier to ask"):
        metric.update(maps, sample)


def test_a_broken_image_of_stored_maps_stops_or_is_listed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    name, lines = open_dataset("shapes").classes[0], ["image,label,x0,y0,x1,y1"]
    for k in range(3):
        file = tmp_path / "images" / f"{k}.png"
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(file)
        lines.append(f"{k}.png,{name},5,5,30,30")
        np.save(tmp_path / "maps" / f"{k}.npy", rng.random((4, 6)))
        if k == 1:
            file.write_bytes(file.read_bytes()[:500])
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    save_checkpoint(tmp_path / "ft.pt", network(), recipe={}, metrics={}, provenance={})
    options: dict[str, Any] = {
        "data": f"folder:{tmp_path}",
        "checkpoint": tmp_path / "ft.pt",
        "metrics": ["average_drop"],
    }
    with pytest.raises(DataError, match=r"1\.png"):
        evaluate(tmp_path / "maps", **options)
    result = evaluate(tmp_path / "maps", on_error="skip", **options)
    assert [fault["image"] for fault in result.skipped] == ["1"]
    assert result.rows[0].scores["average_drop"]["count"] == 2
