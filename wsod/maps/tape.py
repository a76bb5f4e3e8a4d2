"""One forward pass of a batch, shared by all classes, all map methods and training objectives.

By default the network's body runs without a graph; inside the target layer's forward hook gradients are
switched on and the pass goes on from a clone of its output, so the graph covers the head alone. Time and
memory are those of a bare forward, nothing has to be frozen, and an in-place operation after the target layer
cannot change what was stored. Where the input's gradient or a derivative of the maps is needed, the same pass
keeps the whole graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wsod.errors import ConfigError, ModelError
from wsod.maps.attentions import attention_mode
from wsod.maps.biases import bias_layers
from wsod.maps.derivatives import differentiate, full, hessian_product
from wsod.maps.guided import ReluMode, Rule, Rules
from wsod.maps.head import Form, inspect_head
from wsod.maps.passes import Hook, checked, forward_pass
from wsod.maps.relevance import backward_mode
from wsod.models.classifier import Classifier, evaluation_mode, resolve_layer

__all__ = ["Hook", "Tape", "evaluation_mode"]


class Tape:
    """A forward pass that remembers: logits, features at the target layer, and how to differentiate them.

    The classifier is left exactly as it was, also after an exception: its mode (it runs in evaluation mode,
    module by module restored), parameters' `.grad`, buffers, hooks. Works on frozen networks, under
    `no_grad` and `inference_mode`, autocast, half precision and any memory format.

    Args:
        classifier: what to run.
        images: (N, 3, H, W), preprocessed. With `create_graph` a graph it carries is continued.
        needs: with `input_gradient`, the pass keeps the whole graph and rectifiers can be switched; with
            `biases`, the output of every layer that adds a bias to each cell is kept too; with `hessian`,
            second derivatives can be taken without `create_graph`.
        layers: paths of further layers to keep, for `features_at` and `gradients`. The graph then begins at
            the earliest.
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
        layers: Sequence[str] = (),
        create_graph: bool = False,
        eval_mode: bool = True,
    ) -> None:
        self.classifier = classifier
        self.layers = tuple(resolve_layer(classifier.network, path) for path in layers)
        self.needs, self.create_graph, self.eval_mode = frozenset(needs), create_graph, eval_mode
        self._where = f"{classifier.arch}, layer {classifier.target_layer}"
        self.mode = backward_mode(self.needs)
        whole = "input_gradient" in needs
        self.attention_mode = attention_mode(needs)
        device = images.device.type
        self._cast = device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._gradients: dict[Any, Tensor] = {}
        self._derivatives: dict[Any, list[Tensor | None]] = {}
        self._head: tuple[Tensor, Form] | None = None
        self.biases = bias_layers(classifier) if "biases" in needs else {}
        self._outputs: dict[str, list[Tensor]] = {}
        self._attention: list[Any] = []
        with torch.inference_mode(False):
            images = images.clone() if images.is_inference() else images
            images = images if create_graph and images.requires_grad else images.detach()
            if whole and not images.requires_grad:
                images.requires_grad_()
            self.images = images
            kept = dict.fromkeys((classifier.target_layer, *self.layers, *self.biases))
            hooks: list[tuple[str, Hook]] = [(path, partial(self._capture, path)) for path in kept]
            if classifier.attention_layer is not None:
                hooks.append((classifier.attention_layer, self._attend))
            graph = create_graph or whole
            self._logits = self.run(images, hooks, graph, self.mode, self.attention_mode)
            self._leaf = self._only(classifier.target_layer)
            self.logits = full(self._logits)
            self.features = full(classifier.grid(self._leaf))

    def _only(self, path: str) -> Tensor:
        """What that layer gave, the one time it ran."""
        outputs = self._outputs.get(path, [])
        if len(outputs) != 1:
            raise ModelError(
                f"{self.classifier.arch}, layer {path}",
                "a target layer that runs once in a forward pass",
                f"{len(outputs)} runs",
                "Choose another with --target-layer.",
            )
        return outputs[0]

    def _capture(self, path: str, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            self.classifier.grid(output)  # raises, saying what it is
        if not (torch.is_grad_enabled() and output.requires_grad):
            torch.set_grad_enabled(True)
            output = output.detach().requires_grad_()
        self._outputs.setdefault(path, []).append(output)
        return cast(Tensor, output.clone())

    def _attend(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._attention.append(output)

    def run(
        self, images: Tensor, hooks: list[tuple[str, Hook]], graph: bool, *modes: TorchFunctionMode | None
    ) -> Tensor:
        """Logits of a pass with these forward hooks, which are gone afterwards, as is evaluation mode."""
        evaluation = evaluation_mode(self.classifier) if self.eval_mode else nullcontext()
        twice = self.create_graph or "hessian" in self.needs
        inside = [evaluation, self.autocast(), *filter(None, modes)]
        return forward_pass(self.classifier, images, hooks, inside, graph=graph, twice=twice)

    def autocast(self) -> torch.autocast:
        """The caller's autocast when the tape was made; maps themselves are computed without."""
        device, enabled, dtype = self._cast
        return torch.autocast(device, dtype=dtype, enabled=enabled)

    def again(self, images: Tensor, needs: Set[str], create_graph: bool, layers: Sequence[str] = ()) -> Tape:
        """A tape of other images, made as this one was."""
        with self.autocast():
            return Tape(
                self.classifier,
                images,
                needs=needs,
                layers=layers,
                create_graph=create_graph,
                eval_mode=self.eval_mode,
            )

    def hessian_product(self, cases: Tensor, scores: Tensor, create_graph: bool = False) -> Tensor:
        """H·A of each case, (M, D, h, w): H the second derivative of its score by the features A.

        Args:
            cases: (M, 2) int64, rows of (row, label).
            scores: (N, C) computed from `logits` (inside `recording()`).
            create_graph: differentiable; the tape has to be made with `create_graph=True`.
        """
        self._key("features", cases, create_graph)
        # tokens before the grid are no part of A
        direction = self.classifier.ungrid(self.features, torch.zeros_like(self._leaf))
        direction = direction if create_graph else direction.detach()
        return self.classifier.grid(hessian_product(scores, self._leaf, direction, cases, create_graph))

    def output(self, layer: str) -> Tensor:
        """What one of the further layers, or the target layer, gave, in the graph and as it gave it."""
        path = resolve_layer(self.classifier.network, layer)
        if path not in (self.classifier.target_layer, *self.layers):
            raise ConfigError("Tape", f"layers=[{layer!r}, ...] when it was made", list(self.layers))
        return self._only(path)

    def features_at(self, layer: str) -> Tensor:
        """(N, D, h, w) at one of the further layers, or the target layer.

        Raises:
            ConfigError: for a layer the tape was not made with.
            ModelError: where its output is no grid.
        """
        return full(self.classifier.grid(self.output(layer)))

    @property
    def relus(self) -> ReluMode:
        """The rectifiers of this pass, whose backward rule can be switched.

        Raises:
            ConfigError: where the tape was made without `input_gradient`.
        """
        if self.mode is None or "input_gradient" not in self.needs:
            raise ConfigError("Tape", "needs={'input_gradient'} for input gradients", sorted(self.needs))
        return self.mode

    @property
    def relu_calls(self) -> int:
        return self.mode.calls if self.mode is not None else 0

    @property
    def attention(self) -> Tensor | dict[str, Tensor]:
        """What the head's attention layer gave: a tensor, or several by name (see `Head.readings`).

        Raises:
            ModelError: where the head has none.
        """
        if not self._attention:
            where = f"head {self.classifier.head}"
            raise ModelError(where, "a head that computes an attention map", "none", "Use gradcam.")
        found = self._attention[-1]
        if isinstance(found, Mapping):
            return {name: full(value) for name, value in found.items()}
        return full(found)

    @property
    def class_weights(self) -> Tensor:
        """(C, D): what each class's logit gives to each feature map, where the head is linear on their means.

        Checked on this batch: logits = W·mean(A) + b, or mean(ReLU(W·A + b)) as in SqueezeNet.

        Raises:
            ModelError: where the head is anything else.
        """
        if self._head is None:
            self._head = inspect_head(self.classifier, self.features, self._logits)
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
            self._head = inspect_head(self.classifier, self.features, self._logits)
        return self._head[1] == "linear"

    def select(self, cases: Tensor, features: Tensor | None = None) -> Tensor:
        """(M, D, h, w): the features of each case's image; not copied where it is the batch in order."""
        features = self.features if features is None else features
        rows = cases[:, 0].tolist()
        return features if rows == list(range(len(features))) else features[rows]

    def gradient(self, cases: Tensor, create_graph: bool = False, *, scores: Tensor | None = None) -> Tensor:
        """∂ logit of each case / ∂ features, (M, D, h, w). Asked for again, it is not computed again.

        Args:
            cases: (M, 2) int64, rows of (row, label).
            create_graph: differentiable; the tape has to be made with `create_graph=True`.
            scores: (N, C) computed from `logits` (inside `recording()`), to differentiate in their place.

        Raises:
            ModelError: where the logits do not depend on the target layer, or only through a class token.
        """
        key = self._key("features", cases, create_graph)
        if scores is not None:
            return self._on_grid(self._differentiate(self._leaf, cases, create_graph, scores))
        if key not in self._gradients:
            self._gradients[key] = self._on_grid(self._differentiate(self._leaf, cases, create_graph))
        return self._gradients[key]

    def _on_grid(self, raw: Tensor) -> Tensor:
        gradient = self.classifier.grid(raw)
        if self.classifier.prefix and len(gradient) and not gradient.any() and raw.any():
            raise ModelError(
                self._where,
                "a class score that depends on the patch tokens",
                "one that depends on the class token alone, so every map would be zero",
                "Choose the first LayerNorm of the last block (the default) as target layer.",
            )
        return gradient

    def gradients(self, cases: Tensor, layers: Sequence[str], create_graph: bool = False) -> list[Tensor]:
        """∂ logit of each case / ∂ features at each of these layers, from the same backward passes.

        Args:
            cases: (M, 2) int64, rows of (row, label).
            layers: paths the tape was made with.
            create_graph: differentiable; the tape has to be made with `create_graph=True`.
        """
        self._key("features", cases, create_graph)
        for layer in layers:
            self.features_at(layer)
        paths = [resolve_layer(self.classifier.network, layer) for layer in layers]
        found = differentiate(self._logits, [self._only(p) for p in paths], cases, create_graph)
        return [self._on_grid(self._reached(raw)) for raw in found]

    def bias_gradients(
        self, cases: Tensor, create_graph: bool = False
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """∂ logit / ∂ image, and for each run of a layer in `biases`, its bias and ∂ logit / ∂ its output.

        Args:
            cases: (M, 2) int64, rows of (row, label).
            create_graph: differentiable; the tape has to be made with `create_graph=True`.

        Returns:
            (M, 3, H, W), and pairs of (D,) and (M, D, h, w); layers the logits do not depend on are left out.
        """
        self._key("biases", cases, create_graph)
        runs = [
            (bias, output) for path, bias in self.biases.items() for output in self._outputs.get(path, [])
        ]
        targets = [self.images, *(run for _, run in runs)]
        image, *found = differentiate(self._logits, targets, cases, create_graph)
        pairs = [(bias, raw) for (bias, _), raw in zip(runs, found, strict=True) if raw is not None]
        return self._reached(image), pairs

    def derivatives(
        self,
        what: object,
        targets: Sequence[Tensor],
        cases: Tensor,
        create_graph: bool = False,
        scores: Tensor | None = None,
    ) -> list[Tensor | None]:
        """∂ logit (or score, (N, K)) of each case / ∂ other tensors; logits' once only for each name."""
        if scores is not None:
            return differentiate(scores, targets, cases, create_graph)
        key = self._key(what, cases, create_graph)
        if key not in self._derivatives:
            self._derivatives[key] = differentiate(self._logits, targets, cases, create_graph)
        return self._derivatives[key]

    def sent_back(self, rules: Rules, cases: Tensor, create_graph: bool = False) -> Tensor:
        """(M, D, h, w): what these rules send back from each case's logit to the target layer."""
        assert self.mode is not None
        with self.mode.switch.set(rules):
            return self._on_grid(self._reached(self.derivatives(rules, [self._leaf], cases, create_graph)[0]))

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
        if rule != "plain":
            self.relus.refuse_others(f"{self.classifier.arch}, {rule} rule")
        key = self._key(rule, cases, create_graph)
        if key not in self._gradients:
            with self.relus.switch.set(rule):
                self._gradients[key] = self._differentiate(self.images, cases, create_graph)
        return self._gradients[key]

    def _key(self, what: object, cases: Tensor, create_graph: bool) -> tuple[object, ...]:
        """What names a gradient; refuses what cannot be computed."""
        if create_graph and not self.create_graph:
            raise ConfigError("Tape", "create_graph=True when it was made", "create_graph=False")
        return what, create_graph, *checked(cases, *self._logits.shape)

    def _differentiate(
        self, target: Tensor, cases: Tensor, create_graph: bool, scores: Tensor | None = None
    ) -> Tensor:
        scores = self._logits if scores is None else scores
        return self._reached(differentiate(scores, [target], cases, create_graph)[0])

    def _reached(self, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            raise ModelError(
                self._where,
                "logits that depend on the target layer and the image",
                "a forward pass that cuts the graph between them",
            )
        return gradient

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
            return full(self.run(images, [(self.classifier.target_layer, put)], False))
