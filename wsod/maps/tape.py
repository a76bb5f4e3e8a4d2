"""One forward pass of a batch, shared by all classes, all map methods and training objectives.

By default the network's body runs without a graph; inside the target layer's forward hook gradients are
switched on and the pass goes on from a clone of its output, so the graph covers the head alone. Time and
memory are those of a bare forward, nothing has to be frozen, and an in-place operation after the target layer
cannot change what was stored. Where the input's gradient or a derivative of the maps is needed, the same pass
keeps the whole graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from wsod.errors import ConfigError, ModelError
from wsod.maps.guided import ReluMode, Rule
from wsod.models.classifier import Classifier
from wsod.models.heads.linear import final_layer

__all__ = ["Tape"]

Hook = Callable[[nn.Module, Any, Any], Any]


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def _full(tensor: Tensor) -> Tensor:
    """Half precision to float32; maps are sums over many channels and cells."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class Tape:
    """A forward pass that remembers: logits, features at the target layer, and how to differentiate them.

    The classifier is left exactly as it was, also after an exception: its mode (it runs in evaluation mode,
    module by module restored), parameters' `.grad`, buffers, hooks. Works on frozen networks, under
    `no_grad` and `inference_mode`, autocast, half precision and any memory format.

    Args:
        classifier: what to run.
        images: (N, 3, H, W), preprocessed. With `create_graph` a graph it carries is continued.
        needs: with `input_gradient`, the pass keeps the whole graph and rectifiers can be switched.
        create_graph: maps will be trained through: keep the graph down to the parameters.
        eval_mode: False runs the network in the mode it is in. Batch normalisation in training mode mixes
            the images of a batch, and moves its statistics.

    Attributes:
        images: the batch.
        logits: (N, C) float32 (or float64), in the graph.
        features: (N, D, h, w) float32 (or float64) at the target layer, in the graph.
        relu_calls: rectifier calls of this pass that a rule can switch (0 without `input_gradient`).

    Raises:
        ModelError: where the target layer was not run exactly once, or its output is no grid.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        *,
        needs: Set[str] = frozenset(),
        create_graph: bool = False,
        eval_mode: bool = True,
    ) -> None:
        self.classifier = classifier
        self.needs, self.create_graph, self._eval_mode = frozenset(needs), create_graph, eval_mode
        self._where = f"{classifier.arch}, layer {classifier.target_layer}"
        self._mode = ReluMode() if "input_gradient" in needs else None
        device = images.device.type
        self._cast = device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._gradients: dict[Any, Tensor] = {}
        self._head: tuple[Tensor, Literal["linear", "rectified", "other"]] | None = None
        self._outputs: list[Tensor] = []
        self._attention: list[Any] = []
        with torch.inference_mode(False):
            images = images.clone() if images.is_inference() else images
            images = images if create_graph and images.requires_grad else images.detach()
            if self._mode is not None and not images.requires_grad:
                images.requires_grad_()
            self.images = images
            hooks: list[tuple[str, Hook]] = [(classifier.target_layer, self._capture)]
            if classifier.attention_layer is not None:
                hooks.append((classifier.attention_layer, self._attend))
            graph = create_graph or self._mode is not None
            self._logits = self._forward(images, hooks, graph, self._mode)
            if len(self._outputs) != 1:
                raise ModelError(
                    self._where,
                    "a target layer that runs once in a forward pass",
                    f"{len(self._outputs)} runs",
                    "Choose another with --target-layer.",
                )
            self._leaf = self._outputs[0]
            self.logits = _full(self._logits)
            self.features = _full(classifier.grid(self._leaf))

    def _capture(self, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            self.classifier.grid(output)  # raises, saying what it is
        if not (torch.is_grad_enabled() and output.requires_grad):
            torch.set_grad_enabled(True)
            output = output.detach().requires_grad_()
        self._outputs.append(output)
        return cast(Tensor, output.clone())

    def _attend(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._attention.append(output)

    def _forward(
        self, images: Tensor, hooks: list[tuple[str, Hook]], graph: bool, relus: ReluMode | None
    ) -> Tensor:
        """Logits of a pass with these forward hooks, which are gone afterwards, as is evaluation mode."""
        mode = _evaluation_mode(self.classifier) if self._eval_mode else nullcontext()
        handles: list[RemovableHandle] = []
        try:
            for path, hook in hooks:
                handles.append(self.classifier.network.get_submodule(path).register_forward_hook(hook))
            with mode, self._autocast(), torch.set_grad_enabled(graph), relus or nullcontext():
                # a copy: the network may begin with an in-place operation
                return cast(Tensor, self.classifier(images.clone()))
        finally:
            for handle in handles:
                handle.remove()

    def _autocast(self) -> torch.autocast:
        """The caller's autocast when the tape was made; maps themselves are computed without."""
        device, enabled, dtype = self._cast
        return torch.autocast(device, dtype=dtype, enabled=enabled)

    def again(self, images: Tensor, needs: Set[str], create_graph: bool) -> Tape:
        """A tape of other images, made as this one was."""
        with self._autocast():
            return Tape(
                self.classifier, images, needs=needs, create_graph=create_graph, eval_mode=self._eval_mode
            )

    @property
    def relu_calls(self) -> int:
        return self._mode.calls if self._mode is not None else 0

    @property
    def attention(self) -> Tensor:
        """The attention map that the head itself computed, (N, h, w) or (N, C, h, w).

        Raises:
            ModelError: where the head has none.
        """
        if not self._attention:
            raise ModelError(
                f"head {self.classifier.head}",
                "a head that computes an attention map",
                "none",
                "Use gradcam.",
            )
        return _full(self._attention[-1])

    @property
    def class_weights(self) -> Tensor:
        """(C, D): what each class's logit gives to each feature map, where the head is linear on their means.

        Checked on this batch: logits = W·mean(A) + b, or mean(ReLU(W·A + b)) as in SqueezeNet.

        Raises:
            ModelError: where the head is anything else.
        """
        if self._head is None:
            self._head = self._inspect_head()
        weights, form = self._head
        if form == "other":
            raise ModelError(
                self._where,
                "logits that are linear in the average-pooled features (class weights)",
                "another kind of head",
                "Use gradcam or hirescam, which need none.",
            )
        return weights

    @property
    def linear_head(self) -> bool:
        """Whether logits = W·mean(A) + b, as checked on this batch."""
        if self._head is None:
            self._head = self._inspect_head()
        return self._head[1] == "linear"

    def _inspect_head(self) -> tuple[Tensor, Literal["linear", "rectified", "other"]]:
        layer = final_layer(self.classifier.network, self.logits.shape[1])[1]
        weights = _full(layer.weight.flatten(1))
        fits = weights.shape == (self.logits.shape[1], self.features.shape[1])
        # torchvision's ViT starts with a head of zeros, which any features would seem to explain
        if not fits or (self.classifier.layout == "tokens" and not weights.any()):
            return weights, "other"
        with torch.no_grad():
            offset = 0.0 if layer.bias is None else _full(layer.bias)
            tolerance = 0.05 if self._logits.dtype in (torch.bfloat16, torch.float16) else 1e-3
            limit = tolerance * (self.logits - offset).abs().max() + 1e-6 * self.logits.abs().max()
            pooled = self.features.mean((2, 3)) @ weights.T + offset
            if bool((pooled - self.logits).abs().max() <= limit):
                return weights, "linear"
            cells = torch.einsum("cd,ndhw->nhwc", weights, self.features) + offset
            if bool((cells.relu().mean((1, 2)) - self.logits).abs().max() <= limit):
                return weights, "rectified"
        return weights, "other"

    def select(self, cases: Tensor) -> Tensor:
        """(M, D, h, w): the features of each case's image; not copied where it is the batch in order."""
        rows = cases[:, 0].tolist()
        if rows == list(range(len(self.features))):
            return self.features
        return self.features[rows]

    def gradient(self, cases: Tensor, create_graph: bool = False) -> Tensor:
        """∂ logit of each case / ∂ features, (M, D, h, w). Asked for again, it is not computed again.

        Args:
            cases: (M, 2) int64, rows of (row, label).
            create_graph: differentiable; the tape has to be made with `create_graph=True`.

        Raises:
            ModelError: where the logits do not depend on the target layer, or only through a class token.
        """
        key = self._key("features", cases, create_graph)
        if key not in self._gradients:
            raw = self._differentiate(self._leaf, cases, create_graph)
            gradient = self.classifier.grid(raw)
            if self.classifier.prefix and len(cases) and not gradient.any() and raw.any():
                raise ModelError(
                    self._where,
                    "a class score that depends on the patch tokens",
                    "one that depends on the class token alone, so every map would be zero",
                    "Choose the first LayerNorm of the last block (the default) as target layer.",
                )
            self._gradients[key] = gradient
        return self._gradients[key]

    def input_gradient(self, cases: Tensor, *, rule: Rule = "plain", create_graph: bool = False) -> Tensor:
        """∂ logit of each case / ∂ image, (M, 3, H, W), rectifiers following `rule` on the way back.

        Args:
            cases: (M, 2) int64, rows of (row, label).
            rule: `plain`; `guided` (gradient passes where input and gradient are positive); `deconvnet`
                (where the gradient is positive). A later backward pass through the result is plain.
            create_graph: differentiable; the tape has to be made with `create_graph=True`.

        Raises:
            ModelError: for `guided` and `deconvnet` where the network's activations are not rectifiers.
        """
        if self._mode is None:
            raise ConfigError("Tape", "needs={'input_gradient'} for input gradients", sorted(self.needs))
        if rule != "plain" and (self._mode.others or not self._mode.calls):
            found = ", ".join(f"{n} calls of {name}" for name, n in self._mode.others.items())
            raise ModelError(
                f"{self.classifier.arch}, {rule} rule",
                "a network whose activations are ReLUs",
                found or "no ReLU call that can be replaced",
                "Use gradient or gradcam.",
            )
        key = self._key(rule, cases, create_graph)
        if key not in self._gradients:
            with self._mode.switch.set(rule):
                self._gradients[key] = self._differentiate(self.images, cases, create_graph)
        return self._gradients[key]

    def _key(self, what: str, cases: Tensor, create_graph: bool) -> tuple[object, ...]:
        """What names a gradient; refuses what cannot be computed."""
        if create_graph and not self.create_graph:
            raise ConfigError("Tape", "create_graph=True when it was made", "create_graph=False")
        rows, classes = self._logits.shape
        if cases.ndim != 2 or cases.shape[1] != 2 or cases.is_floating_point():
            raise ConfigError("cases", "(M, 2) integers, rows of (row, label)", f"shape {tuple(cases.shape)}")
        pairs = [(row, label) for row, label in cases.tolist()]
        if not all(0 <= row < rows and 0 <= label < classes for row, label in pairs):
            raise ConfigError("cases", f"rows below {rows} and labels below {classes}", pairs)
        return what, create_graph, *pairs

    def _differentiate(self, target: Tensor, cases: Tensor, create_graph: bool) -> Tensor:
        """∂ logit / ∂ target for each case, half precision converted.

        In evaluation mode images do not mix, so one backward pass serves one case of every image:
        as many passes as the image with the most cases has.
        """
        logits = self._logits
        seen: dict[int, int] = {}
        passes: list[list[int]] = []
        for index, row in enumerate(cases[:, 0].tolist()):
            turn = seen[row] = seen.get(row, -1) + 1
            if turn == len(passes):
                passes.append([])
            passes[turn].append(index)
        # float16 gradients of a mean-pooled score are near 1e-5 and would underflow
        scale = 1024.0 if torch.float16 in (logits.dtype, target.dtype) else 1.0
        pieces = []
        with torch.inference_mode(False):
            for members in passes:
                rows, labels = cases[members].to(logits.device).unbind(1)
                seed = torch.zeros_like(logits, requires_grad=False)
                seed[rows, labels] = scale
                gradient = None
                if logits.requires_grad:
                    (gradient,) = torch.autograd.grad(
                        logits, target, seed, retain_graph=True, create_graph=create_graph, allow_unused=True
                    )
                if gradient is None:
                    raise ModelError(
                        self._where,
                        "logits that depend on the target layer and the image",
                        "a forward pass that cuts the graph between them",
                    )
                gradient = _full(gradient) / scale if scale != 1 else _full(gradient)
                whole = cases[members, 0].tolist() == list(range(len(logits)))
                pieces.append(gradient if whole else gradient[rows])
            if not pieces:
                return _full(target).detach()[:0]
            if len(pieces) == 1:
                return pieces[0]
            order = torch.tensor([index for members in passes for index in members]).argsort()
            return torch.cat(pieces)[order.to(logits.device)]

    def replay(self, features: Tensor, row: int | None = None) -> Tensor:
        """The logits that other features at the target layer would give, without a graph.

        Args:
            features: (N, D, h, w), one a row of the batch; or, with `row`, (B, D, h, w) of one image.
            row: the image they are variants of; the body of the network then runs on it alone.

        Returns:
            Logits (N, C) or (B, C).
        """
        images, like = self.images.detach(), self._leaf.detach()
        if row is not None:
            images, like = images[row : row + 1], like[row : row + 1].expand(len(features), *like.shape[1:])
        if len(features) != len(like):
            raise ConfigError("replay", f"features of {len(like)} images", len(features))
        replaced = self.classifier.ungrid(features, like)

        def put(module: nn.Module, inputs: Any, output: Any) -> Tensor:
            return replaced.clone()

        with torch.inference_mode(False):
            return _full(self._forward(images, [(self.classifier.target_layer, put)], False, None))
