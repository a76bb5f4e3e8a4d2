"""Classifier and maps as one ONNX graph, run by onnxruntime, against the maps of the library."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from click.testing import CliRunner

from tests.maps.networks import CLASSES, make
from tests.maps.test_tape import same, state
from wsod.cli import main
from wsod.errors import ConfigError, ModelError
from wsod.maps import METHODS, attention_maps
from wsod.maps.export import EXPORTABLE, export_onnx
from wsod.models import Classifier, build_classifier, save_checkpoint

needs_onnx = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def network(name: str) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_classifier(name, CLASSES, size=64).eval()


def check(classifier: Classifier, path: str, methods: tuple[str, ...]) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["logits", *methods]
    for n in (1, 3):  # the graph was traced with two images
        images = torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(n))
        found = dict(
            zip(names, map(torch.from_numpy, session.run(None, {"images": images.numpy()})), strict=True)
        )
        labels = [list(range(len(CLASSES)))] * n
        expected = attention_maps(classifier, images, labels, methods)
        torch.testing.assert_close(found["logits"], expected.logits, rtol=1e-4, atol=1e-4)
        for method in methods:
            maps = expected.maps[method].unflatten(0, (n, len(CLASSES)))
            if not METHODS[method].class_specific:
                assert torch.equal(maps[:, 0], maps[:, -1])
                maps = maps[:, 0]
            assert found[method].shape == maps.shape
            assert (found[method] - maps).abs().max() < 1e-4 * maps.abs().max(), method
    about = json.loads(session.get_modelmeta().custom_metadata_map["wsod"])
    assert about["classes"] == list(CLASSES)
    assert about["preprocess"]["size"] == 64


@pytest.mark.slow
@needs_onnx
def test_every_exportable_map_on_the_command_line(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    classifier = network("smallnet")
    save_checkpoint(tmp_path / "ft.pt", classifier, recipe={}, metrics={}, provenance={})
    options = [part for method in EXPORTABLE for part in ("--maps", method)]
    files = ["--checkpoint", str(tmp_path / "ft.pt"), "--out", str(tmp_path / "model.onnx")]
    result = CliRunner().invoke(main, ["export", *options, *files])
    assert result.exit_code == 0, result.output
    assert "model.onnx" in result.output
    check(classifier, str(tmp_path / "model.onnx"), EXPORTABLE)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize(
    ("name", "methods"),
    [("resnet18", EXPORTABLE), ("squeezenet1_1", ("cam", "eigencam"))],
)
def test_torchvisions_networks(tmp_path, name, methods):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    classifier = network(name).train()  # exported as it evaluates, and left as it was
    before = state(classifier)
    export_onnx(classifier, tmp_path / "model.onnx", methods)
    assert same(state(classifier), before)
    check(classifier.eval(), str(tmp_path / "model.onnx"), methods)


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match=r"maps of one forward pass \(cam, .*eigencam\), got 'scorecam'"):
        export_onnx(network("smallnet"), path, ["scorecam"])
    deep = make("deep")
    deep.preprocess = network("smallnet").preprocess
    with pytest.raises(ModelError, match="linear in the average-pooled features"):
        export_onnx(deep.float(), path, ["cam"])
    with pytest.raises(ModelError, match="Export cam or eigencam"):
        export_onnx(network("squeezenet1_1"), path, ["gradcam"])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"onnxscript to be installed.*pip install"):
        export_onnx(network("smallnet"), path)
    assert not path.exists()
