"""What a map method is, and the few steps all of them share."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsod.config import convert
from wsod.errors import ConfigError, MapError
from wsod.registry import nearest

if TYPE_CHECKING:
    from wsod.maps.fitted import Fit
    from wsod.maps.tape import Tape

__all__ = ["MapMethod", "Need", "combine", "rectify"]

Need = Literal[
    "attention_gradients",
    "attentions",
    "biases",
    "class_weights",
    "fit",
    "forwards",
    "gradient",
    "hessian",
    "image",
    "input_gradient",
    "nothing",
    "probability",
    "relevance",
]


# arguments that every function has, or that say what it is called for
_SHARED = frozenset({"create_graph", "image_id"})


@dataclass(frozen=True)
class MapMethod:
    """An attention map method: raw maps from a tape, never resized, normalised or thresholded.

    Args:
        function: `(tape, cases, *, create_graph, **options) → (M, h, w)`; for controls numpy: of one that
            needs nothing `(size, *, image_id, **options) → (h, w)`, of one that needs the image
            `(image (H, W, 3), **options) → (H, W)`.
        summary: one line: the equation or the idea.
        citation: where it was published.
        needs: what the tape has to give: `class_weights` (a head that is linear on pooled features),
            `gradient` and `hessian` (at the target layer), `input_gradient` (the whole graph), `biases` (the
            outputs of all layers that have one), `forwards` (further forward passes), `attentions` and
            `attention_gradients` (a transformer's attention weights), `relevance` and `probability` (backward
            rules of linear layers, and of sums and means), `fit` (something learned before from images with
            labels), `image` (its pixels, no classifier), `nothing` (neither classifier nor image).
        class_specific: whether the map depends on the class.
        differentiable: whether `create_graph=True` gives maps that can be trained through.
        values: `raw` scores of any sign, or `probability`.
        supervision: what it uses beyond the classifier's own.
        point: for a control that is a point by definition, `(size) → (x, y)` in pixels of the image.
        options: values of the function's own options, where they are not its defaults.
        fit: what `wsod fit` calls, for a method that needs one; the result's file is its option `fit`.
    """

    function: Callable[..., Any]
    summary: str
    citation: str
    needs: frozenset[Need] = frozenset()
    class_specific: bool = True
    differentiable: bool = True
    values: Literal["raw", "probability"] = "raw"
    supervision: tuple[str, ...] = ()
    point: Callable[[tuple[int, int]], tuple[float, float]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    fit: Fit | None = None

    def configured(self, options: Mapping[str, Any], where: str = "a map method") -> MapMethod:
        """This method with other values of its options.

        Args:
            options: values by name.
            where: what a message begins with.

        Raises:
            ConfigError: for an option it has not, or a value of another type.
        """
        try:
            known = inspect.signature(self.function, eval_str=True).parameters
        except (NameError, AttributeError, TypeError):  # annotated with what type checkers alone import
            known = inspect.signature(self.function).parameters
        hints = {name: p.annotation for name, p in known.items() if p.annotation is not p.empty}
        own = [name for name, p in known.items() if p.kind is p.KEYWORD_ONLY and name not in _SHARED]
        any_name = any(p.kind is p.VAR_KEYWORD for p in known.values())
        found = {}
        for name, value in options.items():
            if name not in own and not any_name:
                near = nearest(name, own) if own else "It has none."
                raise ConfigError(where, "an option of the method", repr(name), near)
            hint = hints.get(name, Any)
            found[name] = convert(Any if isinstance(hint, str) else hint, value, f"{where}: {name}")
        return replace(self, options={**self.options, **found})

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers its tape has to be made with, beyond the target layer."""
        layers = self.options.get("layers", ())
        return tuple(layers.split("+") if isinstance(layers, str) else layers)

    def __call__(self, tape: Tape, cases: Tensor, *, create_graph: bool = False, **options: Any) -> Tensor:
        """Maps of some cases.

        Args:
            tape: the forward pass of the batch.
            cases: (M, 2) int64, rows of (row in the batch, label).
            create_graph: keep the graph of the derivatives, to train through the maps.
            options: the method's own.

        Returns:
            (M, h, w), float32 or float64, at the method's native resolution; in the graph where the tape was
            made with `create_graph=True`.
        """
        if self.is_control:
            return self._controls(tape, cases, options)
        # sums over channels and cells lose too much in half precision; a graph is kept for training alone
        full = torch.autocast(tape.images.device.type, enabled=False)
        with full, torch.set_grad_enabled(tape.create_graph and torch.is_grad_enabled()):
            options = {**self.options, **options}
            maps: Tensor = self.function(tape, cases, create_graph=create_graph, **options)
        return maps

    @property
    def is_control(self) -> bool:
        """Whether it is made without a classifier, by `control`."""
        return not self.needs.isdisjoint({"nothing", "image"})

    def _controls(self, tape: Tape, cases: Tensor, options: Mapping[str, Any]) -> Tensor:
        """A control of each case's image: named by its pixels, shown as it was before it was normalised."""
        preprocess = tape.classifier.preprocess
        mean, std = np.array(preprocess.mean), np.array(preprocess.std)
        height, width = tape.images.shape[-2:]
        found = {}
        for row in sorted(set(cases[:, 0].tolist())):
            pixels = tape.images[row].detach().permute(1, 2, 0).double().cpu().numpy()
            name = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
            one = self.control((height, width), image_id=name, image=pixels * std + mean, **options)
            found[row] = torch.from_numpy(one).to(tape.images.device, tape.logits.dtype)
        if not found:
            return tape.logits.new_zeros(0, height, width)
        return torch.stack([found[row] for row in cases[:, 0].tolist()])

    def control(
        self,
        size: tuple[int, int],
        *,
        image_id: str = "",
        image: NDArray[np.float64] | None = None,
        **options: Any,
    ) -> NDArray[np.float64]:
        """(h, w) float64 map of a control, which needs no classifier.

        Args:
            size: (height, width) to make it at: the evaluation frame.
            image_id: the image it is for; random ones depend on it.
            image: (H, W, 3), red, green, blue in [0, 1], for a control that needs the image.
            options: the method's own.

        Raises:
            MapError: for a method that is no such control.
        """
        options = {**self.options, **options}
        values: NDArray[np.float64]
        if "image" in self.needs:
            if image is None:
                raise MapError(self.summary, "the image's pixels for this control", "none")
            values = self.function(image, **options)
        elif "nothing" in self.needs:
            values = self.function(size, image_id=image_id, **options)
        else:
            raise MapError(self.summary, "a control, to be made without a classifier", "a map method")
        return values


def combine(weights: Tensor, features: Tensor) -> Tensor:
    """Σ_d weights[m, d] · features[m, d, y, x]: (M, D) and (M, D, h, w) → (M, h, w)."""
    return torch.einsum("md,mdhw->mhw", weights.to(features.dtype), features)


def rectify(maps: Tensor, relu: bool) -> Tensor:
    """The last ReLU that many papers apply; without it, evidence against the class stays visible."""
    return maps.relu() if relu else maps
