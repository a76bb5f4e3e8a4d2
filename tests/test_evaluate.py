"""From data to result.json: the stages together, and the command line around them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wsod import evaluate
from wsod.cli import main
from wsod.errors import ConfigError, DataError, MapError, WsodError
from wsod.evaluation import compute_maps
from wsod.pipeline import class_columns
from wsod.protocols import load_protocol
from wsod.results import Result
from wsod.thresholds import protocol_of


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """smallnet with random weights for the classes of shapes."""
    import torch

    from wsod.data import open_dataset
    from wsod.models import build_classifier, save_checkpoint

    torch.manual_seed(0)
    classifier = build_classifier("smallnet", open_dataset("shapes").classes, task="multilabel")
    path = tmp_path_factory.mktemp("model") / "ft.pt"
    save_checkpoint(path, classifier, recipe={}, metrics={}, provenance={})
    return path


def values(result: Result, row: int = 0) -> dict[str, float]:
    return {name: score["value"] for name, score in result.rows[row].scores.items()}


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_result_directory(tmp_path: Path, checkpoint: Path) -> None:
    result = evaluate(
        ["gradcam", "center"], checkpoint=checkpoint, limit=12, out=tmp_path, save_maps=True, save_overlays=3
    )
    table = json.loads((tmp_path / "result.json").read_text())
    assert table["schema"] == 3
    assert [row["maps"] for row in table["rows"]] == ["gradcam", "center"]
    assert table["rows"][0]["supervision"] == ["image labels", "threshold: evaluated split"]
    assert "image labels" not in table["rows"][1]["supervision"]
    for row in table["rows"]:
        for score in row["scores"].values():
            assert {"value", "per_class", "curve", "best_threshold", "count", "skipped", "interval"} <= set(
                score
            )
            assert 0 <= score["value"] <= 1
            low, high = score["interval"]
            assert 0 <= low <= high <= 1
    assert table["provenance"]["checkpoint"]["sha256"]
    assert table["skipped"] == []
    # a mean over cases is the mean of cases.jsonl, to the last digit that a sum can promise
    lines = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    for name in ("energy_pointing_game", "max_box_acc", "max_box_acc_v2", "top1_loc", "mask_iou"):
        scores = [
            line["scores"][name] for line in lines if line["maps"] == "gradcam" and name in line["scores"]
        ]
        assert np.mean(scores) == pytest.approx(values(result)[name], abs=1e-6), name
    pictures = sorted((tmp_path / "overlays" / "gradcam").iterdir())
    assert len(pictures) == 3
    with Image.open(pictures[0]) as picture:
        assert picture.width > 1000
    again = Result.load(tmp_path)
    assert values(again) == values(result)
    assert len(again.cases) == len(lines)
    assert protocol_of(again) == load_protocol("default")


def test_stored_maps_score_as_computed_ones(tmp_path: Path, checkpoint: Path) -> None:
    options = {"data": "shapes", "limit": 10}
    direct = evaluate(
        ["gradcam", "layercam"], checkpoint=checkpoint, out=tmp_path / "a", save_maps=True, **options
    )
    computed, faults = compute_maps(["gradcam", "layercam"], tmp_path / "m", checkpoint=checkpoint, **options)
    assert (computed, faults) == (10, [])
    for folder in (tmp_path / "m", tmp_path / "a" / "maps"):
        stored = evaluate(folder, **options)
        for row in range(2):
            assert values(stored, row) == values(direct, row)
            assert stored.rows[row].supervision == direct.rows[row].supervision
    # nothing is computed twice
    assert compute_maps(["gradcam"], tmp_path / "m", checkpoint=checkpoint, **options)[0] == 0
    (tmp_path / "m" / "gradcam" / "test_00003.npz").unlink()
    assert compute_maps(["gradcam"], tmp_path / "m", checkpoint=checkpoint, **options)[0] == 1


def test_folders_of_the_same_names_are_rows_of_their_own(tmp_path: Path, checkpoint: Path) -> None:
    methods, options = ["gradcam", "layercam"], {"data": "shapes", "limit": 3}
    for name in ("a", "b"):
        compute_maps(methods, tmp_path / name, checkpoint=checkpoint, **options)
    result = evaluate([tmp_path / "a", tmp_path / "b"], metrics=["mask_iou"], **options)
    assert [Path(row.maps).name for row in result.rows] == methods * 2
    assert len({row.maps for row in result.rows}) == 4


def test_images_without_masks_do_not_remove_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsod.data.shapes import Shapes

    whole, get = evaluate("center", limit=5, metrics=["miou"]), Shapes.__getitem__

    def some(dataset: Shapes, index: int) -> Any:
        sample = get(dataset, index)
        return replace(sample, masks=None) if index >= 5 else sample

    monkeypatch.setattr(Shapes, "__getitem__", some)
    assert values(evaluate("center", limit=8, metrics=["miou"])) == values(whole)


@pytest.mark.slow
def test_batch_size_and_threads_change_nothing(checkpoint: Path) -> None:
    options = {"checkpoint": checkpoint, "limit": 9}
    one = evaluate(["gradcam", "guidedbackprop"], batch_size=1, threads=1, **options)
    many = evaluate(["gradcam", "guidedbackprop"], batch_size=9, threads=4, **options)
    for row in range(2):
        assert values(one, row) == pytest.approx(values(many, row), abs=1e-3)
    assert [case.image for case in one.cases] == [case.image for case in many.cases]


def test_labels_predicted_and_topk(checkpoint: Path) -> None:
    predicted = evaluate("gradcam", checkpoint=checkpoint, labels="predicted", limit=6, metrics=["mask_iou"])
    top = evaluate("gradcam", checkpoint=checkpoint, labels="topk", limit=6, metrics=["mask_iou"])
    score = predicted.rows[0].scores["mask_iou"]
    assert score["count"] + score["skipped"] == 6
    assert top.rows[0].scores["mask_iou"]["count"] + top.rows[0].scores["mask_iou"]["skipped"] == 30


def test_chosen_metrics_get_defaults_outside_the_protocol() -> None:
    result = evaluate("center", limit=5, metrics=["gt_known_loc"])
    assert list(result.rows[0].scores) == ["gt_known_loc"]
    with pytest.raises(ConfigError, match="Did you mean 'mask_iou'"):
        evaluate("center", limit=5, metrics=["mask_io"])


def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    lines = ["image,label,x0,y0,x1,y1"]
    for k in range(4):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "images" / f"{k}.png")
        lines.append(f"{k}.png,disc,5,5,30,30")
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    return tmp_path


def test_a_faulty_image_stops_or_is_listed(tmp_path: Path, checkpoint: Path) -> None:
    data = folder(tmp_path)
    broken = data / "images" / "2.png"
    broken.write_bytes(broken.read_bytes()[:400])
    spec = f"folder:{data}"
    with pytest.raises(DataError, match=r"2\.png"):
        evaluate("gradcam", checkpoint=checkpoint, data=spec)
    result = evaluate("gradcam", checkpoint=checkpoint, data=spec, on_error="skip")
    assert [skipped["image"] for skipped in result.skipped] == ["2"]
    assert result.rows[0].scores["pointing_game"]["count"] == 3


def test_a_nan_map_stops_or_is_listed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "m").mkdir()
    data = folder(tmp_path / "d")
    for k in range(4):
        np.save(tmp_path / "m" / f"{k}.npy", np.full((4, 6), np.nan) if k == 1 else np.eye(4, 6))
    with pytest.raises(MapError, match=r"1\.npy: expected a finite attention map"):
        evaluate(tmp_path / "m", data=f"folder:{data}")
    result = evaluate(tmp_path / "m", data=f"folder:{data}", on_error="skip")
    assert [skipped["image"] for skipped in result.skipped] == ["1"]
    assert "top1_loc" not in result.rows[0].scores  # these maps say nothing of a ranking


def test_perfect_and_constant_maps(tmp_path: Path) -> None:
    data = folder(tmp_path)
    for name, inside in (("perfect", 1.0), ("constant", 0.0)):
        (tmp_path / name).mkdir()
        values = np.zeros((40, 60))
        values[5:30, 5:30] = inside
        for k in range(4):
            np.save(tmp_path / name / f"{k}.npy", values)
    names = [
        "max_box_acc",
        "max_box_acc_v2",
        "pointing_game",
        "energy_pointing_game",
        "gt_known_loc",
        "corloc",
    ]
    for folder_name, expected in (("perfect", 1.0), ("constant", 0.0)):
        result = evaluate(tmp_path / folder_name, data=f"folder:{data}", metrics=names)
        for name, score in result.rows[0].scores.items():
            assert (score["value"], score["count"]) == (expected, 4), name


def test_classes_are_matched_by_name() -> None:
    assert class_columns(["a", "b", "c"], ["c", "a"]).tolist() == [2, 0]
    assert class_columns([str(n) for n in range(5)], ["3"]).tolist() == [3]
    assert class_columns(["cat", "dog"], ["0", "1"]).tolist() == [0, 1]
    with pytest.raises(ConfigError, match="2 classes, without bird"):
        class_columns(["cat", "dog"], ["cat", "bird"])


def test_table_of_several_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("evaluate", "--maps", "center", "--limit", 4, "--out", tmp_path / name).exit_code == 0
    printed = run("table", tmp_path / "a", tmp_path / "b")
    assert printed.exit_code == 0
    assert printed.output.count("center") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--maps", "gradcamm"], "Did you mean 'gradcam'"),
        (["evaluate", "--maps", "gradcam"], "Pass --checkpoint"),
        (["evaluate", "--maps", "gradcam", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["evaluate", "--maps", "center", "--data", "shapess"], "Did you mean 'shapes'"),
        (["evaluate", "--maps", "center", "--data", "voc2012:nowhere"], "nowhere"),
        (["evaluate", "--maps", "center", "--split", "trian"], "Did you mean 'train'"),
        (["evaluate", "--maps", "center", "--config", "defualt"], "Did you mean 'default'"),
        (["evaluate", "--maps", "center", "--config", "nowhere.toml"], "nowhere.toml"),
        (["evaluate", "--maps", "center", "--metrics", "mask_iuo"], "Did you mean 'mask_iou'"),
        (["evaluate", "--maps", "center", "--save-maps"], "no --out"),
        (["evaluate", "--maps", ""], "map method"),
        (["table", "nowhere"], "nowhere"),
        (["boxes", "nowhere.npy"], "nowhere.npy"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if "expected" in line]
    assert len(lines) == 1, result.stderr
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


def test_wrong_usage_is_exit_code_2() -> None:
    assert run("evaluate").exit_code == 2
    assert run("evalute").exit_code == 2
    assert "Did you mean 'evaluate'" in run("evalute").stderr


def test_gpu_that_is_not_there(checkpoint: Path) -> None:
    import torch

    count = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=f"got {count} GPUs"):
        evaluate("gradcam", checkpoint=checkpoint, device=f"cuda:{count}")
    with pytest.raises(ConfigError, match=f"got {count} GPUs"):
        evaluate("center", device=f"cuda:{count}")
    with pytest.raises(ConfigError, match="auto, cpu, cuda"):
        evaluate("gradcam", checkpoint=checkpoint, device="gpu")


def test_unknown_option_of_the_function() -> None:
    with pytest.raises(WsodError, match="Did you mean 'checkpoint'"):
        evaluate("center", chekpoint="a.pt")


def test_boxes_command(tmp_path: Path) -> None:
    heat = np.zeros((20, 30))
    heat[4:9, 10:16] = 2.0
    np.save(tmp_path / "000000000042.npy", heat)
    file = tmp_path / "000000000042.npy"
    assert "10" in run("boxes", file).output
    assert json.loads(run("boxes", file, "--format", "json").output)[0]["box"] == [10, 4, 16, 9]
    coco = json.loads(run("boxes", file, "--format", "coco").output)[0]
    assert (coco["image_id"], coco["bbox"]) == (42, [10, 4, 6, 5])
    assert run("boxes", file, "--format", "voc").output.split() == [
        "000000000042",
        "1.000000",
        "11.0",
        "5.0",
        "16.0",
        "9.0",
    ]
    Image.fromarray((heat * 100).astype(np.uint8)).save(tmp_path / "heat.png")
    assert json.loads(run("boxes", tmp_path / "heat.png", "--format", "json").output)[0]["box"] == [
        10,
        4,
        16,
        9,
    ]


def test_every_interval_holds_its_value() -> None:
    """Also where classes that were never seen count as zero."""
    for protocol in ("default", "pointing-voc07", "energy-pointing", "corloc-voc", "max-box-acc-v2"):
        result = evaluate("center", limit=25, config=protocol)
        for name, score in result.rows[0].scores.items():
            low, high = score["interval"]
            assert low <= score["value"] <= high, (protocol, name)


@pytest.mark.parametrize("config", ["default", "faithfulness"])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.slow
def test_a_network_without_an_answer_stops_or_is_listed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, config: str, batch_size: int
) -> None:
    """NaN logits of one image, in a batch with others: those score as they would without it."""
    from wsod.models.preprocess import Preprocess

    metrics = ["average_drop"] if config == "faithfulness" else ["pointing_game", "energy_pointing_game"]
    options = {"checkpoint": checkpoint, "batch_size": batch_size, "config": config, "metrics": metrics}
    options["labels"] = "predicted"
    methods = ["cam", "gradcam"]
    whole = evaluate(methods, limit=6, **options)
    seen: list[int] = []
    whole_input = Preprocess.__call__

    def spoilt(self: Preprocess, image: Image.Image) -> Any:
        tensor, region = whole_input(self, image)
        seen.append(1)
        return (tensor * float("nan") if len(seen) == 3 else tensor), region

    monkeypatch.setattr(Preprocess, "__call__", spoilt)
    with pytest.raises(WsodError, match=r"smallnet, image test_00002: expected finite logits"):
        evaluate(methods, limit=6, threads=1, **options)
    seen.clear()
    result = evaluate(methods, limit=6, threads=1, on_error="skip", **options)
    assert [skipped["image"] for skipped in result.skipped] == ["test_00002"]
    cases = [case for case in whole.cases if case.image != "test_00002"]
    assert [(case.maps, case.image) for case in result.cases] == [(case.maps, case.image) for case in cases]
    for got, wanted in zip(result.cases, cases, strict=True):
        assert got.scores == pytest.approx(wanted.scores, abs=1e-4)


def test_an_image_s_answers_that_spoil_a_batch(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed image without an answer: that image is listed, the others of its batch are asked again."""
    from wsod.errors import ModelError
    from wsod.probe import ClassifierProbe

    ask = ClassifierProbe.__call__

    def spoilt(self: ClassifierProbe, views: Any) -> Any:
        listed = list(views)
        if any(view.image_id == "test_00001" and view.weights is not None for view in listed):
            raise ModelError("smallnet, image test_00001", "finite logits", "NaN or infinity")
        return ask(self, listed)

    options: dict[str, Any] = {"checkpoint": checkpoint, "config": "faithfulness", "labels": "predicted"}
    options["metrics"] = ["average_drop"]
    whole = evaluate("gradcam", limit=4, **options)
    monkeypatch.setattr(ClassifierProbe, "__call__", spoilt)
    with pytest.raises(ModelError, match="test_00001"):
        evaluate("gradcam", limit=4, **options)
    result = evaluate("gradcam", limit=4, on_error="skip", **options)
    assert [skipped["image"] for skipped in result.skipped] == ["test_00001"]
    rest = [case for case in whole.cases if case.image != "test_00001"]
    assert [case.image for case in result.cases] == [case.image for case in rest]


@pytest.mark.parametrize("protocol", ["default", "pxap", "miou-seam", "corloc-voc", "quantus"])
@pytest.mark.slow
def test_threads_change_no_bit(tmp_path: Path, protocol: str) -> None:
    compute_maps(["center", "random"], tmp_path, limit=30)
    maps = [tmp_path / "center", tmp_path / "random"]
    one = evaluate(maps, limit=30, config=protocol, threads=1)
    many = evaluate(maps, limit=30, config=protocol, threads=5)
    assert one.rows == many.rows or str(one.rows) == str(many.rows)  # NaN is not itself
    assert one.cases == many.cases
