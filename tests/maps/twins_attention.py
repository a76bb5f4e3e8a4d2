"""Attention through a torchvision vision transformer, written out: one image, one class, T×T products."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models import VisionTransformer

from wsod.models import Classifier

Array = NDArray[np.float64]


def blocks_of(network: VisionTransformer, image: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Per block: the attention of each head (T, T), and the tokens (T, D) it gives."""
    x = network.conv_proj(image[None]).flatten(2)[0].T
    x = torch.cat([network.class_token[0], x]) + network.encoder.pos_embedding[0]
    attentions, outputs = [], []
    for block in network.encoder.layers:
        attention, normed = block.self_attention, block.ln_1(x)
        width, heads = normed.shape[1], attention.num_heads
        each = width // heads
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        q, k, v = (
            normed @ weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width]
            for i in range(3)
        )
        mine, mixed = [], []
        for head in range(heads):
            part = slice(head * each, (head + 1) * each)
            scores = q[:, part] @ k[:, part].T / math.sqrt(each)
            mine.append(scores.exp() / scores.exp().sum(1, keepdim=True))
            mixed.append(mine[-1] @ v[:, part])
        x = x + torch.cat(mixed, 1) @ attention.out_proj.weight.T + attention.out_proj.bias
        x = x + block.mlp(block.ln_2(x))
        attentions.append(mine)
        outputs.append(x)
    return attentions, outputs


def score(network: VisionTransformer, tokens: Tensor, label: int) -> Tensor:
    return network.heads(network.encoder.ln(tokens)[0])[label]


def fold(row: Tensor) -> Array:
    side = math.isqrt(len(row) - 1)
    return row[1:].reshape(side, side).detach().numpy()


def rollout(classifier: Classifier, image: Tensor, label: int) -> Array:
    attentions, _ = blocks_of(classifier.network, image)
    product = torch.eye(len(attentions[0][0]), dtype=image.dtype)
    for heads in attentions:
        mixed = sum(heads) / len(heads) + torch.eye(len(product), dtype=image.dtype)
        product = (mixed / mixed.sum(1, keepdim=True)) @ product
    return fold(product[0])


def weighted(classifier: Classifier, image: Tensor, label: int) -> list[Tensor]:
    """mean over heads of ReLU(∂A⊙A), block by block."""
    attentions, outputs = blocks_of(classifier.network, image)
    logit = score(classifier.network, outputs[-1], label)
    blocks = []
    for heads in attentions:
        gradients = torch.autograd.grad(logit, heads, retain_graph=True)
        parts = [(a * g).clamp(min=0) for a, g in zip(heads, gradients, strict=True)]
        blocks.append((sum(parts) / len(parts)).detach())
    return blocks


def gradientrollout(classifier: Classifier, image: Tensor, label: int) -> Array:
    blocks = weighted(classifier, image, label)
    product = torch.eye(len(blocks[0]), dtype=image.dtype)
    for block in blocks:
        mixed = block + torch.eye(len(block), dtype=image.dtype)
        product = (mixed / mixed.sum(1, keepdim=True)) @ product
    return fold(product[0])


def transmm(classifier: Classifier, image: Tensor, label: int) -> Array:
    blocks = weighted(classifier, image, label)
    relevance = torch.eye(len(blocks[0]), dtype=image.dtype)
    for block in blocks:
        relevance = relevance + block @ relevance
    return fold(relevance[0])


def legrad(classifier: Classifier, image: Tensor, label: int) -> Array:
    attentions, outputs = blocks_of(classifier.network, image)
    total = np.zeros(())
    for heads, tokens in zip(attentions, outputs, strict=True):
        logit = score(classifier.network, tokens, label)
        gradients = torch.autograd.grad(logit, heads, retain_graph=True)
        columns = sum(g.clamp(min=0).sum(0) for g in gradients)
        total = total + fold(columns) / (len(heads) * len(columns))
    return total / len(outputs)


ATTENTION_TWINS = {
    "gradientrollout": gradientrollout,
    "legrad": legrad,
    "rollout": rollout,
    "transmm": transmm,
}
