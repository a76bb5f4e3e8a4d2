"""Several processes over gloo, on one host and on two: the bits of one; a rank that dies; going on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.test_killed import checkpoint, contents
from wsod.data import export, open_dataset
from wsod.distributed import World, own_device
from wsod.errors import ConfigError, OutputError
from wsod.output import only_writer

__all__ = ["checkpoint"]  # the fixture

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and forks")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("several")
    command = [sys.executable, "-m", "tests.several", str(checkpoint), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_bytes(several: tuple[Path, dict[str, Any]]) -> None:
    folder, report = several
    assert set(report["ends"]) == {"done None"}
    for name, counts in {"evaluate": (2, 4), "maps": (2, 4), "few": (4,)}.items():
        one = contents(folder / f"{name}-1")
        assert "result.json" in one or len(one) == 3 * 25
        for count in counts:
            assert contents(folder / f"{name}-{count}") == one


@pytest.mark.slow
def test_a_rank_dies_and_another_number_goes_on(several: tuple[Path, dict[str, Any]]) -> None:
    folder, report = several
    first, second, third = report["killed"]
    assert third == "signal 9"
    assert "process 0: expected all processes to go on, got no sign of process 2 for 6 s" in first
    for line in (first, second):
        assert line.startswith("ProcessError: process ")
        assert line.endswith("finished images are not computed again.")
    assert report["resumed"] == ["done None", "done None"]
    assert report["done"] >= 8
    assert report["again"] == []
    assert contents(folder / "evaluate-killed") == contents(folder / "evaluate-1")


def command(checkpoint: Path, data: str = "shapes:count=24,size=48") -> list[str]:
    maps = ["--maps", "gradcam", "--maps", "center", "--batch-size", "4", "--device", "cpu"]
    return [*maps, "--checkpoint", str(checkpoint), "--data", data, "--metrics", "pointing_game"]


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments, "-m", "wsod", "evaluate"]


@pytest.mark.slow
def test_torchrun_says_which_image_is_at_fault(tmp_path: Path, checkpoint: Path) -> None:
    spec = export(open_dataset("shapes:count=12,size=48"), "coco", tmp_path / "data", splits=("test",))
    broken = sorted((tmp_path / "data" / "images").rglob("*.png"))[5]
    broken.write_bytes(broken.read_bytes()[:200])
    launch = torchrun("--standalone", "--nproc-per-node", "2")
    here = [*launch, *command(checkpoint, spec), "--out", str(tmp_path / "out")]
    done = subprocess.run(here, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert f"{broken}: expected a " in done.stderr
    assert "written: " not in done.stdout
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.fixture
def hosts() -> Iterator[list[tuple[list[str], str]]]:
    """Two network namespaces and a cable between them: how to run there, and the network interface."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces are made by root, with iproute2")
    names = [f"wsod-{os.getpid()}-{n}" for n in range(2)]
    cables = [f"w{os.getpid() % 100000}{n}" for n in range(2)]
    steps = [
        *(["netns", "add", name] for name in names),
        ["link", "add", cables[0], "type", "veth", "peer", "name", cables[1]],
        *(["link", "set", cable, "netns", name] for cable, name in zip(cables, names, strict=True)),
        *(["-n", name, "addr", "add", f"10.77.9.{n}/24", "dev", cables[n]] for n, name in enumerate(names)),
        *(["-n", name, "link", "set", "lo", "up"] for name in names),
        *(["-n", name, "link", "set", cables[n], "up"] for n, name in enumerate(names)),
    ]
    try:
        for step in steps:
            done = subprocess.run(["ip", *step], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"ip {' '.join(step)}: {done.stderr.strip()}")
        yield [(["ip", "netns", "exec", name], cable) for name, cable in zip(names, cables, strict=True)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_two_hosts_write_the_same_bytes(
    tmp_path: Path, checkpoint: Path, hosts: list[tuple[list[str], str]]
) -> None:
    alone = [sys.executable, "-m", "wsod", "evaluate", *command(checkpoint), "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    processes = [subprocess.Popen(alone, stdout=subprocess.DEVNULL, cwd=tmp_path / "one", env=environment)]
    for number, (inside, cable) in enumerate(hosts):
        place = ["--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1"]
        meet = ["--master-addr", "10.77.9.0", "--master-port", "29611"]
        there = [*inside, *torchrun(*place, *meet), *command(checkpoint), "--out", "out"]
        about = {**environment, "GLOO_SOCKET_IFNAME": cable}
        processes.append(
            subprocess.Popen(there, cwd=tmp_path / "two", env=about, stdout=subprocess.PIPE, text=True)
        )
    printed = [process.communicate(timeout=200)[0] or "" for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert [text.count("written: ") for text in printed] == [0, 1, 0]
    assert contents(tmp_path / "two" / "out") == contents(tmp_path / "one" / "out")


def test_processes_of_a_run_share_a_folder_and_keep_others_out(tmp_path: Path) -> None:
    with only_writer(tmp_path, "first"):
        with only_writer(tmp_path, "other"), pytest.raises(OutputError, match="another process at work"):
            only_writer(tmp_path).__enter__()
        with pytest.raises(OutputError, match="another process at work"):
            only_writer(tmp_path, "first").__enter__()
    with only_writer(tmp_path), pytest.raises(OutputError, match="another process at work"):
        only_writer(tmp_path, "other").__enter__()


def test_shares_are_whole_batches_and_make_up_all() -> None:
    for size in (1, 2, 3, 7):
        shares = [list(World(rank, size).share(range(50), 8)) for rank in range(size)]
        assert sorted(i for share in shares for i in share) == list(range(50))
        batches = [{i // 8 for i in share} for share in shares]
        assert sum(map(len, batches)) == 7


def test_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("wsod.distributed.pick_device", lambda name: "cuda" if name == "auto" else name)
    assert own_device("auto") == "cuda:1"
    assert own_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="each process takes its own"):
        own_device("cuda:0")
