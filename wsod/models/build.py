"""Classifiers by name, from files, or around somebody's module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from wsod.config import bind
from wsod.errors import CheckpointError, ConfigError, ModelError
from wsod.models.architectures import (
    ARCHITECTURES,
    Architecture,
    describe_target,
    find_architecture,
    module_architecture,
)
from wsod.models.blocks import BLOCKS, insert
from wsod.models.checkpoint import (
    bare_state,
    file_sha256,
    fit_state,
    is_checkpoint,
    load_file,
    read_checkpoint,
)
from wsod.models.classifier import Classifier
from wsod.models.final import final_layer
from wsod.models.heads import HEADS, Site
from wsod.models.preprocess import Preprocess

__all__ = ["build_classifier", "load_classifier"]

# a number of classes that no other layer has outputs
_UNUSUAL = 1009

Task = Literal["multiclass", "multilabel"]


def build_classifier(
    arch: str,
    classes: Sequence[str],
    *,
    task: Task = "multiclass",
    head: str = "linear",
    head_options: Mapping[str, Any] | None = None,
    blocks: Mapping[str, Mapping[str, Any]] | None = None,
    weights: str | Path = "none",
    target_layer: str | None = None,
    size: int | None = None,
    preprocess: Preprocess | None = None,
) -> Classifier:
    """A classifier to train, in training mode.

    Args:
        arch: an entry of `ARCHITECTURES`, `timm:NAME`, or `module:factory`.
        classes: class names, in the order of the labels.
        task: `multiclass` or `multilabel`.
        head: an entry of `HEADS`. Its trunk has the weights' values; what is new is random.
        head_options: fields of that entry.
        blocks: entries of `BLOCKS` to put into the trunk, with their fields.
        weights: `none` (random), `default` (torchvision's or timm's download) or a .safetensors, .pt or .pth
            file. A file for another number of classes gives its trunk, and the linear layer is new: the
            attribute `loaded` says so.
        target_layer: path of the module whose output maps are made of; None = the architecture's default.
        size: input side in pixels; None = what the published weights were evaluated with. Position
            embeddings of a ViT are interpolated to it.
        preprocess: how its input is made; None = as for the published weights.

    Raises:
        ConfigError: for an unknown architecture or head, or no classes.
        ModelError: for a target layer that does not exist.
        CheckpointError: for weights that do not fit, naming the keys.
    """
    if not classes:
        raise ConfigError("classes", "at least one class name", "none")
    plan = _Plan(
        find_architecture(arch),
        arch,
        classes,
        task,
        head,
        head_options or {},
        blocks or {},
        target_layer,
        size,
        preprocess,
    )
    architecture, network = plan.bare()
    if str(weights) == "none":
        return plan.finish(architecture, network)
    side = plan.preprocess.size
    if str(weights) == "default":
        state: Mapping[str, Tensor] = architecture.fetch(side)
        where = f"published weights of {arch}"
    else:
        where = str(weights)
        state = bare_state(load_file(weights), network.state_dict(), where)
    final = final_layer(network, len(classes))[0]
    whole = fit_state(network, _fit_positions(network, state, side), final, where, new_head=True)
    classifier = plan.finish(architecture, network)
    new = [] if whole else [f"the layer {final} is new ({len(classifier.classes)} classes)"]
    new += [] if head == "linear" else [f"the head {head} is new"]
    classifier.loaded = "; ".join([where, *new])
    classifier.sha256 = None if str(weights) == "default" else file_sha256(weights)
    return classifier


def load_classifier(
    source: str | Path | nn.Module,
    *,
    arch: str | None = None,
    classes: Sequence[str] | None = None,
    target_layer: str | None = None,
    size: int | None = None,
    device: str | torch.device = "cpu",
) -> Classifier:
    """A trained classifier: from a checkpoint, from bare weights and an architecture, or around a module.

    Args:
        source: a checkpoint of `atcon`; a .safetensors, .pt or .pth file with a state dict (`arch` is needed
            then); or a network, which is wrapped as it is, its mode left alone. A `Classifier` is returned.
        arch: the architecture of bare weights. Of a checkpoint, only needed to confirm a `module:factory`.
        classes: class names; None = the checkpoint's, ImageNet's where there are 1000, else numbers.
        target_layer: path of the module whose output maps are made of; None = the default.
        size: input side in pixels; None = the checkpoint's or the architecture's.
        device: where to put it.

    Returns:
        The classifier, in evaluation mode where it was loaded from a file.

    Raises:
        CheckpointError: for a file that cannot be read, would run code, or does not fit.
        ModelError: for a target layer that does not exist.
    """
    if isinstance(source, Classifier):
        return source
    if isinstance(source, nn.Module):
        network = source
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        # a compiled module runs its original's weights; hooks and derivatives of maps need the original
        network = getattr(network, "_orig_mod", network)
        return _wrap(network, arch, classes, target_layer, size).to(device)
    contents = load_file(source)
    if is_checkpoint(contents):
        try:
            classifier = _from_checkpoint(read_checkpoint(source), source, arch, classes, target_layer, size)
        except (ConfigError, ModelError) as error:  # of a name in it that is not known here
            where = f"{source}: {error.where}"
            raise type(error)(where, error.expected, error.got, error.hint) from error
    elif arch is None:
        raise CheckpointError(
            source, "a checkpoint of atcon", "weights without an architecture", "Pass --arch NAME as well."
        )
    else:
        classifier = _from_weights(contents, source, arch, classes, target_layer, size)
    classifier.loaded, classifier.sha256 = str(source), file_sha256(source)
    return classifier.eval().to(device)


@dataclass(frozen=True)
class _Plan:
    """What a classifier is built of: the network as its architecture has it, then blocks, then the head."""

    architecture: Architecture
    arch: str
    classes: Sequence[str]
    task: Task
    head: str
    head_options: Mapping[str, Any]
    blocks: Mapping[str, Mapping[str, Any]]
    target_layer: str | None
    size: int | None
    given: Preprocess | None = None

    @property
    def preprocess(self) -> Preprocess:
        preprocess = self.given or self.architecture.preprocess()
        if self.size is not None and self.size != preprocess.size:
            return replace(preprocess, size=self.size, resize=0)
        return preprocess

    def bare(self) -> tuple[Architecture, nn.Module]:
        """The network before blocks and head: what published weights fit."""
        HEADS[self.head]
        network = self.architecture.build(len(self.classes), self.preprocess.size)
        return describe_target(self.architecture, network, self.preprocess.size), network

    def finish(self, architecture: Architecture, network: nn.Module) -> Classifier:
        layer = architecture.target_layer or ""
        for name, options in self.blocks.items():
            insert(network, bind(BLOCKS[name], options, f"block {name}"), layer)
        head = bind(HEADS[self.head], self.head_options, f"head {self.head}")
        if self.head == "linear":
            # only here is the layer the user's to choose: other heads bring their own features
            layer = self.target_layer or layer
        site = Site(len(self.classes), layer, self.preprocess, self.task == "multilabel")
        attached = head.attach(network, site)
        return Classifier(
            attached.network,
            arch=self.arch,
            head=self.head,
            head_options=self.head_options,
            blocks=self.blocks,
            classes=self.classes,
            task=self.task,
            target_layer=self.target_layer or attached.target_layer,
            preprocess=self.preprocess,
            layout=architecture.layout,
            prefix=architecture.prefix,
            attention_layer=attached.attention_layer,
            supervision=head.supervision,
        )

    def whole(self) -> Classifier:
        return self.finish(*self.bare())


def _wrap(
    network: nn.Module,
    arch: str | None,
    classes: Sequence[str] | None,
    target_layer: str | None,
    size: int | None,
) -> Classifier:
    if arch in ARCHITECTURES:
        architecture = ARCHITECTURES[str(arch)]
    elif target_layer is not None:
        architecture = Architecture(type(network).__name__, lambda classes, size: network, target_layer)
    else:
        architecture = module_architecture(network, size or 224)
    if classes is None:
        count = len(final_layer(network)[1].weight)
        classes = _names(architecture, count)
    preprocess = architecture.preprocess()
    return Classifier(
        network,
        arch=arch or architecture.name,
        classes=classes,
        target_layer=target_layer or architecture.target_layer or "",
        preprocess=replace(preprocess, size=size, resize=0) if size else preprocess,
        layout=architecture.layout,
        prefix=architecture.prefix,
    )


def _from_checkpoint(
    contents: Mapping[str, Any],
    source: str | Path,
    arch: str | None,
    classes: Sequence[str] | None,
    target_layer: str | None,
    size: int | None,
) -> Classifier:
    name = contents["arch"]
    if arch is not None and arch != name:
        raise CheckpointError(source, f"the architecture {arch}", name, "Leave --arch out.")
    if ":" in name and not name.startswith("timm:") and arch is None:
        raise CheckpointError(
            source,
            "a known architecture",
            repr(name),
            f"Loading it imports and runs that module; pass --arch {name} if you trust it.",
        )
    if classes is not None and len(classes) != len(contents["classes"]):
        raise CheckpointError(source, f"{len(classes)} classes", len(contents["classes"]))
    preprocess = bind(Preprocess, contents["preprocess"], source)
    plan = _Plan(
        find_architecture(name),
        name,
        classes or contents["classes"],
        contents["task"],
        contents["head"],
        contents.get("head_options", {}),  # absent from files of older versions, as are blocks
        contents.get("blocks", {}),
        target_layer or contents["target_layer"],
        size,
        preprocess,
    )
    classifier = plan.whole()
    # files written before training with masks and boxes do not say what it used
    classifier.supervision = tuple(contents.get("supervision", classifier.supervision))
    network = classifier.network
    state = bare_state(contents, network.state_dict(), source)
    fitted = _fit_positions(network, state, classifier.preprocess.size)
    fit_state(network, fitted, final_layer(network, len(classifier.classes))[0], source)
    return classifier


def _from_weights(
    contents: Mapping[str, Any],
    source: str | Path,
    arch: str,
    classes: Sequence[str] | None,
    target_layer: str | None,
    size: int | None,
) -> Classifier:
    architecture = find_architecture(arch)
    if classes is None:
        sketch = _sketch(architecture, size or architecture.preprocess().size)
        final = final_layer(sketch, _UNUSUAL)[0]
        rows = bare_state(contents, sketch.state_dict(), source).get(f"{final}.weight")
        classes = _names(architecture, 1000 if rows is None else len(rows))
    classifier = _Plan(
        architecture, arch, classes, "multiclass", "linear", {}, {}, target_layer, size
    ).whole()
    network = classifier.network
    state = bare_state(contents, network.state_dict(), source)
    fitted = _fit_positions(network, state, classifier.preprocess.size)
    fit_state(network, fitted, final_layer(network, len(classifier.classes))[0], source)
    return classifier


def _sketch(architecture: Architecture, size: int) -> nn.Module:
    """The network's structure, without memory where its constructor allows it (RegNet's reads tensors)."""
    try:
        with torch.device("meta"):
            return architecture.build(_UNUSUAL, size)
    except (RuntimeError, ModelError):
        return architecture.build(_UNUSUAL, size)


def _names(architecture: Architecture, count: int) -> tuple[str, ...]:
    names = architecture.class_names() or ARCHITECTURES["resnet50"].class_names()
    return names if len(names) == count else tuple(map(str, range(count)))


def _fit_positions(network: nn.Module, state: Mapping[str, Tensor], size: int) -> Mapping[str, Tensor]:
    key = "encoder.pos_embedding"
    if not isinstance(network, VisionTransformer) or key not in state:
        return state
    if state[key].shape == network.encoder.pos_embedding.shape:
        return state
    fitted: Mapping[str, Tensor] = interpolate_embeddings(size, network.patch_size, dict(state))
    return fitted
