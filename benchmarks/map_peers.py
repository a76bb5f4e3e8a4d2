"""How other libraries do the same work, as contenders of `bench_maps.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wsod.models import Classifier

__all__ = ["MODULES", "Labels", "Maker", "Work", "peers"]

Work = Callable[[], object]
Labels = list[list[int]]
Maker = Callable[[Classifier, Tensor, Labels], Work]

MODULES = {
    "pytorch-grad-cam": "pytorch_grad_cam",
    "torchcam": "torchcam",
    "captum": "captum",
    "zennit": "zennit",
    "forward and input backward": "torch",
}


def pgc(kind: str, classifier: Classifier, images: Tensor, labels: Labels) -> Work:
    import pytorch_grad_cam as package
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as Target

    layer = classifier.network.get_submodule(classifier.target_layer)
    made = [getattr(package, name)(classifier.network, [layer]) for name in kind.split("+")]

    def work() -> None:
        for turn in range(len(labels[0])):
            for one in made:
                one.batch_size = 16
                one(images, [Target(some[turn]) for some in labels])

    return work


def torchcam(
    kind: str, classifier: Classifier, images: Tensor, labels: list[list[int]]
) -> Callable[[], object]:
    from torchcam import methods as package

    def work() -> None:
        options = {"batch_size": 16} if kind == "ScoreCAM" else {}
        with getattr(package, kind)(classifier.network, classifier.target_layer, **options) as extractor:
            scores = classifier.network(images)
            for turn in range(len(labels[0])):
                extractor(
                    [some[turn] for some in labels],
                    scores,
                    **({} if kind == "ScoreCAM" else {"retain_graph": turn + 1 < len(labels[0])}),
                )

    return work


def captum(
    kind: str, classifier: Classifier, images: Tensor, labels: list[list[int]]
) -> Callable[[], object]:
    from captum import attr

    layer = classifier.network.get_submodule(classifier.target_layer)
    about = (classifier.network, layer) if kind.startswith("Layer") else (classifier.network,)
    made = getattr(attr, kind)(*about)
    options: dict[str, Any] = {"n_steps": 50, "internal_batch_size": 10} if "Integrated" in kind else {}

    def work() -> None:
        for turn in range(len(labels[0])):
            target = torch.tensor([some[turn] for some in labels], device=images.device)
            made.attribute(images.clone(), target=target, **options)

    return work


def zennit(
    kind: str, classifier: Classifier, images: Tensor, labels: list[list[int]]
) -> Callable[[], object]:
    from zennit import composites, torchvision
    from zennit.attribution import Gradient

    composite = getattr(composites, kind)(
        **({"canonizers": [torchvision.ResNetCanonizer()]} if kind.startswith("Epsilon") else {})
    )
    rows = torch.eye(len(classifier.classes), device=images.device)[[some[0] for some in labels]]

    def work() -> None:
        with Gradient(classifier.network, composite) as attributor:
            attributor(images.clone(), rows)

    return work


def plain(kind: str, classifier: Classifier, images: Tensor, labels: Labels) -> Work:
    """So many times the forward pass and the backward pass to the input, parameters frozen."""
    classifier.requires_grad_(False)
    rows = torch.arange(len(images), device=images.device)
    columns = torch.tensor([some[0] for some in labels], device=images.device)

    def work() -> None:
        for _ in range(int(kind)):
            x = images.clone().requires_grad_()
            torch.autograd.grad(classifier(x)[rows, columns].sum(), x)

    return work


_MAKERS: dict[str, tuple[str, Any]] = {
    "pgc": ("pytorch-grad-cam", pgc),
    "torchcam": ("torchcam", torchcam),
    "captum": ("captum", captum),
    "zennit": ("zennit", zennit),
    "plain": ("forward and input backward", plain),
}


def peers(**kinds: str) -> dict[str, Maker]:
    """Contenders by the library's name, from what each of them calls the method."""
    return {_MAKERS[peer][0]: partial(_MAKERS[peer][1], kind) for peer, kind in kinds.items()}
