"""Every benchmark here, one after the other: one JSON file and one Markdown page, with machine and versions.

    python benchmarks/run.py [--quick] [--only NAME …] [--out DIR]      DIR/benchmarks.json, DIR/benchmarks.md

A script that fails is a row that says so. Where there is a GPU, those that can run on it do so once more.
`--quick` takes one round of the least each script can do: it shows that they run, not how fast.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from wsod.output import write_text
from wsod.results import provenance

HERE = Path(__file__).parent
Row = dict[str, Any]

# what each script takes to do as little as it can
QUICK = {
    "boxes": ["--maps", "1", "--rounds", "1"],
    "finetune": ["--rounds", "1", "--arch", "resnet18", "--batch", "2", "--size", "64"],
    "lrp": ["--rounds", "1", "--size", "64", "--rows", "maps"],
    "maps": ["--rounds", "1", "--rows", "gradcam", "cam", "--batches", "1"],
    "memory": ["--images", "200", "--only", "pointing_game"],
}
PEERS = ("captum", "grad-cam", "opencv-python-headless", "scipy", "torchcam", "zennit")
GPU = {"maps": ["--device", "cuda", "--memory"]}
LIMIT = 3 * 3600


def peers() -> dict[str, str]:
    """Versions of what ours is timed against; of some, the algorithm alone is, written anew."""
    return {each.metadata["Name"]: each.version for each in distributions() if each.metadata["Name"] in PEERS}


def machine() -> dict[str, Any]:
    """Processor, memory and GPU."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "system": platform.platform(),
        "processor": next(named, platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 1e9),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def run(name: str, options: list[str], device: str) -> list[Row]:
    """The rows of one script; a single one, with `error`, where it fails."""
    about = {"script": f"bench_{name}.py", "device": device}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.json"
        command = [sys.executable, str(HERE / f"bench_{name}.py"), *options, "--json", str(found)]
        try:
            ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=LIMIT)
            error = "" if ended.returncode == 0 else (ended.stderr.strip() or f"exit {ended.returncode}")
            rows: list[Row] = json.loads(found.read_text()) if not error else []
        except (OSError, ValueError, subprocess.TimeoutExpired) as fault:
            error, rows = str(fault), []
    about["seconds"] = round(time.monotonic() - started, 1)
    if error:
        return [{**about, "name": name, "error": error.splitlines()[-1][:300]}]
    return [{**about, **row} for row in rows]


def number(value: object) -> str:
    if isinstance(value, list):
        return " / ".join(map(number, value))
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def timed(row: Row) -> list[str]:
    times = [None if row.get(key) is None else 1000 * row[key] for key in ("ours_s", "peer_s", "floor_s")]
    ours, peer, floor = map(number, times)
    ratio = number(row.get("ratio"))
    return [row["script"], row["device"], row["name"], ours, peer, ratio, floor, str(row.get("peer") or "")]


def page(about: dict[str, Any], rows: list[Row]) -> str:
    """Times against peers in one table, what failed and what is no time below it."""
    box, versions = about["machine"], about["versions"]
    parts = [
        "# Benchmarks",
        f"{about['when']}, commit {about['git']}; {box['processor']}, {box['cores']} cores, "
        f"{box['memory_gb']} GB, GPU: {box['gpu'] or 'none'}; {box['system']}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    ]
    parts.append("A ratio is the peer's time over ours. A floor is what no code could do without.")
    if about["quick"]:
        parts.append("One round of as little as each script can do: these numbers say nothing of speed.")
    head = ["script", "device", "what", "ours ms", "peer ms", "ratio", "floor ms", "peer"]
    parts.append(table(head, [timed(row) for row in rows if "ours_s" in row]))
    failed = [[row["script"], row["device"], row["error"]] for row in rows if "error" in row]
    if failed:
        parts += ["## Failed", table(["script", "device", "error"], failed)]
    for script in dict.fromkeys(row["script"] for row in rows if "ours_s" not in row and "error" not in row):
        own = [row for row in rows if row["script"] == script and "ours_s" not in row]
        keys = [key for key in own[0] if key not in ("script", "device", "seconds")]
        parts += [f"## {script}", table(keys, [[number(row.get(key)) for key in keys] for row in own])]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    chosen = parser.parse_args()
    made = provenance()
    about = {"schema": 1, "when": datetime.now(UTC).isoformat(timespec="seconds"), "quick": chosen.quick}
    about |= {"machine": machine(), "versions": made["versions"] | peers(), "git": made["git"]}
    jobs = [(name, [], "cpu") for name in chosen.only]
    if about["machine"]["gpu"]:
        jobs += [(name, options, "cuda") for name, options in GPU.items() if name in chosen.only]
    rows: list[Row] = []
    for name, options, device in jobs:
        print(f"== {name}, {device}", flush=True)
        quick = QUICK.get(name, ["--rounds", "1"]) if chosen.quick else []
        rows += run(name, [*quick, *options], device)
        if "error" in rows[-1]:
            print(f"failed: {rows[-1]['error']}", flush=True)
        # whatever stops a later one, what is done is there
        write_text(chosen.out / "benchmarks.json", json.dumps({**about, "rows": rows}, indent=1) + "\n")
        write_text(chosen.out / "benchmarks.md", page(about, rows))
    print(f"written: {chosen.out}/benchmarks.json, {chosen.out}/benchmarks.md")


if __name__ == "__main__":
    main()
