"""Many forward passes over variants of the images of a tape, streamed: no graph, bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor

from wsod.errors import ConfigError
from wsod.maps.derivatives import full
from wsod.maps.folding import folded
from wsod.maps.pointwise import PointwiseMode
from wsod.maps.tape import Tape
from wsod.memory import Room, room_for
from wsod.models.classifier import Classifier, evaluation_mode

__all__ = ["Forward", "Precision", "ScoreKind", "chunk_size", "ready", "room_of", "scores_of", "sweeping"]

Forward = Callable[[Tensor], Tensor]
Precision = Literal["full", "bf16"]
ScoreKind = Literal["logit", "probability"]

# bytes of input a pass: 4 images of 224 px on a processor, where activations beyond 32 MB are mapped anew by
# the kernel each time, page by page; 64 elsewhere
_CPU, _ACCELERATOR = 2_500_000, 40_000_000


def chunk_size(images: Tensor, chunk: int) -> int:
    """How many variants go through the network at once: `chunk`, or for 0 what suits the device."""
    if chunk < 0:
        raise ConfigError("chunk", "at least 0", chunk)
    one = images[0].numel() * images.element_size() if len(images) else 1
    return chunk or max(1, (_CPU if images.device.type == "cpu" else _ACCELERATOR) // one)


def room_of(tape: Tape) -> Room:
    """How many variants of an image fit in memory at once."""
    return room_for(tape.classifier, "variants of an image a pass")


@contextmanager
def ready(tape: Tape, precision: Precision, fold: bool) -> Iterator[Classifier]:
    """The tape's classifier made fast, in evaluation mode, under its autocast or bfloat16.

    Batch norms are folded (`fold`) where that gives the tape's logits again.
    """
    if precision not in ("full", "bf16"):
        raise ConfigError("precision", "full or bf16", repr(precision))
    classifier, device = tape.classifier, tape.images.device.type
    with ExitStack() as stack:
        if tape.eval_mode:
            stack.enter_context(evaluation_mode(classifier))
        with torch.no_grad(), tape.autocast():
            fast = folded(classifier) if fold and len(tape.images) else classifier
            if fast is not classifier:
                expected = tape.logits[:1].detach()
                error = (full(fast(tape.images[:1].detach().clone())) - expected).abs().max()
                half = torch.is_autocast_enabled(device) or expected.dtype != tape.images.dtype
                if not bool(error <= (0.05 if half else 1e-3) * expected.abs().max()):
                    fast = classifier
        # one autocast around all passes: the converted weights are kept in its cache
        bf16 = precision == "bf16"
        stack.enter_context(torch.autocast(device, torch.bfloat16) if bf16 else tape.autocast())
        stack.enter_context(PointwiseMode())
        yield fast


@contextmanager
def sweeping(tape: Tape, precision: Precision = "full", fold: bool = True) -> Iterator[Forward]:
    """A function from variants of the images (B, 3, H, W) to logits (B, C), without graph, channels-last.

    Variants that do not fit in memory together go through the network in parts.
    """
    with ready(tape, precision, fold) as classifier:

        def once(images: Tensor) -> Tensor:
            with torch.no_grad():
                return full(classifier(images.contiguous(memory_format=torch.channels_last)))

        def forward(images: Tensor) -> Tensor:
            parts = list(room_of(tape).over(images, once))
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        yield forward


def scores_of(tape: Tape, logits: Tensor, score: ScoreKind) -> Tensor:
    """Logits as they are, or the classifier's probabilities: softmax, sigmoid for independent labels."""
    if score not in ("logit", "probability"):
        raise ConfigError("score", "logit or probability", repr(score))
    if score == "logit":
        return logits
    return logits.sigmoid() if tape.classifier.task == "multilabel" else logits.softmax(1)
