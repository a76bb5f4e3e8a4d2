"""Attention maps: ours, each peer's and the bare forward pass, in turns.

resnet50 with random weights at 224 px, one thread, batch 1 and 8. A row's work is done once by each contender
in every round, the bare no-grad forward (the floor) among them, and medians of CPU time count: on a busy
machine only the ratios of one row mean something. Peers that are not installed leave their place empty:

    pip install --no-deps grad-cam ttach torchcam captum zennit

Also counted: forward passes of the network in images, backward passes, and the peak of memory that tensors
take beyond what was there before (a run of its own, by the allocator's counters on a GPU, else by the
process's peak, in a process of its own).

    python benchmarks/bench_maps.py [--rounds N] [--rows NAME …] [--batches N …] [--device D] [--json FILE]

`--end-to-end N` adds images a second of `wsod maps` on N JPEG files, beside the bare forward of tensors in
memory. On a GPU (`--device cuda`) the same rows run at batch 32 and 128, with its clock and its counters.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from map_peers import MODULES, Maker, Work, peers
from map_pipeline import images_a_second
from measure import kilobytes
from torch import Tensor, nn

from wsod.maps import METHODS, attention_maps
from wsod.models import Classifier, build_classifier

SIDE, CLASSES = 224, 1000
GRADIENT_CAMS = ("gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "elementgradcam")
MASKS = 64  # channels of the layer that Score-CAM is timed on: a pass a channel, whatever the layer


@cache
def network(device: str, arch: str = "resnet50") -> Classifier:
    torch.manual_seed(0)
    classifier = build_classifier(arch, [str(k) for k in range(CLASSES)])
    for module in classifier.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():  # torchvision's ViT starts with zeros
            nn.init.normal_(module.weight, std=0.03)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return classifier.eval().to(device)


@dataclass(frozen=True)
class Row:
    """Work for the batch: ours by method names and labels an image, a peer's by a function that makes it."""

    name: str
    methods: tuple[str, ...]
    peers: dict[str, Maker]
    labels: int = 1
    target: str | None = "layer4"
    arch: str = "resnet50"
    limit: str = ""
    heavy: bool = False


ROWS = [
    Row(
        "gradcam",
        ("gradcam",),
        peers(pgc="GradCAM", torchcam="GradCAM", captum="LayerGradCam"),
        limit="1.05",
    ),
    Row("layercam", ("layercam",), peers(pgc="LayerCAM", torchcam="LayerCAM"), limit="1.05"),
    Row("hirescam", ("hirescam",), peers(pgc="HiResCAM", captum="LayerGradientXActivation"), limit="1.05"),
    Row("xgradcam", ("xgradcam",), peers(pgc="XGradCAM", torchcam="XGradCAM"), limit="1.05"),
    Row("gradcam++", ("gradcam++",), peers(pgc="GradCAMPlusPlus", torchcam="GradCAMpp"), limit="1.05"),
    Row("eigencam", ("eigencam",), peers(pgc="EigenCAM"), limit="1.05"),
    Row("ablationcam", ("ablationcam",), {}, limit="1.05"),
    Row(
        "six gradient methods",
        GRADIENT_CAMS,
        peers(pgc="GradCAM+GradCAMPlusPlus+XGradCAM+HiResCAM+LayerCAM+GradCAMElementWise"),
        limit="1.10",
    ),
    Row("five classes", ("gradcam",), peers(pgc="GradCAM", torchcam="GradCAM"), labels=5, limit="1.10"),
    Row("gradcam, ViT-B/16", ("gradcam",), {}, target=None, arch="vit_b_16", limit="1.10"),
    Row("finercam", ("finercam",), {}),
    Row("shapleycam", ("shapleycam",), peers(pgc="ShapleyCAM")),
    Row("gradient", ("gradient",), peers(captum="Saliency"), limit="2.6"),
    Row(
        "guidedbackprop",
        ("guidedbackprop",),
        peers(captum="GuidedBackprop", zennit="GuidedBackprop"),
        limit="2.6",
    ),
    Row("fullgrad", ("fullgrad",), peers(pgc="FullGrad")),
    Row("lrp", ("lrp",), peers(zennit="EpsilonPlusFlat"), limit="4.2"),
    Row(
        "integratedgradients-50",
        ("integratedgradients:steps=50",),
        peers(captum="IntegratedGradients", plain="50"),
        limit="plain + 3 %",
        heavy=True,
    ),
    Row(
        f"scorecam, {MASKS} masks",
        ("scorecam:normalise=before",),
        peers(pgc="ScoreCAM", torchcam="ScoreCAM"),
        target="layer1.2.conv2",
        limit="peer / 1.5",
        heavy=True,
    ),
    Row(
        f"scorecam, {MASKS} masks, bf16",
        ("scorecam:precision=bf16",),
        {},
        target="layer1.2.conv2",
        heavy=True,
    ),
]


def missing() -> dict[str, str]:
    """Peers that cannot be imported, and why."""
    absent = {}
    for title, module in MODULES.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            absent[title] = str(error)
    return absent


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Work, device: str) -> float:
    start = clock(device)
    work()
    return clock(device) - start


def contenders(row: Row, classifier: Classifier, images: Tensor, absent: dict[str, str]) -> dict[str, Work]:
    labels = [[(97 * n + 13 * k) % CLASSES for k in range(row.labels)] for n in range(len(images))]

    def floor() -> None:
        with torch.no_grad():
            classifier(images)

    def ours() -> None:
        attention_maps(classifier, images, labels, row.methods)

    found: dict[str, Work] = {"floor": floor, "ours": ours}
    for title, make in row.peers.items():
        if title not in absent:
            # a network of its own: some peers leave hooks on it, or its layers replaced
            found[title] = make(copy.deepcopy(classifier), images, labels)
    return found


class _Counter:
    """Images through the network, and backward passes, while it is open."""

    def __enter__(self) -> _Counter:
        self.images = self.backwards = 0
        self._forward, self._grad = Classifier.forward, torch.autograd.grad
        counter = self

        def forward(classifier: Classifier, images: Tensor) -> Tensor:
            counter.images += len(images)
            return counter._forward(classifier, images)

        def grad(*args: Any, **kwargs: Any) -> Any:
            counter.backwards += 1
            return counter._grad(*args, **kwargs)

        Classifier.forward, torch.autograd.grad = forward, grad
        return self

    def __exit__(self, *error: object) -> None:
        Classifier.forward, torch.autograd.grad = self._forward, self._grad


def peak_mb(row: Row, batch: int, who: str, device: str) -> float:
    """Memory beyond what was there before the work, in a fresh process."""
    command = [sys.executable, __file__, "--peak", row.name, who, str(batch), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.strip() or "nan") if done.returncode == 0 else float("nan")


def _print_peak(name: str, who: str, batch: int, device: str) -> None:
    row = next(one for one in ROWS if one.name == name)
    classifier = _for(row, device)
    images = torch.randn(batch, 3, SIDE, SIDE, device=device)
    absent = {title: "" for title in MODULES if title != who}
    work = contenders(row, classifier, images, absent)[who]
    if device == "cpu":
        # a small pass first, for what is allocated once; then the kernel's high-water mark is lowered to now
        with torch.no_grad():
            classifier(images[:1, :, :64, :64])
        Path("/proc/self/clear_refs").write_text("5")
        before = kilobytes("VmRSS")
        work()
        print((kilobytes("VmHWM") - before) / 1e3)
        return
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    print((torch.cuda.max_memory_allocated() - before) / 1e6)


def _for(row: Row, device: str) -> Classifier:
    """The row's network; every row of one architecture shares it."""
    classifier = network(device, row.arch)
    classifier.target_layer = row.target or classifier.target_layer
    return classifier


def measure(row: Row, batch: int, rounds: int, device: str, absent: dict[str, str]) -> list[dict[str, Any]]:
    classifier = _for(row, device)
    images = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).to(device)
    works = contenders(row, classifier, images, absent)
    with _Counter() as counter:
        works["ours"]()
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            spent = seconds(work, device)
            if turn:  # the first round warms up
                times[name].append(spent)
    median = {name: statistics.median(some) for name, some in times.items()}
    own = {
        "name": f"maps {row.name} b{batch}",
        "ours_s": median["ours"],
        "floor_s": median["floor"],
        "over_floor": median["ours"] / median["floor"],
        "limit": row.limit,
        "forwards": counter.images / batch,
        "backwards": counter.backwards,
    }
    peers = [name for name in works if name not in ("floor", "ours")] or [None]
    return [
        {
            **own,
            "peer": peer,
            "peer_s": median.get(peer),
            "ratio": median[peer] / median["ours"] if peer else None,
        }
        for peer in peers
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="*", help="names of rows; all but the heavy ones by default")
    parser.add_argument("--heavy", action="store_true", help="with the rows that take minutes")
    parser.add_argument("--batches", nargs="*", type=int, help="1 and 8; on a GPU 32 and 128")
    parser.add_argument("--end-to-end", type=int, default=0, metavar="N", help="`wsod maps` on N files too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", action="store_true", help="peak memory too, a process a number")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.peak:
        _print_peak(options.peak[0], options.peak[1], int(options.peak[2]), options.device)
        return
    rows = [row for row in ROWS if row.name in options.rows] if options.rows else ROWS
    rows = [row for row in rows if row.methods[0].partition(":")[0] in METHODS]
    if not options.rows and not options.heavy:
        rows = [row for row in rows if not row.heavy]
    absent = missing()
    for title, why in absent.items():
        print(f"without {title}: {why}")
    print(f"load {os.getloadavg()[0]:.1f}, {options.rounds} rounds, one thread, {options.device}")
    columns = (
        f"{'row':<30}{'ours s':>9}{'/ floor':>9}{'at most':>9}{'fwd':>8}{'bwd':>5}  peer (s, times ours)"
    )
    print(columns)
    found: list[dict[str, Any]] = []
    for row in rows:
        for batch in options.batches or ([1, 8] if options.device == "cpu" else [32, 128]):
            rounds = 1 if row.heavy else options.rounds
            entries = measure(row, batch, rounds, options.device, absent)
            if options.memory:
                for who in ("floor", "ours"):
                    entries[0][f"{who}_mb"] = peak_mb(row, batch, who, options.device)
            found += entries
            one = entries[0]
            pairs = [(entry["peer"], entry["peer_s"], entry["ratio"]) for entry in entries if entry["peer"]]
            others = ", ".join(f"{peer} {spent:.3f} ({ratio:.2f})" for peer, spent, ratio in pairs)
            memory = f"  {one['ours_mb']:.0f} MB (bare {one['floor_mb']:.0f})" if options.memory else ""
            print(
                f"{row.name + f' b{batch}':<30}{one['ours_s']:>9.3f}{one['over_floor']:>9.2f}"
                f"{one['limit'][:8]:>9}{one['forwards']:>8.0f}{one['backwards']:>5}  {others}{memory}",
                flush=True,
            )
    if options.end_to_end:
        found.append(images_a_second(network(options.device), options.end_to_end, options.device))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
