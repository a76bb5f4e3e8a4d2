"""Runs that are killed, or whose disk fails, and run again: nothing is lost, computed or counted twice."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsod.results
from tests.conftest import ROOT
from wsod.errors import ConfigError, DataError, OutputError
from wsod.evaluation import compute_maps, evaluate
from wsod.fitting import fit_method
from wsod.output import only_writer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from wsod.data import open_dataset
    from wsod.models import build_classifier, save_checkpoint

    torch.manual_seed(0)
    classifier = build_classifier("smallnet", open_dataset("shapes").classes, task="multilabel", size=64)
    path = tmp_path_factory.mktemp("model") / "ft.pt"
    save_checkpoint(path, classifier, recipe={}, metrics={}, provenance={})
    return path


def helper(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.killed", *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr[-3000:]
    report: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return report


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a finished run, but the checksums' lines and the commit, which may differ."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files = {name: data for name, data in files.items() if not name.endswith("files.jsonl")}
    return {name: re.sub(rb'"git": [^,]*', b"", data) for name, data in files.items()}


# 50 random moments in all
@pytest.mark.slow
@pytest.mark.parametrize(("job", "seed", "times"), [("evaluate", 1, 12), ("maps", 2, 13)])
def test_killed_at_random_moments(tmp_path: Path, checkpoint: Path, job: str, seed: int, times: int) -> None:
    report = helper("kill", job, checkpoint, tmp_path, times, seed)
    assert report["kills"] == times
    assert report["twice"] == 0
    whole = contents(tmp_path / "whole")
    assert len(whole) == (2 if job == "evaluate" else 3 * 25)
    for number in range(report["outs"]):
        assert contents(tmp_path / f"out{number}") == whole


@pytest.mark.slow
def test_training_killed_at_random_moments(tmp_path: Path, checkpoint: Path) -> None:
    """Weights, optimiser and random generators end as in a run that was left alone, to the bit."""
    report = helper("kill", "train", checkpoint, tmp_path, 25, 3)
    assert report["kills"] == 25
    whole = trained(tmp_path / "whole")
    assert {"a.pt", "ft.pt", "last.pt", "state.pt"} < set(whole)
    assert len(whole["history.jsonl"]) == 2 * (4 + 3)
    for number in range(report["outs"]):
        out = trained(tmp_path / f"out{number}")
        assert out == whole


def trained(folder: Path) -> dict[str, Any]:
    """What a training left, but for how long its steps took and where it took its list of images from."""
    from wsod.models import read_checkpoint

    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("history.csv", "history.png"):
        files[name] = len(files[name]) > 0
    for name in ("a.pt", "ft.pt", "last.pt"):
        contents = read_checkpoint(folder / name)
        weights = {key: value.numpy().tobytes() for key, value in contents["state"].items()}
        files[name] = weights, contents["metrics"]
    lines = [json.loads(line) for line in files["history.jsonl"].splitlines()]
    return {**files, "history.jsonl": [{**line, "seconds": 0} for line in lines]}


@pytest.mark.slow
@pytest.mark.parametrize("job", ["few", "few maps"])
def test_every_write_fails_once(tmp_path: Path, checkpoint: Path, job: str) -> None:
    report = helper("faults", job, checkpoint, tmp_path)
    *failed, done = report["ends"][:-4]
    assert done == "done"
    assert len(failed) > 10
    for end in (*failed, *report["ends"][-4:]):
        assert end in ("done", "survived") or end.startswith("WsodError: "), end
        assert "\n" not in end
    assert not any(end == "done" for end in failed)
    assert report["left"] == []
    whole = contents(tmp_path / "whole")
    for folder in tmp_path.iterdir():
        assert contents(folder) == whole, folder


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with only_writer(tmp_path / "a"):
        for run in (
            lambda: evaluate("center", limit=2, out=tmp_path / "a"),
            lambda: compute_maps("center", tmp_path / "a", limit=2),
        ):
            with pytest.raises(
                OutputError, match=r"a: expected a folder no one else writes to, got another process"
            ):
                run()
    assert list((tmp_path / "a").iterdir()) == []
    evaluate("center", limit=2, out=tmp_path / "a")


def test_maps_made_otherwise_are_not_mixed(tmp_path: Path, checkpoint: Path) -> None:
    options: dict[str, Any] = {"checkpoint": checkpoint, "limit": 3, "device": "cpu"}
    compute_maps("gradcam", tmp_path, **options)
    with pytest.raises(ConfigError, match=r"maps made with labels = 'predicted', got labels = 'truth'"):
        compute_maps("gradcam", tmp_path, labels="predicted", **options)
    with pytest.raises(ConfigError, match="maps made with data"):
        compute_maps("gradcam", tmp_path, data="shapes:seed=1", **options)
    assert compute_maps("gradcam", tmp_path, **options)[0] == 0


def test_a_damaged_map_is_named_and_made_again(tmp_path: Path, checkpoint: Path) -> None:
    options: dict[str, Any] = {"checkpoint": checkpoint, "limit": 5, "device": "cpu", "batch_size": 1}
    compute_maps("gradcam", tmp_path / "m", **options)
    path = tmp_path / "m/gradcam/test_00003.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    skipped = evaluate(tmp_path / "m", limit=5, on_error="skip").skipped
    assert [one["image"] for one in skipped] == ["test_00003"]
    assert f"{path}: expected the file whose checksum" in skipped[0]["error"]
    said: list[str] = []
    assert compute_maps("gradcam", tmp_path / "m", notice=said.append, **options)[0] == 1
    assert said == [f"{path}: expected the file that was written, got another. It is made again."]
    assert path.read_bytes() == whole
    assert not evaluate(tmp_path / "m", limit=5).skipped


def test_half_a_last_line_is_left_out(tmp_path: Path, checkpoint: Path) -> None:
    """What a process killed while it wrote may leave."""
    options: dict[str, Any] = {"checkpoint": checkpoint, "limit": 4, "device": "cpu", "batch_size": 2}
    compute_maps("gradcam", tmp_path, **options)
    path = tmp_path / "gradcam/files.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    assert compute_maps("gradcam", tmp_path, **options)[0] == 2
    assert compute_maps("gradcam", tmp_path, **options)[0] == 0


@pytest.mark.slow
def test_maps_of_another_fit_are_not_mixed(tmp_path: Path, checkpoint: Path) -> None:
    """Though the file has the same name. And what a method's options name is no place to write to."""
    data = {"data": "shapes:count=4,size=48", "device": "cpu"}
    fits = f"{tmp_path}/a/../a/fits"
    (tmp_path / "a/fits").mkdir(parents=True)
    out, maps = tmp_path / "out", f"broadcam:fit={fits}/broadcam.pt"
    for limit in (3, 4):
        fit_method(
            "broadcam", f"{fits}/broadcam.pt", checkpoint=checkpoint, split="test", limit=limit, **data
        )
        assert evaluate(maps, out=tmp_path / "run", checkpoint=checkpoint, save_maps=True, **data).rows
        if limit == 3:
            compute_maps(maps, out, checkpoint=checkpoint, **data)
    (before,), (after,) = out.rglob("test_00000.npz"), (tmp_path / "run/maps").rglob("test_00000.npz")
    assert not np.array_equal(np.load(before)["values"], np.load(after)["values"])
    assert before.parents[1] == out
    with pytest.raises(ConfigError, match="maps made with fit = "):
        compute_maps(maps, out, checkpoint=checkpoint, **data)


def test_controls_at_another_frame_are_not_mixed(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": "shapes:count=2,size=48", "save_maps": True, "out": tmp_path}
    for frame in ("0", "32"):
        evaluate("center", settings=[f"maps.frame={frame}"], metrics=["max_box_acc"], **options)
    values = np.load(tmp_path / "maps/center/test_00000.npz")["values"]
    assert values.shape[1:] == (32, 32)


def test_what_a_stopped_run_had_is_gone_when_it_is_done_otherwise(tmp_path: Path, checkpoint: Path) -> None:
    options: dict[str, Any] = {"checkpoint": checkpoint, "limit": 2, "device": "cpu", "out": tmp_path}

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        evaluate("gradcam", metrics=["pointing_game"], progress=stop, **options)
    assert (tmp_path / ".maps").exists()
    with pytest.raises(DataError, match="The run is not finished: run its command again"):
        wsod.results.Result.load(tmp_path)
    evaluate("gradcam", metrics=["pointing_game"], save_maps=True, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"maps", "cases.jsonl", "result.json"}


def test_no_result_beside_the_cases_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed between the two files."""
    evaluate("center", limit=2, metrics=["pointing_game"], out=tmp_path)
    whole = wsod.results.write_text

    def write(path: Path, text: str, **about: Any) -> None:
        if path.name == "result.json":
            raise InterruptedError
        whole(path, text, **about)

    monkeypatch.setattr("wsod.results.write_text", write)
    with pytest.raises(InterruptedError):
        evaluate("center", limit=3, metrics=["pointing_game"], out=tmp_path)
    with pytest.raises(DataError, match=r"a result\.json of `wsod evaluate --out`, got no such file"):
        wsod.results.Result.load(tmp_path)
