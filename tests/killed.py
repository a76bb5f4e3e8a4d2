"""Makes processes that evaluate or train, and kills them or takes their disk. Run by test_killed.py.

Imports and compiled code are loaded once, here: the children, forked, start at once.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # drawn with at the end of a training
import matplotlib.figure  # noqa: F401

import wsod.maps
import wsod.models
import wsod.pipeline
import wsod.report.overlays
from atcon.config import config_from_tables
from atcon.train import finetune, resume
from wsod.errors import WsodError
from wsod.evaluation import compute_maps, evaluate
from wsod.metrics.warmup import warm_up

Job = Callable[[Path], object]


def jobs(checkpoint: str) -> dict[str, Job]:
    common = {"checkpoint": checkpoint, "data": "shapes:count=24,size=48", "batch_size": 4, "device": "cpu"}
    methods, metrics = ["gradcam", "center", "layercam"], ["pointing_game", "max_box_acc"]
    few = {**common, "data": "shapes:count=3,size=48", "batch_size": 2, "save_overlays": 1}
    return {
        "train": train,
        "evaluate": lambda out: evaluate(methods, out=out, metrics=metrics, **common),
        "maps": lambda out: compute_maps(methods, out, **common),
        "few": lambda out: evaluate(methods[:2], out=out, metrics=metrics[:1], **few),
        "few maps": lambda out: compute_maps(methods[:1], out, **few),
    }


def train(out: Path) -> None:
    """Two stages of four steps, a state saved at each."""
    stage = {"steps": 4, "batch": 4, "batch_norm": "frozen", "evaluate_every": 2, "lr": 1e-3, "save_every": 1}
    stages = {name: {**stage, "objectives": {"supervised": {}}} for name in ("a", "b")}
    data = {"spec": "shapes:count=12,size=48", "workers": 0}
    if (out / "config.toml").exists():
        resume(out, device="cpu")
    else:
        finetune(
            config_from_tables({"data": data, "model": {"size": 40}, "stages": stages}, {}, "test"),
            out,
            device="cpu",
        )


def log_images(path: Path) -> None:
    """From here on, every image that is computed is a line of that file."""
    whole = wsod.pipeline._batch_maps

    def logged(classifier: Any, batch: Any, *rest: Any) -> Any:
        with path.open("a") as file:
            file.write("".join(f"{item.sample.image_id}\n" for item in batch))
        return whole(classifier, batch, *rest)

    wsod.pipeline._batch_maps = logged


def child(work: Callable[[], Any], seconds: float | None = None) -> str:
    """What became of a child: done, killed, or the error it ended with."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            text = work() or "done"
        except WsodError as error:
            text = f"WsodError: {error}"
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, str(text).encode())
        os._exit(0)
    os.close(write)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    text = b""
    while part := os.read(read, 1 << 16):
        text += part
    os.close(read)
    os.waitpid(pid, 0)
    return text.decode() or "killed"


def done_images(out: Path) -> set[str]:
    """Images that every method's checksums list."""
    found: list[set[str]] = []
    for path in [*out.glob("*/gradcam/files.jsonl"), *out.glob("gradcam/files.jsonl")]:
        lines = path.read_bytes().split(b"\n")[1:-1]
        found.append({image for line in lines for image in json.loads(line)})
        beside = path.parents[1] / "layercam/files.jsonl"
        lines = beside.read_bytes().split(b"\n")[1:-1] if beside.exists() else []
        found.append({image for line in lines for image in json.loads(line)})
    return set.intersection(*found) if found else set()


def kill(job: Job, folder: Path, times: int, seed: int) -> dict[str, Any]:
    """Kill at random moments, in as many folders as that takes; each folder is finished in the end."""
    draw = random.Random(seed)
    start = time.monotonic()
    assert child(lambda: job(folder / "whole") and None) == "done"
    duration = time.monotonic() - start
    kills, twice, outs = 0, 0, 0
    while kills < times:
        out, log = folder / f"out{outs}", folder / f"log{outs}"
        outs += 1
        state = "killed"
        while state == "killed":
            before, seen = done_images(out), log.stat().st_size if log.exists() else 0

            def work(out: Path = out, log: Path = log) -> None:
                log_images(log)
                job(out)

            state = child(work, draw.random() * duration if kills < times else None)
            kills += state == "killed"
            computed = log.read_text()[seen:].split() if log.exists() else []
            twice += len(before.intersection(computed)) + len(computed) - len(set(computed))
        assert state == "done", state
    return {"kills": kills, "twice": twice, "outs": outs}


def fault(job: Job, folder: Path, number: int, code: int) -> str:
    """Fail the n-th opening for writing, renaming or making of a folder below the output folder."""
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in ("open", "os.rename", "os.mkdir"):
            return
        writes = event != "open" or (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes and str(folder) in os.fsdecode(arguments[0] if not isinstance(arguments[0], int) else ""):
            left -= 1
            if left == 0:
                raise OSError(code, os.strerror(code), str(arguments[0]))

    sys.addaudithook(hook)
    job(folder)
    # a folder that cannot be made, because it is there, is no fault
    return "survived" if left <= 0 else "done"


def faults(job: Job, folder: Path) -> dict[str, Any]:
    """Every write failed in turn, then a disk of several sizes; after each, a run without faults."""
    assert child(lambda: job(folder / "whole") and None) == "done"
    ends: list[str] = []
    left: list[str] = []
    codes = (errno.ENOSPC, errno.EACCES, errno.EROFS)
    for number in range(1, 200):
        out = folder / f"out{number}"
        state = child(lambda out=out, number=number: fault(job, out, number, codes[number % 3]))  # type: ignore[misc]
        ends.append(state)
        left += [str(path) for path in out.rglob("*.tmp")] if out.exists() else []
        assert child(lambda out=out: job(out) and None) == "done"  # type: ignore[misc]
        if state == "done":
            break
    for size in (0, 300, 1000, 5000):
        out = folder / f"disk{size}"

        def work(out: Path = out, size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            job(out)

        ends.append(child(work))
        left += [str(path) for path in out.rglob("*.tmp")] if out.exists() else []
        assert child(lambda out=out: job(out) and None) == "done"  # type: ignore[misc]
    return {"ends": ends, "left": left}


if __name__ == "__main__":
    what, name, checkpoint, place, *rest = sys.argv[1:]
    warm_up()
    job = jobs(checkpoint)[name]
    report = (
        kill(job, Path(place), int(rest[0]), int(rest[1])) if what == "kill" else faults(job, Path(place))
    )
    print(json.dumps(report))
