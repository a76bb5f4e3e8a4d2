"""What goes wrong while training: memory, worker processes, images, a second process on the folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from atcon.config import FinetuneConfig, config_from_tables
from atcon.data import Batch
from atcon.objectives.supervised import Supervised
from atcon.train import Event, finetune, resume
from tests.conftest import ROOT
from tests.data.files import write_image
from wsod.errors import DataError, ModelError, OutputError
from wsod.evaluation import evaluate
from wsod.models import Classifier, read_checkpoint
from wsod.output import only_writer

FULL = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


def made(data: dict[str, Any] | None = None, **stage: Any) -> FinetuneConfig:
    common = {"steps": 2, "batch": 8, "batch_norm": "frozen", "lr": 1e-3, "objectives": {"supervised": {}}}
    table = {
        "data": {"spec": "shapes:count=12,size=48", "workers": 0, **(data or {})},
        "model": {"size": 40},
        "stages": {"only": {**common, **stage}},
    }
    return config_from_tables(table, {}, "test")


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(folder / "last.pt")["state"])


def holding(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """Memory for so many images at once, in training and in evaluation."""
    monkeypatch.setattr("gc.collect", lambda: 0)  # takes long among everything a test run imports
    whole = Classifier.forward

    def forward(classifier: Classifier, batch: torch.Tensor, auxiliary: bool = False) -> Any:
        found = whole(classifier, batch, auxiliary)
        torch.rand(3)  # what was drawn before memory ran out is drawn again
        if len(batch) > images:
            raise RuntimeError(FULL)
        return found

    monkeypatch.setattr(Classifier, "forward", forward)


@pytest.mark.slow
@pytest.mark.parametrize("terms", [{"supervised": {}}, {"supervised": {}, "atcon": {"mask_scale": "std"}}])
def test_a_step_that_does_not_fit_is_split(
    tmp_path: Path, terms: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Exactly the run that accumulates from the beginning, but for evaluation in smaller batches."""
    finetune(made(objectives=terms, accumulate=4), tmp_path / "parts", device="cpu")
    finetune(made(objectives=terms), tmp_path / "whole", device="cpu")
    holding(monkeypatch, 2)
    finetune(made(objectives=terms), tmp_path / "halved", device="cpu")
    assert losses(tmp_path / "halved") == losses(tmp_path / "parts")
    assert losses(tmp_path / "halved") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    parts, halved = state(tmp_path / "parts"), state(tmp_path / "halved")
    assert all(torch.equal(parts[key], halved[key]) for key in parts)
    said = [line for line in caplog.messages if "stage only" in line]
    assert said == ["out of memory: stage only splits a batch into 4 parts from here on"]
    assert sum("an evaluation pass" in line for line in caplog.messages) == 1
    assert torch.load(tmp_path / "halved/state.pt", weights_only=True)["halved"] == 2


def test_parts_that_would_be_another_batch_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding(monkeypatch, 4)
    said = (
        "stage only, step 1: expected room for 7 images, got out of memory on cpu. .* set train.batch=3, or"
    )
    with pytest.raises(ModelError, match=said):
        finetune(made(batch_norm="train"), tmp_path / "a", device="cpu")
    holding(monkeypatch, 0)
    with pytest.raises(ModelError, match=r"got out of memory.*go on with --resume"):
        finetune(made(), tmp_path / "b", device="cpu")  # not even the evaluation before the first step


def test_one_image_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)

    def full(self: Supervised, classifier: Classifier, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        raise MemoryError

    monkeypatch.setattr(Supervised, "__call__", full)
    with pytest.raises(ModelError, match="step 1: expected room for one image, got out of memory on cpu"):
        finetune(made(), tmp_path / "a", device="cpu")


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "a"
    refused = pytest.raises(OutputError, match=r"a: expected a folder no one else writes to, got another")

    def others(event: Event) -> None:
        if event.kind == "step":
            for again in (
                lambda: finetune(made(), out, device="cpu"),
                lambda: resume(out, device="cpu"),
                lambda: evaluate("center", limit=2, out=out),
            ):
                with refused:
                    again()

    finetune(made(), out, device="cpu", progress=others)
    with only_writer(out), refused:
        resume(out, device="cpu")
    resume(out, device="cpu")


HELD = """
import os, sys, time
from pathlib import Path
from wsod.output import only_writer
with only_writer(Path(sys.argv[1])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # it has let go by now
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked and killed")
def test_a_killed_process_lets_go_though_its_children_live(tmp_path: Path) -> None:
    """As the processes that load a training's images do, for a while."""
    command = [sys.executable, "-c", HELD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(OutputError), only_writer(tmp_path):
                pass
            parent.kill()
            parent.wait()
            with only_writer(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def photos(folder: Path) -> str:
    """Twelve photographs with boxes; the last one is damaged."""
    rows = ["image,label,x0,y0,x1,y1"]
    for number in range(12):
        path = write_image(folder / "images" / f"{number:02}.png")
        rows.append(f"{number:02}.png,{'cat' if number % 2 else 'dog'},1,2,9,8")
    path.write_bytes(path.read_bytes()[:-30])
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    return f"folder:{folder}"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(tmp_path: Path, workers: int) -> None:
    data = {
        "spec": photos(tmp_path / "data"),
        "train": "all",
        "val": "all",
        "val_images": 2,
        "workers": workers,
    }
    with pytest.raises(DataError, match=r"11\.png: expected a whole image, got") as caught:
        finetune(made(data, steps=4), tmp_path / "out", device="cpu")
    assert "Traceback" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers in /proc")
def test_a_killed_worker_is_one_line_and_the_run_goes_on(tmp_path: Path) -> None:
    def kill(event: Event) -> None:
        if event.kind == "step" and event.step == 3:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            workers = [
                int(pid) for pid in children if b"fork" not in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
            os.kill(workers[-1], signal.SIGKILL)
            time.sleep(0.5)

    stage: dict[str, Any] = {"steps": 6, "save_every": 1}
    finetune(made({"workers": 2}, **stage), tmp_path / "whole", device="cpu")
    with pytest.raises(DataError, match=r"data.workers: expected processes that load images, got .*--resume"):
        finetune(made({"workers": 2}, **stage), tmp_path / "cut", device="cpu", progress=kill)
    resume(tmp_path / "cut", device="cpu")
    whole, cut = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
