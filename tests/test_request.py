"""What is asked for is checked before anything is computed or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.files import write_folder, write_image, write_wsol
from wsod import evaluate
from wsod.data import open_dataset
from wsod.data.shapes import Shapes
from wsod.errors import ConfigError, DataError, MapError, OutputError, WsodError
from wsod.evaluation import compute_maps
from wsod.models import build_classifier, save_checkpoint
from wsod.output import only_writer
from wsod.store import MapStore, folder_name

DATA = "shapes:count=3,size=48"
METRICS = ["energy_pointing_game"]


def saved(path: Path, classes: list[str]) -> Path:
    torch.manual_seed(0)
    classifier = build_classifier("smallnet", classes, task="multilabel")
    save_checkpoint(path, classifier, recipe={}, metrics={}, provenance={})
    return path


def test_other_classes_leave_nothing_behind(tmp_path: Path) -> None:
    other = saved(tmp_path / "ft.pt", ["owl", "cat"])
    for work in (evaluate, compute_maps):
        with pytest.raises(ConfigError, match="a classifier of the data set's 8 classes, got 2"):
            work("gradcam", out=tmp_path / "out", checkpoint=other, data=DATA)
    assert not (tmp_path / "out").exists()


def test_classes_matched_by_mere_number_are_said(tmp_path: Path) -> None:
    write_wsol(tmp_path / "lists")
    for name in ("x", "y,z"):
        write_image(tmp_path / f"images/val/{name}.png")
    data, said = f"wsol:{tmp_path}/lists,{tmp_path}/images", list[str]()
    for more, messages in ((5, 1), (0, 0)):
        said.clear()
        named = [f"bird {n}" for n in range(4 + more)]
        evaluate(
            "cam", checkpoint=saved(tmp_path / "ft.pt", named), data=data, metrics=METRICS, notice=said.append
        )
        assert len(said) == messages
        assert all("0 is 'bird 0'" in line for line in said)


@pytest.mark.parametrize(
    ("maps", "options", "words"),
    [
        ("center", {"tta": "flop"}, "tta: expected flip"),
        ("runs/nosuch", {}, "--maps runs/nosuch: expected a folder of maps, a file of boxes or a method"),
        ("gradcam:foo=1", {}, "gradcam: expected an option of the method, got 'foo'"),
        (
            "center",
            {"settings": ("maps.normalize=max",)},
            "with --set maps.normalize=max: maps: expected a known",
        ),
    ],
)
def test_mistakes_are_called_by_what_was_typed(maps: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(WsodError) as fault:
        evaluate(maps, data=DATA, **options)
    assert words in str(fault.value)


def test_labels_alone_have_no_scores(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", labels_csv="image,label\na,dog\nsub/b.jpg,cat\n")
    with pytest.raises(DataError, match="expected boxes, for max_box_acc, got none"):
        evaluate("center", out=tmp_path / "out", data=f"folder:{root}", metrics=["max_box_acc"])
    assert not (tmp_path / "out/result.json").exists()


def test_a_method_whose_output_folder_is_called_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random").mkdir()  # without maps
    for _ in range(2):  # a run goes on in its own folder
        evaluate(["center", "random"], out="center", data=DATA, metrics=METRICS, save_maps=True)
    assert compute_maps("uniform", ".", data=DATA)[0] == 3
    assert compute_maps("uniform", ".", data=DATA)[0] == 0
    with pytest.raises(ConfigError, match=r"Write \./uniform for the folder, uniform: for the method"):
        evaluate("uniform", data=DATA)
    whole = evaluate(["uniform:", "./uniform"], data=DATA, metrics=METRICS)
    assert [row.maps for row in whole.rows] == ["uniform:", "uniform"]


def test_methods_have_folders_of_their_own(tmp_path: Path) -> None:
    names = [
        "lcam:fit=a/b.pt",
        "lcam:fit=a_b.pt",
        "lcam:fit=" + "é/" * 300,
        "lcam:fit=" + "é/" * 301,
        "gradcam",
    ]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert folders[-1] == "gradcam"
    for folder in folders:
        (tmp_path / folder).mkdir()  # neither too long nor twice


def test_maps_of_other_images_say_whose_they_are(tmp_path: Path) -> None:
    compute_maps("center", tmp_path, data=DATA)
    with pytest.raises(MapError) as fault:
        evaluate(tmp_path / "center", data="shapes:count=4,size=48")
    assert f"has maps of 3 images of {DATA}, split test." in str(fault.value)


def test_a_result_goes_with_the_maps_it_was_scored_on(tmp_path: Path) -> None:
    """A second run that is stopped leaves no result beside maps of its own."""
    options = {"data": DATA, "metrics": METRICS, "save_maps": True}
    evaluate("center", out=tmp_path, **options)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate("center", out=tmp_path, progress=stop, **options)
    assert (tmp_path / "result.json").exists()
    with pytest.raises(KeyboardInterrupt):
        evaluate("center", out=tmp_path, progress=stop, settings=("maps.frame=32",), **options)
    assert not (tmp_path / "result.json").exists()


def test_what_differs_in_a_table_is_named(tmp_path: Path) -> None:
    MapStore(tmp_path, 3).begin({"maps": "cam", "checkpoint": {"arch": "a", "sha256": "1"}})
    with pytest.raises(ConfigError, match=r"made with checkpoint.sha256 = '2', got checkpoint.sha256 = '1'"):
        MapStore(tmp_path, 3).begin({"maps": "cam", "checkpoint": {"arch": "a", "sha256": "2"}})


def test_no_two_runs_write_one_folder_of_maps(tmp_path: Path) -> None:
    """`wsod maps --out X/maps` and `wsod evaluate --out X --save-maps` mean the same one."""
    with only_writer(tmp_path / "maps"), pytest.raises(OutputError, match="a folder no one else writes to"):
        evaluate("center", out=tmp_path, data=DATA, metrics=METRICS, save_maps=True)
    evaluate("center", out=tmp_path, data=DATA, metrics=METRICS, save_maps=True)


@pytest.mark.parametrize("name", ["maps", ".maps", "maps/center"])
def test_links_do_not_lead_out_of_the_output_folder(tmp_path: Path, name: str) -> None:
    outside, link = tmp_path / "outside", tmp_path / "out" / name
    outside.mkdir()
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(OutputError, match="a folder of the output folder's own, got a link to"):
        evaluate("center", out=tmp_path / "out", data=DATA, metrics=METRICS, save_maps=True)
    assert not list(outside.iterdir())
    (tmp_path / "run").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "run")
    evaluate("center", out=tmp_path / "linked", data=DATA, metrics=METRICS, save_maps=True)  # as it was typed


def test_pictures_are_not_put_among_the_images(tmp_path: Path) -> None:
    write_image(tmp_path / "data/cat/a.png")
    data = f"folder:{tmp_path / 'data'}"
    for work in (evaluate, compute_maps):
        with pytest.raises(ConfigError, match="pictures in it are images of the data set"):
            work("center", out=tmp_path / "data/run", data=data, save_overlays=1)
    assert not (tmp_path / "data/run").exists()


@pytest.mark.parametrize("name", ["字" * 82, "a" * 245])
def test_names_as_long_as_a_file_s_may_be(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / f"data/images/{name}.png")
    (tmp_path / "data/boxes.csv").write_text(f"image,label,x0,y0,x1,y1\n{name},dog,0,0,9,9\n")
    options = {
        "data": f"folder:{tmp_path / 'data'}",
        "metrics": METRICS,
        "save_maps": True,
        "save_overlays": 1,
    }
    result = evaluate("center", out=tmp_path / "out", **options)
    assert [case.image for case in result.cases] == [name]
    assert len(list((tmp_path / "out/overlays").rglob("*.png"))) == 1


def test_a_map_that_is_lost_is_made_again_in_its_batch(tmp_path: Path) -> None:
    """Alone, its last bits could be others; what is whole is not written again."""
    options = {
        "data": DATA,
        "batch_size": 2,
        "checkpoint": saved(tmp_path / "ft.pt", list(open_dataset(DATA).classes)),
    }
    compute_maps("gradcam", tmp_path, **options)
    store = tmp_path / "gradcam"
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.glob("*.npz")}
    (store / "test_00001.npz").unlink()
    asked: list[int] = []
    image = Shapes.image

    def seen(dataset: Shapes, index: int) -> Any:
        asked.append(index)
        return image(dataset, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shapes, "image", seen)
        assert compute_maps("gradcam", tmp_path, **options)[0] == 1
    assert sorted(set(asked)) == [0, 1]
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.glob("*.npz")}
    assert {name: pair[0] for name, pair in after.items()} == {name: pair[0] for name, pair in before.items()}
    assert after["test_00000.npz"] == before["test_00000.npz"]


def test_maps_that_may_not_be_read_are_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat

    def refuse(path: Path, **options: Any) -> Any:
        if path == tmp_path / "x":
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(
        ConfigError, match=r"--maps .*/x: expected a path that can be read, got Permission denied"
    ):
        evaluate(f"{tmp_path}/x", data=DATA)
