"""PxAP, the mIoUs and the attribution metrics equal the public implementations' numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conftest import needs_shared
from tests.metrics.reference import PairOfMasks, SemanticTruth, group, maps_of
from wsod.errors import ConfigError
from wsod.metrics import METRICS, MIoU, MIoUATCON, PointingGame, PxAP
from wsod.metrics.miou_atcon import claimed
from wsod.scoremaps import MapProcessing
from wsod.types import Sample

pytestmark = needs_shared

AS_IT_IS = MapProcessing(normalise="none")


def pxap_metric(kind: str, step: float) -> PxAP:
    full = {"frame": 224, "normalise": "none"}
    low = {"frame": 224, "resize": "bicubic-opencv", "constant": "resized"}
    options: Any = full if kind == "full" else low
    return PxAP(classes=1, step=step, processing=MapProcessing(**options))


@pytest.mark.parametrize("run", [0, 1])
def test_pxap(run: int) -> None:
    inputs, arrays, expected = group("wsol_pxap")
    wanted = expected["runs"][run]
    metrics = {kind: pxap_metric(kind, wanted["step"]) for kind in ("grid", "full", "grid_nondyadic")}
    for image, (zeros, ones, ignored) in zip(inputs["images"], expected["label_counts"], strict=True):
        foreground = np.any([arrays[name] > 127.5 / 255 for name in image["masks"]], axis=0)
        ignore = arrays[image["ignore"]] > 0
        sample = Sample(
            image["image_id"], None, foreground.shape, labels=[0], masks=PairOfMasks(foreground, ignore)
        )
        metric = metrics[image["kind"]]
        before = metric._state["pixels"].sum(2)[0].copy()
        metric.update(maps_of(sample, arrays[image["cam"]]), sample)
        counted = metric._state["pixels"].sum(2)[0] - before
        assert counted.tolist() == [zeros, ones]
        assert counted.sum() + ignored == 224 * 224
    if run == 0:
        for kind in ("grid", "grid_nondyadic"):
            name = f"PxAP_{kind.removeprefix('grid_')}_maps_only_step_0.001"
            np.testing.assert_allclose(metrics[kind].compute().value * 100, expected[name], rtol=1e-12)
    metrics["full"].processing = metrics["grid"].processing
    metrics["grid"].merge(metrics["full"])
    score = metrics["grid"].compute()
    false, true = metrics["grid"]._state["pixels"][0, :, 1:]
    # the vectors' last bin, [2, 3], is empty
    assert [*true.tolist(), 0] == wanted["gt_true_score_hist"]
    assert [*false.tolist(), 0] == wanted["gt_false_score_hist"]
    np.testing.assert_allclose(score.value * 100, wanted["PxAP"], rtol=1e-12)
    assert isinstance(score.curve, dict)
    for name in ("precision", "recall"):
        curve = [np.nan if name == "precision" else 0.0, *score.curve[name][::-1]]
        values = [np.nan if x is None else x for x in wanted[name]]
        np.testing.assert_allclose(np.array(curve)[wanted["curve_index"]], values, rtol=1e-12)


def wsss_metric(mean: str, thresholds: list[float]) -> MIoU:
    options: Any = {"mean": mean, "thresholds": tuple(thresholds)}
    metric = MIoU(classes=20, processing=AS_IT_IS, float32=True, **options)
    inputs, arrays, _ = group("miou_wsss")
    for image in inputs["images"]:
        truth = arrays[image["gt"]].astype(np.int64)
        masks = SemanticTruth(np.where(truth == inputs["void"], -1, truth))
        sample = Sample(image["id"], None, truth.shape, labels=image["keys"], masks=masks)
        # the order of the maps must not matter where they tie
        maps = maps_of(sample, arrays[image["cam"]][::-1], image["keys"][::-1])
        metric.update(maps, sample)
    return metric


@pytest.mark.parametrize(("mean", "peer"), [("present", "irn"), ("all", "seam")])
def test_miou_wsss(mean: str, peer: str) -> None:
    _, _, expected = group("miou_wsss")
    taus = expected["taus"]
    metric = wsss_metric(mean, taus)
    score = metric.compute()
    wanted, best, scale = (
        ("miou", "best_miou", 1) if peer == "irn" else ("miou_percent", "best_miou_percent", 100)
    )
    np.testing.assert_allclose(np.array(score.curve) * scale, expected[peer][wanted], rtol=1e-9)
    np.testing.assert_allclose(score.value * scale, expected[peer][best], rtol=1e-9)
    assert score.best_threshold == expected[peer]["best_tau"]
    for tau, confusion in expected["confusion"].items():
        got = metric.confusion(taus.index(float(tau)))
        n = len(confusion)
        assert got[:n, :n].tolist() == confusion
        assert got.sum() == np.sum(confusion)
    for tau, counts in expected["seam_counts"].items():
        got = metric.confusion(taus.index(float(tau)))
        assert np.diag(got).tolist() == counts["TP"]
        assert got.sum(0).tolist() == counts["P"]
        assert got.sum(1).tolist() == counts["T"]


def test_miou_wsss_at_fixed_thresholds_and_advcam_s_range() -> None:
    _, _, expected = group("miou_wsss")
    fixed = wsss_metric("present", [0.15])
    np.testing.assert_allclose(fixed.compute().value, expected["irn"]["miou_at_default_0_15"], rtol=1e-12)
    assert fixed.supervision == ()
    swept = wsss_metric("present", [i / 100 for i in range(15, 35)]).compute()
    np.testing.assert_allclose(swept.value, expected["advcam"]["best_miou"], rtol=1e-12)
    assert swept.best_threshold == expected["advcam"]["best_tau"]


def test_miou_atcon() -> None:
    inputs, arrays, expected = group("miou_atcon")
    names = sorted({o["name"] for image in inputs["images"] for o in image["objects"]})
    metric = MIoUATCON(classes=len(names))
    ious = []
    for i, (image, target) in enumerate(zip(inputs["images"], expected["target_class"], strict=True)):
        width, height = image["size_wh"]
        boxes = np.array([o["bndbox"] for o in image["objects"]], np.float64) - [1, 1, 0, 0]
        labels = [names.index(o["name"]) for o in image["objects"]]
        sample = Sample(str(i), None, (height, width), boxes, labels)
        label = names.index(target)
        ious.append(metric.update(maps_of(sample, arrays[image["cam"]], [label]), sample)[label])
    assert ious == expected["iou_gradcam"]
    np.testing.assert_allclose(metric.compute().value, expected["miou_gradcam"], rtol=1e-12)


#: ways to score a guided backpropagation map, and the vectors' names of them
GUIDED = {"guided": "guidedbackprop_bbox", "guided-box": "bbox_gb_bbox", "mask": "mask_bbox"}


def test_miou_atcon_of_guided_backpropagation() -> None:
    inputs, arrays, expected = group("miou_atcon")
    pairs = {"guided": "gradcam_guidedbackprop", "guided-box": "gradcam_guidedbackprop_bbox"}
    for claim, name in pairs.items():
        for image, counts in zip(inputs["images"], expected["other_counts"][name], strict=True):
            first, second = claimed(arrays[image["cam"]]), claimed(arrays[image["guided"]], claim)  # type: ignore[arg-type]
            found = [(first & second).sum(), (first | second).sum(), first.sum(), second.sum()]
            assert found == counts
    with pytest.raises(ConfigError, match="miou_atcon: claim"):
        MIoUATCON(classes=1, claim="box")  # type: ignore[arg-type]


QUANTUS: dict[str, tuple[str, dict[str, Any]]] = {
    "AttributionLocalisation": ("attribution_localization", {}),
    "AttributionLocalisation_positive": ("attribution_localization", {"values": "positive"}),
    "RelevanceMassAccuracy": ("relevance_mass", {}),
    "RelevanceMassAccuracy_abs": ("relevance_mass", {"values": "absolute"}),
    "RelevanceRankAccuracy": ("relevance_rank", {}),
    "RelevanceRankAccuracy_abs": ("relevance_rank", {"values": "absolute"}),
    "TopKIntersection_k1": ("topk_intersection", {"k": 1}),
    "TopKIntersection_k5": ("topk_intersection", {"k": 5}),
    "TopKIntersection_k50": ("topk_intersection", {"k": 50}),
    "TopKIntersection_k200": ("topk_intersection", {"k": 200}),
    "TopKIntersection_k50_concept_influence": ("topk_intersection", {"k": 50, "concept_influence": True}),
    "AUC": ("auc", {}),
    "AUC_abs": ("auc", {"values": "absolute"}),
    "PointingGame": ("pointing_game", {"tolerance": 0.0, "truth": "masks"}),
}


@pytest.mark.parametrize("name", QUANTUS)
def test_quantus(name: str) -> None:
    inputs, arrays, expected = group("quantus")
    assert set(QUANTUS) == set(expected["scores"])
    ours, options = QUANTUS[name]
    metric = METRICS[ours](classes=1, processing=AS_IT_IS, **options)
    scores = []
    for i, entry in enumerate(inputs["samples"]):
        mask = arrays[entry["s"]].astype(bool)
        masks = PairOfMasks(mask, np.zeros_like(mask))
        sample = Sample(str(i), None, mask.shape, labels=[0], masks=masks)
        scores.append(metric.update(maps_of(sample, arrays[entry["a"]]), sample)[0])
    wanted = np.array(expected["scores"][name], np.float64)
    exact = ("RelevanceRank", "TopK", "Pointing")
    if name.startswith(exact) and "influence" not in name:
        assert scores == wanted.tolist()
    else:
        np.testing.assert_allclose(scores, wanted, rtol=1e-9)
    assert isinstance(metric, PointingGame) or metric.compute().count == len(scores)
