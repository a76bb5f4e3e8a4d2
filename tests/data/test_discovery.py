"""Object discovery as it is distributed: classes by folder, noise images, Jaccard and precision of maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.files import write_image, write_mask
from wsod import evaluate
from wsod.data import check, open_dataset
from wsod.errors import ConfigError, DataError


def write_discovery(root: Path) -> Path:
    """A plane of 6x4 and one that is noise, and a car of two parts; 20x10 each."""
    parts = {"Airplane100/0001": [(slice(2, 6), slice(3, 9))], "Airplane100/0002": []}
    parts["Car100/0001"] = [(slice(0, 2), slice(0, 2)), (slice(5, 10), slice(15, 20))]
    for name, regions in parts.items():
        folder, stem = name.split("/")
        truth = np.zeros((10, 20))
        for region in regions:
            truth[region] = 255
        write_image(root / folder / f"{stem}.jpg")
        write_mask(root / folder / "GroundTruth" / f"{stem}.png", truth)
    return root


def test_its_layout(tmp_path: Path) -> None:
    dataset = open_dataset(f"object-discovery:{write_discovery(tmp_path)}")
    assert dataset.classes == ("airplane", "car")
    assert dataset.ids == ("Airplane100/0001", "Airplane100/0002", "Car100/0001")
    plane, noise, car = dataset
    assert (plane.boxes.tolist(), plane.labels.tolist()) == ([[3, 2, 9, 6]], [0])
    assert car.boxes.tolist() == [[0, 0, 2, 2], [15, 5, 20, 10]]
    assert (noise.boxes.shape, noise.labels.tolist(), noise.masks.of(0).any()) == ((0, 4), [0], False)
    assert check(dataset).faults == []
    assert open_dataset(dataset.spec, "car").ids == ("Car100/0001",)


def test_jaccard_leaves_noise_images_out_and_precision_does_not(tmp_path: Path) -> None:
    data = f"object-discovery:{write_discovery(tmp_path / 'Data')}"
    claims = {"Airplane100/0001": (slice(2, 6), slice(3, 6)), "Airplane100/0002": (slice(0, 5), slice(0, 20))}
    for name, claim in claims.items():
        values = np.zeros((10, 20), np.float32)
        values[claim] = 1.0
        (tmp_path / "maps" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "maps" / f"{name}.npy", values)
    result = evaluate(tmp_path / "maps", data=data, split="airplane", config="object-discovery")
    score = result.rows[0].scores["jaccard"]
    # half of the plane, nothing else: J = 12/24; right 188 of 200 pixels there, 100 of 200 on the noise image
    assert score["value"] == pytest.approx(0.5)
    assert score["precision"] == pytest.approx((188 / 200 + 100 / 200) / 2)
    assert (score["count"], score["skipped"]) == (1, 1)


def test_what_is_not_so_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="GroundTruth"):
        open_dataset(f"object-discovery:{tmp_path}")
    write_discovery(tmp_path)
    (tmp_path / "Car100/GroundTruth/0001.png").unlink()
    with pytest.raises(DataError, match="0001"):
        open_dataset(f"object-discovery:{tmp_path}", "car")[0]
    (tmp_path / "Car").mkdir()
    (tmp_path / "Car/GroundTruth").mkdir()
    with pytest.raises(DataError, match="one folder a class"):
        open_dataset(f"object-discovery:{tmp_path}")
