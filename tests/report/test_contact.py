"""`wsod show`: a sheet of one picture's maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wsod.cli import main
from wsod.data import open_dataset
from wsod.report.contact import GAP, PANEL, contact_sheet, maps_of_image, preview


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "one.png"
    open_dataset("shapes").image(0).resize((160, 120)).save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from wsod.models import build_classifier, save_checkpoint

    torch.manual_seed(0)
    classifier = build_classifier("smallnet", open_dataset("shapes").classes, task="multilabel")
    path = tmp_path_factory.mktemp("model") / "ft.pt"
    save_checkpoint(path, classifier, recipe={}, metrics={}, provenance={})
    return path


def test_methods_take_options_as_in_evaluate(photo: Path, checkpoint: Path) -> None:
    names = ["gradcam", "lrp:rule=gamma,gamma=0.5", "lrp", "random:seed=3", "random"]
    _, tiles = maps_of_image(photo, names, checkpoint=checkpoint)
    assert {tile.method for tile in tiles} == set(names)
    found = {tile.method: tile.scores for tile in tiles}
    assert not np.allclose(found["lrp"], found["lrp:rule=gamma,gamma=0.5"], atol=1e-3)
    assert not np.allclose(found["random"], found["random:seed=3"], atol=1e-3)


def test_a_tile_for_every_method_and_class(photo: Path, checkpoint: Path) -> None:
    from wsod.maps import attention_maps
    from wsod.models import load_classifier
    from wsod.scoremaps import resize_map

    classes = open_dataset("shapes").classes
    labels = [classes[2], classes[5]]
    image, tiles = maps_of_image(
        photo, ["layercam", "center", "gradcam"], checkpoint=checkpoint, labels=labels
    )
    assert {(tile.method, tile.label) for tile in tiles} == {
        ("center", ""),
        *((method, label) for method in ("layercam", "gradcam") for label in labels),
    }
    # the very maps of the library, at the picture's size
    classifier = load_classifier(checkpoint)
    tensor, _ = classifier.preprocess(image)
    raw = attention_maps(classifier, tensor[None], [[2]], ["layercam"]).maps["layercam"][0].numpy()
    expected = resize_map(raw, (120, 160))
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    (tile,) = (tile for tile in tiles if (tile.method, tile.label) == ("layercam", labels[0]))
    assert np.allclose(tile.scores, expected, atol=1e-6)
    sheet = contact_sheet(image, tiles, columns=3)
    assert sheet.width == GAP + 3 * (PANEL + GAP)
    text = preview(sheet, 60)
    assert {len(line) for line in text.plain.splitlines()} == {60}


def test_the_predicted_class_if_none_is_named(photo: Path, checkpoint: Path) -> None:
    _, tiles = maps_of_image(photo, ["gradcam"], checkpoint=checkpoint)
    assert len(tiles) == 1
    assert tiles[0].label in open_dataset("shapes").classes


def test_command_writes_a_picture(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(main, ["show", str(photo), "--maps", "center", "--maps", "sobel", "--preview"])
    assert told.exit_code == 0, told.output
    assert "written: one-maps.png" in told.stdout
    assert "▀" in told.stdout
    with Image.open("one-maps.png") as sheet:
        assert sheet.width == GAP + 3 * (PANEL + GAP)
    piped = CliRunner().invoke(main, ["show", str(photo), "--maps", "center", "--out", "x.png"])
    assert "▀" not in piped.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg", "--maps", "center"], "no such file"),
        (["PHOTO", "--maps", "gradcamm"], "Did you mean 'gradcam'"),
        (["PHOTO", "--maps", "gradcam"], "Pass --checkpoint"),
        (["PHOTO", "--maps", "gradcam", "--checkpoint", "FT", "--label", "crss"], "Did you mean 'cross'"),
        (["PHOTO", "--maps", "center", "--out", "x.nothing"], "a file to write"),
        (["PHOTO", "--maps", "center", "--out", "x.psd"], "a file to write, such as maps.png, got 'x.psd'"),
    ],
)
def test_wrong_input_is_one_line(
    photo: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"PHOTO": str(photo), "FT": str(checkpoint)}
    told = CliRunner().invoke(main, ["show", *(names.get(word, word) for word in arguments)])
    assert told.exit_code == 1
    assert message in told.stderr
    assert len([line for line in told.stderr.splitlines() if "expected" in line]) == 1
