"""All maps of a batch, by name, from one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsod.errors import ConfigError
from wsod.maps.method import MapMethod
from wsod.maps.registry import METHODS
from wsod.maps.tape import Tape
from wsod.maps.tta import fused_maps, views_of
from wsod.models import Classifier, load_classifier

__all__ = ["Attention", "Labels", "attention_maps", "cases_of", "tape_for"]

Labels = Tensor | Sequence[int] | Sequence[Sequence[int]]


class Attention(NamedTuple):
    """Maps of all cases of a batch.

    Attributes:
        cases: (M, 2) int64, rows of (row in the batch, label).
        maps: by method, (M, h, w); raw, at the method's native resolution.
        logits: (N, C).
    """

    cases: Tensor
    maps: dict[str, Tensor]
    logits: Tensor


def cases_of(labels: Labels, images: int, classes: int) -> Tensor:
    """(M, 2) int64 rows of (row, label), image by image.

    Args:
        labels: one label an image, (N,); a list of labels each; or multi-hot, (N, C).
        images: N.
        classes: C.

    Raises:
        ConfigError: for another number of images or a label that is none.

    >>> cases_of([[2, 0], [], [1]], images=3, classes=3).tolist()
    [[0, 2], [0, 0], [2, 1]]
    """
    if len(labels) != images:
        raise ConfigError("labels", f"labels of {images} images", f"of {len(labels)}")
    if isinstance(labels, Tensor) and labels.ndim == 2:
        if labels.shape[1] != classes or bool(((labels != 0) & (labels != 1)).any()):
            raise ConfigError("labels", f"zeros and ones of shape ({images}, {classes})", tuple(labels.shape))
        return labels.nonzero().cpu()
    rows = labels.tolist() if isinstance(labels, Tensor) else labels
    pairs = []
    for row, some in enumerate(rows):
        for label in some if isinstance(some, Sequence) else [some]:
            if isinstance(label, bool) or int(label) != label or not 0 <= label < classes:
                raise ConfigError(f"labels, image {row}", f"labels from 0 to {classes - 1}", label)
            pairs.append((row, int(label)))
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def tape_for(classifier: Classifier, images: Tensor, methods: Iterable[MapMethod]) -> Tape:
    """The one forward pass that these methods share."""
    methods = list(methods)
    needs = frozenset(need for method in methods for need in method.needs)
    layers = dict.fromkeys(layer for method in methods for layer in method.layers)
    return Tape(classifier, images, needs=needs, layers=tuple(layers))


def attention_maps(
    classifier: nn.Module,
    images: Tensor,
    labels: Labels,
    methods: Sequence[str] = ("gradcam",),
    *,
    tta: str | Sequence[str] = (),
) -> Attention:
    """Attention maps of a batch of preprocessed images. The classifier is left as it was.

    One forward pass serves all methods and classes (methods that need further passes make their own).

    Args:
        classifier: a `Classifier`, or any network that `load_classifier` can wrap.
        images: (N, 3, H, W), preprocessed, on the classifier's device.
        labels: one label an image; a list of labels each; or multi-hot (N, C).
        methods: names in `METHODS`; `NAME:key=value,…` gives a method's own options.

        tta: test-time augmentation: `flip` and scales, such as `"flip,0.75,1.25"`; maps are then means.

    Returns:
        The cases, a stack of maps a method, and the logits; all detached, on the images' device.

    Raises:
        ConfigError: for an unknown method or labels that do not fit.
        ModelError: where a method cannot work on this network, with an alternative.

    Example:
        >>> from wsod.models import build_classifier
        >>> classifier = build_classifier("smallnet", ["cat", "dog"])
        >>> found = attention_maps(classifier, torch.zeros(1, 3, 64, 64), [[0, 1]], ["gradcam", "layercam"])
        >>> {name: tuple(maps.shape) for name, maps in found.maps.items()}
        {'gradcam': (2, 8, 8), 'layercam': (2, 8, 8)}
    """
    entries = {name: METHODS[name] for name in methods}
    views = views_of(tta)
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise ConfigError("images", "a floating point tensor (N, 3, H, W)", getattr(images, "shape", images))
    wrapped = (
        classifier
        if isinstance(classifier, Classifier)
        else load_classifier(classifier, device=images.device)
    )
    tape = tape_for(wrapped, images, entries.values())
    cases = cases_of(labels, len(images), tape.logits.shape[1])
    maps = fused_maps(tape, cases, entries, views)
    return Attention(cases.to(images.device), maps, tape.logits.detach())
