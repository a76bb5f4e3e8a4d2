"""Two processes with gloo do what one does, in every regime; they resume, alone or together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from atcon.config import config_from_tables
from atcon.train import finetune, resume
from atcon.world import World
from tests.conftest import ROOT
from wsod.config import dump_toml
from wsod.errors import ConfigError, ProcessError
from wsod.models import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="torchrun and gloo")]

ATCON = {"mask_scale": "std", "mask_slope": 4.0}
REGIMES: dict[str, dict[str, Any]] = {
    # batch statistics are those of all processes
    "supervised": {"objectives": {"supervised": {}}, "batch_norm": "train", "lr": 1e-3},
    "unsupervised": {"objectives": {"atcon": {"pool": "unlabelled", **ATCON}}, "select": "last"},
    "combining": {
        "objectives": {"supervised": {}, "atcon": {"weight": 0.3, "pool": "unlabelled", **ATCON}},
        "accumulate": 2,
        "clip": 0.5,
        "batch_norm": "mixed",
    },
    "alternating": {
        "objectives": {"supervised": {"share": 1.0}, "atcon": {"share": 1.0, "pool": "unlabelled", **ATCON}},
        "steps": 4,
        "amp": "off",
    },
}


def tables(steps: int = 2) -> dict[str, Any]:
    common = {"steps": steps, "batch": 5, "batch_norm": "frozen", "lr": 1e-4, "evaluate_every": 2}
    return {
        "data": {"spec": "shapes:count=14", "per_class": 2, "unlabelled": "rest", "limit": 9, "workers": 0},
        "model": {"arch": "tests.atcon.networks:double_net", "size": 32, "target_layer": "blocks"},
        "stages": {name: {**common, **stage} for name, stage in REGIMES.items()},
    }


def command(*arguments: object) -> list[str]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    return [sys.executable, *launch, "-m", "atcon", "finetune", *map(str, arguments), "--device", "cpu"]


def together(*arguments: object) -> None:
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("checkpoint:") == 1  # one process speaks


def history(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def state(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_checkpoint(path)["state"]
    return found


def furthest(a: Path, b: Path) -> float:
    left, right = state(a), state(b)
    assert left.keys() == right.keys()
    return max((left[key] - right[key]).abs().max().item() for key in left)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run by one process and by two."""
    folder = tmp_path_factory.mktemp("runs")
    config = config_from_tables(tables(), {}, "regimes")
    (folder / "recipe.toml").write_text(dump_toml(config))
    finetune(config, folder / "one", device="cpu")
    together("--recipe", folder / "recipe.toml", "--out", folder / "two")
    return folder / "one", folder / "two"


def test_two_processes_equal_one(runs: tuple[Path, Path]) -> None:
    one, two = runs
    for a, b in zip(history(one), history(two), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == (b[key] if isinstance(a[key], str) else pytest.approx(b[key], abs=1e-5)), key
    for name in ("supervised.pt", "unsupervised.pt", "combining.pt", "ft.pt", "last.pt"):
        assert furthest(one / name, two / name) < 1e-5
    # and there was something to differ in: every regime moved the weights
    order = ["supervised.pt", "unsupervised.pt", "combining.pt", "last.pt"]
    for before, after in pairwise(order):
        assert furthest(one / before, one / after) > 1e-5
    assert not list(two.glob(".*"))


def test_killed_together_and_resumed_together_or_alone(runs: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = runs
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        command("--recipe", one.parent / "recipe.toml", "--out", cut),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    log = cut / "history.jsonl"
    while time.monotonic() < deadline and not (log.exists() and '"combining", "step": 1' in log.read_text()):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    _kill_children_left(cut)
    subprocess.run(["cp", "-r", cut, tmp_path / "alone"], check=True)
    together("--resume", cut)
    assert furthest(cut / "ft.pt", two / "ft.pt") == 0.0
    assert history(cut) == history(two)
    resume(tmp_path / "alone", device="cpu")
    assert furthest(tmp_path / "alone" / "ft.pt", one / "ft.pt") < 1e-5


def _kill_children_left(folder: Path) -> None:
    """torchrun's workers are sessions of their own: kill those that work on this folder."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if str(folder) in line and int(entry.name) != os.getpid():
            os.kill(int(entry.name), signal.SIGKILL)


def test_a_process_that_is_gone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Alone(World):
        def wait(self) -> None:
            raise RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:1")

    monkeypatch.setattr(World, "join", lambda device: Alone(torch.device("cpu"), 0, 2))
    out = tmp_path / "out"
    with pytest.raises(ProcessError) as fault:
        finetune(config_from_tables(tables(), {}, "few"), out, device="cpu")
    assert str(fault.value) == (
        "process 0: expected all processes to go on, got no answer from another. "
        f"What is saved is whole: go on with --resume {out}."
    )


def test_more_processes_than_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "join", lambda device: World(torch.device("cpu"), 0, 6))
    with pytest.raises(ConfigError, match="an image for each of 6 processes"):
        finetune(config_from_tables(tables(), {}, "few"), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
