"""Memory that runs out: batches are halved, numbers stay, it is told once; one image too many is one line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wsod.errors import ModelError
from wsod.evaluation import compute_maps, evaluate
from wsod.maps import METHODS, tape_for
from wsod.memory import Room, ran_out
from wsod.models import Classifier, build_classifier, save_checkpoint
from wsod.results import Result

FULL = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


class Small:
    """The network's memory, for so many images at once; what was run, in images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, holds: int, error: Exception | None = None) -> None:
        self.runs: list[int] = []
        whole = Classifier.forward

        def forward(classifier: Classifier, images: Tensor, auxiliary: bool = False) -> Any:
            if len(images) > holds:
                self.runs.append(-len(images))
                raise error or RuntimeError(FULL)
            self.runs.append(len(images))
            return whole(classifier, images, auxiliary)

        monkeypatch.setattr(Classifier, "forward", forward)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage among everything a test run imports takes long."""
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    from wsod.data import open_dataset

    torch.manual_seed(0)
    classifier = build_classifier("smallnet", open_dataset("shapes").classes, task="multilabel", size=32)
    save_checkpoint(tmp_path / "ft.pt", classifier, recipe={}, metrics={}, provenance={})
    return tmp_path / "ft.pt"


@pytest.mark.parametrize("items", [list(range(13)), torch.arange(13)])
def test_parts_are_halved_and_stay_so(items: Any, caplog: pytest.LogCaptureFixture) -> None:
    room, tried = Room("numbers"), []

    def work(part: Any) -> list[int]:
        tried.append(len(part))
        if len(part) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return [int(item) for item in part]

    for _ in range(2):
        assert [item for part in room.over(items, work) for item in part] == list(range(13))
    assert tried == [13, 6, 3, 3, 3, 3, 1, 3, 3, 3, 3, 1]
    assert caplog.messages == ["out of memory: from here on 3, not 13 numbers"]
    assert list(room.over(items[:0], work)) == []


def test_other_faults_and_single_items_are_raised() -> None:
    for error, items in ((RuntimeError("shapes"), [1, 2]), (MemoryError(), [1]), (KeyError("a"), [1, 2])):

        def work(part: list[int], error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)):
            list(Room("numbers").over(items, work))


def test_what_says_that_memory_ran_out() -> None:
    kinds = [RuntimeError(FULL), MemoryError("x"), torch.cuda.OutOfMemoryError("x")]
    kinds += [RuntimeError("MPS backend out of memory"), RuntimeError("cuDNN: CUDNN_STATUS_ALLOC_FAILED")]
    assert all(map(ran_out, kinds))
    assert not any(map(ran_out, [RuntimeError("device-side assert"), ValueError("out of memory"), OSError()]))


def test_a_batch_is_halved(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"checkpoint": checkpoint, "data": "shapes:count=12,size=48", "device": "cpu"}
    assert compute_maps(["gradcam", "gradient"], tmp_path / "whole", batch_size=12, **options) == (12, [])
    small = Small(monkeypatch, 3)
    assert compute_maps(["gradcam", "gradient"], tmp_path / "parts", batch_size=9, **options) == (12, [])
    assert [run for run in small.runs if run < 0] == [-9, -4]
    assert caplog.messages == ["out of memory: from here on 2, not 9 images a batch"]
    files = sorted(path.relative_to(tmp_path / "whole") for path in tmp_path.glob("whole/*/*.npz"))
    assert len(files) == 24
    for file in files:
        found, expected = (np.load(tmp_path / folder / file)["values"] for folder in ("parts", "whole"))
        # but for what the size of a batch does to the last bits
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_one_image_that_does_not_fit_is_one_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Small(monkeypatch, 0)
    options: dict[str, Any] = {"checkpoint": checkpoint, "data": "shapes:count=3,size=48", "device": "cpu"}
    with pytest.raises(ModelError, match="image test_00000: expected room for one image, got out of memory"):
        evaluate("gradcam", **options)
    skipped = evaluate(["gradcam", "center"], on_error="skip", **options).skipped
    assert len(skipped) == 3
    assert all("Choose a smaller --size" in one["error"] for one in skipped)


def test_metrics_that_ask_the_classifier(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"checkpoint": checkpoint, "data": "shapes:count=4,size=48", "device": "cpu"}
    options |= {"config": "faithfulness", "metrics": ["average_drop"], "labels": "predicted"}

    def values(result: Result) -> list[float]:
        return [case.scores["average_drop"] for case in result.cases]

    expected = evaluate("center", batch_size=4, **options)
    small = Small(monkeypatch, 1)
    assert values(evaluate("center", batch_size=4, **options)) == pytest.approx(values(expected), rel=1e-5)
    assert min(small.runs) == -4
    Small(monkeypatch, 0)
    with pytest.raises(ModelError, match="expected room for one view, got out of memory on cpu"):
        evaluate("center", **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rise", {"masks": 6, "chunk": 4}),
        ("occlusion", {"window": 0.5, "stride": 0.5}),
        ("scorecam", {}),
        ("smoothgrad", {"samples": 5}),
        ("integratedgradients", {"steps": 5}),
        ("extremalperturbation", {"iterations": 2, "areas": (0.1, 0.3)}),
    ],
)
def test_inner_batches_are_halved(name: str, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    images, cases = torch.randn(1, 3, 32, 32), torch.tensor([[0, 0], [0, 1]])
    classifier = build_classifier("smallnet", ["a", "b"], size=32).eval()
    method = METHODS[name]
    expected = method(tape_for(classifier, images, [method]), cases, **options)
    with monkeypatch.context() as patch:
        small = Small(patch, 1)
        found = method(tape_for(classifier, images, [method]), cases, **options)
    assert min(small.runs) < -1
    np.testing.assert_allclose(found.detach(), expected.detach(), rtol=1e-4, atol=1e-6)


def test_the_line_reaches_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    """Where nobody set up logging."""
    logger = logging.getLogger("wsod")
    handlers, logging.root.handlers, logger.propagate = logging.root.handlers, [], True
    try:
        list(Room("numbers").over([1, 2], lambda part: 1 if len(part) == 1 else _raise(MemoryError())))
    finally:
        logging.root.handlers = handlers
    assert capfd.readouterr().err == "out of memory: from here on 1, not 2 numbers\n"


def _raise(error: Exception) -> int:
    raise error
