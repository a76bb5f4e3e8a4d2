"""From configuration to classifier, objectives and optimiser, every misfit found before training starts."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from atcon.config import ModelConfig, StageConfig
from atcon.objectives import OBJECTIVES, Objective
from atcon.pools import Sources
from atcon.transforms import TRANSFORMS, Transform
from wsod.config import bind
from wsod.errors import CheckpointError, ConfigError
from wsod.models import Classifier, Preprocess, build_classifier, load_classifier
from wsod.models.checkpoint import is_checkpoint, load_file
from wsod.models.heads import HeadNetwork

__all__ = [
    "make_classifier",
    "make_objectives",
    "make_optimiser",
    "make_transforms",
    "set_mode",
    "untrained",
]


def make_classifier(config: ModelConfig, sources: Sources) -> Classifier:
    """The classifier to train, for the classes of the data.

    Raises:
        WsodError: where weights and data or architecture do not fit.
    """
    classes, task = sources.train.classes, sources.train.task
    target, size = config.target_layer or None, config.size or None
    if config.weights not in ("none", "default"):
        contents = load_file(Path(config.weights))
        if is_checkpoint(contents):
            known = tuple(contents["classes"])
            if known == classes and config.arch in ("", contents["arch"]):
                return _continued(config, contents, sources)
            if not config.arch:
                raise CheckpointError(
                    config.weights,
                    f"the {len(classes)} classes of {sources.config.spec} ({', '.join(classes[:3])}, …)",
                    f"{len(known)} ({', '.join(known[:3])}, …)",
                    f"Pass --arch {contents['arch']} to train a new head on its trunk.",
                )
        elif not config.arch:
            raise CheckpointError(
                config.weights, "a checkpoint of atcon", "weights without an architecture", "Pass --arch too."
            )
    return build_classifier(
        config.arch or "smallnet",
        classes,
        task=task,
        head=config.head or "linear",
        head_options=config.head_options,
        blocks=config.blocks,
        weights=config.weights,
        target_layer=target,
        size=size,
    )


def _continued(config: ModelConfig, contents: Mapping[str, Any], sources: Sources) -> Classifier:
    """The classifier of a checkpoint for the same classes; or another head, or blocks, on its trunk."""
    task = sources.train.task
    target, size = config.target_layer or None, config.size or None
    same = config.head in ("", contents["head"]) and all(
        not said or said == contents.get(name, {})
        for name, said in (("head_options", config.head_options), ("blocks", config.blocks))
    )
    if same:
        found = load_classifier(config.weights, arch=config.arch or None, target_layer=target, size=size)
        found.task = task
        if isinstance(found.network, HeadNetwork):
            found.network.multilabel = task == "multilabel"
        return found
    if contents["head"] != "linear" or contents.get("blocks"):
        raise CheckpointError(
            config.weights,
            "a checkpoint with the head linear, to put another on its trunk",
            contents["head"],
            "Leave out head, head_options and blocks to go on with this one.",
        )
    return build_classifier(
        contents["arch"],
        sources.train.classes,
        task=task,
        head=config.head or "linear",
        head_options=config.head_options,
        blocks=config.blocks,
        weights=config.weights,
        target_layer=target,
        size=size,
        preprocess=bind(Preprocess, contents["preprocess"], config.weights),
    )


def make_objectives(
    name: str, stage: StageConfig, classifier: nn.Module, offered: Set[str] = frozenset()
) -> dict[str, Objective]:
    """A stage's objectives with their options.

    Args:
        name: the stage's.
        stage: its configuration.
        classifier: what is trained.
        offered: what the training images have: `labels`, `masks`, `boxes`.

    Raises:
        ConfigError: for an unknown objective or option, or one whose needs the stage does not meet.
    """
    objectives = {}
    normalised = any(isinstance(module, _BatchNorm) for module in classifier.modules())
    for key, term in stage.objectives.items():
        objective = bind(OBJECTIVES[key], term.options, f"stage {name}, objective {key}")
        if stage.compile and "second_order" in objective.requires:
            raise ConfigError(
                f"stage {name}: compile",
                "objectives of first order",
                key,
                "It differentiates gradients of the network, which a compiled graph does not allow twice.",
            )
        for need in sorted(objective.requires):
            if need == "second_order" and normalised and stage.batch_norm in ("train", "trunk"):
                raise ConfigError(
                    f"stage {name}, objective {key}",
                    "batch_norm = 'frozen' or 'mixed'",
                    repr(stage.batch_norm),
                    "It differentiates image by image, and batch statistics mix the images.",
                )
            if need != "second_order" and need not in offered:
                raise ConfigError(f"stage {name}, objective {key}", f"training images with {need}", "none")
        mixing = [kind for kind in stage.transforms if TRANSFORMS[kind].mixes]
        if mixing and not objective.takes_mixed and objective.requires & {"labels", "masks", "boxes"}:
            raise ConfigError(
                f"stage {name}, objective {key}",
                "images of one label set each",
                f"images mixed by {mixing[0]}",
                f"It reads what an image shows; leave transforms.{mixing[0]} out.",
            )
        objectives[key] = objective
    return objectives


def untrained(classifier: Classifier, config: ModelConfig, objectives: Mapping[str, Objective]) -> bool:
    """Whether the head is random and the first stage learns from no truth, so that nothing will train it.

    Its maps agree from the first step on, and mean nothing.

    Args:
        classifier: that training starts from.
        config: what it was made of.
        objectives: of the first stage.
    """
    # behind the name of the file, which may hold any words
    loaded = classifier.loaded.removeprefix(config.weights)
    trained = loaded != "random weights" and " is new" not in loaded
    return not trained and not any(objective.learned_from for objective in objectives.values())


def make_transforms(name: str, stage: StageConfig) -> list[Transform]:
    """What is done to a stage's batches, in the order it was said."""
    found: list[Transform] = []
    for kind, options in stage.transforms.items():
        found.append(bind(TRANSFORMS[kind], options, f"stage {name}, transform {kind}"))
    return found


def make_optimiser(stage: StageConfig, classifier: Classifier) -> torch.optim.Optimizer:
    """Adam (with `weight_decay`, AdamW); trunk and head with their own learning rates, 0 = left out."""
    head = classifier.head_parameters()
    in_head = {id(parameter) for parameter in head}
    trunk = [p for p in classifier.parameters() if id(p) not in in_head]
    rates = (stage.lr, stage.lr if stage.head_lr is None else stage.head_lr)
    groups = [
        {"params": parameters, "lr": rate, "base": rate}
        for parameters, rate in zip((trunk, head), rates, strict=True)
        if rate and parameters
    ]
    return torch.optim.AdamW(groups, weight_decay=stage.weight_decay)


def _trunk(classifier: nn.Module) -> nn.Module:
    """What came with the architecture: all, where the head is the network's own."""
    network = getattr(classifier, "network", classifier)
    return network.trunk if isinstance(network, HeadNetwork) else network


def set_mode(classifier: nn.Module, stage: StageConfig, needs: frozenset[str]) -> None:
    """Training mode, batch norm as the stage wants it for an objective of these needs."""
    frozen: Mapping[str, nn.Module | None] = {
        "train": None,
        "frozen": classifier,
        "mixed": classifier if "second_order" in needs else None,
        "trunk": _trunk(classifier),
    }
    classifier.train()
    part = frozen[stage.batch_norm]
    if part is not None:
        for module in part.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
