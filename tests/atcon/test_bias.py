"""A background that tells the class: plain training takes the shortcut, ISNet does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

from atcon.cli import main
from atcon.experiments.background_bias import BackgroundBias
from atcon.objectives import isnet_loss
from atcon.objectives.heatmap import background_share
from wsod.data import open_dataset
from wsod.errors import ConfigError
from wsod.maps.lrp import composite, relevance
from wsod.maps.tape import Tape
from wsod.models import Classifier, Preprocess

SIDE, PATCH, CORNER = 20, 8, 7


def scenes(count: int, cue: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three textures somewhere on noise; a corner's colour that speaks for the texture, or for another."""
    rng = np.random.default_rng(seed)
    images, masks = rng.random((count, 3, SIDE, SIDE)) * 0.3 + 0.3, np.zeros((count, SIDE, SIDE), bool)
    labels = rng.integers(3, size=count)
    rows, columns = np.mgrid[:PATCH, :PATCH]
    textures = [rows // 2 % 2, columns // 2 % 2, (rows // 2 + columns // 2) % 2]
    for n, label in enumerate(labels):
        y, x = rng.integers(CORNER, SIDE - PATCH, 2)
        images[n, :, y : y + PATCH, x : x + PATCH] += (textures[label] - 0.5) * 0.3
        masks[n, y : y + PATCH, x : x + PATCH] = True
        said = {"match": label, "random": rng.integers(3), "deceive": (label + rng.integers(1, 3)) % 3}[cue]
        images[n, :, :CORNER, :CORNER] = 0.1
        images[n, said, :CORNER, :CORNER] = 0.9
    return torch.from_numpy(images).float(), torch.from_numpy(labels), torch.from_numpy(masks)


def network() -> Classifier:
    layers: list[nn.Module] = []
    for inside, outside, stride in ((3, 16, 1), (16, 24, 2), (24, 32, 1)):
        layers += [nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
    raw = Preprocess(SIDE, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Classifier(body, arch="toy", classes="abc", target_layer="8", preprocess=raw)


def trained(images: Tensor, labels: Tensor, masks: Tensor, isnet: bool) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = network().train()
        optimiser = torch.optim.Adam(classifier.parameters(), lr=5e-3)
        for _ in range(20 if isnet else 8):
            for rows in torch.randperm(len(images)).split(30):
                x, y = images[rows], labels[rows]
                if isnet:
                    loss, _ = isnet_loss(classifier, x, y, masks[rows], p=0.7, decay=1.0, energy=0.1)
                else:
                    loss = F.cross_entropy(classifier(x), y)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
                optimiser.step()
    return classifier.eval()


@pytest.mark.slow
def test_isnet_looks_at_the_object_where_plain_training_reads_the_corner() -> None:
    found = {}
    for name in ("plain", "isnet"):
        classifier = trained(*scenes(600, "match", 0), isnet=name == "isnet")
        for cue in ("match", "random", "deceive"):
            images, labels, masks = scenes(150, cue, 1)
            found[name, cue] = float((classifier(images).argmax(1) == labels).float().mean())
        tape = Tape(classifier, images, needs={"input_gradient", "relevance"})
        cases = torch.stack([torch.arange(150), labels], 1)
        r = relevance(tape, cases, composite(tape, first="zb"))
        found[name, "share"] = float(background_share(r, masks[:, None].float()).mean())
    assert found["plain", "match"] > 0.95
    assert found["plain", "deceive"] < 0.2
    assert found["isnet", "match"] > 0.9
    assert found["isnet", "deceive"] > 0.8
    assert found["isnet", "deceive"] > 0.9 * found["isnet", "random"]
    assert found["plain", "share"] > 5 * found["isnet", "share"]


def test_test_sets_are_the_same_scenes_with_another_cue() -> None:
    views = {view.name: view for view in BackgroundBias(bias=0.9).arms()[1].views}
    assert list(views) == ["match", "random", "deceive", "masks"]
    sets = {cue: open_dataset(views[cue].data, "test") for cue in ("match", "random", "deceive")}
    assert {len(data) for data in sets.values()} == {200}
    for index in range(20):
        scenes = {cue: data.scene(index) for cue, data in sets.items()}
        assert len({scene.labels for scene in scenes.values()}) == 1
        assert all(np.array_equal(s.instances, scenes["match"].instances) for s in scenes.values())
        assert scenes["deceive"].cue not in scenes["deceive"].labels
    train = BackgroundBias(bias=0.9).arms()
    configs = {arm.name: arm.config(3, Path("home")) for arm in train if arm.config is not None}
    data = "shapes:simple=true,kinds=4,upright=true,size=48"
    assert configs["unbiased"].data.spec == f"{data},bias=0.25,cue=match,count=800"
    assert configs["plain"].data.spec == f"{data},bias=0.9,cue=match,count=800"
    lengths = {stage.steps for config in configs.values() for stage in config.stages.values()}
    assert lengths == {600}
    assert configs["isnet"].seed == 3
    assert {view.split for view in BackgroundBias(split="val").arms()[0].views} == {"val"}
    with pytest.raises(ConfigError, match="isnet"):
        BackgroundBias(methods=("plain", "isnett"))


@pytest.mark.slow
def test_background_bias_from_the_command_line(tmp_path: Path) -> None:
    short = [f"--set=train.{method}.steps=2" for method in ("plain", "isnet", "rrr", "gain")]
    arguments = [
        *("experiment", "background-bias", "--seeds", "1", "--out", str(tmp_path), "--device", "cpu"),
        *("--set", "images=40", "--set", "tested=8", "--set", 'methods=["plain", "isnet", "rrr", "gain"]'),
        *short,
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "table.md").read_text("utf-8")
    for row in ("unbiased", "plain", "isnet", "rrr", "gain"):
        assert f"| {row} |" in text
    assert "cue deceives" in text
    assert (tmp_path / "plot.png").is_file()
    assert (tmp_path / "seed0" / "isnet" / "ft.pt").is_file()
    supervision = torch.load(tmp_path / "seed0" / "isnet" / "ft.pt", weights_only=True)["supervision"]
    assert supervision == ["image labels", "masks"]
