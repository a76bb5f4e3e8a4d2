"""L-CAM against loops over images and cells, what a fit changes, its file and its command."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor

from tests.maps.networks import CLASSES, batch, make
from wsod.cli import main
from wsod.errors import CheckpointError, ConfigError
from wsod.maps import METHODS, Tape, attention_maps
from wsod.maps.fitted import Fitted
from wsod.maps.lcam import _masked_scores, area, fit_lcam, variation
from wsod.models import build_classifier, save_checkpoint


def test_area_and_variation_are_loops_over_cells() -> None:
    masks = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes, changes = [], 0.0
    for mask in masks.tolist():
        for y in range(4):
            for x in range(5):
                sizes.append((mask[y][x] + 5e-4) ** 0.3)
                changes += (mask[y + 1][x] - mask[y][x]) ** 2 if y < 3 else 0
                changes += (mask[y][x + 1] - mask[y][x]) ** 2 if x < 4 else 0
                changes += 0.3 * mask[y][x] ** 2 if y in (0, 3) or x in (0, 4) else 0
    assert float(area(masks)) == pytest.approx(sum(sizes) / len(sizes), rel=1e-12)
    assert float(variation(masks)) == pytest.approx(changes / 6, rel=1e-12)


def test_what_is_left_of_features_and_images() -> None:
    """Each image by itself: features times the mask through the head; the image mixed with black."""
    classifier, images = make("relu"), batch(2)
    tape = Tape(classifier, images)
    features = tape.features.detach()
    masks = torch.rand(3, *features.shape[2:], generator=torch.Generator().manual_seed(0)).double()
    masks.requires_grad_()
    rows = torch.tensor([0, 1, 1])
    left = _masked_scores(tape, masks, rows, "features")
    mean, std = (
        torch.tensor(v, dtype=images.dtype)[:, None, None]
        for v in (classifier.preprocess.mean, classifier.preprocess.std)
    )
    dark = _masked_scores(tape, masks, rows, "image")
    for place, row in enumerate(rows.tolist()):
        pooled = (features[row] * masks[place]).mean((1, 2))
        expected = classifier.network.fc(pooled)
        torch.testing.assert_close(left[place], expected)
        one = masks[place]
        stretched = (one - one.min()) / (one.max() - one.min())
        size = images.shape[2:]
        kept = F.interpolate(stretched[None, None], size=size, mode="bilinear", align_corners=False)[0]
        pixels = images[row] * std + mean
        torch.testing.assert_close(dark[place], classifier(((pixels * kept - mean) / std)[None])[0])
    for scores in (left, dark):
        (gradient,) = torch.autograd.grad(scores.sum(), masks, retain_graph=True)
        assert gradient.flatten(1).any(1).all()


def pairs(images: Tensor, labels: Tensor, n: int = 8) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(n), labels.split(n), strict=True))


@pytest.mark.parametrize("masked", ["features", "image"])
def test_a_fit_keeps_the_answer_with_less_of_the_image(masked: str) -> None:
    classifier, images = make("relu"), batch(16, seed=3)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    labels = torch.zeros(16, len(CLASSES))
    options = {"masked": masked, "lr": 0.1, "epochs": 10, "size": 0.5}
    found = fit_lcam(classifier, pairs(images, labels), **options)  # type: ignore[arg-type]
    start = fit_lcam(classifier, pairs(images, labels), **{**options, "lr": 1e-12})  # type: ignore[arg-type]
    tape, rows = Tape(classifier, images), torch.arange(16)
    top = tape.logits.argmax(1)

    def objective(fit: Fitted) -> float:
        weights, bias = (fit.tensors[name].double()[top] for name in ("weights", "bias"))
        masks = torch.einsum("nd,ndhw->nhw", weights, tape.features.detach()) + bias[:, None, None]
        masks = masks.sigmoid()
        error = F.cross_entropy(_masked_scores(tape, masks, rows, masked), top)  # type: ignore[arg-type]
        return float((1.5 * error + 0.5 * area(masks) + 0.01 * variation(masks)).detach())

    assert objective(found) < objective(start)
    assert found.about["images"] == 16
    assert math.isfinite(found.about["last"]["loss"])
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert all(p.grad is None for p in classifier.parameters())
    assert not any(m._forward_hooks for m in classifier.modules())


def test_map_is_the_convolution_before_its_sigmoid(tmp_path: Path) -> None:
    classifier, images = make("relu"), batch(4)
    labels = torch.eye(4, len(CLASSES))
    found = fit_lcam(classifier, pairs(images, labels), labels="truth", lr=0.3, epochs=3)
    path = tmp_path / "fit.pt"
    found.save(path)
    name = f"lcam:fit={path}"
    maps = attention_maps(classifier, images, [[0, 2], [1], [3], [0]], [name]).maps[name]
    features = Tape(classifier, images).features.detach()
    weights, bias = (found.tensors[key].double() for key in ("weights", "bias"))
    for values, (row, label) in zip(maps, [(0, 0), (0, 2), (1, 1), (2, 3), (3, 0)], strict=True):
        expected = sum(weights[label, d] * features[row, d] for d in range(features.shape[1])) + bias[label]
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-8)
    assert METHODS[name].layers == (classifier.target_layer,)


def test_refused(tmp_path: Path) -> None:
    classifier, images = make("relu"), batch(1)
    for options in ({"masked": "both"}, {"labels": "some"}, {"epochs": 0}, {"lr": 0.0}):
        with pytest.raises(ConfigError, match="lcam"):
            fit_lcam(classifier, [], **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="images"):
        fit_lcam(classifier, [])
    with pytest.raises(ConfigError, match="wsod fit lcam"):
        attention_maps(classifier, images, [0], ["lcam"])
    found = fit_lcam(classifier, pairs(images, torch.zeros(1, len(CLASSES))))
    path = tmp_path / "fit.pt"
    Fitted("lcam", ("a", "b", "x", "d"), found.layers, found.tensors, found.about).save(path)
    with pytest.raises(CheckpointError, match=r"such as 'c' for 'x'"):
        attention_maps(classifier, images, [0], [f"lcam:fit={path}"])


def test_from_the_command_line_in_several_epochs(tmp_path: Path) -> None:
    data, out = "shapes:simple=true,size=48,count=6", tmp_path / "fit.pt"
    from wsod.data import open_dataset

    classifier = build_classifier("tinynet", open_dataset(data).classes, size=32)
    save_checkpoint(tmp_path / "ft.pt", classifier, recipe={}, metrics={}, provenance={})
    shared = ["--checkpoint", str(tmp_path / "ft.pt"), "--data", data, "--device", "cpu"]
    run = CliRunner().invoke(main, ["fit", "lcam", *shared, "--set", "epochs=2", "--out", str(out)])
    assert run.exit_code == 0, run.output
    found = Fitted.load(out, "lcam")
    assert found.about["epochs"] == 2
    assert found.about["images"] == 6
    run = CliRunner().invoke(main, ["evaluate", "--maps", f"lcam:fit={out}", *shared, "--limit", "3"])
    assert run.exit_code == 0, run.output
