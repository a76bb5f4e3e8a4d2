"""Coverage-guided fuzzing of one parser: python -m tests.fuzz.run PARSER [SECONDS] [FINDINGS]. Needs atheris.

Without a parser, their names.

A finding is anything but a WsodError: another exception, a crash, more than 10 seconds, more than 4 GiB. What
a finding taught is kept as a case in tests/hostile.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(
    include=["wsod", "defusedxml", "json", "tomllib", "csv", "pickle", "zipfile", "PIL"]
):
    from tests.fuzz.parsers import PARSERS, seeds

import torch._weights_only_unpickler as weights_only

from tests.fuzz.mutate import mutated
from wsod.errors import WsodError

# instrumenting all of torch would take minutes
weights_only.Unpickler.load = atheris.instrument_func(weights_only.Unpickler.load)


def main() -> None:
    """Run until the time is up or something is found."""
    if len(sys.argv) == 1:
        print(*PARSERS)
        return
    name, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "600"
    findings = Path(sys.argv[3] if len(sys.argv) > 3 else f"runs/fuzz/{name}")
    findings.mkdir(parents=True, exist_ok=True)
    work = Path(
        tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )
    corpus = work / "corpus"
    corpus.mkdir()
    (work / "files").mkdir()
    for number, seed in enumerate(seeds(name, work / "files")):
        (corpus / f"seed{number}").write_bytes(seed)
    (work / "root").mkdir()
    target = PARSERS[name](work / "root")

    def once(data: bytes) -> None:
        with contextlib.suppress(WsodError):
            target(data)

    def mutate(data: bytes, largest: int, seed: int) -> bytes:
        found = mutated(data, seed) if seed % 4 else None
        return found if found and len(found) <= largest else atheris.Mutate(data, largest)

    limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=4096", "-max_len=8192"]
    arguments = [sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={findings}/", str(corpus)]
    atheris.Setup(arguments, once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
