"""Numbers at the edges: images without objects, of many classes, maps of a part, maps that are missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.files import coco_content, write_coco, write_image
from wsod import evaluate
from wsod.data.coco import Coco
from wsod.errors import MapError
from wsod.metrics import GTKnownLoc, PxAP, Top5Loc
from wsod.models import build_classifier, save_checkpoint
from wsod.report.boxes import boxes_of_files
from wsod.scoremaps import MapProcessing
from wsod.strata import CaseFacts
from wsod.types import AttentionMaps, Sample

AS_IT_IS = MapProcessing(accept_scores=True)


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_coco_s_images_without_objects_have_empty_masks(tmp_path: Path, kind: str) -> None:
    content = coco_content()
    content["images"].append({"id": 8, "file_name": "b.png", "width": 20, "height": 10})
    if kind == "boxes":
        for row in content["annotations"]:
            del row["segmentation"]
    path, images = write_coco(tmp_path, content)
    empty = Coco(annotations=path, images=images)[1]
    assert not len(empty.labels)
    if kind == "boxes":
        assert empty.masks is None
    else:
        assert empty.masks is not None
        assert not empty.masks.of(0).any()
        assert not empty.masks.ignore(0).any()
        assert (empty.masks.semantic() == 0).all()


def test_a_claim_on_an_image_without_objects_counts(tmp_path: Path) -> None:
    """The same truth as a folder of masks would give: a union of the claim and nothing."""
    content = coco_content()
    content["annotations"] = content["annotations"][:1]
    content["images"].append({"id": 8, "file_name": "b.png", "width": 20, "height": 10})
    path, images = write_coco(tmp_path, content)
    write_image(images / "b.png")
    claim = np.zeros((10, 20))
    claim[3:8, 2:6] = 1.0
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", values=claim[None], labels=Coco(annotations=path)[0].labels)
    result = evaluate(tmp_path, data=f"coco:{images},{path}", labels="stored", metrics=["mask_iou"])
    score = result.rows[0].scores["mask_iou"]
    assert score["count"] == 2
    assert score["value"] == pytest.approx((1.0 + 0.0) / 2, abs=0.03)  # half a pixel of the polygon


def facts(ranking: list[int], labels: list[int]) -> list[bool | None]:
    boxes = np.tile([[0.0, 0.0, 2.0, 2.0]], (len(labels), 1))
    sample = Sample("a", None, (4, 4), boxes, labels=labels)
    maps = AttentionMaps("a", (4, 4), labels, np.zeros((len(labels), 2, 2)), ranking=ranking)
    return [CaseFacts.of(maps, sample, label).predicted for label in sorted(labels)]


def test_predicted_among_as_many_as_the_image_has() -> None:
    twelve = list(range(12))
    assert facts(twelve[::-1], twelve) == [True] * 12
    assert facts([*range(11), 12], twelve) == [True] * 11 + [False]
    # of a ranking that was cut nothing is known of the others
    assert facts(twelve[:10], twelve) == [True] * 10 + [None] * 2


def test_rankings_are_as_long_as_an_image_has_classes(tmp_path: Path) -> None:
    names = [f"class {n:02}" for n in range(14)]
    rows = ["image,label,x0,y0,x1,y1", *(f"a.png,{name},0,0,9,9" for name in names[:12])]
    rows += [f"b.png,{name},0,0,9,9" for name in names[12:]]
    (tmp_path / "boxes.csv").write_text("\n".join(rows) + "\n")
    for image in ("a", "b"):
        write_image(tmp_path / f"images/{image}.png")
    torch.manual_seed(0)
    classifier = build_classifier("smallnet", names, task="multilabel")
    save_checkpoint(tmp_path / "ft.pt", classifier, recipe={}, metrics={}, provenance={})
    result = evaluate(
        "cam", checkpoint=tmp_path / "ft.pt", data=f"folder:{tmp_path}", metrics=["pointing_game"]
    )
    cases = [case for case in result.cases if case.image == "a"]
    assert len(cases) == 12
    assert all(case.rank is None or 1 <= case.rank <= 12 for case in cases)
    assert [case.predicted for case in cases] == [case.rank is not None for case in cases]


@pytest.mark.parametrize("values", [np.float32, np.float64])
def test_a_map_of_a_part_is_no_score_map(values: type) -> None:
    given = np.zeros((1, 8, 8), values)
    given[0, 2:6, 2:6] = 1.0
    maps = AttentionMaps("a", (8, 8), [0], given, region=(0.0, 0.0, 4.0, 4.0))
    scores = AS_IT_IS.score(maps, 0).scores
    assert scores[4:].max() == 0.0
    assert scores[:, 4:].max() == 0.0
    assert scores[1:3, 1:3].min() == 1.0


def test_boxes_of_a_part_at_another_size(tmp_path: Path) -> None:
    values = np.zeros((1, 10, 10))
    values[0, 3:7, 3:7] = 1.0
    region = np.array([50.0, 0.0, 150.0, 100.0])
    np.savez(tmp_path / "a.npz", values=values, labels=[0], size=[100, 200], region=region)
    (own,) = boxes_of_files([tmp_path / "a.npz"], threshold=0.5).values()
    for size, scale in (((100, 200), 1.0), ((200, 400), 2.0)):
        (found,) = boxes_of_files([tmp_path / "a.npz"], size=size, threshold=0.5).values()
        np.testing.assert_allclose(found[0], scale * own[0], atol=1.0)


@pytest.mark.parametrize(("metric", "labels"), [(GTKnownLoc, [2]), (Top5Loc, [2])])
def test_the_true_class_s_map_is_needed(metric: Any, labels: list[int]) -> None:
    """A map that was never made is no miss."""
    sample = Sample("a", None, (8, 8), [[2, 2, 6, 6]], labels=[1])
    values = np.zeros((1, 8, 8))
    values[0, 2:6, 2:6] = 1.0
    ranking = [2, 1, 0, 3, 4, 5]
    other = AttentionMaps("a", (8, 8), labels, values, ranking=ranking)
    with pytest.raises(MapError, match=r"--labels truth"):
        metric(classes=6).update(other, sample)
    both = AttentionMaps("a", (8, 8), [1, 2], np.concatenate([values, 1 - values]), ranking=ranking)
    found = metric(classes=6)
    found.update(both, sample)
    assert (found.compute().value, found.compute().count) == (1.0, 1)


def test_pxap_counts_positives_below_the_first_threshold() -> None:
    class Truth:
        def of(self, label: int) -> np.ndarray:
            return np.array([[True, True, True, False]])

        def ignore(self, label: int) -> np.ndarray:
            return np.zeros((1, 4), np.bool_)

    sample = Sample("a", None, (1, 4), [[0, 0, 3, 1]], labels=[0], masks=Truth())  # type: ignore[arg-type]
    maps = AttentionMaps("a", (1, 4), [0], np.array([[[0.0, 0.2, 0.6, 1.0]]]))
    metric = PxAP(classes=1, processing=AS_IT_IS, thresholds=(0.5,))
    metric.update(maps, sample)
    score = metric.compute()
    # at .5: pixels of .6 (true) and 1. (not); at 1.: that one alone
    assert score.value == pytest.approx(1 / 3 * 1 / 2)
    assert isinstance(score.curve, dict)
    assert score.curve["recall"] == pytest.approx([1 / 3, 0.0])


@pytest.mark.slow
def test_bare_photos_are_asked_of_the_classifier_s_classes(tmp_path: Path) -> None:
    for image in ("a", "b"):
        write_image(tmp_path / f"data/{image}.png")
    torch.manual_seed(0)
    classifier = build_classifier("smallnet", ["cat", "dog", "owl"], task="multiclass")
    save_checkpoint(tmp_path / "ft.pt", classifier, recipe={}, metrics={}, provenance={})
    result = evaluate(
        "cam",
        checkpoint=tmp_path / "ft.pt",
        data=f"folder:{tmp_path / 'data'}",
        labels="predicted",
        config="faithfulness",
        out=tmp_path / "out",
    )
    assert result.rows[0].scores["average_drop"]["count"] == 2
    assert json.loads((tmp_path / "out/result.json").read_text())
