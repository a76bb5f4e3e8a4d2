from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wsod.errors import CheckpointError, ConfigError
from wsod.models import build_classifier, load_classifier, read_checkpoint, save_checkpoint

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def trained():
    torch.manual_seed(0)
    classifier = build_classifier("smallnet", CLASSES, task="multilabel", size=64)
    classifier(torch.randn(4, 3, 64, 64))  # moves batch normalisation
    return classifier.eval()


@pytest.fixture
def ft(tmp_path, trained):
    path = tmp_path / "ft.pt"
    save_checkpoint(
        path,
        trained,
        recipe={"train": {"lr": 1e-4, "path": Path("a/b")}},
        metrics={"map": np.float64(0.5)},
        provenance={"seed": 3},
        extra={"optimiser": {0: torch.ones(2)}, "step": 7},
    )
    return path


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_round_trip(ft, trained):
    found = load_classifier(ft)
    assert torch.equal(found(images()), trained(images()))
    for name in ("arch", "head", "classes", "task", "target_layer", "preprocess", "layout", "prefix"):
        assert getattr(found, name) == getattr(trained, name)
    assert not found.training
    assert len(found.sha256) == 64
    contents = read_checkpoint(ft)
    assert contents["recipe"] == {"train": {"lr": 1e-4, "path": "a/b"}}
    assert contents["metrics"] == {"map": 0.5}
    assert contents["provenance"]["seed"] == 3
    assert contents["provenance"]["torch"] == torch.__version__
    assert contents["extra"]["step"] == 7
    assert torch.equal(contents["extra"]["optimiser"][0], torch.ones(2))
    assert load_classifier(ft, target_layer="blocks.0").target_layer == "blocks.0"
    assert load_classifier(ft, size=96).preprocess.size == 96


def test_a_checkpoint_serves_as_weights_of_another_class_count(ft, trained):
    classifier = build_classifier("smallnet", ["a", "b"], weights=ft)
    assert "the layer fc is new (2 classes)" in classifier.loaded
    assert torch.equal(classifier.network.stem[0][0].weight, trained.network.stem[0][0].weight)
    same = build_classifier("smallnet", CLASSES, weights=ft)
    assert same.loaded == str(ft)
    assert torch.equal(same.network.fc.weight, trained.network.fc.weight)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "module."])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_bare_weights_in_any_dress(tmp_path, trained, wrapper, suffix):
    state = {key: value.clone() for key, value in trained.network.state_dict().items()}
    if suffix == ".safetensors" and wrapper in ("state_dict", "model"):
        wrapper = "model."
    if wrapper is not None and wrapper.endswith("."):
        state = {wrapper + key: value for key, value in state.items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper in ("state_dict", "model") else state, path)
    found = load_classifier(path, arch="smallnet", classes=CLASSES, size=64)
    assert torch.equal(found(images()), trained(images()))
    assert load_classifier(path, arch="smallnet").classes == ("0", "1", "2")
    with pytest.raises(CheckpointError, match="Pass --arch NAME"):
        load_classifier(path)


def test_half_precision_storage_is_converted(tmp_path, trained):
    state = {k: v.half() if v.is_floating_point() else v for k, v in trained.network.state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    found = load_classifier(tmp_path / "half.safetensors", arch="smallnet", classes=CLASSES, size=64)
    assert next(found.parameters()).dtype == torch.float32
    torch.testing.assert_close(found(images()), trained(images()), rtol=0.02, atol=0.02)


def test_save_is_whole_or_not_at_all(ft, trained, monkeypatch):
    before = ft.read_bytes()

    def breaks(contents: object, file: IO[bytes]) -> None:
        file.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", breaks)
    with pytest.raises(CheckpointError, match="disk full"):
        save_checkpoint(ft, trained, recipe={}, metrics={}, provenance={})
    assert ft.read_bytes() == before
    assert [path.name for path in ft.parent.iterdir()] == ["ft.pt"]


def test_only_plain_values_are_saved(tmp_path, trained):
    with pytest.raises(CheckpointError, match=r"extra\.scheduler: expected .* got object"):
        save_checkpoint(
            tmp_path / "x.pt", trained, recipe={}, metrics={}, provenance={}, extra={"scheduler": object()}
        )
    assert not list(tmp_path.iterdir())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    for name, culprit in (("evil.pt", "system"), ("raw.pt", ""), ("module.pt", r"torch\.nn\.")):
        for read in (read_checkpoint, load_classifier):
            with pytest.raises(CheckpointError, match=rf"{culprit}.*could run any code.*state_dict"):
                read(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def test_a_checkpoint_cannot_make_us_import_a_module(tmp_path, trained, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bait.py").write_text(
        "import pathlib\npathlib.Path('imported').touch()\n"
        "from wsod.models.smallnet import SmallNet as make\n"
    )
    trained.arch = "bait:make"
    save_checkpoint(tmp_path / "ft.pt", trained, recipe={}, metrics={}, provenance={})
    with pytest.raises(CheckpointError, match="pass --arch bait:make if you trust it"):
        load_classifier(tmp_path / "ft.pt")
    assert not (tmp_path / "imported").exists()
    found = load_classifier(tmp_path / "ft.pt", arch="bait:make")
    assert torch.equal(found(images()), trained(images()))


@pytest.mark.parametrize("contents", [b"", b"nonsense", b"PK\x03\x04 not a zip"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files(tmp_path, contents, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(contents)
    with pytest.raises(CheckpointError, match="x" + suffix):
        load_classifier(path, arch="smallnet")


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_classifier(tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="a table of tensors, got list"):
        load_classifier(tmp_path / "list.pt", arch="smallnet")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(CheckpointError, match="no tensors, but: epoch"):
        load_classifier(tmp_path / "epoch.pt", arch="smallnet")
    torch.save({"format": "wsod-checkpoint-9"}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="newer version"):
        load_classifier(tmp_path / "new.pt")
    torch.save({"format": "wsod-checkpoint-1", "arch": "smallnet"}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="none of classes, head"):
        load_classifier(tmp_path / "part.pt")


def test_weights_of_another_architecture(tmp_path, trained, ft):
    path = tmp_path / "w.pt"
    torch.save(trained.network.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"100 missing \(conv1.weight, .*unknown \(stem.*Pass --arch"):
        load_classifier(path, arch="resnet18", classes=CLASSES)
    with pytest.raises(CheckpointError, match="missing"):
        build_classifier("resnet18", CLASSES, weights=path)
    with pytest.raises(CheckpointError, match="Leave --arch out"):
        load_classifier(ft, arch="resnet18")


def test_weights_of_another_class_count(tmp_path, trained, ft):
    path = tmp_path / "w.pt"
    torch.save(trained.network.state_dict(), path)
    with pytest.raises(
        CheckpointError, match=r"2 classes in fc.weight and fc.bias, got 3\. Pass the 3 class"
    ):
        load_classifier(path, arch="smallnet", classes=["a", "b"])
    with pytest.raises(CheckpointError, match="expected 2 classes, got 3"):
        load_classifier(ft, classes=["a", "b"])
    renamed = load_classifier(ft, classes=["Katze", "Hund", "Eule"])
    assert renamed.classes == ("Katze", "Hund", "Eule")


def test_a_failed_load_changes_nothing(tmp_path, trained):
    state = dict(trained.network.state_dict())
    state["fc.weight"] = torch.zeros(3, 5)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"1 of another shape \(fc.weight\)"):
        load_classifier(tmp_path / "w.pt", arch="smallnet", classes=CLASSES)


@pytest.mark.slow
def test_old_densenet_key_names(tmp_path):
    classifier = build_classifier("densenet121", ["a", "b"])
    state = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for key, value in classifier.network.state_dict().items()
        if "num_batches_tracked" not in key
    }
    assert any("norm.1.weight" in key for key in state)
    torch.save(state, tmp_path / "old.pth")
    found = load_classifier(tmp_path / "old.pth", arch="densenet121")
    for a, b in zip(found.network.parameters(), classifier.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_auxiliary_classifiers_in_a_file_are_left_out(tmp_path):
    classifier = build_classifier("googlenet", ["a", "b"])
    state = dict(classifier.network.state_dict()) | {"aux1.fc2.weight": torch.zeros(2, 4)}
    torch.save(state, tmp_path / "aux.pt")
    load_classifier(tmp_path / "aux.pt", arch="googlenet")


@pytest.mark.slow
def test_position_embeddings_at_another_size(tmp_path):
    torch.manual_seed(0)
    classifier = build_classifier("vit_b_32", ["a", "b"], size=64)
    torch.save(classifier.network.state_dict(), tmp_path / "vit.pt")
    larger = load_classifier(tmp_path / "vit.pt", arch="vit_b_32", size=128)
    embedding = larger.network.encoder.pos_embedding
    assert embedding.shape == (1, 17, 768)
    assert torch.equal(embedding[:, 0], classifier.network.encoder.pos_embedding[:, 0])
    assert larger(torch.zeros(1, 3, 128, 128)).shape == (1, 2)
    save_checkpoint(tmp_path / "ft.pt", larger, recipe={}, metrics={}, provenance={})
    again = load_classifier(tmp_path / "ft.pt")
    assert again.preprocess.size == 128


def test_new_head_of_a_convolutional_classifier(tmp_path):
    torch.manual_seed(0)
    source = build_classifier("squeezenet1_1", [str(i) for i in range(1000)])
    torch.save(source.network.state_dict(), tmp_path / "w.pt")
    classifier = build_classifier("squeezenet1_1", ["a", "b"], weights=tmp_path / "w.pt")
    assert classifier.network.classifier[1].weight.shape == (2, 512, 1, 1)
    assert "classifier.1 is new" in classifier.loaded
    names = load_classifier(tmp_path / "w.pt", arch="squeezenet1_1").classes
    assert names[:2] == ("tench", "goldfish")


def test_default_weights_are_torchvisions_download(monkeypatch):
    asked = []
    source = build_classifier("squeezenet1_1", [str(i) for i in range(1000)])

    def download(self: object, *args: object, **options: object) -> dict[str, torch.Tensor]:
        asked.append((str(self), options))
        return source.network.state_dict()

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", download)
    classifier = build_classifier("squeezenet1_1", ["a", "b", "c"], weights="default")
    assert asked == [("SqueezeNet1_1_Weights.IMAGENET1K_V1", {"progress": True, "check_hash": True})]
    assert torch.equal(classifier.network.features[0].weight, source.network.features[0].weight)
    with pytest.raises(CheckpointError, match="published weights"):
        build_classifier("smallnet", ["a"], weights="default")


def test_no_classes():
    with pytest.raises(ConfigError, match="at least one class name"):
        build_classifier("smallnet", [])


class Prefixed(nn.Module):
    """A network whose own keys all start with `model.`, as some wrappers' do."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.model.append(nn.Linear(4, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def test_a_prefix_that_belongs_to_the_network_stays(tmp_path):
    source = Prefixed(3)
    for name, state in (
        ("own.pt", source.state_dict()),
        ("wrapped.pt", {f"module.{key}": value for key, value in source.state_dict().items()}),
    ):
        torch.save(state, tmp_path / name)
        found = load_classifier(tmp_path / name, arch=f"{__name__}:Prefixed", size=32)
        assert torch.equal(found.network.model[0].weight, source.model[0].weight)
        assert found.target_layer == "model.1"
