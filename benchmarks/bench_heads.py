"""Heads of their own over the plain classifier: a training step, inference, and inference with the map.

resnet18 with random weights at 224 px, one thread, CPU time of the fastest of `--rounds` turns. The peer is
the plain classifier, so `ratio` below 1 says what part of its speed is left. The floor is the time that the
head's multiply-adds, counted by PyTorch, would take at the rate of the plain network's. The row "map" is the
head's attention over the plain network's CAM.

    python benchmarks/bench_heads.py [--rounds N] [--json FILE]
"""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import Row, alternate, options, report, row
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from wsod.maps import attention_maps
from wsod.models import HEADS, Classifier, build_classifier

SIZE, BATCH, CLASSES = 224, 4, 20


def classifier(head: str) -> Classifier:
    torch.manual_seed(0)
    return build_classifier("resnet18", [str(k) for k in range(CLASSES)], head=head, size=SIZE)


def train(network: Classifier, images: torch.Tensor, targets: torch.Tensor) -> None:
    network.train().zero_grad()
    sum(F.cross_entropy(logits, targets) for logits in network(images, auxiliary=True)).backward()


def infer(network: Classifier, images: torch.Tensor) -> None:
    with torch.inference_mode():
        network.eval()(images)


def look(network: Classifier, images: torch.Tensor) -> None:
    attention_maps(network.eval(), images, [0] * BATCH, ["cam" if network.head == "linear" else "attention"])


def operations(work: Callable[[Classifier], None], network: Classifier) -> int:
    """Multiplications and additions of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        work(network)
    return int(counter.get_total_flops())


def main() -> None:
    """Measure and print."""
    asked = options(__doc__)
    torch.set_num_threads(1)
    images, targets = torch.randn(BATCH, 3, SIZE, SIZE), torch.arange(BATCH)
    plain = classifier("linear")
    rows: list[Row] = []
    for name in HEADS:
        if name == "linear":
            continue
        headed = classifier(name)
        works = {
            "training step": lambda network: train(network, images, targets),
            "inference": lambda network: infer(network, images),
            "map": lambda network: look(network, images),
        }
        for what, work in works.items():
            taken = alternate(
                {
                    "ours": lambda work=work, headed=headed: work(headed),
                    "peer": lambda work=work: work(plain),
                },
                asked.rounds,
            )
            share = operations(work, headed) / operations(work, plain)
            rows.append(row(f"{name}: {what}", "plain", {**taken, "floor": share * taken["peer"]}, BATCH))
    report(rows, asked.json)


if __name__ == "__main__":
    main()
