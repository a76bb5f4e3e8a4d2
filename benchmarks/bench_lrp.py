"""Relevance maps against zennit's and captum's, and a training step of ISNet against a plain one.

resnet50 with random weights at 224 px, batch 8, one thread, all contenders in turns in one process; the floor
is the bare no-grad forward. CPU seconds count: on a busy machine only the ratios of one row mean something.
captum cannot share relevance through a ResNet (its sums are no modules), so it has its gradient × input.
Training steps are those of smallnet at 64 px, batch 32, 8 classes, against forward, cross-entropy, backward.

    python benchmarks/bench_lrp.py [--rounds N] [--rows maps|steps …] [--size N] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from map_peers import peers
from measure import Row, kilobytes, report, row, spent
from torch import Tensor, nn

from atcon.objectives import isnet_loss, rrr_loss
from wsod.maps import attention_maps
from wsod.models import Classifier, build_classifier

BATCH, CLASSES = 8, 1000
MAPS = {
    # ours, the peer's name for it, the most that was aimed at, in bare forwards
    "lrp": ("inputxgradient", "captum", "InputXGradient", 2.7),
    "lrp:first=zb": ("epsilon, z^B", "zennit", "EpsilonGammaBox", 0.0),
    "lrp:rule=epsilon-plus,first=flat": ("epsilon-plus-flat", "zennit", "EpsilonPlusFlat", 4.2),
}
VARIANTS = ("stochastic", "selective", "original", "inputxgradient")


def network(size: int) -> Classifier:
    torch.manual_seed(0)
    classifier = build_classifier("resnet50", [str(k) for k in range(CLASSES)], size=size)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return classifier.eval()


def turns(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The fastest of so many rounds, one after the other."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            best[name] = min(best[name], spent(work))
    return best


def maps(rounds: int, size: int) -> list[Row]:
    classifier, images = network(size), torch.randn(BATCH, 3, size, size)
    labels = [[97 * n % CLASSES] for n in range(BATCH)]

    def floor() -> None:
        with torch.no_grad():
            classifier(images)

    works: dict[str, Callable[[], object]] = {"floor": floor}
    for name, (_, package, kind, _) in MAPS.items():
        works[name] = lambda name=name: attention_maps(classifier, images, labels, [name])  # type: ignore[misc]
        if kind != "EpsilonGammaBox":
            works[f"{package} {kind}"] = peers(**{package: kind})[package](network(size), images, labels)
    for work in works.values():
        work()
    seconds = turns(works, rounds)
    rows = []
    for name, (_, package, kind, _) in MAPS.items():
        peer = f"{package} {kind}" if f"{package} {kind}" in seconds else "zennit EpsilonPlusFlat"
        found = {"ours": seconds[name], "peer": seconds[peer], "floor": seconds["floor"]}
        rows.append(row(f"{name} b{BATCH}", peer, found, 1))
    return rows


def steps(rounds: int) -> list[Row]:
    torch.manual_seed(0)
    classifier = build_classifier("smallnet", [str(k) for k in range(8)], size=64).train()
    images, labels = torch.randn(32, 3, 64, 64), torch.arange(32) % 8
    masks = torch.zeros(32, 64, 64, dtype=torch.bool)
    masks[:, 16:40, 16:48] = True

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def work() -> None:
            classifier.zero_grad(set_to_none=True)
            loss().backward()  # type: ignore[no-untyped-call]

        return work

    works: dict[str, Callable[[], object]] = {
        "plain": step(lambda: F.cross_entropy(classifier(images), labels)),
        "rrr": step(
            lambda: (
                F.cross_entropy(classifier(images), labels) + rrr_loss(classifier, images, labels, masks)[0]
            )
        ),
    }
    for variant in VARIANTS:
        works[f"isnet {variant}"] = step(
            lambda variant=variant: isnet_loss(classifier, images, labels, masks, variant=variant)[0]  # type: ignore[misc]
        )
    for work in works.values():
        work()
    seconds = turns(works, rounds)
    rows = []
    for name in works:
        found = {"ours": seconds[name], "peer": seconds["isnet original"], "floor": seconds["plain"]}
        rows.append(row(f"step: {name}", "isnet original", found, 1))
    return rows


def idle() -> float:
    """KiB held now; the kernel's high-water mark is lowered to that."""
    Path("/proc/self/clear_refs").write_text("5")
    return kilobytes("VmRSS")


def memory(name: str, size: int) -> None:
    """Print the peak MiB that one piece of work takes beyond the weights; run in a process of its own."""
    torch.manual_seed(0)
    if name in VARIANTS or name == "plain":
        classifier = build_classifier("smallnet", [str(k) for k in range(8)], size=64).train()
        images, labels = torch.randn(32, 3, 64, 64), torch.arange(32) % 8
        masks = torch.zeros(32, 64, 64, dtype=torch.bool)
        masks[:, 16:40, 16:48] = True
        start = idle()
        if name == "plain":
            F.cross_entropy(classifier(images), labels).backward()  # type: ignore[no-untyped-call]
        else:
            isnet_loss(classifier, images, labels, masks, variant=name)[0].backward()  # type: ignore[arg-type,no-untyped-call]
    else:
        classifier, images = network(size), torch.randn(BATCH, 3, size, size)
        start = idle()
        if name == "floor":
            with torch.no_grad():
                classifier(images)
        else:
            attention_maps(classifier, images, [[n] for n in range(BATCH)], [name])
    print(round((kilobytes("VmHWM") - start) / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rows", nargs="+", choices=("maps", "steps", "memory"), default=("maps", "steps", "memory")
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        memory(options.peak, options.size)
        return
    rows: list[Row] = []
    if "maps" in options.rows:
        rows += maps(options.rounds, options.size)
    if "steps" in options.rows:
        rows += steps(options.rounds)
    if rows:
        report(rows, options.json)
    if "memory" in options.rows:
        for name in ("floor", *MAPS, "plain", *VARIANTS):
            command = [sys.executable, __file__, "--peak", name, "--size", str(options.size)]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            print(f"peak of {name:<36}{found:>6} MiB")


if __name__ == "__main__":
    main()
