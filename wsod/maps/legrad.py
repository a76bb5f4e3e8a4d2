"""Vision transformers: how each block's attention would change the class score, block by block."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wsod.errors import ModelError
from wsod.maps.attentions import AttentionMode, attentions
from wsod.maps.derivatives import differentiate, full
from wsod.maps.tape import Hook, Tape
from wsod.models import Classifier

__all__ = ["legrad"]


def legrad(tape: Tape, cases: Tensor, *, create_graph: bool = False) -> Tensor:
    """mean over blocks, heads and attending tokens of ReLU(∂s_l / ∂A_l), s_l the score of block l's tokens.

    Bousselham et al., "LeGrad: An Explainability Method for Vision Transformers via Feature Formation
    Sensitivity", ICCV 2025. s_l is what the network's last normalisation and head make of block l's output,
    A_l (heads, T, T) that block's attention weights. Cost: a second forward pass, in which the head sees the
    tokens of all blocks as one batch, and a backward pass inside each block.

    Differs from the paper: the map is left raw, without its min-max normalisation.

    Args:
        tape: a forward pass that needs `attentions`.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect.

    Returns:
        (M, h, w), nowhere negative.

    Raises:
        ModelError: where the network has no attention between the tokens of its grid, or its blocks are not
            the modules of one `nn.Sequential` or `nn.ModuleList`, each with one attention.
    """
    classifier = tape.classifier
    count, blocks = len(attentions(tape)), _blocks(classifier)
    if count != len(blocks):
        raise _no_blocks(classifier, f"{len(blocks)} blocks with {count} attentions")
    outputs: list[Tensor] = []

    def cut(last: bool, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # cut off from the next block, so that one backward pass gives every ∂s_l / ∂A_l at once
        outputs.append(output)
        return torch.cat(outputs) if last else output.detach()

    mode = AttentionMode(gradients=True)
    hooks: list[tuple[str, Hook]] = [(path, partial(cut, path == blocks[-1])) for path in blocks]
    with torch.inference_mode(False):
        logits = tape.run(tape.images.detach(), hooks, False, mode)
        scores = full(logits).reshape(len(blocks), *tape.logits.shape).sum(0)
        found = differentiate(scores, mode.weights, cases, False)
    patches = torch.stack([gradient.relu().mean((1, 2)) for gradient in found if gradient is not None])
    grid = patches.mean(0)[:, classifier.prefix :]
    return grid.reshape(len(cases), *tape.features.shape[2:])


def _blocks(classifier: Classifier) -> list[str]:
    """Paths of the transformer's blocks: one of them holds the target layer."""
    parts = classifier.target_layer.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:depth])
        parent = classifier.network.get_submodule(path)
        if isinstance(parent, nn.Sequential | nn.ModuleList):
            return [f"{path}.{name}" for name, _ in parent.named_children()]
    raise _no_blocks(classifier, f"target layer {classifier.target_layer} in none")


def _no_blocks(classifier: Classifier, got: str) -> ModelError:
    return ModelError(
        classifier.arch,
        "blocks in one nn.Sequential or nn.ModuleList, an attention each",
        got,
        "Use transmm.",
    )
