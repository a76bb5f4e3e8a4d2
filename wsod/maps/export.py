"""A classifier and the maps that need no gradient, as one ONNX graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from wsod.config import plain
from wsod.errors import ConfigError, ModelError
from wsod.maps.tape import Tape
from wsod.models.classifier import Classifier, evaluation_mode
from wsod.output import write_bytes

__all__ = ["EXPORTABLE", "export_onnx"]

#: (A (N, D, h, w), W (C, D), logits (N, C)) → maps of all classes (N, C, h, w)
Form = Callable[[Tensor, Tensor, Tensor], Tensor]

# matrix powers by squaring: the second component is left with (σ₂/σ₁)^8192
_SQUARINGS: Final = 12


def _sum(weights: Tensor, features: Tensor) -> Tensor:
    """Σ_d weights[k, d] · features[n, d, y, x]."""
    return torch.einsum("kd,ndhw->nkhw", weights, features)


def _cells(features: Tensor) -> int:
    return int(features.shape[2] * features.shape[3])


def _gradcam(features: Tensor, weights: Tensor, logits: Tensor) -> Tensor:
    return _sum(weights / _cells(features), features).relu()


def _layercam(features: Tensor, weights: Tensor, logits: Tensor) -> Tensor:
    return _sum(weights.relu() / _cells(features), features).relu()


def _elementgradcam(features: Tensor, weights: Tensor, logits: Tensor) -> Tensor:
    both = _sum(weights.relu(), features.relu()) + _sum((-weights).relu(), (-features).relu())
    return both / _cells(features)


def _gradcam_plus_plus(features: Tensor, weights: Tensor, logits: Tensor) -> Tensor:
    cells = _cells(features)
    positive = weights.relu()[None] / cells
    total = features.relu().sum((2, 3))[:, None]
    return torch.einsum("nkd,ndhw->nkhw", cells * positive / (2 + total * positive), features).relu()


def _ablationcam(features: Tensor, weights: Tensor, logits: Tensor) -> Tensor:
    summed = torch.einsum("kd,nd,ndhw->nkhw", weights, features.mean((2, 3)), features)
    dead = (logits == 0)[:, :, None, None]
    return (summed / torch.where(dead, 1.0, logits[:, :, None, None])).relu()


def _eigencam(features: Tensor) -> Tensor:
    """(N, h, w): `eigencam` without a decomposition, which ONNX has not.

    The cells' lengths are followed through powers of the Gram matrix: what is left is the first component,
    with the sign that makes the map grow with them.
    """
    cells = features.flatten(2).transpose(1, 2)
    lengths = cells.norm(dim=2, keepdim=True)
    start = lengths - lengths.mean(1, keepdim=True)
    cells = cells - cells.mean(1, keepdim=True)
    gram = cells @ cells.transpose(1, 2)
    tiny = torch.finfo(gram.dtype).tiny
    power = gram
    for _ in range(_SQUARINGS):
        power = power / power.abs().amax((1, 2), keepdim=True).clamp(min=tiny)
        power = power @ power
    first = power @ start
    first = first / first.norm(dim=1, keepdim=True).clamp(min=tiny)
    maps: Tensor = first * (first * (gram @ first)).sum(1, keepdim=True).clamp(min=0).sqrt()
    return maps.reshape(-1, features.shape[2], features.shape[3])


#: functions of the features and the weights of a linear head, where ∂ logit / ∂ A is W / (h·w)
_FORMS: dict[str, Form] = {
    "cam": lambda features, weights, logits: _sum(weights, features),
    "gradcam": _gradcam,
    "gradcam++": _gradcam_plus_plus,
    "hirescam": _gradcam,
    "layercam": _layercam,
    "elementgradcam": _elementgradcam,
    "ablationcam": _ablationcam,
}
EXPORTABLE: Final = (*_FORMS, "eigencam")


class _WithMaps(nn.Module):
    """(N, 3, H, W) → logits (N, C) and a stack of maps a method."""

    def __init__(self, classifier: Classifier, methods: Sequence[str], weights: Tensor | None) -> None:
        super().__init__()
        self.classifier, self.methods = classifier, tuple(methods)
        self.weights = weights

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            kept.append(output)
            return output.clone()  # what follows may work in place

        layer = self.classifier.network.get_submodule(self.classifier.target_layer)
        handle = layer.register_forward_hook(keep)
        try:
            logits = self.classifier(images)
        finally:
            handle.remove()
        features = self.classifier.grid(kept[0])
        return logits, *(self._maps(method, features, logits) for method in self.methods)

    def _maps(self, method: str, features: Tensor, logits: Tensor) -> Tensor:
        if method == "eigencam":
            return _eigencam(features)
        assert self.weights is not None
        return _FORMS[method](features, self.weights, logits)


def export_onnx(classifier: Classifier, path: str | Path, methods: Sequence[str] = ("cam",)) -> list[str]:
    """Write a classifier with its maps as one ONNX graph: `images` (N, 3, S, S) → `logits` and the maps.

    A method's output has its name: raw maps of all classes (N, C, h, w), or (N, h, w) of `eigencam`, which
    knows no class. N is free, S is the classifier's input size; images are preprocessed as for the classifier
    (its classes and preprocessing are in the file's metadata, under `wsod`). With a head that is linear on
    pooled features, gradients at the target layer are its weights, so the gradient maps have closed forms.

    Args:
        classifier: what to export; left as it was.
        path: the file.
        methods: of `EXPORTABLE`.

    Returns:
        The names of the graph's outputs.

    Raises:
        ConfigError: for a method that needs gradients or further passes, or where `onnxscript` is missing.
        ModelError: where the head is not linear on the pooled features.
    """
    for method in methods:
        if method not in EXPORTABLE:
            maps = ", ".join(EXPORTABLE)
            raise ConfigError("--maps", f"maps of one forward pass ({maps})", repr(method))
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ConfigError(
            "export",
            "onnx and onnxscript to be installed",
            "no such module",
            "pip install 'wsod-atcon[onnx]'",
        ) from None
    side = classifier.preprocess.size
    device = next(classifier.parameters()).device
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    tape = Tape(classifier, images)
    weights = None
    if set(methods) - {"eigencam"}:
        weights = tape.class_weights.detach()
        if not tape.linear_head and set(methods) - {"cam", "eigencam"}:
            raise ModelError(
                f"{classifier.arch}, layer {classifier.target_layer}",
                "logits that are linear in the average-pooled features",
                "another kind of head",
                "Export cam or eigencam.",
            )
    outputs = ["logits", *methods]
    with evaluation_mode(classifier), torch.no_grad():
        program = torch.onnx.export(
            _WithMaps(classifier, methods, weights).eval(),
            (images,),
            input_names=["images"],
            output_names=outputs,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    about = {
        "classes": classifier.classes,
        "task": classifier.task,
        "preprocess": plain(classifier.preprocess),
    }
    program.model.metadata_props["wsod"] = json.dumps(about)
    write_bytes(Path(path), program.model_proto.SerializeToString())
    return outputs
