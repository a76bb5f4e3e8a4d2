"""ISNet: relevance (LRP) of the logits must stay on the object while the network learns to classify.

Bassi, Dertkigil and Cavalli, Nature Communications 15:291, 2024 (arXiv:2202.00232), and "Faster ISNet",
IEEE Access 2024 (arXiv:2401.08409). A plain classifier, trained with L = (1 - P)·L_class + P·L_LRP, where
L_LRP (`atcon.objectives.heatmap`) punishes relevance R of the input outside a foreground mask. Written from
a description of the method; R is `wsod.maps.lrp`, computed in the forward pass that classifies.

What is explained, a map for each:

- `original`: every logit in turn.
- `stochastic`: one logit an image: half of the time the highest (multi-label: one of a class that is there),
  else another.
- `selective`: η_c = y_c - log Σ_{c'≠c} exp y_c' = log P_c/(1 - P_c) of the least probable class c.
- `inputxgradient`: as original with R = image × gradient, the authors' ablation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atcon.data import Batch
from atcon.objectives.base import Objective
from atcon.objectives.foreground import Source, foreground_of
from atcon.objectives.heatmap import (
    background_loss,
    background_share,
    cuts_of,
    foreground_loss,
    gwrp,
    shrunk,
    usable,
)
from atcon.objectives.supervised import supervised_loss
from wsod.errors import ConfigError
from wsod.maps.lrp import composite, relevances
from wsod.maps.tape import Tape
from wsod.models.classifier import Classifier

__all__ = ["Cuts", "ISNet", "Variant", "explained_cases", "isnet_loss", "log_odds", "tune_cuts"]

Variant = Literal["original", "stochastic", "selective", "inputxgradient"]
Cuts = Sequence[tuple[float, float]]

_VARIANTS = ("original", "stochastic", "selective", "inputxgradient")
_NEEDS = frozenset({"input_gradient", "relevance"})


def isnet_loss(
    classifier: Classifier,
    images: Tensor,
    targets: Tensor,
    foreground: Tensor,
    *,
    variant: Variant = "stochastic",
    p: float = 0.7,
    epsilon: float = 1e-2,
    zb: bool = True,
    layers: Sequence[str] = (),
    layer_decay: float = 0.8,
    decay: float | None = None,
    energy: float = 1.0,
    cap: float = 0.0,
    background: float = 1.0,
    valley: float = 1.0,
    cuts: Cuts = ((1.0, 25.0),),
    hybrid: bool = True,
    classes: int = 0,
    selective_eps: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(1 - P)·L_class + P·L_LRP of a batch, from one forward pass, in full precision.

    The network runs in the mode it is in; with batch norm in training mode relevance takes the batch's
    statistics as constants, so that none goes from image to image. Nothing is left behind: no hooks, no
    `.grad`, no rule in force, also after an exception.

    Args:
        classifier: of convolutions, fully connected layers, batch norms and ReLUs.
        images: (N, 3, H, W), preprocessed.
        targets: (N,) int64, or (N, C) multi-hot.
        foreground: (N, H, W), where relevance may be; or (N, C, H, W), for each class (where one has no
            pixel, the union of all counts). Images whose mask is empty or full count zero in L_LRP.
        variant: see the module.
        p: P; 1 leaves the classification to another objective.
        epsilon: ε of LRP-ε.
        zb: rule z^B for the first layer (pixels between black and white); False: ε.
        layers: paths of inner layers whose relevance is punished too (LRP deep supervision).
        layer_decay: of the weighted ranked pooling of the losses over image and layers.
        decay: d of the background's pooling; None = by the size of the map (`default_decay`).
        energy: E of the background loss.
        cap: of the background loss, see there.
        background: weight w₁ of the background loss.
        valley: weight w₂ of the foreground loss.
        cuts: (C₁, C₂) of the foreground loss, of the image and each layer; or one for all.
        hybrid: the foreground loss grows linearly beyond C₁ + C₂.
        classes: with `original`, at most so many logits, those of true classes first, the others at random;
            0 = all.
        selective_eps: the ε that the authors' code has inside both logarithms of η; 0 is exact.
        generator: for random draws, on the CPU; None = torch's global one.

    Differs from the paper: probabilities are halves where the code has 5/11; η is exact by default; relevance
    that is not finite is an error of the step, not replaced.

    Returns:
        The scalar, and detached diagnostics: `classification`, `background` (L₁), `foreground` (L₂), `share`
        (of relevance outside the mask) and `total` (Σ|R|·M), means over all maps in which those without a
        usable mask count 0; `masked`, the fraction of maps with one; `conserved`, ΣR over the sum of scores;
        `relevance` (M, 3, H, W) and `cases` (M, 2).

    Raises:
        ConfigError: for an option that does not fit.
        ModelError: for networks that relevance cannot be shared through.
    """
    if not (0 <= p <= 1 and 0 <= layer_decay <= 1):
        raise ConfigError("isnet", "p and layer_decay in [0, 1]", f"p={p}, layer_decay={layer_decay}")
    if len(cuts) not in (1, 1 + len(layers)):
        raise ConfigError("isnet: cuts", f"a pair (C1, C2), or {1 + len(layers)} of them", len(cuts))
    if variant == "selective" and targets.ndim == 2:
        raise ConfigError(
            "isnet: variant",
            "original or stochastic for multi-label data",
            "'selective'",
            "It is of a softmax.",
        )
    heat = {"variant": variant, "epsilon": epsilon, "zb": zb, "classes": classes}
    tape, cases, maps, scores = _relevance(
        classifier, images, targets, layers, heat, selective_eps, generator, create_graph=True
    )
    with torch.autocast(images.device.type, enabled=False):
        classification = supervised_loss(tape.logits, targets)
        mask = _of_cases(foreground, cases).to(maps[0].dtype)
        valid = usable(mask)
        terms, parts = [], []
        for place, values in enumerate(maps):
            inside = mask if values.shape[2:] == mask.shape[2:] else shrunk(mask, values)
            first = background_loss(values, inside, decay=decay, energy=energy, cap=cap)
            second = foreground_loss(values, inside, cuts[place if len(cuts) > 1 else 0], hybrid=hybrid)
            terms.append(background * first + valley * second)
            parts.append((first, second))
        each = gwrp(torch.stack(terms, 1), layer_decay) if layers else terms[0]
        # the branch not taken is finite: an empty mask has a mean of 0 inside, and that is not divided by
        heatmap = torch.where(valid, each, 0.0).sum() / max(len(cases), 1)
        loss = (1 - p) * classification + p * heatmap
    return loss, _watched(classification, parts[0], maps[0], mask, valid, scores, cases)


def tune_cuts(
    classifier: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    variant: Variant = "stochastic",
    epsilon: float = 1e-2,
    zb: bool = True,
    layers: Sequence[str] = (),
    classes: int = 0,
    generator: torch.Generator | None = None,
) -> tuple[tuple[float, float], ...]:
    """C₁ and C₂ of the image and each layer, by the absolute relevance in a network trained a little.

    Args:
        classifier: trained without the heatmap loss; run in evaluation mode.
        batches: images and targets.
        variant: as those after it, of `isnet_loss`.

    Differs from the paper: measured when the plain training has ended, on weights that stay, instead of
    during its last epoch.
    """
    totals: list[list[Tensor]] = [[] for _ in range(1 + len(layers))]
    heat = {"variant": variant, "epsilon": epsilon, "zb": zb, "classes": classes}
    for images, targets in batches:
        maps = _relevance(classifier, images, targets, layers, heat, 0.0, generator, create_graph=False)[2]
        for place, values in zip(totals, maps, strict=True):
            place.append(values.detach().abs().sum((1, 2, 3)))
    if not totals[0]:
        raise ConfigError("tune_cuts", "a batch at least", "none")
    return tuple(cuts_of(torch.cat(place)) for place in totals)


def log_odds(logits: Tensor, labels: Tensor, eps: float = 0.0) -> Tensor:
    """(N, 1) η = log P_c - log(1 - P_c) of one class an image, P the softmax: y_c - log Σ_{c'≠c} exp y_c'.

    Args:
        logits: (N, C).
        labels: (N,) c.
        eps: added inside both logarithms, as in the authors' code (it shrinks the gradient where P is small).
    """
    rows = torch.arange(len(logits), device=logits.device)
    if eps:
        p = logits.softmax(1)[rows, labels]
        return ((p + eps).log() - (1 - p + eps).log())[:, None]
    others = logits.index_put((rows, labels), logits.new_tensor(-torch.inf))
    return (logits[rows, labels] - others.logsumexp(1))[:, None]


def _relevance(
    classifier: Classifier,
    images: Tensor,
    targets: Tensor,
    layers: Sequence[str],
    heat: Mapping[str, Any],
    selective_eps: float,
    generator: torch.Generator | None,
    *,
    create_graph: bool,
) -> tuple[Tape, Tensor, list[Tensor], Tensor]:
    """The pass, its cases (row, label), their relevance on image and layers, the scores explained (M,)."""
    variant, plain = heat["variant"], heat["variant"] == "inputxgradient"
    if variant not in _VARIANTS:
        raise ConfigError("isnet: variant", "one of " + ", ".join(_VARIANTS), repr(variant))
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        tape = Tape(
            classifier,
            images.detach().float() if images.dtype != torch.float64 else images.detach(),
            needs=_NEEDS,
            layers=layers,
            create_graph=create_graph,
            eval_mode=not create_graph,
        )
        rules = composite(
            tape,
            first="zb" if heat["zb"] and not plain else "same",
            epsilon=0.0 if plain else heat["epsilon"],
        )
        cases = explained_cases(tape.logits.detach(), targets, variant, heat["classes"], generator)
        rows, labels = cases.unbind(1)
        if variant == "selective":
            scores = log_odds(tape.logits, labels, selective_eps)
            columns = torch.stack([rows, torch.zeros_like(rows)], 1)
            maps = relevances(tape, columns, rules, layers, scores=scores, create_graph=create_graph)
            return tape, cases, maps, scores[:, 0]
        maps = relevances(tape, cases, rules, layers, create_graph=create_graph)
    return tape, cases, maps, tape.logits[rows, labels]


def explained_cases(
    logits: Tensor, targets: Tensor, variant: str, most: int, generator: torch.Generator | None
) -> Tensor:
    """(M, 2) rows of (row, label) that a variant explains, as many for each image.

    Args: as `isnet_loss`, and
        most: its `classes`.
    """
    n, count = logits.shape
    rows = torch.arange(n, device=logits.device)
    # drawn on the CPU: the same on every device
    noise = torch.rand(n, count + 1, generator=generator).to(logits.device)
    first, noise = noise[:, 0] < 0.5, noise[:, 1:]
    if variant in ("original", "inputxgradient"):
        most = min(most or count, count)
        true = targets > 0.5 if targets.ndim == 2 else F.one_hot(targets, count).bool()
        labels = (noise + true.to(noise.dtype)).topk(most, 1).indices.sort(1).values
        return torch.stack([rows.repeat_interleave(most), labels.flatten()], 1)
    if variant == "selective":
        return torch.stack([rows, logits.argmin(1)], 1)
    top = F.one_hot(logits.argmax(1), count).bool()
    if targets.ndim == 2:
        present = targets > 0.5
        top = torch.where(present.any(1, keepdim=True) & ~present.all(1, keepdim=True), present, top)
    if count == 1:
        return torch.stack([rows, torch.zeros_like(rows)], 1)
    return torch.stack([rows, noise.masked_fill(torch.where(first[:, None], ~top, top), -1.0).argmax(1)], 1)


def _of_cases(foreground: Tensor, cases: Tensor) -> Tensor:
    """(M, 1, H, W) the mask of each case."""
    rows, labels = cases.to(foreground.device).unbind(1)
    if foreground.ndim == 3:
        return foreground[rows][:, None]
    own = foreground[rows, labels]
    absent = ~(own > 0).flatten(1).any(1)
    return torch.where(absent[:, None, None], foreground.amax(1)[rows], own)[:, None]


def _watched(
    classification: Tensor,
    parts: tuple[Tensor, Tensor],
    relevance: Tensor,
    mask: Tensor,
    valid: Tensor,
    scores: Tensor,
    cases: Tensor,
) -> dict[str, Tensor]:
    share = background_share(relevance, mask)
    total = (relevance.abs() * mask).sum((1, 2, 3))
    values = {"background": parts[0], "foreground": parts[1], "share": share, "total": total}
    sums, wanted = relevance.detach().sum(), scores.detach().sum()
    return {
        "classification": classification.detach(),
        **{name: torch.where(valid, each, 0.0).mean().detach() for name, each in values.items()},
        "conserved": torch.where(wanted == 0, 0.0, sums / wanted),
        "masked": valid.to(mask.dtype).mean(),
        "relevance": relevance.detach(),
        "cases": cases,
    }


@dataclass(frozen=True)
class ISNet(Objective):
    """ISNet: classification, and relevance (LRP) that leaves the background; masks or boxes say what that is.

    Args: as `isnet_loss`, and
        source: the foreground: `masks` or `boxes` of the objects.
        per_class: with the masks of the class that is explained (multi-label data), instead of all objects'.
        tune: measure `cuts` when the stage begins, on the network as it is then (train it a little before).
        p_ramp: (a, b): P rises linearly from 0 at step a, before which training is plain, to `p` at step b. A
            network that can tell the classes by something learns the rest far faster.
    """

    variant: Variant = "stochastic"
    p: float = 0.7
    epsilon: float = 1e-2
    zb: bool = True
    layers: tuple[str, ...] = ()
    layer_decay: float = 0.8
    decay: float | None = None
    energy: float = 1.0
    cap: float = 0.0
    background: float = 1.0
    valley: float = 1.0
    cuts: tuple[tuple[float, float], ...] = ((1.0, 25.0),)
    hybrid: bool = True
    classes: int = 0
    selective_eps: float = 0.0
    source: Source = "masks"
    per_class: bool = False
    tune: bool = False
    p_ramp: tuple[int, int] | None = None

    name: ClassVar[str] = "isnet"
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    supervision: ClassVar[tuple[str, ...]] = ("image labels", "masks")
    citation: ClassVar[str] = "Bassi et al., Nature Communications 2024"

    @property
    def requires(self) -> frozenset[str]:
        return self.needs | {self.source}

    @property
    def learned_from(self) -> tuple[str, ...]:
        return ("image labels", self.source)

    def __post_init__(self) -> None:
        if self.p_ramp is not None and not 0 <= self.p_ramp[0] < self.p_ramp[1]:
            raise ConfigError("isnet: p_ramp", "steps 0 <= a < b", list(self.p_ramp))

    def __call__(self, classifier: Classifier, batch: Batch, step: int) -> dict[str, Tensor]:
        p = self.p
        if self.p_ramp is not None:
            first, last = self.p_ramp
            p *= min(max((step - first) / (last - first), 0.0), 1.0)
            if not p:
                loss = supervised_loss(classifier(batch.images), batch.targets)
                return {self.name: loss, f"{self.name}/classification": loss.detach()}
        foreground = foreground_of(batch, self.source, self.per_class)
        apart = ("source", "per_class", "tune", "p_ramp")
        options = {**{k: v for k, v in vars(self).items() if k not in apart}, "p": p}
        # the same draws after a resume and in any process
        seed = int(np.random.SeedSequence((step, *batch.rows)).generate_state(1)[0])
        loss, found = isnet_loss(
            classifier,
            batch.images,
            batch.targets,
            foreground,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )
        logged = {f"{self.name}/{key}": value for key, value in found.items() if value.ndim == 0}
        return {self.name: loss, **logged}

    def begun(self, classifier: Classifier, batches: Iterable[Batch]) -> ISNet:
        """With cuts measured on these batches, where they are to be tuned."""
        if not self.tune:
            return self
        pairs = ((batch.images, batch.targets) for batch in batches)
        kept = ("variant", "epsilon", "zb", "layers", "classes")
        options = {key: value for key, value in vars(self).items() if key in kept}
        cuts = tune_cuts(classifier, pairs, generator=torch.Generator().manual_seed(0), **options)
        return replace(self, cuts=cuts, tune=False)
