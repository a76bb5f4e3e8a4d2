"""The public implementations' numbers through the command line, on files as their users have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import needs_shared
from tests.data.files import write_mask
from tests.metrics.reference import group
from tests.metrics.test_reference_boxes import WRONG
from tests.metrics.test_reference_pixels import GUIDED, QUANTUS
from tests.reference_files import (
    case_scores,
    evaluate,
    save_map,
    write_devkit,
    write_protocol,
    write_wsol,
)
from wsod.data.voc import VOC_CLASSES

pytestmark = needs_shared


def close(got: Any, wanted: Any, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(np.array(got, np.float64), np.array(wanted, np.float64), rtol=rtol)


def hits(curve: list[float], count: int) -> list[int]:
    """The numbers of hits that a curve of fractions was made from, exactly."""
    whole = np.rint(np.array(curve) * count).astype(int)
    assert (whole / count).tolist() == curve
    return list(whole.tolist())


@pytest.fixture(scope="module")
def wsol_boxes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Low-resolution grids as they left the network beside finished 224x224 score maps, in one folder."""
    root = tmp_path_factory.mktemp("wsol")
    inputs, arrays, expected = group("wsol_boxes")
    maps, n = inputs["maps"], expected["n_maps"]
    for split, some in (("runs", maps[:n]), ("runs_nondyadic", maps[n:])):
        write_wsol(
            root / "metadata" / split,
            [(m["image_id"], 0) for m in some],
            {m["image_id"]: m["boxes"] for m in some},
            {m["image_id"]: m["size"] for m in some},
        )
    for place, m in enumerate(maps):
        values = arrays[m["array"]][m["index"]]
        values = values / 65535.0 if m["array"] == "full_u16" else values
        # both of the names in use for a/im_0000.jpg
        name = m["image_id"] if place % 2 else str(Path(m["image_id"]).with_suffix(""))
        save_map(root / "maps", name, values)
    return root / "maps", f"wsol:{root / 'metadata'}"


@pytest.mark.parametrize("run", range(4))
@pytest.mark.parametrize("split", ["runs", "runs_nondyadic"])
@pytest.mark.slow
def test_wsol_boxes(tmp_path: Path, wsol_boxes: tuple[Path, str], split: str, run: int) -> None:
    wanted = group("wsol_boxes")[2][split][run]
    components = "all" if wanted["multi_contour"] else "largest"
    config: object = "max-box-acc-v2"
    if wanted["step"] != 0.001 or components != "all":
        options = {"step": wanted["step"], "components": components}
        config = write_protocol(tmp_path / "variant.toml", "max-box-acc-v2", "max_box_acc_v2", **options)
    score = evaluate(tmp_path, *wsol_boxes, config, "--split", split)["max_box_acc_v2"]
    assert score["count"] == wanted["cnt"]
    assert score["thresholds"] == np.arange(0, 1, wanted["step"]).tolist()
    close(score["value"] * 100, wanted["mean_over_iou"])
    for place, percent in enumerate(("30", "50", "70")):
        name = f"0.{percent[0]}"
        assert hits(score["curve"][name], wanted["cnt"]) == wanted["num_correct"][percent]
        close(score[name] * 100, wanted["max_box_acc_30_50_70"][place])
        assert score["best_threshold"][name] == score["thresholds"][wanted["best_threshold_index"][percent]]
    if not wanted["multi_contour"] and wanted["step"] == 0.001:
        score = evaluate(tmp_path, *wsol_boxes, "max-box-acc", "--split", split)["max_box_acc"]
        assert hits(score["curve"], wanted["cnt"]) == wanted["num_correct"]["50"]
        close(score["value"] * 100, wanted["MaxBoxAcc"])


@pytest.mark.parametrize(
    ("split", "key"),
    [
        ("runs", "PxAP"),
        ("grid", "PxAP_grid_maps_only_step_0.001"),
        ("grid_nondyadic", "PxAP_nondyadic_maps_only_step_0.001"),
    ],
)
@pytest.mark.parametrize("where", ["masks=", ""])
def test_wsol_pxap(tmp_path: Path, split: str, key: str, where: str) -> None:
    """OpenImages: masks and ignore regions as PNG, no photos, no list of sizes."""
    inputs, arrays, expected = group("wsol_pxap")
    images = [i for i in inputs["images"] if i["kind"] == split or (split, i["kind"]) == ("runs", "full")]
    if split == "runs":
        images = [i for i in inputs["images"] if i["kind"] != "grid_nondyadic"]
    rows = {}
    for image in images:
        files = [f"test/m/{name}.png" for name in (*image["masks"], image["ignore"])]
        for file, name in zip(files, (*image["masks"], image["ignore"]), strict=True):
            write_mask(tmp_path / "masks" / file, arrays[name])
        rows[image["image_id"]] = [(file, files[-1] if file == files[0] else "") for file in files[:-1]]
        save_map(tmp_path / "maps", image["image_id"], arrays[image["cam"]])
    metadata = write_wsol(tmp_path / "metadata", [(name, 0) for name in rows], masks=rows)
    data = f"wsol:{metadata},{where}{tmp_path / 'masks'}"
    score = evaluate(tmp_path / "out", tmp_path / "maps", data, "pxap")["pxap"]
    assert score["count"] == len(images)
    if split != "runs":
        close(score["value"] * 100, expected[key])
        return
    for wanted in expected["runs"]:
        if wanted["step"] != 0.001:
            config = write_protocol(tmp_path / "coarse.toml", "pxap", "pxap", step=wanted["step"])
            score = evaluate(tmp_path / "out", tmp_path / "maps", data, config)["pxap"]
        close(score["value"] * 100, wanted[key])
        for name, first in (("precision", None), ("recall", 0.0)):
            # theirs begins above all thresholds
            curve = [first, *score["curve"][name][::-1]]
            close([curve[i] for i in wanted["curve_index"]], wanted[name])
        above = np.cumsum(wanted["gt_true_score_hist"][::-1])[::-1][:-1]  # theirs has an empty bin [2, 3]
        assert hits(score["curve"]["recall"], wanted["n_positive"]) == above.tolist()


@pytest.mark.parametrize("run", [0, *(pytest.param(run, marks=pytest.mark.slow) for run in range(1, 8))])
@pytest.mark.slow
def test_topk_loc(tmp_path: Path, run: int) -> None:
    """All classes' maps with the classifier's ranking, as .npz."""
    inputs, arrays, expected = group("topk_loc")
    wanted, names, boxes, sizes = expected["runs"][run], [], {}, {}
    for image in inputs["images"]:
        corners = np.trunc(np.array(image["boxes"], np.float64)).astype(int)
        if image["style"] == "cub":
            corners[:, 2:] += corners[:, :2]
        name = f"val/{image['name']}.JPEG"
        names.append((name, image["label"]))
        boxes[name], sizes[name] = corners.tolist(), image["size_wh"]
        file = tmp_path / "maps" / f"{image['name']}.npz"
        file.parent.mkdir(exist_ok=True)
        ranking = np.argsort(-np.array(image["logits"]), kind="stable")
        values = arrays[image["cams"]].astype(wanted["cam_dtype"])
        np.savez(file, values=values, ranking=ranking)
    metadata = write_wsol(tmp_path / "metadata", names, boxes, sizes)
    for ours, theirs in (("gt_known_loc", "gt_known"), ("top1_loc", "top1"), ("top5_loc", "top5")):
        config: object = "tscam"
        if wanted["cam_thr"] != 0.1:
            thresholds = [wanted["cam_thr"]]
            config = write_protocol(tmp_path / "variant.toml", "tscam", ours, thresholds=thresholds)
        scores = evaluate(tmp_path, tmp_path / "maps", f"wsol:{metadata}", config)
        assert list(case_scores(scores, ours).values()) == wanted["per_image"][f"loc_{theirs}"]
        close(scores[ours]["value"], wanted["means"][f"loc_{theirs}"])
        assert scores[ours]["count"] == len(names)
        if ours == "top1_loc":
            for theirs_, ours_ in WRONG.items():
                assert scores[ours][ours_] * len(names) == pytest.approx(wanted["wrong_details"][theirs_])


def pointing_on(
    tmp_path: Path, data: str, maps: Path, protocol: str, wanted: dict[str, Any], pairs: Any, **options: Any
) -> None:
    """The scores and every pair's result. `pairs`: (image id, label, smooth) in the vectors' order."""
    played: dict[tuple[str, str], float] = {}
    for smooth, names in ((0.0, "plain"), (0.02, "smooth")):
        path = tmp_path / f"{names}.toml"
        config = write_protocol(path, protocol, "pointing_game", smooth=smooth, **options)
        scores = case_scores(evaluate(tmp_path, maps, data, config), "pointing_game")
        mine = {(image, label) for image, label, blurred in pairs if blurred == bool(smooth)}
        played |= {pair: score for pair, score in scores.items() if pair in mine}
    results = [{0.0: -1, 1.0: 1, None: 0}[played.get(pair[:2])] for pair in pairs]
    assert results == wanted["results"]


def voc_pointing(tmp_path: Path) -> tuple[str, Path, list[tuple[str, str, bool]]]:
    """A devkit, a folder of {class: map} dictionaries whose maps differ in size, the pairs."""
    inputs, arrays, _ = group("pointing")
    stems = [Path(image["filename"]).stem for image in inputs["voc_images"]]
    images = zip(stems, inputs["voc_images"], strict=True)
    data = write_devkit(tmp_path, {s: ((i["width"], i["height"]), i["objects"]) for s, i in images})
    found: dict[str, dict[int, Any]] = {}
    pairs = []
    for pair in inputs["voc_pairs"]:
        stem = stems[pair["image"]]
        found.setdefault(stem, {})[pair["class_id"]] = arrays[pair["array"]]
        pairs.append((stem, VOC_CLASSES[pair["class_id"]], pair["kind"] == "smooth"))
    for stem, maps in found.items():
        save_map(tmp_path / "maps", stem, maps)
    return data, tmp_path / "maps", pairs


def write_flags(path: Path) -> str:
    """TorchRay's list of difficult pairs, for images with the ending or without it."""
    flags = group("pointing")[0]["voc_difficult_flags"]
    path.write_text("".join("\t".join([name, *map(str, row)]) + "\n" for name, row in flags.items()))
    return str(path)


@pytest.mark.parametrize("subset", ["all", "difficult"])
def test_pointing_voc(tmp_path: Path, subset: str) -> None:
    data, maps, pairs = voc_pointing(tmp_path)
    wanted = group("pointing")[2]["voc"]
    options = {} if subset == "all" else {"flags": write_flags(tmp_path / "difficult.txt")}
    protocol = "pointing-voc07" if subset == "all" else "pointing-voc07-difficult"
    pointing_on(tmp_path, data, maps, protocol, wanted[subset], pairs, **options)
    config = write_protocol(tmp_path / "center.toml", protocol, "pointing_game", **options)
    scores = evaluate(tmp_path, "center", data, config)
    score, center = scores["pointing_game"], wanted[f"center_{subset}"]
    played = case_scores(scores, "pointing_game")
    assert [{0.0: -1, 1.0: 1, None: 0}[played.get(pair[:2])] for pair in pairs] == center["results"]
    close(score["value"], center["accuracy"])
    assert score["count"] == sum(center["hits"]) + sum(center["misses"])
    for name, accuracy in score["per_class"].items():
        close(accuracy, center["class_accuracies"][VOC_CLASSES.index(name)])


def test_pointing_voc_in_one_run(tmp_path: Path) -> None:
    """Without the blurred maps, the score of result.json itself."""
    inputs, _, expected = group("pointing")
    data, maps, pairs = voc_pointing(tmp_path)
    results = expected["voc"]["all"]["results"]
    dropped = {pair[0] for pair in pairs if pair[2]}
    keep = [k for k, pair in enumerate(pairs) if pair[0] not in dropped]
    listing = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/plain.txt"
    listing.write_text("\n".join(dict.fromkeys(pairs[k][0] for k in keep)))
    score = evaluate(tmp_path, maps, data, "pointing-voc07", "--split", "plain")["pointing_game"]
    accuracies = np.zeros(20)
    for label in range(20):
        own = [results[k] for k in keep if inputs["voc_pairs"][k]["class_id"] == label and results[k]]
        accuracies[label] = own.count(1) / max(len(own), 1)
    close(score["value"], accuracies.mean())
    assert score["count"] == sum(results[k] != 0 for k in keep)


def test_pointing_coco(tmp_path: Path) -> None:
    inputs, arrays, expected = group("pointing")
    coco, wanted = inputs["coco"], expected["coco"]["all"]
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    names = {image["id"]: Path(image["file_name"]).stem for image in coco["images"]}
    found: dict[str, dict[int, Any]] = {}
    pairs = []
    for pair in inputs["coco_pairs"]:
        name = names[pair["image_id"]]
        found.setdefault(name, {})[pair["class_id"]] = arrays[pair["array"]]
        pairs.append((name, str(pair["category_id"])))
    for name, maps in found.items():
        save_map(tmp_path / "maps", name, maps)
    data = f"coco:annotations={tmp_path / 'instances.json'}"
    scores = evaluate(tmp_path, tmp_path / "maps", data, "pointing-coco14")
    played = case_scores(scores, "pointing_game")
    assert [1 if played[pair] else -1 for pair in pairs] == wanted["results"]
    close(scores["pointing_game"]["value"], wanted["accuracy"])
    assert scores["pointing_game"]["count"] == len(pairs)


def wsss(tmp_path: Path, form: str) -> tuple[Path, str]:
    """A devkit with class masks; irn's or SEAM's files."""
    inputs, arrays, _ = group("miou_wsss")
    images: dict[str, Any] = {}
    for image in inputs["images"]:
        cam, (height, width) = arrays[image["cam"]], image["shape_hw"]
        keys = np.array(image["keys"])
        objects = [{"name": VOC_CLASSES[key], "bndbox": (1, 1, width, height)} for key in keys]
        images[image["id"]] = (width, height), objects
        content: dict[Any, Any] = {"keys": keys, "cam": cam[:, ::4, ::4], "high_res": cam}
        if form == "seam":
            content = dict(zip(image["keys"], cam, strict=True))
        save_map(tmp_path / "maps", image["id"], content)
    truth = {image["id"]: arrays[image["gt"]] for image in inputs["images"]}
    return tmp_path / "maps", write_devkit(tmp_path, images, truth)


def test_miou_irn(tmp_path: Path) -> None:
    expected = group("miou_wsss")[2]
    files = wsss(tmp_path, "irn")
    score = evaluate(tmp_path / "a", *files, "miou-irn", "--split", "seg-test")["miou"]
    close(score["value"], expected["irn"]["miou_at_default_0_15"])
    classes = [score["background"], *(score["per_class"].get(name) for name in VOC_CLASSES)]
    close(classes[: expected["irn"]["n_class"]], expected["irn_iou"]["0.15"])
    for taus, peer in ((expected["taus"], "irn"), ([i / 100 for i in range(15, 35)], "advcam")):
        config = write_protocol(tmp_path / "sweep.toml", "miou-irn", "miou", thresholds=taus)
        score = evaluate(tmp_path / "b", *files, config, "--split", "seg-test")["miou"]
        close(score["value"], expected[peer]["best_miou"])
        assert score["best_threshold"] == expected[peer]["best_tau"]
        close(score["curve"], [expected["irn"]["miou"][expected["taus"].index(tau)] for tau in taus])


@pytest.mark.parametrize("form", ["seam", "irn"])
def test_miou_seam(tmp_path: Path, form: str) -> None:
    expected = group("miou_wsss")[2]
    files = wsss(tmp_path, form)
    score = evaluate(tmp_path / "a", *files, "miou-seam", "--split", "seg-test")["miou"]
    assert score["thresholds"] == expected["taus"]
    close(np.array(score["curve"]) * 100, expected["seam"]["miou_percent"])
    close(score["value"] * 100, expected["seam"]["best_miou_percent"])
    assert score["best_threshold"] == expected["seam"]["best_tau"]
    assert score["count"] == len(group("miou_wsss")[0]["images"])


def test_miou_atcon(tmp_path: Path) -> None:
    """One map an image: of the class that ATCON's code would score."""
    inputs, arrays, expected = group("miou_atcon")
    images: dict[str, Any] = {}
    for k, (image, target) in enumerate(zip(inputs["images"], expected["target_class"], strict=True)):
        images[f"{k:06d}"] = image["size_wh"], image["objects"]
        for folder, name in (("maps", "cam"), ("guided", "guided")):
            save_map(tmp_path / folder, f"{k:06d}", {VOC_CLASSES.index(target): arrays[image[name]]})
    data = write_devkit(tmp_path, images)
    scores = evaluate(tmp_path, tmp_path / "maps", data, "miou-atcon", "--labels", "stored")
    assert list(case_scores(scores, "miou_atcon").values()) == expected["iou_gradcam"]
    close(scores["miou_atcon"]["value"], expected["miou_gradcam"])
    for claim, theirs in GUIDED.items():
        config = write_protocol(tmp_path / f"{claim}.toml", "miou-atcon", "miou_atcon", claim=claim)
        scores = evaluate(tmp_path, tmp_path / "guided", data, config, "--labels", "stored")
        assert list(case_scores(scores, "miou_atcon").values()) == expected["other"][theirs]
        close(scores["miou_atcon"]["value"], expected["other_mean"][theirs])


@pytest.mark.parametrize("name", QUANTUS)
def test_quantus(tmp_path: Path, name: str) -> None:
    """A folder of masks alone, signed maps of their size."""
    inputs, arrays, expected = group("quantus")
    for k, sample in enumerate(inputs["samples"]):
        write_mask(tmp_path / "data" / "masks" / f"{k:02d}.png", arrays[sample["s"]])
        save_map(tmp_path / "maps", f"{k:02d}", arrays[sample["a"]])
    (tmp_path / "data" / "classes.txt").write_text("object\n")
    ours, options = QUANTUS[name]
    config: object = "quantus"
    if options and ours != "pointing_game":  # the protocol's own options
        config = write_protocol(tmp_path / "variant.toml", "quantus", ours, **options)
    scores = evaluate(tmp_path, tmp_path / "maps", f"folder:{tmp_path / 'data'}", config)
    close(list(case_scores(scores, ours).values()), expected["scores"][name])
    close(scores[ours]["value"], np.mean(expected["scores"][name]))


def test_corloc_image(tmp_path: Path) -> None:
    """One box an image, as the map that is 1 inside it."""
    inputs, _, expected = group("corloc")
    wanted = expected["lost"]["int64"]
    images, counted = {}, []
    for image, box, hit in zip(inputs["images"], inputs["image_level_boxes"], wanted["hits"], strict=True):
        width, height = image["size_wh"]
        x0, y0, x1, y1 = box
        if min(box) < 0 or x1 > width or y1 > height:
            continue  # a map cannot claim what is outside the image
        values = np.zeros((height, width))
        values[y0:y1, x0:x1] = 1
        images[image["id"]] = (width, height), image["objects"]
        save_map(tmp_path / "maps", image["id"], values)
        counted.append(hit)
    assert len(counted) > 30
    scores = evaluate(tmp_path, tmp_path / "maps", write_devkit(tmp_path, images), "corloc-image")
    assert list(case_scores(scores, "corloc_image").values()) == counted
    assert scores["corloc_image"]["value"] == sum(counted) / len(counted)
