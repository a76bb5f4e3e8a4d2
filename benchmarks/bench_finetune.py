"""One training step of ATCON against the loop over images, and against a step of plain cross-entropy.

The floor in passes. F is one forward of the batch; a backward costs F for derivatives by the layers' inputs
and F for those by their weights. A step of cross-entropy: F + 2F = 3F. ATCON with its second order:

    two forwards, of x and of T·x                                                      2F
    the guided pass back to x: inputs alone                                            1F
    Grad-CAM's passes go back to the target layer alone                                ~0
    backward through the second forward: weights, inputs (it reaches the mask)         2F
    backward through the guided pass: of each product, both factors                    2F
    backward through the first forward                                                 2F
                                                                                       9F = 3.0 steps

With the mask detached the guided pass keeps no graph: 9F - 2F = 7F = 2.33 steps. (In both, and in the step of
cross-entropy, the first layer's derivative by the image itself is left out where nothing hangs on it.)

The loop over images is the public code's formulation, written by us from its description: batch of 1, three
forwards, each with a whole backward pass that keeps its graph, ReLU modules exchanged for the second, all
graphs of all images kept until one backward. It gives the same loss; this is checked.

A GPU section follows where there is a GPU: bf16, channels-last, batches of 32 to 256 at 224 and 448 px, and
how much of a step no kernel runs. It has not been run yet.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from atcon import consistency_loss, supervised_loss
from benchmarks.measure import kilobytes, report
from tests.atcon.slow_atcon import GuidedReLU, pearson, squash, swap
from wsod.models import build_classifier
from wsod.models.classifier import Classifier

STD: dict[str, Any] = {"mask_scale": "std", "mask_slope": 4.0}
FLOORS = {"second order": 9, "detached mask": 7, "cross-entropy": 3}
MARKS = {"second order": 4.5, "detached mask": 2.3}


def whole_backward(
    classifier: Classifier, x: Tensor, label: int | None = None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The target layer's output and its gradient, the image's, and the class (the top one if none is told).

    The gradient of every parameter is computed as well.
    """
    kept: list[Tensor] = []
    layer = classifier.network.get_submodule(classifier.target_layer)
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = classifier(x)[0]
    handle.remove()
    label = int(logits.argmax()) if label is None else label
    inputs = [kept[0], *([x] if x.requires_grad else []), *classifier.parameters()]
    found = torch.autograd.grad(logits[label], inputs, create_graph=True, allow_unused=True)
    return kept[0], found[0], found[1], label


def public_loop(classifier: Classifier, images: Tensor) -> Tensor:
    """ATCON image by image."""
    total = torch.zeros(())
    for i in range(len(images)):
        x = images[i : i + 1]
        features, gradient, _, label = whole_backward(classifier, x)
        first = (gradient.mean((2, 3), keepdim=True) * features).sum(1)[0]
        leaf = x.clone().requires_grad_()
        swap(classifier.network, nn.ReLU, GuidedReLU)
        try:
            saliency = whole_backward(classifier, leaf, label)[2][0].abs().sum(0)
        finally:
            swap(classifier.network, GuidedReLU, nn.ReLU)
        theta = saliency.mean() + saliency.std() / 2
        mask = torch.sigmoid(STD["mask_slope"] * (saliency - theta) / saliency.std())
        features, gradient, _, _ = whole_backward(classifier, x * mask, label)
        second = (gradient.mean((2, 3), keepdim=True) * features).sum(1)[0]
        total = total - pearson(squash(first), squash(second)) / len(images)
    return total


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    return parser.parse_args()


def network(arch: str, size: int) -> Classifier:
    torch.manual_seed(0)
    classes = [f"class {k}" for k in range(20)]
    return build_classifier(arch, classes, task="multilabel", size=size).eval()


def steps(classifier: Classifier, images: Tensor, targets: Tensor) -> dict[str, Callable[[], None]]:
    """One optimiser step of each kind, on the same network and images."""
    parameters = list(classifier.parameters())
    optimiser = torch.optim.Adam(parameters, 1e-9)

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss(), inputs=parameters)  # as the trainer does
            optimiser.step()

        return run

    return {
        "cross-entropy": step(lambda: supervised_loss(classifier(images), targets)),
        "detached mask": step(lambda: consistency_loss(classifier, images, detach_mask=True, **STD)[0]),
        "second order": step(lambda: consistency_loss(classifier, images, **STD)[0]),
        "loop": step(lambda: public_loop(classifier, images)),
    }


def data(batch: int, size: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=random)
    return images, (torch.rand(batch, 20, generator=random) > 0.9).float()


def interleaved(turns: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turn."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for name in turns:
        turns[name]()
    for _ in range(rounds):
        for name, turn in turns.items():
            start = time.process_time()
            turn()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def peak(arguments: argparse.Namespace, kind: str) -> float:
    """MB of resident memory at its highest over those of the idle process, in a process of its own."""
    command = [sys.executable, __file__, "--peak", kind, "--arch", arguments.arch]
    command += ["--batch", str(arguments.batch), "--size", str(arguments.size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def on_cpu(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    turns = steps(network(arguments.arch, arguments.size), *data(arguments.batch, arguments.size))
    images, _ = data(arguments.batch, arguments.size)
    classifier = network(arguments.arch, arguments.size)
    ours, theirs = consistency_loss(classifier, images, **STD)[0], public_loop(classifier, images)
    if abs(ours.item() - theirs.item()) > 1e-4:
        raise SystemExit(f"not the same loss: {ours.item()} and {theirs.item()}")
    del ours, theirs
    seconds = interleaved(turns, arguments.rounds)
    plain = seconds["cross-entropy"]
    forward = plain / FLOORS["cross-entropy"]
    rows = []
    for kind in ("second order", "detached mask"):
        over = seconds[kind] / plain
        print(
            f"{kind}: {over:.2f} steps of cross-entropy (mark: at most {MARKS[kind]}); the floor of "
            f"{FLOORS[kind]}F is {FLOORS[kind] / 3:.2f}, {over / (FLOORS[kind] / 3):.2f} times that"
        )
        rows.append(
            {
                "name": f"ATCON, {kind}, {arguments.arch} {arguments.batch}x{arguments.size}",
                "ours_s": seconds[kind],
                "peer": "loop over images (mark: 4)",
                "peer_s": seconds["loop"],
                "ratio": seconds["loop"] / seconds[kind],
                "floor_s": FLOORS[kind] * forward,
                "over_cross_entropy": over,
            }
        )
    for kind in turns if Path("/proc/self/clear_refs").exists() else ():
        print(f"peak memory, {kind}: {peak(arguments, kind):.0f} MB")
    return rows


def on_gpu(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps in bf16, channels-last, with images a second, peak memory and how much of the step kernels run.

    The loop over images is timed at the smallest setting alone; elsewhere a step of cross-entropy is the
    peer. Batches that do not fit are left out.
    """
    rows = []
    for size in (224, 448):
        for batch in (32, 64, 128, 256):
            try:
                rows += _gpu_rows(arguments, batch, size, loop=(batch, size) == (32, 224))
            except torch.cuda.OutOfMemoryError:
                print(f"{batch}x{size}: not enough memory")
            torch.cuda.empty_cache()
    return rows


def _gpu_rows(arguments: argparse.Namespace, batch: int, size: int, *, loop: bool) -> list[dict[str, Any]]:
    images, targets = (tensor.cuda() for tensor in data(batch, size))
    images = images.contiguous(memory_format=torch.channels_last)
    classifier = network(arguments.arch, size).cuda().to(memory_format=torch.channels_last)
    turns = steps(classifier, images, targets)
    if not loop:
        del turns["loop"]
    seconds = {}
    for kind, turn in turns.items():
        seconds[kind], megabytes = _timed(turn, arguments.rounds)
        busy, kernels, gap = _timeline(turn)
        print(
            f"{kind}, {batch}x{size}: {batch / seconds[kind]:.0f} images/s, {megabytes:.0f} MB at most; "
            f"{kernels} kernels, running {busy:.0%} of the step, longest pause {gap * 1e3:.2f} ms"
        )
    peer = "loop over images (mark: 20)" if loop else "a step of cross-entropy"
    peer_s = seconds["loop" if loop else "cross-entropy"]
    return [
        {
            "name": f"ATCON, {kind}, {arguments.arch} {batch}x{size} bf16",
            "ours_s": seconds[kind],
            "peer": peer,
            "peer_s": peer_s,
            "ratio": peer_s / seconds[kind],
            "floor_s": FLOORS[kind] / FLOORS["cross-entropy"] * seconds["cross-entropy"],
            "over_cross_entropy": seconds[kind] / seconds["cross-entropy"],
            "images_s": batch / seconds[kind],
        }
        for kind in ("second order", "detached mask")
    ]


def _timed(turn: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Median seconds, and MB of the device's memory at their highest."""
    taken = []
    with torch.autocast("cuda", torch.bfloat16):
        for _ in range(2):  # the first ones choose kernels and reserve memory
            turn()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(rounds):
            start = time.perf_counter()
            turn()
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return statistics.median(taken), torch.cuda.max_memory_allocated() / 1e6


def _timeline(turn: Callable[[], None]) -> tuple[float, int, float]:
    """Of one step: the share of its time in which a kernel runs, their number, the longest pause in s."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.autocast("cuda", torch.bfloat16), torch.profiler.profile(activities=activities) as found:
        turn()
        torch.cuda.synchronize()
    # the optimiser's step is an annotation over its kernels, not a kernel
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in found.events() or ()
        if event.device_type == DeviceType.CUDA and not event.name.startswith("Optimizer.")
    ]
    return busy_share(spans)


def busy_share(spans: list[tuple[float, float]]) -> tuple[float, int, float]:
    """(share of the time from first start to last end covered by spans, their number, longest pause in s).

    Args:
        spans: (start, end) in microseconds; they may overlap.
    """
    reached, covered, pause = min(spans)[0], 0.0, 0.0
    first = reached
    for start, end in sorted(spans):
        pause = max(pause, start - reached)
        covered += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return covered / (reached - first), len(spans), pause / 1e6


def main() -> None:
    arguments = options()
    if arguments.peak:
        turn = steps(network(arguments.arch, arguments.size), *data(arguments.batch, arguments.size))
        # the kernel's high-water mark is lowered to now
        before = kilobytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        turn[arguments.peak]()
        print((kilobytes("VmHWM") - before) / 1e3)
        return
    rows = on_cpu(arguments)
    if torch.cuda.is_available():
        rows += on_gpu(arguments)
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
