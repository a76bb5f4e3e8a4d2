"""A process that makes the ranks of a run, forked: imports and compiled code are loaded once. Run by
test_distributed.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import torch.distributed  # noqa: F401

import wsod.distributed
from tests.killed import jobs, log_images
from wsod.errors import WsodError
from wsod.kept import KeptMaps
from wsod.metrics.warmup import warm_up

Work = Callable[[], Any]


def ranks(work: Work, count: int, folder: Path) -> list[tuple[int, Path]]:
    """So many forked processes that do the work, each with the file its end is written to."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    made = []
    for rank in range(count):
        end = folder / f"end{time.monotonic_ns()}-{rank}"
        pid = os.fork()
        if not pid:
            about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
            os.environ |= {key: str(value) for key, value in about.items()}
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
            code = 0
            try:
                end.write_text(f"done {work()}")
            except WsodError as error:
                end.write_text(f"{type(error).__name__}: {error}")
                code = 1
            except BaseException as error:
                end.write_text(f"bug: {type(error).__name__}: {error}")
                code = 2
            os._exit(code)
        made.append((pid, end))
    return made


def ended(made: list[tuple[int, Path]]) -> list[str]:
    """What became of each, in order of rank."""
    found = []
    for pid, end in made:
        status = os.waitpid(pid, 0)[1]
        text = end.read_text() if end.exists() else "nothing"
        found.append(f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else text)
    return found


def images(paths: Iterable[Path]) -> set[str]:
    """Those that checksums list."""
    found = (json.loads(line) for path in paths for line in path.read_text().splitlines()[1:])
    return {image for table in found for image in table}


def main(checkpoint: str, folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = {"ends": []}
    made = jobs(checkpoint)
    for name, count in [*product(("evaluate", "maps"), (1, 2, 4)), ("few", 1), ("few", 4)]:
        out = folder / f"{name}-{count}"
        report["ends"] += ended(ranks(lambda name=name, out=out: made[name](out) and None, count, folder))  # type: ignore[misc]

    out, log = folder / "evaluate-killed", folder / "log"

    def work() -> None:
        log_images(log)
        made["evaluate"](out)

    def work_and_die() -> None:
        whole = KeptMaps.commit

        def commit(kept: KeptMaps) -> None:
            whole(kept)
            if os.environ["RANK"] == "2" and (out / ".maps/layercam/files.2.jsonl").exists():
                os.kill(os.getpid(), signal.SIGKILL)

        KeptMaps.commit = commit  # type: ignore[method-assign]
        work()

    wsod.distributed.SILENCE = 6.0
    report["killed"] = ended(ranks(work_and_die, 3, folder))
    wsod.distributed.SILENCE = 60.0
    done, before = images(out.glob(".maps/layercam/files*.jsonl")), len(log.read_text().split())
    report["resumed"] = ended(ranks(work, 2, folder))
    computed = log.read_text().split()
    report |= {"done": len(done), "again": sorted(done.intersection(computed[before:]))}
    return report


if __name__ == "__main__":
    wsod.distributed.BEAT = 0.1
    warm_up()
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
